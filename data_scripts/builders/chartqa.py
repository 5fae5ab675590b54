# SPDX-License-Identifier: Apache-2.0
"""ChartQA, from its JSON and from `HuggingFaceM4/ChartQA`.

    [{"imgname": "41699051005347.png", "query", "label"}]

with the pictures in `<split>/png`. Source of the format: https://github.com/vis-nlp/ChartQA.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .annotations import qa_row
from .parquet_pictures import HubTable, read_rows
from .picture_questions import BadRecordError, LeftOut, PictureQuestion, check_record
from .pictures import is_safe


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
        try:
            check_record(record, KEYS)
            name, label = record["imgname"], str(record["label"])
            if not is_safe(name):
                raise BadRecordError(f"the picture {name!r} is not a path under the image root")
            if not label.strip():
                raise BadRecordError("'label' is empty")
        except BadRecordError as error:
            left_out.fault(str(error), number)
            continue
        in_split = f"{split}/png/{name}"
        image = in_split if (root / in_split).is_file() else f"png/{name}"
        yield PictureQuestion(_row(image, name, record["query"], [label], numbers))


def read_chartqa_table(path: Path, split: str, left_out: LeftOut, numbers: Counter) -> Iterator[PictureQuestion]:
    """The questions of a Parquet file of the Hub. Its pictures have no names: equal ones of a split are one, `<split>/<digest>`."""
    for number, record in enumerate(read_rows(path, CHARTQA_TABLE, pictures=True)):
        labels = [label for label in record["label"] or [] if label and label.strip()]
        content = (record["image"] or {}).get("bytes")
        if not content or not record["query"] or not labels:
            left_out.fault("'image', 'query' or 'label' is empty", number)
            continue
        name = hashlib.sha256(content).hexdigest()[:20]
        yield PictureQuestion(_row(f"{split}/{name}", name, record["query"], labels, numbers), number)


def _row(image: str, name: str, question: str, answers: list[str], numbers: Counter) -> dict:
    question_id = f"{name}-{numbers[image]}"
    numbers[image] += 1
    return qa_row(image, question_id, question, answers, task="chartqa")


__all__ = ["CHARTQA_TABLE", "read_chartqa", "read_chartqa_table"]
