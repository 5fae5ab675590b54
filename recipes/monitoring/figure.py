# SPDX-License-Identifier: Apache-2.0
"""A training run so far as a table and as a picture."""

from datetime import datetime
from pathlib import Path

from ..common.tables import format_table
from .history import RunHistory, duration


ROWS = 20  # of the table: evenly spaced steps, every evaluation, and the last step
COLUMNS = {
    "epoch": "epoch",
    "loss": "loss",
    "eval_exact_match": "exact match",
    "eval_list_objects_recall": "list recall",
    "eval_describe_room_recall": "room recall",
    "learning_rate": "learning rate",
    "questions_per_second": "questions/s",
    "tokens_per_second": "tokens/s",
    "padding": "padding",
    "memory_gb": "memory GB",
}


def cell(name: str, value: float | None) -> str | None:
    if value is None:
        return None
    if name == "learning_rate":
        return f"{value:.2e}"
    return f"{value:,.0f}" if name == "tokens_per_second" else f"{value:.3f}"


def describe(history: RunHistory) -> str:
    """Status, progress and checkpoints of a run, and a table of what it logged."""
    lines = [f"{history.output}: {history.status}"]
    total = "an unknown number of" if history.max_steps is None else f"{history.max_steps:,}"
    progress = f"step {history.last_step:,} of {total}"
    if history.seconds_per_step is not None:
        progress += f", {history.seconds_per_step:.2f} s per step"
    if history.seconds_left and not history.status.startswith(("finished", "stopped")):
        end = datetime.fromtimestamp(history.last_write + history.seconds_left)
        progress += f", {duration(history.seconds_left)} to go from the last write: {end:%Y-%m-%d %H:%M}"
    lines.append(progress)
    for step, problem in history.checkpoints:
        best = " (best)" if history.best_checkpoint == f"checkpoint-{step}" else ""
        lines.append(f"checkpoint-{step}{best}" if problem is None else f"NOT WHOLE: {problem}")
    if not history.checkpoints:
        lines.append("no checkpoints yet")
    names = {name: title for name, title in COLUMNS.items() if history.steps_with(name)}
    heads = sorted({name for values in history.values.values() for name in values if name.startswith("loss_")})
    names = {"epoch": "epoch", "loss": "loss"} | {head: head for head in heads} | names
    logged = [step for step, values in sorted(history.values.items()) if values.keys() & (names.keys() - {"epoch"})]
    if not logged:
        return "\n".join([*lines, "nothing logged yet"])
    shown = {logged[position * (len(logged) - 1) // (ROWS - 1)] for position in range(ROWS)}
    shown |= {step for step in logged if any(name.startswith("eval_") for name in history.values[step])}
    rows = [[step, *(cell(name, history.values[step].get(name)) for name in names)] for step in sorted(shown)]
    return "\n".join([*lines, "", format_table(["step", *names.values()], rows)])


def draw_run(history: RunHistory, path: Path):
    """Losses, evaluations, learning rate, speed, memory and padding over the steps, as a PNG."""
    every = {name for values in history.values.values() for name in values}
    panels = {
        "training loss": sorted(name for name in every if name == "loss" or name.startswith("loss_")),
        "exact match, recall": sorted(
            name
            for name in every
            if name.startswith("eval_exact_match") or name.endswith(("objects_recall", "room_recall"))
        ),
        "learning rate": ["learning_rate"],
        "questions per second": ["questions_per_second"],
        "memory (GB)": ["memory_gb"],
        "share of padding": ["padding"],
    }
    from ..evaluation.figures import plt, save_figure  # here, so that the table needs no matplotlib

    figure, axes = plt.subplots(2, 3, figsize=(13, 6))
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            points = history.steps_with(name)
            if points:
                marker = {"marker": "o", "markersize": 3} if len(points) < 40 else {}
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("eval_"), linewidth=1, **marker)
        for step, problem in history.checkpoints:
            if problem is None:
                axis.axvline(step, color="0.85", linewidth=0.8, zorder=0)
        axis.set(xlabel="step", ylabel=title)
        axis.set_ylim(bottom=0)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{history.output.name}: {history.status}", fontsize=10)
    save_figure(figure, path)


__all__ = ["describe", "draw_run"]
