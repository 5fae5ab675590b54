# SPDX-License-Identifier: Apache-2.0
"""A plan of a room from above: its cameras, the true boxes and the predicted ones, to scale."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Wedge

from recipes.metrics.room_actions.boxes import box_arrays


TRUE, PREDICTED, CAMERA, WALL = "#0072b2", "#d55e00", "#222222", "#8a8a8a"  # told apart by the colour-blind too
SURFACES = ("wall", "door", "window", "opening")  # flat, seen from above a line
PIXELS_PER_INCH, WIDTH = 100, 8.0  # 800 pixels wide
MARGIN = 0.6  # metres around what is drawn
# Predicted boxes farther outside of the room than this share of its size are a mark at the border: the room stays large.
FAR = 0.35
LONGEST_LABEL, LONGEST_TITLE = 18, 90  # characters
MOST_BOXES = 200  # of the walls, the true and the predicted ones each; more cannot be told apart
LOWEST, HIGHEST = 0.55, 1.1  # height of the plan over its width
UP = (0.0, 0.0, 1.0)
# Camera axes of view 0 (x right, y down, z forward) as a frame with z up, for scenes without cameras.
LEVEL_VIEW = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
# Points to the right of and above a box where its label may stand, nearest first.
PLACES = np.array(
    [(0.0, 0.0)]
    + [
        (radius * math.cos(angle), radius * math.sin(angle) * 0.7)
        for radius in (14, 22, 32, 44, 58, 74)
        for angle in np.arange(0, 2 * math.pi, math.pi / 6) + math.pi / 2
    ]
)


@dataclass(frozen=True)
class Plan:
    """
    What a plan shows, in one frame with z up.

    Attributes:
        title: Printed above.
        cameras: Centre and viewing direction of each view, `[V, 2, 3]`.
        true, predicted: Boxes: `label`, `center`, `extent`, `normal`, and where a predicted box answers for a true one the
            same `name` in both ("3"), which is printed before the label.
        walls: Boxes of what is known of the room beside them, in grey.
        axes: What the two axes are.
        metric: False where there are no cameras: lengths are relative then, and the scale bar says so.
    """

    title: str
    cameras: np.ndarray
    true: Sequence[dict]
    predicted: Sequence[dict]
    walls: Sequence[dict] = ()
    axes: tuple[str, str] = ("x, world", "y, world")
    metric: bool = True


def check_plan_path(path: Path):
    """Raises ValueError, naming the file, unless its name ends in `.png` and its folder exists."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"Cannot write {path}: there is no folder {path.parent}.")


def save_png(png: bytes, path: Path):
    """Writes a picture under a temporary name and moves it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(png)
    os.replace(temporary, path)


def camera_poses(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Centre and viewing direction of cameras, `[V, 2, 3]` world, of world-to-camera `R [V, 3, 3]`, `t [V, 3]` (OpenCV)."""
    return np.stack([-np.einsum("vij,vi->vj", rotations, translations), rotations[:, 2]], axis=1)


def moved(boxes: Sequence[dict], rotation: np.ndarray, translation: np.ndarray) -> list[dict]:
    """`boxes` with every point p at `rotation @ p + translation`."""
    return [
        {
            **box,
            "center": (rotation @ box["center"] + translation).tolist(),
            "normal": (rotation @ box["normal"]).tolist(),
        }
        for box in boxes
    ]


