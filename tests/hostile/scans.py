# SPDX-License-Identifier: Apache-2.0
"""Scans of strangers: a valid scan of each format, one file of which is replaced by something else.

A case is the file, relative to the scan's folder, and what is written there; `tried` puts it there, reads all of the scan by
the format's reader and puts the scan back as it was.
"""

import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from room_truth import room

from data_scripts.preparation.view_selection import picture_fault, select_views, visible_voxels
from data_scripts.readers import arkitscenes, scannet
from data_scripts.readers.frames import describe_geometry_fault
from data_scripts.readers.roomplan import read_captured_room
from data_scripts.synthetic.arkitscenes_writer import metadata_csv, video_id, write_arkitscenes
from data_scripts.synthetic.roomplan_writer import captured_room
from data_scripts.synthetic.scannet_writer import write_scan
from data_scripts.synthetic.sens_writer import SENSOR_NAME, write_sens


# In place of a number in a text file.
WORDS = (
    *(
        "nan",
        "inf",
        "-inf",
        "1e39",
        "-1e39",
        "1e30",
        "1e300",
        "1e309",
        "-1e-320",
        "0",
        "-1",
        "9" * 400,
        "9" * 5000,
        "1_0",
        "0x10",
    ),
    *("one", "1,5", "１", "1e", "--1", "\0", "\x1b[2J", "1j", "None", " ", "1 1", "\u2028", "=", "-", "+inf", "1e-40"),
)
# In place of a value in a JSON file; written as they are.
FRAGMENTS = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1e39",
        "1e309",
        "-1e309",
        "NaN",
        "-Infinity",
        "9" * 400,
        "9" * 5000,
        "1e-320",
        '""',
        '"x"',
    ),
    *('"\\ud800"', '"\\u0000"', '"\\n"', f'"{"a" * 5000}"', '"../../etc"', "[]", "[[]]", "{}", '{"": {}}', '{"a": 1}'),
    *(
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "[" * 900 + "]" * 900,
        "[1,",
        "'x'",
        "[1,2,3]",
    ),
    *('{"\\udfff": {}}', "[null, null, null]", "[1e39, 1e39, 1e39]", "[1e300, 1, 1]", "[true, 1, 1]", '["1", 1, 1]'),
)
# In place of a file.
CONTENTS = (
    *(
        b"",
        b"\0",
        b"\n\n\n",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04" + bytes(100),
        b"[" * 100_000,
    ),
    *(
        b'{"data": [',
        b"null",
        b"9" * 100_000,
        b"1 " * 100_000,
        b"\r" * 1000,
        b"\x80" * 1000,
        "\ud800".encode(errors="surrogatepass"),
    ),
)


def _make_pipe(path: Path):
    os.mkfifo(path)


def _make_terabyte(path: Path):
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)


def _make_65_mebibytes(path: Path):
    """As many as become gigabytes of Python's objects."""
    with open(path, "wb") as stream:
        stream.truncate(65 << 20)


def _make_loop(path: Path):
    path.symlink_to(path.name)


SPECIAL = {
    "a pipe": _make_pipe,
    "a sparse terabyte": _make_terabyte,
    "65 MiB of zeros": _make_65_mebibytes,
    "a link to itself": _make_loop,
    "a folder": Path.mkdir,
}


@dataclass(frozen=True)
class Case:
    """A file, relative to the scan's folder, and its content; or, as a function of its path, what is made there."""

    file: str
    content: bytes | Callable[[Path], None]


@dataclass
class World:
    """A valid scan of one format.

    Attributes:
        folder: the scan.
        read: reads all of the scan that a preparation would read, and checks that what comes out can be stored.
        cases: the hostile ones.
    """

    folder: Path
    read: Callable[[], None]
    cases: list[tuple[str, Case]]

    def tried(self, case: Case):
        """Reads the scan with one file replaced."""
        with self.replaced(case):
            self.read()

    @contextmanager
    def replaced(self, case: Case) -> Iterator[Path]:
        path = self.folder / case.file
        kept = path.read_bytes() if path.is_file() else None
        try:
            if callable(case.content):
                path.unlink(missing_ok=True)
                case.content(path)
            else:
                path.write_bytes(case.content)
            yield path
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if kept is not None:
                path.write_bytes(kept)


