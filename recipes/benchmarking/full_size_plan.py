# SPDX-License-Identifier: Apache-2.0
"""What the full-size benchmark measures, in the order of importance, and on what data."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from recipes.launching.settings import read_settings
from recipes.launching.shapes import RELEASED

from .toy_model import write_dataset


STAGES = {"stage1": "llava", "stage2": "scanqa", "stage3": "arkit_actions"}  # to the task that it is measured on
WAYS = ("one_by_one", "batched", "shared_prefix")  # of answering
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Size:
    """
    How large everything is; the defaults are the real thing.

    Args:
        config: Shapes of the model.
        image_size: Of the views, in pixels.
        questions: About a scene.
        micro_batches: Scenes in a training step.
        scenes: Of the training split; the largest micro-batch has to find enough for all steps.
        eval_scenes: Of an evaluation.
        steps: Of every variant, the first of which warms up.
        new_tokens: Of every answer in evaluations.
        arguments: More of the recipes' arguments.
    """

    config: str = str(RELEASED)
    image_size: int = 448
    questions: int = 16
    micro_batches: tuple[int, ...] = (1, 2, 4)
    scenes: int = 16
    eval_scenes: int = 4
    steps: int = 4
    new_tokens: int = 16
    arguments: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> "Size":
        values = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Variant:
    """
    One line of the table.

    Args:
        stage: A key of `STAGES`.
        rows: Packed sequences of a training step; of an evaluation, scenes.
        questions: Questions of a row.
        way: Of an evaluation, one of `WAYS`; None for training.
        store: Features are read from a store.
        compiled: Blocks and layers are compiled.
        arguments: More of the recipe's arguments.
        what: What these arguments mean, in words.
    """

    stage: str
    rows: int
    questions: int
    way: str | None = None
    store: bool = False
    compiled: bool = False
    arguments: tuple[str, ...] = field(default=())
    what: str = ""

    @property
    def name(self) -> str:
        if self.way is not None:
            return f"evaluation, {self.way.replace('_', ' ')}"
        words = [self.stage, f"{self.rows} × {self.questions}"]
        words += ["store"] * self.store + ["compiled"] * self.compiled + [self.what] * bool(self.what)
        return ", ".join(words)

    @property
    def row_key(self) -> tuple:
        """Variants with the same have the same rows: what one costs is counted once."""
        return (self.stage, self.questions, self.way, self.store, self.arguments)


def plan(size: Size) -> list[Variant]:
    """Every variant, the most important first: time may be too short for the last ones."""
    smallest, largest = min(size.micro_batches), max(size.micro_batches)
    baselines = {stage: Variant(stage, size.questions, 1, what="one question per row") for stage in STAGES}
    packed = {
        (stage, rows): Variant(stage, rows, size.questions) for stage in STAGES for rows in sorted(size.micro_batches)
    }
    one, many = packed["stage2", smallest], packed["stage2", largest]
    kept = {"arguments": ("--activation_checkpointing", "false"), "what": "no checkpointing"}
    ways = {way: Variant("stage2", size.eval_scenes, size.questions, way=way) for way in WAYS}
    order = [one, baselines["stage2"], many, replace(many, store=True), ways["shared_prefix"], ways["one_by_one"]]
    for stage in ("stage3", "stage1"):
        order += [packed[stage, largest], baselines[stage]]
    order += [replace(many, **kept), replace(many, compiled=True)]
    order += [replace(many, compiled=True, **kept), replace(many, store=True, compiled=True)]
    order += [replace(one, store=True), replace(one, compiled=True), ways["batched"]]
    order += [variant for variant in packed.values() if variant not in order]
    for stage in ("stage3", "stage1"):
        order += [replace(packed[stage, largest], **kept), replace(packed[stage, largest], compiled=True)]
    shipped = ("--view_dropout", str(read_settings("stage2", []).view_dropout))
    order.append(replace(many, arguments=shipped, what="view dropout"))
    order += [replace(packed[stage, largest], store=True) for stage in ("stage3", "stage1")]
    return order


def recipe_arguments(variant: Variant, size: Size, folder: Path) -> list[str]:
    """The command line of the recipe that trains as `variant` says, on what is in `folder`."""
    arguments = {
        "model_name_or_path": folder / "checkpoint",
        "output_dir": folder / "out",
        "dataset_paths": folder / variant.stage,
        "dataset_weights": 1,
        "image_size": size.image_size,
        "questions_per_scene": variant.questions,
        # Every row is of the same size, and what a store holds.
        "view_dropout": 0,
        "per_device_train_batch_size": variant.rows,
        "gradient_accumulation_steps": 1,
        "global_batch_size": variant.rows,
        "max_steps": size.steps,
        "report_to": "none",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "load_best_model_at_end": "false",
        "disable_tqdm": "true",
    }
    if variant.store:
        arguments["feature_store"] = folder / f"{variant.stage}-store"
    if variant.compiled:
        arguments["compile_layers"] = "true"
    argv = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    return [*argv, *size.arguments, *variant.arguments]


def write_data(size: Size, folder: Path):
    """Writes a prepared repository of noise for every stage, with as many views as its own configuration has."""
    for stage, task in STAGES.items():
        num_scenes = dict(zip(SPLITS, (size.scenes, size.eval_scenes), strict=True))
        num_views = read_settings(stage, []).num_views
        write_dataset(folder / stage, num_scenes, num_views, size.image_size, task, size.questions)


__all__ = ["STAGES", "WAYS", "Size", "Variant", "plan", "recipe_arguments", "write_data"]
