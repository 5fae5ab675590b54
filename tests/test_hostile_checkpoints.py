# SPDX-License-Identifier: Apache-2.0
"""Changed checkpoints are refused by name or resumed from; never a traceback, and nothing in them is run."""

import gc
import shutil
from pathlib import Path

import pytest
from hostile import count
from hostile.checkpoints import cases
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from recipes.runs.checkpoints import CheckpointError, ResumableTrainer, check_checkpoint
from recipes.runs.run_config import RUN_CONFIG


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return {"loss": self.linear(x).square().mean()}


def train(output: Path, checkpoint: Path | None = None, **options):
    arguments = TrainingArguments(
        output,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_steps=1,
        **options,
    )
    data = [{"x": [0.5, float(row)]} for row in range(32)]
    trainer = ResumableTrainer(Model(), arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


@pytest.fixture(autouse=True)
def quick_collections():
    """accelerate collects garbage in every training, and would look through all that was imported each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of step 1 of 2, before any case touches it."""
    output = tmp_path_factory.mktemp("whole")
    (output / RUN_CONFIG).write_text("{}")
    train(output, max_steps=1, save_steps=1)
    return output / "checkpoint-1"


def run_cases(kind: str, whole: Path, tmp_path: Path, seed: int, rounds: int):
    folder, marker = tmp_path / "checkpoint-1", tmp_path / "marker"

    def attempt(change):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        change(folder)
        try:
            check_checkpoint(folder)
            train(tmp_path / "out", folder, max_steps=2, save_strategy="no")
        finally:
            assert not marker.exists(), "it was run"

    def file_of(what, change):
        name = what.split()[0]
        # Of a manifest the file that it names wrongly may be told instead; each process has a random state of its own.
        return {"manifest.json": "checkpoint-1", "rng_state.pth": "rng_state"}.get(name, name)

    return count(kind, cases(whole, seed, marker, rounds), attempt, (CheckpointError,), file_of)


def test_changed_checkpoints_are_refused_by_name(whole, tmp_path):
    """Catches a bit that flips unseen, a reader's own error for strange bytes, and a pickle that is run."""
    counts = run_cases("checkpoints", whole, tmp_path, seed=0, rounds=2)
    assert not counts.tracebacks, "\n\n".join(counts.tracebacks[:5])
    assert counts.tried > 300 and counts.refused > 6 * counts.accepted


@pytest.mark.slow
def test_many_changed_checkpoints(whole, tmp_path):
    """Catches what is rarer: hundreds of changes from another seed."""
    counts = run_cases("checkpoints", whole, tmp_path, seed=1, rounds=12)
    assert not counts.tracebacks, "\n\n".join(counts.tracebacks[:5])
    assert counts.tried > 800
