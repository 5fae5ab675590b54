# SPDX-License-Identifier: Apache-2.0
"""Instructions to place an anchor: that they fit one thing only, and that the target is where that thing is."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest

from data_scripts.actions.questions import questions as make_questions
from data_scripts.actions.referring import Sight, look, refer, spoken
from data_scripts.actions.text import action_json
from data_scripts.builders.arkit_actions import orient
from data_scripts.preparation.base import Options
from data_scripts.preparation.scans import StoredView
from data_scripts.prepare import main
from data_scripts.readers.boxes import Box
from data_scripts.readers.roomplan import Z_UP
from data_scripts.synthetic import Settings, build_scene, generate
from data_scripts.synthetic.render import look_at


SETTINGS = Settings(scenes=6, views=4, image_size=64, seed=1, instruct_images=0, objects=(4, 6))
KEYS = {"action", "label", "center", "extent", "normal"}


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """Rooms prepared from their 3dod boxes and from their RoomPlan exports: name to (scenes, questions)."""
    folder = tmp_path_factory.mktemp("actions")
    formats = ("arkitscenes", "roomplan")
    generate(Settings(**{**vars(SETTINGS), "formats": formats}), folder / "raw", progress=False)
    cache, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    found = {}
    for name, more in (("3dod", []), ("roomplan", ["--roomplan-root", str(folder / "raw" / "roomplan")])):
        root = ["--arkitscenes-root", str(folder / "raw" / "arkitscenes")]
        assert main(["arkit_actions", *root, *more, "--output", str(folder / name)]) == 0
        rows = {}
        for config in ("scenes", "qa"):
            splits = datasets.load_dataset(str(folder / name), config)
            assert set(splits) == {"train", "val"}
            rows[config] = [row for split in splits.values() for row in split]
        found[name] = rows["scenes"], rows["qa"]
    yield found
    datasets.config.HF_DATASETS_CACHE = cache


def anchors(rows):
    return [row for row in rows if json.loads(row["action"])["action"] == "place_anchor"]


def true_boxes(scene) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Category, centre, (width, height, depth) and front of each piece, in the world of the ARKitScenes scan."""
    to_world = np.linalg.inv(scene.alignment)
    found = []
    for piece in scene.pieces:
        low, high = piece.parts[:, 4].min(), piece.parts[:, 5].max()
        center = to_world @ [*piece.position, (low + high) / 2, 1]
        front = to_world[:3, :3] @ [*piece.rotation[:, 1], 0]
        size = np.array([2 * piece.half_size[0], high - low, 2 * piece.half_size[1]])
        found.append((piece.category, center[:3], size, front))
    return found


@pytest.mark.parametrize("source", ["3dod", "roomplan"])
def test_targets_are_true(repos, source):
    """Catches a box in another frame, half sizes for full ones, axes for columns, a normal of another axis, and the frame of
    another view."""
    scenes, questions = repos[source]
    geometry = {scene["scene_id"]: scene["geometry"] for scene in scenes}
    assert len(anchors(questions)) >= 12
    for row in anchors(questions):
        assert row["answers"] == [row["action"]] and row["task"] == "arkit_actions"
        assert re.fullmatch(r"[^\[\]]*(\[-?\d+\.\d\d(, -?\d+\.\d\d){2}\][^\[\]]*){3}", row["action"])
        action, world = json.loads(row["action"]), json.loads(row["action_world"])
        assert set(action) == set(world) == KEYS and action["action"] == "place_anchor"
        assert row["object_names"] == [action["label"]] == [world["label"]]
        truth = true_boxes(build_scene(SETTINGS, int(row["scene_id"]) - 40_000_000))
        if action["label"] == "wall":
            assert world["extent"][2] == 0 and abs(world["normal"][2]) < 1e-3
        else:
            distances = [np.linalg.norm(np.array(world["center"]) - center) for _, center, _, _ in truth]
            assert min(distances) < 1e-3
            _, _, size, front = truth[int(np.argmin(distances))]
            if source == "roomplan":
                np.testing.assert_allclose(world["extent"], size, atol=1e-3)
                np.testing.assert_allclose(world["normal"], front, atol=1e-3)
            else:
                expected = size if size[2] < size[0] else size[[2, 1, 0]]
                np.testing.assert_allclose(world["extent"], expected, atol=1e-3)
        R, t = (np.array(geometry[row["scene_id"]][key][0]) for key in ("R", "t"))
        np.testing.assert_allclose(action["center"], R @ world["center"] + t, atol=0.006)
        np.testing.assert_allclose(action["normal"], R @ world["normal"], atol=0.006)
        np.testing.assert_allclose(action["extent"], world["extent"], atol=0.006)
        if source == "3dod" or action["label"] == "wall":
            assert -(np.array(action["center"]) @ action["normal"]) > -0.05  # the camera of view 0 is on its side


