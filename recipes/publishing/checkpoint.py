# SPDX-License-Identifier: Apache-2.0
"""Which files of a training run's folder are published, and whether it is whole."""

import json
import re
from pathlib import Path

import yaml

from data_scripts.hub import Files
from recipes.training.record import CONVERSION, RECORD, read_json
from recipes.training.run_config import RUN_CONFIG, read_run_config


# Never published: training_args.bin (a pickle), checkpoint-N, optimizer states, and the adapter, which is merged.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "*.py",
    "LICENSE*",
    "emissions.csv",
    "runs/**/events.out.tfevents.*",
)
JSON_PATTERNS = (RECORD, CONVERSION, "train_results.json", "all_results.json", "trainer_state.json")
# A path of the machine that trained: what is before its last name says nothing to others.
FOLDERS = re.compile(r"(?:(?<=^)|(?<=[\s=,'\"\[(]))/(?:[^/\s'\"]+/)+")


def checkpoint_files(folder: Path) -> Files:
    """
    What of a finished run's output folder is published, by its path in the repo.

    Raises:
        ValueError: if it is no checkpoint of VGGT-Qwen3, is not whole, or does not say how it was trained.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "vggt_qwen3":
        raise ValueError(f"{folder} is a checkpoint of {config.get('model_type')!r}, not of 'vggt_qwen3'.")
    needed = {"processor_config.json", "tokenizer_config.json", "chat_template.jinja"}
    index = folder / "model.safetensors.index.json"
    needed |= set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    needed |= {name.split(".")[0] + ".py" for name in _names(config.get("auto_map", {}))} or {"(code: no auto_map)"}
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} is no whole checkpoint: {', '.join(missing)} is missing.")
    absent = [name for name in (RECORD, RUN_CONFIG) if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} has no {absent[0]}, which says how it was trained: give the output folder of a recipe "
            "(recipes/stage1.py, ...), not a checkpoint-N in it or a converted checkpoint."
        )
    if read_json(folder / RECORD)["sessions"][-1]["finished"] is None:
        raise ValueError(f"{folder}: the training has not ended ({RECORD}); launch it again, it goes on where it was.")
    files: Files = {}
    for pattern in PATTERNS:
        files |= {path.relative_to(folder).as_posix(): path for path in folder.glob(pattern) if path.is_file()}
    for name in JSON_PATTERNS:
        if (folder / name).is_file():
            files[name] = published_json(folder / name)
    settings = without_folders(read_run_config(folder))
    return files | {RUN_CONFIG: yaml.safe_dump(settings, sort_keys=True).encode()}


def published_json(path: Path) -> bytes:
    """A JSON file with paths of this machine cut down to their last names."""
    content = without_folders(json.loads(path.read_text(encoding="utf-8")))
    return (json.dumps(content, indent=2) + "\n").encode()


def without_folders(value):
    """`value`, a JSON value, with absolute paths in its strings cut down to their last names."""
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    return value


def _names(auto_map: dict) -> list[str]:
    return [name for value in auto_map.values() for name in (value if isinstance(value, list) else [value]) if name]


__all__ = ["checkpoint_files", "published_json", "without_folders"]
