# SPDX-License-Identifier: Apache-2.0
"""The constant baseline: what is right without looking, as far as the training split tells."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from .reading import KINDS, VECTORS, boxes_of


class ConstantActions:
    """
    Answers every instruction with the constant of its label.

    The constant box of a label has the median centre (view 0's frame), the median extent and the mean normal of the
    label's boxes in the training references of the same action. A list holds the label's most frequent number of boxes
    there, a room for each kind and category of objects its most frequent number; ties: the smallest. A label that the
    training split lacks takes the box and number of all its labels together, an action that it lacks those of all
    actions. It is told which action and label are asked for, which a model must find out.

    Args:
        training: The reference actions of the training split, at least one.
    """

    def __init__(self, training: Sequence[dict]):
        boxes, numbers = defaultdict(list), defaultdict(Counter)
        for action in training:
            name, own = action["action"], boxes_of(action)
            for box in own:
                for key in ((name, box["label"]), (name, None), (None, box["label"]), (None, None)):
                    boxes[key].append(box)
            if name == "list_objects":
                numbers[name, action["label"]][len(own)] += 1
                numbers[name, None][len(own)] += 1
        if not boxes:
            raise ValueError(f"The {len(training)} actions of the training split have no box to make a constant of.")
        self._boxes = {key: _constant(own) for key, own in boxes.items()}
        self._numbers = {key: _most_frequent(counter) for key, counter in numbers.items()}
        # How often each kind of surface, and each category of objects, comes in a room.
        rooms = [
            Counter((kind, box.get("label")) for kind in KINDS for box in action[kind])
            for action in training
            if action["action"] == "describe_room"
        ]
        self._room = {
            pair: _most_frequent(Counter(room[pair] for room in rooms))
            for pair in sorted({pair for room in rooms for pair in room}, key=str)
        }

    def _box(self, action: str, label: str) -> dict:
        keys = (action, label), (action, None), (None, label), (None, None)
        return next(self._boxes[key] for key in keys if key in self._boxes)

    def answer(self, reference: dict) -> dict:
        """The constant action for the instruction whose reference this is: only action and label are read of it."""
        name = reference["action"]
        if name == "describe_room":
            room = {kind: [] for kind in KINDS}
            for (kind, label), number in self._room.items():
                box = self._box(name, label or kind.removesuffix("s"))
                room[kind] += [box if label is None else {"label": label, **box}] * number
            return {"action": name, **room}
        label = reference["label"]
        box = self._box(name, label)
        if name == "place_anchor":
            return {"action": name, "label": label, **box}
        number = self._numbers.get((name, label), self._numbers.get((name, None), 1))
        return {"action": name, "label": label, "objects": [box] * number}


def _most_frequent(counter: Counter) -> int:
    return min(counter, key=lambda number: (-counter[number], number))


def _constant(boxes: Sequence[dict]) -> dict:
    centers, extents, normals = (np.array([box[key] for box in boxes], dtype=float) for key in VECTORS)
    normal = normals.mean(axis=0)
    if np.linalg.norm(normal) < 1e-6:  # opposite ones cancel out: towards view 0 then
        normal = np.array([0.0, 0.0, -1.0])
    vectors = np.median(centers, axis=0), np.median(extents, axis=0), normal / np.linalg.norm(normal)
    return {key: vector.tolist() for key, vector in zip(VECTORS, vectors, strict=True)}


__all__ = ["ConstantActions"]
