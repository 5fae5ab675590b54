# SPDX-License-Identifier: Apache-2.0
"""ChartQA, from its JSON and from `HuggingFaceM4/ChartQA`.

    [{"imgname": "41699051005347.png", "query", "label"}]

with the pictures in `<split>/png`. Source of the format: https://github.com/vis-nlp/ChartQA.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..paths import resolve_inside
from ..preparation.annotations import qa_row
from ..preparation.left_out import BadRecordError, LeftOut, check_record
from ..preparation.parquet_pictures import HubTable, read_rows
from ..preparation.picture_questions import PictureQuestion
from ..preparation.stored_pictures import check_picture


KEYS = {"imgname": str, "query": str, "label": (str, int, float)}
CHARTQA_TABLE = HubTable("HuggingFaceM4/ChartQA", {"image": "image", "query": "string", "label": "strings"})


def read_chartqa(
    records: list, split: str, root: Path, left_out: LeftOut, numbers: Counter
) -> Iterator[PictureQuestion]:
    """The questions of an official JSON file. `<split>/png` and `png` are where a picture is looked for under the image root.

    Args:
        numbers: how many questions a picture has had.
    """
    for number, record in enumerate(records):
        rows = []
        with left_out.guard(number):
            check_record(record, KEYS)
            name, label = check_picture(record["imgname"]), record["label"]
            if isinstance(label, float) and not math.isfinite(label):
                raise BadRecordError("'label' is no finite number")
            if not str(label).strip():
                raise BadRecordError("'label' is empty")
            in_split, other = f"{split}/png/{name}", f"png/{name}"
            image = in_split if resolve_inside(root, in_split).is_file() else other
            rows.append(_row(image, name, record["query"], [str(label)], numbers))
        yield from map(PictureQuestion, rows)


def read_chartqa_table(path: Path, split: str, left_out: LeftOut, numbers: Counter) -> Iterator[PictureQuestion]:
    """The questions of a Parquet file of the Hub. Its pictures have no names: equal ones of a split are one, `<split>/<digest>`."""
    for number, record in enumerate(read_rows(path, CHARTQA_TABLE, pictures=True)):
        rows = []
        with left_out.guard(number):
            labels = [label for label in record["label"] or [] if label and label.strip()]
            content = (record["image"] or {}).get("bytes")
            if not content or not record["query"] or not labels:
                raise BadRecordError("'image', 'query' or 'label' is empty")
            name = hashlib.sha256(content).hexdigest()[:20]
            rows.append(_row(f"{split}/{name}", name, record["query"], labels, numbers))
        yield from (PictureQuestion(row, number) for row in rows)


def _row(image: str, name: str, question: str, answers: list[str], numbers: Counter) -> dict:
    row = qa_row(image, f"{name}-{numbers[image]}", question, answers, task="chartqa")
    numbers[image] += 1
    return row


__all__ = ["CHARTQA_TABLE", "read_chartqa", "read_chartqa_table"]
