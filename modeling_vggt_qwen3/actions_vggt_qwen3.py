# SPDX-License-Identifier: Apache-2.0
"""RoomPlan-style actions: read from their text, and as boxes for RoomPlan and ARKit (frames: `action_boxes_vggt_qwen3`)."""

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .action_boxes_vggt_qwen3 import (
    ROOMPLAN_LISTS,
    SURFACES,
    VIEW_TO_ARKIT,
    WORLD_TO_ARKIT,
    ActionBox,
    camera_of_view_0,
)
from .action_text_vggt_qwen3 import ACTION_SCHEMAS, LISTS_OF_ROOM, MIN_EXTENT, ActionError, read_text, write_text


# The text says 0.00 of a depth below 5 mm, but an object of RoomPlan has a depth.
LEAST_OBJECT_DEPTH = 0.005


@dataclass(frozen=True, kw_only=True)
class Action(ABC):
    """
    What the three actions share.

    Attributes:
        camera (`tuple`, *optional*): `[R | t]` of view 0, `[3, 4]` world-to-camera; None without geometry.
        numbers_from (`str`): Whence the numbers are: "text" or "head" (the anchor head).
    """

    name: ClassVar[str]
    camera: tuple[tuple[float, ...], ...] | None = None
    numbers_from: str = "text"

    @property
    @abstractmethod
    def boxes(self) -> tuple[ActionBox, ...]:
        """All boxes, in the frame of view 0."""

    @property
    def metric(self) -> bool:
        """
        Whether the numbers are metres of a world. False without geometry: photos alone do not determine a scale, so
        sizes and distances count only relative to each other, and view 0 is taken for upright.
        """
        return self.camera is not None

    @property
    def up(self) -> np.ndarray:
        """`[3]` the world's vertical in the frame of view 0; without geometry the camera's own, (0, -1, 0)."""
        if self.camera is None:
            return np.array([0.0, -1, 0])
        return np.array(self.camera)[:, 2]

    @property
    def world(self) -> tuple[ActionBox, ...] | None:
        """All boxes in the world (z up); None without geometry."""
        if self.camera is None:
            return None
        camera = np.array(self.camera)
        to_world = np.linalg.inv(camera[:, :3])  # not the transpose, which is exact for exact rotations only
        return tuple(box.moved(to_world, -to_world @ camera[:, 3]) for box in self.boxes)

    def to_json(self) -> str:
        """
        The action's text, see [`write_text`]: frame of view 0, two decimals.

        Raises:
            ActionError: if the schema does not allow it: a label or a list that is too long, a number beyond 99.99.
        """
        return write_text(self.name, self._fields())

    def to_roomplan(self) -> dict[str, Any]:
        """
        The boxes as a `CapturedRoom` of RoomPlan encoded as JSON: for each `category`, `dimensions`, an `identifier`
        (made from its content: the same for the same box) and `transform`, 16 numbers in column-major order to ARKit's
        world, +Y up.

        `metric` says whether the lengths are metres; without geometry they are relative, and the camera of view 0 is
        the origin. Categories are the labels as they are, whether RoomPlan has such a one or not. An object's depth is
        at least 5 mm. What an action does not know (confidence, polygons, whether a door is open) is left out or false.
        """
        room: dict[str, Any] = {"metric": self.metric, **{key: [] for key in ROOMPLAN_LISTS.values()}}
        for box, pose in zip(self.boxes, self._arkit_poses()):
            elements = room[ROOMPLAN_LISTS[box.kind]]
            width, height, depth = box.extent
            element = {
                "category": {box.label: {"isOpen": False} if box.label == "door" else {}},
                "dimensions": [width, height, max(depth, LEAST_OBJECT_DEPTH) if box.kind == "object" else depth],
                "parentIdentifier": None,
                "transform": pose.T.ravel().tolist(),
            }
            content = f"{box.kind} {len(elements)} {json.dumps(element)}"
            elements.append({"identifier": str(uuid.uuid5(uuid.NAMESPACE_OID, content)).upper(), **element})
        return room

    def to_arkit_anchor(self) -> np.ndarray:
        """
        The transform of an `ARAnchor` at each box: `[N, 4, 4]` float32, of `place_anchor` `[4, 4]`, from the box's own
        frame (x its width, y its height, z its normal) to ARKit's world, +Y up. `anchor.T.ravel()` is in column-major
        order, as `simd_float4x4` is. Without geometry the world's origin is the camera of view 0, taken for upright.
        """
        poses = self._arkit_poses().astype(np.float32)
        return poses[0] if isinstance(self, PlaceAnchor) else poses

    def _arkit_poses(self) -> np.ndarray:
        boxes, to_arkit = (self.boxes, VIEW_TO_ARKIT) if self.camera is None else (self.world, WORLD_TO_ARKIT)
        poses = np.tile(np.eye(4), (len(boxes), 1, 1))
        for pose, box in zip(poses, boxes):
            moved = box.moved(to_arkit, np.zeros(3))
            pose[:3, :3] = moved.axes(np.array([0.0, 1, 0])).T
            pose[:3, 3] = moved.center
        return poses

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """What the text says after the action's name."""


