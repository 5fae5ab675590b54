# SPDX-License-Identifier: Apache-2.0
"""What a process has loaded, as short texts that all processes compare before the first step."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_scripts.files import hash_file
from data_scripts.manifest import MANIFEST
from modeling_vggt_qwen3 import VggtQwen3Config
from recipes.common.scenes import SceneDataset
from recipes.runs.run_config import resolved_config
from recipes.runs.trained import describe_weights

from .packing import PackDataset


PACKAGES = ("modeling_vggt_qwen3", "data_scripts", "recipes")
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pillow")
# Not compared as settings: a process's own number, and paths, which may differ where their contents do not.
NOT_COMPARED = {"local_rank", "model_name_or_path", "dataset_paths", "feature_store"}
ROWS = 10_000  # of a table described at a time


def describe_run(
    model_arguments,
    data_arguments,
    training_arguments,
    train_dataset: PackDataset,
    eval_sources: list[SceneDataset],
    checkpoint: str | None,
) -> tuple[dict[str, str | None], dict[str, str] | None]:
    """
    What has to be the same in all processes, as text by name: settings, data, weights, code and versions.

    Args:
        train_dataset, eval_sources: As they were loaded.
        checkpoint (`str`, *optional*): What the run resumes from.

    Returns:
        It, and `describe_weights` of the base model where this process has read them.
    """
    config, fields = resolved_config(model_arguments, data_arguments, training_arguments), {}
    for kind in ("model", "data", "training", "batch"):
        fields |= {key: json.dumps(value) for key, value in config[kind].items() if key not in NOT_COMPARED}
    if training_arguments.deepspeed_plugin is not None:
        settings = training_arguments.deepspeed_plugin.deepspeed_config
        fields["DeepSpeed's config"] = json.dumps(settings, sort_keys=True, default=str)
    for role, sources in (("to train on", train_dataset.sources), ("to evaluate on", eval_sources)):
        for number, source in enumerate(sources):
            fields[f"dataset {number} {role}"] = describe_source(source)
            fields[f"{MANIFEST} of dataset {number} {role}"] = describe_preparation(source.path)
    fields["packs"] = str(len(train_dataset))
    store = train_dataset.sources[0].store
    fields["feature_store"] = "none" if store is None else describe_store(store)
    fields["checkpoint to resume from"] = describe_checkpoint(checkpoint)
    fields |= describe_code()
    fields |= {f"version of {name}": version for name, version in versions().items()}
    path, base = model_arguments.model_name_or_path, None
    if not Path(path).is_dir():
        weights = f"revision {VggtQwen3Config.from_pretrained(path)._commit_hash}"
    elif training_arguments.local_process_index == 0:
        base = describe_weights(path)
        weights = f"SHA-256 {base['weights_sha256'][:12]}"
    else:
        weights = None  # the first process of each machine reads them
    return fields | {"weights of model_name_or_path": weights}, base


def describe_source(source: SceneDataset) -> str:
    """Numbers of scenes and questions, and a hash over their texts and cameras and the sizes of their pictures."""
    digest = hashlib.sha256()
    for batch in source.qa.with_format("arrow").iter(ROWS):
        digest.update(repr(batch.to_pydict()).encode())
    scenes = source.scenes.with_format("arrow")
    digest.update(repr(source.scene_ids).encode())
    for batch in scenes.select_columns(["images"]).iter(ROWS):
        sizes = pc.binary_length(pc.struct_field(flatten(batch["images"]), "bytes"))  # of which no byte is read
        digest.update(repr(sizes.to_pylist()).encode())
    for batch in scenes.select_columns(["geometry"]).iter(ROWS):
        for field in batch["geometry"].type:
            numbers = flatten(pc.struct_field(batch["geometry"], field.name))
            digest.update(numbers.to_numpy().tobytes())
    return f"{len(source.scene_ids)} scenes, {len(source.qa)} questions, SHA-256 {digest.hexdigest()[:12]}"


def flatten(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a column of lists, of whatever depth, one after the other."""
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    return column


def describe_preparation(path: str) -> str:
    """What a prepared repository says of itself; of one on the Hub nothing."""
    manifest = Path(path) / MANIFEST
    return short_hash(manifest) if manifest.is_file() else "absent"


def describe_store(store) -> str:
    indexes = sorted((shard, index) for shard, (*_, index) in store.signatures.items())
    digest = hashlib.sha256(json.dumps(indexes).encode()).hexdigest()
    return f"{short_hash(store.path / 'store.json')}, {len(indexes)} shards, SHA-256 {digest[:12]}"


def describe_checkpoint(checkpoint: str | None) -> str:
    if checkpoint is None:
        return "none"
    manifest = Path(checkpoint) / "manifest.json"
    return short_hash(manifest) if manifest.is_file() else f"{checkpoint} is not here"


def describe_code() -> dict[str, str]:
    """A hash of each Python file of the three packages."""
    root = Path(__file__).parents[2]
    return {
        str(path.relative_to(root)): short_hash(path)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def short_hash(path: Path) -> str:
    return f"SHA-256 {hash_file(path)[:12]}"


__all__ = ["describe_run", "describe_source"]
