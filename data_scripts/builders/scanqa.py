# SPDX-License-Identifier: Apache-2.0
"""ScanQA v1.0 (Azuma et al., CVPR 2022; https://github.com/ATR-DBI/ScanQA) over ScanNet scans."""

import re
from pathlib import Path

from ..preparation.annotations import (
    Annotations,
    InputError,
    compare_with_official,
    group_by_scene,
    list_of_rows,
    load_json,
    one_file_per_split,
    qa_row,
)
from ..preparation.base import Sources
from ..preparation.left_out import BadRecordError, LeftOut, check_items, check_new, check_record
from ..preparation.scans import ScanNetBuilder, check_scene_id


FILE_NAME = re.compile(r"ScanQA_v1\.0_(train|val|test_w_obj|test_wo_obj)\.json")
QUESTION_KEYS = {"scene_id": str, "question_id": str, "question": str}
ANSWER_KEYS = {"answers": list, "object_ids": list, "object_names": list}
QUESTIONS = {"train": 25563, "val": 4675, "test_w_obj": 4976, "test_wo_obj": 6149}
SCENES = {"train": 562, "val": 71, "test_w_obj": 70, "test_wo_obj": 97}


class ScanQA(ScanNetBuilder):
    """Questions about a scan; `answers` are the annotators' (several of equal standing), `object_ids` the ScanNet
    instances asked about. The official test files come without answers: theirs are empty."""

    TITLE = "ScanQA"
    SOURCE = (
        "Questions: ScanQA v1.0 (Azuma et al., CVPR 2022, https://github.com/ATR-DBI/ScanQA). "
        "Views: ScanNet (Dai et al., CVPR 2017, http://www.scan-net.org)."
    )
    LICENCE = (
        "Questions and answers of ScanQA: CC BY-NC-SA 3.0. Pictures, poses and depth of ScanNet: the ScanNet terms of "
        "use, which do not allow passing them on: keep a repo made from ScanNet private."
    )
    LICENCES = ("cc-by-nc-sa-3.0", "scannet-terms-of-use")
    ABOUT = (
        "`object_ids` are ScanNet instance ids. Splits whose official file has no answers have empty `answers`: ScanQA's "
        "`test_w_obj` and `test_wo_obj`, whose server closed in February 2026. Report `val`."
    )

    @classmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads `ScanQA_v1.0_{train,val,test_w_obj,test_wo_obj}.json`. Rows with a fault are left out, counted and named.

        Raises:
            InputError: a file has another name or content, none of its rows can be used, or two are for the same split.
        """
        paths = {}
        for path in sources.annotations:
            name = FILE_NAME.fullmatch(path.name)
            if name is None:
                raise InputError(f"{path}: not named ScanQA_v1.0_{{train,val,test_w_obj,test_wo_obj}}.json")
            one_file_per_split(name[1], path, paths)
        scenes, notes, faults = {}, [], []
        for split, path in paths.items():
            left_out = LeftOut(path)
            scenes[split] = group_by_scene(_read_split(split, path, left_out))
            faults += filter(None, [left_out.first_fault()])
            if not scenes[split]:
                raise InputError(left_out.first_fault())
            notes += left_out.notes()
            asked = sum(len(scene.questions) for scene in scenes[split])
            notes += compare_with_official(path.name, asked, QUESTIONS, split, "questions")
            notes += compare_with_official(path.name, len(scenes[split]), SCENES, split, "scenes")
        return Annotations(scenes, notes, faults)


def _read_split(split: str, path: Path, left_out: LeftOut) -> list[dict]:
    answered = split in ("train", "val")
    keys = QUESTION_KEYS | ANSWER_KEYS if answered else QUESTION_KEYS
    rows: list[dict] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(list_of_rows(path, load_json(path), "a list of questions")):
        with left_out.guard(number):
            check_record(row, keys)
            answers = check_items(row, "answers", str)
            if answered and not any(answer.strip() for answer in answers):
                raise BadRecordError("'answers' is empty")
            check_new("question_id", row["question_id"], seen, number)
            rows.append(
                qa_row(
                    scene_id=check_scene_id(row["scene_id"]),
                    question_id=row["question_id"],
                    question=row["question"],
                    answers=answers,
                    task="scanqa",
                    object_ids=check_items(row, "object_ids", int),
                    object_names=check_items(row, "object_names", str),
                )
            )
    return rows


__all__ = ["ScanQA"]
