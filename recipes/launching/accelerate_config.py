# SPDX-License-Identifier: Apache-2.0
"""Which accelerate configuration a run gets: one of `recipes/accelerate_configs`, filled in and kept beside the run."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_scripts.files import write_atomically

from .estimate import Memory, Run, plain_memory, zero_memory
from .resources import USABLE, Gpu
from .roofline import GPUS, Card, StepTime
from .settings import BatchPlan, asked_for, checkpoints_activations, micro_batches, plan_batch


TEMPLATES = Path(__file__).parent.parent / "accelerate_configs"
# (ZeRO stage, CPU offload) to template.
ZERO = {(2, False): "zero2.yaml", (3, False): "zero3.yaml", (3, True): "zero3_offload.yaml"}
ZERO |= {(2, True): "zero2_offload.yaml"}
FEW = 0.1  # share of the parameters below which dividing what trains among GPUs saves little
EQUAL = 1.02  # steps whose times differ by less are as fast as each other


@dataclass
class Choice:
    """
    How a run is launched.

    Args:
        memory: Per GPU; None if the model is not known.
        step: How long a step takes by its kernels; None if nothing is known of the data, or there is no GPU.
        reason: Why this one, in words.
    """

    template: str
    plan: BatchPlan
    memory: Memory | None
    zero: bool
    step: StepTime | None = None
    reason: str = ""


def choose(
    run: Run | None, settings: Namespace, gpus: list[Gpu], num_processes: int, safe: bool, argv: list[str]
) -> tuple[Choice, list[str]]:
    """
    The template, the micro-batch and whether activations are checkpointed, for a run.

    On GPUs the template is the first of plain data parallelism (for LoRA, and where little trains), ZeRO-2, ZeRO-3 and
    CPU offload with which a sequence fits. With it, the micro-batch is the largest that divides the process's share of
    the global batch and fits: once without activation checkpointing and once with it, and the faster of the two by the
    count of kernels is taken, without it if they are equal. What `argv`, the user's command line, says stays as it is.
    Without GPUs, for Muon, which DeepSpeed does not know, and for float16, which it would give VGGT's heads, it is plain
    data parallelism.

    Raises:
        ValueError: as `plan_batch`.
    """
    fixed_batch, fixed_checkpointing = (
        asked_for(argv, "per_device_train_batch_size"),
        asked_for(argv, "activation_checkpointing", "gradient_checkpointing"),
    )
    largest = 1 if safe else settings.per_device_train_batch_size
    plan = plan_batch(settings, num_processes, largest)
    on_gpu = bool(gpus) and not settings.use_cpu
    if not on_gpu:
        template = "cpu.yaml" if num_processes == 1 and not gpus else "ddp.yaml"
        memory = None if run is None else plain_memory(run, plan)
        return Choice(template, plan, memory, False), []
    plain_alone = settings.muon_learning_rate is not None or settings.fp16
    few_train = settings.lora_r > 0 or (run is not None and run.total.trainable < FEW * run.num_parameters)
    zero = [(2, False), (3, False), (3, True)]
    if run is not None and run.config.geometry_source == "predicted" and settings.feature_store is None:
        zero = [(2, False), (2, True)]  # ZeRO-3 would run VGGT's camera and depth heads in bfloat16
    if plain_alone:
        templates = [None]
    elif safe:
        templates = zero[-1:]
    else:
        templates = [None] * few_train + zero
    if run is None:  # without shapes there is nothing to choose by
        first = templates[0]
        name = "ddp.yaml" if first is None else ZERO[first]
        return Choice(name, plan, None, first is not None, reason="the checkpoint or the data is not here"), []

    free, card = min(gpu.free for gpu in gpus), card_of(gpus[0].name)
    sizes = [plan.micro_batch]
    if run.peaks and not (fixed_batch or safe):
        sizes = micro_batches(settings, num_processes)
    ways = [False, True]
    if fixed_checkpointing or not run.peaks:
        ways = [checkpoints_activations(settings)]
    elif safe:
        ways = [True]
    for template in templates:
        fitting = []
        for checkpointing in ways:
            for size in sizes:
                candidate = plan_batch(settings, num_processes, size, checkpointing)
                memory = memory_of(run, candidate, template)
                if memory.total <= USABLE * free:
                    fitting.append((candidate, memory, run.step_time(candidate, card, zero=template is not None)))
                    break
        if fitting:
            break
    if not fitting:
        fitting = [(candidate, memory, run.step_time(candidate, card, zero=template is not None))]
    chosen, reason = faster(fitting), why(fitting, fixed_batch, fixed_checkpointing)
    candidate, memory, step = chosen
    name = "ddp.yaml" if template is None else ZERO[template]
    choice = Choice(name, candidate, memory, template is not None, step, reason)
    return choice, too_large(memory, candidate, gpus)


def memory_of(run: Run, plan: BatchPlan, template: tuple[int, bool] | None) -> Memory:
    return plain_memory(run, plan) if template is None else zero_memory(run, plan, *template)


def card_of(name: str) -> Card:
    """The data sheet of the GPU that PyTorch calls `name`; an H100's for those that there is none of."""
    return next((card for key, card in GPUS.items() if key in name.upper()), GPUS["H100"])


