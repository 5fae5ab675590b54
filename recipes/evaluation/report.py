# SPDX-License-Identifier: Apache-2.0
"""Predictions on disk, their scores, and tables and pictures of them."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib


matplotlib.use("Agg")  # before pyplot: a cluster node has no screen

import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from .generation import exact_match  # noqa: E402


def write_atomically(path: Path, text: str):
    """Writes `text` under a temporary name and moves it: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_predictions(output: Path) -> list[dict]:
    """The rows that `recipes.eval` wrote to `output`. Raises ValueError if there are none."""
    path = output / "predictions.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file of predictions: {error}") from error


def score(rows: list[dict]) -> dict:
    """
    Exact match in [0, 1] of prediction rows, overall and per question type; rows without references do not count.

    Returns:
        `{"exact_match", "num_questions", "num_without_references", "types": {type: {"exact_match", "num_questions"}}}`;
        exact match is None where there is nothing to compare with.
    """
    by_type = defaultdict(list)
    for row in rows:
        if row["references"]:
            by_type[row["question_type"]].append(exact_match(row["prediction"], row["references"]))
    scored = [match for matches in by_type.values() for match in matches]
    return {
        "exact_match": sum(scored) / len(scored) if scored else None,
        "num_questions": len(scored),
        "num_without_references": len(rows) - len(scored),
        "types": {
            name: {"exact_match": sum(matches) / len(matches), "num_questions": len(matches)}
            for name, matches in sorted(by_type.items())
        },
    }


def most_frequent_answer(rows: list[dict]) -> dict[str, float]:
    """Per question type (and under "all"), the share of rows that one constant answer per type would get right."""
    counts, totals = defaultdict(Counter), Counter()
    for row in rows:
        if row["references"]:
            totals[row["question_type"]] += 1
            counts[row["question_type"]].update(set(row["references"]))
    best = {name: counter.most_common(1)[0][1] for name, counter in counts.items()}
    shares = {name: best[name] / totals[name] for name in best}
    return shares | {"all": sum(best.values()) / max(1, sum(totals.values()))}


def format_table(header: list[str], rows: list[list]) -> str:
    """A plain-text table: first column to the left, numbers to the right, floats as 0.123."""

    def text(cell) -> str:
        return "-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)

    lines = [header] + [[text(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    formatted = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([formatted[0], "-" * len(formatted[0]), *formatted[1:]])


def metrics_table(metrics: dict) -> str:
    rows = [[name, entry["num_questions"], entry["exact_match"]] for name, entry in metrics["types"].items()]
    return format_table(
        ["question type", "questions", "exact match"],
        [*rows, ["all", metrics["num_questions"], metrics["exact_match"]]],
    )


def draw_examples(examples: list[tuple[list[Image.Image], dict]], path: Path):
    """One row per (views, prediction row): the views, the question, the model's answer and the references."""
    columns = max(len(views) for views, _ in examples)
    figure, axes = plt.subplots(len(examples), columns, figsize=(2.2 * columns, 2.7 * len(examples)), squeeze=False)
    for row, (views, prediction) in zip(axes, examples, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, view in zip(row, views, strict=False):
            axis.imshow(view)
        references = " / ".join(prediction["references"])
        title = f"{prediction['question']}\nmodel: {prediction['prediction']}    reference: {references}"
        row[0].set_title(title, loc="left", fontsize=9)
    save_figure(figure, path)


def draw_loss(histories: dict[str, list[dict]], path: Path):
    """Training loss, and exact match of generated answers, of several runs over their steps."""
    figure, (loss_axis, match_axis) = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, history in histories.items():
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        matches = [(entry["step"], entry["eval_exact_match"]) for entry in history if "eval_exact_match" in entry]
        loss_axis.plot(*zip(*losses, strict=True), label=name)
        match_axis.plot(*zip(*matches, strict=True), marker="o", markersize=3, label=name)
    loss_axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    match_axis.set(xlabel="step", ylabel="exact match on val", ylim=(0, 1))
    loss_axis.legend(frameon=False)
    save_figure(figure, path)


def save_figure(figure: plt.Figure, path: Path):
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    os.replace(temporary, path)


__all__ = [
    "draw_examples",
    "draw_loss",
    "format_table",
    "metrics_table",
    "most_frequent_answer",
    "read_predictions",
    "score",
    "write_atomically",
]
