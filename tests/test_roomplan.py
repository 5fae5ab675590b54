# SPDX-License-Identifier: Apache-2.0
"""The RoomPlan reader and writer, on rooms whose walls and boxes are known, on real exports and on broken ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from room_truth import room, same_points, true_corners, wall_corners

from data_scripts.files import UnreadableFileError
from data_scripts.readers.roomplan import Z_UP, read_captured_room
from data_scripts.synthetic.roomplan_writer import CATEGORIES, captured_room


SHARED = Path(os.environ.get("VGGT_QWEN3_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
LISTS = ("walls", "doors", "windows", "openings", "floors", "objects")


@pytest.fixture(scope="module")
def scene():
    return room()


@pytest.fixture()
def path(tmp_path, scene):
    file = tmp_path / "my room ü.json"
    file.write_text(json.dumps(captured_room(np.random.default_rng(0), scene)))
    return file


def change(path, **lists):
    path.write_text(json.dumps(json.loads(path.read_text()) | lists, ensure_ascii=False), encoding="utf-8")


def test_walls_and_boxes_agree_with_the_truth(path, scene):
    """Catches a transform read row by row, y and z exchanged or mirrored, and dimensions in another order than the axes."""
    found = read_captured_room(path)
    boxes = {kind: [box for box in found.boxes() if box.kind == kind] for kind in ("wall", "floor", "object")}
    middle = np.linalg.inv(scene.alignment)[:3, 3]
    corners = wall_corners(scene, scene.alignment)
    assert len(boxes["wall"]) == 4
    for wall in boxes["wall"]:
        assert sum(same_points(wall.corners, expected) for expected in corners) == 1
        np.testing.assert_allclose(wall.axes[1], [0, 0, 1], atol=1e-6)  # its height is vertical in the z-up world
        assert wall.axes[2] @ (middle - wall.center) > 1  # its normal points into the room
    (floor,) = boxes["floor"]
    assert same_points(floor.corners, np.concatenate(corners)[::2])
    np.testing.assert_allclose(floor.axes[2], [0, 0, 1], atol=1e-6)
    for index, (box, piece) in enumerate(zip(boxes["object"], scene.pieces, strict=True)):
        assert box.label == CATEGORIES.get(piece.category, piece.category)
        assert same_points(box.corners, true_corners(scene, index, scene.alignment))
        front = scene.alignment[:3, :3].T @ [*piece.rotation[:, 1], 0]
        np.testing.assert_allclose(box.axes[2], front, atol=1e-6)
        np.testing.assert_allclose(np.cross(box.axes[0], box.axes[1]), box.axes[2], atol=1e-6)
    assert Z_UP @ [0, 1, 0, 1] == pytest.approx([0, 0, 1, 1])  # ARKit's up


def test_unknown_categories_are_kept_and_reported(path, scene):
    """Catches what Apple adds next year being dropped in silence, also where a wall should be."""
    content = json.loads(path.read_text())
    content["objects"][0]["category"] = {"höhle": {"isOpen": True}}
    content["walls"][0]["category"] = {"curtain": {}}
    change(path, **content)
    found = read_captured_room(path)
    ours = sum(piece.category in ("lamp", "plant", "ladder") for piece in scene.pieces[1:])
    assert found.unknown["höhle"] == found.unknown["curtain"] == 1 and found.unknown.total() == 2 + ours
    assert found.boxes()[0].label == "curtain" and found.boxes()[0].kind == "wall" and not found.boxes()[0].known
    assert found.to_captured_room()["objects"][0]["category"] == {"höhle": {"isOpen": True}}
    assert found.problems == []


@pytest.mark.parametrize(
    ("key", "index", "value", "reason"),
    [
        ("transform", 12, float("nan"), "not finite"),
        ("transform", 0, 5.0, "not at right angles"),
        ("transform", 15, 2.0, "not rigid"),
        ("dimensions", 1, -1.0, "is not positive"),
        ("dimensions", 2, 0.0, "is not positive"),
        ("dimensions", 0, 1e999, "not finite"),
        ("dimensions", 0, 10**400, "not finite"),
    ],
)
def test_faulty_elements_are_left_out_and_named(path, key, index, value, reason):
    """Catches a NaN that reaches a model, and one bad box taking the whole room with it."""
    objects = json.loads(path.read_text())["objects"]
    objects[1][key][index] = value
    change(path, objects=objects)
    found = read_captured_room(path)
    assert len(found.objects) == len(objects) - 1
    (problem,) = found.problems
    assert problem.startswith(f"{path.name}: objects[1] (") and reason in problem


@pytest.mark.parametrize(
    ("change_to", "reason"),
    [
        ({"walls": 3}, "'walls' is not a list"),
        ({"doors": [4]}, r"doors\[0\] is not an object"),
        ({"doors": [{"category": "door"}]}, r"doors\[0\]: 'category' is not of the form"),
        ({"doors": [{"category": {"door": {}}}]}, r"doors\[0\]: 'identifier' is not a string"),
        ({"doors": [{"category": {"door": {}}, "identifier": "A"}]}, "'dimensions' is not a list of 3 numbers"),
        (
            {"doors": [{"category": {"door": {}}, "identifier": "A", "dimensions": [1, 2, 0], "transform": [1, 2]}]},
            "'transform' is not a list of 16 numbers",
        ),
    ],
)
def test_malformed(path, change_to, reason):
    """Catches a file of another shape ending in a KeyError that does not name it."""
    change(path, **change_to)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_captured_room(path)
    assert caught.value.file == str(path)


def test_other_files_are_refused(tmp_path):
    """Catches any JSON file taken for an empty room."""
    path = tmp_path / "room.json"
    for content, reason in ((b'{"version": 2}', "not a RoomPlan export"), (b"[]", "not a"), (b"\xff{", "not a JSON")):
        path.write_bytes(content)
        with pytest.raises(UnreadableFileError, match=reason):
            read_captured_room(path)
    with pytest.raises(UnreadableFileError, match="missing"):
        read_captured_room(tmp_path / "none.json")


@pytest.mark.skipif(not (SHARED / "roomplan").is_dir(), reason="the real exports are not here")
def test_real_exports_survive():
    """Catches an element, a category, a number or any other key of Apple's own files that is lost or changed."""
    files = sorted((SHARED / "roomplan").glob("*.json"))
    assert len(files) == 4
    for file in files:
        found = read_captured_room(file)
        content = json.loads(file.read_text())
        assert found.problems == [] and found.unknown.total() == 0
        assert {key: len(getattr(found, key)) for key in LISTS} == {key: len(content[key]) for key in LISTS}
        assert json.loads(json.dumps(found.to_captured_room())) == content  # exactly, so within a millimetre too
        for box in found.boxes():
            if box.kind in ("wall", "door", "window", "opening"):
                np.testing.assert_allclose(box.axes[1], [0, 0, 1], atol=1e-4)
