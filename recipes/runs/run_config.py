# SPDX-License-Identifier: Apache-2.0
"""What a run was started with, kept in its output folder: another run must not continue it, nor write over it."""

import fcntl
import json
import os
import socket
from dataclasses import asdict, fields
from pathlib import Path

import yaml
from transformers import TrainingArguments

from data_scripts.credentials import without_credentials
from data_scripts.files import write_atomically
from data_scripts.yaml_files import read_yaml

from .preemption import PREEMPTED


RUN_CONFIG = "run_config.yaml"
STOPPED = "stopped.json"  # of a run that a loss or gradient ended which is not finite
LOCK = ".run.lock"
_held = []  # the open file whose lock this process has

# What does not change the weights that come out, or may be another path to the same files.
FREE = {
    "attn_implementation",
    "compile_layers",
    "eval_questions",
    "eval_split",
    "feature_store",
    "global_batch_size",  # compared as what is in force, whoever set it
    "loss_chunk_size",
    "max_new_tokens",
    "on_unreadable",  # which has to change where a run has met the picture
    "verify_data",
    "verify_checkpoint",
    "vision_attn_implementation",
}
# Of transformers' own arguments, those that do; of the recipe's, all but FREE.
TRAINING_KEYS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "learning_rate", "lr_scheduler_kwargs",
    "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs", "optim", "seed", "warmup_steps",
    "weight_decay",
)  # fmt: skip


def resolved_config(model_arguments, data_arguments, training_arguments) -> dict:
    """All settings of a run as plain values, by kind, and the batch that they amount to; without tokens."""
    training = training_arguments
    config = {
        "model": asdict(model_arguments),
        "data": asdict(data_arguments),
        "training": training.to_dict(),
        "batch": {
            "global_batch_size": training.per_device_train_batch_size
            * training.gradient_accumulation_steps
            * training.world_size,
            "world_size": training.world_size,
        },
    }
    return without_credentials(json.loads(json.dumps(config, default=str)))


def result_settings(config: dict) -> dict:
    """The settings of a `resolved_config` that a resumed run must share with the one it continues."""
    from .arguments import SftArguments, trains_at_learning_rate  # here, or they would import each other

    own = {field.name for field in fields(SftArguments)} - {field.name for field in fields(TrainingArguments)}
    settings = {**config["model"], **config["data"]}
    settings.update({key: config["training"].get(key) for key in {*TRAINING_KEYS, *own}})
    if not trains_at_learning_rate(settings):
        del settings["learning_rate"]
    settings = {key: value for key, value in settings.items() if key not in FREE}
    settings["model_name_or_path"] = os.path.normpath(settings["model_name_or_path"])
    settings["dataset_paths"] = [Path(path).name for path in settings["dataset_paths"]]  # a job may copy them
    settings["global_batch_size"] = config["batch"]["global_batch_size"]
    return settings


def differences(there: dict, here: dict) -> list[str]:
    """One line per setting that differs between two `resolved_config`s and changes the result."""
    there, here = result_settings(there), result_settings(here)
    return [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def read_run_config(folder: Path) -> dict | None:
    """
    The `resolved_config` kept in an output folder or a checkpoint; None if there is none.

    Raises:
        ValueError: if it cannot be read, naming it.
    """
    path = Path(folder) / RUN_CONFIG
    if not path.exists():
        return None
    config = read_yaml(path)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(kind), dict) for kind in ("model", "data", "training", "batch")
    ):
        raise ValueError(f"{path} is not the configuration of a run.")
    return config


def check_output_dir(output_dir: Path, config: dict):
    """
    Raises:
        ValueError: if `output_dir` holds checkpoints or a model of a run with other settings than `config`, naming
            them, or of something else than a run of the recipes.
    """
    output_dir = Path(output_dir)
    holds = sorted(path.name for pattern in ("checkpoint-*", "*.safetensors") for path in output_dir.glob(pattern))
    if not holds:
        return
    there = read_run_config(output_dir)
    if there is None:
        raise ValueError(
            f"{output_dir} holds {holds[0]} but no {RUN_CONFIG}: it was not made by a run of these recipes. "
            "Choose another --output_dir."
        )
    try:
        different = differences(there, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{output_dir / RUN_CONFIG} does not hold the settings of a run ({type(error).__name__}: {error}). Choose another "
            "--output_dir."
        ) from error
    if different:
        raise ValueError(
            f"{output_dir} holds {holds[-1]} of a run with other settings: {'; '.join(different)}. Choose another "
            "--output_dir, or resume with the same settings (the global batch is per_device_train_batch_size x "
            "gradient_accumulation_steps x processes)."
        )


def check_same_batch(checkpoint: Path, config: dict):
    """Raises ValueError if `checkpoint` counts steps of another global batch: its place in the data would be another."""
    there = read_run_config(checkpoint)
    sizes = [kept["batch"].get("global_batch_size") for kept in (there, config) if kept is not None]
    if len(set(sizes)) == 2:
        raise ValueError(
            f"{checkpoint} was saved with a global batch of {sizes[0]} and this run has {sizes[1]}: change "
            "per_device_train_batch_size or gradient_accumulation_steps (their product times the processes)."
        )


def write_run_config(output_dir: Path, config: dict):
    """
    Marks `output_dir` as that of a run with the settings `config`, which is no longer preempted or stopped.

    Raises:
        ValueError: if it cannot be written to.
    """
    output_dir = Path(output_dir)
    try:
        write_atomically(output_dir / RUN_CONFIG, yaml.safe_dump(config, sort_keys=True))
    except OSError as error:
        raise ValueError(cannot_write(output_dir, error)) from error
    for word in (PREEMPTED, STOPPED):
        (output_dir / word).unlink(missing_ok=True)


def cannot_write(output_dir: Path, error: OSError) -> str:
    return f"cannot write to {output_dir} ({error.strerror}): give another with --output_dir."


def lock_output_dir(output_dir: Path):
    """
    Keeps other runs out of `output_dir` until [`unlock_output_dir`], or until this process ends, however it ends.

    The lock is the process's own (POSIX): a data loader that outlives it does not hold it. NFS passes it on to the other
    nodes, Lustre does where it is mounted with `flock`; on a file system without locks there is none.

    Raises:
        ValueError: naming process and host of the run that is at work there, or if the folder cannot be written to.
    """
    path = Path(output_dir) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(cannot_write(output_dir, error)) from error
    _held.append(stream)
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX has either
        raise ValueError(in_use(output_dir, path)) from error
    except OSError:
        return  # a file system without locks
    try:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
    except OSError as error:
        raise ValueError(cannot_write(output_dir, error)) from error


def unlock_output_dir():
    """Lets go of the folder that this process has locked, if any."""
    while _held:
        _held.pop().close()


def in_use(output_dir: Path, lock: Path) -> str:
    holder = lock.read_text(encoding="utf-8", errors="replace").strip()
    return f"{output_dir} is in use by another run: {holder}. Wait for it, or give another --output_dir."


def run_at_work(output_dir: Path) -> str | None:
    """The run of another process that is at work in `output_dir`, as its lock says; None if there is none."""
    path = Path(output_dir) / LOCK
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8", errors="replace") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return stream.read().strip()
        except OSError:
            return None
    return None


__all__ = [
    "RUN_CONFIG",
    "STOPPED",
    "check_output_dir",
    "check_same_batch",
    "differences",
    "lock_output_dir",
    "read_run_config",
    "resolved_config",
    "run_at_work",
    "unlock_output_dir",
    "write_run_config",
]
