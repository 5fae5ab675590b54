# SPDX-License-Identifier: Apache-2.0
"""Reads and writes Apple RoomPlan exports: `CapturedRoom` encoded as JSON.

The file holds the lists `walls`, `doors`, `windows`, `openings`, `floors` (flat surfaces) and `objects`. Each element has a
`category` (`{"door": {"isOpen": false}}`, `{"storage": {}}`), `dimensions` `[width, height, depth]` in metres, and a `transform`
of 16 numbers in column-major order from its own frame (x its width, y its height, z its normal or depth) to the world of the
ARKit session: metres, +Y up.

Source: https://developer.apple.com/documentation/roomplan/capturedroom and exports of the RoomPlan API.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import UnreadableFileError, read_json
from ..limits import MAX_BOXES
from .boxes import Box, describe_fault, list_of_numbers, name_of
from .frames import is_rigid


# Key of the file -> kind of its elements.
KINDS = {
    "walls": "wall",
    "doors": "door",
    "windows": "window",
    "openings": "opening",
    "floors": "floor",
    "objects": "object",
}

ROOMPLAN_CATEGORIES = (
    "storage",
    "refrigerator",
    "stove",
    "bed",
    "sink",
    "washerDryer",
    "toilet",
    "bathtub",
    "oven",
    "dishwasher",
    "table",
    "sofa",
    "chair",
    "fireplace",
    "television",
    "stairs",
)

# [4, 4] world of ARKit (+Y up) to the same world with z up: (x, y, z) -> (x, -z, y).
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])

_READ_KEYS = ("category", "dimensions", "transform", "identifier", "parentIdentifier")


@dataclass
class RoomElement:
    """A wall, door, window, opening, floor or object.

    Attributes:
        kind: "wall", "door", "window", "opening", "floor" or "object".
        category: its name in the file ("storage"); of a surface normally its kind.
        dimensions: `[3]` width, height and depth (0 for a surface), metres.
        transform: `[4, 4]` own frame to ARKit's world, metres, +Y up.
        identifier: UUID.
        parent_identifier: UUID of the wall a door is in, of the object this one belongs to, or None.
        details: what the file says beside the category's name, such as `{"isOpen": False}` of a door.
        extra: the element's other keys, as in the file (`confidence`, `attributes`, `polygonCorners`, `story`, ...).
    """

    kind: str
    category: str
    dimensions: np.ndarray
    transform: np.ndarray
    identifier: str
    parent_identifier: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether RoomPlan's own list of categories has this one."""
        return self.category in ROOMPLAN_CATEGORIES if self.kind == "object" else self.category == self.kind

    @property
    def box(self) -> Box:
        """The element in the world with z up; a surface has `size[2] == 0` and `axes[2]` is its normal."""
        to_world = Z_UP @ self.transform
        return Box(
            identifier=self.identifier,
            kind=self.kind,
            label=self.category,
            center=to_world[:3, 3],
            axes=to_world[:3, :3].T,
            size=self.dimensions,
            known=self.known,
        )

    def to_json(self) -> dict[str, Any]:
        """The element as RoomPlan encodes it."""
        return {
            **self.extra,
            "category": {self.category: self.details},
            "dimensions": self.dimensions.tolist(),
            "identifier": self.identifier,
            "parentIdentifier": self.parent_identifier,
            "transform": self.transform.T.ravel().tolist(),  # column-major
        }


