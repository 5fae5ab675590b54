# SPDX-License-Identifier: Apache-2.0
"""Generates a whole set of rooms: scans, questions about them, pictures with conversations.

Workers render rooms and list every question that can be asked; which ones are asked is decided in the parent process, room by
room in order. The number of workers therefore changes nothing in the result.
"""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..files import flush, flush_all
from ..workers import start_worker
from .arkitscenes_writer import metadata_csv, video_id, write_arkitscenes
from .layout import Scene, sample_labels, sample_scene
from .questions import SCANQA_SHARES, Balance, Candidate, picture_turns, scanqa_candidates
from .roomplan_writer import captured_room
from .scannet_writer import jpeg, write_frames_25k, write_padded_scan, write_scan
from .sens_writer import write_sens
from .situations import SQA3D_SHARES, sqa3d_candidates
from .writers import FIRST_SQA3D_ID, instruct_item, scanqa_items, sqa3d_items, write_json, write_preview


SPLITS = ("train", "val", "test")
FORMATS = ("scannet", "scannet_25k", "scannet_padded", "sens", "arkitscenes", "arkitscenes_raw", "roomplan")
VALIDATION_SHARE, TEST_SHARE = 0.05, 0.1
HELD_OUT_SCENES = 240
SCANQA_PER_SCENE, SQA3D_PER_SCENE = 12, 5
MINIMUM_SCENES, MINIMUM_SIZE, MAXIMUM_OBJECTS = 3, 28, 8
PREVIEW_SCENES, PREVIEW_QUESTIONS = 6, 4

CARD = """\
---
license: apache-2.0
pretty_name: Procedural rooms of VGGT-Qwen3
---

# Procedural rooms of VGGT-Qwen3

{scenes} rooms of {views} views and {instruct_images} single pictures, {image_size} pixels wide, rendered by `data_scripts.rooms` with
seed {seed}, with questions made from what was rendered. No scan, no photograph and no text of anybody else is in them: they
only have the formats of ScanNet, ScanQA, SQA3D, ARKitScenes, RoomPlan and LLaVA.
"""

# Second word of every seed, so that no two streams of chance coincide.
_SCENE, _PICTURE, _SPLIT, _PICTURE_SPLIT = range(4)


