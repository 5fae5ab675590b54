# SPDX-License-Identifier: Apache-2.0
"""Which files of a training run's folder are published, and whether it is whole."""

import json
import re
from pathlib import Path

import yaml

import modeling_vggt_qwen3
from data_scripts.credentials import without_credentials
from data_scripts.hub import Files, own_file
from data_scripts.machine_paths import without_folders
from recipes.runs.record import CONVERSION, RECORD, read_json
from recipes.runs.run_config import RUN_CONFIG, read_run_config

from .logs import published_logs


# What is published of a run, and nothing else: not training_args.bin (a pickle), checkpoint-N, optimizer states, nor the
# adapter, which is merged. The weights are those that config and index name, the code this package's.
NAMES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    *(f"LICENSE-{part}{suffix}" for part in ("vggt", "text") for suffix in ("", ".md", ".txt")),
    "emissions.csv",
)
CODE = sorted(
    path.name
    for path in Path(modeling_vggt_qwen3.__file__).parent.glob("*.py")
    if not path.name.startswith(("__init__", "convert_"))
)
INDEX = "model.safetensors.index.json"
JSON_NAMES = (RECORD, CONVERSION, "train_results.json", "all_results.json", "trainer_state.json")


def checkpoint_files(folder: Path) -> Files:
    """
    What of a finished run's output folder is published, by its path in the repo.

    Raises:
        ValueError: if it is no checkpoint of VGGT-Qwen3, is not whole, or does not say how it was trained.
        UploadError: if one of the files is a link to somewhere else.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "vggt_qwen3":
        raise ValueError(f"{folder} is a checkpoint of {config.get('model_type')!r}, not of 'vggt_qwen3'.")
    needed = {"processor_config.json", "tokenizer_config.json", "chat_template.jinja"}
    index = folder / INDEX
    weights = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    foreign = sorted(name for name in weights if not re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name))
    if foreign:
        raise ValueError(f"{index} names weights in {foreign[0]!r}: they are in model-NNNNN-of-NNNNN.safetensors.")
    needed |= weights
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
    names = [name for name in (*NAMES, INDEX, *CODE, *sorted(weights)) if (folder / name).is_file()]
    files: Files = {name: own_file(folder, name) for name in names}
    files |= {name: published_json(own_file(folder, name)) for name in JSON_NAMES if (folder / name).is_file()}
    settings = without_folders(without_credentials(read_run_config(own_file(folder, RUN_CONFIG).parent)))
    files |= published_logs(folder)
    return files | {RUN_CONFIG: yaml.safe_dump(settings, sort_keys=True).encode()}


def published_json(path: Path) -> bytes:
    """A JSON file without tokens, and with paths of this machine cut down to their last names."""
    content = without_folders(without_credentials(json.loads(path.read_text(encoding="utf-8"))))
    return (json.dumps(content, indent=2) + "\n").encode()


def _names(auto_map: dict) -> list[str]:
    return [name for value in auto_map.values() for name in (value if isinstance(value, list) else [value]) if name]


__all__ = ["checkpoint_files", "published_json"]
