# SPDX-License-Identifier: Apache-2.0
"""A room as a RoomPlan export; see `data_scripts.readers.roomplan` for the format.

The export is in the world of the room's ARKitScenes scan, with y up instead of z. As in real exports the normal of a wall points
into the room, and the depth of an object from its back to its front. The rooms have no doors and no windows, so neither has
the export.
"""

import uuid

import numpy as np

from ..readers.roomplan import Z_UP, CapturedRoom, RoomElement
from .layout import HEIGHT, Scene


# Names of RoomPlan for kinds of furniture, with its attributes. What it has no name for (lamp, plant, ladder) keeps the room's.
CATEGORIES = {"bookshelf": "storage", "cabinet": "storage"}
ATTRIBUTES = {"bookshelf": {"StorageType": "shelf"}, "cabinet": {"StorageType": "cabinet"}}
DECIMALS = 7  # as many as a Swift Float has


def captured_room(rng: np.random.Generator, scene: Scene) -> dict:
    """The content of the JSON file.

    Args:
        rng: for the identifiers.
        scene: the room.
    """
    # From the room's aligned frame to ARKit's world.
    to_world = np.linalg.inv(Z_UP) @ np.linalg.inv(scene.alignment)
    width, depth = scene.size
    room = CapturedRoom(extra={"version": 2, "story": 0})
    # Inward normals, and the room's extent along them and across.
    for normal, along, across in (((1, 0), width, depth), ((0, 1), depth, width), ((-1, 0), width, depth)):
        room.walls.append(_wall(rng, to_world, np.array(normal), along, across))
    room.walls.append(_wall(rng, to_world, np.array((0, -1)), depth, width))
    corners = [[x * width / 2, y * depth / 2, 0.0] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    room.floors.append(_surface(rng, "floor", to_world, np.eye(3), np.zeros(3), (width, depth), corners))
    for piece in scene.pieces:
        low, high = piece.parts[:, 4].min(), piece.parts[:, 5].max()
        right, front = piece.rotation.T
        own = np.eye(4)  # x to the left, y up, z to the front
        own[:3, :3] = np.array([[*-right, 0], [0, 0, 1], [*front, 0]]).T
        own[:3, 3] = [*piece.position, (low + high) / 2]
        room.objects.append(
            RoomElement(
                kind="object",
                category=CATEGORIES.get(piece.category, piece.category),
                dimensions=np.array([2 * piece.half_size[0], high - low, 2 * piece.half_size[1]]).round(DECIMALS),
                transform=(to_world @ own).round(DECIMALS),
                identifier=_identifier(rng),
                extra={"attributes": ATTRIBUTES.get(piece.category, {}), "confidence": {"high": {}}, "story": 0},
            )
        )
    middle = (to_world @ [0, 0, 0, 1])[:3]
    room.extra["sections"] = [
        {"center": middle.round(DECIMALS).tolist(), "label": "unidentified", "story": 0},
    ]
    return room.to_captured_room()


def _wall(
    rng: np.random.Generator, to_world: np.ndarray, normal: np.ndarray, along: float, across: float
) -> RoomElement:
    axes = np.array([[-normal[1], normal[0], 0], [0, 0, 1], [*normal, 0]], dtype=np.float64)
    center = np.array([*(-normal * along / 2), HEIGHT / 2])
    return _surface(rng, "wall", to_world, axes, center, (across, HEIGHT), [])


def _surface(
    rng: np.random.Generator,
    kind: str,
    to_world: np.ndarray,
    axes: np.ndarray,
    center: np.ndarray,
    size: tuple[float, float],
    corners: list[list[float]],
) -> RoomElement:
    """A flat element; `axes [3, 3]` its width, height and normal as rows, and `center [3]`, in the aligned frame."""
    own = np.eye(4)
    own[:3, :3] = axes.T
    own[:3, 3] = center
    return RoomElement(
        kind=kind,
        category=kind,
        dimensions=np.array([*size, 0.0]).round(DECIMALS),
        transform=(to_world @ own).round(DECIMALS),
        identifier=_identifier(rng),
        extra={
            "completedEdges": [],
            "confidence": {"high": {}},
            "curve": None,
            "polygonCorners": [[round(float(number), DECIMALS) for number in corner] for corner in corners],
            "story": 0,
        },
    )


def _identifier(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4)).upper()


__all__ = ["captured_room"]