@pytest.mark.parametrize("source", ["3dod", "roomplan"])
def test_lists_and_plans_are_complete_and_true(repos, source):
    """Catches a box that is left out or occurs twice, lists in another order or frame, and a plan without walls that says there
    are none."""
    scenes, questions = repos[source]
    geometry = {scene["scene_id"]: scene["geometry"] for scene in scenes}
    numbers = ("center", "extent", "normal")
    for scene_id, cameras in geometry.items():
        rows = [row for row in questions if row["scene_id"] == scene_id]
        of = {name: [] for name in ("place_anchor", "list_objects", "describe_room")}
        for row in rows:
            action, world = json.loads(row["action"]), json.loads(row["action_world"])
            assert row["answers"] == [row["action"]] and row["task"] == "arkit_actions"
            assert list(action) == list(world) and action["action"] == world["action"]
            of[action["action"]].append((action, world, row))
        R, t = (np.array(cameras[key][0]) for key in ("R", "t"))
        listed, planned = {}, {}
        for action, world, row in of["list_objects"]:
            assert action["label"] == world["label"] and action["objects"]
            assert spoken(action["label"]) in row["question"]
            assert row["object_names"] == [action["label"]] * len(action["objects"])
            listed[action["label"]] = action["objects"]
            for box, in_world in zip(action["objects"], world["objects"], strict=True):
                np.testing.assert_allclose(box["center"], R @ in_world["center"] + t, atol=0.006)
                np.testing.assert_allclose(box["normal"], R @ in_world["normal"], atol=0.006)
                np.testing.assert_allclose(box["extent"], in_world["extent"], atol=0.006)
        ((plan, _, row),) = of["describe_room"]
        assert list(plan)[1:] == ["walls", "doors", "windows", "objects"]
        for key, boxes in list(plan.items())[1:]:
            for box in boxes:
                label = box.pop("label", key[:-1])
                planned.setdefault(label, []).append(box)
        assert planned == listed
        assert (source == "roomplan") == bool(plan["walls"])
        assert source == "roomplan" or re.search("furniture|objects", row["question"])
        for boxes in listed.values():
            distances = [np.linalg.norm(box["center"]) for box in boxes]
            assert all(near <= far + 0.02 for near, far in zip(distances, distances[1:]))
        for action, _, _ in of["place_anchor"]:
            assert {key: action[key] for key in numbers} in listed[action["label"]]
        truth = true_boxes(build_scene(SETTINGS, int(scene_id) - 40_000_000))
        assert sum(len(boxes) for label, boxes in listed.items() if label != "wall") <= len(truth)
    starts = {row["question"].split(" ")[0] for row in questions}
    assert len(starts) >= 8


def test_what_no_action_can_hold():
    """Catches a target that decoding could not say, and a list or plan that is cut short instead of left out."""
    pose = look_at(np.array([0, 0, 1.0]), np.array([5.0, 0, 1]))
    camera = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    far = np.full((48, 64), 8, dtype=np.float32)
    view = StoredView("0", b"", (64, 48), pose, camera, np.zeros(16), far, camera)
    chairs = [box("chair", (4, y, 1), (0.1, 0.1, 0.1)) for y in np.linspace(-1.5, 1.5, 50)]
    strange = [
        box("x" * 33, (3, 0, 1), (1, 1, 1)),
        box("a\nb", (3, 0, 1), (1, 1, 1)),
        box("sofa", (3, 0, 1), (1, 1, 1)),
    ]
    remarks = []
    rows = make_questions("scene", [*chairs, *strange], [view], Options(), True, remarks)
    assert {json.loads(row["action"])["action"] for row in rows} == {"place_anchor", "list_objects"}
    assert {json.loads(row["action"])["label"] for row in rows if "List" in row["question"]} <= {"sofa"}
    found = {remark.kind: (remark.count, remark.example) for remark in remarks}
    assert found["boxes that no action can hold"] == (2, "x" * 33)
    assert found["categories of more than 32 boxes, not listed"] == (1, "chair")
    assert found["rooms of more than a plan holds, not described"] == (1, "objects")