def faster(fitting: list[tuple[BatchPlan, Memory, StepTime | None]]) -> tuple[BatchPlan, Memory, StepTime | None]:
    """Of the ways that fit, without checkpointing first, the fastest; the first of those that are equally fast."""
    times = [step.seconds if step is not None else 0.0 for *_, step in fitting]
    return next(way for way, seconds in zip(fitting, times, strict=True) if seconds <= EQUAL * min(times))


def why(fitting: list, fixed_batch: bool, fixed_checkpointing: bool) -> str:
    asked = [
        *["per_device_train_batch_size"] * fixed_batch,
        *["activation_checkpointing"] * fixed_checkpointing,
    ]
    reasons = [f"{' and '.join(asked)} as asked"] * bool(asked)
    if len(fitting) == 2 and fitting[0][2] is not None:
        off, on = fitting
        reasons.append(
            f"by its kernels a step takes {off[2].seconds:.2f} s without activation checkpointing at micro-batch "
            f"{off[0].micro_batch}, {on[2].seconds:.2f} s with it at {on[0].micro_batch}"
        )
    elif fitting[0][2] is not None:
        reasons.append(f"by its kernels a step takes {fitting[0][2].seconds:.2f} s")
        if not fixed_checkpointing and fitting[0][0].activation_checkpointing:
            reasons.append("nothing fits without activation checkpointing")
    return "; ".join(reasons)


def describe_choice(choice: Choice, gpus: list[Gpu]) -> str:
    """One line of what was chosen."""
    plan = choice.plan
    text = (
        f"{plan.num_processes} processes × micro-batch {plan.micro_batch} × accumulation {plan.accumulation} = "
        f"{plan.global_batch} sequences per step, by {choice.template}, activation checkpointing "
        f"{'on' if plan.activation_checkpointing else 'off'}"
    )
    if gpus and choice.memory is not None:
        activations = "" if choice.memory.activations is not None else " and unknown activations"
        free = min(gpu.free for gpu in gpus)
        text += f"; about {choice.memory.total / 1e9:.1f} GB{activations} of {free / 1e9:.1f} GB per GPU"
    return text + (f" ({choice.reason})" if choice.reason else "")


def too_large(memory: Memory, plan: BatchPlan, gpus: list[Gpu]) -> list[str]:
    smallest = min(gpus, key=lambda gpu: gpu.free)
    if memory.total <= USABLE * smallest.free:
        return []
    return [
        f"GPU memory: about {memory.total / 1e9:.1f} GB are needed per GPU with a micro-batch of {plan.micro_batch} and "
        f"activation checkpointing {'on' if plan.activation_checkpointing else 'off'}, and "
        f"{smallest.free / 1e9:.1f} of {smallest.total / 1e9:.1f} GB of {smallest.name} are free. End what else uses it "
        "(nvidia-smi), or take more GPUs, --safe, -- --activation_checkpointing true, fewer -- --questions_per_scene."
    ]


def write_config(
    choice: Choice,
    settings: Namespace,
    machines: int,
    rank: int,
    address: str | None,
    port: int | None,
    on_gpu: bool,
    bucket: int | None = None,
) -> Path:
    """
    Writes the filled-in template to the output directory, and returns its path; ranks other than 0 have their own.

    Args:
        bucket: Elements of DeepSpeed's buckets; by default its own number.
    """
    config = yaml.safe_load((TEMPLATES / choice.template).read_text(encoding="utf-8"))
    processes = choice.plan.num_processes
    if choice.template == "ddp.yaml" and processes == 1:
        config["distributed_type"] = "NO"
    config |= {"num_processes": processes, "num_machines": machines, "machine_rank": rank, "use_cpu": not on_gpu}
    # 0: any free port.
    config |= {"main_process_port": port or 0, "same_network": True, "rdzv_backend": "static"}
    if address is not None:
        config["main_process_ip"] = address
    suffix = "" if rank == 0 else f"_rank{rank}"
    folder = Path(settings.output_dir)
    if "deepspeed_config" in config:
        # Buckets are not among what accelerate hands to DeepSpeed: they need a file of DeepSpeed's own.
        file = folder / f"deepspeed_config{suffix}.json"
        write_atomically(file, json.dumps(deepspeed_config(config["deepspeed_config"], bucket), indent=2) + "\n")
        own = {"deepspeed_config_file": str(file.absolute())}
        own["zero3_init_flag"] = config["deepspeed_config"].get("zero3_init_flag", False)
        if machines > 1:
            # DeepSpeed's default starts the other machines itself, by ssh.
            own["deepspeed_multinode_launcher"] = "standard"
        config["deepspeed_config"] = own
        del config["mixed_precision"]  # DeepSpeed's file has it, and the recipe's bf16 decides
    path = folder / f"accelerate_config{suffix}.yaml"
    write_atomically(path, yaml.safe_dump(config, sort_keys=False))
    return path


def deepspeed_config(template: dict, bucket: int | None) -> dict:
    """What accelerate would make of a template's `deepspeed_config`, with buckets of `bucket` elements."""
    zero = {
        "stage": template["zero_stage"],
        "offload_optimizer": {"device": template["offload_optimizer_device"]},
        "offload_param": {"device": template["offload_param_device"]},
        "stage3_gather_16bit_weights_on_model_save": template.get("zero3_save_16bit_model", False),
    }
    if bucket is not None:
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": template["gradient_accumulation_steps"],
        "gradient_clipping": template["gradient_clipping"],
        "zero_optimization": zero,
    }


__all__ = ["Choice", "choose", "describe_choice", "write_config"]
