# SPDX-License-Identifier: Apache-2.0
"""The ARKitScenes reader, on scans of rooms whose cameras and boxes are known, and on broken ones."""

import json
import shutil

import numpy as np
import pytest
from room_truth import assert_boxes_hold_what_the_pictures_show, assert_true, room, same_points, true_corners

from data_scripts.files import UnreadableFileError
from data_scripts.readers.arkitscenes import Scan, find_scans, open_scan, read_annotation, read_sky_directions
from data_scripts.readers.trajectory import Trajectory, rotation_from_vector, rotation_vector
from data_scripts.synthetic.arkitscenes_writer import LABELS, metadata_csv, video_id, write_arkitscenes


@pytest.fixture(scope="module")
def scene():
    return room()


def write(root, scene, layout="3dod", direction="Left"):
    folder = root / layout / "Training" / video_id(0)
    write_arkitscenes(np.random.default_rng(0), folder, scene, layout, direction)
    return folder


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("direction", ["Up", "Down", "Left", "Right"])
@pytest.mark.parametrize("layout", ["3dod", "raw"])
def test_views_agree_with_the_truth(tmp_path, scene, layout, direction, known):
    """Catches a picture turned without its camera or the other way, a trajectory taken for camera-to-world, and the nearest line
    taken for the pose of a moving camera."""
    write(tmp_path, scene, layout, direction)
    if known:
        (tmp_path / "metadata.csv").write_text(metadata_csv(["train"], [direction]))
    scan = open_scan(tmp_path, video_id(0))
    assert scan.sky_direction == (direction if known else None)
    frames = scan.frames()
    assert len(frames) == 3 and all(frame.complete for frame in frames)
    assert np.diff([frame.timestamp for frame in frames]) == pytest.approx([0.3, 0.3], abs=1e-6)
    views = [scan.load(frame) for frame in frames]
    for number, view in enumerate(views):
        assert_true(view, scene, number, world=scene.alignment, exact_picture=True)
        assert (view.encoded is None) == (direction != "Up")
        assert scan.load_image(frames[number]).size == view.image.size == (64, 48)
        assert np.array_equal(scan.load_depth(frames[number])[0], view.depth)
    boxes, problems = scan.boxes()
    assert problems == []
    for index, (box, piece) in enumerate(zip(boxes, scene.pieces, strict=True)):
        assert box.label == LABELS.get(piece.category, piece.category)
        assert box.known == (piece.category not in ("lamp", "plant", "ladder"))
        assert same_points(box.corners, true_corners(scene, index, scene.alignment))
        np.testing.assert_allclose(np.cross(box.axes[0], box.axes[1]), box.axes[2], atol=1e-6)
    assert_boxes_hold_what_the_pictures_show(scene, boxes, views)


def test_interpolation_matters(tmp_path, scene):
    """Catches a test room in which the nearest line would do: then the test above would prove nothing."""
    trajectory = Trajectory(write(tmp_path, scene, direction="Up") / f"{video_id(0)}_frames" / "lowres_wide.traj")
    nearest = trajectory.centers[1]  # the three lines about the first frame
    truth = np.linalg.inv(scene.poses[0] @ scene.alignment)[:3, 3]
    assert np.linalg.norm(nearest - truth) > 5e-4


def test_rotation_vectors():
    """Catches a wrong sign or a transpose, and the angles at which the usual formula divides by zero."""
    rng = np.random.default_rng(0)
    for angle in (0, 1e-12, 1e-6, 0.3, 2.0, np.pi - 1e-7, np.pi):
        axis = rng.normal(size=3)
        vector = axis / np.linalg.norm(axis) * angle
        x, y, z = vector
        generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        term, series = np.eye(3), np.eye(3)
        for order in range(1, 40):
            term = term @ generator / order
            series = series + term
        rotation = rotation_from_vector(vector)
        np.testing.assert_allclose(rotation, series, atol=1e-12)
        found = rotation_vector(rotation)
        np.testing.assert_allclose(rotation_from_vector(found), rotation, atol=1e-7)
        assert angle > 3 or found == pytest.approx(vector, abs=1e-9)


def test_trajectory_that_stops_early(tmp_path, scene):
    """Catches the last pose held for frames long after it, and lines whose tracking was lost taken for poses."""
    folder = write(tmp_path, scene)
    path = folder / f"{folder.name}_frames" / "lowres_wide.traj"
    lines = path.read_text().splitlines()
    lost = " ".join([lines[7].split()[0], *["nan"] * 6])
    path.write_text("\n".join(lines[:7] + [lost]) + "\n")
    posed = [frame.world_to_camera is not None for frame in Scan(folder).frames()]
    assert posed == [True, True, False]
    view = Scan(folder).load(Scan(folder).frames()[2])
    assert view.image.size == (64, 48) and view.intrinsics is view.depth is None
    path.write_text("\n".join(lines)[:-30])
    with pytest.raises(UnreadableFileError, match="lowres_wide.traj: line 9: .* expected 7: seconds rx ry rz"):
        Scan(folder).frames()
    path.write_text("")
    with pytest.raises(UnreadableFileError, match="holds no pose"):
        Scan(folder).frames()
    scan = Scan(folder)  # pictures alone can still be had, turned as far as that is known
    assert [scan.load(frame).image.size for frame in scan.frames(geometry=False)] == [(48, 64)] * 3
    path.unlink()
    with pytest.raises(UnreadableFileError, match="lowres_wide.traj: missing"):
        Scan(folder).frames()
    scan = Scan(folder, "Left")
    assert [scan.load(frame).image.size for frame in scan.frames(geometry=False)] == [(64, 48)] * 3


