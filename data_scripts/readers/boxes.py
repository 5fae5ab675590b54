# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes, what the readers of ARKitScenes annotations and of RoomPlan exports give alike."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import UnreadableFileError
from ..limits import LARGEST_NUMBER, LONGEST_NAME
from .frames import is_storable


@dataclass(frozen=True)
class Box:
    """An object, or a flat part of the room (then `size[2]` is 0 and `axes[2]` its normal).

    Attributes:
        identifier: unique in the file.
        kind: "object", "wall", "door", "window", "opening" or "floor".
        label: the category; of anything but an object, its kind.
        center: `[3]` metres, world z up.
        axes: `[3, 3]` its own unit axes in world coordinates, one per ROW, right-handed.
        size: `[3]` full extents along these axes, metres.
        known: whether the format's own list of categories has `label`.
    """

    identifier: str
    kind: str
    label: str
    center: np.ndarray
    axes: np.ndarray
    size: np.ndarray
    known: bool = True

    @property
    def corners(self) -> np.ndarray:
        """`[8, 3]` world coordinates, x fastest."""
        half = np.array([[x, y, z] for z in (-0.5, 0.5) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
        return self.center + half * self.size @ self.axes


def describe_fault(center: np.ndarray, axes: np.ndarray, size: np.ndarray, flat: bool = False) -> str | None:
    """What makes a box unusable, in a few words, or None if nothing does.

    Args:
        center, axes, size: as in `Box`.
        flat: whether the third extent may be 0.
    """
    if not all(np.isfinite(numbers).all() for numbers in (center, axes, size)):
        return "a number is not finite"
    if not all(is_storable(numbers).all() for numbers in (center, axes, size)):
        return f"a number is beyond {LARGEST_NUMBER:.0e}"
    if (size[:2] <= 0).any() or size[2] < 0 or (size[2] == 0 and not flat):
        return f"its size {np.round(size, 3).tolist()} is not positive"
    if np.abs(axes @ axes.T - np.eye(3)).max() > 1e-2:
        return "its axes are not at right angles or not of unit length"
    return None


def name_of(path: Path, where: str, name: object, what: str) -> str:
    """`name`, if it is a text that can be part of an answer; raises `UnreadableFileError`.

    Half a surrogate pair, which JSON can hold, cannot be written to any file; and a name is no book and has no line breaks.
    """
    if isinstance(name, str) and len(name) <= LONGEST_NAME:
        if not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
            return name
    raise UnreadableFileError(path, f"{where}: {what} is not a text of at most {LONGEST_NAME} characters, in one line")


def list_of_numbers(path: Path, where: str, row: dict, key: str, count: int) -> np.ndarray:
    """`row[key]` as `[count]` float64; raises `UnreadableFileError` if it is not a list of so many numbers.

    Numbers that JSON does not know but Python reads (NaN, Infinity) pass: see `describe_fault`.
    """
    values = row.get(key)
    if isinstance(values, list) and len(values) == count and all(type(value) in (int, float) for value in values):
        try:
            return np.array([float(value) for value in values])
        except OverflowError:  # an integer of hundreds of digits
            pass
    raise UnreadableFileError(path, f"{where}: '{key}' is not a list of {count} numbers")


__all__ = ["Box", "describe_fault", "list_of_numbers", "name_of"]
