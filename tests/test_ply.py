# SPDX-License-Identifier: Apache-2.0
"""The PLY files of meshes: known bytes of both formats, what is written, and files that are not what they say."""

import struct

import numpy as np
import pytest

from data_scripts.files import UnreadableFileError
from data_scripts.readers.ply import read_vertices, write_mesh


POINTS = np.array([[0.5, -1.25, 2.0], [3.0, 0.0, -0.75], [1e-3, 7.0, 4.0], [0.0, 0.0, 0.0]])
# As ScanNet's own meshes begin.
BINARY = b"""ply
format binary_little_endian 1.0
element vertex 4
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar alpha
element face 2
property list uchar int vertex_indices
end_header
"""
BINARY += b"".join(struct.pack("<fff4B", *point, 10, 20, 30, 255) for point in POINTS)
BINARY += struct.pack("<BiiiBiii", 3, 0, 1, 2, 3, 0, 2, 3)
TEXT = b"""ply
format ascii 1.0
comment made by hand
element vertex 4
property uchar red
property double z
property float32 x
property float y
element face 1
property list uint8 int32 vertex_index
end_header
10 2 .5 -1.25
20 -0.75 3 0
30 4.0 1e-3 7
40 0 0 0
3 0 1 2
"""


@pytest.mark.parametrize("content", [BINARY, TEXT, TEXT.replace(b"\n", b"\r\n"), TEXT.rstrip()])
def test_known_bytes(tmp_path, content):
    """Catches a column taken for another, a wrong type or offset, line ends of Windows that make a file unreadable."""
    path = tmp_path / "mesh.ply"
    path.write_bytes(content)
    found = read_vertices(path)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, POINTS, rtol=1e-6)


def test_what_is_written(tmp_path):
    """Catches a mesh that other programs read otherwise: the bytes are those that any writer of this format makes."""
    colors = np.tile(np.array([10, 20, 30, 255], dtype=np.uint8), (4, 1))
    write_mesh(tmp_path / "mesh.ply", POINTS, colors, np.array([[0, 1, 2], [0, 2, 3]]))
    assert (tmp_path / "mesh.ply").read_bytes() == BINARY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((b"vertex 4", b"vertex 999999999999999"), "cut short"),
        ((b"vertex 4", b"vertex 9" + b"9" * 400), "header holds"),
        ((b"vertex 4", b"vertex -4"), "header holds"),
        ((b"face 2", b"face 999999999999"), "cut short"),
        ((b"float x", b"float nothing"), "no x, y and z"),
        ((b"float y", b"float x"), "a property twice"),
        ((b"float x", b"quad x"), "header holds 'property quad x'"),
        ((b"property float x", b"property list uchar float x"), "numbers alone"),
        ((b"vertex 4", b"corner 4"), "first element is not 'vertex'"),
        ((b"little", b"big"), "binary_big_endian"),
        ((b"end_header", b"and so on"), "does not begin with the header"),
        ((b"ply\n", b"PK\x03\x04"), "does not begin with the header"),
    ],
)
def test_malformed(tmp_path, change, reason):
    """Catches a header that is believed: gigabytes of memory, or numpy's traceback, for a number that cannot be true."""
    for content in (BINARY, TEXT):
        if change[0] in content:
            (tmp_path / "mesh.ply").write_bytes(content.replace(*change))
            with pytest.raises(UnreadableFileError, match=f"mesh.ply: not a readable mesh .*{reason}"):
                read_vertices(tmp_path / "mesh.ply")


@pytest.mark.parametrize("content", [BINARY[:-1], BINARY[:300], TEXT[:-40], TEXT.replace(b"1e-3", b"one")])
def test_cut_or_damaged(tmp_path, content):
    """Catches a mesh of which a part is missing that gives another centre."""
    (tmp_path / "mesh.ply").write_bytes(content)
    with pytest.raises(UnreadableFileError, match="cut short|vertex [0-9] "):
        read_vertices(tmp_path / "mesh.ply")
