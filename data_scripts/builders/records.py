# SPDX-License-Identifier: Apache-2.0
"""Legacy records: one question with its own pictures and cameras per record, as a JSON array, alone or under `data` or
`samples` of an object, or one record per line.

    {"images": [paths], "geom_token": {"R": [V x 9], "t": [V x 3], "K": [V x 9], "depth_hist": [V x 16]} or null,
     "question" or "instruction": str, "answer" or "action_json": str or object, "task": str (optional),
     "scene_id": str (optional), "situation": str (optional)}

`R`, `t` of a record are camera-to-world (metres, OpenCV camera axes); in the prepared repo they are world-to-camera. `R` and
`K` may be nested (V x 3 x 3). Without `depth_hist`, or with null for some views, no depth is known of them: a histogram of
zeros, as of a frame in which nothing was measured, adds nothing to a geometry token, which then tells pose and intrinsics
alone. Records with the same pictures and cameras become questions about one scene.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..frames import DEPTH_BINS, describe_geometry_fault, describe_intrinsics_fault, is_rigid, scale_intrinsics
from ..views import UnreadableFileError
from .annotations import Annotations, InputError, SceneInput, describe, load_json, qa_row, split_of_name
from .base import Options, PreparationBuilder, PreparedScene, Sources
from .instruct import read_stored, safe_path


GEOMETRY_SHAPES = {"R": (3, 3), "t": (3,), "K": (3, 3), "depth_hist": (DEPTH_BINS,)}
WRAPPERS = ("data", "samples")
TASK = "records"  # of those that name none


class Records(PreparationBuilder):
    """Records in the format that this project's first versions trained on."""

    TITLE = "Records"
    SOURCE = "The record files named below."
    LICENCE = "As the source of the records and of their pictures; private unless a card beside them has a licence."
    LICENCES = ("unknown",)
    ABOUT = (
        "Records with the same pictures and cameras are one scene. `action` is the record's `action_json`, which is in the "
        "frame its maker chose."
    )
    SOURCES = ("records", "image_root")
    OPTIONS = ("geometry", "image_size")
    DEFAULTS = {"geometry": "optional"}
    SCENES_PER_BATCH = 4

    @classmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads the files; a file's split is the last of the words train, val and test in its name, else train. A record
        that cannot be used (no picture, no answer, numbers of a camera that are none) is left out and counted, with the
        first one named; so are those without a task, and without depth, which are used.

        Raises:
            InputError: a file is no JSON, or none of its records can be used.
        """
        scenes: dict[str, dict[str, _RecordedScene]] = {}
        named: defaultdict[str, Counter] = defaultdict(Counter)
        notes: list[str] = []
        for path in sources.records:
            split = split_of_name(path, notes)
            faults: dict[str, list[int]] = {}
            lacks: Counter = Counter()
            number = -1
            for number, record in enumerate(_read(path)):
                try:
                    _add(scenes.setdefault(split, {}), named[split], sources.image_root, path, number, record)
                    lacks.update(_lacks(record))
                except _UnusableRecord as error:
                    faults.setdefault(str(error), []).append(number)
            if number < 0 or not scenes.get(split):
                first = next((f"; record {rows[0]}: {fault}" for fault, rows in faults.items()), "")
                raise InputError(f"{path}: no record can be used{first}")
            notes += [
                f"{path.name}: {len(rows)} records left out, the first is record {rows[0]}: {fault}"
                for fault, rows in faults.items()
            ]
            notes += [f"{path.name}: {count} records {what}" for what, count in sorted(lacks.items())]
        return Annotations(
            {
                split: [SceneInput.of(*vars(scene).values()) for scene in found.values()]
                for split, found in scenes.items()
            },
            notes,
        )

    @classmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        yield sources.image_root  # so that no scene is absent: one whose picture is missing is left out when it is read
        for image in scene.details["images"]:
            yield sources.image_root / image

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        geometry = scene.details["geometry"] if options.geometry != "none" else None
        if geometry is None and options.geometry == "required":
            raise UnreadableFileError(scene.scene_id, "its records have no geom_token")
        if options.geometry == "required" and not np.any(geometry["depth_hist"], axis=1).all():
            raise UnreadableFileError(scene.scene_id, "its records' geom_token has no depth_hist")
        images, intrinsics = [], []
        for view, image in enumerate(scene.details["images"]):
            content, before, after = read_stored(sources.image_root / image, options.image_size)
            images.append(content)
            if geometry is not None:
                intrinsics.append(scale_intrinsics(np.array(geometry["K"][view]), before, after).tolist())
        if geometry is not None:
            geometry = geometry | {"K": intrinsics}
        frame_ids = [Path(image).stem for image in scene.details["images"]]
        return PreparedScene(images, frame_ids, geometry, scene.questions)


@dataclass
class _RecordedScene:
    scene_id: str
    questions: list[dict]
    details: dict[str, Any]


class _UnusableRecord(ValueError):
    """Why a record is left out."""


def _read(path: Path) -> Iterator[Any]:
    """The records of a file with one JSON object per line, or of a JSON array, whatever the file's name ends in."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            first = next((line for line in stream if line.strip()), "")
        if _is_line_of_records(path, first):
            with open(path, encoding="utf-8-sig") as stream:
                yield from _read_lines(path, stream)
            return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason})") from None
    content = load_json(path)
    if isinstance(content, dict):
        for key in WRAPPERS:
            if isinstance(content.get(key), list):
                content = content[key]
                break
    if not isinstance(content, list):
        keys = f" with {', '.join(sorted(content)[:5]) or 'nothing'}" if isinstance(content, dict) else ""
        raise InputError(
            f"{path}: expected a list of records, alone or under {' or '.join(map(repr, WRAPPERS))}, or one record per "
            f"line; found {describe(content)}{keys}"
        )
    yield from content


