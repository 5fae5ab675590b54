# SPDX-License-Identifier: Apache-2.0
"""The output directory of a run: whose it is, what is in it, and the lock that keeps a second launch out."""

import fcntl
import json
import os
import socket
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from data_scripts.credentials import without_credentials
from recipes.runs.checkpoints import SAVING, CheckpointError, check_checkpoint, checkpoints_of
from recipes.runs.run_config import check_output_dir, run_at_work

from .settings import BatchPlan, data_arguments, model_arguments


MAX_CLOCK_DIFFERENCE = 5.0  # seconds


def config_of(settings: Namespace, plan: BatchPlan) -> dict:
    """The `resolved_config` that the recipe will record, of settings that nothing has been made of."""
    config = {
        "model": asdict(model_arguments(settings)),
        "data": asdict(data_arguments(settings)),
        "training": vars(settings),
        "batch": {"global_batch_size": plan.global_batch, "world_size": plan.num_processes},
    }
    return without_credentials(
        json.loads(json.dumps(config, default=lambda value: getattr(value, "value", str(value))))
    )


def check_output(settings: Namespace, plan: BatchPlan) -> tuple[list[str], list[str]]:
    """Problems and warnings of the output directory, before anything is written to it."""
    output = Path(settings.output_dir)
    if output.is_file():
        return [f"Output: {output} is a file. Give a folder with -- --output_dir."], []
    if not output.is_dir():
        return [], []
    try:
        check_output_dir(output, config_of(settings, plan))
    except ValueError as error:
        return [f"Output: {error}"], []
    if any((output / config / "train-00000-of-00001.parquet").is_file() for config in ("qa", "scenes")):
        return [f"Output: {output} holds prepared data. Give another folder with -- --output_dir."], []
    if (output / "train_results.json").is_file():
        return [], [f"{output} holds the finished run of these settings: it is loaded and saved once more."]
    return [], []


def check_checkpoints(settings: Namespace) -> tuple[list[str], list[str]]:
    """Checkpoints that are not whole are named; if there is no other to resume from, that is a problem."""
    output = Path(settings.output_dir)
    if settings.resume_from_checkpoint == "none" or not output.is_dir():
        return [], []
    if settings.resume_from_checkpoint not in (None, "auto"):
        try:
            check_checkpoint(Path(settings.resume_from_checkpoint), hashes=False)
        except CheckpointError as error:
            return [f"Checkpoint: {error}. Give another one with -- --resume_from_checkpoint."], []
        return [], []
    folders, damaged = checkpoints_of(output), []
    for folder in folders:
        try:
            check_checkpoint(folder, hashes=False)  # the recipe takes them
        except CheckpointError as error:
            damaged.append(str(error))
    if folders and len(damaged) == len(folders):
        return [f"Checkpoint: {'; '.join(damaged)}. No other can be resumed from: remove them to start again."], []
    warnings = [f"{error}; the run goes on from a whole one." for error in damaged]
    if (output / SAVING).exists():
        warnings.append(f"{output / SAVING} is what a run left that ended while it saved; it is not resumed from.")
    return [], warnings


def lock_output(output: Path, machine_rank: int):
    """
    Keeps a second launch out of `output` for as long as the returned file is open, on this machine and others.

    Raises:
        ValueError: naming host and process of the launch that is at work there.
    """
    output.mkdir(parents=True, exist_ok=True)
    if machine_rank == 0 and (run := run_at_work(output)) is not None:  # started without a launch
        raise ValueError(f"{output} is in use by another run: {run}.")
    stream = (output / lock_name(machine_rank)).open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.seek(0)
        raise ValueError(f"{output} is in use by another launch: {stream.read().strip()}.") from error
    except OSError:
        return stream  # a file system without locks
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()
    return stream


def lock_name(machine_rank: int) -> str:
    return f".launch-{machine_rank}.lock"


def lock_holder(output: Path) -> str | None:
    """The launch, or the run without one, that is at work in `output`, as its lock says; None if there is none."""
    if (run := run_at_work(output)) is not None:
        return run
    path = output / lock_name(0)
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return stream.read().strip()
        except OSError:
            return None
    return None


def clock_difference(folder: Path) -> float:
    """Seconds that the clock of the file system of `folder` is ahead of this machine's; negative if it is behind."""
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as stream:
        stream.write(b"0")
        stream.flush()
        os.fsync(stream.fileno())
        written = os.stat(stream.name).st_mtime
    after = time.time()
    if before <= written <= after:
        return 0.0
    return written - before if written < before else written - after


__all__ = [
    "MAX_CLOCK_DIFFERENCE",
    "check_checkpoints",
    "check_output",
    "clock_difference",
    "config_of",
    "lock_holder",
    "lock_output",
]
