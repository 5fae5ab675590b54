# SPDX-License-Identifier: Apache-2.0
"""Writes a room as a `.sens` stream; see `data_scripts.readers.sens` for the format."""

import struct
import zlib
from pathlib import Path

import numpy as np

from .layout import Scene
from .scannet_writer import jpeg, write_description, write_mesh


FRAME_MICROSECONDS = 33_333
DEPTH_UNITS_PER_METRE = 1000.0
SENSOR_NAME = b"procedural room"
VERSION, JPEG, ZLIB_USHORT = 4, 2, 1


def write_sens(folder: Path, scene: Scene) -> None:
    """Writes `<scene>.sens`, `<scene>.txt` and the mesh, `folder` bearing the scene's name."""
    folder.mkdir(parents=True)
    height, width = scene.rgb.shape[1:3]
    camera = np.eye(4)
    camera[:3, :3] = scene.camera
    frames = [
        (np.linalg.inv(pose @ scene.alignment), jpeg(rgb), zlib.compress(depth.astype("<u2").tobytes()))
        for pose, rgb, depth in zip(scene.poses, scene.rgb, scene.depth)
    ]
    with open(folder / f"{folder.name}.sens", "wb") as stream:
        stream.write(struct.pack("<IQ", VERSION, len(SENSOR_NAME)) + SENSOR_NAME)
        for matrix in (camera, np.eye(4), camera, np.eye(4)):
            stream.write(matrix.astype("<f4").tobytes())
        stream.write(struct.pack("<ii", JPEG, ZLIB_USHORT))
        stream.write(struct.pack("<IIIIf", width, height, width, height, DEPTH_UNITS_PER_METRE))
        stream.write(struct.pack("<Q", len(frames)))
        for number, (camera_to_raw, color, depth) in enumerate(frames):
            time = number * FRAME_MICROSECONDS
            stream.write(camera_to_raw.astype("<f4").tobytes())
            stream.write(struct.pack("<QQQQ", time, time, len(color), len(depth)))
            stream.write(color + depth)
        stream.write(struct.pack("<Q", 0))  # no motion sensor
    write_description(folder, scene)
    write_mesh(folder / f"{folder.name}_vh_clean_2.ply", scene)


__all__ = ["write_sens"]
