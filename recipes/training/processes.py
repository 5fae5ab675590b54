# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: all read the same before any trains, and none waits for another for ever.

A node with an older copy of the data, other code or another library would train along, each step a mixture of two runs, or
leave the others waiting in a collective operation. So each process describes what it has loaded, all compare, and a
difference ends all of them by name.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object

from data_scripts.builders.repo import MANIFEST
from modeling_vggt_qwen3 import VggtQwen3Config

from .data import PackDataset, SceneDataset
from .run_config import resolved_config
from .trained import describe_weights


PACKAGES = ("modeling_vggt_qwen3", "data_scripts", "recipes")
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pillow")
# Not compared as settings: a process's own number, and paths, which may differ where their contents do not.
NOT_COMPARED = {"local_rank", "model_name_or_path", "dataset_paths", "feature_store"}
ROWS = 10_000  # of a table described at a time
LONGEST = 60  # characters of a value in a message
MOST = 5  # differences in a message


################
# Doing it together
################


def agree(training_arguments, function: Callable, *arguments) -> Any:
    """
    The result of `function` in the first process, in all of them; what it raises, all raise.

    Raises:
        ValueError: of the same message, if the first process raised an OSError or a ValueError.
    """
    outcome = [None, None]
    if training_arguments.process_index == 0:
        try:
            outcome[0] = function(*arguments)
        except (OSError, ValueError) as error:
            outcome[1] = str(error)
    if training_arguments.world_size > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def together(training_arguments, function: Callable, *arguments) -> Any:
    """
    The result of `function`, which every process calls; if it fails in one of them, all raise.

    Raises:
        ValueError: with the ranks that raised an OSError or a ValueError, and what they said.
    """
    result, error = None, None
    try:
        result = function(*arguments)
    except (OSError, ValueError) as caught:
        error = caught
    if training_arguments.world_size == 1:
        if error is not None:
            raise error
        return result
    errors = gather_object([None if error is None else str(error)])
    if None not in errors and len(set(errors)) == 1:
        raise ValueError(errors[0])
    if any(text is not None for text in errors):
        ranks = [rank for rank, text in enumerate(errors) if text is not None]
        raise ValueError("; ".join(f"rank {rank}: {errors[rank]}" for rank in ranks[:MOST]))
    return result


def check_same(fields: dict[str, str | None]):
    """
    Compares what the processes have loaded, by `fields`; of one that is None a process knows nothing.

    Raises:
        ValueError: in all processes, naming the fields that differ and the ranks that have each value.
    """
    everyone = gather_object([fields])
    different = []
    for name in dict.fromkeys(name for one in everyone for name in one):
        ranks_of = {}
        for rank, one in enumerate(everyone):
            ranks_of.setdefault(one.get(name, "absent"), []).append(rank)
        ranks_of.pop(None, None)
        if len(ranks_of) > 1:
            values = ", ".join(f"{shorten(value)} on {name_ranks(ranks)}" for value, ranks in ranks_of.items())
            different.append(f"{name}: {values}")
    if different:
        more = f"; and {len(different) - MOST} more" if len(different) > MOST else ""
        raise ValueError(
            f"the processes of this run do not load the same, so none trains: {'; '.join(different[:MOST])}{more}. Give "
            "all of them the same files, settings and code."
        )


def shorten(value: str) -> str:
    if len(value) <= LONGEST:
        return value
    return f"{value[: LONGEST - 20]}... (SHA-256 {hashlib.sha256(value.encode()).hexdigest()[:8]})"


def name_ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:3]))}{more}"


################
# What a process has loaded
################


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
    return hash_file(manifest) if manifest.is_file() else "absent"


def describe_store(store) -> str:
    indexes = sorted((shard, index) for shard, (*_, index) in store.signatures.items())
    digest = hashlib.sha256(json.dumps(indexes).encode()).hexdigest()
    return f"{hash_file(store.path / 'store.json')}, {len(indexes)} shards, SHA-256 {digest[:12]}"


def describe_checkpoint(checkpoint: str | None) -> str:
    if checkpoint is None:
        return "none"
    manifest = Path(checkpoint) / "manifest.json"
    return hash_file(manifest) if manifest.is_file() else f"{checkpoint} is not here"


def describe_code() -> dict[str, str]:
    """A hash of each Python file of the three packages."""
    root = Path(__file__).parents[2]
    return {
        str(path.relative_to(root)): hash_file(path)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def hash_file(path: Path) -> str:
    return f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


################
# Waiting
################


def limit_waiting(training_arguments):
    """
    Lets no process wait in a collective operation for longer than `ddp_timeout` seconds.

    transformers hands it to processes on GPUs alone; groups that DeepSpeed makes have torch's own limits.
    """
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(training_arguments.ddp_timeout_delta, group)


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another process has not answered, or has gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def explain_lost(error: RuntimeError, training_arguments, step: int | None = None) -> str:
    """
    The line that a process ends with whose collective operation failed.

    Raises:
        RuntimeError: `error` itself, if it is another one.
    """
    if not is_lost(error):
        raise error
    text = " ".join(str(error).split())
    when = "before training" if step is None else f"after step {step}"
    what = "another process of this run has ended or cannot be reached; its own message says why"
    if "timed out" in text.lower() or "timeout" in text.lower():
        what = (
            f"another process did not answer within {training_arguments.ddp_timeout} s (ddp_timeout): it was stopped, "
            "or has more to do alone than that"
        )
    return f"{when}, {what}: {text}"


__all__ = [
    "agree",
    "check_same",
    "describe_run",
    "explain_lost",
    "is_lost",
    "limit_waiting",
    "together",
]
