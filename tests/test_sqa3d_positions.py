# SPDX-License-Identifier: Apache-2.0
"""Where SQA3D's askers stand, in the world of the views."""

import re

import datasets
import numpy as np

from data_scripts.prepare import main
from data_scripts.synthetic import Settings, build_scene, generate


SETTINGS = Settings(scenes=4, views=2, image_size=40, seed=5, instruct_images=0)


def turned(quaternion: np.ndarray, direction: list[float]) -> np.ndarray:
    vector, w = quaternion[:3], quaternion[3]
    return direction + 2 * np.cross(vector, np.cross(vector, direction) + w * np.array(direction))


def prepare(raw, output):
    files = sorted(str(path) for path in (raw / "sqa3d").iterdir())
    arguments = ["--scannet-root", str(raw / "scannet"), "--output", str(output), "--annotations", *files]
    assert main(["sqa3d", *arguments]) == 0
    return [row for split in datasets.load_dataset(str(output)).values() for row in split]


def test_positions_are_in_the_world_of_the_views(tmp_path, monkeypatch):
    """Catches the alignment left out or inverted, a position still relative to the mesh, and a rotation left in the raw frame;
    and, without a mesh, a position that claims to be in the aligned frame."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    generate(SETTINGS, tmp_path / "raw", progress=False)
    rows = prepare(tmp_path / "raw", tmp_path / "with")
    assert len(rows) > 8
    assert {row["position_frame"] for row in rows} == {"aligned"}
    for row in rows:
        if "-" in row["question_id"]:  # the same question with the situation in other words
            continue
        scene = build_scene(SETTINGS, int(row["scene_id"][5:9]))
        at, target = re.search(
            r"(?:the middle of the room|(?:on|next to) the (.+?)) and facing the (.+)\.", row["situation"]
        ).groups()
        pieces = {piece.name: piece for piece in scene.pieces}
        position = np.array(row["position"])
        if at is None:
            assert np.abs(position[:2]).max() < 0.5
        else:
            assert pieces[at].distance(position[:2]) < 0.6
        faced = turned(np.array(row["rotation"]), [-1.0, 0, 0])
        towards = pieces[target].position - position[:2]
        np.testing.assert_allclose(faced[:2], towards / np.linalg.norm(towards), atol=1e-3)
    for mesh in (tmp_path / "raw" / "scannet").glob("*/*.ply"):
        mesh.unlink()
    without = prepare(tmp_path / "raw", tmp_path / "without")
    assert {row["position_frame"] for row in without} == {"annotation"}
    assert {row["position"][2] for row in without} == {0.0}
