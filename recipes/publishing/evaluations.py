# SPDX-License-Identifier: Apache-2.0
"""The evaluations of a checkpoint, as `recipes.eval` left them: found, checked, and as a card's `model-index`."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from data_scripts.hub import Files, own_file
from recipes.evaluation.report import BLIND
from recipes.runs.record import hash_weights, read_json

from .checkpoint import published_json


# Files of an evaluation that are published: the scores, not the dataset's questions and answers.
PUBLISHED = ("metrics.json", "scores.json", "details.json")
# Beside its metrics, what a summary of scores holds.
COUNTS = ("n", "not valid")
EVAL_COMMAND = "python -m recipes.eval --model {} --dataset DATASET --split SPLIT --output DIR --blind-run BLIND"


@dataclass(frozen=True)
class Evaluation:
    """
    One run of `recipes.eval`.

    Attributes:
        folder: where it is.
        metrics: content of metrics.json.
        scores: by protocol, or of actions by kind of action: `{"n", metric: value, "intervals": {metric: [low, high]}}`.
        baselines: by name, then as `scores`, with the paired differences of the model as "model minus this".
    """

    folder: Path
    metrics: dict
    scores: dict[str, dict]
    baselines: dict[str, dict[str, dict]]

    @property
    def title(self) -> str:
        return self.metrics["prepared"]["title"] or self.metrics["prepared"]["name"]

    @property
    def name(self) -> str:
        """Its folder in the repo."""
        return f"{self.metrics['prepared']['name'].split('/')[-1]}-{self.metrics['split']}"

    def values(self) -> list[tuple[str, str, float]]:
        """(protocol or kind of action, metric, value) of all metrics that have a value."""
        return [
            (group, metric, value)
            for group, scores in self.scores.items()
            for metric, value in scores.items()
            if isinstance(value, int | float) and metric not in COUNTS
        ]

    def files(self) -> Files:
        paths = [own_file(self.folder, name) for name in PUBLISHED if (self.folder / name).is_file()]
        return {f"evaluation/{self.name}/{path.name}": published_json(path) for path in paths}


def find_evaluations(model: Path, folders: list[Path] | None) -> list[Evaluation]:
    """
    The evaluations of the weights in `model`, with images.

    Args:
        folders: outputs of `recipes.eval`; None for all of these weights beside `model`, up to three folders below its
            parent.

    Raises:
        ValueError: there is none, or one is not of `recipes.eval`, of other weights or blind.
    """
    weights = hash_weights(model)
    if folders is not None:
        evaluations = [_read(folder) for folder in folders]
        for evaluation in evaluations:
            if evaluation.metrics.get("weights_sha256") != weights:
                raise ValueError(f"{evaluation.folder} scores other weights than those in {model}: evaluate again.")
            if evaluation.metrics["blind"]:
                raise ValueError(
                    f"{evaluation.folder} was blind: give the evaluation with images, made with --blind-run."
                )
    else:
        root = model.absolute().parent
        paths = sorted(path for depth in range(4) for path in root.glob("*/" * depth + "metrics.json"))
        contents = {path.parent: _json_or_none(path) for path in paths}
        evaluations, stale = [], []
        for folder, metrics in contents.items():
            if metrics is None or "weights_sha256" not in metrics or metrics.get("blind"):
                continue
            if metrics["weights_sha256"] == weights:
                evaluations.append(_read(folder))
            elif Path(metrics["model"]).absolute() == model.absolute():
                stale.append(folder)
        if stale:
            raise ValueError(f"{stale[0]} scores weights that {model} held before: evaluate again, or remove it.")
    scored = [evaluation for evaluation in evaluations if evaluation.metrics["num_questions"]]
    if not scored:
        raise ValueError(
            f"No evaluation of {model} was found, and a card without metrics says nothing. Evaluate it first "
            f"({EVAL_COMMAND.format(model)}), or name its outputs with --evaluation."
        )
    names = [evaluation.name for evaluation in scored]
    repeated = [evaluation for evaluation in scored if names.count(evaluation.name) > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0].folder} and {repeated[1].folder} both score {repeated[0].name}: name one with --evaluation."
        )
    return sorted(scored, key=lambda evaluation: evaluation.name)


def _read(folder: Path) -> Evaluation:
    try:
        metrics = read_json(folder / "metrics.json")
        # Of actions, metrics.json has everything; of questions there is more in a second file.
        details = metrics if "scores" in metrics else read_json(folder / "details.json")
    except ValueError as error:
        raise ValueError(f"{folder} is not the output of recipes.eval: {error}") from error
    missing = {"prepared", "split", "blind", "num_questions"} - metrics.keys()
    if missing:
        raise ValueError(f"{folder / 'metrics.json'} lacks {', '.join(sorted(missing))}: evaluate again.")
    scores = details["scores"] if "scores" in details else details["protocols"]
    return Evaluation(folder, metrics, scores, details["baselines"])


def _json_or_none(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # somebody else's
    return content if isinstance(content, dict) else None


def eval_results(evaluations: list[Evaluation]) -> list[EvalResult]:
    """Every metric under every protocol, and the blind baseline's, as entries of a card's `model-index`."""
    results = []
    for evaluation in evaluations:
        prepared = evaluation.metrics["prepared"]
        about = {
            "task_type": "visual-question-answering",
            "dataset_type": prepared["repo_id"] or prepared["name"],
            "dataset_name": evaluation.title,
            "dataset_config": "qa",
            "dataset_split": evaluation.metrics["split"],
        }
        for group, metric, value in evaluation.values():
            kind = "exact_match" if metric.startswith("EM") else metric.lower()
            blind = evaluation.baselines.get(BLIND, {}).get(group, {}).get(metric)
            results.append(
                EvalResult(**about, metric_type=kind, metric_name=f"{metric} ({group})", metric_value=value)
            )
            if blind is not None:
                name = f"{metric} ({group}), blind baseline: another model, which never saw images"
                results.append(EvalResult(**about, metric_type=kind, metric_name=name, metric_value=blind))
    return results


__all__ = ["EVAL_COMMAND", "Evaluation", "eval_results", "find_evaluations"]