@dataclass(frozen=True)
class Settings:
    """What to generate.

    Attributes:
        scenes: number of rooms, at least 3 (one per split).
        views: pictures per room.
        image_size: pixels along each side of the square pictures.
        seed: the same seed gives the same bytes.
        instruct_images: number of single pictures with a conversation, 0 or at least 2.
        objects: least and most objects in a room.
        formats: raw formats each room is written in, of `FORMATS`.
    """

    scenes: int
    views: int
    image_size: int
    seed: int
    instruct_images: int
    objects: tuple[int, int] = (3, 5)
    formats: tuple[str, ...] = ("scannet",)

    def __post_init__(self):
        if self.scenes < MINIMUM_SCENES:
            raise ValueError(f"scenes must be at least {MINIMUM_SCENES} (one per split), got {self.scenes}")
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}")
        if self.image_size < MINIMUM_SIZE:
            raise ValueError(f"image size must be at least {MINIMUM_SIZE} pixels, got {self.image_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.instruct_images < 0 or self.instruct_images == 1:
            raise ValueError(f"instruct images must be 0 or at least 2 (one per split), got {self.instruct_images}")
        low, high = self.objects
        if not 1 <= low <= high <= MAXIMUM_OBJECTS:
            raise ValueError(f"objects must be 1 <= MIN <= MAX <= {MAXIMUM_OBJECTS}, got {low} {high}")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {' '.join(self.formats) or 'none'}")


@dataclass
class Room:
    """What the parent process needs to know of a room that a worker has written."""

    names: list[str]
    size: np.ndarray
    alignment: np.ndarray
    scanqa: list[Candidate]
    sqa3d: list[Candidate]


def scene_name(index: int) -> str:
    return f"scene{index:04d}_00"


def build_scene(settings: Settings, index: int) -> Scene:
    """Room number `index` of the set, rendered; depends on nothing else."""
    rng = np.random.default_rng([settings.seed, _SCENE, index])
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    labels = sample_labels(rng, count, repeats=(0.45, 0.33, 0.22))
    return sample_scene(rng, labels, settings.views, settings.image_size)


def build_picture(settings: Settings, index: int) -> tuple[Scene, list[tuple[str, str]]]:
    """Picture number `index` of the instruction set: a room with one or two objects, one view, and its conversation."""
    rng = np.random.default_rng([settings.seed, _PICTURE, index])
    labels = sample_labels(rng, 1 if rng.uniform() < 0.5 else 2, repeats=(0.75, 0.25, 0.0))
    while True:
        scene = sample_scene(rng, labels, views=1, image_size=settings.image_size, close_up=True)
        if scene.seen.all():
            return scene, picture_turns(rng, scene)


def split_of_scenes(settings: Settings) -> list[str]:
    """
    The split of every scene: about 5 % val and 10 % test, at least one each and at most `HELD_OUT_SCENES` of both
    together: beyond that, more rooms are more to train on, not more to wait for when a model is scored.
    """
    rng = np.random.default_rng([settings.seed, _SPLIT])
    shared = min(settings.scenes, HELD_OUT_SCENES / (VALIDATION_SHARE + TEST_SHARE))
    val, test = (max(1, round(share * shared)) for share in (VALIDATION_SHARE, TEST_SHARE))
    order = rng.permutation(settings.scenes)
    splits = ["train"] * settings.scenes
    for position, index in enumerate(order[: val + test]):
        splits[index] = "val" if position < val else "test"
    return splits


def check_output(output: Path) -> None:
    """Raises ValueError if `output` holds anything or cannot be created."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {parent}")


def generate(settings: Settings, output: Path, workers: int = 1, preview: bool = False, progress: bool = True) -> dict:
    """Generates the set into `output`, which appears only when it is whole.

    Args:
        settings: what to generate.
        output: folder that does not exist or is empty.
        workers: processes.
        preview: also write `preview.png`.
        progress: show a progress bar.

    Returns:
        number of scenes, views, ScanQA and SQA3D questions, and instruction pictures; in `empty` the annotation files
        without a question, as where a split has few rooms and these show little.

    Raises:
        ValueError: `output` is taken or cannot be written.
    """
    check_output(output)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.parent / f".{output.name}.partial"
    work.mkdir(exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            shutil.rmtree(work / "rooms", ignore_errors=True)  # of a process that was killed
            (work / "rooms").mkdir()
            try:
                counts = _generate(settings, work / "rooms", workers, preview, progress)
                flush_all(work / "rooms")
                os.replace(work / "rooms", output)
                flush(output.parent)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except Timeout:
        raise ValueError(f"{output} is being generated by another process") from None
    return counts


def _generate(settings: Settings, folder: Path, workers: int, preview: bool, progress: bool) -> dict:
    splits = split_of_scenes(settings)
    balances = {split: (Balance(SCANQA_SHARES), Balance(SQA3D_SHARES)) for split in SPLITS}
    scanqa: dict[str, list] = {split: [] for split in SPLITS}
    questions: dict[str, list] = {split: [] for split in SPLITS}
    annotations: dict[str, list] = {split: [] for split in SPLITS}
    captions = {}
    next_id = FIRST_SQA3D_ID
    pictures = settings.instruct_images
    with _pool(workers) as run, tqdm(total=settings.scenes + pictures, disable=not progress, unit="room") as bar:
        rooms = run(partial(_make_room, settings, folder), enumerate(splits))
        for index, (split, room) in enumerate(zip(splits, rooms)):
            scene_id = scene_name(index)
            room_balance, situation_balance = balances[split]
            chosen = room_balance.select(room.scanqa, SCANQA_PER_SCENE)
            scanqa[split] += scanqa_items(scene_id, split, room.names, chosen)
            if index < PREVIEW_SCENES:
                captions[scene_id] = [(c.question, c.answers[0]) for c in chosen[:PREVIEW_QUESTIONS]]
            chosen = situation_balance.select(room.sqa3d, SQA3D_PER_SCENE)
            asked, answered = sqa3d_items(scene_id, next_id, room.size, room.alignment, chosen)
            questions[split] += asked
            annotations[split] += answered
            next_id += len(asked)
            bar.update()
        images = folder / "instruct" / "images"
        images.mkdir(parents=True)
        items = []
        for item in run(partial(_make_picture, settings, images), range(pictures)):
            items.append(item)
            bar.update()

    names = {"train": "train", "val": "val", "test": "test_w_obj"}
    for split in SPLITS:
        write_json(folder / "scanqa" / f"ScanQA_v1.0_{names[split]}.json", scanqa[split])
        sqa3d = folder / "sqa3d"
        write_json(sqa3d / f"v1_balanced_questions_{split}_scannetv2.json", {"questions": questions[split]})
        write_json(sqa3d / f"v1_balanced_sqa_annotations_{split}_scannetv2.json", {"annotations": annotations[split]})
    order = np.random.default_rng([settings.seed, _PICTURE_SPLIT]).permutation(pictures)
    held_out = set(order[: max(1, round(VALIDATION_SHARE * pictures))].tolist()) if pictures else set()
    for split, wanted in (("train", False), ("val", True)):
        chosen = [item for index, item in enumerate(items) if (index in held_out) == wanted]
        write_json(folder / "instruct" / f"instruct_{split}.json", chosen)
    if {"arkitscenes", "arkitscenes_raw"} & set(settings.formats):
        directions = [sky_direction(settings, index) for index in range(settings.scenes)]
        (folder / "arkitscenes" / "metadata.csv").write_text(metadata_csv(splits, directions))
    (folder / "README.md").write_text(CARD.format(**vars(settings)), encoding="utf-8")
    if preview:
        pictures = {scene_name(index): build_scene(settings, index).rgb for index in range(len(captions))}
        write_preview(folder / "preview.png", pictures, captions)
    return {
        "scenes": settings.scenes,
        "views": settings.scenes * settings.views,
        "scanqa": sum(map(len, scanqa.values())),
        "sqa3d": sum(map(len, questions.values())),
        "instruct": pictures,
        "empty": [
            f"{name} {split}"
            for name, of in (("ScanQA", scanqa), ("SQA3D", questions))
            for split in SPLITS
            if not of[split]
        ],
    }


def sky_direction(settings: Settings, index: int) -> str:
    """The side of the ARKitScenes pictures of room number `index` at which the sky is."""
    return str(np.random.default_rng([settings.seed, _SCENE, index, 4]).choice(["Up", "Down", "Left", "Right"]))


def _make_room(settings: Settings, folder: Path, numbered_split: tuple[int, str]) -> Room:
    index, split = numbered_split
    scene = build_scene(settings, index)
    scannet = {
        "scannet": write_scan,
        "scannet_25k": write_frames_25k,
        "scannet_padded": write_padded_scan,
        "sens": write_sens,
    }
    for name, write in scannet.items():
        if name in settings.formats:
            write(folder / name / scene_name(index), scene)
    for name, layout in (("arkitscenes", "3dod"), ("arkitscenes_raw", "raw")):
        if name in settings.formats:
            scan = folder / "arkitscenes" / layout / ("Training" if split == "train" else "Validation")
            rng = np.random.default_rng([settings.seed, _SCENE, index, 2])  # the same recording in both layouts
            write_arkitscenes(rng, scan / video_id(index), scene, layout, sky_direction(settings, index))
    if "roomplan" in settings.formats:
        rng = np.random.default_rng([settings.seed, _SCENE, index, 3])
        write_json(folder / "roomplan" / f"{video_id(index)}.json", captured_room(rng, scene))
    rng = np.random.default_rng([settings.seed, _SCENE, index, 1])
    return Room(
        names=[piece.category for piece in scene.pieces],
        size=scene.size,
        alignment=scene.alignment,
        scanqa=scanqa_candidates(rng, scene),
        sqa3d=sqa3d_candidates(rng, scene),
    )


def _make_picture(settings: Settings, images: Path, index: int) -> dict:
    scene, turns = build_picture(settings, index)
    name = f"room{index:06d}"
    (images / f"{name}.jpg").write_bytes(jpeg(scene.rgb[0]))
    return instruct_item(name, turns)


@contextmanager
def _pool(workers: int) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """A lazy, order-preserving map over `workers` processes."""
    if workers == 1:
        yield map
        return
    # Not forked: the parent may hold threads of other libraries.
    with multiprocessing.get_context("spawn").Pool(workers, initializer=start_worker) as pool:
        yield partial(pool.imap, chunksize=4)


__all__ = [
    "FORMATS",
    "Settings",
    "build_picture",
    "build_scene",
    "check_output",
    "generate",
    "scene_name",
    "sky_direction",
    "split_of_scenes",
]
