# SPDX-License-Identifier: Apache-2.0
"""DocVQA (single pages), from its JSON and from `lmms-lab/DocVQA`.

    {"data": [{"questionId", "question", "image": "documents/xnbl0037_1.png", "answers": [...], ...}]}

Source of the format: https://rrc.cvc.uab.es/?ch=17 (Single Page Document VQA).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .annotations import qa_row
from .parquet_pictures import HubTable, read_rows
from .picture_questions import BadRecordError, LeftOut, PictureQuestion, check_record, check_texts
from .pictures import is_safe


KEYS = {"questionId": (str, int), "question": str, "image": str}
DOCVQA_TABLE = HubTable(
    "lmms-lab/DocVQA",
    {
        "questionId": "string",
        "question": "string",
        "image": "image",
        "ucsf_document_id": "string",
        "ucsf_document_page_no": "string",
        "answers": "strings",
    },
)


def read_docvqa(records: list, split: str, root: Path, left_out: LeftOut) -> Iterator[PictureQuestion]:
    """The questions of the official JSON. A picture is looked for under the image root, in its folder of the split's name, and
    without `documents/` (the official folder is `spdocvqa_images`)."""
    for number, record in enumerate(records):
        try:
            check_record(record, KEYS)
            if not is_safe(record["image"]):
                raise BadRecordError(f"the picture {record['image']!r} is not a path under the image root")
            answers = check_texts(record, "answers")
        except BadRecordError as error:
            left_out.fault(str(error), number)
            continue
        if not answers and split != "test":
            left_out.skip("no answer", number)
            continue
        yield PictureQuestion(_row(_find(root, split, record["image"]), record, answers))


def read_docvqa_table(path: Path, split: str, left_out: LeftOut) -> Iterator[PictureQuestion]:
    """The questions of a Parquet file of the Hub; a page is named as in the JSON. No picture is read."""
    for number, record in enumerate(read_rows(path, DOCVQA_TABLE, pictures=False)):
        try:
            check_record(
                record, {"questionId": str, "question": str, "ucsf_document_id": str, "ucsf_document_page_no": str}
            )
        except BadRecordError as error:
            left_out.fault(str(error), number)
            continue
        answers = [answer for answer in record["answers"] or [] if answer and answer.strip()]
        if not answers and split != "test":
            left_out.skip("no answer", number)
            continue
        page = f"documents/{record['ucsf_document_id']}_{record['ucsf_document_page_no']}.png"
        yield PictureQuestion(_row(page, record, answers), number)


def _row(page: str, record: dict, answers: list[str]) -> dict:
    return qa_row(page, str(record["questionId"]), record["question"], answers, task="docvqa")


def _find(root: Path, split: str, image: str) -> str:
    candidates = (image, f"{split}/{image}", PurePosixPath(image).name)
    return next((candidate for candidate in candidates if (root / candidate).is_file()), image)


__all__ = ["DOCVQA_TABLE", "read_docvqa", "read_docvqa_table"]
