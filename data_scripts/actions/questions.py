# SPDX-License-Identifier: Apache-2.0
"""The questions of `arkit_actions` about one room: an anchor on each thing, a list of each kind, a plan of all."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..preparation.annotations import qa_row
from ..preparation.base import Options, Remark
from ..preparation.scans import StoredView
from ..readers.boxes import Box
from .referring import INSTRUCTIONS, SEEN_SHARE, look, refer, spoken
from .text import MAX_IN_ROOM, MAX_LISTED, action_json, fits, list_json, room_json


TARGETS = ("object", "wall", "door", "window")
LIST_INSTRUCTIONS = (
    "List every {} in the room.",
    "List each {} that the pictures show.",
    "Find every {}.",
    "Where is each {}?",
    "Give the position and the size of every {}.",
    "I need the box of each {}.",
)
PLAN_INSTRUCTIONS = (
    "Describe the room as a plan.",
    "Make a plan of the room: walls, doors, windows and objects.",
    "Draw up the floor plan with all that is in the room.",
    "Scan the room.",
    "Give the boxes of all walls, doors, windows and objects.",
)
# Where walls, doors and windows are not annotated, so that none are right.
FURNITURE_INSTRUCTIONS = (
    "Describe the furniture of the room as a plan.",
    "Make a plan of the furniture, without walls, doors and windows.",
    "Draw up a plan of all objects in the room.",
    "Scan the furniture.",
    "Give the boxes of all objects.",
)


def questions(
    scene_id: str,
    boxes: Sequence[Box],
    views: Sequence[StoredView],
    options: Options,
    has_structure: bool,
    remarks: list[Remark],
) -> list[dict]:
    """Rows of `qa`, of the actions in `options.actions`: one per box that can be a target, one per category, and one of the whole room.

    Args:
        boxes: all of the room, world, oriented: axes and sizes as width, height, depth.
        views: with geometry; the first is the frame of the targets.
        options: the actions, and the seed of the choice of words.
        has_structure: whether walls, doors and windows are annotated.
        remarks: what cannot be asked for is added here.
    """
    sights = [[look(box, view) for view in views] for box in boxes]
    counted, seen, left_out = set(), [], {"boxes that no view shows": [], "boxes that no action can hold": []}
    for box, of_views in zip(boxes, sights):
        if box.kind not in TARGETS or box.identifier in counted:
            continue
        counted.add(box.identifier)
        if not fits(box) or not fits(in_view(box, views[0])):
            left_out["boxes that no action can hold"].append(box.label)
        elif max(sight.seen for sight in of_views) < SEEN_SHARE:
            left_out["boxes that no view shows"].append(box.label)
        else:
            seen.append(box)
    for kind, labels in left_out.items():
        if labels:
            remarks.append(Remark(kind, len(labels), labels[0]))
    rows, seed = [], options.seed
    if "place_anchor" in options.actions:
        rows += _anchors(scene_id, seen, boxes, [of_box[0] for of_box in sights], views[0], seed, remarks)
    nearest = sorted(seen, key=lambda box: float(np.linalg.norm(in_view(box, views[0]).center)))
    if seen and "list_objects" in options.actions:
        rows += _lists(scene_id, nearest, views[0], seed, remarks)
    if seen and "describe_room" in options.actions:
        rows += _plan(scene_id, nearest, views[0], seed, has_structure, remarks)
    return rows


def in_view(box: Box, view: StoredView) -> Box:
    """A box of the world in the frame of a view's camera."""
    rotation, translation = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    return replace(box, center=rotation @ box.center + translation, axes=box.axes @ rotation.T)


def _rng(seed: int, scene_id: str, what: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed} {scene_id} {what}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _anchors(scene_id, seen, boxes, sights, view, seed, remarks) -> list[dict]:
    rows, alike = [], []
    for box in seen:
        phrases = refer(box, boxes, sights)
        if not phrases:
            alike.append(box.label)
            continue
        rng = _rng(seed, scene_id, box.identifier)
        kind = sorted(phrases)[rng.integers(len(phrases))]
        phrase = phrases[kind][rng.integers(len(phrases[kind]))]
        texts = [
            action_json(target.label, target.center, target.size, target.axes[2], decimals)
            for target, decimals in ((in_view(box, view), 2), (box, 4))
        ]
        instruction = INSTRUCTIONS[rng.integers(len(INSTRUCTIONS))].format(phrase)
        rows.append(_row(scene_id, box.identifier, instruction, [box], *texts))
    if alike:
        remarks.append(Remark("boxes that no words tell apart", len(alike), alike[0]))
    return rows


def _lists(scene_id, nearest, view, seed, remarks) -> list[dict]:
    categories: dict[str, list[Box]] = {}
    for box in nearest:  # two labels that are said alike are one category
        categories.setdefault(spoken(box.label), []).append(box)
    rows, long = [], []
    for name, members in sorted(categories.items()):
        if len(members) > MAX_LISTED:
            long.append(name)
            continue
        rng = _rng(seed, scene_id, f"list_objects {name}")
        texts = [
            list_json(members[0].label, targets, decimals)
            for targets, decimals in (([in_view(box, view) for box in members], 2), (members, 4))
        ]
        instruction = LIST_INSTRUCTIONS[rng.integers(len(LIST_INSTRUCTIONS))].format(name)
        rows.append(_row(scene_id, f"list_objects-{name}", instruction, members, *texts))
    if long:
        remarks.append(Remark(f"categories of more than {MAX_LISTED} boxes, not listed", len(long), long[0]))
    return rows


def _plan(scene_id, nearest, view, seed, has_structure, remarks) -> list[dict]:
    parts = {key: [box for box in nearest if f"{box.kind}s" == key] for key in MAX_IN_ROOM}
    full = [key for key, most in MAX_IN_ROOM.items() if len(parts[key]) > most]
    if full:
        remarks.append(Remark("rooms of more than a plan holds, not described", 1, full[0]))
        return []
    instructions = PLAN_INSTRUCTIONS if has_structure else FURNITURE_INSTRUCTIONS
    instruction = instructions[_rng(seed, scene_id, "describe_room").integers(len(instructions))]
    text = room_json({key: [in_view(box, view) for box in members] for key, members in parts.items()})
    boxes = [box for members in parts.values() for box in members]
    return [_row(scene_id, "describe_room", instruction, boxes, text, room_json(parts, decimals=4))]


def _row(scene_id: str, name: str, instruction: str, boxes: Sequence[Box], action: str, action_world: str) -> dict:
    return qa_row(
        scene_id=scene_id,
        question_id=f"{scene_id}-{name}",
        question=instruction,
        answers=[action],
        task="arkit_actions",
        object_names=[box.label for box in boxes],
        action=action,
        action_world=action_world,
    )


__all__ = ["TARGETS", "in_view", "questions"]
