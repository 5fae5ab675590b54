# SPDX-License-Identifier: Apache-2.0
"""SQA3D (Ma et al., ICLR 2023; https://github.com/SilongYong/SQA3D) over ScanNet scans."""

import re
from pathlib import Path

import numpy as np

from ..scannet import mesh_center
from ..views import UnreadableFileError
from .annotations import (
    Annotations,
    InputError,
    SceneInput,
    check_items,
    check_rows,
    compare_with_official,
    group_by_scene,
    load_json,
    one_file_per_split,
    qa_row,
)
from .base import Options, PreparedScene, Remark, Sources
from .scans import ScanNetBuilder


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
        `v1_balanced_sqa_annotations_{split}_scannetv2.json`.

        Raises:
            InputError: a file has another name or content, a split has only one of its two files or two of the same,
                or questions and annotations do not match one to one.
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
        scenes, notes = {}, []
        for split, path in questions.items():
            scenes[split] = group_by_scene(_read_split(split, path, annotations[split]))
            asked = sum("-" not in row["question_id"] for scene in scenes[split] for row in scene.questions)
            notes += compare_with_official(path.name, asked, QUESTIONS, split, "questions")
        return Annotations(scenes, notes)

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
    if not answers or not all(
        isinstance(answer.get("answer"), str) and answer["answer"].strip() for answer in answers
    ):
        raise InputError(f"{path}: row {index}: 'answers' is not a list of objects with an 'answer'")
    return [answer["answer"] for answer in answers]


def _read_numbers(path: Path, index: int, row: dict, key: str, names: tuple[str, ...]) -> list[float]:
    for name in names:
        if not isinstance(row[key].get(name), (int, float)) or not np.isfinite(row[key][name]):
            raise InputError(f"{path}: row {index}: '{key}' has no number '{name}'")
    return [float(row[key][name]) for name in names]


__all__ = ["SQA3D", "align"]
