# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions, scores and training runs."""

import io
import os
from pathlib import Path

import matplotlib


matplotlib.use("Agg")  # before pyplot: a cluster node has no screen

import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402


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
        if matches:  # of lists and rooms alone there are none
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


def draw_types(systems: dict[str, dict[str, dict]], metric: str) -> str:
    """
    `metric` per question type as grouped bars, with its intervals, as the text of an SVG element.

    Args:
        systems: Name to the `types` of [`ProtocolScores.summary`].
    """
    types = sorted(next(iter(systems.values())))
    figure, axis = plt.subplots(figsize=(max(6, 1.3 * len(types)), 3.4))
    width = 0.8 / len(systems)
    for number, (name, entries) in enumerate(systems.items()):
        values = [entries[kind][metric] for kind in types]
        bounds = [entries[kind]["intervals"][metric] for kind in types]
        errors = [
            [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        positions = [position + (number - (len(systems) - 1) / 2) * width for position in range(len(types))]
        axis.bar(positions, values, width, yerr=errors, capsize=2, error_kw={"linewidth": 0.8}, label=name)
    axis.set(ylabel=f"{metric} (%)", ylim=(0, 100))
    counts = next(iter(systems.values()))
    axis.set_xticks(range(len(types)), [f"{kind}\n({counts[kind]['n']})" for kind in types])
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    svg = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    return svg.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]


__all__ = ["draw_examples", "draw_loss", "draw_types"]
