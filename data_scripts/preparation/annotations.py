# SPDX-License-Identifier: Apache-2.0
"""What annotation files become, and the checks on them that all builders share."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..json_text import JSONError, parse_json, read_json_text
from ..plain import plain
from ..schema import check_question


SPLIT_WORDS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


class InputError(ValueError):
    """The given files cannot be prepared; the message is one line that says what to change, and may quote what they hold."""

    def __init__(self, message: str):
        super().__init__(plain(message, 1000))


@dataclass
class SceneInput:
    """A scene as the annotation files know it.

    Attributes:
        scene_id: unique in the repo.
        packed: its questions as JSON, which takes a fifth of the memory: there may be hundreds of thousands.
        details: whatever else the builder needs to read the scene; JSON.
    """

    scene_id: str
    packed: str = "[]"
    details: Any = None

    @classmethod
    def of(cls, scene_id: str, questions: list[dict], details: Any = None) -> "SceneInput":
        return cls(scene_id, json.dumps(questions), details)

    @property
    def questions(self) -> list[dict]:
        """Rows of `qa`, of which only the fields that are not null are there (see `qa_row`)."""
        return json.loads(self.packed)


@dataclass
class Annotations:
    """The scenes of all splits with their questions, checked.

    Attributes:
        scenes: split name to the split's scenes, in the order of their first question.
        notes: what was left out or taken for granted, one line each, for the user.
        faults: the first record of each file that cannot be used, with what is wrong with it; an error with `--strict`.
    """

    scenes: dict[str, list[SceneInput]]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def qa_row(scene_id: str, question_id: str, question: str, answers: list[str], task: str, **optional) -> dict:
    """A row of `qa` without the fields that are null or empty; raises `SchemaError` if it cannot be stored."""
    row = {"scene_id": scene_id, "question_id": question_id, "question": question, "answers": answers, "task": task}
    row |= {name: value for name, value in optional.items() if value not in (None, [])}
    check_question(row)
    return row


def group_by_scene(rows: Iterable[dict]) -> list[SceneInput]:
    """The scenes of rows of `qa`, in the order of their first question."""
    questions: dict[str, list[dict]] = {}
    for row in rows:
        questions.setdefault(row["scene_id"], []).append(row)
    return [SceneInput.of(scene_id, members) for scene_id, members in questions.items()]


def load_json(path: Path) -> Any:
    """Parses a JSON file; raises `InputError` naming it if it is missing or no JSON."""
    try:
        return parse_json(read_json_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except JSONError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


def list_of_rows(path: Path, rows: Any, what: str) -> list:
    """`rows`, which was read from `path`, if it is a list that is not empty; raises `InputError` that says it should be `what`."""
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected {what}, found {describe(rows)}")
    return rows


def check_question_ids(where: str, rows: Iterable[dict]) -> None:
    """Raises `InputError` if a question_id occurs twice."""
    for question_id, times in Counter(row["question_id"] for row in rows).most_common(1):
        if times > 1:
            raise InputError(f"question_id {question_id} occurs {times} times in {where}")


def one_file_per_split(split: str, path: Path, taken: dict[str, Path]) -> None:
    """Notes in `taken` that `path` is the file of `split`; raises `InputError` if there is one already."""
    if split in taken:
        raise InputError(f"two annotation files for the split '{split}': {taken[split]} and {path}")
    taken[split] = path


def split_of_name(path: Path, notes: list[str]) -> str:
    """The split that a file's name says (`train_human.json`, `llava_val.json`); train, with a note, if it says none."""
    for word in reversed(re.split(r"[^A-Za-z]+", path.stem)):
        if word.lower() in SPLIT_WORDS:
            return SPLIT_WORDS[word.lower()]
    notes.append(f"{path.name}: its name says no split, taken as train")
    return "train"


def compare_with_official(name: str, found: int, official: dict[str, int], key: str, unit: str) -> list[str]:
    """A note if `found` is not the number of the official release; none if it is, or if that has no `key`."""
    if key not in official or official[key] == found:
        return []
    return [f"{name}: {found:,} {unit}; the official release has {official[key]:,}"]


def describe(value: Any) -> str:
    if isinstance(value, (list, dict)) and not value:
        return f"an empty {type(value).__name__}"
    return "null" if value is None else f"a {type(value).__name__}"


__all__ = [
    "Annotations",
    "InputError",
    "SceneInput",
    "check_question_ids",
    "compare_with_official",
    "describe",
    "group_by_scene",
    "load_json",
    "list_of_rows",
    "one_file_per_split",
    "qa_row",
    "split_of_name",
]
