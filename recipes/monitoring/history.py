# SPDX-License-Identifier: Apache-2.0
"""A training run so far, read from its output folder while it goes on: logged values, checkpoints, how it stands."""

import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.trainer import TRAINER_STATE_NAME

from recipes.launching.output import lock_holder
from recipes.runs.checkpoints import CheckpointError, check_checkpoint, checkpoints_of
from recipes.runs.preemption import PREEMPTED
from recipes.runs.run_config import RUN_CONFIG, STOPPED, read_run_config


FINISHED = "train_results.json"
RECENT_STEPS = 20  # logged values that the speed is taken from
QUIET = 3600.0  # seconds without a write after which a run is taken for dead, at least


@dataclass
class RunHistory:
    """
    Args:
        values: By step, what was logged at it; names as in Trainer's log history.
        times: By step, when (seconds since 1970); only steps that TensorBoard's files have.
        max_steps: Steps of the whole run; None if not known yet.
        checkpoints: Step, and what is wrong with it; None if it is whole.
        best_checkpoint: Name of the checkpoint with the best evaluation so far.
        last_write: When anything was written last.
        status: In words, how the run stands.
    """

    output: Path
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    max_steps: int | None = None
    checkpoints: list[tuple[int, str | None]] = field(default_factory=list)
    best_checkpoint: str | None = None
    last_write: float = 0.0
    status: str = ""

    def steps_with(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of what was logged as `name`."""
        return [(step, values[name]) for step, values in sorted(self.values.items()) if name in values]

    @property
    def last_step(self) -> int:
        return max(self.values, default=0)

    @property
    def seconds_per_step(self) -> float | None:
        """Of the latest steps, evaluations and saving included."""
        # After an interruption times jump: only steps of the last session count.
        recent = sorted(self.times.items(), key=lambda item: item[1])[-RECENT_STEPS:]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    @property
    def seconds_left(self) -> float | None:
        if self.max_steps is None or self.seconds_per_step is None:
            return None
        return max(0, self.max_steps - self.last_step) * self.seconds_per_step


def read_history(output: Path, now: float | None = None) -> RunHistory:
    """
    Args:
        now: Seconds since 1970, by default the present.

    Raises:
        ValueError: if `output` is no folder of a run, or what is in it cannot be read.
    """
    if not output.is_dir():
        raise ValueError(f"there is no folder {output}.")
    config = read_run_config(output)
    folders = checkpoints_of(output)
    # Their names hold when they were begun; those of their folders sort by the month's name.
    events = sorted((output / "runs").rglob("events.out.tfevents.*"), key=lambda path: (path.name.split(".")[3], path))
    if config is None and not folders and not events and not (output / TRAINER_STATE_NAME).is_file():
        raise ValueError(f"{output} is not the output folder of a run: it has no {RUN_CONFIG}, checkpoints or logs.")
    history = RunHistory(output)
    for folder in reversed(folders):
        try:
            check_checkpoint(folder, hashes=False)
        except CheckpointError as error:
            history.checkpoints.append((int(folder.name.rpartition("-")[2]), str(error)))
        else:
            history.checkpoints.append((int(folder.name.rpartition("-")[2]), None))
    whole = [step for step, problem in history.checkpoints if problem is None]
    states = [output / f"checkpoint-{whole[-1]}" / TRAINER_STATE_NAME] if whole else []
    states.append(output / TRAINER_STATE_NAME)  # written when the run ends
    for path in states:
        if path.is_file():
            add_state(history, path)
    for path in events:
        add_events(history, path)
    if history.max_steps is None and config is not None:
        history.max_steps = planned_steps(history, config["training"])
    words = [output / name for name in (RUN_CONFIG, PREEMPTED, STOPPED)]
    files = [path for path in [*states, *events, *words] if path.is_file()]
    history.last_write = max((path.stat().st_mtime for path in files), default=0.0)
    history.status = describe_status(history, time.time() if now is None else now)
    return history


def add_state(history: RunHistory, path: Path):
    """Adds what Trainer saved with a checkpoint. Raises ValueError if it cannot be read."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        entries = state["log_history"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for entry in entries:
        add(history, entry["step"], entry)
    history.max_steps = state.get("max_steps") or history.max_steps
    if state.get("best_model_checkpoint"):
        history.best_checkpoint = Path(state["best_model_checkpoint"]).name


def add(history: RunHistory, step: int, values: dict[str, float]):
    numbers = {
        name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and name != "step"
    }
    history.values.setdefault(step, {}).update(numbers)


def add_events(history: RunHistory, path: Path):
    """Adds a file of TensorBoard's, which may be being written: what is whole of it is read."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(os.fspath(path), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        group, _, name = tag.partition("/")
        if group not in ("train", "eval"):
            continue
        for event in events.Scalars(tag):
            # A step that was repeated after an interruption counts as it was done last.
            add(history, event.step, {name if group == "train" else f"eval_{name}": event.value})
            if tag == "train/loss":
                history.times[event.step] = event.wall_time


def planned_steps(history: RunHistory, training: dict) -> int | None:
    """Steps of a run that has saved nothing yet: by the share of its epochs that it has done."""
    if training["max_steps"] > 0:
        return training["max_steps"]
    epochs = history.steps_with("epoch")
    if not epochs or epochs[-1][1] <= 0:
        return None
    step, epoch = epochs[-1]
    return math.ceil(step * training["num_train_epochs"] / epoch)


def describe_status(history: RunHistory, now: float) -> str:
    stopped = history.output / STOPPED
    if stopped.is_file():
        word = json.loads(stopped.read_text(encoding="utf-8"))
        return f"stopped at step {word['step']}: {word['reason']}; {STOPPED} has the scenes of the batch"
    if (history.output / FINISHED).is_file():
        return "finished"
    holder, quiet = lock_holder(history.output), now - history.last_write
    if holder is not None:
        return f"running ({holder}), last wrote {duration(quiet)} ago"
    preempted = history.output / PREEMPTED
    if preempted.is_file():
        word = json.loads(preempted.read_text(encoding="utf-8"))
        return f"preempted by {word['signal']} at step {word['step']}; the same command goes on"
    patience = max(QUIET, 20 * (history.seconds_per_step or 0))
    if quiet > patience:
        return f"not running: last wrote {duration(quiet)} ago; the same command goes on"
    return f"last wrote {duration(quiet)} ago; started without recipes.launch or ended, which cannot be told"


def duration(seconds: float) -> str:
    """`3 h 05 min`, `4 min 10 s` or `12 s`."""
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


__all__ = ["RunHistory", "duration", "read_history"]