def test_instructions_fit_one_thing(repos):
    """Catches "the chair" in a room with two, and the same words for two targets."""
    for scenes, questions in repos.values():
        for scene in scenes:
            rows = anchors([row for row in questions if row["scene_id"] == scene["scene_id"]])
            phrases = [
                re.search(r"(?:nchor(?: on)?|[Mm]ark) (the .+?)(?: with an anchor)?\.$", row["question"])[1]
                for row in rows
            ]
            assert len(set(phrases)) == len(phrases)
            pieces = build_scene(SETTINGS, int(scene["scene_id"]) - 40_000_000).pieces
            times = [piece.category for piece in pieces]
            for row, phrase in zip(rows, phrases):
                if phrase == f"the {spoken(row['object_names'][0])}" and row["object_names"][0] in times:
                    assert times.count(row["object_names"][0]) == 1
    starts = {row["question"].split(" the ")[0] for _, questions in repos.values() for row in anchors(questions)}
    assert len(starts) >= 4


def box(label, center, size, kind="object", yaw=0.0):
    cos, sin = np.cos(yaw), np.sin(yaw)
    axes = np.array([[cos, sin, 0], [0, 0, 1.0], [sin, -cos, 0]])
    return Box(f"{label}{center}", kind, label, np.array(center, dtype=float), axes, np.array(size, dtype=float))


NOWHERE = Sight(0.0, 0.0, None)


def test_refer():
    """Catches a size, a nearness or an order without a margin, a relation to something that is itself ambiguous, and an order
    that counts what the picture half shows."""
    chairs = [box("chair", (0, 0, 0.4), (0.5, 0.8, 0.5)), box("chair", (3, 0, 0.4), (0.5, 0.82, 0.5))]
    door = box("door", (4, 0, 1), (0.9, 2, 0), "door")
    room = [*chairs, door]
    unseen = [NOWHERE] * 3
    assert refer(door, room, unseen) == {"label": ["the door"]}
    assert refer(chairs[1], room, unseen) == {"relation": ["the chair closest to the door"]}
    assert refer(chairs[0], room, unseen) == {"relation": ["the chair farthest from the door"]}
    two_doors = [*room, box("door", (-1, 0, 1), (0.9, 2, 0), "door")]
    assert refer(chairs[1], two_doors, [NOWHERE] * 4) == {}
    assert refer(door, two_doors, [NOWHERE] * 4) == {}
    tall = box("chair", (1, 1, 0.6), (0.5, 1.2, 0.5))
    assert refer(tall, [*chairs, tall], unseen) == {"size": ["the largest chair", "the tallest chair"]}

    shown = [Sight(1, 1, 0.3), Sight(1, 1, 0.7)]
    assert refer(chairs[0], chairs, shown) == {
        "order": ["the leftmost chair in the first picture", "the second chair from the right in the first picture"]
    }
    for half in (Sight(0.1, 1, 0.7), Sight(0.5, 0.5, None), Sight(1, 1, 0.32), NOWHERE):
        assert refer(chairs[0], chairs, [shown[0], half]) == {}
    walls = [box("wall", (x, 0, 1.2), (width, 2.4, 0), "wall") for x, width in ((0, 3), (1, 4.0))]
    assert refer(walls[1], walls, shown)["size"] == ["the largest wall", "the longest wall"]
    assert spoken("washerDryer") == "washer dryer" and spoken("tv_monitor") == "tv monitor"


def test_look():
    """Catches a thing behind a wall, or behind the camera, taken for seen."""
    pose = look_at(np.array([0, 0, 1.0]), np.array([5.0, 0, 1]))
    camera = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])

    def seen(center, depth):
        depth = np.full((24, 32), depth, dtype=np.float32)
        view = StoredView("0", b"", (64, 48), pose, camera, np.zeros(16), depth, np.diag([0.5, 0.5, 1]) @ camera)
        return look(box("chair", center, (0.5, 0.5, 0.5)), view)

    assert seen((3, 0, 1), 4.0) == Sight(1, 1, pytest.approx(0.5))
    assert seen((3, 1, 1), 4.0).column < 0.4  # +y is to the left of one who looks along +x
    assert seen((3, 0, 1), 0.0).seen == 1  # nothing was measured there
    assert seen((3, 0, 1), 1.0).seen == 0 and seen((3, 0, 1), 1.0).inside == 1
    assert seen((-3, 0, 1), 4.0) == NOWHERE and seen((3, 9, 1), 4.0) == NOWHERE


