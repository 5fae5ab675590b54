# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style instruction files over a folder of pictures.

Source of the format: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..views import read_picture
from .base import Annotations, InputError, PreparationBuilder, check_rows, load_json, one_file_per_split, qa_row


SPLITS = ("train", "val", "test")
IMAGE_MARKER = "<image>"
RECORD_KEYS = {"id": (str, int), "conversations": list}


class Instruct(PreparationBuilder):
    """Conversations about single pictures. A scene is one picture, its id the picture's path under the image root;
    there is no geometry. Every (human, gpt) pair of turns is a question of its own.

    `question_id` is "<record id>-<turn>". Records that share an id, as LLaVA-Instruct's do when they are about the
    same picture, are numbered on.
    """

    TITLE = "Visual instructions"
    SOURCE = "Conversations and pictures: the instruction files named below, in the format of LLaVA."
    LICENCE = "As the source of the instruction files and of their pictures."
    ABOUT = (
        "A scene is one picture, `scene_id` its path; there is no geometry. "
        "Each (human, gpt) pair of turns is one row."
    )
    ROOT_OPTION = "--image-root"
    SCENES_PER_BATCH = 100

    @classmethod
    def read_annotations(cls, files: Iterable[Path]) -> Annotations:
        """Reads JSON lists of `{"id", "image", "conversations"}`; the last word of a file's name (`..._val.json`) is
        its split, and one whose name says none is train. Records with no picture or with several are left out and
        counted.

        Raises:
            InputError: a file is malformed, turns do not alternate, or two files are for the same split.
        """
        paths, notes = {}, []
        for path in files:
            split = path.stem.split("_")[-1]
            if split not in SPLITS:
                split = "train"
                notes.append(f"{path.name}: its name says no split, taken as train")
            one_file_per_split(split, path, paths)
        questions = {}
        for split, path in paths.items():
            questions[split], skipped = _read_split(path)
            notes += [f"{path.name}: {count} records with {what} skipped" for what, count in sorted(skipped.items())]
        return Annotations(questions, notes)

    @classmethod
    def scene_exists(cls, root: Path, scene_id: str) -> bool:
        return (root / scene_id).is_file()

    @classmethod
    def scene_files(cls, root: Path, scene_id: str) -> Iterator[Path]:
        yield root / scene_id

    def read_scene(self, scene_id: str) -> dict[str, Any]:
        content, _ = read_picture(Path(self.config.root) / scene_id)
        return {"images": [content], "frame_ids": ["0"], "geometry": None}


def _read_split(path: Path) -> tuple[list[dict], Counter]:
    rows, skipped, turns = [], Counter(), Counter()
    for index, record in enumerate(check_rows(path, load_json(path), "a list of records", RECORD_KEYS)):
        image = record.get("image")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if not image:
            skipped["no picture"] += 1
            continue
        if isinstance(image, list):
            skipped["several pictures"] += 1
            continue
        if not isinstance(image, str) or image.startswith("/") or ".." in PurePosixPath(image).parts:
            raise InputError(f"{path}: row {index}: 'image' is not a path under the image root")
        for question, answer in _turn_pairs(path, index, record["conversations"]):
            question_id = f"{record['id']}-{turns[record['id']]}"
            turns[record["id"]] += 1
            rows.append(qa_row(image, question_id, question, [answer], task="instruct"))
    if not rows:
        raise InputError(f"{path}: no record has exactly one picture")
    return rows, skipped


def _turn_pairs(path: Path, index: int, turns: list) -> Iterator[tuple[str, str]]:
    well_formed = all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    if not turns or not well_formed or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise InputError(
            f"{path}: row {index}: 'conversations' is not (human, gpt) pairs of turns with a text 'value'"
        )
    for human, gpt in zip(turns[::2], turns[1::2]):
        yield human["value"].replace(IMAGE_MARKER, "").strip(), gpt["value"]


__all__ = ["Instruct"]