@dataclass
class CapturedRoom:
    """A room as RoomPlan captured it.

    Attributes:
        walls, doors, windows, openings, floors, objects: elements in the order of the file.
        extra: the file's other keys (`version`, `story`, `sections`), as they are. `coreModel`, Apple's own encoding of
            the same room, is left out.
        problems: what was left out and why, one line each.
    """

    walls: list[RoomElement] = field(default_factory=list)
    doors: list[RoomElement] = field(default_factory=list)
    windows: list[RoomElement] = field(default_factory=list)
    openings: list[RoomElement] = field(default_factory=list)
    floors: list[RoomElement] = field(default_factory=list)
    objects: list[RoomElement] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def elements(self) -> list[RoomElement]:
        return [element for key in KINDS for element in getattr(self, key)]

    @property
    def unknown(self) -> Counter:
        """How often each category occurs that RoomPlan's own list does not have; these elements are kept."""
        return Counter(element.category for element in self.elements if not element.known)

    def boxes(self) -> list[Box]:
        """All elements in the world with z up."""
        return [element.box for element in self.elements]

    def to_captured_room(self) -> dict[str, Any]:
        """The room as RoomPlan encodes it: `json.dump` writes a file that `read_captured_room` reads."""
        return {**self.extra, **{key: [element.to_json() for element in getattr(self, key)] for key in KINDS}}


def read_captured_room(path: str | Path) -> CapturedRoom:
    """Reads a RoomPlan export.

    An element with a number that is not finite, an extent that is not positive or a transform that is not rigid is left out and
    named in `problems`; a category never seen is kept under its own name and counted in `unknown`.

    Args:
        path: a JSON file.

    Raises:
        UnreadableFileError: the file is missing, no JSON, no RoomPlan export, or an element lacks a key, has one of
            another type, or a name that is not a short text in one line; or there are more than `MAX_BOXES`.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not any(key in content for key in KINDS):
        raise UnreadableFileError(path, f"not a RoomPlan export: an object with {', '.join(KINDS)} is expected")
    room = CapturedRoom(extra={key: value for key, value in content.items() if key not in (*KINDS, "coreModel")})
    for key, kind in KINDS.items():
        rows = content.get(key) or []
        if not isinstance(rows, list):
            raise UnreadableFileError(path, f"'{key}' is not a list")
        if len(rows) > MAX_BOXES:
            raise UnreadableFileError(path, f"'{key}' has {len(rows)} entries, more than {MAX_BOXES}")
        for index, row in enumerate(rows):
            element = _read_element(path, f"{key}[{index}]", kind, row)
            fault = describe_fault(
                element.transform[:3, 3], element.transform[:3, :3].T, element.dimensions, flat=kind != "object"
            )
            if fault is None and not is_rigid(element.transform):
                fault = "its transform is not rigid"
            if fault is None:
                getattr(room, key).append(element)
            else:
                room.problems.append(f"{path.name}: {key}[{index}] ({element.category}) left out: {fault}")
    return room


def _read_element(path: Path, where: str, kind: str, row: Any) -> RoomElement:
    if not isinstance(row, dict):
        raise UnreadableFileError(path, f"{where} is not an object")
    category = row.get("category")
    if not isinstance(category, dict) or len(category) != 1 or not isinstance(next(iter(category.values())), dict):
        raise UnreadableFileError(path, f"{where}: 'category' is not of the form {{name: {{...}}}}")
    ((name, details),) = category.items()
    name_of(path, where, name, "the name in 'category'")
    if not isinstance(row.get("identifier"), str):
        raise UnreadableFileError(path, f"{where}: 'identifier' is not a string")
    if not isinstance(row.get("parentIdentifier"), str | None):
        raise UnreadableFileError(path, f"{where}: 'parentIdentifier' is not a string")
    for key in ("identifier", "parentIdentifier"):
        name_of(path, where, row.get(key) or "", f"'{key}'")
    return RoomElement(
        kind=kind,
        category=name,
        dimensions=list_of_numbers(path, where, row, "dimensions", 3),
        transform=list_of_numbers(path, where, row, "transform", 16).reshape(4, 4).T,
        identifier=row["identifier"],
        parent_identifier=row.get("parentIdentifier"),
        details=details,
        extra={key: value for key, value in row.items() if key not in _READ_KEYS},
    )


__all__ = ["ROOMPLAN_CATEGORIES", "Z_UP", "CapturedRoom", "RoomElement", "read_captured_room"]
