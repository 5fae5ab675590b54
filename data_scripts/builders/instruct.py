# SPDX-License-Identifier: Apache-2.0
"""Questions about single pictures: LLaVA-Instruct, ShareGPT4V, DocVQA and ChartQA.

Sources of the formats: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md (also ShareGPT4V's),
https://rrc.cvc.uab.es/?ch=17 (DocVQA), https://github.com/vis-nlp/ChartQA.
"""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import PIL.Image
import PIL.ImageOps

from ..frames import decode_picture
from ..views import read_bytes, read_picture
from .annotations import (
    Annotations,
    InputError,
    SceneInput,
    check_items,
    check_rows,
    group_by_scene,
    load_json,
    qa_row,
    split_of_name,
)
from .base import Options, PreparationBuilder, PreparedScene, Sources
from .scans import encode, shrink


IMAGE_MARKER = "<image>"
LLAVA_KEYS = {"id": (str, int), "conversations": list}
DOCVQA_KEYS = {"questionId": (str, int), "question": str, "image": str}
CHARTQA_KEYS = {"imgname": str, "query": str, "label": (str, int, float)}


class Instruct(PreparationBuilder):
    """Conversations about single pictures. A scene is one picture, its id the picture's path under the image root;
    there is no geometry. Every (human, gpt) pair of turns is a question of its own.

    `question_id` is "<record id>-<turn>" (DocVQA: the question's id; ChartQA: "<picture>-<number>"). Records that share an
    id, as LLaVA-Instruct's do when they are about the same picture, are numbered on. With several files for a split, the
    file's name comes first.
    """

    TITLE = "Visual instructions"
    SOURCE = (
        "Conversations and pictures: the instruction files named below, in the format of LLaVA, DocVQA or ChartQA."
    )
    LICENCE = "As the source of the instruction files and of their pictures; private unless a card beside them has a licence."
    LICENCES = ("unknown",)
    ABOUT = (
        "A scene is one picture, `scene_id` its path; there is no geometry. "
        "Each (human, gpt) pair of turns is one row."
    )
    SOURCES = ("annotations", "image_root")
    OPTIONS = ("image_size",)
    SCENES_PER_BATCH = 100

    @classmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads JSON lists of `{"id", "image", "conversations"}` (LLaVA-Instruct, ShareGPT4V) or of
        `{"imgname", "query", "label"}` (ChartQA), and `{"data": [{"questionId", "question", "image", "answers"}]}` (DocVQA).
        A file's split is the last of the words train, val and test in its name, and train if there is none. Records with
        no picture or with several, and DocVQA's without answers, are left out and counted.

        A picture `documents/a.png` is looked for in the image root and in its folder of the split's name (and there,
        ChartQA's in `png`), as the official downloads are laid out.

        Raises:
            InputError: a file is malformed, or turns do not alternate.
        """
        paths: dict[str, list[Path]] = {}
        notes: list[str] = []
        for path in sources.annotations:
            paths.setdefault(split_of_name(path, notes), []).append(path)
        scenes = {}
        for split, files in paths.items():
            rows = []
            for path in files:
                skipped: Counter = Counter()
                found = list(_read_file(path, split, sources.image_root, skipped))
                if not found:
                    raise InputError(f"{path}: no record has exactly one picture and an answer")
                if len(files) > 1:
                    for row in found:
                        row["question_id"] = f"{path.stem}-{row['question_id']}"
                rows += found
                notes += [
                    f"{path.name}: {count} records with {what} skipped" for what, count in sorted(skipped.items())
                ]
            scenes[split] = group_by_scene(rows)
        return Annotations(scenes, notes)

    @classmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        path = sources.image_root / scene.scene_id
        if path.is_file():
            yield path

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        content = read_stored(sources.image_root / scene.scene_id, options.image_size)[0]
        return PreparedScene([content], ["0"], None, scene.questions)


def read_stored(path: Path, image_size: int | None) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """A picture file as it is stored: its own bytes unless it has to be made smaller.

    Returns:
        the encoded picture, and (width, height) of the file's picture and of that one.

    Raises:
        UnreadableFileError: it is missing, no picture, or cut short.
    """
    content, size = read_picture(path)
    if image_size is None or max(size) <= image_size:
        return content, size, size
    content = read_bytes(path)
    decode_picture(content, path)  # raises if its pixels do not decode
    with PIL.Image.open(io.BytesIO(content)) as picture:
        upright = PIL.ImageOps.exif_transpose(picture)  # the tag that says how to turn it is not stored
    image = shrink(upright, image_size)
    return encode(image), upright.size, image.size


def safe_path(where: str, image: object) -> str:
    """`image`, if it is a relative path that stays under the image root; raises `InputError`."""
    if not isinstance(image, str) or not image or image.startswith("/") or ".." in PurePosixPath(image).parts:
        raise InputError(f"{where}: the picture {image!r} is not a path under the image root")
    return image


def _read_file(path: Path, split: str, root: Path, skipped: Counter) -> Iterator[dict]:
    content = load_json(path)
    if isinstance(content, dict) and "data" in content:
        yield from _read_docvqa(path, content["data"], split, root, skipped)
    elif isinstance(content, list) and content and isinstance(content[0], dict) and "imgname" in content[0]:
        yield from _read_chartqa(path, content, split, root)
    else:
        yield from _read_llava(path, content, skipped)


def _read_llava(path: Path, content: object, skipped: Counter) -> Iterator[dict]:
    turns: Counter = Counter()
    for index, record in enumerate(check_rows(path, content, "a list of records", LLAVA_KEYS)):
        image = record.get("image")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if not image:
            skipped["no picture"] += 1
            continue
        if isinstance(image, list):
            skipped["several pictures"] += 1
            continue
        image = safe_path(f"{path}: row {index}", image)
        for question, answer in _turn_pairs(path, index, record["conversations"]):
            question_id = f"{record['id']}-{turns[record['id']]}"
            turns[record["id"]] += 1
            yield qa_row(image, question_id, question, [answer], task="instruct")


def _read_docvqa(path: Path, content: object, split: str, root: Path, skipped: Counter) -> Iterator[dict]:
    for index, record in enumerate(check_rows(path, content, "a list under 'data'", DOCVQA_KEYS)):
        answers = [answer for answer in check_items(path, index, record, "answers", str) if answer.strip()]
        if not answers and split != "test":
            skipped["no answer"] += 1
            continue
        image = _place(root, split, safe_path(f"{path}: row {index}", record["image"]))
        yield qa_row(image, str(record["questionId"]), record["question"], answers, task="docvqa")


def _read_chartqa(path: Path, content: list, split: str, root: Path) -> Iterator[dict]:
    questions: Counter = Counter()
    for index, record in enumerate(check_rows(path, content, "a list of records", CHARTQA_KEYS)):
        name = safe_path(f"{path}: row {index}", record["imgname"])
        if not str(record["label"]).strip():
            raise InputError(f"{path}: row {index}: 'label' is empty")
        question_id = f"{name}-{questions[name]}"
        questions[name] += 1
        image = _place(root, split, f"png/{name}")
        yield qa_row(image, question_id, record["query"], [str(record["label"])], task="chartqa")


def _place(root: Path, split: str, image: str) -> str:
    return f"{split}/{image}" if (root / split / image).is_file() else image


def _turn_pairs(path: Path, index: int, turns: list) -> Iterator[tuple[str, str]]:
    well_formed = all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    if not turns or not well_formed or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise InputError(
            f"{path}: row {index}: 'conversations' is not (human, gpt) pairs of turns with a text 'value'"
        )
    for human, gpt in zip(turns[::2], turns[1::2]):
        if not gpt["value"].strip():
            raise InputError(f"{path}: row {index}: an answer is empty")
        yield human["value"].replace(IMAGE_MARKER, "").strip(), gpt["value"]


__all__ = ["Instruct", "read_stored", "safe_path"]
