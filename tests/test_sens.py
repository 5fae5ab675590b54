# SPDX-License-Identifier: Apache-2.0
"""The `.sens` reader, on streams of rooms whose cameras are known, and on broken ones."""

import io
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from room_truth import assert_true, room

from data_scripts.files import UnreadableFileError
from data_scripts.readers.scannet import Scan, mesh_center, open_scan
from data_scripts.readers.sens import SensStream
from data_scripts.synthetic.layout import HEIGHT
from data_scripts.synthetic.sens_writer import SENSOR_NAME, write_sens


HEADER_BYTES = 4 + 8 + len(SENSOR_NAME) + 4 * 64  # up to the compressions


@pytest.fixture(scope="module")
def scene():
    return room()


@pytest.fixture()
def folder(tmp_path, scene):
    path = tmp_path / "räume 1" / "scene0000_00"  # a space and a letter that is not ASCII
    write_sens(path, scene)
    return path


def overwrite(folder, offset: int, content: bytes):
    path = folder / f"{folder.name}.sens"
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)
    return path


def test_views_agree_with_the_truth(folder, scene):
    """Catches a header read at a wrong offset, a pose inverted or not aligned, and depth in the wrong unit."""
    scan = open_scan(folder)
    frames = scan.frames()
    assert [frame.frame_id for frame in frames] == ["0", "1", "2"] and all(frame.complete for frame in frames)
    assert frames[2].timestamp == pytest.approx(2 / 30, abs=1e-4)
    for number, frame in enumerate(frames):
        view = scan.load(frame)
        assert_true(view, scene, number, world=np.eye(4), exact_picture=False)
        assert view.encoded.startswith(b"\xff\xd8")
        depth, camera = scan.load_depth(frame)
        assert np.array_equal(depth, view.depth) and np.array_equal(camera, view.depth_intrinsics)


def test_a_dump_is_preferred(folder):
    """Catches a scan that is there twice being read as neither."""
    (folder / "color").mkdir()
    assert open_scan(folder).frames(geometry=False) == []
    with pytest.raises(UnreadableFileError, match="neither a folder 'color' nor a stream scene0001_00.sens"):
        open_scan(folder.with_name("scene0001_00"))


def test_mesh_center_is_that_of_the_raw_frame(folder, scene):
    """Catches a centre of mass, or one in the aligned frame, where SQA3D measures from the raw bounding box's middle."""
    x, y = scene.size / 2
    corners = np.array([[i, j, k, 1] for i in (-x, x) for j in (-y, y) for k in (0, HEIGHT)])
    raw = (np.linalg.inv(scene.alignment) @ corners.T)[:3]
    np.testing.assert_allclose(mesh_center(folder), (raw.min(axis=1) + raw.max(axis=1)) / 2, atol=1e-3)
    mesh = folder / f"{folder.name}_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:1000])
    with pytest.raises(UnreadableFileError, match="not a readable mesh"):
        mesh_center(folder)
    mesh.unlink()
    assert mesh_center(folder) is None


def test_lost_poses(folder):
    """Catches an -inf pose becoming a view."""
    data = (folder / f"{folder.name}.sens").read_bytes()
    first = HEADER_BYTES + 8 + 16 + 4 + 8
    sizes = struct.unpack_from("<QQ", data, first + 80)
    overwrite(folder, first + 96 + sum(sizes), struct.pack("<f", -np.inf) * 16)
    frames = Scan(folder).frames()
    assert [frame.world_to_camera is None for frame in frames] == [False, True, False]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.999])
def test_cut_short(folder, kept):
    """Catches a download that stopped being read as a shorter recording, or failing only at the last view."""
    path = folder / f"{folder.name}.sens"
    data = path.read_bytes()[:-8]  # without the count of motion samples, which nothing needs
    path.write_bytes(data)
    assert len(SensStream(path)) == 3
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UnreadableFileError, match="cut short") as caught:
        open_scan(folder).frames()
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (0, struct.pack("<I", 3), "not a .sens stream of version 4"),
        (4, struct.pack("<Q", 2**40), "not a .sens stream"),
        (HEADER_BYTES, struct.pack("<i", 7), "colour compression 7 is not known"),
        (HEADER_BYTES + 4, struct.pack("<i", 2), "occi_ushort cannot be read"),
        (HEADER_BYTES + 24, struct.pack("<f", 0), "depth units per metre"),
        (HEADER_BYTES + 28, struct.pack("<Q", 2**50), "cannot hold the 1125899906842624 frames"),
        (4 + 8 + len(SENSOR_NAME), struct.pack("<f", np.nan), "focal lengths"),
        (HEADER_BYTES + 36, struct.pack("<f", 9), "not a rigid transform"),
    ],
)
def test_malformed(folder, offset, content, reason):
    """Catches another kind of file, or a damaged header, ending in struct's traceback or in all of the memory."""
    overwrite(folder, offset, content)
    with pytest.raises(UnreadableFileError, match=reason):
        open_scan(folder).frames()


