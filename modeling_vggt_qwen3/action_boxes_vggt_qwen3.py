# SPDX-License-Identifier: Apache-2.0
"""The boxes of actions and their frames, all right-handed and in metres.

- View 0: the camera of the first view, OpenCV axes (x right, y down, z forward). The text of an action is in it.
- World: of the dataset, z up; view 0's `R`, `t` (world-to-camera) lead there.
- ARKit: the world with y up, (x, y, z) of the world being (x, z, -y). RoomPlan exports and ARKit anchors are in it.

A box has `extent` (width, height, depth: full sizes) and `normal`: depth along the normal, height along the world's vertical
made orthogonal to the normal, width along height × depth. RoomPlan's own frame of an element has these three as x, y and z.

Sources: https://developer.apple.com/documentation/roomplan/capturedroom,
https://developer.apple.com/documentation/arkit/aranchor/transform.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .action_text_vggt_qwen3 import ActionError


# Labels that name flat parts of a room; any other label is an object's.
SURFACES = ("wall", "door", "window", "opening", "floor")
ROOMPLAN_LISTS = {kind: f"{kind}s" for kind in (*SURFACES, "object")}

WORLD_TO_ARKIT = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
# An upright camera in place of the world: OpenCV axes to those of an ARKit camera (y up, z backward).
VIEW_TO_ARKIT = np.diag([1.0, -1, -1])


@dataclass(frozen=True)
class ActionBox:
    """
    A labelled box, or a flat part of a room (then its depth is 0).

    Attributes:
        label (`str`): The category.
        center, extent, normal (`tuple[float, float, float]`): Metres; full width, height and depth; a direction, made
            unit length.
        kind (`str`): "wall", "door", "window", "opening", "floor" or "object".

    Raises:
        ActionError: if a number is not finite, an extent is negative, the normal is zero or the kind is another.
    """

    label: str
    center: tuple[float, float, float]
    extent: tuple[float, float, float]
    normal: tuple[float, float, float]
    kind: str = "object"

    def __post_init__(self):
        vectors = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in ("center", "extent", "normal")}
        for name, vector in vectors.items():
            if vector.shape != (3,) or not np.isfinite(vector).all():
                raise ActionError(f"The {name} of {self.label!r} is not three finite numbers: {vector.tolist()}.")
        if (vectors["extent"] < 0).any():
            raise ActionError(f"The extent of {self.label!r} is negative: {vectors['extent'].tolist()}.")
        length = np.linalg.norm(vectors["normal"])
        if length < 1e-9:
            raise ActionError(f"The normal of {self.label!r} is zero: it has no direction.")
        if self.kind not in ROOMPLAN_LISTS:
            raise ActionError(f"{self.label!r} is of kind {self.kind!r}; there are {', '.join(ROOMPLAN_LISTS)}.")
        vectors["normal"] = vectors["normal"] / length
        for name, vector in vectors.items():
            object.__setattr__(self, name, tuple(vector.tolist()))

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> "ActionBox":
        """The same box in another frame; `rotation [3, 3]` and `translation [3]` lead there from this one."""
        center = rotation @ np.array(self.center) + translation
        return replace(self, center=center, normal=rotation @ np.array(self.normal))

    def axes(self, up: np.ndarray) -> np.ndarray:
        """
        `[3, 3]` unit vectors of width, height and depth, one per row.

        Args:
            up (`np.ndarray` of shape `[3]`): The world's vertical in the box's frame. A box whose normal is vertical
                itself has its height along the axis of the frame that is furthest from the vertical.
        """
        depth = np.array(self.normal)
        height = up - (up @ depth) * depth
        if np.linalg.norm(height) < 1e-6:
            height = np.eye(3)[np.abs(depth).argmin()]
            height = height - (height @ depth) * depth
        height = height / np.linalg.norm(height)
        return np.stack([np.cross(height, depth), height, depth])

    @classmethod
    def from_arkit_transform(cls, transform, extent, label: str, kind: str = "object") -> "ActionBox":
        """
        A box in the world from `transform [4, 4]`, own frame (width, height, depth) to ARKit's world.

        Raises:
            ActionError: if the transform is not rigid, or its y axis is not ARKit's vertical, as `normal` and
                `extent` cannot say how such a box is turned.
        """
        transform = np.asarray(transform, dtype=np.float64)
        if transform.shape != (4, 4) or not np.isfinite(transform).all():
            raise ActionError(f"The transform of {label!r} is not 4 x 4 finite numbers.")
        rotation = transform[:3, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
            raise ActionError(f"The transform of {label!r} is not a rotation and a translation.")
        if np.linalg.norm(rotation[:, 1] - [0, 1, 0]) > 1e-3:
            raise ActionError(
                f"{label!r} does not stand upright: its height points to {rotation[:, 1].round(4).tolist()}, "
                "not to [0, 1, 0]."
            )
        to_world = WORLD_TO_ARKIT.T
        return cls(label, to_world @ transform[:3, 3], extent, to_world @ rotation[:, 2], kind)


def camera_of_view_0(geometry: Mapping) -> tuple[tuple[float, ...], ...]:
    """`[R | t]` of view 0 as a tuple of three rows; raises ValueError if it is not a rotation and a translation."""
    rotation, translation = (np.asarray(geometry[key], dtype=np.float64) for key in ("R", "t"))
    if rotation.shape[1:] != (3, 3) or translation.shape != (*rotation.shape[:1], 3) or len(rotation) == 0:
        raise ValueError(
            f"geometry must have R [V, 3, 3] and t [V, 3] of at least one view, got {rotation.shape} and "
            f"{translation.shape}."
        )
    rotation, translation = rotation[0], translation[0]
    if not (np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-2 and np.linalg.det(rotation) > 0):  # so not for NaN
        raise ValueError(f"R of view 0 is not a rotation: {rotation.tolist()}.")
    if not np.isfinite(translation).all():
        raise ValueError(f"t of view 0 is not finite: {translation.tolist()}.")
    return tuple(tuple(row) for row in np.column_stack([rotation, translation]).tolist())


def boxes_to_view(boxes: Sequence[ActionBox], camera) -> tuple[ActionBox, ...]:
    """Boxes of the world in the frame of view 0, whose `[R | t]` is `camera [3, 4]` (see `camera_of_view_0`)."""
    camera = np.array(camera)
    return tuple(box.moved(camera[:, :3], camera[:, 3]) for box in boxes)


def boxes_from_roomplan(room: Mapping) -> tuple[ActionBox, ...]:
    """
    Boxes in the world of all walls, doors, windows, openings and objects of a `CapturedRoom` as JSON, in this order.
    Its floors lie, and have no box of this kind.

    Raises:
        ActionError: if one does not stand upright, or its transform is not rigid.
        KeyError: if one lacks `category`, `dimensions` or `transform`.
    """
    boxes = []
    for kind, key in ROOMPLAN_LISTS.items():
        for element in room.get(key, ()) if kind != "floor" else ():
            transform = np.reshape(element["transform"], (4, 4)).T
            (label,) = element["category"]
            boxes.append(ActionBox.from_arkit_transform(transform, element["dimensions"], label, kind))
    return tuple(boxes)


__all__ = ["ActionBox", "boxes_from_roomplan", "boxes_to_view", "camera_of_view_0"]
