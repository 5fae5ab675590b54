# SPDX-License-Identifier: Apache-2.0
"""Conversations in the format of LLaVA: LLaVA-Instruct-150K, LLaVA-1.5's mix of 665K, ShareGPT4V.

    [{"id", "image": "coco/train2017/000000000009.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."},
                                                                         {"from": "gpt", "value": "..."}]}]

Source of the format: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md. On the Hub these releases are the
same JSON files.
"""

from collections import Counter
from collections.abc import Iterator

from ..preparation.annotations import qa_row
from ..preparation.left_out import BadRecordError, LeftOut, check_record
from ..preparation.picture_questions import PictureQuestion
from ..preparation.stored_pictures import check_picture


IMAGE_MARKER = "<image>"
KEYS = {"id": (str, int), "conversations": list}


def read_llava(records: list, left_out: LeftOut) -> Iterator[PictureQuestion]:
    """Every (human, gpt) pair of turns is a question. Records with no picture, which are text alone (41 thousand of the mix
    of 665K), and with several are skipped; those whose turns do not alternate or hold an empty text are faults.
    """
    turns: Counter = Counter()
    for number, record in enumerate(records):
        rows = []
        with left_out.guard(number):
            check_record(record, KEYS)
            image = record.get("image")
            if isinstance(image, list) and len(image) == 1:
                image = image[0]
            if not image:
                left_out.skip("no picture", number)
                continue
            if isinstance(image, list):
                left_out.skip("several pictures", number)
                continue
            check_picture(image)
            record_id = str(record["id"])
            pairs = enumerate(_turn_pairs(record["conversations"]), start=turns[record_id])
            rows = [
                qa_row(image, f"{record_id}-{turn}", question, [answer], task="instruct")
                for turn, (question, answer) in pairs
            ]
            turns[record_id] += len(rows)
        yield from map(PictureQuestion, rows)


def _turn_pairs(turns: list) -> list[tuple[str, str]]:
    well_formed = all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    if not turns or not well_formed or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise BadRecordError("'conversations' is not (human, gpt) pairs of turns with a text 'value'")
    pairs = []
    for human, gpt in zip(turns[::2], turns[1::2]):
        question = human["value"].replace(IMAGE_MARKER, "").strip()
        if not question:
            raise BadRecordError("a question is empty")
        if not gpt["value"].strip():
            raise BadRecordError("an answer is empty")
        pairs.append((question, gpt["value"]))
    return pairs


__all__ = ["read_llava"]
