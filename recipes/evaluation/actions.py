# SPDX-License-Identifier: Apache-2.0
"""Evaluation of actions: their boxes, beside those of a blind model and a constant one."""

import json
import math
from pathlib import Path

import datasets

from modeling_vggt_qwen3 import VggtQwen3Config
from recipes.common.scenes import SceneDataset
from recipes.metrics.room_actions.baseline import ConstantActions
from recipes.metrics.room_actions.reading import VECTORS, boxes_of, read_action
from recipes.metrics.room_actions.scoring import ACTIONS, score

from ..common.generation import generate_actions
from ..common.loading import loading
from .action_page import action_page, save_scene_plan
from .action_scores import Scored, as_dict, numbers_from_name, parsed, prediction_rows, print_tables, scene_geometries
from .plan import check_plan_path
from .reading import are_texts, listed
from .report import BLIND, MODEL, read_baseline
from .task import EvaluationTask


TASK = "arkit_actions"
CONSTANT = "constant"


class ActionTask(EvaluationTask):
    """Of datasets whose `task` is arkit_actions. Boxes are scored in the frame of view 0 and written in the world's, too."""

    ABOUT = "actions"
    OPTIONS = {
        "numbers_from": {
            "choices": ("head", "text"),
            "help": "whose box of place_anchor is scored first: the anchor head's or the text's; by default the checkpoint's "
            "numbers_from",
        },
        "save_plan": {
            "type": Path,
            "metavar": "PLAN.png",
            "help": "draw a scene from above: cameras, true and predicted boxes",
        },
        "plan_scene": {"metavar": "SCENE", "help": "which scene --save-plan draws; by default the first"},
    }

    def __init__(self, arguments, processor, source):
        super().__init__(arguments, processor, source)
        self.geometries = scene_geometries(source)
        self.references = read_references(source, self.geometries)
        self.constant = constant_of(arguments.dataset)
        self.blind = read_blind_run(arguments.blind_run, source) if arguments.blind_run else None
        with loading(arguments.model):
            config = VggtQwen3Config.from_pretrained(arguments.model)
        self.numbers_from = arguments.numbers_from or config.numbers_from
        if self.numbers_from == "head" and not processor.has_anchor_head:
            raise ValueError(f"--numbers-from head: {arguments.model} has no anchor head.")
        if arguments.save_plan is not None:
            check_plan_path(arguments.save_plan)
            self.planned_scene = arguments.plan_scene or source.scene_ids[next(iter(source.questions_of_scene))]
            if self.planned_scene not in source.qa["scene_id"]:
                raise ValueError(
                    f"--plan-scene {self.planned_scene}: {source.path}, {source.split}, asks nothing about it."
                )
        self.systems: dict[str, list[dict | None]] = {}
        self.scored: Scored = {}

    @classmethod
    def fits(cls, task):
        return task == TASK

    def generate(self, model):
        generated = generate_actions(
            model,
            self.processor,
            self.source,
            list(range(len(self.source.qa))),
            blind=self.arguments.blind,
            batch_size=self.arguments.batch_size,
        )
        systems = {
            MODEL if name == self.numbers_from else numbers_from_name(name): [
                parsed(text, self.geometries[self.source.qa[row]["scene_id"]], anchor if name == "head" else None)
                for row, text, anchor in generated
            ]
            for name in (("head", "text") if self.processor.has_anchor_head else ("text",))
        }
        self.systems = {name: [action and as_dict(action) for action in own] for name, own in systems.items()}
        return prediction_rows(self.source, generated, systems[MODEL], self.references, self.geometries)

    def score(self, rows):
        systems = dict(self.systems)
        if self.blind is not None:
            systems[BLIND] = [self.blind[row["question_id"]] for row in rows]
        if self.constant is not None:
            systems[CONSTANT] = [self.constant.answer(reference) for reference in self.references]
        self.scored = score(systems, self.references, [row["up"] for row in rows])
        return {
            "task": TASK,
            "numbers_from": self.numbers_from,
            "num_questions": len(rows),
            "num_not_valid": sum(row["action"] is None for row in rows),
            "scores": {name: scores.summary() for name, scores in self.scored[MODEL].items()},
            "baselines": {
                system: {
                    name: {**scores.summary(), "model minus this": self.scored[MODEL][name].difference(scores)}
                    for name, scores in own.items()
                }
                for system, own in self.scored.items()
                if system != MODEL
            },
        }

    def show(self, rows):
        arguments = self.arguments
        print_tables(self.scored, self.numbers_from, arguments.blind)
        if self.blind is None and not arguments.blind:
            print(
                "\nA score says little without its blind baseline: evaluate one with --blind, give it as --blind-run."
            )
        if self.constant is None:
            print(f"\n{arguments.dataset} has no box in a train split: no constant baseline.")
        if arguments.save_plan is not None:
            of_scene = [row for row in rows if row["scene_id"] == self.planned_scene]
            save_scene_plan(arguments.save_plan, of_scene, self.source)
            print(f"\nPlan of {self.planned_scene}: {arguments.save_plan}")

    def page(self, title, rows):
        return action_page(title, self.numbers_from, self.scored, rows, self.source)


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


__all__ = ["CONSTANT", "TASK", "ActionTask", "read_blind_run"]
