# SPDX-License-Identifier: Apache-2.0
"""Actions as text: one line of JSON, ", " and ": " as separators, fixed decimals in every number. It is what a model learns.

The modeling package reads and writes the same text (`modeling_vggt_qwen3.ACTION_SCHEMAS`); here nothing of it is imported.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from ..readers.boxes import Box


# What an action holds at most; the grammar of the modeling package has the same numbers.
MAX_LABEL_LENGTH = 32
MAX_LISTED = 32
MAX_IN_ROOM = {"walls": 24, "doors": 12, "windows": 12, "objects": 48}
MAX_COORDINATE = 99.99
MIN_EXTENT = (0.01, 0.01, 0.0)  # of what is thinner the text says a centimetre; a wall, door or window has no depth


def action_json(label: str, center: np.ndarray, extent: np.ndarray, normal: np.ndarray, decimals: int = 2) -> str:
    """The text of `{"action": "place_anchor", "label", "center", "extent", "normal"}`.

    Args:
        center, extent, normal: `[3]`; metres, full width, height and depth, a unit vector.
        decimals: 2 is what a model learns.
    """
    return f'{{"action": "place_anchor", "label": {_string(label)}, {_box(center, extent, normal, decimals)}}}'


def list_json(label: str, boxes: Sequence[Box], decimals: int = 2) -> str:
    """The text of `{"action": "list_objects", "label", "objects": [{"center", "extent", "normal"}, ...]}`.

    Args:
        boxes: with their axes in the order width, height, depth.
    """
    return f'{{"action": "list_objects", "label": {_string(label)}, "objects": {_boxes(boxes, decimals)}}}'


def room_json(parts: Mapping[str, Sequence[Box]], decimals: int = 2) -> str:
    """The text of `{"action": "describe_room", "walls": [...], "doors": [...], "windows": [...], "objects": [...]}`.

    Args:
        parts: these four lists; only objects are written with their label.
    """
    lists = [f'"{key}": {_boxes(parts[key], decimals, labelled=key == "objects")}' for key in MAX_IN_ROOM]
    return f'{{"action": "describe_room", {", ".join(lists)}}}'


def fits(box: Box) -> bool:
    """Whether an action can hold the box: its label is short and printable, no number reaches a hundred."""
    separators = {"Cc", "Cs", "Zl", "Zp"}
    printable = not any(
        unicodedata.category(character) in separators or character == "\xa0" for character in box.label
    )
    short = 0 < len(box.label) <= MAX_LABEL_LENGTH and not box.label.startswith(" ")
    return printable and short and bool(max(np.abs(box.center).max(), box.size.max()) <= MAX_COORDINATE)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _boxes(boxes: Sequence[Box], decimals: int, labelled: bool = False) -> str:
    texts = []
    for box in boxes:
        label = f'"label": {_string(box.label)}, ' if labelled else ""
        texts.append(f"{{{label}{_box(box.center, box.size, box.axes[2], decimals)}}}")
    return f"[{', '.join(texts)}]"


def _box(center: np.ndarray, extent: np.ndarray, normal: np.ndarray, decimals: int) -> str:
    def numbers(values: np.ndarray) -> str:
        # Adding zero turns -0.0 into 0.0.
        return "[" + ", ".join(f"{round(float(value), decimals) + 0.0:.{decimals}f}" for value in values) + "]"

    extent = np.maximum(extent, MIN_EXTENT)
    return f'"center": {numbers(center)}, "extent": {numbers(extent)}, "normal": {numbers(normal)}'


__all__ = ["MAX_IN_ROOM", "MAX_LISTED", "action_json", "fits", "list_json", "room_json"]
