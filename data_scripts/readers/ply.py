# SPDX-License-Identifier: Apache-2.0
"""Reads the vertices of a PLY mesh and writes one: of the format, only what ScanNet's meshes are made of.

Read are `ascii` and `binary_little_endian` files whose first element is `vertex`, with numbers `x`, `y`, `z` among its
properties; faces are looked at only to tell whether the file is whole. Written is `binary_little_endian`.

Source: http://paulbourke.net/dataformats/ply/
"""

import io
from pathlib import Path

import numpy as np

from ..files import UnreadableFileError, read_bytes


HEADER_BYTES = 1 << 16  # a longer one is none
TRIANGLE = 3
# Both spellings of the types.
_TYPES = {"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4"}
_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"}
_TYPES |= {"double": "<f8", "float32": "<f4", "float64": "<f8"}


class _Malformed(ValueError):
    """What is wrong with a file, in a few words."""


def read_vertices(path: Path) -> np.ndarray:
    """The vertices of a mesh.

    Returns:
        `[N, 3]` float64, as they are in the file, finite or not.

    Raises:
        UnreadableFileError: the file is missing, is no such PLY file, or is cut short.
    """
    content = read_bytes(path)
    try:
        return _vertices(content)
    except _Malformed as error:
        raise UnreadableFileError(path, f"not a readable mesh ({error})") from None


def _vertices(content: bytes) -> np.ndarray:
    binary, elements, start = _read_header(content)
    name, count, properties = elements[0]
    if name != "vertex" or any(kind is None for _, kind, _ in properties):
        raise _Malformed("its first element is not 'vertex' with numbers alone")
    columns = [column for column, _, _ in properties]
    if not {"x", "y", "z"} <= set(columns) or len(set(columns)) < len(columns):
        raise _Malformed("its vertices have no x, y and z, or a property twice")
    if not binary:
        return _text_vertices(content[start:], count, columns)
    row = np.dtype([(column, kind) for column, kind, _ in properties])
    expected = start + count * row.itemsize + sum(map(_least_bytes, elements[1:]))
    if len(content) < expected:
        raise _Malformed(f"cut short: {len(content)} bytes, expected at least {expected}")
    table = np.frombuffer(content[start:], dtype=row, count=count) if count else np.empty(0, row)
    with np.errstate(invalid="ignore"):  # of a NaN
        return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _text_vertices(content: bytes, count: int, columns: list[str]) -> np.ndarray:
    if count * len("0 0 0\n") > len(content) + 1:  # before memory is taken for a number that cannot be true
        raise _Malformed(f"cut short: {len(content)} bytes cannot hold {count} vertices")
    points = np.empty((count, 3))
    where = [columns.index(axis) for axis in "xyz"]
    for row, line in zip(range(count), io.BytesIO(content)):
        words = line.split()
        if len(words) != len(columns):
            raise _Malformed(f"vertex {row} has {len(words)} numbers, expected {len(columns)}")
        try:
            points[row] = [float(words[column]) for column in where]
        except ValueError:
            raise _Malformed(f"vertex {row} holds something that is not a number") from None
    if content.count(b"\n") + (not content.endswith(b"\n")) < count:
        raise _Malformed(f"cut short: fewer than {count} lines of vertices")
    return points


def _read_header(content: bytes) -> tuple[bool, list[tuple[str, int, list]], int]:
    """Whether the file is binary; its elements, (name, count, [(property, type or None for a list, its types)]); where it ends."""
    head, end, _ = content[:HEADER_BYTES].partition(b"end_header\n")
    start = len(head) + len(end)
    if not end:
        head, end, _ = content[:HEADER_BYTES].partition(b"end_header\r\n")
        start = len(head) + len(end)
    lines = head.decode("ascii", errors="replace").split("\n")
    if not end or lines[0].strip() != "ply":
        raise _Malformed("it does not begin with the header of a PLY file")
    form, elements = None, []
    for line in lines[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", form, _]:
                pass
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 16:
                elements.append((name, int(count), []))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1][2].append((name, _TYPES[kind], ()))
            case ["property", "list", size, kind, name] if elements and size in _TYPES and kind in _TYPES:
                elements[-1][2].append((name, None, (_TYPES[size], _TYPES[kind])))
            case _:
                raise _Malformed(f"its header holds {line.strip()[:80]!r}")
    if form not in ("ascii", "binary_little_endian"):
        raise _Malformed(f"its format is {str(form)[:80]!r}, expected 'ascii' or 'binary_little_endian'")
    if not elements:
        raise _Malformed("its header names no element")
    return form != "ascii", elements, start


def _least_bytes(element: tuple[str, int, list]) -> int:
    """How long an element is at least in a binary file; the lists of faces are those of triangles."""
    name, count, properties = element
    size = 0
    for _, kind, (*kinds,) in properties:
        length, *entry = (np.dtype(each).itemsize for each in ([kind] if kind else kinds))
        size += length + sum(entry) * (TRIANGLE if name == "face" else 0)
    return count * size


def write_mesh(path: Path, points: np.ndarray, colors: np.ndarray, triangles: np.ndarray):
    """Writes a triangle mesh, binary.

    Args:
        path: the file.
        points: `[N, 3]`, stored as float32.
        colors: `[N, 4]` uint8, red, green, blue and alpha.
        triangles: `[M, 3]` indices of points.
    """
    vertices = np.empty(len(points), dtype=[("points", "<f4", 3), ("colors", "u1", 4)])
    vertices["points"], vertices["colors"] = points, colors
    faces = np.empty(len(triangles), dtype=[("count", "u1"), ("indices", "<i4", 3)])
    faces["count"], faces["indices"] = TRIANGLE, triangles
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue", "alpha")),
        f"element face {len(triangles)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    path.write_bytes("\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


__all__ = ["read_vertices", "write_mesh"]
