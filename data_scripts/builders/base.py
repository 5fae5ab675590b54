# SPDX-License-Identifier: Apache-2.0
"""What all dataset builders share: the two schemas, the builder configuration and the checks on annotation files.

Every builder has two configurations. `scenes` holds each scene's views once; `qa` holds the questions and names
scenes by `scene_id`. `data_scripts.builders.repo` runs both and makes a repo of them.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import BuilderConfig, DatasetInfo, Features, GeneratorBasedBuilder, Image, List, SplitGenerator, Value

from ..scannet import Scan, scan_files
from ..views import VIEW_SELECTIONS, UnreadableFileError


SCHEMA_VERSION = 1  # part of the fingerprint: a repo of another schema is never taken for this one

SCENES_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "images": List(Image()),
        "frame_ids": List(Value("string")),
        "geometry": {  # or null
            "R": List(List(List(Value("float32")))),  # [V, 3, 3] world-to-camera rotation
            "t": List(List(Value("float32"))),  # [V, 3] world-to-camera translation, metres
            "K": List(List(List(Value("float32")))),  # [V, 3, 3] pixels of the stored image
            "depth_hist": List(List(Value("float32"))),  # [V, 16] shares over 0-8 m
        },
    }
)

QA_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "question_id": Value("string"),
        "question": Value("string"),
        "situation": Value("string"),
        "answers": List(Value("string")),
        "task": Value("string"),
        "object_ids": List(Value("int32")),
        "object_names": List(Value("string")),
        "position": List(Value("float32")),  # [3] or null
        "rotation": List(Value("float32")),  # [4] quaternion x, y, z, w or null
        "action": Value("string"),
    }
)


class InputError(ValueError):
    """The given files cannot be prepared; the message is one line that says what to change."""


@dataclass
class Annotations:
    """The questions of all splits, checked and in the `qa` schema.

    Attributes:
        questions: split name to the split's rows, in the order of the file.
        notes: what was left out or taken for granted, one line each, for the user.
    """

    questions: dict[str, list[dict]]
    notes: list[str] = field(default_factory=list)

    def scenes(self) -> dict[str, list[str]]:
        """Split name to the ids of the scenes its questions are about, in the order of their first question."""
        return {split: list(dict.fromkeys(row["scene_id"] for row in rows)) for split, rows in self.questions.items()}


@dataclass
class PreparationConfig(BuilderConfig):
    """What a builder reads and how.

    Attributes:
        annotations: paths of the annotation files.
        root: the folder that holds the scenes (ScanNet scans, or pictures).
        num_views: at most so many views per scene.
        view_selection: a key of `data_scripts.views.VIEW_SELECTIONS`.
        strict: the first unusable scene is an error instead of being left out.
        failures: folder in which the `scenes` configuration records the scenes it left out.
        left_out: ids of the scenes whose questions the `qa` configuration leaves out.
        fingerprint: of all the inputs; only there to make the builder's cache a different one when they change.
    """

    annotations: tuple[str, ...] = ()
    root: str = ""
    num_views: int = 8
    view_selection: str = "uniform"
    strict: bool = False
    failures: str = ""
    left_out: tuple[str, ...] = ()
    fingerprint: str = ""


class PreparationBuilder(GeneratorBasedBuilder):
    """Base of the builders. A subclass reads its annotation files and one scene; everything else is here.

    Class attributes:
        TITLE, SOURCE, LICENCE, ABOUT: what the dataset card says.
        ROOT_OPTION: the command-line option that gives the scenes' folder.
        SCENES_PER_BATCH: scenes kept in memory while writing; also the size of a Parquet row group of `scenes`.
    """

    BUILDER_CONFIG_CLASS = PreparationConfig
    BUILDER_CONFIGS = [PreparationConfig(name="scenes"), PreparationConfig(name="qa")]

    TITLE: ClassVar[str]
    SOURCE: ClassVar[str]
    LICENCE: ClassVar[str]
    ABOUT: ClassVar[str]
    ROOT_OPTION: ClassVar[str]
    SCENES_PER_BATCH: ClassVar[int]

    @classmethod
    @abstractmethod
    def read_annotations(cls, files: Iterable[Path]) -> Annotations:
        """Reads and checks the annotation files; raises `InputError`."""

    @classmethod
    @abstractmethod
    def scene_exists(cls, root: Path, scene_id: str) -> bool:
        """Whether `root` holds the scene at all."""

    @classmethod
    @abstractmethod
    def scene_files(cls, root: Path, scene_id: str) -> Iterator[Path]:
        """The raw files of a scene, in a fixed order, for the fingerprint."""

    @abstractmethod
    def read_scene(self, scene_id: str) -> dict[str, Any]:
        """A row of `scenes` without its `scene_id`; raises `UnreadableFileError` if the scene cannot be used."""

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=SCENES_FEATURES if self.config.name == "scenes" else QA_FEATURES)

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        annotations = self.read_annotations(Path(path) for path in self.config.annotations)
        if self.config.name == "scenes":
            # A list is what `num_proc` divides among processes, a tuple goes to each as a whole.
            return [SplitGenerator(split, {"items": scenes}) for split, scenes in annotations.scenes().items()]
        return [SplitGenerator(split, {"items": tuple(rows)}) for split, rows in annotations.questions.items()]

    def _generate_examples(self, items: list[str] | tuple[dict, ...]) -> Iterator[tuple[str, dict]]:
        if self.config.name == "qa":
            left_out = set(self.config.left_out)
            for row in items:
                if row["scene_id"] not in left_out:
                    yield row["question_id"], row
            return
        for scene_id in items:
            try:
                scene = self.read_scene(scene_id)
            except UnreadableFileError as error:
                self._record_failure(scene_id, error)
                if self.config.strict:
                    raise
                continue
            yield scene_id, {"scene_id": scene_id, **scene}

    def _record_failure(self, scene_id: str, error: UnreadableFileError) -> None:
        # With num_proc several processes record failures at once: one file each.
        # Paths are relative because the record becomes part of the repo, which may be published.
        file = os.path.relpath(error.file, self.config.root)
        failure = {"scene_id": scene_id, "file": file, "reason": error.reason}
        with open(Path(self.config.failures) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(failure) + "\n")


class ScanNetBuilder(PreparationBuilder):
    """Base of the builders whose scenes are ScanNet frame dumps; see `data_scripts.scannet`.

    `R`, `t` are world-to-camera in OpenCV axes; the world is the scan's axis-aligned one (metres, z up).
    """

    ROOT_OPTION = "--scannet-root"
    SCENES_PER_BATCH = 16  # eight views of 1296x968 are some two megabytes

    @classmethod
    def scene_exists(cls, root: Path, scene_id: str) -> bool:
        return (root / scene_id).is_dir()

    @classmethod
    def scene_files(cls, root: Path, scene_id: str) -> Iterator[Path]:
        return scan_files(root / scene_id)

    def read_scene(self, scene_id: str) -> dict[str, Any]:
        scan = Scan(Path(self.config.root) / scene_id)
        poses = scan.camera_poses()
        if not poses:
            raise UnreadableFileError(scan.folder / "pose", "no picture has a valid pose")
        chosen = VIEW_SELECTIONS[self.config.view_selection](list(poses), self.config.num_views)
        views = list(scan.views({frame_id: poses[frame_id] for frame_id in chosen}))
        return {
            "images": [view.image for view in views],
            "frame_ids": [view.frame_id for view in views],
            "geometry": {
                "R": [view.world_to_camera[:3, :3].tolist() for view in views],
                "t": [view.world_to_camera[:3, 3].tolist() for view in views],
                "K": [view.intrinsics.tolist() for view in views],
                "depth_hist": [view.depth_histogram.tolist() for view in views],
            },
        }


def qa_row(
    scene_id: str, question_id: str, question: str, answers: list[str], task: str, **optional
) -> dict[str, Any]:
    """A row of `qa`; what a task does not have is null, or empty for the object lists."""
    row = {name: None for name in QA_FEATURES} | {"object_ids": [], "object_names": []}
    required = {
        "scene_id": scene_id,
        "question_id": question_id,
        "question": question,
        "answers": answers,
        "task": task,
    }
    return row | required | optional


def load_json(path: Path) -> Any:
    """Parses a JSON file; raises `InputError` naming it if it is missing or no JSON."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


