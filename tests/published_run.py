# SPDX-License-Identifier: Apache-2.0
"""A finished training run of a toy model, with its evaluations, as the recipes leave it; only the training is left out."""

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from torch.utils.tensorboard import SummaryWriter
from toys import toy_model, write_toy_checkpoint, write_toy_repo

from recipes import eval as recipes_eval
from recipes.runs.arguments import DataArguments, ModelArguments, SftArguments
from recipes.runs.record import finish_record, start_record
from recipes.runs.run_config import resolved_config, write_run_config
from recipes.runs.trained import describe_weights


@dataclass
class Run:
    """Folders of `make_run`; `model` is what is published."""

    model: Path
    data: Path
    scores: Path


def make_run(root: Path) -> Run:
    """A run in `root/stage2` from random weights in `root/tiny`, on data in `root/toy_scanqa`, scored beside a blind model."""
    data = write_toy_repo(root / "toy_scanqa", {"train": 2, "val": 1})
    for name, seed in (("tiny", 0), ("stage2", 1), ("blind", 2)):
        write_toy_checkpoint(root / name, seed=seed)
    (root / "tiny" / "conversion_manifest.json").write_text('{"vggt": null, "text": null, "seed": 0}')
    folder = root / "stage2"
    record_run(folder, ModelArguments(str(root / "tiny"), lora_r=4), [data])
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"another")
    with SummaryWriter(str(folder / "runs" / "Nov25_17-14-00_somehost")) as writer:
        writer.add_text("args", f'{{"output_dir": "{folder}"}}')
        writer.add_scalar("train/loss", 1.5, 2)
    state = {"best_model_checkpoint": str(folder / "checkpoint-2"), "log_history": [{"eval_exact_match": 0.375}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    evaluate(root / "blind", data, root / "scores" / "blind", blind=True)
    evaluate(folder, data, root / "scores" / "stage2", blind_run=root / "scores" / "blind")
    return Run(folder, data, root / "scores" / "stage2")


def record_run(folder: Path, model_arguments: ModelArguments, datasets: list[Path], model=None):
    """Writes what a run of the recipes records of itself, with their own functions."""
    data_arguments = DataArguments([str(path) for path in datasets])
    arguments = SftArguments(output_dir=str(folder), learning_rate=2.5e-4)
    write_run_config(folder, resolved_config(model_arguments, data_arguments, arguments))
    trainer = SimpleNamespace(
        args=arguments,
        data_arguments=data_arguments,
        model=model or toy_model(),
        base=describe_weights(model_arguments.model_name_or_path),
        is_world_process_zero=lambda: True,
    )
    argv, sys.argv = sys.argv, ["/somewhere/recipes/stage2.py", "--output_dir", str(folder), "--lora_r", "4"]
    try:
        finish_record(start_record(trainer, model_arguments), {"train_runtime": 12.5})
    finally:
        sys.argv = argv


def evaluate(model: Path, dataset: Path, output: Path, blind: bool = False, blind_run: Path | None = None):
    """What `python -m recipes.eval` does."""
    parser = Namespace(
        model=str(model), dataset=str(dataset), split="val", output=output, blind=blind, blind_run=blind_run,
        report=None, prompt_style="official", em_only=True, num_views=None, batch_size=8, max_new_tokens=4, num_beams=1,
        feature_store=None, numbers_from=None, save_plan=None, plan_scene=None,
    )  # fmt: skip
    recipes_eval.evaluate(parser)