def plan_png(plan: Plan) -> bytes:
    """
    The picture, 800 pixels wide. Long labels are cut; letters that the font lacks are little boxes. Of more than `MOST_BOXES`
    the first are drawn, and the picture says how many are not.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        return _draw(plan)


def _draw(plan: Plan) -> bytes:
    drawn = {kind: getattr(plan, kind)[:MOST_BOXES] for kind in ("walls", "true", "predicted")}
    left_out = sum(len(getattr(plan, kind)) - len(boxes) for kind, boxes in drawn.items())
    plan = replace(plan, **drawn)
    low, high = _limits(plan)
    # The axes fill the picture's width; margins in inches: left, right, bottom (with the legend), top (with the title).
    left, right, bottom, top = 0.65, 0.15, 0.95, 0.4
    width = WIDTH - left - right
    height = width * (high[1] - low[1]) / (high[0] - low[0])
    total = height + bottom + top
    figure = Figure(figsize=(WIDTH, total), dpi=PIXELS_PER_INCH)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axis = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))
    unit = "m" if plan.metric else "relative"
    axis.set(xlabel=f"{plan.axes[0]} ({unit})", ylabel=f"{plan.axes[1]} ({unit})")
    axis.set_title(_printed(plan.title, LONGEST_TITLE), fontsize=11, loc="left")
    axis.set_aspect("equal")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    for boxes, colour, order in ((plan.walls, WALL, 2), (plan.true, TRUE, 3), (plan.predicted, PREDICTED, 4)):
        for box in boxes:
            _draw_box(axis, box, colour, order)
    true = {box["name"]: box for box in plan.true if "name" in box}
    for box in plan.predicted:
        if box.get("name") in true:
            (x, y), (true_x, true_y) = _at(axis, box["center"]), true[box["name"]]["center"][:2]
            axis.plot([x, true_x], [y, true_y], color=PREDICTED, linewidth=0.8, linestyle=":", zorder=3)
    _draw_scale(axis, plan.metric)
    figure.legend(handles=_legend(plan, axis), loc="lower center", ncols=6, frameon=False, fontsize=9)
    taken = _draw_cameras(axis, plan.cameras, renderer)
    if left_out:
        words = f"{left_out:,} more boxes are not drawn"
        note = axis.text(0.99, 0.99, words, transform=axis.transAxes, fontsize=9, ha="right", va="top", zorder=9)
        taken.append(note.get_window_extent(renderer).extents)
    for boxes, colour in ((plan.true, TRUE), (plan.predicted, PREDICTED)):
        for box in boxes:
            label = "" if box["label"] in SURFACES and "name" not in box else _printed(box["label"], LONGEST_LABEL)
            words = [box.get("name", ""), label]
            _draw_label(axis, " ".join(filter(None, words)), _at(axis, box["center"]), colour, taken, renderer)
    png = BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _printed(text: str, longest: int) -> str:
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")  # which would begin a formula


def footprint(box: dict) -> np.ndarray:
    """`[4 to 8, 2]` outline of a box from above (for a flat upright one, a line there and back)."""
    (center,), (axes,), (size,) = box_arrays(
        [{**box, "normal": box["normal"] if any(box["normal"]) else [0, 1, 0]}], UP
    )
    signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    return _hull(np.round((center + signs * size @ axes)[:, :2], 6))


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of points in the plane (Andrew's monotone chain), which may lie on a line."""
    points = sorted(set(map(tuple, points.tolist())))
    chains = []
    for ordered in (points, points[::-1]):
        chain = []
        for x, y in ordered:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains += chain[:-1] or chain
    return np.array(chains)


def _limits(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner `[2]` of what the picture shows."""
    # Without a truth the predicted boxes are all that is known of the room.
    known = (*plan.walls, *plan.true) or plan.predicted
    points = np.concatenate([footprint(box) for box in known] + [plan.cameras[:, 0, :2]])
    low, high = points.min(axis=0), points.max(axis=0)
    reach = np.maximum(FAR * (high - low), 1.0)
    outlines = [footprint(box) for box in plan.predicted]
    near = [o for o in outlines if (o >= low - reach).all() and (o <= high + reach).all()]
    points = np.concatenate([points, *near])
    low, high = points.min(axis=0), points.max(axis=0)
    if len(near) < len(outlines):
        low, high = low - 0.5, high + 0.5  # marks at the border shall not cover the room
    low, high = low - MARGIN, high + MARGIN
    # Neither a ribbon nor a tower: the shorter side shows more of what is around.
    wanted = np.array([(high - low)[1] / HIGHEST, (high - low)[0] * LOWEST])
    more = np.maximum(wanted - (high - low), 0) / 2
    return low - more, high + more


def _at(axis, center: Sequence[float]) -> tuple[float, float]:
    """Where a box's label or mark goes: its centre, or the border of the picture on the way there."""
    (x_low, x_high), (y_low, y_high) = axis.get_xlim(), axis.get_ylim()
    edge = 0.25
    return float(np.clip(center[0], x_low + edge, x_high - edge)), float(
        np.clip(center[1], y_low + edge, y_high - edge)
    )


def _draw_box(axis, box: dict, colour: str, order: int):
    outline = footprint(box)
    at = _at(axis, box["center"])
    if not np.allclose(at, box["center"][:2]):
        angle = math.degrees(math.atan2(box["center"][1] - at[1], box["center"][0] - at[0])) - 90
        axis.plot(*at, marker=(3, 0, angle), color=colour, markersize=9, zorder=order)
        return
    surface = box["label"] in SURFACES
    width = {"wall": 4.0, "door": 6.0, "window": 6.0, "opening": 6.0}.get(box["label"], 1.6)
    if surface and colour == PREDICTED:
        width *= 0.6  # both stay visible where they agree
    if surface:
        # A white core tells doors and windows from the wall they are in.
        axis.add_patch(
            Polygon(outline, closed=True, fill=False, edgecolor=colour, linewidth=width, alpha=0.75, zorder=order)
        )
        if box["label"] != "wall":
            axis.add_patch(
                Polygon(outline, closed=True, fill=False, edgecolor="white", linewidth=width / 2, zorder=order)
            )
    else:
        axis.add_patch(Polygon(outline, closed=True, facecolor=colour, alpha=0.12, linewidth=0, zorder=order - 1))
        style = "--" if colour == PREDICTED else "-"
        axis.add_patch(
            Polygon(outline, closed=True, fill=False, edgecolor=colour, linewidth=width, linestyle=style, zorder=order)
        )
    across = np.array(box["normal"][:2], dtype=float)
    if colour != WALL and np.linalg.norm(across) > 0.1:
        across /= np.linalg.norm(box["normal"])
        start = np.array(box["center"][:2]) + across * box["extent"][2] / 2
        axis.annotate(
            "",
            start + 0.3 * across,
            start,
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0},
            zorder=order,
        )