def test_damaged_frames_are_named(folder):
    """Catches damage inside a frame's data that seeking over it cannot see."""
    scan = open_scan(folder)
    (frame, *_) = scan.frames()
    first = HEADER_BYTES + 8 + 16 + 4 + 8
    color, depth = struct.unpack_from("<QQ", (folder / f"{folder.name}.sens").read_bytes(), first + 80)
    overwrite(folder, first + 96 + color, bytes(depth))
    with pytest.raises(UnreadableFileError, match=r"frame 0\).*not a readable depth map"):
        scan.load(frame)
    overwrite(folder, first + 96, bytes(color))
    with pytest.raises(UnreadableFileError, match=r"frame 0\).*not a readable picture"):
        scan.load(frame)


def test_raw_streams(tmp_path, scene):
    """Catches the compressions other than ScanNet's usual ones being read as these, and an empty frame becoming a view."""
    path = tmp_path / "scene" / "scene.sens"
    path.parent.mkdir()
    height, width = scene.rgb.shape[1:3]
    camera = np.eye(4)
    camera[:3, :3] = scene.camera
    frame = scene.rgb[0].tobytes() + scene.depth[0].astype("<u2").tobytes()
    path.write_bytes(
        struct.pack("<IQ", 4, 0)
        + np.stack([camera, np.eye(4), camera, np.eye(4)]).astype("<f4").tobytes()
        + struct.pack("<iiIIIIfQ", 0, 0, width, height, width, height, 500.0, 2)
        + np.eye(4, dtype="<f4").tobytes()
        + struct.pack("<QQQQ", 1_500_000, 0, 3 * width * height, 2 * width * height)
        + frame
        + np.eye(4, dtype="<f4").tobytes()
        + bytes(32)
    )
    stream = SensStream(path)
    assert np.array_equal(np.asarray(stream.picture(0)), scene.rgb[0]) and stream.encoded_picture(0) is None
    np.testing.assert_allclose(stream.depth(0), scene.depth[0] / 500, rtol=1e-6)
    assert stream.timestamps.tolist() == [1.5, 0] and not stream.has_depth(1)
    assert [frame.frame_id for frame in open_scan(path.parent).frames(geometry=False)] == ["0"]


def test_a_zip_bomb_is_not_unpacked(folder):
    """Catches depth data that expands to more than its size says."""
    first = HEADER_BYTES + 8 + 16 + 4 + 8
    color, depth = struct.unpack_from("<QQ", (folder / f"{folder.name}.sens").read_bytes(), first + 80)
    bomb = zlib.compress(bytes(2**20), 9)
    assert len(bomb) <= depth
    overwrite(folder, first + 96 + color, bomb)
    scan = open_scan(folder)
    with pytest.raises(UnreadableFileError, match="bytes of depth, expected 6144"):
        scan.load_depth(scan.frames()[0])


SIZES = HEADER_BYTES + 8  # where the header has width and height of colour, then of depth
FRAMES = SIZES + 16 + 4 + 8  # where the first frame begins


@pytest.mark.parametrize("offset", [SIZES, SIZES + 8])
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((0, 0), "0 x 0 pixels, not positive"),
        ((64, 0), "64 x 0 pixels, not positive"),
        ((2**32 - 1, 2**32 - 1), "4294967295 x 4294967295 pixels, more than 64 MP"),
        ((8001, 8000), "8001 x 8000 pixels, more than 64 MP"),
    ],
)
def test_sizes_that_cannot_be_true(folder, offset, size, reason):
    """Catches a header's size that is believed: a division by zero, or all of the memory, when the frame is read."""
    overwrite(folder, offset, struct.pack("<II", *size))
    with pytest.raises(UnreadableFileError, match=f"the header's size of (colour|depth): {reason}"):
        open_scan(folder).frames()


