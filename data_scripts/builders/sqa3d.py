# SPDX-License-Identifier: Apache-2.0
"""SQA3D (Ma et al., ICLR 2023; https://github.com/SilongYong/SQA3D) over ScanNet frame dumps."""

import re
from collections.abc import Iterable
from pathlib import Path

from .base import (
    Annotations,
    InputError,
    ScanNetBuilder,
    check_items,
    check_rows,
    load_json,
    one_file_per_split,
    qa_row,
)


FILE_NAME = re.compile(r"v1_balanced_(questions|sqa_annotations)_(train|val|test)_scannetv2\.json")
QUESTION_KEYS = {
    "scene_id": str,
    "question_id": int,
    "question": str,
    "situation": str,
    "alternative_situation": list,
}
ANNOTATION_KEYS = {"scene_id": str, "question_id": int, "answers": list, "position": dict, "rotation": dict}


class SQA3D(ScanNetBuilder):
    """Questions asked from a described place in the scan.

    In the train split a question comes once with its `situation` and once more with each alternative description of
    it, `question_id` then ending in "-1", "-2"; in val and test only with `situation`.

    `position` is as annotated: metres, relative to the centre of the bounding box of the raw (not axis-aligned) mesh.
    It is NOT in the frame of the scene's `R`, `t`. `rotation` is the annotated quaternion x, y, z, w.
    """

    TITLE = "SQA3D"
    SOURCE = (
        "Questions: SQA3D v1 (Ma et al., ICLR 2023, https://github.com/SilongYong/SQA3D). "
        "Views: ScanNet (Dai et al., CVPR 2017, http://www.scan-net.org)."
    )
    LICENCE = (
        "Questions and answers of SQA3D: CC BY 4.0. Pictures, poses and depth of ScanNet: the ScanNet terms of use, "
        "which do not allow passing them on: keep a repo made from ScanNet private."
    )
    ABOUT = (
        "`situation` says where the asker stands. In train a question also comes with each alternative description of "
        'its situation (`question_id` ending in "-1", "-2"). `position` is as annotated: metres, relative to the '
        "centre of the bounding box of the raw (not axis-aligned) mesh, so not in the frame of `R`, `t`; "
        "`rotation` is the annotated quaternion (x, y, z, w) of the asker."
    )

    @classmethod
    def read_annotations(cls, files: Iterable[Path]) -> Annotations:
        """Reads `v1_balanced_questions_{split}_scannetv2.json` and
        `v1_balanced_sqa_annotations_{split}_scannetv2.json`.

        Raises:
            InputError: a file has another name or content, a split has only one of its two files or two of the same,
                or questions and annotations do not match one to one.
        """
        questions, annotations = {}, {}
        for path in files:
            name = FILE_NAME.fullmatch(path.name)
            if name is None:
                raise InputError(
                    f"{path}: not named v1_balanced_{{questions,sqa_annotations}}_{{train,val,test}}_scannetv2.json"
                )
            one_file_per_split(name[2], path, questions if name[1] == "questions" else annotations)
        for split in questions | annotations:
            if split not in questions:
                missing = annotations[split].with_name(f"v1_balanced_questions_{split}_scannetv2.json").name
                raise InputError(f"{annotations[split]}: its partner {missing} must be given too")
            if split not in annotations:
                missing = questions[split].with_name(f"v1_balanced_sqa_annotations_{split}_scannetv2.json").name
                raise InputError(f"{questions[split]}: its partner {missing} must be given too")
        return Annotations({split: _read_split(split, questions[split], annotations[split]) for split in questions})


def _read_split(split: str, question_path: Path, annotation_path: Path) -> list[dict]:
    annotations = {}
    for index, row in enumerate(_read_rows(annotation_path, "annotations", ANNOTATION_KEYS)):
        if row["question_id"] in annotations:
            raise InputError(f"{annotation_path}: row {index}: question_id {row['question_id']} occurs twice")
        annotations[row["question_id"]] = index, row

    rows, joined = [], set()
    for index, question in enumerate(_read_rows(question_path, "questions", QUESTION_KEYS)):
        question_id = question["question_id"]
        if question_id not in annotations:
            raise InputError(
                f"{question_path}: row {index}: question_id {question_id} has no annotation in {annotation_path.name}"
            )
        annotation_index, annotation = annotations[question_id]
        joined.add(question_id)
        if annotation["scene_id"] != question["scene_id"]:
            raise InputError(
                f"{question_path}: row {index}: question_id {question_id} is about {question['scene_id']} here "
                f"but about {annotation['scene_id']} in {annotation_path.name}"
            )
        situations = [question["situation"]]
        alternatives = check_items(question_path, index, question, "alternative_situation", str)
        if split == "train":
            situations += alternatives
        answered = {
            "answers": _read_answers(annotation_path, annotation_index, annotation),
            "position": _read_numbers(annotation_path, annotation_index, annotation, "position", ("x", "y", "z")),
            "rotation": _read_numbers(
                annotation_path, annotation_index, annotation, "rotation", ("_x", "_y", "_z", "_w")
            ),
        }
        for number, situation in enumerate(situations):
            rows.append(
                qa_row(
                    scene_id=question["scene_id"],
                    question_id=f"{question_id}-{number}" if number else str(question_id),
                    question=question["question"],
                    task="sqa3d",
                    situation=situation,
                    **answered,
                )
            )
    unasked = next((key for key in annotations if key not in joined), None)
    if unasked is not None:
        index = annotations[unasked][0]
        raise InputError(
            f"{annotation_path}: row {index}: question_id {unasked} has no question in {question_path.name}"
        )
    return rows


def _read_rows(path: Path, key: str, keys: dict) -> list[dict]:
    content = load_json(path)
    if not isinstance(content, dict) or key not in content:
        raise InputError(f"{path}: expected an object with the list under '{key}'")
    return check_rows(path, content[key], f"a list of {key}", keys)


def _read_answers(path: Path, index: int, row: dict) -> list[str]:
    answers = check_items(path, index, row, "answers", dict)
    if not answers or not all(isinstance(answer.get("answer"), str) for answer in answers):
        raise InputError(f"{path}: row {index}: 'answers' is not a list of objects with an 'answer'")
    return [answer["answer"] for answer in answers]


def _read_numbers(path: Path, index: int, row: dict, key: str, names: tuple[str, ...]) -> list[float]:
    for name in names:
        if not isinstance(row[key].get(name), (int, float)):
            raise InputError(f"{path}: row {index}: '{key}' has no number '{name}'")
    return [float(row[key][name]) for name in names]


__all__ = ["SQA3D"]
