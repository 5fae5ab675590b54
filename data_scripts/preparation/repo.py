# SPDX-License-Identifier: Apache-2.0
"""Runs a builder and makes a prepared repo of what it writes: all of it, or nothing.

A repo holds `scenes/*.parquet`, `qa/*.parquet`, `README.md` (the card) and `preparation.json`, which says what the
repo was made from and is how a complete repo is recognised.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import DatasetInfo
from filelock import FileLock, Timeout

from ..card import dataset_card
from ..files import describe_os_error, flush, flush_all, hash_file, is_disk_full
from ..licences import Origin, find_origin
from ..manifest import MANIFEST, DamagedRepoError, check_repo_files
from .annotations import Annotations, InputError, SceneInput, check_question_ids
from .base import Options, PreparationBuilder, Sources
from .scene_reading import Reading, describe_failure, read_scenes, scene_digest, scene_file
from .val_share import split_validation


class PreparationError(RuntimeError):
    """Writing the repo failed although the input is fine (disk full, a worker killed); the message is one line."""


@dataclass
class Preparation:
    """What came out.

    Attributes:
        counts: split to the number of its `scenes`, `views` and `questions`.
        left_out: the scenes that could not be used, each a dict of `scene_id`, `file` and `reason`.
        notes: lines for the user about the annotation files and the scenes.
        absent: the scenes that were not there (with `allow_missing`).
        already_there: the repo had been prepared before from the same inputs, so nothing was done.
        found: how many scenes had been read by an interrupted run before.
        repaired: how many had been, too, but their files were damaged since, so that they were read again.
    """

    counts: dict[str, dict[str, int]]
    left_out: list[dict[str, str]]
    notes: list[str]
    absent: list[str]
    already_there: bool = False
    found: int = 0
    repaired: int = 0


def prepare_repo(
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    output: Path,
    command: str,
    workers: int = 1,
    strict: bool = False,
    allow_missing: bool = False,
    annotations: Annotations | None = None,
) -> Preparation:
    """Prepares `output` from raw files, or finds that it is there already.

    The repo is built in a hidden folder beside `output` and moved into place when it is whole. Interrupted, that folder
    stays, and the same preparation goes on from it; it is removed with success.

    Args:
        builder_class: which dataset.
        sources, options: what to read and how.
        output: the repo to make; must not exist, be empty, or be the result of the same preparation.
        command: what the card says made the repo.
        workers: number of processes that read scenes.
        strict: an unusable scene or record is an error. Otherwise it is left out, with its questions.
        allow_missing: scenes that are absent are left out. Otherwise they are an error.
        annotations: what `read_annotations` gave, where it has been called before.

    Raises:
        InputError: the annotation files or scenes do not fit together, no scene of a split can be used (with
            `strict`: one cannot), `output` holds something else, or another process is preparing it.
        PreparationError: writing failed.
    """
    origin = origin_of(builder_class, sources)
    annotations = annotations or read_annotations(builder_class, sources, options, strict, allow_missing)
    digests, absent = _check_scenes(builder_class, sources, options, annotations, allow_missing)
    fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    manifest = _read_manifest(output)
    work = output.parent / f".{output.name}.partial"
    if manifest is not None:
        if manifest["fingerprint"] != fingerprint:
            raise InputError(
                f"{output}: was prepared from other inputs or options; remove it or choose another --output"
            )
        if strict and manifest["left_out"]:
            raise InputError(f"{output}: was prepared without {describe_failure(manifest['left_out'][0])}")
        if work.is_dir():  # of a process that was killed after its last step but this one
            with contextlib.suppress(Timeout, OSError), FileLock(work / "lock", timeout=0):
                shutil.rmtree(work, ignore_errors=True)
        return Preparation(manifest["counts"], manifest["left_out"], manifest["notes"], absent, already_there=True)

    try:
        (work / "scenes").mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{output}: is being prepared by another process") from None
    except OSError as error:
        raise _not_written(output, error) from error
    done = False
    try:
        reading = read_scenes(
            builder_class,
            sources,
            options,
            (
                (scene, digests[split][scene.scene_id])
                for split in digests
                for scene in annotations.scenes[split]
                if scene.scene_id in digests[split]
            ),
            work / "scenes",
            workers,
            strict,
        )
        notes = annotations.notes + absent_notes(absent, annotations) + reading.lines()
        counts = _write(builder_class, work, digests, fingerprint, reading, notes, command, options, origin, absent)
        flush_all(work / "repo")
        os.replace(work / "repo", output)
        flush(output.parent)
        done = True
    except InputError:
        raise
    except OSError as error:
        raise _not_written(output, error) from error
    except BrokenProcessPool as error:
        raise PreparationError(f"{output}: not written: a worker process was killed (out of memory?)") from error
    except Exception as error:
        # datasets wraps what happens while it writes.
        causes = [cause for cause in _causes(error) if isinstance(cause, OSError | KeyboardInterrupt)]
        if not causes:
            raise  # a mistake in this project, which the traceback shows
        if isinstance(causes[0], KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise _not_written(output, causes[0]) from error
    finally:
        shutil.rmtree(work / "cache", ignore_errors=True)
        lock.release()
        if done or not any(path.is_file() for path in (work / "scenes").glob("*/*")):  # nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
    return Preparation(counts, reading.left_out, notes, absent, found=reading.found, repaired=reading.repaired)


def absent_notes(absent: list[str], annotations: Annotations) -> list[str]:
    """Says how many scenes are absent and, folder by folder, which: a release lacks whole folders of pictures."""
    if not absent:
        return []
    folders: dict[str, list[str]] = {}
    for scene_id in absent:
        folders.setdefault(scene_id.rpartition("/")[0], []).append(scene_id)
    total = sum(map(len, annotations.scenes.values()))
    parts = [
        f"{len(some)}{f' of {folder}' if folder else ''} ({', '.join(some[:5])}{', ...' if len(some) > 5 else ''})"
        for folder, some in folders.items()
    ]
    missing = set(absent)
    return [
        f"{len(absent)} of {total} scenes are absent and left out (--allow-missing): {'; '.join(parts)}",
        *(
            f"the split '{split}' is left out: none of its {len(scenes)} scenes is there"
            for split, scenes in annotations.scenes.items()
            if all(scene.scene_id in missing for scene in scenes)
        ),
    ]


def origin_of(builder_class: type[PreparationBuilder], sources: Sources) -> Origin:
    """Where the data come from, and their licences; raises `InputError` if a card beside them cannot be read."""
    default = Origin(builder_class.TITLE, builder_class.SOURCE, builder_class.LICENCE, builder_class.LICENCES)
    try:
        return find_origin(default, sources.folders())
    except ValueError as error:
        raise InputError(str(error)) from error


def read_annotations(
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    strict: bool = False,
    allow_missing: bool = False,
) -> Annotations:
    """The annotations with their validation part; raises `InputError` as the builder, and for a bad record with `strict`."""
    annotations = builder_class.read_annotations(sources)
    if strict and annotations.faults:
        raise InputError(f"{annotations.faults[0]} (--strict)")
    if options.val_share is None:
        return annotations

    def is_there(scene: SceneInput) -> bool:
        return not allow_missing or any(True for _ in builder_class.scene_files(sources, scene))

    return split_validation(annotations, options.val_share, is_there)


def _write(
    builder_class: type[PreparationBuilder],
    work: Path,
    digests: dict[str, dict[str, str]],
    fingerprint: str,
    reading: Reading,
    notes: list[str],
    command: str,
    options: Options,
    origin: Origin,
    absent: list[str],
) -> dict[str, dict[str, int]]:
    """Writes `work/repo` from the scenes that were read; returns the counts of the splits."""
    bad = {failure["scene_id"] for failure in reading.left_out}
    files = {
        split: {
            scene_id: str(scene_file(work / "scenes", digest))
            for scene_id, digest in scenes.items()
            if scene_id not in bad
        }
        for split, scenes in digests.items()
    }
    for split, paths in files.items():
        if not paths:
            first = next(failure for failure in reading.left_out if failure["scene_id"] in digests[split])
            raise InputError(f"no usable scene remains in the split '{split}'; the first: {describe_failure(first)}")
    (work / "files.json").write_text(json.dumps(files), encoding="utf-8")

    repo, cache = work / "repo", work / "cache"
    shutil.rmtree(repo, ignore_errors=True)  # of an interrupted run
    shutil.rmtree(cache, ignore_errors=True)
    infos: dict[str, DatasetInfo] = {}
    for name in ("qa", "scenes"):
        builder = builder_class(
            config_name=name,
            cache_dir=str(cache),
            writer_batch_size=builder_class.SCENES_PER_BATCH if name == "scenes" else None,
            files=str(work / "files.json"),
            fingerprint=fingerprint,
        )
        builder.download_and_prepare(str(cache / f"{name}_parquet"), file_format="parquet")
        infos[name] = builder.info
        (repo / name).mkdir(parents=True)
        # Beside the Parquet files lie the builder's own records, which name local paths.
        for path in (cache / f"{name}_parquet").glob("*.parquet"):
            path.rename(repo / name / path.name)
    data_files = {
        name: {split: f"{name}/{_pattern(builder.dataset_name, split, info)}" for split in files}
        for name, info in infos.items()
    }
    counts = {
        split: {
            "scenes": infos["scenes"].splits[split].num_examples,
            "views": _count_views(repo, data_files["scenes"][split]),
            "questions": infos["qa"].splits[split].num_examples,
        }
        for split in files
    }
    card = dataset_card(
        origin=origin,
        about=builder_class.ABOUT,
        command=command,
        counts=counts,
        num_left_out=len(reading.left_out) + len(absent),
        notes=notes,
        image_size=options.image_size,
        data_files=data_files,
        infos=infos,
        fingerprint=fingerprint,
    )
    (repo / "README.md").write_text(card, encoding="utf-8")
    parquet_files = sorted(repo.glob("*/*.parquet"))
    manifest = {
        "dataset": builder_class.__name__,
        "fingerprint": fingerprint,
        "counts": counts,
        "options": {name: value for name, value in asdict(options).items() if name in builder_class.OPTIONS},
        "left_out": reading.left_out,
        "absent": absent,
        "notes": notes,
        "files": {str(path.relative_to(repo)): path.stat().st_size for path in parquet_files},
        "sha256": {str(path.relative_to(repo)): hash_file(path) for path in parquet_files},
    }
    (repo / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return counts


def _check_scenes(
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    annotations: Annotations,
    allow_missing: bool,
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Split to scene_id to digest, and the scenes that are absent; a split of which all are is not there.

    Raises:
        InputError: splits share a scene; a scene is absent, or with `allow_missing` all are.
    """
    for option in (*builder_class.SOURCES, *builder_class.OPTIONAL_SOURCES):
        given = getattr(sources, option)
        for root in given if isinstance(given, tuple) else [given] if given else []:
            if option.endswith("_root") and not root.is_dir():
                raise InputError(f"--{option.replace('_', '-')} {root}: no such folder")
    split_of: dict[str, str] = {}
    for split, scenes in annotations.scenes.items():
        check_question_ids(f"the split '{split}'", (row for scene in scenes for row in scene.questions))
        for scene in scenes:
            if split_of.setdefault(scene.scene_id, split) != split:
                raise InputError(
                    f"scene {scene.scene_id} is in two splits, '{split_of[scene.scene_id]}' and '{split}'"
                )

    def digest(scene: SceneInput) -> str | None:
        return scene_digest(builder_class, sources, options, scene)

    digests = {
        split: {scene.scene_id: digest(scene) for scene in scenes} for split, scenes in annotations.scenes.items()
    }
    absent = [scene_id for scenes in digests.values() for scene_id, digest in scenes.items() if digest is None]
    present = {
        split: {scene_id: digest for scene_id, digest in scenes.items() if digest is not None}
        for split, scenes in digests.items()
        if any(digest is not None for digest in scenes.values())
    }
    if absent and not (allow_missing and present):
        examples = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        roots = [name for name in (*builder_class.SOURCES, *builder_class.OPTIONAL_SOURCES) if name.endswith("_root")]
        given = getattr(sources, roots[0])
        where = f"--{roots[0].replace('_', '-')} {' '.join(map(str, given if isinstance(given, tuple) else [given]))}"
        advice = "there is nothing to prepare" if allow_missing else "--allow-missing leaves them out"
        raise InputError(f"{len(absent)} of {len(split_of)} scenes are not under {where}: {examples}; {advice}")
    return present, absent