def read_all(scan):
    """What a preparation reads of a scan; everything that is accepted has to be a number in float32."""
    frames = scan.frames()
    posed = [frame for frame in frames if frame.complete]
    for frame in scan.frames(geometry=False):
        picture_fault(scan, frame)
    if not posed:
        return
    views, _ = select_views(scan, posed, 2, "uniform", 10)
    views = [scan.load(frame) for frame in views]
    for frame in posed:  # what the selection `coverage` does before it gives up a frame
        visible_voxels(scan, frame)
    geometry = {
        "R": [view.world_to_camera[:3, :3] for view in views],
        "t": [view.world_to_camera[:3, 3] for view in views],
        "K": [view.intrinsics for view in views],
        "depth_hist": [view.depth_histogram for view in views],
    }
    assert describe_geometry_fault(geometry) is None
    assert all(np.isfinite(view.depth).all() and np.isfinite(view.depth_intrinsics).all() for view in views)


def scannet_dump(root: Path, seed: int = 0) -> World:
    folder = root / "scans" / "scene0000_00"
    write_scan(folder, room(views=2))
    draw = random.Random(seed)
    texts = ["pose/0.txt", "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt", "scene0000_00.txt"]
    cases = [case for file in texts for case in _texts(folder, file, draw)]
    cases += _pictures(folder, ["color/0.jpg", "depth/0.png"]) + list(_meshes(folder, "scene0000_00_vh_clean_2.ply"))
    for name in (
        "pose/" + "9" * 200 + ".txt",
        "color/nan.jpg",
        "color/" + "9" * 200 + ".jpg",
        "color/00.jpg",
        "pose/00.txt",
    ):
        cases.append((name[:40], Case(name, b"1")))

    def read():
        read_all(scannet.open_scan(folder))
        scannet.mesh_center(folder)

    return World(folder, read, cases)


def sens(root: Path, seed: int = 0) -> World:
    folder = root / "scans" / "scene0000_00"
    write_sens(folder, room(views=2))
    draw = random.Random(seed)
    file = "scene0000_00.sens"
    data = (folder / file).read_bytes()
    header = 4 + 8 + len(SENSOR_NAME)
    frame = header + 4 * 64 + 8 + 16 + 4 + 8
    integers = [(0, "<I"), (4, "<Q"), *((header + 256 + 4 * n, "<I") for n in range(6)), (frame - 8, "<Q")]
    integers += [(frame + 64 + 8 * n, "<Q") for n in range(4)]
    floats = (
        [header + 4 * n for n in (0, 2, 5, 6, 8, 10, 32, 34, 37, 40)]
        + [frame - 12]
        + [frame + 4 * n for n in (0, 3, 6, 11, 15)]
    )
    cases = []
    for offset, kind in integers:
        top = 2 ** (8 * struct.calcsize(kind))
        for number in (0, 1, 2, 3, 8, 255, 8000, 2**16, 2**20, 2**24 + 1, top // 2 - 1, top // 2, top - 1, top - 96):
            cases.append(
                (f"{number} at byte {offset}", Case(file, _patched(data, offset, struct.pack(kind, number % top))))
            )
    for offset in floats:
        for number in (0, -0.0, -1, 1e-45, 1e-30, 1e7, 1e30, 3e38, np.inf, -np.inf, np.nan):
            with np.errstate(all="ignore"):
                cases.append(
                    (f"{number} at byte {offset}", Case(file, _patched(data, offset, np.float32(number).tobytes())))
                )
    for length in (
        3,
        11,
        12,
        100,
        header,
        header + 250,
        frame - 1,
        frame,
        frame + 95,
        frame + 97,
        len(data) - 20,
        len(data) - 9,
    ):
        cases.append((f"cut at byte {length}", Case(file, data[:length])))
    color, depth = struct.unpack_from("<QQ", data, frame + 80)
    for name, blob in {
        "a bomb": zlib.compress(bytes(1 << 22), 9), "noise": draw.randbytes(500), "nothing": zlib.compress(b""),
        "a bomb in a bomb": zlib.compress(zlib.compress(bytes(1 << 22))), "a dictionary": b"\x78\xbb" + draw.randbytes(50),
    }.items():  # fmt: skip
        if len(blob) <= depth:
            cases.append((f"depth is {name}", Case(file, _patched(data, frame + 96 + color, blob))))
    for name, blob in _encoded_pictures():
        if len(blob) <= color:
            cases.append((f"colour is {name}", Case(file, _patched(data, frame + 96, blob))))
    for _ in range(60):  # a few bytes anywhere
        content = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(frame + 96 if draw.random() < 0.7 else len(data))] = draw.randrange(256)
        cases.append(("bytes changed", Case(file, bytes(content))))
    cases += _special([file])

    def read():
        read_all(scannet.open_scan(folder))

    return World(folder, read, cases)


