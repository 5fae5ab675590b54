# SPDX-License-Identifier: Apache-2.0
"""Questions about a room whose answers follow from its geometry and from what the views show.

A question is a candidate only if its answer can be seen. `Balance` then chooses among the candidates of many rooms so that no
kind of question and no answer prevails.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from .furniture import CATEGORIES, COLORS
from .layout import Piece, Scene


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NEAR = 1.2  # metres between footprints up to which an object is "next to" another
CLEARLY = 0.75  # the nearest object is at most this share of the distance of the second nearest

# (type, form) -> share of all questions
SCANQA_SHARES = {
    ("color", "of"): 0.25,
    ("color", "near"): 0.03,
    ("object", "what"): 0.13,
    ("object", "which"): 0.12,
    ("existence", "category"): 0.14,
    ("existence", "colored"): 0.07,
    ("number", "category"): 0.07,
    ("number", "color"): 0.06,
    ("number", "all"): 0.03,
    ("spatial", "what"): 0.05,
    ("spatial", "where"): 0.05,
}


@dataclass
class Candidate:
    """A question with its answer.

    Attributes:
        kind: (type, form), what the shares are counted by.
        fact: candidates of one room that reveal the same thing share it, and only one of them is chosen.
        question, answers: the first answer is the canonical one, the others say the same.
        objects: indices of the objects the answer rests on.
        situation: where the asker stands; None for questions about the room as a whole.
    """

    kind: tuple[str, str]
    fact: Hashable
    question: str
    answers: list[str]
    objects: list[int] = field(default_factory=list)
    situation: object | None = None


class Balance:
    """Chooses candidates so that kinds keep to their shares and no answer of a type exceeds half.

    The choice depends on what was chosen before, so rooms have to be passed in a fixed order.

    Args:
        shares: (type, form) -> share; they add up to 1.
    """

    LIMIT = 0.5  # share of the most frequent answer within a type
    AHEAD = 1.0  # questions by which a kind may run ahead of its share when scarcer kinds have no candidate

    def __init__(self, shares: dict[tuple[str, str], float]):
        self.shares = shares
        self.kinds: Counter = Counter()
        self.types: Counter = Counter()
        self.answers: Counter = Counter()  # (type, answer)
        self.wordings: Counter = Counter()  # (kind, answer) and (question, answer)

    def select(self, candidates: list[Candidate], budget: int) -> list[Candidate]:
        """Up to `budget` of one room's candidates, in the order chosen; ties go to the earlier candidate."""
        chosen: list[Candidate] = []
        left = list(candidates)
        while len(chosen) < budget:
            facts = {(c.kind[0], c.fact) for c in chosen}
            left = [c for c in left if (c.kind[0], c.fact) not in facts and self._allows(c)]
            total = sum(self.kinds.values()) + 1
            behind = {kind: self.shares[kind] * total - self.kinds[kind] for kind in self.shares}
            if not left or max(behind[c.kind] for c in left) < -self.AHEAD:
                break
            best = min(left, key=lambda c: (-behind[c.kind], *self._frequency(c)))
            chosen.append(best)
            answer = best.answers[0]
            self.kinds[best.kind] += 1
            self.types[best.kind[0]] += 1
            self.answers[best.kind[0], answer] += 1
            self.wordings[best.kind, answer] += 1
            self.wordings[best.question, answer] += 1
        return chosen

    def _allows(self, candidate: Candidate) -> bool:
        kind, answer = candidate.kind[0], candidate.answers[0]
        return self.answers[kind, answer] + 1 <= self.LIMIT * (self.types[kind] + 2)

    def _frequency(self, candidate: Candidate) -> tuple[int, int]:
        answer = candidate.answers[0]
        return self.wordings[candidate.kind, answer], self.wordings[candidate.question, answer]


def plural(category: str) -> str:
    return "bookshelves" if category == "bookshelf" else category + "s"


def with_article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def where(items: list, value: object) -> list[int]:
    """Indices at which `items` holds `value`."""
    return [index for index, item in enumerate(items) if item == value]


def clearly_nearest(pieces: list[Piece], index: int) -> int | None:
    """The object that stands next to `pieces[index]` with no other one nearly as close, or None."""
    gaps = sorted((pieces[index].gap(other), i) for i, other in enumerate(pieces) if i != index)
    if not gaps or gaps[0][0] > NEAR or (len(gaps) > 1 and gaps[0][0] > CLEARLY * gaps[1][0]):
        return None
    return gaps[0][1]