def test_names_rounded_differently(tmp_path, scene):
    """Catches intrinsics sought under the picture's exact name, or taken from a frame further away."""
    folder = write(tmp_path, scene)
    pincams = sorted((folder / f"{folder.name}_frames" / "lowres_wide_intrinsics").iterdir())
    for path, shift in zip(pincams, (0.001, -0.001, 0.002)):
        seconds = float(path.stem.split("_")[1]) + shift
        path.rename(path.with_name(f"{folder.name}_{seconds:.3f}.pincam"))
    scan = Scan(folder)
    frames = scan.frames()
    assert [frame.has_intrinsics for frame in frames] == [True, True, False]
    assert scan.load(frames[0]).intrinsics is not None and scan.load_depth(frames[2]) is None


def test_missing_and_broken_files(tmp_path, scene):
    """Catches a missing depth map made up, and a cut or malformed file ending in another library's traceback."""
    folder = tmp_path / "with space ü" / video_id(0)
    write_arkitscenes(np.random.default_rng(0), folder, scene, "raw", "Right")
    depths, pincams, pictures = (
        sorted((folder / name).iterdir()) for name in ("lowres_depth", "lowres_wide_intrinsics", "lowres_wide")
    )
    depths[0].unlink()
    depths[1].write_bytes(depths[1].read_bytes()[:-60])
    pincams[2].write_text("64 48 x 50 32 24")
    scan = Scan(folder)
    frames = scan.frames()
    assert [frame.has_depth for frame in frames] == [False, True, True]
    assert scan.load(frames[0]).depth is None and scan.load(frames[0]).intrinsics is not None
    for frame, reason in zip(frames[1:], ("not a readable depth map", "not a number")):
        with pytest.raises(UnreadableFileError, match=reason):
            scan.load(frame)
    pincams[2].write_text("0 48 50 50 32 24")
    with pytest.raises(UnreadableFileError, match="width and height are .*, not positive"):
        scan.load(frames[2])
    pictures[0].write_bytes(pictures[0].read_bytes()[:-200])
    with pytest.raises(UnreadableFileError, match="not a readable picture"):
        scan.load(frames[0])
    pictures[0].rename(pictures[0].with_name("preview.png"))
    with pytest.raises(UnreadableFileError, match="not <video>_<seconds>"):
        Scan(folder).frames()
    shutil.rmtree(folder / "lowres_wide")
    with pytest.raises(UnreadableFileError, match="lowres_wide: folder missing"):
        Scan(folder).frames()


def test_annotations(tmp_path, scene):
    """Catches a NaN in a box that reaches a model, a label never seen that disappears, and half sizes taken for whole ones."""
    folder = write(tmp_path, scene)
    path = folder / f"{folder.name}_3dod_annotation.json"
    content = json.loads(path.read_text())
    first = content["data"][0]

    def changed(label, **segment):
        return {**first, "label": label, "segments": {"obbAligned": {**first["segments"]["obbAligned"], **segment}}}

    left_handed = np.diag([1.0, 1, -1]).ravel().tolist()
    rows = [
        changed("tv monitor", centroid=[1, 2, 3], axesLengths=[2, 4, 6], normalizedAxes=left_handed),
        changed("Sternwarte ☆"),
        changed("chair", centroid=[float("nan"), 0, 0]),
        changed("bed", axesLengths=[1, -1, 1]),
        changed("sofa", normalizedAxes=[1, 0, 0, 1, 0, 0, 0, 0, 1]),
    ]
    path.write_text(json.dumps({"data": rows}, ensure_ascii=False), encoding="utf-8")
    boxes, problems = read_annotation(path)
    assert [(box.label, box.known) for box in boxes] == [("tv_monitor", True), ("Sternwarte_☆", False)]
    assert boxes[0].corners.min(axis=0).tolist() == [0, 0, 0] and boxes[0].corners.max(axis=0).tolist() == [2, 4, 6]
    assert np.linalg.det(boxes[0].axes) == 1
    assert [problem.split("left out: ")[1] for problem in problems] == [
        "a number is not finite",
        "its size [1.0, -1.0, 1.0] is not positive",
        "its axes are not at right angles or not of unit length",
    ]
    assert f"{path.name}: data[2] (chair)" in problems[0]
    path.write_text(json.dumps({"skipped": True, "data": []}))
    assert read_annotation(path) == ([], [f"{path.name}: marked as skipped by the annotators: boxes may be missing"])
    for text, reason in (
        ("{", "not a JSON file"),
        ("[]", "not an annotation"),
        ('{"data": [{}]}', "data\\[0\\] has no"),
    ):
        path.write_text(text)
        with pytest.raises(UnreadableFileError, match=reason):
            read_annotation(path)


def test_scans_are_found_once(tmp_path, scene):
    """Catches a scan downloaded twice being in the data twice, and metadata of another root or column order."""
    write(tmp_path, scene)
    write(tmp_path, scene, layout="raw")
    (tmp_path / "raw" / "Validation" / "41048190" / "lowres_wide").mkdir(parents=True)
    found = find_scans(tmp_path)
    assert {name: (place.split, place.layout) for name, place in found.items()} == {
        video_id(0): ("Training", "3dod"),
        "41048190": ("Validation", "raw"),
    }
    (tmp_path / "raw" / "metadata.csv").write_text("sky_direction,video_id\nDown,41048190.0\nNA,40000000\n,1\n")
    assert read_sky_directions(tmp_path) == {"41048190": "Down"}
    with pytest.raises(UnreadableFileError, match="no scan 7 under"):
        open_scan(tmp_path, "7")
    (tmp_path / "raw" / "metadata.csv").write_text("video\n1\n")
    with pytest.raises(UnreadableFileError, match="no columns video_id and sky_direction"):
        read_sky_directions(tmp_path)
