# SPDX-License-Identifier: Apache-2.0
"""The ScanNet frame-dump reader and the choice of views."""

import os
import shutil
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from scannet_dump import AXIS_ALIGNMENT, DEPTH_INTRINSICS, INTRINSICS, SIZE, camera_to_world, write_scan

from data_scripts.files import UnreadableFileError
from data_scripts.pictures import plain_picture
from data_scripts.preparation.view_selection import spread
from data_scripts.readers.frames import depth_histogram
from data_scripts.readers.scannet import Scan, open_scan


def read_all(folder):
    scan = open_scan(folder)
    return [scan.load(frame) for frame in scan.frames()]


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
    assert view.depth.dtype == view.depth_histogram.dtype == np.float32


def test_no_alignment_is_the_identity(tmp_path):
    """Catches test scans, which have no axisAlignment, being refused or turned."""
    (view,) = read_all(write_scan(tmp_path, "scene0707_00", frames=(0,), alignment=None))
    np.testing.assert_allclose(view.world_to_camera, np.linalg.inv(camera_to_world(0)), atol=1e-6)


def test_missing_scene_description_is_the_identity(tmp_path):
    """Catches frames whose <scene>.txt was not downloaded (`scannet_frames_25k` has none) being refused."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(20,))
    (folder / "scene0000_00.txt").unlink()
    (frame,) = Scan(folder).frames()
    np.testing.assert_allclose(frame.world_to_camera, np.linalg.inv(camera_to_world(20)), atol=1e-6)


def test_description_of_a_windows_editor(tmp_path):
    """Catches an alignment that is lost behind the byte order mark or the line ends of an editor."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(20,))
    (expected,) = Scan(folder).frames()
    for path in (
        folder / "scene0000_00.txt",
        folder / "pose" / "20.txt",
        folder / "intrinsic" / "intrinsic_color.txt",
    ):
        lines = path.read_text().splitlines()
        if path.name == "scene0000_00.txt":
            lines.insert(0, lines.pop())  # the alignment first
        path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in lines).encode())
    (frame,) = Scan(folder).frames()
    np.testing.assert_array_equal(frame.world_to_camera, expected.world_to_camera)


def test_lost_poses_are_told(tmp_path):
    """Catches -inf poses, or frames without a pose file, taken for posed, and frames sorted as text (0, 100, 20)."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0, 20, 40, 100), lost=(20,))
    (folder / "pose" / "40.txt").unlink()
    (folder / "depth" / "100.png").unlink()
    frames = Scan(folder).frames()
    assert [frame.frame_id for frame in frames] == ["0", "20", "40", "100"]
    assert [frame.world_to_camera is not None for frame in frames] == [True, False, False, True]
    assert [frame.complete for frame in frames] == [True, False, False, False]


def test_pictures_alone(tmp_path):
    """Catches a dump of pictures only refused, or read with a pose that nothing backs."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0, 20))
    for name in ("depth", "pose", "intrinsic"):
        shutil.rmtree(folder / name)
    (folder / "scene0000_00.txt").unlink()
    scan = open_scan(folder)
    with pytest.raises(UnreadableFileError, match="intrinsic_color.txt: missing"):
        scan.frames()
    frames = scan.frames(geometry=False)
    view = scan.load(frames[1])
    assert view.encoded == (folder / "color" / "20.jpg").read_bytes() and view.image.size == SIZE
    assert view.world_to_camera is view.intrinsics is view.depth is None


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1e300", "1e7", "nan"])
def test_a_pose_that_is_not_finite_as_float32_is_lost(tmp_path, number):
    """Catches a pose that is finite as it is read and infinite as it is stored: one such camera destroys a model."""
    folder = write_scan(tmp_path, "scene0000_00")
    pose = camera_to_world(20).astype(str)
    pose[0, 3] = number
    (folder / "pose" / "20.txt").write_text("\n".join(map(" ".join, pose)))
    assert [frame.world_to_camera is None for frame in Scan(folder).frames()] == [False, True, False]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("intrinsic/intrinsic_color.txt", "60 0 1e39 0 62 16 0 0 1", "not finite, or beyond 1e"),
        ("intrinsic/intrinsic_color.txt", "1e39 0 24 0 62 16 0 0 1", "not finite, or beyond 1e"),
        ("intrinsic/intrinsic_color.txt", "1e-40 0 24 0 62 16 0 0 1", "focal lengths are not positive"),
        ("intrinsic/intrinsic_color.txt", "60 0 24 0 62 16 0 0 0", "not of the form"),
        ("intrinsic/intrinsic_depth.txt", "20 0 8 0 15 4 0 0 0", "not of the form"),
        ("scene0000_00.txt", "axisAlignment = 1 0 0 1e39 0 1 0 0 0 0 1 0 0 0 0 1", "axisAlignment is not a rigid"),
        ("scene0000_00.txt", f"colorWidth = {'9' * 400}\ncolorHeight = 9", "colorWidth and colorHeight: .* more than"),
    ],
)
def test_a_camera_that_cannot_be_stored_is_named(tmp_path, file, text, reason):
    """Catches numbers of a camera that overflow later: numpy's traceback, a division by zero or an infinite camera."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    (folder / file).write_text(text)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_all(folder)
    assert caught.value.file == str(folder / file)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    """Catches a pipe in a scan's folder, for which a reader waits without end, and a sparse file that fills the memory."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    path = folder / "pose" / "0.txt"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnreadableFileError, match="0.txt: not a regular file"):
        Scan(folder).frames()
    path.unlink()
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UnreadableFileError, match="0.txt: 1099511627776 bytes, more than 1 MiB"):
        Scan(folder).frames()


