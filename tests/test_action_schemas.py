# SPDX-License-Identifier: Apache-2.0
"""The schemas, the text and the frames of actions."""

import copy
import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from toys import toy_config, toy_processor

from data_scripts.actions.text import MAX_IN_ROOM, action_json, fits, list_json, room_json
from data_scripts.readers.boxes import Box
from data_scripts.readers.roomplan import read_captured_room
from modeling_vggt_qwen3 import ACTION_SCHEMAS, ActionBox, ActionError, DescribeRoom, ListObjects, PlaceAnchor
from modeling_vggt_qwen3.action_boxes_vggt_qwen3 import boxes_from_roomplan, boxes_to_view, camera_of_view_0
from modeling_vggt_qwen3.action_text_vggt_qwen3 import read_text, write_text
from modeling_vggt_qwen3.actions_vggt_qwen3 import parse_action, parse_actions


SHARED = Path(os.environ.get("VGGT_QWEN3_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
BOX = {"center": [0.5, -1, 2.35], "extent": [1, 2, 0], "normal": [0, 0, -1]}
ACTIONS = {
    "place_anchor": {"action": "place_anchor", "label": 'sofa "à" \\', **BOX},
    "list_objects": {"action": "list_objects", "label": "chair", "objects": [BOX, BOX]},
    "describe_room": {
        "action": "describe_room",
        "walls": [BOX],
        "doors": [],
        "windows": [BOX],
        "objects": [{"label": "chair", **BOX}],
    },
}


def random_rotation(rng, upright=False):
    if upright:
        angle = rng.uniform(0, 2 * np.pi)
        return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix))


def random_geometry(rng):
    return {"R": np.stack([random_rotation(rng) for _ in range(2)]), "t": rng.normal(size=(2, 3)) * 5}


def random_boxes(rng, count=4):
    """Boxes of the world (z up) that stand upright."""
    kinds = ("wall", "door", "window", "object")
    boxes = []
    for kind in [kinds[number % 4] for number in range(count)]:
        normal = random_rotation(rng, upright=True)[0]
        extent = [*rng.uniform(0.1, 4, 2), rng.uniform(0.1, 2) * (kind == "object")]
        boxes.append(ActionBox("sofa" if kind == "object" else kind, rng.normal(size=3) * 4, extent, normal, kind))
    return boxes


def same(boxes, others, atol):
    assert len(boxes) == len(others)
    for box, other in zip(boxes, others):
        assert (box.label, box.kind) == (other.label, other.kind)
        for name in ("center", "extent", "normal"):
            np.testing.assert_allclose(getattr(box, name), getattr(other, name), atol=atol)


