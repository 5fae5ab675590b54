# SPDX-License-Identifier: Apache-2.0
"""Writes a room as an ARKitScenes scan; see `data_scripts.readers.arkitscenes` for the format.

The scan's world is the room's raw frame: z up, turned and shifted against the walls.
"""

import json
import uuid
from pathlib import Path

import numpy as np
import PIL.Image

from ..readers.trajectory import rotation_from_vector, rotation_vector
from .layout import Piece, Scene
from .scannet_writer import write_mesh


# Names of ARKitScenes for kinds of furniture it knows by another one. What it has no name for (lamp, plant, ladder) keeps the room's.
LABELS = {"bookshelf": "shelf", "television": "tv_monitor"}

FRAME_SECONDS = 0.3
LINE_SECONDS = 0.1  # of the trajectory
COUNTERCLOCKWISE_TURNS = {"Up": 0, "Left": 1, "Down": 2, "Right": 3}  # from the upright picture to the stored one
HIGH_CONFIDENCE = 2


def video_id(index: int) -> str:
    """The eight digits that name room number `index`."""
    return str(40_000_000 + index)


def write_arkitscenes(rng: np.random.Generator, folder: Path, scene: Scene, layout: str, sky_direction: str) -> None:
    """Writes a scan.

    Args:
        rng: for the time at which the recording starts, the camera's motion and the ids.
        folder: `<root>/<layout>/<split>/<video>`.
        scene: the room.
        layout: "3dod" or "raw".
        sky_direction: the side of the stored pictures at which the sky is.
    """
    name = folder.name
    content = folder / f"{name}_frames" if layout == "3dod" else folder
    folders = ["lowres_wide", "lowres_depth", "lowres_wide_intrinsics", *(["confidence"] if layout == "raw" else [])]
    for part in folders:
        (content / part).mkdir(parents=True)
    turns = COUNTERCLOCKWISE_TURNS[sky_direction]
    height, width = scene.rgb.shape[1:3]
    camera, size = _turned_camera(scene.camera, width, height, turns)
    pincam = " ".join(f"{number:.6g}" for number in size)
    pincam += "".join(f" {number:.6f}" for number in (camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2])) + "\n"
    start = round(rng.uniform(1000, 9000), 3)
    lines = []
    for view, pose in enumerate(scene.poses):
        time = start + view * FRAME_SECONDS
        frame = f"{name}_{time:.3f}"
        PIL.Image.fromarray(np.rot90(scene.rgb[view], turns)).save(content / "lowres_wide" / f"{frame}.png")
        depth = np.ascontiguousarray(np.rot90(scene.depth[view], turns))
        PIL.Image.fromarray(depth).save(content / "lowres_depth" / f"{frame}.png")
        (content / "lowres_wide_intrinsics" / f"{frame}.pincam").write_text(pincam)
        if layout == "raw":
            confidence = np.where(depth > 0, HIGH_CONFIDENCE, 0).astype(np.uint8)
            PIL.Image.fromarray(confidence).save(content / "confidence" / f"{frame}.png")
        lines += _trajectory(rng, round(time, 3), _turned_pose(pose @ scene.alignment, turns))
    (content / "lowres_wide.traj").write_text("".join(lines))
    annotation = {"skipped": False, "data": [_annotation(rng, piece, scene.alignment) for piece in scene.pieces]}
    (folder / f"{name}_3dod_annotation.json").write_text(json.dumps(annotation) + "\n")
    write_mesh(folder / f"{name}_3dod_mesh.ply", scene)


def metadata_csv(splits: list[str], directions: list[str]) -> str:
    """`metadata.csv` for rooms number 0, 1, ...: their split ("train", "val", "test") and sky direction."""
    rows = ["video_id,visit_id,fold,sky_direction"]
    for index, (split, direction) in enumerate(zip(splits, directions)):
        rows.append(f"{video_id(index)},{index},{'Training' if split == 'train' else 'Validation'},{direction}")
    return "\n".join(rows) + "\n"


def _trajectory(rng: np.random.Generator, time: float, pose: np.ndarray) -> list[str]:
    """Three lines a tenth of a second apart, of a camera that moves on evenly and has `pose` at `time`.

    The middle one is up to 4 ms away from `time`: who takes it for the pose is off by up to two millimetres.
    """
    velocity = rng.normal(size=3)
    velocity *= rng.uniform(0.3, 0.5) / np.linalg.norm(velocity)  # metres per second
    spin = rng.normal(size=3)
    spin *= rng.uniform(0.3, 0.5) / np.linalg.norm(spin)  # radians per second
    center = -pose[:3, :3].T @ pose[:3, 3]
    offset = rng.uniform(0.002, 0.004) * rng.choice([-1, 1])
    lines = []
    for step in (-1, 0, 1):
        # Poses are of the time as it is written.
        moment = round(time + offset + step * LINE_SECONDS, 6)
        rotation = rotation_from_vector((moment - time) * spin) @ pose[:3, :3]
        translation = -rotation @ (center + (moment - time) * velocity)
        numbers = [*rotation_vector(rotation), *translation]
        lines.append(f"{moment:.6f} " + " ".join(f"{number:.9f}" for number in numbers) + "\n")
    return lines


def _turned_pose(pose: np.ndarray, turns: int) -> np.ndarray:
    """World-to-camera of the picture turned counterclockwise by quarter turns: what was down is then right."""
    turned = pose.copy()
    for _ in range(turns):
        turned[[0, 1]] = turned[1], -turned[0]
    return turned


def _turned_camera(camera: np.ndarray, width: int, height: int, turns: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Intrinsics and (width, height) of the picture turned counterclockwise: column = row, row = width - 1 - column."""
    for _ in range(turns):
        camera = np.array([[camera[1, 1], 0, camera[1, 2]], [0, camera[0, 0], width - 1 - camera[0, 2]], [0, 0, 1]])
        width, height = height, width
    return camera, (width, height)


def _annotation(rng: np.random.Generator, piece: Piece, alignment: np.ndarray) -> dict:
    to_raw = np.linalg.inv(alignment)
    low, high = piece.parts[:, 4].min(), piece.parts[:, 5].max()
    axes = np.eye(3)  # one per row
    axes[:2, :2] = piece.rotation.T
    box = {
        "centroid": (to_raw @ [*piece.position, (low + high) / 2, 1.0])[:3].round(6).tolist(),
        "axesLengths": [*(2 * piece.half_size).round(6).tolist(), round(float(high - low), 6)],
        "normalizedAxes": (axes @ to_raw[:3, :3].T).round(9).ravel().tolist(),
    }
    return {
        "uid": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        "label": LABELS.get(piece.category, piece.category),
        "modelId": None,
        "children": [],
        "objectId": None,
        "segments": {"obb": box, "obbAligned": box},
        "hierarchy": [],
        "isInGroup": False,
        "labelType": None,
        "attributes": {},
    }


__all__ = ["metadata_csv", "video_id", "write_arkitscenes"]