@dataclass(frozen=True)
class PlaceAnchor(Action):
    """An anchor on one thing."""

    name: ClassVar[str] = "place_anchor"
    box: ActionBox

    @property
    def boxes(self) -> tuple[ActionBox, ...]:
        return (self.box,)

    def _fields(self) -> dict[str, Any]:
        return {"label": self.box.label, **_numbers(self.box)}


@dataclass(frozen=True)
class ListObjects(Action):
    """All boxes of one category that some view shows, the nearest to view 0's camera first."""

    name: ClassVar[str] = "list_objects"
    label: str
    objects: tuple[ActionBox, ...]

    @property
    def boxes(self) -> tuple[ActionBox, ...]:
        return self.objects

    def _fields(self) -> dict[str, Any]:
        return {"label": self.label, "objects": [_numbers(box) for box in self.objects]}


@dataclass(frozen=True)
class DescribeRoom(Action):
    """A plan of the room: what some view shows of it, the nearest to view 0's camera first in each list."""

    name: ClassVar[str] = "describe_room"
    walls: tuple[ActionBox, ...] = ()
    doors: tuple[ActionBox, ...] = ()
    windows: tuple[ActionBox, ...] = ()
    objects: tuple[ActionBox, ...] = ()

    @property
    def boxes(self) -> tuple[ActionBox, ...]:
        return self.walls + self.doors + self.windows + self.objects

    def _fields(self) -> dict[str, Any]:
        fields = {key: [_numbers(box) for box in getattr(self, key)] for key in LISTS_OF_ROOM}
        return {**fields, "objects": [{"label": box.label, **_numbers(box)} for box in self.objects]}


def parse_action(text: str, geometry: Mapping | None = None, anchor: Sequence[float] | None = None) -> Action:
    """
    Reads the text of an action.

    Args:
        text (`str`): JSON of one of `ACTION_SCHEMAS`, frame of view 0.
        geometry (`Mapping`, *optional*): `R [V, 3, 3]` and `t [V, 3]`, world-to-camera in OpenCV axes and metres; only
            view 0's are used.
        anchor (`Sequence[float]`, *optional*): Centre, extent and normal of the anchor head, which take the place of
            the text's numbers if the action is place_anchor. They are brought within the bounds of the schema.

    Raises:
        ActionError: if the text is cut off, no JSON, not of the schema, or a normal is zero; says where.
        ValueError: if geometry's view 0 is not a rotation and a translation.
    """
    camera = None if geometry is None else camera_of_view_0(geometry)
    fields = read_text(text)
    name = fields["action"]
    if name == "list_objects":
        boxes = tuple(_box(fields["label"], item) for item in fields["objects"])
        return ListObjects(fields["label"], boxes, camera=camera)
    if name == "describe_room":
        kinds = {key: tuple(_box(key[:-1], item) for item in fields[key]) for key in LISTS_OF_ROOM}
        objects = tuple(_box(item["label"], item, "object") for item in fields["objects"])
        return DescribeRoom(**kinds, objects=objects, camera=camera)
    if anchor is None:
        return PlaceAnchor(_box(fields["label"], fields), camera=camera)
    numbers = np.asarray(anchor, dtype=np.float64)
    if numbers.shape != (9,) or not np.isfinite(numbers).all():
        raise ActionError(f"The anchor head gave {numbers.tolist()}, not nine finite numbers.")
    center, extent, normal = numbers.clip(-99.99, 99.99).reshape(3, 3)
    numbers = {"center": center, "extent": extent.clip(MIN_EXTENT), "normal": normal}
    return PlaceAnchor(_box(fields["label"], numbers), camera=camera, numbers_from="head")


def parse_actions(
    texts: Sequence[str],
    geometry: Sequence[Mapping | None] | None = None,
    anchors: Sequence[Sequence[float] | None] | None = None,
) -> list[Action]:
    """
    Reads texts, each with its geometry and anchor (see `parse_action`).

    Raises:
        ActionError, ValueError: as `parse_action`, naming the text; ValueError if the numbers of arguments differ.
    """
    geometry = [None] * len(texts) if geometry is None else geometry
    anchors = [None] * len(texts) if anchors is None else anchors
    if not len(texts) == len(geometry) == len(anchors):
        raise ValueError(f"Got {len(texts)} texts, {len(geometry)} geometries and {len(anchors)} anchors.")
    actions = []
    for number, arguments in enumerate(zip(texts, geometry, anchors)):
        try:
            actions.append(parse_action(*arguments))
        except ValueError as error:
            raise type(error)(f"Action {number}: {error}") from error
    return actions


def _box(label: str, numbers: Mapping, kind: str | None = None) -> ActionBox:
    kind = kind or (label if label in SURFACES else "object")
    return ActionBox(label, numbers["center"], numbers["extent"], numbers["normal"], kind)


def _numbers(box: ActionBox) -> dict[str, tuple[float, ...]]:
    return {name: getattr(box, name) for name in ("center", "extent", "normal")}


__all__ = [
    "ACTION_SCHEMAS",
    "Action",
    "ActionError",
    "DescribeRoom",
    "ListObjects",
    "PlaceAnchor",
    "parse_action",
    "parse_actions",
]