@pytest.mark.parametrize("name", ACTION_SCHEMAS)
def test_own_checks_agree_with_jsonschema(name):
    """Catches a bound that the schema states and reading does not check, or the reverse."""
    schema, content = ACTION_SCHEMAS[name], ACTIONS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(content)
    assert json.loads(parse_action(json.dumps(content)).to_json()) == content

    def places(value, path=()):
        yield path
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield from places(value[key], (*path, key))

    bad = [None, True, "", "x" * 33, " a", "a\n", "a\u2028", [], {}, 3, 0.0, -0.01, 100, 99.991, -100, [0, 0, 0], 1.5]
    bad += [[0, 0, -0.0], [1, 2], [1, 1, 1, 1], [BOX] * 33, [BOX] * 13, "ok", {"label": "x"}]
    times = [0, 0]
    for path in list(places(content))[1:]:
        for value in bad:
            changed = copy.deepcopy(content)
            target = changed
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            valid = validator.is_valid(changed)
            times[valid] += 1
            if valid:
                read_text(json.dumps(changed))
            else:
                with pytest.raises(ActionError):
                    read_text(json.dumps(changed))
    assert min(times) > 10


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: "", "cut off after 0 characters"),
        (lambda text: "The chair is there.", "no JSON: .* at character 0"),
        (lambda text: text.replace('"label": ', '"label" '), "no JSON: Expecting ':' delimiter at character 35"),
        (
            lambda text: text.replace("place_anchor", "fly"),
            "no action 'fly'; there are place_anchor, list_objects, desc",
        ),
        (lambda text: f"[{text}]", 'an object with the string "action" is expected'),
        (lambda text: text + " Done.", "Extra data"),
        (lambda text: text + " {", "Extra data"),
        (lambda text: text.replace("2.35", "NaN"), "NaN is no number of JSON"),
        (lambda text: text.replace("2.35", "1e999"), r"center\[2\] is inf, not within -99.99 to 99.99"),
        (lambda text: text.replace("2.35", "1" * 5000), "Exceeds the limit"),
        (lambda text: text.replace('"center"', '"label"'), "the key 'label' occurs twice"),
        (lambda text: text.replace(', "center": [0.50, -1.00, 2.35]', ""), "it has no 'center'"),
        (lambda text: text.replace(", 2.35", ""), "center has 2 items, not 3"),
        (lambda text: text.replace("-1.00]", "0.00]"), "normal is zero: it has no direction"),
        (lambda text: text[:-1] + ', "color": 1}', "has 'color', which the schema does not know"),
        (lambda text: text.replace("sofa", " sofa"), "label is .* starts with a space"),
        (lambda text: "[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_action_is_named(change, error):
    """Catches an error that does not say what is wrong, or where."""
    text = parse_action(json.dumps(ACTIONS["place_anchor"])).to_json()
    with pytest.raises(ActionError, match=error):
        parse_action(change(text))


@pytest.mark.parametrize("name", ACTION_SCHEMAS)
def test_a_text_cut_off_anywhere_says_so(name):
    """Catches half an action taken for a malformed one, or for a whole one."""
    text = parse_action(json.dumps(ACTIONS[name])).to_json()
    for length in range(len(text)):
        with pytest.raises(ActionError, match=f"cut off after {length} characters"):
            parse_action(text[:length])
    with pytest.raises(ActionError, match="Action 1: .*cut off"):
        parse_actions([text, text[:-1]])


def test_texts_of_data_and_model_agree():
    """Catches a separator, an order of keys, a rounding or a limit that training data have and decoding has not."""
    rng = np.random.default_rng(0)
    boxes = []
    for number in range(40):
        size = rng.uniform(0, 5, 3) * [1, 1, number % 2] + [0, 0.001, 0]
        label = ["sofa", 'ti"sch\\é', "wall", "沙发"][number % 4]
        boxes.append(Box(str(number), "object", label, rng.normal(size=3) * 9, random_rotation(rng), size))
    boxes[0].center[:] = -0.001, 0.005, 99.99
    boxes[0].size[:] = 0.004, 0, 0

    def numbers(box):
        return {"center": box.center, "extent": box.size, "normal": box.axes[2]}

    for box in boxes:
        assert fits(box)
        text = action_json(box.label, box.center, box.size, box.axes[2])
        assert text == write_text("place_anchor", {"label": box.label, **numbers(box)})
        action = PlaceAnchor(ActionBox(box.label, box.center, box.size, box.axes[2]))
        assert text == action.to_json()
        assert parse_action(text).box.label == box.label
    listed = {"label": "sofa", "objects": [numbers(box) for box in boxes[:32]]}
    assert list_json("sofa", boxes[:32]) == write_text("list_objects", listed)
    parts = {"walls": boxes[:24], "doors": boxes[:12], "windows": [], "objects": boxes}
    fields = {key: [numbers(box) for box in parts[key]] for key in ("walls", "doors", "windows")}
    fields["objects"] = [{"label": box.label, **numbers(box)} for box in boxes]
    assert room_json(parts) == write_text("describe_room", fields)
    properties = ACTION_SCHEMAS["describe_room"]["properties"]
    assert MAX_IN_ROOM == {key: properties[key]["maxItems"] for key in MAX_IN_ROOM}
    for label in ("", " a", "a\nb", "x" * 33, "a\u2028", "\ud800"):
        box = Box("", "object", label, np.zeros(3), np.eye(3), np.ones(3))
        assert not fits(box)
        with pytest.raises(ActionError):
            write_text("place_anchor", {"label": label, **numbers(box)})
    assert not fits(Box("", "object", "a", np.full(3, 100.0), np.eye(3), np.ones(3)))


def test_round_trips_are_exact():
    """Catches a transposed rotation, a wrong axis or sign, and rounding on the way between the frames."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        geometry = random_geometry(rng)
        camera = camera_of_view_0(geometry)
        world = random_boxes(rng)
        in_view = boxes_to_view(world, camera)
        for box, moved in zip(world, in_view):
            expected = geometry["R"][0] @ box.center + geometry["t"][0]
            np.testing.assert_allclose(moved.center, expected, atol=1e-9)
            np.testing.assert_allclose(moved.normal, geometry["R"][0] @ box.normal, atol=1e-9)
        action = DescribeRoom(*[(box,) for box in in_view], camera=camera)
        assert action.metric
        np.testing.assert_allclose(action.up, geometry["R"][0] @ [0, 0, 1], atol=1e-9)
        same(action.world, world, 1e-5)
        room = json.loads(json.dumps(action.to_roomplan()))
        back = boxes_from_roomplan(room)
        same(back, world, 1e-5)
        same(boxes_to_view(back, camera), in_view, 1e-5)
        anchors = action.to_arkit_anchor()
        assert anchors.shape == (4, 4, 4) and anchors.dtype == np.float32
        for anchor, box in zip(anchors, world):
            again = ActionBox.from_arkit_transform(anchor, box.extent, box.label, box.kind)
            same([again], [box], 1e-5)
            np.testing.assert_allclose(anchor[:3, 3], np.array(box.center)[[0, 2, 1]] * [1, 1, -1], atol=1e-5)
            np.testing.assert_allclose(anchor[:3, 1], [0, 1, 0], atol=1e-5)  # upright
            assert np.linalg.det(anchor) == pytest.approx(1, abs=1e-4)


def test_boxes_fill_the_same_space_as_in_the_data():
    """Catches width and depth exchanged: the corners in ARKit's world are those of the data's box."""
    rng = np.random.default_rng(2)
    for box in random_boxes(rng, 8):
        geometry = random_geometry(rng)
        camera = camera_of_view_0(geometry)
        axes = box.axes(np.array([0, 0, 1.0]))
        truth = Box("", box.kind, box.label, np.array(box.center), axes, np.array(box.extent)).corners
        np.testing.assert_allclose(axes[1], [0, 0, 1], atol=1e-9)
        action = PlaceAnchor(*boxes_to_view([box], camera), camera=camera)
        half = np.array([[x, y, z, 2] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)]) / 2 * [*box.extent, 1]
        corners = (half @ action.to_arkit_anchor().T)[:, :3]
        np.testing.assert_allclose(corners[:, [0, 2, 1]] * [1, -1, 1], truth, atol=1e-4)


def test_without_geometry_the_scale_is_only_relative():
    """Catches a world made up where there are no cameras, and one that is not said to be."""
    action = parse_action(json.dumps(ACTIONS["describe_room"]))
    assert action.world is None and not action.metric and action.to_roomplan()["metric"] is False
    np.testing.assert_allclose(action.up, [0, -1, 0])
    anchor = parse_action(json.dumps(ACTIONS["place_anchor"])).to_arkit_anchor()
    expected = [[1, 0, 0, 0.5], [0, 1, 0, 1], [0, 0, 1, -2.35], [0, 0, 0, 1]]  # towards an upright camera
    np.testing.assert_allclose(anchor, expected, atol=1e-6)


@pytest.mark.skipif(not (SHARED / "roomplan").is_dir(), reason="the real exports are not here")
def test_real_exports_survive_as_actions(tmp_path):
    """Catches a wall, door, window, opening or object of Apple's own files that moves by more than a millimetre."""
    rng = np.random.default_rng(3)
    openings = 0
    for file in sorted((SHARED / "roomplan").glob("*.json")):
        room = read_captured_room(file)
        geometry = random_geometry(rng)
        camera = camera_of_view_0(geometry)
        boxes = {}
        for key in ("walls", "doors", "windows", "openings", "objects"):
            members = [
                ActionBox(box.label, box.center, box.size, box.axes[2], box.kind)
                for box in (element.box for element in getattr(room, key))
            ]
            boxes[key] = boxes_to_view(members, camera)
        opening = boxes.pop("openings")
        actions = [DescribeRoom(**boxes, camera=camera), ListObjects("opening", opening, camera=camera)]
        for action, keys in zip(actions, (tuple(boxes), ("openings",))):
            written = tmp_path / f"{file.stem} {action.name}.json"
            written.write_text(json.dumps(action.to_roomplan()))
            found = read_captured_room(written)
            assert found.problems == [] and found.extra == {"metric": True}
            assert len(found.elements) == len(action.boxes)
            for key in keys:
                openings += key == "openings" and len(getattr(found, key))
                for element, true in zip(getattr(found, key), getattr(room, key), strict=True):
                    assert (element.kind, element.category) == (true.kind, true.category)
                    np.testing.assert_allclose(element.dimensions, true.dimensions, atol=1e-6)
                    np.testing.assert_allclose(element.box.corners, true.box.corners, atol=1e-3)
                    np.testing.assert_allclose(element.transform, true.transform, atol=1e-4)
                    assert np.abs(element.transform[:3, 3] - true.transform[:3, 3]).max() < 1e-5
            assert len({element.identifier for element in found.elements}) == len(found.elements)
            assert parse_action(action.to_json(), geometry).metric
    assert openings == 5


def test_boxes_that_cannot_be():
    """Catches a direction made of zeros, a box that lies on its side, and a flipped transform."""
    with pytest.raises(ActionError, match="normal of 'chair' is zero"):
        ActionBox("chair", (0, 0, 0), (1, 1, 1), (0, 0, 0))
    with pytest.raises(ActionError, match="center of 'chair' is not three finite numbers"):
        ActionBox("chair", (0, float("nan"), 0), (1, 1, 1), (0, 0, 1))
    with pytest.raises(ActionError, match="negative"):
        ActionBox("chair", (0, 0, 0), (1, -1, 1), (0, 0, 1))
    with pytest.raises(ActionError, match="of kind 'roof'; there are wall, door"):
        ActionBox("chair", (0, 0, 0), (1, 1, 1), (0, 0, 1), "roof")
    lying = np.eye(4)[[0, 2, 1, 3]] * [1, 1, -1, 1]
    with pytest.raises(ActionError, match="'bed' does not stand upright"):
        ActionBox.from_arkit_transform(lying, (1, 1, 1), "bed")
    with pytest.raises(ActionError, match="'bed' is not a rotation"):
        ActionBox.from_arkit_transform(np.diag([1, 1, -1, 1]), (1, 1, 1), "bed")
    assert ActionBox("chair", (0, 0, 0), (1, 1, 1), (0, 3, 4)).normal == pytest.approx((0, 0.6, 0.8))
    floor = ActionBox("floor", (0, 0, 0), (4, 3, 0), (0, 0, 1), "floor").axes(np.array([0, 0, 1.0]))
    np.testing.assert_allclose(floor @ floor.T, np.eye(3), atol=1e-9)
    too_long = ListObjects("chair", (ActionBox("chair", (0, 0, 0), (1, 1, 1), (0, 0, 1)),) * 33)
    with pytest.raises(ActionError, match="objects has 33 items, not 0 to 32"):
        too_long.to_json()


def test_post_process_actions():
    """Catches the head's numbers left unused or used for a list, another scene's cameras, and tokens that are not decoded."""
    processor = toy_processor(toy_config())
    texts = [parse_action(json.dumps(content)).to_json() for content in ACTIONS.values()]
    rng = np.random.default_rng(4)
    geometry = [random_geometry(rng), None, random_geometry(rng)]
    end = processor.tokenizer.eos_token_id
    tokens = [[*processor.tokenizer(text).input_ids, end, end] for text in texts]
    for given in (texts, tokens):
        actions = processor.post_process_actions(given, geometry)
        assert [type(action) for action in actions] == [PlaceAnchor, ListObjects, DescribeRoom]
        assert [action.metric for action in actions] == [True, False, True]
        assert [action.to_json() for action in actions] == texts
        assert actions[2].camera == camera_of_view_0(geometry[2])
    anchors = [torch.tensor([1, 2, 3, 1, 1, -0.1, 0, 0, 2], dtype=torch.bfloat16), None, [0] * 9]
    anchor, listed, _ = processor.post_process_actions(texts, anchors=anchors)
    assert anchor.numbers_from == "head" and listed.numbers_from == "text" and anchor.box.label == 'sofa "à" \\'
    assert (anchor.box.center, anchor.box.extent, anchor.box.normal) == ((1, 2, 3), (1, 1, 0), (0, 0, 1))
    with pytest.raises(ActionError, match="Action 0: The normal of .* is zero"):
        processor.post_process_actions(texts, anchors=[[0] * 9, None, None])
    with pytest.raises(ActionError, match="Action 0: The anchor head gave .*nan"):
        processor.post_process_actions(texts, anchors=[[np.nan] * 9, None, None])
    with pytest.raises(ValueError, match="Got 3 texts, 1 geometries and 3 anchors"):
        processor.post_process_actions(texts, geometry[:1])
    for R, t, error in (
        (np.zeros((2, 3, 3)), np.zeros((2, 3)), "R of view 0 is not a rotation"),
        (np.eye(3)[None], np.full((1, 3), np.nan), "t of view 0 is not finite"),
        (np.eye(3), np.zeros(3), r"R \[V, 3, 3\] and t"),
    ):
        with pytest.raises(ValueError, match=error):
            processor.post_process_actions(texts[:1], [{"R": R, "t": t}])
