# SPDX-License-Identifier: Apache-2.0
"""Questions asked by somebody who stands in the room and faces an object.

The words leave open where exactly next to an object somebody stands, so a question is asked only if every such place gives the
same answer. What lies within `MARGIN` of the border between two directions is not asked about.
"""

from dataclasses import dataclass

import numpy as np

from .layout import Piece, Scene
from .questions import NUMBERS, Candidate


MARGIN = np.radians(9)
ARM = 0.45  # metres between the asker and the object they stand next to
SITUATIONS = 16  # sampled per room
SEATS = ("bed", "chair", "sofa")
DIRECTIONS = ("front", "left", "behind", "right")  # counter-clockwise, quarter turns

# (type, form) -> share of all questions; the type is the first word of the question
SQA3D_SHARES = {
    ("what", "left"): 0.08,
    ("what", "right"): 0.08,
    ("what", "behind"): 0.08,
    ("is", "left"): 0.07,
    ("is", "right"): 0.07,
    ("is", "behind"): 0.07,
    ("which", "side"): 0.2,
    ("how", "many"): 0.16,
    ("can", "see"): 0.19,
}


@dataclass
class Situation:
    """Where somebody stands and what they face.

    Attributes:
        text, paraphrase: the situation in words.
        position: `[2]` metres, aligned frame.
        heading: radians, the direction faced, counter-clockwise from the x axis of the aligned frame.
    """

    text: str
    paraphrase: str
    position: np.ndarray
    heading: float


def direction(piece: Piece, position: np.ndarray, heading: float) -> str | None:
    """On which side of somebody at `position` `[2]` an object lies; None if too near or between two directions."""
    offset = piece.position - position
    if np.linalg.norm(offset) < 0.3 or piece.distance(position) == 0:
        return None
    quarters = (np.arctan2(offset[1], offset[0]) - heading) / (np.pi / 2)
    nearest = round(quarters)
    if abs(quarters - nearest) * np.pi / 2 > np.pi / 4 - MARGIN:
        return None
    return DIRECTIONS[nearest % 4]


def sqa3d_candidates(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    """Questions from several places in the room whose answers the views show, in random order."""
    pieces = scene.pieces
    seen = scene.seen.any(axis=0)
    names = [piece.name for piece in pieces]
    unique = [i for i in range(len(pieces)) if seen[i] and names.count(names[i]) == 1]
    places: list[tuple[int | None, int]] = [(None, faced) for faced in unique]
    places += [(at, faced) for at in unique for faced in unique if at != faced]
    found: list[Candidate] = []
    for choice in rng.permutation(len(places))[:SITUATIONS]:
        at, faced = places[choice]
        found += _ask(rng, scene, seen, at, faced)
    return [found[i] for i in rng.permutation(len(found))]


def _ask(rng: np.random.Generator, scene: Scene, seen: np.ndarray, at: int | None, faced: int) -> list[Candidate]:
    pieces = scene.pieces
    target = pieces[faced]
    sits = at is not None and pieces[at].category in SEATS
    stands_next_to = at is not None and not sits
    if sits:
        place, positions = f"on the {pieces[at].name}", pieces[at].position[None]
    elif stands_next_to:
        around = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]) * (pieces[at].half_size + ARM)
        place, positions = f"next to the {pieces[at].name}", pieces[at].position + around @ pieces[at].rotation.T
    else:
        place, positions = "in the middle of the room", np.zeros((1, 2))
    if not sits:
        positions = np.array([p for p in positions if _free(scene, p)])
    others = [i for i in range(len(pieces)) if i not in (at, faced)]
    if len(positions) == 0 or not others:
        return []
    headings = [np.arctan2(*(target.position - p)[::-1]) for p in positions]
    sides = {}  # object -> its direction from every place the words may mean, or None
    for i in range(len(pieces)):
        views = {direction(pieces[i], p, h) for p, h in zip(positions, headings)}
        sides[i] = views.pop() if len(views) == 1 else None
    pick = int(rng.integers(len(positions)))
    situation = Situation(
        text=f"I am {'sitting' if sits else 'standing'} {place} and facing the {target.name}.",
        paraphrase=f"I {'sit' if sits else 'stand'} {place} and look at the {target.name}.",
        position=positions[pick],
        heading=headings[pick],
    )

    found: list[Candidate] = []

    def add(kind: tuple[str, str], fact: object, question: str, answer: str, objects: list[int]) -> None:
        found.append(Candidate(kind, (at, faced, fact), question, [answer], objects, situation))

    categories = [piece.category for piece in pieces]
    phrase = {"left": "on my left", "right": "on my right", "behind": "behind me"}
    # An object whose direction is open could be in any of them: then nothing is said about what is alone or counted.
    certain = all(sides[i] is not None for i in others)
    beside = direction(pieces[at], situation.position, situation.heading) if stands_next_to else "nowhere"
    for side in ("left", "right", "behind"):
        inside = [i for i in others if sides[i] == side]
        if beside in (side, None):
            continue  # what they stand next to may be a right answer too
        if certain and len(inside) == 1 and seen[inside[0]]:
            add(("what", side), inside[0], f"What is {phrase[side]}?", categories[inside[0]], inside)
    if certain and not stands_next_to:
        behind = [i for i in others if sides[i] == "behind"]
        if all(seen[i] for i in behind):
            add(("how", "many"), "count", "How many objects are behind me?", NUMBERS[len(behind)], behind)
    for i in others:
        if not seen[i] or sides[i] is None or categories.count(categories[i]) > 1:
            continue
        name = categories[i]
        for side in ("left", "right", "behind"):
            answer = "yes" if sides[i] == side else "no"
            add(("is", side), i, f"Is the {name} {phrase[side]}?", answer, [i])
        add(("which", "side"), i, f"Which side of me is the {name} on?", sides[i], [i])
        if sides[i] in ("front", "behind"):
            answer = "yes" if sides[i] == "front" else "no"
            add(("can", "see"), i, f"Can I see the {name}?", answer, [i])
    return found


def _free(scene: Scene, position: np.ndarray) -> bool:
    """Whether somebody can stand at `position` `[2]`: inside the room, with no furniture in the way of their feet."""
    inside = (np.abs(position) < scene.size / 2 - 0.1).all()
    return bool(inside) and all(piece.distance(position) > 0.1 for piece in scene.pieces)


__all__ = ["SQA3D_SHARES", "Situation", "direction", "sqa3d_candidates"]
