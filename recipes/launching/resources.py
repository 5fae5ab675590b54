# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run needs of its machine: GPUs, host memory with cgroup limits, disk, caches, port."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch

from .caches import cache_folders
from .estimate import WORKER_BYTES, Memory, Run, checkpoint_bytes
from .settings import BatchPlan


# In another process: asking here would keep some hundred megabytes of every GPU until the run ends.
ASK_GPUS = """
import json, torch
print(json.dumps([
    [torch.cuda.get_device_name(device), *torch.cuda.mem_get_info(device), torch.cuda.get_device_capability(device)[0] >= 8]
    for device in range(torch.cuda.device_count())
]))
"""
LARGE_MODEL = 500_000_000  # parameters that nobody means to train on a CPU
USABLE = 0.9  # of a GPU's memory: the estimate may be low, and a run that stops after an hour has lost it


@dataclass
class Gpu:
    name: str
    free: int  # bytes
    total: int
    bfloat16: bool = True  # computes it; what came before Ampere emulates it at most


def find_gpus() -> tuple[list[Gpu], list[str]]:
    """The GPUs that PyTorch sees, and why there may be fewer than there should be."""
    gpus = []
    if torch.backends.cuda.is_built():
        result = subprocess.run([sys.executable, "-c", ASK_GPUS], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            return [], [f"GPUs: PyTorch cannot use them ({reason}). Check nvidia-smi, and that torch is their build."]
        gpus = [Gpu(*fields) for fields in json.loads(result.stdout.strip().splitlines()[-1])]
    given = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if not gpus and (given or Path("/dev/nvidia0").exists()):
        return [], [
            f"GPUs: this machine has some ({f'SLURM_JOB_GPUS={given}' if given else '/dev/nvidia0'}), but PyTorch sees "
            "none. Check nvidia-smi, CUDA_VISIBLE_DEVICES, and that torch is a CUDA build (torch.version.cuda)."
        ]
    return gpus, []


def check_gpus(gpus: list[Gpu], settings: Namespace, num_processes: int, machines: int, run: Run | None) -> list[str]:
    """Whether there is a GPU for every process, and of a kind that can train, or a model that a CPU can train."""
    if num_processes % machines:
        return [f"Processes: {num_processes} cannot be shared by {machines} machines. Give a multiple."]
    if settings.use_cpu:
        return []
    local = num_processes // machines
    if gpus and local > len(gpus):
        return [
            f"GPUs: {local} processes on this machine, but PyTorch sees {len(gpus)} GPUs. Ask the scheduler for more, or "
            f"give --num_processes {len(gpus) * machines}."
        ]
    if settings.bf16 and (old := [gpu.name for gpu in gpus if not gpu.bfloat16]):
        return [
            f"GPUs: {old[0]} has no bfloat16. Take one of Ampere's generation or later, or set -- --bf16 false (with --fp16 "
            "true and a checkpoint in float32 for mixed precision)."
        ]
    if not gpus and run is not None and run.num_parameters > LARGE_MODEL:
        return [
            f"GPUs: none is visible, and a model of {run.num_parameters / 1e9:.1f} billion parameters needs some. Ask the "
            "scheduler for them (--gres=gpu:N), or say -- --use_cpu true if the CPU is meant."
        ]
    return []


def available_memory(root: Path = Path("/"), cgroup: str | None = None) -> tuple[int | None, str]:
    """
    Bytes of host memory that this process may still take, and what limits it: the machine or its cgroup (v1 or v2).

    Args:
        root: Where `proc` and `sys` are.
        cgroup: Content of `/proc/self/cgroup`, by default read.
    """
    meminfo = root / "proc" / "meminfo"
    if not meminfo.is_file():
        return None, "unknown"
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    limits = [(int(fields["MemAvailable"].split()[0]) * 1024, "the machine")]
    if cgroup is None:
        file = root / "proc" / "self" / "cgroup"
        cgroup = file.read_text() if file.is_file() else ""
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys" / "fs" / "cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys" / "fs" / "cgroup" / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Every group above sets a limit too. In a container the path is that of the host, and the mount is the group.
        folder = base / path.lstrip("/")
        for group in dict.fromkeys([folder, *folder.parents, base]):
            if group.is_relative_to(base) and (left := left_in_group(group, *names)) is not None:
                limits.append((left, f"the cgroup {group}"))
    return min(limits)


def left_in_group(group: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    """Bytes that a memory cgroup may still take; None if it sets no limit."""
    try:
        limit, usage = (group / limit_name).read_text().strip(), int((group / usage_name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max" or int(limit) > 1 << 60:
        return None
    # File pages that nobody uses are given back on demand.
    return int(limit) - usage + int(stat.get(cache_name, 0))


def check_memory(run: Run, memory: Memory, plan: BatchPlan, machines: int, on_gpu: bool) -> list[str]:
    """Host memory for loading, offload and data loaders; without GPUs for everything."""
    local = plan.num_processes // machines
    workers = run.settings.dataloader_num_workers * WORKER_BYTES * (run.num_parameters > LARGE_MODEL)
    per_process = memory.host + workers + (run.weight_bytes if on_gpu else memory.total)
    available, limit = available_memory()
    if available is None or local * per_process <= available:
        return []
    return [
        f"Memory: {local} processes need about {local * per_process / 1e9:.1f} GB of host memory, and {limit} leaves "
        f"{available / 1e9:.1f} GB. Ask the scheduler for more (--mem), or take fewer processes or data loader workers."
    ]


def check_disk(run: Run, output: Path, zero: bool) -> list[str]:
    """Room for the checkpoints that are kept, the best one, one that is being written, and the finished model."""
    one, final = checkpoint_bytes(run, zero)
    settings = run.settings
    kept = settings.save_total_limit or 10
    number = 0 if settings.save_strategy == "no" else kept + 1 + settings.load_best_model_at_end
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    there = len(list(output.glob("checkpoint-*")))
    needed = max(0, number - there) * one + final
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return []
    return [
        f"Disk: {output} needs {needed / 1e9:.1f} GB ({number} checkpoints of {one / 1e9:.1f} GB and the model), and "
        f"{free / 1e9:.1f} GB are free. Make room, write elsewhere (-- --output_dir), or keep fewer "
        "(-- --save_total_limit)."
    ]


def check_writable(output: Path, environment: dict[str, str]) -> list[str]:
    """That output directory and caches can be written to, by doing it."""
    problems = []
    folders = {"Output": output} | {f"Cache {name}": folder for name, folder in cache_folders(environment).items()}
    for name, folder in folders.items():
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                pass
        except OSError as error:
            advice = "Give another folder with -- --output_dir." if name == "Output" else "Set it to another folder."
            problems.append(f"{name}: cannot write to {folder} ({error.strerror or error}). {advice}")
    return problems


def check_rendezvous(machines: int, rank: int, address: str | None, port: int | None) -> list[str]:
    """The address and port where processes meet: known to all machines, and free on the first."""
    if machines == 1:
        return [] if port is None else check_port("127.0.0.1", port)
    problems = []
    if not 0 <= rank < machines:
        problems.append(f"Machines: --machine_rank {rank} is not one of 0 to {machines - 1}.")
    if address is None or port is None:
        return [*problems, "Machines: several need --main_process_ip and --main_process_port of the first."]
    try:
        socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return [*problems, f"Machines: --main_process_ip {address} is not known here ({error})."]
    return problems + (check_port(address, port) if rank == 0 else [])


def check_port(address: str, port: int) -> list[str]:
    family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return [f"Machines: {address} is not an address of this machine, which has rank 0."]
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            return [f"Port: {port} of {address} {reason}. Give another one with --main_process_port."]
    return []


__all__ = [
    "USABLE",
    "Gpu",
    "available_memory",
    "check_disk",
    "check_gpus",
    "check_memory",
    "check_rendezvous",
    "check_writable",
    "find_gpus",
]
