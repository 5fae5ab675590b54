# SPDX-License-Identifier: Apache-2.0
"""Writes one self-contained page of a prepared scene, to check data with one's eyes: its views with depth statistics, a plan
from above with cameras, boxes and askers, and its questions.

    python -m data_scripts.view prepared/scanqa --scene scene0000_00 --output page.html
"""

import argparse
import base64
import html
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet

from .pictures import open_picture, plain_picture


PLAN_SIZE = 640  # pixels along the longer side
WEDGE = 0.6  # metres of a camera's field of view that the plan shows
BIN_METRES = 0.5

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 24px; color: #1a1a1a; background: #fff; }
h1 { font-size: 20px; } h2 { font-size: 16px; margin-top: 28px; }
.views { display: flex; flex-wrap: wrap; gap: 16px; } figure { margin: 0; width: 300px; }
figure img { width: 300px; display: block; } figcaption { font-size: 12px; color: #444; }
table { border-collapse: collapse; } td, th { border: 1px solid #ddd; padding: 4px 8px; text-align: left; vertical-align: top; }
code { font-size: 12px; overflow-wrap: anywhere; } svg text { font: 11px system-ui, sans-serif; }
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_scripts.view", description=__doc__.split(":")[0])
    parser.add_argument("repo", type=Path, help="folder made by data_scripts.prepare")
    parser.add_argument("--scene", required=True, help="its scene_id")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file to write")
    args = parser.parse_args(argv)
    try:
        split, scene, questions = read_scene(args.repo, args.scene)
        text = page(split, scene, questions)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    partial = args.output.with_name(f".{args.output.name}.{os.getpid()}")
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, args.output)
    except OSError as error:
        print(f"error: cannot write {args.output} ({error.strerror}): give another with --output", file=sys.stderr)
        return 2
    print(f"{args.output}: {len(scene['images'])} views, {len(questions)} questions")
    return 0


def read_scene(repo: Path, scene_id: str) -> tuple[str, dict, list[dict]]:
    """A scene of a prepared repo: its split, its row of `scenes`, its rows of `qa`.

    Raises:
        ValueError: `repo` is not a prepared repo, or has no such scene.
    """
    if not (repo / "scenes").is_dir() or not (repo / "qa").is_dir():
        raise ValueError(f"{repo}: not a prepared repo, which holds the folders scenes and qa")
    scene = next(_rows(repo / "scenes", scene_id), None)
    if scene is None:
        known = [
            name
            for path in sorted((repo / "scenes").glob("*.parquet"))
            for name in pyarrow.parquet.read_table(path, columns=["scene_id"])["scene_id"].to_pylist()
        ]
        raise ValueError(f"{repo}: no scene {scene_id}; it has {len(known)}, among them {', '.join(known[:3])}")
    questions = [question for _, question in _rows(repo / "qa", scene_id)]
    return scene[0], scene[1], questions


def page(split: str, scene: dict, questions: list[dict]) -> str:
    """The page's HTML; pictures and drawings are inside, nothing is loaded from elsewhere."""
    geometry = scene["geometry"]
    figures = [_figure(index, scene) for index in range(len(scene["images"]))]
    plan = "<p>The scene has no geometry.</p>" if geometry is None else _plan(geometry, questions)
    rows = [
        "<tr>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                _text(question["question_id"]),
                "<br>".join(_text(part) for part in (question["situation"], question["question"]) if part),
                "<br>".join(f"<code>{_text(answer)}</code>" for answer in question["answers"]) or "–",
                _text(", ".join(question["object_names"])),
            )
        )
        + "</tr>"
        for question in questions
    ]
    title = _text(f"{scene['scene_id']} ({split})")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}: {len(figures)} views, {len(questions)} questions</h1>
