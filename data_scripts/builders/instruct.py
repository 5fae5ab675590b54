# SPDX-License-Identifier: Apache-2.0
"""Questions about single pictures: LLaVA-Instruct, ShareGPT4V, DocVQA and ChartQA, each as its owners ship it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..files import UnreadableFileError
from ..paths import resolve_inside
from ..preparation.annotations import Annotations, InputError, SceneInput, list_of_rows, load_json, split_of_name
from ..preparation.base import Options, PreparationBuilder, PreparedScene, Sources
from ..preparation.left_out import LeftOut
from ..preparation.parquet_pictures import find_table, read_picture_of_row
from ..preparation.picture_questions import PictureQuestion
from ..preparation.stored_pictures import read_stored, stored
from .chartqa import CHARTQA_TABLE, read_chartqa, read_chartqa_table
from .docvqa import DOCVQA_TABLE, read_docvqa, read_docvqa_table
from .llava import read_llava


class Instruct(PreparationBuilder):
    """Conversations about single pictures. A scene is one picture, its id the picture's path under the image root;
    there is no geometry. Every (human, gpt) pair of turns is a question of its own.

    `question_id` is "<record id>-<turn>" (DocVQA: the question's id; ChartQA: "<picture>-<number>"). Records that share an
    id, as LLaVA-Instruct's do when they are about the same picture, are numbered on. With several JSON files for a split,
    the file's name comes first.
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
    SOURCES = ()
    OPTIONAL_SOURCES = ("annotations", "image_root")  # or --source: see data_scripts.instruct_sources
    OPTIONS = ("image_size", "val_share")
    SCENES_PER_BATCH = 100

    @classmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads JSON lists of `{"id", "image", "conversations"}` (LLaVA-Instruct, ShareGPT4V) or of
        `{"imgname", "query", "label"}` (ChartQA), `{"data": [{"questionId", "question", "image", "answers"}]}` (DocVQA), and
        Parquet files of `lmms-lab/DocVQA` and `HuggingFaceM4/ChartQA`, which hold the pictures.
        A file's split is the last of the words train, val, validation and test in its name, and train if there is none.
        Records with no picture or with several, those without answers, and those with a fault are left out and counted.

        Raises:
            InputError: a file is malformed or nothing of it can be used, or two files mean different pictures by one name.
        """
        pictures: dict[str, dict[str, list[str]]] = {}  # rows as JSON, see `SceneInput.packed`
        rows_of: dict[str, tuple[int, int] | None] = {}  # picture to file and row, or None: it is a file
        notes: list[str] = []
        faults: list[str] = []
        splits = [split_of_name(path, notes) for path in sources.annotations]
        json_files = Counter(split for split, path in zip(splits, sources.annotations) if not is_table(path))
        numbers: dict[str, Counter] = {split: Counter() for split in splits}
        first_file: dict[str, int] = {}
        for file, (path, split) in enumerate(zip(sources.annotations, splits)):
            left_out, found = LeftOut(path), pictures.setdefault(split, {})
            any_there = False
            for question in _read_file(path, split, sources.image_root, left_out, numbers[split]):
                any_there, row = True, question.row
                picture = row["scene_id"]
                place = None if question.table_row is None else (file, question.table_row)
                before = rows_of.setdefault(picture, place)
                first = first_file.setdefault(picture, file)
                if (before is None) != (place is None):
                    raise InputError(
                        f"the picture {picture} is named in {sources.annotations[first]} and in {path}, of which one holds its "
                        "pictures and the other names files: give one of them"
                    )
                if json_files[split] > 1 and place is None:
                    row["question_id"] = f"{path.stem}-{row['question_id']}"
                found.setdefault(picture, []).append(json.dumps(row))
            fault = left_out.first_fault()
            if not any_there:
                raise InputError(
                    fault or f"{path}: no record has exactly one picture and an answer; {'; '.join(left_out.notes())}"
                )
            faults += [fault] if fault else []
            notes += left_out.notes()
        scenes = {
            split: [
                SceneInput(
                    picture, f"[{', '.join(rows)}]", None if rows_of[picture] is None else list(rows_of[picture])
                )
                for picture, rows in found.items()
            ]
            for split, found in pictures.items()
        }
        return Annotations(scenes, notes + _shared_charts(rows_of), faults)

    @classmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        if scene.details is not None:
            yield sources.annotations[scene.details[0]]
            return
        path = resolve_inside(sources.image_root, scene.scene_id)
        if path.is_file():
            yield path

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        if scene.details is None:
            content = read_stored(resolve_inside(sources.image_root, scene.scene_id), options.image_size)[0]
        else:
            file, row = scene.details
            path = sources.annotations[file]
            content = read_picture_of_row(path, row)
            if content is None:
                raise UnreadableFileError(path, f"row {row}: 'image' is empty")
            try:
                content = stored(content, path, options.image_size)[0]
            except UnreadableFileError as error:
                raise UnreadableFileError(path, f"row {row}: {error.reason}") from None
        return PreparedScene([content], ["0"], None, scene.questions)


def _shared_charts(rows_of: dict[str, tuple[int, int] | None]) -> list[str]:
    """Says how many pictures that are named by their content, as ChartQA's of the Hub, are in two splits."""
    splits: dict[str, set[str]] = {}
    for picture, place in rows_of.items():
        if place is not None:
            splits.setdefault(picture.rpartition("/")[2], set()).add(picture)
    shared = [name for name, pictures in splits.items() if len(pictures) > 1]
    if not shared:
        return []
    return [f"{len(shared)} pictures are in several splits, as shipped, for example {min(splits[shared[0]])}"]


def is_table(path: Path) -> bool:
    """Whether a file holds its pictures."""
    return path.suffix.lower() == ".parquet"


def _read_file(
    path: Path, split: str, root: Path | None, left_out: LeftOut, numbers: Counter
) -> Iterator[PictureQuestion]:
    if is_table(path):
        if find_table(path, (DOCVQA_TABLE, CHARTQA_TABLE)) is DOCVQA_TABLE:
            yield from read_docvqa_table(path, split, left_out)
        else:
            yield from read_chartqa_table(path, split, left_out, numbers)
        return
    if root is None:
        raise InputError(
            f"{path}: names its pictures; say in which folder they are (--image-root, or --source NAME=FILE,ROOT)"
        )
    content = load_json(path)
    documents = isinstance(content, dict) and "data" in content
    records = content["data"] if documents else content
    list_of_rows(path, records, "a list under 'data'" if documents else "a list of records")
    if documents:
        yield from read_docvqa(records, split, root, left_out)
    elif 2 * sum(isinstance(record, dict) and "imgname" in record for record in records) >= len(records):
        yield from read_chartqa(records, split, root, left_out, Counter())
    else:
        yield from read_llava(records, left_out)


__all__ = ["Instruct", "is_table"]
