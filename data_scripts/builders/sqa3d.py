# SPDX-License-Identifier: Apache-2.0
"""SQA3D (Ma et al., ICLR 2023; https://github.com/SilongYong/SQA3D) over ScanNet scans."""

import math
import re
from pathlib import Path

import numpy as np

from ..files import UnreadableFileError
from ..preparation.annotations import (
    Annotations,
    InputError,
    SceneInput,
    compare_with_official,
    group_by_scene,
    list_of_rows,
    load_json,
    one_file_per_split,
    qa_row,
)
from ..preparation.base import Options, PreparedScene, Remark, Sources
from ..preparation.left_out import BadRecordError, LeftOut, check_items, check_new, check_record
from ..preparation.scans import ScanNetBuilder, check_scene_id
from ..readers.scannet import mesh_center
from ..schema import check_question


FILE_NAME = re.compile(r"v1_balanced_(questions|sqa_annotations)_(train|val|test)_scannetv2\.json")
QUESTION_KEYS = {
    "scene_id": str,
    "question_id": int,
    "question": str,
    "situation": str,
    "alternative_situation": list,
}
QUESTIONS = {"train": 26623, "val": 3261, "test": 3519}
ANNOTATION_KEYS = {"scene_id": str, "question_id": int, "answers": list, "position": dict, "rotation": dict}


