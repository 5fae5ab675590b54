# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a dataset of actions: what `recipes.eval` does where a row's `task` is arkit_actions."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import torch

from data_scripts.files import write_atomically
from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3Processor
from modeling_vggt_qwen3.actions_vggt_qwen3 import Action, ActionError, parse_action
from recipes.common.loading import load_model
from recipes.common.scenes import SceneDataset
from recipes.metrics.room_actions.baseline import ConstantActions
from recipes.metrics.room_actions.reading import KINDS, VECTORS, boxes_of, read_action
from recipes.metrics.room_actions.scoring import ACTIONS, CENTER, LEVEL_UP, VALID, ActionScores, compare, score
from recipes.runs.record import describe_dataset, hash_weights

from ..common.generation import generate_actions
from ..common.loading import loading
from ..common.tables import format_table
from .reading import are_texts, listed
from .report import BLIND, MODEL, read_baseline


TASK = "arkit_actions"
CONSTANT = "constant"
Scored = dict[str, dict[str, ActionScores]]  # {system: {action: scores}}


def numbers_from_name(numbers_from: str) -> str:
    """What the tables call the model's other numbers."""
    return f"{MODEL}, numbers from {numbers_from}"


def evaluate_actions(arguments: argparse.Namespace, processor: VggtQwen3Processor, source: SceneDataset):
    """
    Asks the model for every action of `source`, scores what it says, prints the tables and writes predictions.jsonl,
    metrics.json, and the plan and the page that were asked for.

    Raises:
        ValueError: before anything is generated, if something of what was asked for does not fit.
    """
    # Here, so that scoring alone needs no matplotlib.
    from .action_page import action_page, save_scene_plan
    from .plan import check_plan_path

    geometries = scene_geometries(source)
    references = read_references(source, geometries)
    constant = constant_of(arguments.dataset)
    blind = read_blind_run(arguments.blind_run, source) if arguments.blind_run else None
    with loading(arguments.model):
        numbers_from = arguments.numbers_from or VggtQwen3Config.from_pretrained(arguments.model).numbers_from
    if numbers_from == "head" and not processor.has_anchor_head:
        raise ValueError(f"--numbers-from head: {arguments.model} has no anchor head.")
    if arguments.save_plan is not None:
        check_plan_path(arguments.save_plan)
        planned_scene = arguments.plan_scene or source.scene_ids[next(iter(source.questions_of_scene))]
        if planned_scene not in source.qa["scene_id"]:
            raise ValueError(f"--plan-scene {planned_scene}: {source.path}, {source.split}, asks nothing about it.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with loading(arguments.model):
        model = load_model(arguments.model, "sdpa").to(device).eval()
    generated = generate_actions(
        model,
        processor,
        source,
        list(range(len(source.qa))),
        blind=arguments.blind,
        batch_size=arguments.batch_size,
    )
    systems = {
        MODEL if name == numbers_from else numbers_from_name(name): [
            parsed(text, geometries[source.qa[row]["scene_id"]], anchor if name == "head" else None)
            for row, text, anchor in generated
        ]
        for name in (("head", "text") if processor.has_anchor_head else ("text",))
    }
    rows = prediction_rows(source, generated, systems[MODEL], references, geometries)
    write_atomically(arguments.output / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    actions = {name: [action and as_dict(action) for action in own] for name, own in systems.items()}
    if blind is not None:
        actions[BLIND] = [blind[row["question_id"]] for row in rows]
    if constant is not None:
        actions[CONSTANT] = [constant.answer(reference) for reference in references]
    scored = score(actions, references, [row["up"] for row in rows])
    metrics = {
        "model": str(arguments.model),
        "dataset": str(arguments.dataset),
        "split": arguments.split,
        "task": TASK,
        "blind": arguments.blind,
        "numbers_from": numbers_from,
        # What was scored, for a model card: the path may hold another model by then.
        "weights_sha256": hash_weights(Path(arguments.model)) if Path(arguments.model).is_dir() else None,
        "prepared": describe_dataset(arguments.dataset),
        "num_questions": len(rows),
        "num_not_valid": sum(row["action"] is None for row in rows),
        "scores": {name: scores.summary() for name, scores in scored[MODEL].items()},
        "baselines": {
            system: {
                name: {**scores.summary(), "model minus this": scored[MODEL][name].difference(scores)}
                for name, scores in own.items()
            }
            for system, own in scored.items()
            if system != MODEL
        },
    }
    write_atomically(arguments.output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print_tables(scored, numbers_from, arguments.blind)
    if blind is None and not arguments.blind:
        print("\nA score says little without its blind baseline: evaluate one with --blind, give it as --blind-run.")
    if constant is None:
        print(f"\n{arguments.dataset} has no box in a train split: no constant baseline.")
    if arguments.save_plan is not None:
        save_scene_plan(arguments.save_plan, [row for row in rows if row["scene_id"] == planned_scene], source)
        print(f"\nPlan of {planned_scene}: {arguments.save_plan}")
    if arguments.report is not None:
        title = f"{arguments.model} on {arguments.dataset}, {arguments.split}" + " (blind)" * arguments.blind
        write_atomically(arguments.report, action_page(title, numbers_from, scored, rows, source))
        print(f"\nReport: {arguments.report}")


def read_references(source: SceneDataset, geometries: dict[str, dict | None]) -> list[dict]:
    """The true actions, frame of view 0. Raises ValueError naming the rows that have none, or one that is no action, or none in
    the world's frame where the scene has cameras."""
    references = [read_action(text) for text in source.qa["action"]]
    wrong = [row for row, action in zip(source.qa["question_id"], references, strict=True) if action is None]
    if wrong:
        raise ValueError(
            f"{source.path}, qa, split {source.split}: rows whose `action` is not JSON of one of the schemas: "
            f"{listed(wrong)}."
        )
    columns = zip(source.qa["question_id"], source.qa["scene_id"], source.qa["action_world"], strict=True)
    wrong = [row for row, scene_id, text in columns if geometries[scene_id] is not None and not _is_object(text)]
    if wrong:
        raise ValueError(
            f"{source.path}, qa, split {source.split}: rows of scenes with cameras whose `action_world` is no JSON object: "
            f"{listed(wrong)}; prepare it again."
        )
    return references


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(json.loads(text or "null"), dict)
    except (ValueError, RecursionError):
        return False


def constant_of(dataset: str) -> ConstantActions | None:
    """
    The constant baseline of a prepared dataset: of its split `train`, whatever is evaluated. None if it has none, or no box.
    """
    splits = datasets.load_dataset(dataset, "qa")
    if "train" not in splits:
        return None
    training = [read_action(text) for text in splits["train"]["action"]]
    if None in training:
        raise ValueError(f"{dataset}, qa, split train, row {training.index(None)}: `action` is not an action.")
    return ConstantActions(training) if any(map(boxes_of, training)) else None


def read_blind_run(folder: Path, source: SceneDataset) -> dict[str, dict | None]:
    """The blind model's actions by question id. Raises ValueError if it saw images or was asked something else."""
    rows, metrics = read_baseline(folder)
    if not metrics.get("blind") or metrics.get("task") != TASK:
        raise ValueError(f"{folder} is not of an evaluation of actions with --blind.")
    wrong = [row["question_id"] for row in rows if "action" not in row or not _can_be_scored(row["action"])]
    if wrong:
        raise ValueError(f"{folder}: rows whose `action` is not one that recipes.eval wrote: {listed(wrong)}.")
    actions = {row["question_id"]: row["action"] for row in rows}
    missing = [key for key in source.qa["question_id"] if key not in actions]
    if missing:
        raise ValueError(f"{folder} has no actions for questions of {source.path}, {source.split}: {listed(missing)}.")
    return actions


def _can_be_scored(action: dict | None) -> bool:
    """Whether it has the boxes of the action that it names, with texts for labels and finite vectors `[3]`."""
    if action is None:
        return True
    try:
        boxes = boxes_of(action)
        return action["action"] in ACTIONS and all(
            are_texts([box["label"]])
            and all(
                len(box[key]) == 3 and all(type(n) in (int, float) and math.isfinite(n) for n in box[key])
                for key in VECTORS
            )
            for box in boxes
        )
    except (TypeError, KeyError, OverflowError):
        return False


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


__all__ = ["CONSTANT", "TASK", "evaluate_actions", "labels_table", "scores_table"]