def check_rows(path: Path, rows: Any, what: str, keys: dict[str, type | tuple[type, ...]]) -> list[dict]:
    """Checks that `rows` is a non-empty list of objects that have `keys`, each of the type given.

    Raises:
        InputError: names the file, the index of the row and the key that is missing or of another type.
    """
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected {what}, found {_describe(rows)}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {index} is {_describe(row)}, expected an object")
        for key, kind in keys.items():
            if key not in row:
                raise InputError(f"{path}: row {index} has no '{key}'")
            if not isinstance(row[key], kind):
                expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
                raise InputError(f"{path}: row {index}: '{key}' is {_describe(row[key])}, expected {expected}")
    return rows


def check_items(path: Path, index: int, row: dict, key: str, kind: type) -> list:
    """The list `row[key]` (empty if absent), after checking the type of its items; raises `InputError`."""
    items = row.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise InputError(f"{path}: row {index}: '{key}' is not a list of {kind.__name__}")
    return items


def one_file_per_split(split: str, path: Path, taken: dict[str, Path]) -> None:
    """Notes in `taken` that `path` is the file of `split`; raises `InputError` if there is one already."""
    if split in taken:
        raise InputError(f"two annotation files for the split '{split}': {taken[split]} and {path}")
    taken[split] = path


def _describe(value: Any) -> str:
    if isinstance(value, (list, dict)) and not value:
        return f"an empty {type(value).__name__}"
    return "null" if value is None else f"a {type(value).__name__}"


__all__ = [
    "Annotations",
    "InputError",
    "PreparationBuilder",
    "PreparationConfig",
    "QA_FEATURES",
    "SCENES_FEATURES",
    "SCHEMA_VERSION",
    "ScanNetBuilder",
    "check_items",
    "check_rows",
    "load_json",
    "one_file_per_split",
    "qa_row",
]
