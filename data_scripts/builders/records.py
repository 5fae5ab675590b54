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
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..files import UnreadableFileError
from ..json_text import JSONError, check_encoding, parse_json
from ..paths import resolve_inside
from ..preparation.annotations import Annotations, InputError, SceneInput, describe, load_json, qa_row, split_of_name
from ..preparation.base import Options, PreparationBuilder, PreparedScene, Sources
from ..preparation.left_out import BadRecordError, LeftOut
from ..preparation.stored_pictures import check_picture, read_stored
from ..readers.frames import (
    DEPTH_BINS,
    describe_distance_fault,
    describe_geometry_fault,
    describe_intrinsics_fault,
    is_rigid,
    scale_intrinsics,
)


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
        that cannot be used (no JSON, no picture, no answer, numbers of a camera that are none) is left out and counted, with
        the first one named; those without a task, and without depth, are used, and counted.

        Raises:
            InputError: a file is no JSON, or none of its records can be used.
        """
        scenes: dict[str, dict[str, _RecordedScene]] = {}
        notes: list[str] = []
        faults: list[str] = []
        for path in sources.records:
            split = split_of_name(path, notes)
            found = scenes.setdefault(split, {})
            left_out, lacks, used = LeftOut(path, unit="record"), Counter(), 0
            for number, record in enumerate(_read(path)):
                with left_out.guard(number):
                    if isinstance(record, _UnusableRecord):
                        raise record
                    _add(found, sources.image_root, path, number, record)
                    lacks.update(_lacks(record))
                    used += 1
            fault = left_out.first_fault()
            if not used:
                first = "" if fault is None else f"; {fault.removeprefix(f'{path}: ')}"
                raise InputError(f"{path}: no record can be used{first}")
            faults += filter(None, [fault])
            notes += left_out.notes()
            notes += [f"{path.name}: {count} records {what}" for what, count in sorted(lacks.items())]
        return Annotations(
            {
                split: [SceneInput.of(*vars(scene).values()) for scene in _named(found.values())]
                for split, found in scenes.items()
            },
            notes,
            faults,
        )

    @classmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        yield sources.image_root  # so that no scene is absent: one whose picture is missing is left out when it is read
        for image in scene.details["images"]:
            yield resolve_inside(sources.image_root, image)

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        geometry = scene.details["geometry"] if options.geometry != "none" else None
        if geometry is None and options.geometry == "required":
            raise UnreadableFileError(scene.scene_id, "its records have no geom_token")
        if options.geometry == "required" and not np.any(geometry["depth_hist"], axis=1).all():
            raise UnreadableFileError(scene.scene_id, "its records' geom_token has no depth_hist")
        images, intrinsics = [], []
        for view, image in enumerate(scene.details["images"]):
            content, before, after = read_stored(resolve_inside(sources.image_root, image), options.image_size)
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


class _UnusableRecord(BadRecordError):
    """Why a record is left out."""


def _named(scenes: Iterable[_RecordedScene]) -> Iterator[_RecordedScene]:
    """The scenes, those of one name but other pictures or cameras numbered: `a`, `a#2`; no two have the same name."""
    taken: set[str] = set()
    times: Counter = Counter()
    for scene in scenes:
        name = scene.scene_id
        while scene.scene_id in taken:
            times[name] += 1
            scene.scene_id = f"{name}#{times[name] + 1}"
        taken.add(scene.scene_id)
        scene.questions = [row | {"scene_id": scene.scene_id} for row in scene.questions]
        yield scene


def _read(path: Path) -> Iterator[Any]:
    """The records of a file with one JSON object per line, or of a JSON array, whatever the file's name ends in. A line that is no
    JSON comes as an `_UnusableRecord`."""
    try:
        check_encoding(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
            first, second = islice(chain((line for line in stream if line.strip()), ("", "")), 2)
        if _is_line_of_records(path, first, is_only=not second):
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
                yield from _read_lines(stream)
            return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except JSONError as error:
        raise InputError(f"{path}: not a file of records ({error})") from None
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


def _is_line_of_records(path: Path, line: str, is_only: bool) -> bool:
    """Whether the first line of a file, which may be that of a JSON array, is a record by itself, or stands for one."""
    of_lines = path.suffix.lower() == ".jsonl"
    try:
        record = parse_json(line)
    except JSONError:
        # A broken line, or the first one of a document of many.
        return of_lines and line.strip() not in ("[", "{")
    if of_lines and not is_only:
        return True
    if isinstance(record, dict) and any(isinstance(record.get(key), list) for key in WRAPPERS):
        return False
    return not isinstance(record, list) and (of_lines or (isinstance(record, dict) and "images" in record))


def _read_lines(lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield parse_json(line)
            except JSONError as error:
                yield _UnusableRecord(f"line {number}: not JSON ({error})")


def _add(scenes: dict[str, _RecordedScene], root: Path, path: Path, number: int, record: Any) -> None:
    """Adds a record's question to its scene; raises `_UnusableRecord`."""
    if not isinstance(record, dict):
        raise _UnusableRecord("not an object")
    images = record.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise _UnusableRecord("'images' is not a list of paths")
    images = [image.replace("\\", "/").removeprefix(f"{root}/") for image in images]  # Windows' or not
    images = [check_picture(image) for image in images]
    question = record.get("question", record.get("instruction"))
    if not isinstance(question, str) or not question.strip():
        raise _UnusableRecord("neither 'question' nor 'instruction' is a text")
    action, answer = record.get("action_json"), record.get("answer")
    action, answer = _as_text("action_json", action), _as_text("answer", answer)
    answer = action if answer is None else answer
    if not isinstance(answer, str) or not answer.strip() or not isinstance(action, str | None):
        raise _UnusableRecord("neither 'answer' nor 'action_json' is a text or an object, or it is empty")
    if not isinstance(record.get("task"), str | None):
        raise _UnusableRecord("'task' is not a text")
    if not isinstance(record.get("situation"), str | None):
        raise _UnusableRecord("'situation' is not a text")
    scene_id = record.get("scene_id")
    if not isinstance(scene_id, str | int | None) or isinstance(scene_id, bool):
        raise _UnusableRecord("'scene_id' is not a text")
    details = {"images": images, "geometry": _geometry(record.get("geom_token"), len(images))}
    key = hashlib.sha256(json.dumps([scene_id, details], sort_keys=True).encode()).hexdigest()[:16]
    name = str(scene_id or f"views-{key}")
    row = qa_row(
        scene_id=name,
        question_id=f"{path.stem}-{number}",
        question=question,
        answers=[answer],
        task=record.get("task") or TASK,
        situation=record.get("situation"),
        action=action,
    )
    scenes.setdefault(key, _RecordedScene(name, [], details)).questions.append(row)


def _as_text(field: str, value: Any) -> Any:
    """The JSON of an object or a list; anything else as it is."""
    if not isinstance(value, dict | list):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise _UnusableRecord(f"'{field}' holds a number that is not finite") from None


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
    fault = describe_distance_fault(arrays)
    if fault is not None:
        raise _UnusableRecord(f"geom_token: {fault}")
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