def scanqa_candidates(rng: np.random.Generator, scene: Scene) -> list[Candidate]:
    """All questions that the views of a room answer, in random order."""
    pieces = scene.pieces
    seen = scene.seen.any(axis=0)  # [N] well visible in at least one view
    categories = [piece.category for piece in pieces]
    colors = [piece.color for piece in pieces]
    found: list[Candidate] = []

    for i, piece in enumerate(pieces):
        if not seen[i]:
            continue
        alone = len(where(categories, piece.category)) == 1
        if alone:
            found.append(Candidate(("color", "of"), i, f"What color is the {piece.category}?", [piece.color], [i]))
        if len(where(colors, piece.color)) == 1:
            for form, text in (("what", "What is the {} object?"), ("which", "Which object is {}?")):
                found.append(Candidate(("object", form), i, text.format(piece.color), [piece.category], [i]))
        nearest = clearly_nearest(pieces, i)
        if alone and nearest is not None and seen[nearest]:
            other = pieces[nearest]
            pair = [nearest, i]
            text = f"What color is the object next to the {piece.category}?"
            found.append(Candidate(("color", "near"), nearest, text, [other.color], pair))
            text = f"What is next to the {piece.category}?"
            found.append(Candidate(("spatial", "what"), frozenset(pair), text, [other.category], pair))
            if len(where(categories, other.category)) == 1:
                text = f"Where is the {piece.category}?"
                answers = [f"next to the {other.category}", f"beside the {other.category}"]
                found.append(Candidate(("spatial", "where"), frozenset(pair), text, answers, [i]))

    def exists(form: str, name: str, indices: list[int], fact: Hashable) -> None:
        if any(seen[i] for i in indices) or not indices:
            answer = "yes" if indices else "no"
            text = f"Is there {with_article(name)} in the room?"
            found.append(Candidate(("existence", form), fact, text, [answer], indices))

    names = [piece.name for piece in pieces]
    for category in CATEGORIES:
        exists("category", category, where(categories, category), category)
    # The wrong names are made of what is there, or a single word of the question would give the answer away.
    for category in dict.fromkeys(categories):
        for color in COLORS:
            if color in colors or rng.uniform() < 0.3:
                name = f"{color} {category}"
                exists("colored", name, where(names, name), name)

    def count(form: str, name: str, indices: list[int]) -> None:
        if all(seen[i] for i in indices):
            number = len(indices)
            text = f"How many {name} are there?"
            found.append(Candidate(("number", form), name, text, [NUMBERS[number], str(number)], indices))

    for category in dict.fromkeys(categories):
        count("category", plural(category), where(categories, category))
    for color in dict.fromkeys(colors):
        count("color", f"{color} objects", where(colors, color))
    count("all", "objects", list(range(len(pieces))))

    return [found[i] for i in rng.permutation(len(found))]


def picture_turns(rng: np.random.Generator, scene: Scene) -> list[tuple[str, str]]:
    """Three to six (question, answer) turns about the only view of a room with one or two objects, all well visible."""
    pieces = scene.pieces
    columns = [np.nonzero(scene.ids[0] == i)[1].mean() for i in range(len(pieces))]
    order = sorted(range(len(pieces)), key=lambda i: columns[i])
    text = " and ".join(with_article(pieces[i].name) for i in order)
    caption = ("Describe the picture.", f"{text}.")

    categories = [piece.category for piece in pieces]
    colors = [piece.color for piece in pieces]
    turns = []
    for piece in pieces:
        if categories.count(piece.category) == 1:
            turns.append((f"What color is the {piece.category}?", piece.color))
        if colors.count(piece.color) == 1:
            text = "What is the {} object?" if rng.uniform() < 0.5 else "Which object is {}?"
            turns.append((text.format(piece.color), piece.category))

    there = bool(rng.uniform() < 0.5)
    choices = [category for category in CATEGORIES if (category in categories) == there]
    turns.append((f"Is there {with_article(str(rng.choice(choices)))} in the room?", "yes" if there else "no"))
    name = "objects" if rng.uniform() < 0.6 else plural(categories[0])
    number = len(pieces) if name == "objects" else categories.count(categories[0])
    turns.append((f"How many {name} are there?", NUMBERS[number]))
    if len(set(categories)) == 2 and abs(columns[0] - columns[1]) > 0.1 * scene.ids.shape[2]:
        side = int(rng.integers(2))
        turns.append((f"What is on the {('left', 'right')[side]}?", categories[order[side]]))
    turns = [turns[i] for i in rng.permutation(len(turns))[:5]]
    turns.insert(int(rng.integers(len(turns) + 1)), caption)
    return turns


__all__ = [
    "SCANQA_SHARES",
    "Balance",
    "Candidate",
    "clearly_nearest",
    "picture_turns",
    "plural",
    "scanqa_candidates",
    "where",
    "with_article",
]
