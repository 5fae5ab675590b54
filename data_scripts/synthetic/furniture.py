# SPDX-License-Identifier: Apache-2.0
"""Twelve kinds of furniture composed of boxes, and the eight colours they come in.

A piece is built in its own frame: metres, x to its right, y to its front, z up, the middle of its footprint at the origin,
standing on z = 0. Its colour is drawn independently of its kind; silhouette, proportion and the material of some parts
(the legs of a table, the pillows of a bed), which is the same in every piece of a kind, tell the kinds apart.
"""

from collections.abc import Callable

import numpy as np


# Hues are spread so that a face in shade (70 % of the brightness) is still nearest to its own colour.
COLORS = {
    "red": (222, 28, 36),
    "orange": (255, 134, 0),
    "yellow": (255, 230, 20),
    "green": (24, 164, 48),
    "cyan": (40, 214, 228),
    "blue": (32, 64, 224),
    "purple": (150, 44, 190),
    "white": (250, 250, 250),
}

# What a part is made of if not of the piece's own colour. None is close to one of `COLORS`, and such parts are small: the
# median colour of what is seen of a piece is its own (measured in all but 2 of 1,520 views of pieces).
MATERIALS = {
    "black": (22, 22, 26),
    "wood": (112, 70, 34),
    "pink": (255, 150, 190),
    "charcoal": (72, 74, 82),
    "maroon": (96, 14, 40),
    "teal": (8, 84, 92),
}
OWN = 0  # in place of a material's number, which counts from 1: the piece's own colour

ACCENT = 0.45  # brightness of the few dark details (gaps, hollows)

Part = tuple[float, float, float, float, float, float, float, int]  # x0, x1, y0, y1, z0, z1, brightness, material


def _box(
    x: float, y: float, z0: float, z1: float, width: float, depth: float, tone: float = 1.0, of: str | None = None
) -> Part:
    material = OWN if of is None else 1 + tuple(MATERIALS).index(of)
    return (x - width / 2, x + width / 2, y - depth / 2, y + depth / 2, z0, z1, tone, material)


def _legs(width: float, depth: float, height: float, thickness: float, of: str) -> list[Part]:
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    return [_box(sx * x, sy * y, 0.0, height, thickness, thickness, of=of) for sx in (-1, 1) for sy in (-1, 1)]


def _bed(scale: float) -> list[Part]:
    width, length = 1.45 * scale, 2.0 * scale
    pillow = -length / 2 + 0.38
    return [
        _box(0, 0.04, 0, 0.46, width, length - 0.08),
        _box(0, -length / 2 + 0.04, 0, 1.05, width, 0.08, 0.8),
        _box(-width / 4, pillow, 0.46, 0.6, width * 0.4, 0.34, of="pink"),
        _box(width / 4, pillow, 0.46, 0.6, width * 0.4, 0.34, of="pink"),
        _box(0, length / 2 - 0.3, 0.2, 0.48, width + 0.02, 0.26, of="pink"),  # a folded blanket
    ]


def _chair(scale: float) -> list[Part]:
    side = 0.54 * scale
    return [
        _box(0, 0, 0.42, 0.5, side, side),
        _box(0, -side / 2 + 0.04, 0.5, 1.08 * scale, side, 0.08),
        *_legs(side, side, 0.42, 0.09, "black"),
    ]


def _table(scale: float) -> list[Part]:
    width, depth = 1.4 * scale, 0.9 * scale
    return [
        _box(0, 0, 0.7, 0.78, width - 0.2, depth),
        *[_box(side * (width - 0.1) / 2, 0, 0.7, 0.78, 0.1, depth, of="wood") for side in (-1, 1)],
        *_legs(width - 0.08, depth - 0.08, 0.7, 0.09, "wood"),
    ]


def _sofa(scale: float) -> list[Part]:
    width, depth = 1.9 * scale, 0.9
    return [
        _box(0, 0.1, 0, 0.42, width - 0.44, depth - 0.2),
        _box(0, -depth / 2 + 0.12, 0, 0.9, width - 0.44, 0.24, 0.9),
        _box(-width / 2 + 0.11, 0, 0, 0.64, 0.22, depth),
        _box(width / 2 - 0.11, 0, 0, 0.64, 0.22, depth),
        *[  # cushions
            _box(side * (width - 0.88) / 2, -0.1, 0.42, 0.78, 0.42, 0.16, of="charcoal") for side in (-1, 1)
        ],
    ]


def _bookshelf(scale: float) -> list[Part]:
    width, depth, height = 1.1 * scale, 0.36, 1.9 * scale
    board = 0.07
    shelves = np.linspace(0.06, height - board, 5)
    inner = width - 2 * board
    return [
        _box(-(width - board) / 2, 0, 0, height, board, depth),
        _box((width - board) / 2, 0, 0, height, board, depth),
        _box(0, -depth / 2 + 0.02, 0, height, inner, 0.04, ACCENT),
        *[_box(0, 0.02, z, z + board, inner, depth - 0.04) for z in shelves],
        *[  # books, on the left and on the right in turn
            _box((-1) ** row * inner / 4, 0.02, z + board, z + board + 0.24, inner / 2, depth - 0.06, of="maroon")
            for row, z in enumerate(shelves[:-1])
        ],
    ]


def _lamp(scale: float) -> list[Part]:
    top = 1.75 * scale
    return [
        _box(0, 0, 0, 0.07, 0.42, 0.42, of="wood"),
        _box(0, 0, 0.07, top - 0.45, 0.1, 0.1, 0.8),
        _box(0, 0, top - 0.45, top, 0.6, 0.6),
    ]