def test_a_depth_map_beyond_the_bound_is_not_unpacked(tmp_path):
    """Catches a PNG of a few bytes that states 81 MP, of which a depth map takes 500 MB; and depth in other formats."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    path = folder / "depth" / "0.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 9_000, 9_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="0.png: 9000 x 9000 pixels, more than 64 MP"):
        read_all(folder)
    PIL.Image.new("I;16", (8, 8)).save(path, "TIFF")
    with pytest.raises(UnreadableFileError, match="0.png: not a readable depth map"):
        read_all(folder)


@pytest.mark.parametrize(
    ("pose", "reason"),
    [("1 0 0", "3 numbers, expected 16"), ("one", "not a number"), ("0 " * 16, "not a rigid transform")],
)
def test_malformed_pose(tmp_path, pose, reason):
    """Catches a broken pose file ending in numpy's traceback, or in a view with a nonsense pose."""
    folder = write_scan(tmp_path, "scene0000_00")
    (folder / "pose" / "20.txt").write_text(pose)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        Scan(folder).frames()
    assert caught.value.file.endswith("20.txt")


def test_intrinsics_follow_the_size_of_the_picture(tmp_path):
    """Catches intrinsics of the sensor stored with pictures that were dumped smaller."""
    smaller = (SIZE[0] // 2, SIZE[1] // 4)
    (view,) = read_all(write_scan(tmp_path, "scene0000_00", frames=(0,), size=smaller))
    # Pixel edges, not pixel centres, keep their place: -0.5 stays -0.5.
    (fx, _, cx), (_, fy, cy), _ = INTRINSICS[:3, :3]
    expected = [[fx / 2, 0, (cx + 0.5) / 2 - 0.5], [0, fy / 4, (cy + 0.5) / 4 - 0.5], [0, 0, 1]]
    np.testing.assert_allclose(view.intrinsics, expected)
    # The depth maps are of 8 x 8 pixels, the description says 16 x 8.
    (fx, _, cx), (_, fy, cy), _ = DEPTH_INTRINSICS[:3, :3]
    np.testing.assert_allclose(view.depth_intrinsics, [[fx / 2, 0, (cx + 0.5) / 2 - 0.5], [0, fy, cy], [0, 0, 1]])


def test_depth_histogram(tmp_path):
    """Catches invalid pixels being counted, bin edges off by one, and far pixels being dropped."""
    (view,) = read_all(write_scan(tmp_path, "scene0000_00", frames=(0,)))
    expected = np.zeros(16)
    expected[[0, 1, 15]] = 1 / 3
    np.testing.assert_allclose(view.depth_histogram, expected, rtol=1e-6)
    assert depth_histogram(np.full((2, 2), 65.535, dtype=np.float32))[15] == 1
    edges = np.arange(16, dtype=np.float32)[None] / 2  # 0 is none, 0.5 belongs to bin 1
    np.testing.assert_allclose(depth_histogram(edges), np.append(0, np.full(15, 1 / 15)), rtol=1e-6)


def test_no_valid_depth_is_all_zero():
    """Catches a division by zero for a view in which nothing was measured."""
    np.testing.assert_array_equal(depth_histogram(np.zeros((4, 4), dtype=np.float32)), np.zeros(16))


def test_8_bit_depth_is_an_error(tmp_path):
    """Catches a preview picture read as millimetres."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    PIL.Image.new("L", (4, 4), 200).save(folder / "depth" / "0.png")
    with pytest.raises(UnreadableFileError, match="16-bit greyscale, this is mode L"):
        read_all(folder)


def test_truncated_files_of_a_dump(tmp_path):
    """Catches a grey half of a picture, or no depth where there was some, stored after a copy that stopped."""
    folder = write_scan(tmp_path, "scene ü 0", frames=(0,))
    (frame,) = open_scan(folder).frames()
    content = (folder / "depth" / "0.png").read_bytes()
    (folder / "depth" / "0.png").write_bytes(content[:-40])
    with pytest.raises(UnreadableFileError, match="0.png: not a readable depth map"):
        open_scan(folder).load(frame)
    content = (folder / "color" / "0.jpg").read_bytes()
    (folder / "color" / "0.jpg").write_bytes(content[:-20])
    for load in (open_scan(folder).load, open_scan(folder).load_image, lambda f: open_scan(folder).load_image(f, 8)):
        with pytest.raises(UnreadableFileError, match="0.jpg: not a readable picture"):
            load(frame)


def test_a_look_at_a_picture_may_be_smaller(tmp_path):
    """Catches a picture decoded below the size asked for, or at full size for nothing."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,), size=(256, 192))
    scan = open_scan(folder)
    (frame,) = scan.frames()
    assert scan.load_image(frame, at_least=48).size == (64, 48)
    assert scan.load_image(frame, at_least=49).size == (128, 96)
    assert scan.load_image(frame, at_least=500).size == scan.load_image(frame).size == (256, 192)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_truncated_picture(tmp_path, extension):
    """Catches a check that reads only the header of a picture."""
    path = tmp_path / f"picture.{extension}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    content, size = plain_picture(path.read_bytes(), path)
    assert content == path.read_bytes() and size == (64, 64)
    path.write_bytes(content[:-200])
    with pytest.raises(UnreadableFileError, match="not a readable picture"):
        plain_picture(path.read_bytes(), path)


def test_uniform_views_are_evenly_spaced():
    """Catches a selection that clusters or repeats, and one that takes the ends of a scan."""
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(3, 8) == spread(3, 3) == [0, 1, 2]
    assert spread(3, 1) == [1]
    for num_views in range(1, 101):
        gaps = np.diff(spread(100, num_views))
        assert len(gaps) == num_views - 1 and (num_views == 1 or (gaps.min() > 0 and gaps.max() - gaps.min() <= 1))
