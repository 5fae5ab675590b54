# SPDX-License-Identifier: Apache-2.0
"""Predicted actions as rows and as tables."""

import json
from dataclasses import asdict

import numpy as np

from modeling_vggt_qwen3.actions_vggt_qwen3 import Action, ActionError, parse_action
from recipes.common.scenes import SceneDataset
from recipes.common.tables import format_table
from recipes.metrics.room_actions.reading import KINDS, VECTORS
from recipes.metrics.room_actions.scoring import CENTER, LEVEL_UP, VALID, ActionScores, compare

from .report import MODEL


Scored = dict[str, dict[str, ActionScores]]  # {system: {action: scores}}


def numbers_from_name(numbers_from: str) -> str:
    """What the tables call the model's other numbers."""
    return f"{MODEL}, numbers from {numbers_from}"


def scene_geometries(source: SceneDataset) -> dict[str, dict | None]:
    """`R`, `t` of the views in use of each scene, or None, by scene id."""
    found = {}
    for scene_id, geometry in zip(
        source.scene_ids, source.scenes.select_columns(["geometry"])["geometry"], strict=True
    ):
        if geometry is not None:
            views = source.views_in_use(len(geometry["t"]))
            geometry = {key: np.array([geometry[key][view] for view in views]) for key in ("R", "t")}
        found[scene_id] = geometry
    return found


def parsed(text: str, geometry: dict | None, anchor: list[float] | None) -> Action | None:
    """The typed action, or None if the text is none. An anchor replaces the numbers of place_anchor."""
    try:
        return parse_action(text, geometry, anchor)
    except ActionError:
        return None


def as_dict(action: Action, world: bool = False) -> dict:
    """The action in the layout of its text, in view 0's frame or the world's; numbers are not rounded."""
    boxes = [{key: list(getattr(box, key)) for key in VECTORS} for box in (action.world if world else action.boxes)]
    labels = [box.label for box in action.boxes]
    if action.name == "place_anchor":
        return {"action": action.name, "label": labels[0], **boxes[0]}
    if action.name == "list_objects":
        return {"action": action.name, "label": action.label, "objects": boxes}
    rest, room = iter(zip(labels, boxes, strict=True)), {}
    for kind in KINDS:
        own = [next(rest) for _ in getattr(action, kind)]
        room[kind] = [{"label": label, **box} if kind == "objects" else box for label, box in own]
    return {"action": action.name, **room}


def prediction_rows(source, generated, actions, references, geometries) -> list[dict]:
    """
    Per instruction what predictions.jsonl says of it: `prediction` (text), `anchor`, the `action` made of them (None if
    it is none), its `reference`, both again in the world's frame (None without cameras), `up` (the world's vertical in
    view 0's frame) and the `errors`.
    """
    rows = []
    for (number, text, anchor), action, reference in zip(generated, actions, references, strict=True):
        asked = source.qa[number]
        geometry = geometries[asked["scene_id"]]
        up = list(LEVEL_UP) if geometry is None else geometry["R"][0, :, 2].tolist()
        predicted = action and as_dict(action)
        errors = asdict(compare(predicted, reference, up))
        errors["matches"] = {f"{kind} @{at:g}": counts for (kind, at), counts in errors["matches"].items()}
        if reference["action"] == "place_anchor":
            del errors["matches"], errors["pairs"]
            errors["center_error"] = errors["center_error"] if np.isfinite(errors["center_error"]) else None
        else:
            errors = {key: errors[key] for key in ("valid", "action", "label", "matches", "pairs")}
            if reference["action"] == "describe_room":
                del errors["label"]
        rows.append(
            {
                "question_id": asked["question_id"],
                "scene_id": asked["scene_id"],
                "question": asked["question"],
                "prediction": text,
                "anchor": anchor,
                "action": predicted,
                "reference": reference,
                "action_world": as_dict(action, world=True) if action and geometry is not None else None,
                "reference_world": json.loads(asked["action_world"]) if geometry is not None else None,
                "up": up,
                "errors": errors,
            }
        )
    return rows


def print_tables(scored: Scored, numbers_from: str, blind: bool):
    """Every metric beside the other systems', then the model's per label."""
    for name, scores in scored[MODEL].items():
        summary = scores.summary()
        print(
            f"\n{name}: {summary['n']} instructions, {summary['not valid']} predictions do not parse; shares in percent"
            + f", numbers from {numbers_from}" * (name == "place_anchor")
            + ", blind" * blind
            + "\n"
        )
        print(format_table(*scores_table(scored, name)))
        if summary["labels"]:
            print("\n", format_table(*labels_table(scores)), sep="")


def scores_table(scored: Scored, name: str) -> tuple[list[str], list[list]]:
    """Header and rows of the table of one action: a line per metric, a column per system, intervals of the model."""
    summaries = {system: own[name].summary() for system, own in scored.items()}
    # Lists have no numbers of the anchor head.
    others = [
        system
        for system in scored
        if system != MODEL and (name == "place_anchor" or not system.startswith(numbers_from_name("")))
    ]
    differences = {system: scored[MODEL][name].difference(scored[system][name]) for system in others}
    rows = []
    for metric, interval in summaries[MODEL]["intervals"].items():
        if all(summary[metric] is None for summary in summaries.values()) and metric != CENTER:
            continue  # rooms without doors
        cells = [metric, summaries[MODEL][metric], interval_text(interval)]
        for system in others:
            cells += [summaries[system][metric], interval_text(differences[system][metric]["interval"], signed=True)]
        rows.append(cells)
    return ["", MODEL, "95 %", *(cell for system in others for cell in (system, "model minus it"))], rows


def labels_table(scores: ActionScores) -> tuple[list[str], list[list]]:
    """Header and rows of the table of one action's labels."""
    labels = scores.summary()["labels"]
    metrics = [metric for metric in next(iter(labels.values()))["intervals"] if metric not in (VALID, "action")]
    rows = [[label, entry["n"], *(entry[metric] for metric in metrics)] for label, entry in labels.items()]
    return ["label", "n", *metrics], rows


def interval_text(bounds: list[float | None], signed: bool = False) -> str:
    return " .. ".join("-" if bound is None else f"{bound:{'+' if signed else ''}.2f}" for bound in bounds)


__all__ = [
    "Scored",
    "as_dict",
    "interval_text",
    "labels_table",
    "numbers_from_name",
    "parsed",
    "prediction_rows",
    "print_tables",
    "scene_geometries",
    "scores_table",
]