def _is_line_of_records(path: Path, line: str) -> bool:
    """Whether the first line of a file, which may be that of a JSON array, is a record by itself."""
    try:
        record = json.loads(line)
    except ValueError:
        # A broken line, or the first one of a document of many.
        return path.suffix.lower() == ".jsonl" and line.strip() not in ("[", "{")
    if isinstance(record, dict) and any(isinstance(record.get(key), list) for key in WRAPPERS):
        return False
    return not isinstance(record, list) and (path.suffix.lower() == ".jsonl" or "images" in record)


def _read_lines(path: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}: line {number}: not JSON ({error})") from None


def _add(scenes: dict[str, _RecordedScene], named: Counter, root: Path, path: Path, number: int, record: Any) -> None:
    """Adds a record's question to its scene; `named` counts the scenes that want a name. Raises `_UnusableRecord`."""
    if not isinstance(record, dict):
        raise _UnusableRecord("not an object")
    images = record.get("images")
    if not isinstance(images, list) or not images:
        raise _UnusableRecord("'images' is not a list of paths")
    images = [str(image).replace("\\", "/").removeprefix(f"{root}/") for image in images]  # Windows' or not
    images = [safe_path(f"{path}: record {number}", image) for image in images]
    question = record.get("question", record.get("instruction"))
    if not isinstance(question, str) or not question.strip():
        raise _UnusableRecord("neither 'question' nor 'instruction' is a text")
    action, answer = record.get("action_json"), record.get("answer")
    action = json.dumps(action, ensure_ascii=False) if isinstance(action, dict | list) else action
    answer = json.dumps(answer, ensure_ascii=False) if isinstance(answer, dict | list) else answer
    answer = action if answer is None else answer
    if not isinstance(answer, str) or not answer.strip() or not isinstance(action, str | None):
        raise _UnusableRecord("neither 'answer' nor 'action_json' is a text or an object, or it is empty")
    if not isinstance(record.get("task"), str | None):
        raise _UnusableRecord("'task' is not a text")
    if not isinstance(record.get("situation"), str | None):
        raise _UnusableRecord("'situation' is not a text")
    details = {"images": images, "geometry": _geometry(record.get("geom_token"), len(images))}
    key = hashlib.sha256(json.dumps([record.get("scene_id"), details], sort_keys=True).encode()).hexdigest()[:16]
    if key not in scenes:
        scene_id = str(record.get("scene_id") or f"views-{key}")
        named[scene_id] += 1
        scenes[key] = _RecordedScene(f"{scene_id}#{named[scene_id]}" if named[scene_id] > 1 else scene_id, [], details)
    scene = scenes[key]
    scene.questions.append(
        qa_row(
            scene_id=scene.scene_id,
            question_id=f"{path.stem}-{number}",
            question=question,
            answers=[answer],
            task=record.get("task") or TASK,
            situation=record.get("situation"),
            action=action,
        )
    )


def _geometry(token: Any, num_views: int) -> dict[str, list] | None:
    if token is None or token == {}:
        return None
    if isinstance(token, dict):
        token = token | {"depth_hist": _depth_hist(token.get("depth_hist"), num_views)}
    arrays = {}
    for name, shape in GEOMETRY_SHAPES.items():
        try:
            numbers = np.array(token[name], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise _UnusableRecord(f"geom_token has no numbers '{name}'") from None
        if numbers.size != num_views * int(np.prod(shape)):
            raise _UnusableRecord(f"geom_token '{name}' does not hold {num_views} x {int(np.prod(shape))} numbers")
        if not np.isfinite(numbers).all():
            raise _UnusableRecord(f"geom_token '{name}' holds a number that is not finite")
        arrays[name] = numbers.reshape(num_views, *shape)
    fault = describe_geometry_fault(arrays)  # as they will be stored: 1e39 passes the check above
    if fault is not None:
        raise _UnusableRecord(f"geom_token: {fault}")
    fault = describe_intrinsics_fault(arrays["K"])
    if fault is not None:
        raise _UnusableRecord(f"geom_token 'K': {fault}")
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = arrays["R"], arrays["t"]
    if not all(map(is_rigid, poses)):
        raise _UnusableRecord("geom_token 'R' is not a rotation")
    poses = np.linalg.inv(poses)
    arrays["R"], arrays["t"] = poses[:, :3, :3], poses[:, :3, 3]
    return {name: array.tolist() for name, array in arrays.items()}


def _depth_hist(histograms: Any, num_views: int) -> Any:
    """With zeros for what is absent: all of it, or that of some views. What is no histogram stays, for `_geometry` to refuse."""
    empty = [0.0] * DEPTH_BINS
    if histograms is None or histograms == []:
        return [empty] * num_views
    if isinstance(histograms, list):
        return [empty if histogram is None else histogram for histogram in histograms]
    return histograms


def _lacks(record: dict) -> Iterator[str]:
    """What a usable record does without, for the notes."""
    if not record.get("task"):
        yield f"name no task: it is {TASK!r}"
    token = record.get("geom_token")
    if token:
        histograms = token.get("depth_hist")
        if not histograms or None in histograms:
            yield "have a geom_token without depth_hist: their depth counts as not measured"


__all__ = ["Records"]
