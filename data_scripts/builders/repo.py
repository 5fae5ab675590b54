# SPDX-License-Identifier: Apache-2.0
"""Runs a builder and makes a prepared repo of what it writes: all of it, or nothing.

A repo holds `scenes/*.parquet`, `qa/*.parquet`, `README.md` (the card) and `preparation.json`, which says what the
repo was made from and is how a complete repo is recognised.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import DatasetInfo
from datasets.exceptions import DatasetGenerationError

from ..card import dataset_card
from .base import SCHEMA_VERSION, Annotations, InputError, PreparationBuilder


MANIFEST = "preparation.json"


class PreparationError(RuntimeError):
    """Writing the repo failed although the input is fine (disk full, a worker killed); the message is one line."""


@dataclass
class Preparation:
    """What came out.

    Attributes:
        counts: split to the number of its `scenes`, `views` and `questions`.
        left_out: the scenes that could not be used, each a dict of `scene_id`, `file` and `reason`.
        notes: lines for the user about the annotation files.
        already_there: the repo had been prepared before from the same inputs, so nothing was done.
    """

    counts: dict[str, dict[str, int]]
    left_out: list[dict[str, str]]
    notes: list[str]
    already_there: bool = False


def prepare_repo(
    builder_class: type[PreparationBuilder],
    annotation_files: list[Path],
    root: Path,
    output: Path,
    options: dict[str, Any],
    command: str,
    workers: int = 1,
    strict: bool = False,
) -> Preparation:
    """Prepares `output` from raw files, or finds that it is there already.

    The repo is built in a hidden folder beside `output`, with the builder's caches, and moved into place when it is
    whole. The hidden folder is removed whatever happens.

    Args:
        builder_class: which dataset.
        annotation_files: its annotation files.
        root: the folder with its scenes.
        output: the repo to make; must not exist, be empty, or be the result of the same preparation.
        options: fields of `PreparationConfig` that change the result (`num_views`, `view_selection`).
        command: what the card says made the repo.
        workers: number of processes that read scenes.
        strict: an unusable scene is an error. Otherwise it is left out with its questions.

    Raises:
        InputError: the annotation files or scenes do not fit together, no scene of a split can be used (with
            `strict`: one cannot), or `output` holds something else.
        PreparationError: writing failed.
    """
    annotations = builder_class.read_annotations(annotation_files)
    _check_questions(annotations)
    scenes = annotations.scenes()
    _check_scenes(builder_class, root, scenes)
    fingerprint = _fingerprint(builder_class, annotation_files, root, scenes, options)
    manifest = _read_manifest(output)
    if manifest is not None:
        if manifest["fingerprint"] != fingerprint:
            raise InputError(
                f"{output}: was prepared from other inputs or options; remove it or choose another --output"
            )
        if strict and manifest["left_out"]:
            raise InputError(f"{output}: was prepared without {_describe(manifest['left_out'][0])}")
        return Preparation(manifest["counts"], manifest["left_out"], annotations.notes, already_there=True)

    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.parent / f".{output.name}.{os.getpid()}.tmp"
    work.mkdir()
    try:
        config = {
            "annotations": tuple(str(path) for path in annotation_files),
            "root": str(root),
            "fingerprint": fingerprint,
            **options,
        }
        counts, left_out = _build(builder_class, config, work, scenes, command, workers, strict)
        manifest = {
            "dataset": builder_class.__name__,
            "fingerprint": fingerprint,
            "counts": counts,
            "left_out": left_out,
            "files": {
                str(path.relative_to(work / "repo")): path.stat().st_size for path in _parquet_files(work / "repo")
            },
        }
        (work / "repo" / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        os.replace(work / "repo", output)
    except InputError:
        raise
    except Exception as error:
        causes = list(_causes(error))
        # Interrupted while workers run, datasets raises an error of its own on the way out.
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        reason = next(filter(None, map(_outside_reason, causes)), None)
        if reason is None:
            raise  # a mistake in this project, which the traceback shows
        raise PreparationError(f"{output}: not written: {reason}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Preparation(counts, left_out, annotations.notes)


def _build(
    builder_class: type[PreparationBuilder],
    config: dict[str, Any],
    work: Path,
    scenes: dict[str, list[str]],
    command: str,
    workers: int,
    strict: bool,
) -> tuple[dict[str, dict[str, int]], list[dict[str, str]]]:
    """Writes `work/repo` but for its manifest; returns the counts and the scenes left out."""
    failures = work / "failures"
    failures.mkdir()
    cache = str(work / "cache")

    builder = builder_class(
        config_name="scenes",
        cache_dir=cache,
        writer_batch_size=builder_class.SCENES_PER_BATCH,
        failures=str(failures),
        strict=strict,
        **config,
    )
    try:
        builder.download_and_prepare(str(work / "scenes"), file_format="parquet", num_proc=workers)
    except DatasetGenerationError:
        left_out = _read_failures(failures, scenes)
        if not (strict and left_out):
            raise
        raise InputError(f"{_describe(left_out[0])} (--strict)") from None
    left_out = _read_failures(failures, scenes)
    bad = {failure["scene_id"] for failure in left_out}
    for split, scene_ids in scenes.items():
        if bad.issuperset(scene_ids):
            first = next(failure for failure in left_out if failure["scene_id"] == scene_ids[0])
            raise InputError(f"no usable scene remains in the split '{split}'; the first: {_describe(first)}")
    infos = {"scenes": builder.info}

    builder = builder_class(config_name="qa", cache_dir=cache, left_out=tuple(sorted(bad)), **config)
    builder.download_and_prepare(str(work / "qa"), file_format="parquet")
    infos = {"qa": builder.info, **infos}

    repo = work / "repo"
    for name in infos:
        (repo / name).mkdir(parents=True)
        for path in (work / name).glob(
            "*.parquet"
        ):  # beside them lie the builder's own records, which name local paths
            path.rename(repo / name / path.name)
    counts = {
        split: {
            "scenes": infos["scenes"].splits[split].num_examples,
            "views": _count_views(
                repo, f"{builder.dataset_name}-{split}", infos["scenes"].splits[split].shard_lengths
            ),
            "questions": infos["qa"].splits[split].num_examples,
        }
        for split in scenes
    }
    card = dataset_card(
        title=builder_class.TITLE,
        source=builder_class.SOURCE,
        licence=builder_class.LICENCE,
        about=builder_class.ABOUT,
        command=command,
        counts=counts,
        num_left_out=len(left_out),
        data_files={
            name: {split: f"{name}/{_pattern(builder.dataset_name, split, info)}" for split in scenes}
            for name, info in infos.items()
        },
        infos=infos,
        fingerprint=config["fingerprint"],
    )
    (repo / "README.md").write_text(card, encoding="utf-8")
    return counts, left_out


def _check_questions(annotations: Annotations) -> None:
    for split, rows in annotations.questions.items():
        question_id, times = Counter(row["question_id"] for row in rows).most_common(1)[0]
        if times > 1:
            raise InputError(f"question_id {question_id} occurs {times} times in the split '{split}'")


def _check_scenes(builder_class: type[PreparationBuilder], root: Path, scenes: dict[str, list[str]]) -> None:
    if not root.is_dir():
        raise InputError(f"{builder_class.ROOT_OPTION} {root}: no such folder")
    split_of = {}
    for split, scene_ids in scenes.items():
        for scene_id in scene_ids:
            if split_of.setdefault(scene_id, split) != split:
                raise InputError(f"scene {scene_id} is in two splits, '{split_of[scene_id]}' and '{split}'")
    unknown = [scene_id for scene_id in split_of if not builder_class.scene_exists(root, scene_id)]
    if unknown:
        examples = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{len(unknown)} of {len(split_of)} scenes are not under {builder_class.ROOT_OPTION} {root}: {examples}"
        )


def _fingerprint(
    builder_class: type[PreparationBuilder],
    annotation_files: list[Path],
    root: Path,
    scenes: dict[str, list[str]],
    options: dict[str, Any],
) -> str:
    """Of the annotation files their content, of the raw scenes, which may be terabytes, names, sizes and times."""
    digest = hashlib.sha256(json.dumps([builder_class.__name__, SCHEMA_VERSION, sorted(options.items())]).encode())
    for path in sorted(annotation_files, key=lambda path: path.name):
        digest.update(f"\n{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    for scene_id in sorted(scene_id for scene_ids in scenes.values() for scene_id in scene_ids):
        for path in builder_class.scene_files(root, scene_id):
            if path.exists():  # if it is needed but missing, reading the scene says so
                status = path.stat()
                digest.update(f"\n{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _read_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest of a complete repo; None if there is nothing at `output`. Anything else raises `InputError`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).is_file():
        raise InputError(f"{output}: exists and is not a prepared repo; choose another --output")
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"]
    except (ValueError, KeyError):
        raise InputError(f"{output / MANIFEST}: damaged; remove {output} or choose another --output") from None
    for name, size in {**sizes, "README.md": None}.items():
        path = output / name
        if not path.is_file() or size not in (None, path.stat().st_size):
            raise InputError(f"{path}: missing or damaged; remove {output} or choose another --output")
    return manifest


def _read_failures(folder: Path, scenes: dict[str, list[str]]) -> list[dict[str, str]]:
    """What the scenes builder recorded, in the order of the scenes whichever process came first."""
    failures = [json.loads(line) for path in folder.iterdir() for line in path.read_text("utf-8").splitlines()]
    order = {scene_id: index for index, scene_id in enumerate(s for scene_ids in scenes.values() for s in scene_ids)}
    return sorted(failures, key=lambda failure: order[failure["scene_id"]])


def _describe(failure: dict[str, str]) -> str:
    return f"scene {failure['scene_id']}: {failure['file']}: {failure['reason']}"


def _parquet_files(repo: Path) -> list[Path]:
    return sorted(repo.glob("*/*.parquet"))


def _pattern(dataset_name: str, split: str, info: DatasetInfo) -> str:
    """The name of a split's Parquet file, or a glob for its shards, as `download_and_prepare` names them."""
    sharded = info.splits[split].shard_lengths is not None
    return f"{dataset_name}-{split}-*-of-*.parquet" if sharded else f"{dataset_name}-{split}.parquet"


def _count_views(repo: Path, name: str, shard_lengths: list[int] | None) -> int:
    pattern = f"{name}.parquet" if shard_lengths is None else f"{name}-*-of-*.parquet"
    return sum(
        len(frame_ids)
        for path in (repo / "scenes").glob(pattern)
        for frame_ids in pyarrow.parquet.read_table(path, columns=["frame_ids"])["frame_ids"].to_pylist()
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _outside_reason(error: BaseException) -> str | None:
    """One line on what the machine did to make the preparation fail; None if `error` does not tell of such a thing."""
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "abruptly died" in str(error):
        return "a worker process was killed (out of memory?)"
    if type(error).__name__ == "RemoteTraceback":  # all that arrives of an error in a worker is its text
        lines = [line for line in str(error).splitlines() if line.startswith("OSError: ")]
        return lines[0].removeprefix("OSError: ") if lines else None
    return None


__all__ = ["MANIFEST", "Preparation", "PreparationError", "prepare_repo"]
