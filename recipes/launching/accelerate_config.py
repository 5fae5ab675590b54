# SPDX-License-Identifier: Apache-2.0
"""Which accelerate configuration a run gets: one of `recipes/accelerate_configs`, filled in and kept beside the run."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import yaml

from recipes.evaluation.report import write_atomically

from .estimate import Memory, Run, plain_memory, zero_memory
from .resources import USABLE, Gpu
from .settings import BatchPlan, plan_batch


TEMPLATES = Path(__file__).parent.parent / "accelerate_configs"
# (ZeRO stage, CPU offload) to template.
ZERO = {(2, False): "zero2.yaml", (3, False): "zero3.yaml", (3, True): "zero3_offload.yaml"}


@dataclass
class Choice:
    template: str
    plan: BatchPlan
    memory: Memory | None
    zero: bool


def choose(
    run: Run | None, settings: Namespace, gpus: list[Gpu], num_processes: int, safe: bool
) -> tuple[Choice, list[str]]:
    """
    The template and the micro-batch for a run: on GPUs the first of ZeRO-2, ZeRO-3, smaller micro-batches, and CPU
    offload that fits; without GPUs, or for Muon, which DeepSpeed does not know, plain data parallelism.

    Raises:
        ValueError: as `plan_batch`.
    """
    largest = 1 if safe else settings.per_device_train_batch_size
    plan = plan_batch(settings, num_processes, largest)
    if not gpus or settings.use_cpu or settings.muon_learning_rate is not None:
        template = "cpu.yaml" if num_processes == 1 and not gpus else "ddp.yaml"
        memory = None if run is None else plain_memory(run, plan)
        problems = []
        if memory is not None and gpus and not settings.use_cpu:
            problems = too_large(memory, plan, gpus)
        return Choice(template, plan, memory, False), problems
    if run is None:  # without shapes there is nothing to choose by
        return Choice(ZERO[3, True] if safe else ZERO[2, False], plan, None, True), []
    candidates = [(3, True, plan)]
    if not safe:
        smaller = [plan_batch(settings, num_processes, size) for size in range(largest, 0, -1)]
        candidates = [(stage, False, smaller_plan) for smaller_plan in smaller for stage in (2, 3)]
        candidates.append((3, True, smaller[-1]))
    for stage, offload, candidate in candidates:
        memory = zero_memory(run, candidate, stage, offload)
        if memory.total <= USABLE * min(gpu.free for gpu in gpus):
            break
    return Choice(ZERO[stage, offload], candidate, memory, True), too_large(memory, candidate, gpus)


def too_large(memory: Memory, plan: BatchPlan, gpus: list[Gpu]) -> list[str]:
    smallest = min(gpus, key=lambda gpu: gpu.free)
    if memory.total <= USABLE * smallest.free:
        return []
    return [
        f"GPU memory: about {memory.total / 1e9:.1f} GB are needed per GPU with a micro-batch of {plan.micro_batch}, and "
        f"{smallest.free / 1e9:.1f} of {smallest.total / 1e9:.1f} GB of {smallest.name} are free. End what else uses it "
        "(nvidia-smi), or take more GPUs, --safe, -- --activation_checkpointing true, fewer -- --questions_per_scene."
    ]


def write_config(
    choice: Choice, settings: Namespace, machines: int, rank: int, address: str | None, port: int | None, on_gpu: bool
) -> Path:
    """Writes the filled-in template to the output directory, and returns its path; ranks other than 0 have their own."""
    config = yaml.safe_load((TEMPLATES / choice.template).read_text(encoding="utf-8"))
    processes = choice.plan.num_processes
    if choice.template == "ddp.yaml" and processes == 1:
        config["distributed_type"] = "NO"
    config |= {"num_processes": processes, "num_machines": machines, "machine_rank": rank, "use_cpu": not on_gpu}
    # 0: any free port.
    config |= {"main_process_port": port or 0, "same_network": True, "rdzv_backend": "static"}
    if address is not None:
        config["main_process_ip"] = address
    if machines > 1 and "deepspeed_config" in config:
        # DeepSpeed's default starts the other machines itself, by ssh.
        config["deepspeed_config"]["deepspeed_multinode_launcher"] = "standard"
    name = "accelerate_config.yaml" if rank == 0 else f"accelerate_config_rank{rank}.yaml"
    path = Path(settings.output_dir) / name
    write_atomically(path, yaml.safe_dump(config, sort_keys=False))
    return path


__all__ = ["Choice", "choose", "write_config"]