def arkitscenes_scan(root: Path, seed: int = 0) -> World:
    folder = root / "3dod" / "Training" / video_id(0)
    write_arkitscenes(np.random.default_rng(0), folder, room(views=2), "3dod", "Left")
    (root / "metadata.csv").write_text(metadata_csv(["train"], ["Left"]))
    draw = random.Random(seed)
    content = f"{video_id(0)}_frames"
    first = {kind: sorted((folder / content / kind).iterdir())[0].name for kind in arkitscenes.FRAME_FOLDERS}
    trajectory = f"{content}/lowres_wide.traj"
    pincam = f"{content}/lowres_wide_intrinsics/{first['lowres_wide_intrinsics']}"
    annotation = f"{video_id(0)}_3dod_annotation.json"
    cases = [*_texts(folder, trajectory, draw), *_texts(folder, pincam, draw)]
    cases += _pictures(folder, [f"{content}/{kind}/{first[kind]}" for kind in ("lowres_wide", "lowres_depth")])
    cases += _jsons(folder, annotation, draw, 150)
    for name in (
        "x_nan.png",
        "x_inf.png",
        "x_1e400.png",
        "x_-1.png",
        "x_" + "9" * 200 + ".png",
        "x.png",
        "x_1e11.png",
        "_.png",
    ):
        cases.append((name[:40], Case(f"{content}/lowres_wide/{name}", b"1")))
        cases.append((name[:40], Case(f"{content}/lowres_depth/{name}", b"1")))
    for name, table in {
        "a field of 200 kB": b"video_id,sky_direction\n" + b"1" * 200_000 + b",Up\n", "no columns": b"a,b\n1,2\n",
        "a quote left open": b'video_id,sky_direction\n"1,Up\n', "short rows": b"video_id,sky_direction\n1\n\n,\n1,2,3\n",
        "NUL": b"video_id,sky_direction\n\0,Up\n", "no text": b"\xff\xfe\xfd", "empty": b"",
    }.items():  # fmt: skip
        cases.append((f"metadata with {name}", Case("../../../metadata.csv", table)))

    def read():
        scan = arkitscenes.open_scan(root, video_id(0))
        read_all(scan)
        scan.boxes()

    return World(folder, read, cases)


def roomplan(root: Path, seed: int = 0) -> World:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "room.json"
    path.write_text(json.dumps(captured_room(np.random.default_rng(0), room(views=2))))
    cases = list(_jsons(root, path.name, random.Random(seed), 300))

    def read():
        found = read_captured_room(path)
        for box in found.boxes():  # what is accepted can be written, and is a place in the world
            assert np.isfinite(box.corners).all()
            box.label.encode(), box.identifier.encode()
        "\n".join(found.problems).encode()

    return World(root, read, cases)


def _texts(folder: Path, file: str, draw: random.Random) -> Iterator[tuple[str, Case]]:
    """A text file with one of its words replaced by each of `WORDS`, and other contents."""
    lines = (folder / file).read_text().splitlines()
    for word in WORDS:
        changed = [line.split(" ") for line in lines]
        line = draw.choice([line for line in changed if len(line) > 1])
        line[draw.randrange(len(line))] = word
        text = "\n".join(" ".join(line) for line in changed)
        yield f"{file}: {word[:20]!r}", Case(file, text.encode(errors="surrogatepass"))
    for content in CONTENTS:
        yield f"{file}: {content[:20]!r}", Case(file, content)
    yield f"{file}: twice", Case(file, (folder / file).read_bytes() * 2)
    yield from _special([file])


def _special(files: list[str]) -> list[tuple[str, Case]]:
    return [(f"{file}: {what}", Case(file, make)) for file in files for what, make in SPECIAL.items()]


