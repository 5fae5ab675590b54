# SPDX-License-Identifier: Apache-2.0
"""Reads the 3D object annotations of ARKitScenes, `<video>_3dod_annotation.json`: labelled boxes in the world of the scan.

Of the two boxes an entry holds, `obbAligned` is the one whose third axis is vertical; `axesLengths` are full extents, and
`normalizedAxes` holds the three axes one after the other.

Source: https://github.com/apple/ARKitScenes (threedod/README.md).
"""

import re
from pathlib import Path

import numpy as np

from ..files import UnreadableFileError, read_json
from ..limits import MAX_BOXES
from .boxes import Box, describe_fault, list_of_numbers, name_of


ARKITSCENES_LABELS = (
    "cabinet",
    "refrigerator",
    "shelf",
    "stove",
    "bed",
    "sink",
    "washer",
    "toilet",
    "bathtub",
    "oven",
    "dishwasher",
    "fireplace",
    "stool",
    "chair",
    "table",
    "tv_monitor",
    "sofa",
)


def read_annotation(path: Path) -> tuple[list[Box], list[str]]:
    """Reads `<video>_3dod_annotation.json`.

    Args:
        path: the file.

    Returns:
        the boxes in the order of the file, world of the scan; and, one line each, what was left out (a number that is not
        finite, an extent that is not positive, axes that are not at right angles). A label outside the 17 official ones is
        kept as it is, `known` being False.

    Raises:
        UnreadableFileError: the file is missing, no JSON, an entry lacks a key or has one of another type, or there are more than
            `MAX_BOXES`.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UnreadableFileError(path, "not an annotation: an object with the list 'data' is expected")
    if len(content["data"]) > MAX_BOXES:
        raise UnreadableFileError(path, f"'data' has {len(content['data'])} entries, more than {MAX_BOXES}")
    boxes, problems = [], []
    if content.get("skipped"):
        problems.append(f"{path.name}: marked as skipped by the annotators: boxes may be missing")
    for index, row in enumerate(content["data"]):
        where = f"data[{index}]"
        segment = row.get("segments") if isinstance(row, dict) else None
        segment = segment.get("obbAligned") if isinstance(segment, dict) else None
        if not isinstance(segment, dict) or not isinstance(row.get("label"), str):
            raise UnreadableFileError(path, f"{where} has no 'label' or no 'segments' with 'obbAligned'")
        name_of(path, where, row["label"], "'label'")
        uid = row.get("uid")
        identifier = name_of(path, where, str(uid if isinstance(uid, str | int) else index), "'uid'")
        center, size, axes = (
            list_of_numbers(path, where, segment, key, count)
            for key, count in (("centroid", 3), ("axesLengths", 3), ("normalizedAxes", 9))
        )
        axes = axes.reshape(3, 3)
        fault = describe_fault(center, axes, size)
        if fault is not None:
            problems.append(f"{path.name}: {where} ({row['label']}) left out: {fault}")
            continue
        if np.linalg.det(axes) < 0:  # the same box with axes that are right-handed
            axes = axes * np.array([[1.0], [1], [-1]])
        label = re.sub("[ /-]", "_", row["label"])  # the benchmark's own spelling: "tv monitor" is tv_monitor
        boxes.append(
            Box(
                identifier=identifier,
                kind="object",
                label=label,
                center=center,
                axes=axes,
                size=size,
                known=label in ARKITSCENES_LABELS,
            )
        )
    return boxes, problems


__all__ = ["ARKITSCENES_LABELS", "read_annotation"]
