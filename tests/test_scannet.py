# SPDX-License-Identifier: Apache-2.0
"""The ScanNet frame-dump reader and the choice of views."""

import numpy as np
import PIL.Image
import pytest
from scannet_dump import AXIS_ALIGNMENT, INTRINSICS, SIZE, camera_to_world, write_scan

from data_scripts.scannet import Scan, depth_histogram
from data_scripts.views import UnreadableFileError, read_picture, select_uniform


def read_all(folder):
    scan = Scan(folder)
    return list(scan.views(scan.camera_poses()))


def test_world_to_camera_is_in_the_aligned_world(tmp_path):
    """Catches a camera-to-world pose passed on, an alignment left out, inverted, transposed or applied on the wrong
    side."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(20,))
    (view,) = read_all(folder)
    point_in_camera = np.array([0.3, -0.2, 2.5])  # right, up, in front of the camera
    point_in_scan = camera_to_world(20) @ np.append(point_in_camera, 1)
    point_in_world = (AXIS_ALIGNMENT @ point_in_scan)[:3]
    found = view.world_to_camera[:3, :3] @ point_in_world + view.world_to_camera[:3, 3]
    np.testing.assert_allclose(found, point_in_camera, atol=1e-5)
    pixel = view.intrinsics @ found
    np.testing.assert_allclose(pixel[:2] / pixel[2], [24 + 60 * 0.3 / 2.5, 16 - 62 * 0.2 / 2.5], atol=1e-4)
    assert view.world_to_camera.dtype == view.intrinsics.dtype == view.depth_histogram.dtype == np.float32


def test_no_alignment_is_the_identity(tmp_path):
    """Catches test scans, which have no axisAlignment, being refused or turned."""
    (view,) = read_all(write_scan(tmp_path, "scene0707_00", frames=(0,), alignment=None))
    np.testing.assert_allclose(view.world_to_camera, np.linalg.inv(camera_to_world(0)), atol=1e-6)


def test_missing_scene_description_is_an_error(tmp_path):
    """Catches a dump whose <scene>.txt was not downloaded being taken for an unaligned scan."""
    folder = write_scan(tmp_path, "scene0000_00")
    (folder / "scene0000_00.txt").unlink()
    with pytest.raises(UnreadableFileError, match="scene0000_00.txt: missing"):
        Scan(folder)


def test_lost_poses_are_no_candidates(tmp_path):
    """Catches -inf poses, or frames without a pose file, becoming views."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0, 20, 40, 100), lost=(20,))
    (folder / "pose" / "40.txt").unlink()
    assert sorted(Scan(folder).camera_poses(), key=int) == ["0", "100"]


@pytest.mark.parametrize(
    ("pose", "reason"),
    [("1 0 0", "3 numbers, expected 16"), ("one", "not a number"), ("0 " * 16, "not a rigid transform")],
)
def test_malformed_pose(tmp_path, pose, reason):
    """Catches a broken pose file ending in numpy's traceback, or in a view with a nonsense pose."""
    folder = write_scan(tmp_path, "scene0000_00")
    (folder / "pose" / "20.txt").write_text(pose)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        Scan(folder).camera_poses()
    assert caught.value.file.endswith("20.txt")


def test_intrinsics_follow_the_size_of_the_picture(tmp_path):
    """Catches intrinsics of the sensor stored with pictures that were dumped smaller."""
    smaller = (SIZE[0] // 2, SIZE[1] // 4)
    (view,) = read_all(write_scan(tmp_path, "scene0000_00", frames=(0,), size=smaller))
    np.testing.assert_allclose(view.intrinsics, np.diag([0.5, 0.25, 1]) @ INTRINSICS[:3, :3])


def test_depth_histogram(tmp_path):
    """Catches invalid pixels being counted, bin edges off by one, and far pixels being dropped."""
    (view,) = read_all(write_scan(tmp_path, "scene0000_00", frames=(0,)))
    expected = np.zeros(16)
    expected[[0, 1, 15]] = 1 / 3
    np.testing.assert_allclose(view.depth_histogram, expected, rtol=1e-6)
    assert depth_histogram(np.full((2, 2), 65535, dtype=np.uint16))[15] == 1


def test_no_valid_depth_is_all_zero():
    """Catches a division by zero for a view in which nothing was measured."""
    np.testing.assert_array_equal(depth_histogram(np.zeros((4, 4), dtype=np.uint16)), np.zeros(16))


def test_missing_and_8_bit_depth_are_errors(tmp_path):
    """Catches a histogram made up for missing depth, and a preview picture read as millimetres."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    PIL.Image.new("L", (4, 4), 200).save(folder / "depth" / "0.png")
    with pytest.raises(UnreadableFileError, match="16-bit greyscale, this is mode L"):
        read_all(folder)
    (folder / "depth" / "0.png").unlink()
    with pytest.raises(UnreadableFileError, match="0.png: missing"):
        read_all(folder)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_truncated_picture(tmp_path, extension):
    """Catches a check that reads only the header of a picture."""
    path = tmp_path / f"picture.{extension}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    content, size = read_picture(path)
    assert content == path.read_bytes() and size == (64, 64)
    path.write_bytes(content[:-200])
    with pytest.raises(UnreadableFileError, match="not a readable picture"):
        read_picture(path)


def test_uniform_views_are_ordered_by_number_and_evenly_spaced():
    """Catches frames sorted as text (0, 100, 20), and a selection that clusters, repeats or depends on the input's
    order."""
    frames = [str(20 * n) for n in range(100)]
    chosen = select_uniform(frames[::-1], 4)
    assert chosen == select_uniform(frames, 4) == ["240", "740", "1240", "1740"]
    assert select_uniform(["100", "0", "20"], 8) == ["0", "20", "100"]
    assert select_uniform(["100", "0", "20"], 3) == ["0", "20", "100"]
    assert select_uniform(["100", "0", "20"], 1) == ["20"]
    for num_views in range(1, 101):
        indices = [frames.index(frame) for frame in select_uniform(frames, num_views)]
        gaps = np.diff(indices)
        assert len(set(indices)) == num_views and (num_views == 1 or gaps.max() - gaps.min() <= 1)