def _television(scale: float) -> list[Part]:
    width = 1.45 * scale
    bottom, top = 0.5, 0.5 + 0.62 * width
    return [
        _box(0, 0, 0, 0.07, 0.8 * scale, 0.42),
        _box(0, 0, 0.07, bottom, 0.14, 0.14),
        _box(0, 0, bottom, top, width, 0.12),
        _box(0, 0.066, bottom + 0.2, top - 0.2, width - 0.46, 0.012, of="black"),
    ]


def _refrigerator(scale: float) -> list[Part]:
    width, depth, height = 0.8 * scale, 0.72, 1.85 * scale
    gap, front = height * 0.66, depth / 2
    return [
        _box(0, -0.02, 0, height, width, depth - 0.04),
        _box(0, -0.01, 0, 0.14, width + 0.02, depth, of="charcoal"),
        _box(0, -0.01, gap - 0.05, gap + 0.05, width + 0.02, depth, of="charcoal"),
        _box(width * 0.3, front, gap - 0.55, gap - 0.12, 0.1, 0.06, of="charcoal"),
        _box(width * 0.3, front, gap + 0.1, gap + 0.4, 0.1, 0.06, of="charcoal"),
    ]


def _cabinet(scale: float) -> list[Part]:
    width, depth, height = 1.3 * scale, 0.52, 0.86
    parts = [_box(0, -0.02, 0, height, width, depth - 0.04)]
    parts += [
        _box(side * (width / 2 - 0.03), depth / 2 - 0.06, 0, height + 0.02, 0.08, 0.1, of="wood") for side in (-1, 1)
    ]
    for row in range(3):
        z = 0.1 + row * 0.25
        parts.append(_box(0, depth / 2 - 0.03, z, z + 0.19, width - 0.12, 0.04, 0.9))
        parts.append(_box(0, depth / 2, z + 0.06, z + 0.13, 0.34, 0.05, of="wood"))
    return parts


def _plant(scale: float) -> list[Part]:
    return [
        _box(0, 0, 0, 0.34, 0.46, 0.46, of="maroon"),
        _box(0, 0, 0.34, 0.55, 0.12, 0.12, of="wood"),
        _box(0, 0, 0.55, 0.85 * scale, 0.92, 0.92),
        _box(0, 0, 0.85 * scale, 1.15 * scale, 0.66, 0.66),
        _box(0, 0, 1.15 * scale, 1.45 * scale, 0.4, 0.4),
        _box(0, 0, 1.45 * scale, 1.7 * scale, 0.18, 0.18),
    ]


def _bathtub(scale: float) -> list[Part]:
    length, depth, height, rim = 1.65 * scale, 0.85, 0.6, 0.16
    return [
        _box(0, (depth - rim) / 2, 0, height, length, rim),
        _box(0, -(depth - rim) / 2, 0, height, length, rim),
        _box((length - rim) / 2, 0, 0, height, rim, depth - 2 * rim),
        _box(-(length - rim) / 2, 0, 0, height, rim, depth - 2 * rim),
        _box(0, 0, 0, 0.28, length - 2 * rim, depth - 2 * rim, of="teal"),
    ]


def _ladder(scale: float) -> list[Part]:
    width, height, pole = 0.74 * scale, 2.05 * scale, 0.12
    rungs = np.linspace(0.25, height - 0.3, 6)
    return [
        _box(-(width - pole) / 2, 0, 0, height, pole, 0.14),
        _box((width - pole) / 2, 0, 0, height, pole, 0.14),
        *[_box(0, 0, z, z + 0.09, width - 2 * pole, 0.12) for z in rungs],
    ]


# name -> (builder, stands with its back to a wall)
_BUILDERS: dict[str, tuple[Callable[[float], list[Part]], bool]] = {
    "bed": (_bed, True),
    "chair": (_chair, False),
    "table": (_table, False),
    "sofa": (_sofa, True),
    "bookshelf": (_bookshelf, True),
    "lamp": (_lamp, False),
    "television": (_television, True),
    "refrigerator": (_refrigerator, True),
    "cabinet": (_cabinet, True),
    "plant": (_plant, False),
    "bathtub": (_bathtub, False),
    "ladder": (_ladder, False),
}

CATEGORIES = tuple(_BUILDERS)


def build(category: str, scale: float) -> np.ndarray:
    """The boxes a piece consists of.

    Args:
        category: one of `CATEGORIES`.
        scale: size jitter, about 1.

    Returns:
        `[P, 8]` float64: x0, x1, y0, y1, z0, z1 in metres in the piece's frame, the brightness of the part, and what it
        is made of: 0 for the piece's own colour, n for the n-th of `MATERIALS`.
    """
    return np.array(_BUILDERS[category][0](scale), dtype=np.float64)


def colors_of(parts: np.ndarray, color: str) -> np.ndarray:
    """`[P, 3]` RGB of the parts `[P, 8]` of a piece of that colour, before shading."""
    return np.array([COLORS[color], *MATERIALS.values()], dtype=np.float64)[parts[:, 7].astype(int)]


def stands_at_wall(category: str) -> bool:
    """Whether the piece shows nothing but a plain board from behind and so is put with its back to a wall."""
    return _BUILDERS[category][1]


__all__ = ["CATEGORIES", "COLORS", "MATERIALS", "build", "colors_of", "stands_at_wall"]
