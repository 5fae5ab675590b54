# SPDX-License-Identifier: Apache-2.0
"""Expressions that refer to one box in a room and to no other, by label, size, relation or order in a view."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..preparation.scans import StoredView
from ..readers.boxes import Box


SIZE_MARGIN = 1.15  # the largest is larger than the next by this factor
DISTANCE_MARGIN = 0.3  # metres by which the closest is closer than the next
ORDER_MARGIN = 0.04  # of the picture's width between neighbours that are counted from left to right
SEEN_SHARE = 0.2  # of a box's points that a view has to show
OCCLUSION_SLACK = 0.25  # metres that a point may lie behind the measured depth, beside the box's own thickness
ORDINALS = ("", "second ", "third ", "fourth ")
INSTRUCTIONS = (
    "Place an anchor on {}.",
    "Put an anchor on {}.",
    "Anchor {}.",
    "Mark {} with an anchor.",
    "Set the anchor on {}.",
    "I need an anchor on {}.",
)


@dataclass(frozen=True)
class Sight:
    """How a view shows a box.

    Attributes:
        seen: the share of the box's points that are in the picture and not hidden.
        inside: the share that are in the picture, hidden or not.
        column: of the box's centre, in widths of the picture; None if the centre is not in the picture.
    """

    seen: float
    inside: float
    column: float | None


def spoken(label: str) -> str:
    """A label as it is said: "tv_monitor" and "washerDryer" become "tv monitor" and "washer dryer"."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", label).lower().split())


def look(box: Box, view: StoredView) -> Sight:
    """Projects 27 points of a box into a view and compares them with its depth map.

    Args:
        box: world.
        view: with geometry.
    """
    steps = np.array([[x, y, z] for x in (-0.4, 0, 0.4) for y in (-0.4, 0, 0.4) for z in (-0.4, 0, 0.4)])
    points = box.center + steps * box.size @ box.axes  # the 14th is the centre
    camera = points @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
    z = np.maximum(camera[:, 2], 1e-6)

    def project(intrinsics: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = (camera / z[:, None] @ intrinsics.T)[:, :2]
        return pixels, (camera[:, 2] > 0.05) & ((pixels > -0.5) & (pixels < [width - 0.5, height - 0.5])).all(axis=1)

    pixels, inside = project(view.intrinsics, *view.size)
    height, width = view.depth.shape
    depth_pixels, measured = project(view.depth_intrinsics, width, height)
    column, row = np.rint(depth_pixels).astype(np.int64).clip(0, [width - 1, height - 1]).T
    depth = np.where(measured, view.depth[row, column], 0)
    slack = OCCLUSION_SLACK + min(0.5, np.linalg.norm(box.size) / 2)
    hidden = (depth > 0) & (camera[:, 2] > depth + slack)
    column = float((pixels[13, 0] + 0.5) / view.size[0]) if inside[13] else None
    return Sight(float((inside & ~hidden).mean()), float(inside.mean()), column)


def refer(target: Box, boxes: list[Box], sights: list[Sight]) -> dict[str, list[str]]:
    """Every expression that picks out `target`.

    Args:
        target: one of `boxes`.
        boxes: all of the room, world; sizes as width, height, depth.
        sights: how view 0 shows each of them.

    Returns:
        "label", "size", "relation", "order" to noun phrases ("the chair closest to the door"); only those there are.
    """
    name = spoken(target.label)
    names = [spoken(box.label) for box in boxes]
    rivals = [box for box, other in zip(boxes, names) if other == name and box is not target]
    if not rivals:
        return {"label": [f"the {name}"]}
    found = {
        "size": _sizes(target, rivals),
        "relation": _relations(target, rivals, boxes, names),
        "order": _orders(target, boxes, names, sights),
    }
    return {kind: phrases for kind, phrases in found.items() if phrases}


def _sizes(target: Box, rivals: list[Box]) -> list[str]:
    name = spoken(target.label)
    measures = {
        ("largest", "smallest"): lambda box: float(np.prod(box.size) if box.size[2] else box.size[0] * box.size[1]),
        ("tallest", "lowest"): lambda box: box.size[1],
        ("longest", "shortest") if target.kind == "wall" else ("widest", "narrowest"): lambda box: box.size[0],
    }
    if target.kind == "object":  # of a thing with a depth, "wide" and "large" are hard to tell apart
        del measures[("widest", "narrowest")]
    phrases = []
    for (most, least), measure in measures.items():
        own, others = measure(target), [measure(box) for box in rivals]
        if own >= SIZE_MARGIN * max(others):
            phrases.append(f"the {most} {name}")
        if own * SIZE_MARGIN <= min(others):
            phrases.append(f"the {least} {name}")
    return phrases


def _relations(target: Box, rivals: list[Box], boxes: list[Box], names: list[str]) -> list[str]:
    """By nearness to something of another name that is the only one, or the largest or smallest, of its own."""
    name, times = spoken(target.label), Counter(names)
    phrases = []
    for anchor, anchor_name in zip(boxes, names):
        if anchor_name == name or anchor.kind in ("floor", "opening"):
            continue
        alike = [box for box, other in zip(boxes, names) if other == anchor_name and box is not anchor]
        anchor_phrases = [f"the {anchor_name}"] if times[anchor_name] == 1 else _sizes(anchor, alike)
        own, others = _distance(target, anchor), [_distance(box, anchor) for box in rivals]
        for anchor_phrase in anchor_phrases[:1]:
            if own + DISTANCE_MARGIN <= min(others):
                phrases.append(f"the {name} closest to {anchor_phrase}")
            if own - DISTANCE_MARGIN >= max(others):
                phrases.append(f"the {name} farthest from {anchor_phrase}")
    return phrases


def _distance(box: Box, anchor: Box) -> float:
    """Metres from the centre of `anchor` to the nearest point of `box`."""
    offset = box.axes @ (anchor.center - box.center)
    return float(np.linalg.norm(np.maximum(np.abs(offset) - box.size / 2, 0)))


def _orders(target: Box, boxes: list[Box], names: list[str], sights: list[Sight]) -> list[str]:
    """By the order from left to right in view 0, if every one of the kind is either plainly in it or not at all."""
    name = spoken(target.label)
    if target.kind == "wall":
        return []
    columns = []
    for box, other, sight in zip(boxes, names, sights):
        if other != name or sight.inside == 0:
            continue
        if sight.column is None or sight.seen < SEEN_SHARE:
            return []
        columns.append((sight.column, box is target))
    columns.sort()
    place = next((index for index, (_, own) in enumerate(columns) if own), None)
    gaps = np.diff([column for column, _ in columns])
    if place is None or len(columns) < 2 or gaps.min() < ORDER_MARGIN:
        return []
    phrases = []
    for rank, side in ((place, "left"), (len(columns) - 1 - place, "right")):
        if rank == 0:
            phrases.append(f"the {side}most {name} in the first picture")
        elif rank < len(ORDINALS):
            phrases.append(f"the {ORDINALS[rank]}{name} from the {side} in the first picture")
    return phrases


__all__ = ["INSTRUCTIONS", "SEEN_SHARE", "Sight", "look", "refer", "spoken"]