def _jsons(folder: Path, file: str, draw: random.Random, count: int) -> Iterator[tuple[str, Case]]:
    """A JSON file with a value anywhere in it replaced by one of `FRAGMENTS`, or left out, and other contents."""
    root = json.loads((folder / file).read_text())
    places = list(_places(root))
    for number in range(count):
        fragment = FRAGMENTS[number % len(FRAGMENTS)]
        # Beside values anywhere, mostly numbers of some list, those near the top, which are few.
        place = draw.choice(places if number % 2 else [place for place in places if len(place) < 4])
        yield f"{file}: {'.'.join(map(str, place))} = {fragment[:20]}", Case(file, _with(root, place, fragment))
    for content in CONTENTS:
        yield f"{file}: {content[:20]!r}", Case(file, content)
    yield from _special([file])


def _places(value: object, place: tuple = ()) -> Iterator[tuple]:
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _places(entry, (*place, key))


def _with(root: object, place: tuple, fragment: str) -> bytes:
    """The JSON text of `root` with `fragment`, which need not be JSON, at `place`."""
    mark = "@here@"
    if not place:
        return fragment.encode()
    copy = json.loads(json.dumps(root))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = mark
    return json.dumps(copy).replace(json.dumps(mark), fragment).encode()


def _pictures(folder: Path, files: list[str]) -> list[tuple[str, Case]]:
    cases = [(f"{file}: {what}", Case(file, content)) for file in files for what, content in _encoded_pictures()]
    for file in files:
        data = (folder / file).read_bytes()
        cases += [(f"{file}: cut", Case(file, data[: len(data) * part // 4])) for part in range(4)]
    return cases + _special(files)


def _encoded_pictures() -> Iterator[tuple[str, bytes]]:
    """Small files that are other pictures than expected, or none; some state sizes that are not theirs."""
    for mode, form in (
        ("RGB", "PNG"),
        ("I;16", "PNG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("CMYK", "JPEG"),
    ):
        buffer = io.BytesIO()
        PIL.Image.new(mode, (3, 2)).save(buffer, form)
        yield f"a {form} of {mode}", buffer.getvalue()
    for width, height in ((0, 0), (0, 5), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (50_000, 1_000)):
        for depth, color in ((16, 0), (8, 2)):
            yield f"a PNG of {width} x {height}", png(width, height, depth, color, zlib.compress(bytes(1000)))
    yield (
        "a PNG with a bomb for text",
        png(2, 2, 8, 2, zlib.compress(bytes(14)), text=zlib.compress(bytes(1 << 24), 9)),
    )
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


def png(width: int, height: int, depth: int, color: int, data: bytes, text: bytes | None = None) -> bytes:
    """A PNG file that states whatever one likes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    chunks += [(b"zTXt", b"a\0\0" + text)] if text else []
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _meshes(folder: Path, file: str) -> Iterator[tuple[str, Case]]:
    data = (folder / file).read_bytes()
    for before, after in (
        (b"little", b"big"), (b"vertex ", b"vertex -"), (b"vertex ", b"vertex 9999999999"), (b"float x", b"float y"),
        (b"face ", b"face 99999999999"), (b"uchar int", b"uchar quad"), (b"end_header\n", b""), (b"float x", b"char x"),
        (b"binary_little_endian", b"ascii"), (b"float z", b"double z"), (b"ply\n", b"ply\r\n"), (b"format", b"\xff\xff"),
    ):  # fmt: skip
        yield f"{file}: {after[:20]!r}", Case(file, data.replace(before, after, 1))
    start = data.index(b"end_header\n") + 11
    for number in (np.nan, np.inf, 1e39, 1e30):
        with np.errstate(all="ignore"):
            yield f"{file}: {number}", Case(file, _patched(data, start, np.float32(number).tobytes()))
    for content in CONTENTS:
        yield f"{file}: {content[:20]!r}", Case(file, content)
    yield from _special([file])


def _patched(data: bytes, offset: int, content: bytes) -> bytes:
    return data[:offset] + content + data[offset + len(content) :]


__all__ = ["Case", "World", "arkitscenes_scan", "png", "roomplan", "scannet_dump", "sens"]
