# SPDX-License-Identifier: Apache-2.0
"""DocVQA (single pages), from its JSON and from `lmms-lab/DocVQA`.

    {"data": [{"questionId", "question", "image": "documents/xnbl0037_1.png", "answers": [...], ...}]}

Source of the format: https://rrc.cvc.uab.es/?ch=17 (Single Page Document VQA).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..paths import resolve_inside
from ..preparation.annotations import qa_row
from ..preparation.left_out import LeftOut, check_new, check_record, check_texts
from ..preparation.parquet_pictures import HubTable, read_rows
from ..preparation.picture_questions import PictureQuestion
from ..preparation.stored_pictures import check_picture


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
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        rows = []
        with left_out.guard(number):
            check_record(record, KEYS)
            image = check_picture(record["image"])
            answers = check_texts(record, "answers")
            if not answers and split != "test":
                left_out.skip("no answer", number)
                continue
            check_new("questionId", str(record["questionId"]), seen, number)
            rows.append(_row(_find(root, split, image), record, answers))
        yield from map(PictureQuestion, rows)


def read_docvqa_table(path: Path, split: str, left_out: LeftOut) -> Iterator[PictureQuestion]:
    """The questions of a Parquet file of the Hub; a page is named as in the JSON. No picture is read."""
    seen: dict[str, int] = {}
    for number, record in enumerate(read_rows(path, DOCVQA_TABLE, pictures=False)):
        rows = []
        with left_out.guard(number):
            check_record(
                record, {"questionId": str, "question": str, "ucsf_document_id": str, "ucsf_document_page_no": str}
            )
            answers = [answer for answer in record["answers"] or [] if answer and answer.strip()]
            if not answers and split != "test":
                left_out.skip("no answer", number)
                continue
            check_new("questionId", record["questionId"], seen, number)
            page = f"documents/{record['ucsf_document_id']}_{record['ucsf_document_page_no']}.png"
            rows.append(_row(check_picture(page), record, answers))
        yield from (PictureQuestion(row, number) for row in rows)


def _row(page: str, record: dict, answers: list[str]) -> dict:
    return qa_row(page, str(record["questionId"]), record["question"], answers, task="docvqa")


def _find(root: Path, split: str, image: str) -> str:
    candidates = (image, f"{split}/{image}", PurePosixPath(image).name)
    return next((candidate for candidate in candidates if resolve_inside(root, candidate).is_file()), image)


__all__ = ["DOCVQA_TABLE", "read_docvqa", "read_docvqa_table"]
