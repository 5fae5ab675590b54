# SPDX-License-Identifier: Apache-2.0
"""Actions to look at: the plan of a scene, and the page with scores and every instruction beside views and plan."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_vggt_qwen3.actions_vggt_qwen3 import Action
from recipes.common.scenes import SceneDataset
from recipes.metrics.room_actions.reading import boxes_of
from recipes.metrics.room_actions.scoring import ACTIONS

from .action_scores import Scored, as_dict, labels_table, scene_geometries, scores_table
from .page import data_uri, fill_template, html_table
from .plan import LEVEL_VIEW, SURFACES, Plan, camera_poses, moved, plan_png, save_png
from .report import MODEL


PLAN_COLOURS = 64  # of a plan on the page: a third of the bytes, and no difference to see


def scene_plans(rows: Sequence[dict], geometry: dict | None) -> dict[str, Plan]:
    """
    A plan per action of one scene.

    Args:
        rows: Its predictions, see [`action_scores.prediction_rows`]. Anchors are numbered in their order.
        geometry: Its cameras, or None: then all is drawn in the frame of view 0, seen from its camera's top.
    """
    key = "" if geometry is None else "_world"
    place = (lambda boxes: moved(boxes, LEVEL_VIEW, np.zeros(3))) if geometry is None else list
    known = [box for row in rows for box in place(boxes_of(row[f"reference{key}"])) if box["label"] in SURFACES]
    plans = {}
    for name in ACTIONS:
        true, predicted = [], []
        of_action = [row for row in rows if row["reference"]["action"] == name]
        for number, row in enumerate(of_action, start=1):
            names = {"name": str(number)} if name == "place_anchor" else {}
            true += [names | box for box in place(boxes_of(row[f"reference{key}"]))]
            if row["action"] is not None:
                predicted += [names | box for box in place(boxes_of(row[f"action{key}"]))]
        if of_action:
            plans[name] = _plan(f"{rows[0]['scene_id']}: {name}", true, predicted, known, geometry)
    return plans


def _plan(title: str, true: list[dict], predicted: list[dict], known: list[dict], geometry: dict | None) -> Plan:
    if geometry is None:
        camera = np.array([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])  # view 0 alone: nothing is known of the others
        return Plan(title, camera, true, predicted, known, ("x, right of view 0", "z, ahead of view 0"), metric=False)
    return Plan(title, camera_poses(geometry["R"], geometry["t"]), true, predicted, known)


def save_scene_plan(path: Path, rows: Sequence[dict], source: SceneDataset):
    """Writes the plans of one scene, one above the other, as a PNG."""
    plans = scene_plans(rows, scene_geometries(source)[rows[0]["scene_id"]])
    sheets = [Image.open(io.BytesIO(plan_png(plan))).convert("RGB") for plan in plans.values()]
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    png = io.BytesIO()
    whole.save(png, "PNG")
    save_png(png.getvalue(), path)


def save_action_plan(path: Path, action: Action, geometry: dict | None, title: str):
    """
    Writes the plan of one predicted action, whose truth is not known, as a PNG.

    Args:
        geometry: `R [V, 3, 3]`, `t [V, 3]` of the views, or None: then the scale is relative, and the plan says so.
    """
    world = geometry is not None
    boxes = boxes_of(as_dict(action, world=world))
    if not world:
        boxes = moved(boxes, LEVEL_VIEW, np.zeros(3))
    save_png(plan_png(_plan(title, [], boxes, [], geometry)), path)


def action_page(title: str, numbers_from: str, scored: Scored, rows: Sequence[dict], source: SceneDataset) -> str:
    """
    A page that needs nothing else: scores, and per scene and action its views, plan and instructions.

    Args:
        rows: See [`action_scores.prediction_rows`].
    """
    geometries = scene_geometries(source)
    cards, plans, views = [], {}, {}
    for scene, scene_id in enumerate(source.scene_ids):
        own = [row for row in rows if row["scene_id"] == scene_id]
        if not own:
            continue
        views[scene_id] = [data_uri(view) for view in source.views(scene)[0]]
        for name, plan in scene_plans(own, geometries[scene_id]).items():
            plans[f"{scene_id} {name}"] = _small_uri(plan_png(plan))
            of_action = [row for row in own if row["reference"]["action"] == name]
            cards.append({"scene": scene_id, "action": name, "rows": [_entry(row) for row in of_action]})
    tables = []
    for name, scores in scored[MODEL].items():
        summary = scores.summary()
        tables.append(
            f"<h3>{name}</h3><p>{summary['n']} instructions, {summary['not valid']} predictions that do not parse.</p>"
            f'<div class="wide">{html_table(*scores_table(scored, name))}</div>'
        )
        if summary["labels"]:
            tables.append(f'<details><summary>per label</summary><div class="wide">{html_table(*labels_table(scores))}</div></details>')  # fmt: skip
    subtitle = f"{len(rows)} instructions about {len(views)} scenes; numbers of place_anchor from the {numbers_from}"
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "scores": "".join(tables),
        # "</script>" in a text must not end the script element.
        "data": json.dumps({"cards": cards, "plans": plans, "views": views}, ensure_ascii=False).replace(
            "<", "\\u003c"
        ),
    }
    return fill_template("actions.html", parts)


def _entry(row: dict) -> dict:
    """What the page says of one instruction; `right` is its verdict at an IoU of 0.25."""
    errors = row["errors"]
    if row["reference"]["action"] == "place_anchor":
        distance = errors["center_error"]
        words = "no box" if distance is None else f"{distance:.2f} m off"
        words += f", normal {errors['normal_error']:.0f}° off, IoU {errors['iou']:.2f}"
        right, near = errors["label"] and errors["iou"] >= 0.25, distance is not None and distance <= 0.5
        label = row["reference"]["label"]
    else:
        counts = {kind: count for kind, count in errors["matches"].items() if kind.endswith("@0.25")}
        words = "; ".join(f"{kind}: {m} of {t} found, {p} given" for kind, (m, p, t) in counts.items())
        right = all(m == p == t for m, p, t in counts.values())
        near = any(m for m, _, _ in counts.values())
        label = row["reference"].get("label", "")
    if not errors["valid"]:
        words = "does not parse"
    elif "label" in errors and not errors["label"]:
        words += ", wrong label"
    anchor = row["anchor"]
    return {
        "id": row["question_id"],
        "label": label,
        "question": row["question"],
        "prediction": row["prediction"],
        "reference": json.dumps(row["reference"]),
        "head": None if anchor is None else ", ".join(f"{number:.2f}" for number in anchor),
        "errors": words,
        "valid": errors["valid"],
        "verdict": "right" if right else "related" if near else "wrong",
    }


def _small_uri(png: bytes) -> str:
    reduced = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(PLAN_COLOURS).save(reduced, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(reduced.getvalue()).decode()


__all__ = ["action_page", "save_action_plan", "save_scene_plan", "scene_plans"]