@pytest.mark.parametrize("declared", [(8000, 8000), (30000, 30000)])
def test_a_bomb_takes_no_memory(folder, declared):
    """Catches a depth map of a few bytes for which gigabytes are taken: 1.8 MB once made 5.3 GB."""
    color, depth = struct.unpack_from("<QQ", (folder / f"{folder.name}.sens").read_bytes(), FRAMES + 80)
    bomb = zlib.compress(bytes(2**21), 9)  # not all that is stated, either
    assert len(bomb) <= depth
    overwrite(folder, SIZES + 8, struct.pack("<II", *declared))
    overwrite(folder, FRAMES + 96 + color, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableFileError, match="more than 64 MP|2097152 bytes of depth, expected 128000000"):
            open_scan(folder).load_depth(open_scan(folder).frames()[0])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_depth_without_its_end(folder):
    """Catches depth data whose checksum is wrong or was cut off: as many bytes as expected are no proof."""
    data = (folder / f"{folder.name}.sens").read_bytes()
    last = FRAMES
    for _ in range(2):
        last += 96 + sum(struct.unpack_from("<QQ", data, last + 80))
    color, depth = struct.unpack_from("<QQ", data, last + 80)
    kept, packed = data[last + 96 : last + 96 + color], data[last + 96 + color : last + 96 + color + depth]
    for broken, reason in ((packed[:-4] + bytes(4), "check"), (packed[:-4], "cut short")):
        content = data[: last + 88] + struct.pack("<Q", len(broken)) + kept + broken
        (folder / f"{folder.name}.sens").write_bytes(content)
        scan = open_scan(folder)
        with pytest.raises(UnreadableFileError, match=rf"frame 2\): not a readable depth map \(.*{reason}"):
            scan.load_depth(scan.frames()[2])


def test_a_picture_has_the_size_that_the_header_states(folder):
    """Catches a picture of 100 MP in a stream of small ones, and intrinsics scaled to a size that is not the sensor's."""
    color, _ = struct.unpack_from("<QQ", (folder / f"{folder.name}.sens").read_bytes(), FRAMES + 80)
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (65, 48)).save(buffer, "JPEG")
    assert len(buffer.getvalue()) <= color
    overwrite(folder, FRAMES + 96, buffer.getvalue())
    scan = open_scan(folder)
    for load in (scan.load, scan.load_image, lambda frame: scan.load_image(frame, 8)):
        with pytest.raises(UnreadableFileError, match=r"frame 0\): a picture of 65 x 48 pixels, stated are 64 x 48"):
            load(scan.frames()[0])


def test_lengths_and_counts_that_cannot_be_true(folder):
    """Catches a sparse file of a terabyte that costs nothing to send and all memory to read: it is as long as it says."""
    path = folder / f"{folder.name}.sens"
    data = path.read_bytes()
    for offset, number, length, reason in (
        (FRAMES + 80, 2**40, 2**41, "frame 0 of 3: 1099511627776 bytes of colour, more than"),
        (FRAMES + 88, 2**40, 2**41, "frame 0 of 3: 1099511627776 bytes of depth, more than"),
        (FRAMES - 8, 2**32, 2**40, "4294967296 frames, more than 1000000"),
        (FRAMES + 80, 2**64 - 1, len(data), "frame 0 of 3"),
    ):
        path.write_bytes(data)
        overwrite(folder, offset, struct.pack("<Q", number))
        with open(path, "r+b") as stream:
            stream.truncate(length)
        with pytest.raises(UnreadableFileError, match=reason):
            open_scan(folder).frames()


@pytest.mark.parametrize("number", [1e39, 1e30, np.nan, -np.inf])
def test_numbers_that_are_not_those_of_a_camera(folder, number):
    """Catches a pose or intrinsics that is finite as it is read and infinite, or its square is, for the model: one destroys it."""
    with np.errstate(over="ignore"):
        packed = np.float32(number).tobytes()
    overwrite(folder, FRAMES + 12, packed)  # x of the first frame's place
    assert [frame.world_to_camera is None for frame in open_scan(folder).frames()] == [True, False, False]
    overwrite(folder, 4 + 8 + len(SENSOR_NAME) + 8, packed)  # cx
    with pytest.raises(UnreadableFileError, match="the intrinsics hold a number that is not finite, or beyond 1e"):
        open_scan(folder).frames()


def test_a_few_views_of_a_long_stream_are_cheap(tmp_path, scene):
    """Catches a reader that copies or decodes what it was not asked for: 8 views of 1,000 frames in 5 % of the time."""
    repeated = np.zeros(1000, dtype=int)
    long = replace(
        scene,
        poses=scene.poses[repeated],
        rgb=np.repeat(np.repeat(scene.rgb[repeated], 4, axis=1), 4, axis=2),
        depth=np.repeat(np.repeat(scene.depth[repeated], 4, axis=1), 4, axis=2),
    )
    write_sens(tmp_path / "scene0000_00", long)

    def cost(step: int) -> float:
        start = time.process_time()
        scan = open_scan(tmp_path / "scene0000_00")
        for frame in scan.frames()[::step]:
            scan.load(frame)
        return time.process_time() - start

    assert min(cost(125), cost(125)) < 0.05 * cost(1)