def _draw_cameras(axis, cameras: np.ndarray, renderer) -> list[np.ndarray]:
    """Numbered wedges in the viewing directions. Returns what they take, in pixels: low and high corner, `[4]` each."""
    taken = []
    for number, (center, direction) in enumerate(cameras):
        heading = math.degrees(math.atan2(direction[1], direction[0]))
        if np.linalg.norm(direction[:2]) > 0.1:  # one that looks straight down has none
            axis.add_patch(
                Wedge(
                    center[:2], 0.55, heading - 28, heading + 28, facecolor=CAMERA, alpha=0.18, zorder=5, linewidth=0
                )
            )
        text = axis.text(
            *center[:2],
            str(number),
            color="white",
            fontsize=8,
            fontweight="bold" if number == 0 else "normal",
            ha="center",
            va="center",
            zorder=7,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": CAMERA, "edgecolor": "white", "linewidth": 0.8},
        )
        taken.append(text.get_window_extent(renderer).padded(4).extents)
    return taken


def _draw_label(axis, words: str, at: tuple[float, float], colour: str, taken: list[np.ndarray], renderer):
    """Prints `words` as near to `at` as nothing else is printed, with a line to it if that is not near."""
    if not words:
        return
    text = axis.annotate(
        words,
        at,
        (0, 0),
        textcoords="offset points",
        color=colour,
        fontsize=9,
        ha="center",
        va="center",
        zorder=8,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
    )
    # The text is measured once, and all places are tried at once: `[places, 4]`.
    measured = text.get_window_extent(renderer).extents
    boxes = measured + np.tile(PLACES, 2) * axis.figure.dpi / 72
    frame = axis.get_window_extent(renderer).extents
    free = (boxes[:, :2] >= frame[:2]).all(axis=1) & (boxes[:, 2:] <= frame[2:]).all(axis=1)
    if taken:
        others = np.array(taken)
        apart = (boxes[:, None, :2] > others[:, 2:]) | (others[:, :2] > boxes[:, None, 2:])  # [places, others, 2]
        free &= apart.any(axis=2).all(axis=1)
    number = int(free.argmax())  # the first; where nothing is free, at the box
    place = tuple(PLACES[number].tolist())
    text.set_position(place)
    taken.append(boxes[number] + [-1, -1, 1, 1])
    if math.hypot(*place) > 20:
        axis.annotate(
            "",
            at,
            place,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 3, "shrinkB": 0},
            zorder=6,
        )


def _draw_scale(axis, metric: bool):
    """A bar of 1, 2 or 5 times a power of ten, about a sixth of the width long, in the lower left corner."""
    (x_low, x_high), (y_low, y_high) = axis.get_xlim(), axis.get_ylim()
    wanted = (x_high - x_low) / 6
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    x, y = x_low + 0.02 * (x_high - x_low), y_low + 0.02 * (y_high - y_low)
    tick = 0.008 * (y_high - y_low)
    axis.plot(
        [x, x, x, x + length, x + length, x + length],
        [y - tick, y + tick, y, y, y - tick, y + tick],
        color="black",
        linewidth=1.8,
        zorder=9,
    )
    words = f"{length:g} m" if metric else f"{length:g} (relative scale: no cameras)"
    axis.text(x, y + 2 * tick, words, fontsize=9, ha="left", va="bottom", zorder=9)


def _legend(plan: Plan, axis) -> list:
    handles = [Line2D([], [], linestyle="", marker="o", markersize=9, color=CAMERA, label="view and its direction")]
    if plan.walls:
        handles.append(Line2D([], [], color=WALL, linewidth=4, alpha=0.75, label="walls"))
    if plan.true:
        handles.append(Patch(facecolor=TRUE + "20", edgecolor=TRUE, linewidth=1.6, label="true"))
    handles.append(
        Patch(facecolor=PREDICTED + "20", edgecolor=PREDICTED, linestyle="--", linewidth=1.6, label="predicted")
    )
    true = {box["name"]: box["center"] for box in plan.true if "name" in box}
    if any(not np.allclose(box["center"], true.get(box.get("name"), box["center"])) for box in plan.predicted):
        handles.append(Line2D([], [], color=PREDICTED, linewidth=0.8, linestyle=":", label="error"))
    if any(not np.allclose(_at(axis, box["center"]), box["center"][:2]) for box in plan.predicted):
        mark = {"linestyle": "", "marker": (3, 0, 0), "markersize": 8, "color": PREDICTED}
        handles.append(Line2D([], [], **mark, label="predicted outside"))
    return handles


__all__ = [
    "LEVEL_VIEW",
    "SURFACES",
    "Plan",
    "camera_poses",
    "check_plan_path",
    "footprint",
    "moved",
    "plan_png",
    "save_png",
]