class SQA3D(ScanNetBuilder):
    """Questions asked from a described place in the scan.

    In the train split a question comes once with its `situation` and once more with each alternative description of
    it, `question_id` then ending in "-1", "-2"; in val and test only with `situation`.

    The files state positions in metres from the centre of the bounding box of the raw (not axis-aligned) mesh. Where the scan
    has its mesh, `<scene>_vh_clean_2.ply`, `position` and `rotation` are in the world of the scene's `R`, `t` and
    `position_frame` is "aligned"; where it has none they are as annotated and `position_frame` is "annotation".
    `rotation` is a quaternion x, y, z, w that turns the direction (-1, 0, 0) to the one faced.
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
    LICENCES = ("cc-by-4.0", "scannet-terms-of-use")
    ABOUT = (
        "`situation` says where the asker stands. In train a question also comes with each alternative description of "
        'its situation (`question_id` ending in "-1", "-2"). `position` and `rotation` (quaternion x, y, z, w) are '
        'those of the asker, by `position_frame`: "aligned": in the frame of `R`, `t`; "annotation": as annotated, in the '
        "axes of the raw (not axis-aligned) mesh and relative to the centre of its bounding box, because the mesh was not "
        "there. The rotation turns the direction (-1, 0, 0) to the one the asker faces."
    )

    @classmethod
    def read_annotations(cls, sources: Sources) -> Annotations:
        """Reads `v1_balanced_questions_{split}_scannetv2.json` and
        `v1_balanced_sqa_annotations_{split}_scannetv2.json`. Rows with a fault, and those without a partner in the other file, are
        left out, counted and named.

        Raises:
            InputError: a file has another name or content, a split has only one of its two files or two of the same,
                or no question can be used.
        """
        questions, annotations = {}, {}
        for path in sources.annotations:
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
        scenes, notes, faults = {}, [], []
        for split, path in questions.items():
            left_out = LeftOut(path), LeftOut(annotations[split])
            scenes[split] = group_by_scene(_read_split(split, *left_out))
            faults += [fault for file in left_out if (fault := file.first_fault())]
            if not scenes[split]:
                raise InputError("; ".join(fault for file in left_out if (fault := file.first_fault())))
            notes += [note for file in left_out for note in file.notes()]
            asked = sum("-" not in row["question_id"] for scene in scenes[split] for row in scene.questions)
            notes += compare_with_official(path.name, asked, QUESTIONS, split, "questions")
        return Annotations(scenes, notes, faults)

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        prepared = super().read_scene(sources, options, scene)
        questions = prepared.questions
        scan = cls.scan_of(sources, scene)
        try:
            center = None if scan.mesh_file is None else mesh_center(scan.mesh_file.parent)
            reason = f"no {scene.scene_id}_vh_clean_2.ply"
            alignment = None if center is None else scan.axis_alignment
        except UnreadableFileError as error:
            alignment, reason = None, f"{Path(error.file).name}: {error.reason}"
        if alignment is None:
            remark = Remark("positions left in the annotation's own frame", len(questions), reason)
            prepared.remarks.append(remark)
            prepared.questions = [row | {"position_frame": "annotation"} for row in questions]
        else:
            prepared.questions = [row | align(row, center, alignment) for row in questions]
        return prepared


def align(row: dict, center: np.ndarray, alignment: np.ndarray) -> dict:
    """A question's position and rotation in the aligned frame.

    Args:
        row: `position` `[3]`, metres from `center`, and `rotation` `[4]`, quaternion x, y, z, w, both in the raw axes.
        center: `[3]` of the raw mesh's bounding box, metres.
        alignment: `[4, 4]` raw frame to aligned frame.
    """
    position = alignment @ [*(np.array(row["position"]) + center), 1]
    x, y, z, w = _quaternion(alignment[:3, :3])
    a, b, c, d = row["rotation"]
    rotation = [  # the product of the two quaternions: first the annotated rotation, then the alignment
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    ]
    return {"position": position[:3].tolist(), "rotation": rotation, "position_frame": "aligned"}


def _quaternion(rotation: np.ndarray) -> list[float]:
    """x, y, z, w of a rotation matrix `[3, 3]`: the eigenvector of the largest eigenvalue (Bar-Itzhack, 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    symmetric = [
        [a - e - i, d + b, g + c, h - f],
        [d + b, e - a - i, h + f, c - g],
        [g + c, h + f, i - a - e, d - b],
        [h - f, c - g, d - b, a + e + i],
    ]
    return np.linalg.eigh(np.array(symmetric))[1][:, 3].tolist()


def _read_split(split: str, questions: LeftOut, annotations: LeftOut) -> list[dict]:
    answered: dict[int, tuple[int, str, dict]] = {}  # question to row, scene, and what is known of it
    seen: dict[int, int] = {}
    for number, row in enumerate(_read_rows(annotations.path, "annotations")):
        with annotations.guard(number):
            check_record(row, ANNOTATION_KEYS)
            check_new("question_id", row["question_id"], seen, number)
            fields = {
                "answers": _read_answers(row),
                "position": _read_numbers(row, "position", ("x", "y", "z")),
                "rotation": _read_numbers(row, "rotation", ("_x", "_y", "_z", "_w")),
            }
            check_question(fields)
            answered[row["question_id"]] = number, check_scene_id(row["scene_id"]), fields

    rows: list[dict] = []
    seen = {}
    for number, row in enumerate(_read_rows(questions.path, "questions")):
        with questions.guard(number):
            check_record(row, QUESTION_KEYS)
            question_id = row["question_id"]
            check_new("question_id", question_id, seen, number)
            situations = [row["situation"]]
            alternatives = check_items(row, "alternative_situation", str)
            if split == "train":
                situations += alternatives
            if question_id not in answered:
                raise BadRecordError(f"question_id {question_id} has no annotation in {annotations.path.name}")
            _, scene_id, fields = answered[question_id]
            if scene_id != check_scene_id(row["scene_id"]):
                raise BadRecordError(
                    f"question_id {question_id} is about {row['scene_id']} here but about {scene_id} in "
                    f"{annotations.path.name}"
                )
            rows += [
                qa_row(
                    scene_id=scene_id,
                    question_id=f"{question_id}-{variant}" if variant else str(question_id),
                    question=row["question"],
                    task="sqa3d",
                    situation=situation,
                    **fields,
                )
                for variant, situation in enumerate(situations)
            ]
    for question_id, (number, _, _) in answered.items():
        if question_id not in seen:
            annotations.fault(f"question_id {question_id} has no question in {questions.path.name}", number)
    return rows


def _read_rows(path: Path, key: str) -> list:
    content = load_json(path)
    if not isinstance(content, dict) or key not in content:
        raise InputError(f"{path}: expected an object with the list under '{key}'")
    return list_of_rows(path, content[key], f"a list of {key}")


def _read_answers(row: dict) -> list[str]:
    answers = check_items(row, "answers", dict)
    if not answers or not all(
        isinstance(answer.get("answer"), str) and answer["answer"].strip() for answer in answers
    ):
        raise BadRecordError("'answers' is not a list of objects with an 'answer'")
    return [answer["answer"] for answer in answers]


def _read_numbers(row: dict, key: str, names: tuple[str, ...]) -> list[float]:
    numbers = [row[key].get(name) for name in names]
    for name, number in zip(names, numbers):
        if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
            raise BadRecordError(f"'{key}' has no finite number '{name}'")
    return [float(number) for number in numbers]


__all__ = ["SQA3D", "align"]
