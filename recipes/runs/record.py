# SPDX-License-Identifier: Apache-2.0
"""What a training run was: `run.json` in its output folder, which the model card is written from.

Its settings are in `run_config.yaml` beside it; here is what they do not tell. Licences and fingerprints of data and base
model are copied in when the run starts, because they may be gone when the model is published. The record of the run that
made the base model is part of it.
"""

import hashlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from data_scripts.card import PREPARED
from data_scripts.credentials import without_credentials
from data_scripts.files import write_atomically
from data_scripts.licences import read_licences
from data_scripts.preparation.repo import MANIFEST

from .run_config import RUN_CONFIG, read_run_config


ROOT = Path(__file__).parents[2]
RECORD = "run.json"
CONVERSION = "conversion_manifest.json"
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft", "vggt-qwen3")


def start_record(trainer, model_arguments) -> Path | None:
    """
    Writes `run.json` of a run that begins, or begins again; on the main process only, elsewhere returns None.

    Args:
        trainer (`VggtQwen3Trainer`): Ready to train, with the `base` that it trains.
        model_arguments (`ModelArguments`): Its model's.
    """
    if not trainer.is_world_process_zero():
        return None
    arguments, data_arguments = trainer.args, trainer.data_arguments
    path = Path(arguments.output_dir) / RECORD
    before = read_json(path) if path.is_file() else {}
    sessions = before.get("sessions", [])
    session = {"started": now(), "finished": None, "seconds": None, "processes": arguments.world_size}
    record = {
        "command": [shorten_path(word) for word in without_credentials(sys.argv)],
        "datasets": [describe_dataset(dataset) for dataset in data_arguments.dataset_paths],
        "base": describe_base(model_arguments.model_name_or_path, trainer.base["weights_sha256"]),
        "parameters": count_parameters(trainer.model),
        "sessions": [*sessions, session | {"machine": describe_machine()}],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }
    if "unreadable" in before:
        record["unreadable"] = before["unreadable"]
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    return path


def record_unreadable(output_dir: str, sequences: int, scenes: list[str]):
    """
    Writes to a run's record, if there is one, that so many sequences were left out so far (`on_unreadable: skip`).

    Args:
        scenes (`list[str]`): Of those that were not met before, which picture cannot be read and why. The record has the
            first hundred.
    """
    path = Path(output_dir) / RECORD
    if path.is_file():
        record = read_json(path)
        known = record.get("unreadable", {}).get("scenes", [])
        scenes = list(dict.fromkeys([*known, *scenes]))[:100]
        record["unreadable"] = {"sequences": sequences, "scenes": scenes}
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def finish_record(path: Path | None, metrics: dict[str, float], unreadable: int = 0):
    """Adds to the record at `path` that training has ended, with Trainer's metrics of it and the sequences left out."""
    if path is not None:
        if unreadable:
            record_unreadable(str(path.parent), unreadable, [])
        record = read_json(path)
        seconds = metrics["train_runtime"]
        record["sessions"][-1] |= {"finished": now(), "seconds": seconds}
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def read_record(folder_or_repo: str) -> dict | None:
    """
    `run.json` of a run's output folder, or of a repo of the Hub, with its `settings`; None if it has none. Without
    tokens, which records of earlier versions may hold.

    Raises:
        ValueError: if a file cannot be read, naming it.
    """
    record, settings = (find_file(folder_or_repo, name) for name in (RECORD, RUN_CONFIG))
    if record is None or settings is None:
        return None
    return without_credentials(read_json(record) | {"settings": read_run_config(settings.parent)})


def read_json(path: Path) -> dict:
    """Raises ValueError, naming the file, if it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def shorten_path(word: str) -> str:
    """What is in this repository without the folders before it; any other word as it is."""
    path = Path(os.path.abspath(word))
    return str(path.relative_to(ROOT)) if path.exists() and path.is_relative_to(ROOT) and path != ROOT else word


def find_file(folder_or_repo: str, name: str, repo_type: str = "model") -> Path | None:
    """A file of a folder, or of a repo of the Hub (or its cache, offline); None if it has none."""
    if Path(folder_or_repo).is_dir():
        path = Path(folder_or_repo) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(folder_or_repo, name, repo_type=repo_type))
    except (EntryNotFoundError, HTTPError, OSError):
        return None


def describe_source(folder_or_repo: str) -> dict[str, str | None]:
    """`name` without the folders it is in, which mean nothing to others, and `repo_id` if it is a repo of the Hub."""
    if Path(folder_or_repo).exists():
        return {"name": Path(os.path.abspath(folder_or_repo)).name, "repo_id": None}
    return {"name": folder_or_repo, "repo_id": folder_or_repo}


def describe_dataset(folder_or_repo: str) -> dict:
    """Title and licences by the card of a prepared dataset; fingerprint and sizes by its manifest."""
    card, manifest = (find_file(folder_or_repo, name, "dataset") for name in ("README.md", MANIFEST))
    data = DatasetCard.load(card).data.to_dict() if card else {}
    prepared = read_json(manifest) if manifest else {}
    return describe_source(folder_or_repo) | {
        "title": (data.get("pretty_name") or "").removesuffix(PREPARED) or None,
        "licences": list(read_licences(data)),
        "fingerprint": prepared.get("fingerprint"),
        "counts": prepared.get("counts"),
    }


def describe_base(folder_or_repo: str, weights_sha256: str) -> dict:
    """
    Where the run starts from: the record of the run or conversion that made it, the card's licence, and its weights, as
    `hash_weights` gives them (of a repo of the Hub its name says as much).
    """
    conversion, card = (find_file(folder_or_repo, name) for name in (CONVERSION, "README.md"))
    data = ModelCard.load(card).data.to_dict() if card else {}
    return describe_source(folder_or_repo) | {
        "weights_sha256": weights_sha256 if Path(folder_or_repo).is_dir() else None,
        "card": {key: data[key] for key in ("license", "license_name", "license_link") if key in data},
        "conversion": read_json(conversion) if conversion else None,
        "run": read_record(folder_or_repo),
    }


def hash_weights(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of parameters, `total` and `trained`; under ZeRO-3, where each process holds a share, of the whole."""
    sizes = [
        (parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel(), parameter.requires_grad)
        for parameter in model.parameters()
    ]
    return {"total": sum(size for size, _ in sizes), "trained": sum(size for size, trains in sizes if trains)}


def describe_machine() -> dict:
    """The main process's machine: processor, cores, and its accelerators by name."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
    }


__all__ = [
    "CONVERSION",
    "RECORD",
    "describe_base",
    "describe_dataset",
    "finish_record",
    "hash_weights",
    "read_json",
    "read_record",
    "record_unreadable",
    "start_record",
]
