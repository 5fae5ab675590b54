# SPDX-License-Identifier: Apache-2.0
"""Writes minimal ScanNet frame dumps and annotation files for the tests of the preparation."""

import json
from pathlib import Path

import numpy as np
import PIL.Image


# A turn about z by 30 degrees and a shift: neither the identity nor its own inverse nor transpose.
AXIS_ALIGNMENT = np.array(
    [[np.sqrt(0.75), 0.5, 0, 1.5], [-0.5, np.sqrt(0.75), 0, -2.0], [0, 0, 1, 0.25], [0, 0, 0, 1]]
)
INTRINSICS = np.array([[60.0, 0, 24, 0], [0, 62.0, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
SIZE = (48, 32)  # width, height
DEPTH_INTRINSICS = np.array([[20.0, 0, 8, 0], [0, 15.0, 4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # of 16 x 8 pixels


def camera_to_world(frame: int) -> np.ndarray:
    """[4, 4]: a camera at the height of a head that looks horizontally, another way in every frame."""
    angle = 0.1 + frame / 50
    right = np.array([np.sin(angle), -np.cos(angle), 0])
    down = np.array([0, 0, -1.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, np.cross(right, down)], axis=1)
    pose[:3, 3] = [1 + frame / 100, 2, 1.6]
    return pose


def depth_of(frame: int) -> np.ndarray:
    """[8, 8] millimetres with a histogram known by heart: see `test_depth_histogram`."""
    depth = np.zeros((8, 8), dtype=np.uint16)
    depth[0] = 499  # bin 0
    depth[1] = 500  # bin 1
    depth[2, :4] = 7999  # bin 15
    depth[2, 4:] = 8001  # beyond 8 m: bin 15 too
    return depth


def write_scan(root: Path, scene: str, frames=(0, 20, 100), lost=(), size=SIZE, alignment=AXIS_ALIGNMENT) -> Path:
    """Writes `root/scene`; the pictures are one colour each, so that decoding tells frames apart."""
    folder = root / scene
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", INTRINSICS)
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", DEPTH_INTRINSICS)
    lines = [f"colorWidth = {SIZE[0]}", f"colorHeight = {SIZE[1]}", "depthWidth = 16", "depthHeight = 8"]
    if alignment is not None:
        lines.append("axisAlignment = " + " ".join(str(number) for number in alignment.ravel()))
    (folder / f"{scene}.txt").write_text("\n".join(lines) + "\n")
    for frame in frames:
        PIL.Image.new("RGB", size, (frame, 100, 200)).save(folder / "color" / f"{frame}.jpg", quality=95)
        PIL.Image.fromarray(depth_of(frame)).save(folder / "depth" / f"{frame}.png")
        pose = np.full((4, 4), -np.inf) if frame in lost else camera_to_world(frame)
        np.savetxt(folder / "pose" / f"{frame}.txt", pose)
    return folder


def write_scanqa(folder: Path, split: str, scenes: list[str]) -> Path:
    """One question per scene; the test splits have no answers, as the official ones."""
    rows = []
    for scene in scenes:
        row = {"scene_id": scene, "question_id": f"{split}-{scene}-0", "question": "What colour is the chair?"}
        if split in ("train", "val"):
            row |= {"answers": ["brown", "dark brown"], "object_ids": [4, 5], "object_names": ["chair", "chair"]}
        rows.append(row)
    path = folder / f"ScanQA_v1.0_{split}.json"
    path.write_text(json.dumps(rows))
    return path


def write_sqa3d(folder: Path, split: str, scenes: list[str], first_id: int = 220602000000) -> tuple[Path, Path]:
    """One question with two alternative situations per scene; returns the questions' and the annotations' file."""
    questions, annotations = [], []
    for question_id, scene in enumerate(scenes, start=first_id):
        common = {"scene_id": scene, "question_id": question_id}
        questions.append(
            common
            | {"situation": "I face the door.", "alternative_situation": ["I see the door.", "A door is ahead."]}
            | {"question": "What is behind me?"}
        )
        annotations.append(
            common
            | {"question_type": "N/A", "answer_type": "other"}
            | {"answers": [{"answer": "table", "answer_confidence": "yes", "answer_id": 1}]}
            | {"rotation": {"_x": 0, "_y": 0, "_z": -0.6, "_w": 0.8}, "position": {"x": 0.5, "y": -1.25, "z": 0}}
        )
    paths = (
        folder / f"v1_balanced_questions_{split}_scannetv2.json",
        folder / f"v1_balanced_sqa_annotations_{split}_scannetv2.json",
    )
    paths[0].write_text(json.dumps({"info": {}, "questions": questions}))
    paths[1].write_text(json.dumps({"info": {}, "annotations": annotations}))
    return paths