def _read_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest of a complete repo; None if there is nothing at `output`. Anything else raises `InputError`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).is_file():
        raise InputError(f"{output}: exists and is not a prepared repo; choose another --output")
    try:
        manifest = check_repo_files(output)
        if not {"fingerprint", "counts", "left_out", "notes"} <= manifest.keys():
            raise DamagedRepoError(f"{output / MANIFEST}: damaged")
        if not (output / "README.md").is_file():
            raise DamagedRepoError(f"{output / 'README.md'}: missing or damaged")
    except (DamagedRepoError, OSError) as error:
        raise InputError(f"{error}; remove {output} or choose another --output") from None
    return manifest


def _not_written(output: Path, error: OSError) -> PreparationError:
    # What datasets says of a full disk is that a file cannot be found, or, without the number of the error, this.
    if "Not enough disk space" in str(error):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = next((cause for cause in _causes(error) if is_disk_full(cause)), error)
    text = describe_os_error(error, output.parent)
    return PreparationError(f"{output}: not written: {text}; the same command goes on from here")


def _pattern(dataset_name: str, split: str, info: DatasetInfo) -> str:
    """The name of a split's Parquet file, or a glob for its shards, as `download_and_prepare` names them."""
    sharded = info.splits[split].shard_lengths is not None
    return f"{dataset_name}-{split}-*-of-*.parquet" if sharded else f"{dataset_name}-{split}.parquet"


def _count_views(repo: Path, pattern: str) -> int:
    return sum(
        len(frame_ids)
        for path in repo.glob(pattern)
        for frame_ids in pyarrow.parquet.read_table(path, columns=["frame_ids"])["frame_ids"].to_pylist()
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


__all__ = ["MANIFEST", "Preparation", "PreparationError", "origin_of", "prepare_repo", "read_annotations"]