def test_orient():
    """Catches a left-handed or lying box, and a front that is turned round."""
    annotated = Box("a", "object", "bed", np.array([2.0, 0, 0.3]), np.eye(3), np.array([1.0, 2.0, 0.6]))
    found = orient(annotated, camera=np.zeros(3), has_front=False)
    np.testing.assert_allclose(found.size, [2.0, 0.6, 1.0])
    np.testing.assert_allclose(found.axes[2], [-1, 0, 0])
    np.testing.assert_allclose(found.axes[1], [0, 0, 1])
    assert np.linalg.det(found.axes) == pytest.approx(1)
    sorted_corners = [sorted(map(tuple, corners.round(6).tolist())) for corners in (annotated.corners, found.corners)]
    assert sorted_corners[0] == sorted_corners[1]
    front = box("sofa", (2, 0, 0.4), (1.6, 0.8, 0.7), yaw=0.3)
    for place in (np.zeros(3), np.array([4.0, 0, 0])):
        np.testing.assert_allclose(orient(front, place, has_front=True).axes, front.axes, atol=1e-9)
    wall = box("wall", (2, 0, 1), (3, 2.4, 0), "wall", yaw=np.pi / 2)
    assert orient(wall, np.zeros(3), has_front=True).axes[2][0] == pytest.approx(-1)
    assert orient(wall, np.array([5.0, 0, 0]), has_front=True).axes[2][0] == pytest.approx(1)


def test_action_json():
    """Catches -0.00, numbers with other than two decimals, and a label that breaks the JSON."""
    text = action_json('sofa "à"', np.array([-0.001, 1, 2.345678]), np.array([1, 2, 0]), np.array([0, 0, -1]))
    assert text == (
        '{"action": "place_anchor", "label": "sofa \\"à\\"", "center": [0.00, 1.00, 2.35], '
        '"extent": [1.00, 2.00, 0.00], "normal": [0.00, 0.00, -1.00]}'
    )
    assert json.loads(text)["label"] == 'sofa "à"'


def test_bad_boxes_and_sources(tmp_path, capsys, monkeypatch):
    """Catches NaN that becomes a target, a category never seen that is dropped or refused, an export without pictures, a
    scan without annotation that becomes a scene, and --strict that stops at a video that nobody can have whole."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    settings = Settings(**{**vars(SETTINGS), "scenes": 3, "formats": ("arkitscenes", "roomplan")})
    generate(settings, tmp_path / "a b", progress=False)
    root = tmp_path / "a b"
    arguments = ["arkit_actions", "--arkitscenes-root", str(root / "arkitscenes")]
    annotations = sorted(root.glob("arkitscenes/3dod/*/*/*_3dod_annotation.json"))
    content = json.loads(annotations[0].read_text())
    content["data"][0]["segments"]["obbAligned"]["centroid"][1] = float("nan")
    content["data"][1]["label"] = "räucherofen"
    annotations[0].write_text(json.dumps(content))
    if sum("Training" in str(path) for path in annotations) == 1:
        annotations = annotations[::-1]
    assert main([*arguments, "--output", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    assert "boxes left out: 1 in 1 scenes" in printed and "not finite" in printed
    assert "kept under its name" in printed
    rows = anchors([row for split in datasets.load_dataset(str(tmp_path / "x")).values() for row in split])
    assert [row["question"].count("the räucherofen") for row in rows if row["object_names"] == ["räucherofen"]] == [1]

    extra = root / "roomplan" / "living room.json"
    extra.write_text((root / "roomplan" / "40000000.json").read_text())
    # As the download leaves a video that has no boxes on the server: no reason to stop, were it --strict.
    exempt = root / "arkitscenes" / "raw" / "Training" / "47334522" / "lowres_wide"
    exempt.mkdir(parents=True)
    shutil.copy(next(root.glob("arkitscenes/3dod/*/*/*_frames/lowres_wide/*.png")), exempt / "47334522_1.000.png")
    options = ["--roomplan-root", str(root / "roomplan"), "--strict"]
    assert main([*arguments, *options, "--output", str(tmp_path / "y")]) == 0
    printed = capsys.readouterr().out
    assert "1 RoomPlan exports are of no scan, and have no pictures" in printed
    assert "1 scans have no boxes or poses on Apple's server: skipped: 47334522" in printed
    (tmp_path / "empty").mkdir()
    assert main(["arkit_actions", "--arkitscenes-root", str(tmp_path / "empty"), "--output", str(tmp_path / "z")]) == 2
    assert "no scan under" in capsys.readouterr().err
    assert main([*arguments, "--roomplan-root", str(tmp_path / "empty"), "--output", str(tmp_path / "z")]) == 2
    assert "no export" in capsys.readouterr().err
    for path in root.glob("arkitscenes/3dod/Training/*/*_3dod_annotation.json"):
        path.unlink()
    assert main([*arguments, "--output", str(tmp_path / "z")]) == 2
    assert "no usable scene" in capsys.readouterr().err


def test_world_of_exports_is_z_up():
    """Catches exports that lie on their side beside the scan they belong to."""
    np.testing.assert_allclose(Z_UP @ [0, 1, 0, 1], [0, 0, 1, 1])