<h2>Views</h2><div class="views">{"".join(figures)}</div>
<h2>From above</h2>{plan}
<h2>Questions</h2>
<table><tr><th>id</th><th>question</th><th>answers</th><th>objects</th></tr>{"".join(rows)}</table>
</body></html>
"""


def _rows(folder: Path, scene_id: str) -> Iterator[tuple[str, dict]]:
    """The rows of a scene with their split, one group of rows in memory at a time."""
    for path in sorted(folder.glob("*.parquet")):
        split = path.stem.split("-")[1]  # as prepare names them: <dataset>-<split>[-<shard>-of-<shards>]
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, columns=["scene_id"])["scene_id"].to_pylist()
                if scene_id in names:
                    table = file.read_row_group(group)
                    for index in (index for index, name in enumerate(names) if name == scene_id):
                        yield split, table.slice(index, 1).to_pylist()[0]


def _figure(index: int, scene: dict) -> str:
    where = f"scene {scene['scene_id']}, view {index}"
    content, (width, height) = plain_picture(scene["images"][index]["bytes"], where)
    with open_picture(content, where) as picture:
        kind = picture.get_format_mimetype()
    lines = [f"view {index}, frame {scene['frame_ids'][index]}, {width}×{height}"]
    chart = ""
    if scene["geometry"] is not None:
        (fx, _, cx), (_, fy, cy), _ = scene["geometry"]["K"][index]
        angle = np.degrees(2 * np.arctan(width / 2 / fx))
        lines.append(f"fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f}, {angle:.0f}° wide")
        shares = np.array(scene["geometry"]["depth_hist"][index])
        lines.append(_depth_statistics(shares))
        chart = _histogram(shares)
    picture = f'<img alt="view {index}" src="data:{kind};base64,{base64.b64encode(content).decode()}">'
    return f"<figure>{picture}<figcaption>{'<br>'.join(map(_text, lines))}{chart}</figcaption></figure>"


def _depth_statistics(shares: np.ndarray) -> str:
    if shares.sum() == 0:
        return "depth: nothing measured"
    middles = (np.arange(len(shares)) + 0.5) * BIN_METRES
    filled = np.nonzero(shares)[0]
    median = middles[np.searchsorted(np.cumsum(shares) / shares.sum(), 0.5)]
    low, high = filled[0] * BIN_METRES, (filled[-1] + 1) * BIN_METRES
    beyond = "+" if filled[-1] == len(shares) - 1 else ""
    return (
        f"depth: {low:.1f} to {high:.1f}{beyond} m, median about {median:.2f} m, mean about {middles @ shares:.2f} m"
    )


def _histogram(shares: np.ndarray) -> str:
    bars = "".join(
        f'<rect x="{18 * index}" y="{40 - 40 * share / max(shares.max(), 1e-9):.1f}" width="16" '
        f'height="{40 * share / max(shares.max(), 1e-9):.1f}" fill="#4a7ab5"><title>{index * BIN_METRES:.1f} to '
        f"{(index + 1) * BIN_METRES:.1f} m: {100 * share:.1f} %</title></rect>"
        for index, share in enumerate(shares)
    )
    return f'<svg width="288" height="54" role="img"><g>{bars}</g><text x="0" y="52">0 m</text><text x="262" y="52">8 m</text></svg>'


def _plan(geometry: dict, questions: list[dict]) -> str:
    """The scene from above: x to the right, y up, metres."""
    rotations, translations = np.array(geometry["R"]), np.array(geometry["t"])
    centers = -np.einsum("vji,vj->vi", rotations, translations)
    actions = [json.loads(question["action_world"]) for question in questions if question["action_world"]]
    # Several actions may be about one box.
    boxes = [
        _box_from_above(json.loads(box))
        for box in dict.fromkeys(text for action in actions for text in _boxes(action))
    ]
    askers = {tuple(np.round(q["position"][:2], 3)) for q in questions if q["position_frame"] == "aligned"}
    points = np.concatenate(
        [centers[:, :2], *(corners for _, corners in boxes), np.array(sorted(askers)).reshape(-1, 2)]
    )
    low, high = points.min(axis=0) - 1, points.max(axis=0) + 1
    scale = PLAN_SIZE / (high - low).max()
    width, height = (high - low) * scale

    def place(point: np.ndarray) -> tuple[float, float]:
        return round((point[0] - low[0]) * scale, 1), round((high[1] - point[1]) * scale, 1)

    def polygon(corners: np.ndarray, style: str) -> str:
        return f'<polygon points="{" ".join("{},{}".format(*place(corner)) for corner in corners)}" {style}/>'

    parts = []
    for label, corners in boxes:
        parts.append(polygon(corners, 'fill="#e9a23b33" stroke="#b8741a"'))
        x, y = place(corners.mean(axis=0))
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{_text(label)}</text>')
    for view, center in enumerate(centers):
        fx, cx = geometry["K"][view][0][0], geometry["K"][view][0][2]
        edges = [rotations[view].T @ [side, 0, 1] for side in (-(cx + 0.5) / fx, (cx + 0.5) / fx)]
        corners = np.array([center[:2], *(center[:2] + WEDGE * edge[:2] for edge in edges)])
        parts.append(polygon(corners, f'fill="{"#c0392b66" if view == 0 else "#4a7ab544"}" stroke="#333"'))
        x, y = place(center)
        parts.append(f'<circle cx="{x}" cy="{y}" r="3"/><text x="{x + 5}" y="{y - 5}">{view}</text>')
    for asker in sorted(askers):
        x, y = place(np.array(asker))
        parts.append(f'<rect x="{x - 3}" y="{y - 3}" width="6" height="6" fill="#2e8b57"/>')
    bar = f'<path d="M10 {height - 10:.0f} h{scale:.1f}" stroke="#000" stroke-width="2"/>'
    parts.append(bar + f'<text x="10" y="{height - 16:.0f}">1 m</text>')
    text = "Cameras are numbered, view 0 is red; boxes are orange, askers green. x to the right, y up."
    return f'<svg width="{width:.0f}" height="{height:.0f}" style="border:1px solid #ccc">{"".join(parts)}</svg><p>{text}</p>'


def _boxes(action: dict) -> Iterator[str]:
    """The labelled boxes of an action, as JSON."""
    lists = [(key[:-1], action[key]) for key in ("walls", "doors", "windows", "objects") if key in action]
    for kind, boxes in lists or [("", [action])]:
        for box in boxes:
            label = box.get("label", action.get("label", kind))
            yield json.dumps([label, box["center"], box["extent"], box["normal"]])


def _box_from_above(box: list) -> tuple[str, np.ndarray]:
    """The label and the `[4, 2]` corners on the floor plan of a box: label, centre, extent, normal."""
    label, center, extent, normal = box
    normal = np.array(normal[:2])
    normal = normal / max(np.linalg.norm(normal), 1e-9)
    side = np.array([-normal[1], normal[0]])
    width, _, depth = extent
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    half = [a * width / 2 * side + b * depth / 2 * normal for a, b in corners]
    return label, np.array(center[:2]) + np.array(half)


def _text(text: str) -> str:
    return html.escape(str(text))


if __name__ == "__main__":
    sys.exit(main())
