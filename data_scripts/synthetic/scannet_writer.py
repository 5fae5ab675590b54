# SPDX-License-Identifier: Apache-2.0
"""Writes a room as a ScanNet frame dump, in each layout that is about; see `data_scripts.readers.scannet` for the format."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

from ..readers import ply
from . import furniture
from .layout import Scene, scene_faces


FRAME_STEP = 20  # official dumps skip frames too
WALL_COLOR = (170, 170, 170)


def jpeg(rgb: np.ndarray) -> bytes:
    """Encodes `[H, W, 3]` uint8; full chroma resolution, because colour is what half the questions are about."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(rgb).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def write_scan(folder: Path, scene: Scene) -> None:
    """Writes a ScanNet frame dump of the scene, as SensReader does, `folder` bearing the scene's name."""
    _write_frames(folder, scene, [str(view * FRAME_STEP) for view in range(len(scene.poses))])
    (folder / "intrinsic").mkdir()
    for name in ("color", "depth"):
        (folder / "intrinsic" / f"intrinsic_{name}.txt").write_text(_camera(scene))
    write_description(folder, scene)
    write_mesh(folder / f"{folder.name}_vh_clean_2.ply", scene)


def write_padded_scan(folder: Path, scene: Scene) -> None:
    """The same with frame numbers of six digits and the intrinsics once per frame."""
    names = [f"{view * FRAME_STEP:06d}" for view in range(len(scene.poses))]
    _write_frames(folder, scene, names)
    (folder / "intrinsic").mkdir()
    for name in names:
        (folder / "intrinsic" / f"{name}.txt").write_text(_camera(scene))
    write_description(folder, scene)
    write_mesh(folder / f"{folder.name}_vh_clean_2.ply", scene)


def write_frames_25k(folder: Path, scene: Scene) -> None:
    """Writes the scene as `scannet_frames_25k` has it: every hundredth frame, with labels, and neither description nor mesh."""
    names = [f"{view * 100:06d}" for view in range(len(scene.poses))]
    _write_frames(folder, scene, names)
    for kind in ("label", "instance"):  # here both are the number of the object, 0 where there is none
        (folder / kind).mkdir()
        for name, ids in zip(names, scene.ids, strict=True):
            PIL.Image.fromarray((ids + 1).clip(0).astype(np.uint8)).save(folder / kind / f"{name}.png")
    for name in ("color", "depth"):
        (folder / f"intrinsics_{name}.txt").write_text(_camera(scene))


def _write_frames(folder: Path, scene: Scene, names: list[str]) -> None:
    for kind in ("color", "depth", "pose"):
        (folder / kind).mkdir(parents=True)
    for view, name in enumerate(names):
        (folder / "color" / f"{name}.jpg").write_bytes(jpeg(scene.rgb[view]))
        PIL.Image.fromarray(scene.depth[view]).save(folder / "depth" / f"{name}.png", compress_level=3)
        camera_to_raw = np.linalg.inv(scene.poses[view] @ scene.alignment)
        (folder / "pose" / f"{name}.txt").write_text(_matrix(camera_to_raw))


def _camera(scene: Scene) -> str:
    camera = np.eye(4)
    camera[:3, :3] = scene.camera
    return _matrix(camera)


def write_description(folder: Path, scene: Scene) -> None:
    """Writes `<scene>.txt`: the alignment and the cameras."""
    height, width = scene.rgb.shape[1:3]
    values = {
        "axisAlignment": " ".join(f"{number:.6f}" for number in scene.alignment.ravel()),
        "colorHeight": height,
        "colorWidth": width,
        "depthHeight": height,
        "depthWidth": width,
        "fx_color": f"{scene.camera[0, 0]:.6f}",
        "fx_depth": f"{scene.camera[0, 0]:.6f}",
        "fy_color": f"{scene.camera[1, 1]:.6f}",
        "fy_depth": f"{scene.camera[1, 1]:.6f}",
        "mx_color": f"{scene.camera[0, 2]:.6f}",
        "mx_depth": f"{scene.camera[0, 2]:.6f}",
        "my_color": f"{scene.camera[1, 2]:.6f}",
        "my_depth": f"{scene.camera[1, 2]:.6f}",
        "numColorFrames": len(scene.poses),
        "numDepthFrames": len(scene.poses),
    }
    text = "".join(f"{key} = {value}\n" for key, value in values.items())
    (folder / f"{folder.name}.txt").write_text(text)


def write_mesh(path: Path, scene: Scene) -> None:
    """Writes the room and its furniture as a triangle mesh in the raw frame: binary PLY with coloured vertices."""
    quads, _, owner, _ = scene_faces(scene.size, scene.pieces)
    to_raw = np.linalg.inv(scene.alignment)
    points = quads.reshape(-1, 3) @ to_raw[:3, :3].T + to_raw[:3, 3]
    palette = np.array([furniture.COLORS[piece.color] for piece in scene.pieces] + [WALL_COLOR], dtype=np.uint8)
    colors = np.full((len(points), 4), 255, dtype=np.uint8)
    colors[:, :3] = np.repeat(palette[owner], 4, axis=0)
    corners = 4 * np.arange(len(quads))[:, None, None] + [[0, 1, 2], [0, 2, 3]]
    ply.write_mesh(path, points, colors, corners.reshape(-1, 3))


def _matrix(matrix: np.ndarray) -> str:
    return "".join(" ".join(f"{number:.6f}" for number in row) + "\n" for row in matrix)


__all__ = ["jpeg", "write_description", "write_frames_25k", "write_mesh", "write_padded_scan", "write_scan"]
