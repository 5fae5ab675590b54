# SPDX-License-Identifier: Apache-2.0
"""What all dataset builders share: what a builder has to provide, and the writing of both configurations.

Every builder has two configurations. `scenes` holds each scene's views once; `qa` holds the questions and names
scenes by `scene_id`. `data_scripts.preparation.repo` reads the scenes, in several processes, runs both configurations over
what came out and makes a repo of them.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import BuilderConfig, DatasetInfo, GeneratorBasedBuilder, SplitGenerator

from ..schema import EMPTY_QUESTION, FEATURES, check_question, check_scene
from .annotations import Annotations, SceneInput
from .left_out import check_new


@dataclass(frozen=True)
class Sources:
    """Where the raw files are; the command-line options of the same names. None or empty: not given.

    Several folders of scans: see `data_scripts.readers.scannet.scan_roots`.
    """

    annotations: tuple[Path, ...] = ()
    records: tuple[Path, ...] = ()
    scannet_root: tuple[Path, ...] = ()
    arkitscenes_root: Path | None = None
    roomplan_root: Path | None = None
    image_root: Path | None = None

    def folders(self) -> list[Path]:
        """The folders that were given, and those of the files that were given."""
        folders = set()
        for name, value in vars(self).items():
            paths = value if isinstance(value, tuple) else (value,) if value else ()
            folders |= {path if name.endswith("_root") else path.parent for path in paths}
        return sorted({Path(os.path.abspath(folder)) for folder in folders})


ACTIONS = ("place_anchor", "list_objects", "describe_room")


@dataclass(frozen=True)
class Options:
    """What changes the result; the command-line options of the same names.

    Attributes:
        num_views: at most so many views per scene.
        view_selection: one of `data_scripts.preparation.view_selection.VIEW_SELECTIONS`.
        max_frames: of a scan, at most so many frames, evenly spaced, are considered.
        seed: of the selection `random`, and of the phrasing of instructions.
        geometry: "required" (a scene without poses, intrinsics and depth is left out), "optional" (it is prepared without
            geometry) or "none" (nothing but pictures is read).
        image_size: the longer side of the stored pictures, in pixels; larger ones are made smaller. None: as they are.
        actions: which actions are asked for, of `ACTIONS`.
        val_share: about so much of the scenes of `train` becomes a split `val`; see `builders.val_share`. None: nothing.
    """

    num_views: int = 8
    view_selection: str = "uniform"
    max_frames: int = 200
    seed: int = 0
    geometry: str = "required"
    image_size: int | None = None
    actions: tuple[str, ...] = ACTIONS
    val_share: float | None = None


@dataclass
class Remark:
    """Something in a scene that the user should know of.

    Attributes:
        kind: the same words for all scenes, "frames without a pose".
        count: how many of them.
        example: which one, a few words.
    """

    kind: str
    count: int
    example: str


CHECKSUM_LENGTH = 64


class DamagedSceneError(OSError):
    """The file of a prepared scene is not as it was written: a power failure, or a disk that fails."""


@dataclass
class PreparedScene:
    """A scene as it is stored.

    Attributes:
        images: encoded pictures.
        frame_ids: their names in the raw data.
        geometry: `R`, `t`, `K`, `depth_hist` as nested lists, or None.
        questions: rows of `qa`, see `SceneInput`.
        remarks: for the summary.
    """

    images: list[bytes]
    frame_ids: list[str]
    geometry: dict[str, list] | None
    questions: list[dict]
    remarks: list[Remark] = field(default_factory=list)

    def check(self) -> None:
        """Raises `SchemaError` or `BadRecordError` if the scene cannot be written as it is."""
        check_scene(self.images, self.frame_ids, self.geometry)
        seen: dict[str, int] = {}
        for number, row in enumerate(self.questions):
            check_question(row)
            check_new("question_id", row["question_id"], seen, number)

    def to_bytes(self) -> bytes:
        """The SHA-256 of what follows, a line; a line of JSON; the pictures."""
        header = {**vars(self), "images": [len(image) for image in self.images]}
        header["remarks"] = [vars(remark) for remark in self.remarks]
        content = json.dumps(header).encode() + b"\n" + b"".join(self.images)
        return hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    @classmethod
    def read(cls, path: str | Path, pictures: bool = True) -> "PreparedScene":
        """
        Reads what `to_bytes` gave. Without `pictures`, `images` is empty, and no checksum is compared.

        Raises:
            DamagedSceneError: the file is not the one that was written.
        """
        with open(path, "rb") as stream:
            checksum = stream.readline(CHECKSUM_LENGTH + 1).strip()
            if pictures:
                start = stream.tell()
                if hashlib.file_digest(stream, "sha256").hexdigest().encode() != checksum:
                    raise DamagedSceneError(
                        f"{path}: damaged since it was written; the same command reads the scene again"
                    )
                stream.seek(start)
            header = json.loads(stream.readline())
            header["images"] = [stream.read(length) for length in header["images"]] if pictures else []
        header["remarks"] = [Remark(**remark) for remark in header["remarks"]]
        return cls(**header)


@dataclass
class PreparationConfig(BuilderConfig):
    """What a configuration is written from.

    Attributes:
        files: a JSON file: split to scene_id to the path of the scene (`PreparedScene.to_bytes`), in order.
        fingerprint: of all the inputs; only there to make the builder's cache a different one when they change.
    """

    files: str = ""
    fingerprint: str = ""


class PreparationBuilder(GeneratorBasedBuilder):
    """Base of the builders. A subclass reads its annotation files and one scene; everything else is here.

    Class attributes:
        TITLE, SOURCE, LICENCE, ABOUT: what the dataset card says.
        LICENCES: identifiers of the Hub, or keys of `data_scripts.licences.NAMED_TERMS`.
        SOURCES, OPTIONAL_SOURCES: which fields of `Sources` it needs and may have.
        OPTIONS: which fields of `Options` it takes.
        DEFAULTS: its own defaults of them.
        SCENES_PER_BATCH: scenes kept in memory while writing; also the size of a Parquet row group of `scenes`.
    """

    BUILDER_CONFIG_CLASS = PreparationConfig
    BUILDER_CONFIGS = [PreparationConfig(name="scenes"), PreparationConfig(name="qa")]

    TITLE: ClassVar[str]
    SOURCE: ClassVar[str]
    LICENCE: ClassVar[str]
    ABOUT: ClassVar[str]
    LICENCES: ClassVar[tuple[str, ...]]
    SOURCES: ClassVar[tuple[str, ...]]
    OPTIONAL_SOURCES: ClassVar[tuple[str, ...]] = ()
    OPTIONS: ClassVar[tuple[str, ...]]
    DEFAULTS: ClassVar[dict[str, Any]] = {}
    SCENES_PER_BATCH: ClassVar[int]

    @classmethod
    @abstractmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads and checks the annotation files; raises `InputError`."""

    @classmethod
    @abstractmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        """The raw files of a scene, in a fixed order, for the fingerprint; none at all if the scene is absent."""

    @classmethod
    @abstractmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        """Reads a scene; raises `UnreadableFileError` if it cannot be used. Whatever else it raises leaves out the scene, too."""

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=FEATURES[self.config.name])

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        files = json.loads(Path(self.config.files).read_text(encoding="utf-8"))
        return [SplitGenerator(split, {"files": tuple(paths.items())}) for split, paths in files.items()]

    def _generate_examples(self, files: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, dict]]:
        for scene_id, path in files:
            scene = PreparedScene.read(path, pictures=self.config.name == "scenes")
            if self.config.name == "scenes":
                fields = {"images": scene.images, "frame_ids": scene.frame_ids, "geometry": scene.geometry}
                yield scene_id, {"scene_id": scene_id, **fields}
                continue
            for row in scene.questions:
                yield row["question_id"], EMPTY_QUESTION | row


__all__ = [
    "DamagedSceneError",
    "Options",
    "PreparationBuilder",
    "PreparationConfig",
    "PreparedScene",
    "Remark",
    "Sources",
]
