# SPDX-License-Identifier: Apache-2.0
"""Pictures that cannot be decoded, met in the middle of a training: `on_unreadable: error` or `skip`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as HubImage
from safetensors.torch import load_file
from test_fault_tolerance import losses_of, run_stage2
from toys import toy_config, toy_model, toy_processor, write_toy_checkpoint, write_toy_repo

from recipes.common.scenes import SceneDataset, UnreadablePictureError
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.packing import Pack, PackDataset, PackSampler
from recipes.training.sft import make_trainer


ROOT = Path(__file__).parent.parent
BAD = 3  # the scene of the training split with a picture that is none, its view 1


def break_picture(repo, split, scene):
    path = repo / "scenes" / f"{split}-00000-of-00001.parquet"
    table = Dataset.from_parquet(str(path), cache_dir=str(repo / "cache")).cast_column(
        "images", List(HubImage(decode=False))
    )
    rows = [dict(row) for row in table]
    rows[scene]["images"][1]["bytes"] = rows[scene]["images"][1]["bytes"][:60]
    Dataset.from_list(rows, features=table.features).to_parquet(path)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Six scenes to train on and two to evaluate on; of each one cannot be read."""
    repo = write_toy_repo(tmp_path_factory.mktemp("repos") / "toy_scanqa_torn", {"train": 6, "val": 2})
    break_picture(repo, "train", BAD)
    break_picture(repo, "val", 0)
    return repo


@pytest.fixture(scope="module")
def inputs(repo, tmp_path_factory):
    model = write_toy_checkpoint(tmp_path_factory.mktemp("inputs") / "model")
    return [
        "--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--image_size", 28,
        "--global_batch_size", 2, "--questions_per_scene", 4, "--report_to", "none", "--bf16", "false",
        "--freeze_text_layers", 0, "--max_steps", 6, "--save_steps", 2, "--eval_strategy", "no",
        "--load_best_model_at_end", "false", "--logging_steps", 1, "--seed", 3, "--save_total_limit", 5,
        "--lora_dropout", 0, "--view_dropout", 0,
    ]  # fmt: skip


SKIPPED = ["--on_unreadable", "skip", "--per_device_train_batch_size", 2, "--dataloader_num_workers", 1]


@pytest.fixture(scope="module")
def skipped(inputs, tmp_path_factory):
    """A run of two epochs that left the scene out in each."""
    output = tmp_path_factory.mktemp("skipped") / "run"
    assert run_stage2(*inputs, *SKIPPED, "--output_dir", output) is None
    return output


def counts_of(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["unreadable_sequences"] for entry in history if "unreadable_sequences" in entry}


def steps_of_bad_scene(repo):
    """The steps of two sequences that read it, in two epochs of three steps."""
    sampler = PackSampler(PackDataset([SceneDataset(str(repo), "train")], 4), [1], seed=3, batch_size=2)
    steps = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        steps += [3 * epoch + place // 2 + 1 for place, pack in enumerate(sampler) if pack.scene == BAD]
    return steps


def test_a_pack_of_it_is_refused_or_empty(repo):
    """Catches a scene that is left out by one who reads it and not by the other, and one that the loss still counts."""
    source = SceneDataset(str(repo), "train")
    with pytest.raises(UnreadablePictureError, match=r"^\S*toy_scanqa_torn, scene scene0003_00, view 1: ") as refused:
        PackDataset([source], 4)[Pack(0, BAD, (12, 13), 7)]
    dataset = PackDataset([source], 4, on_unreadable="skip")
    example = dataset[Pack(0, BAD, (12, 13), 7)]
    assert example["questions"] == example["images"] == []
    assert example["unreadable"] == (str(repo), "scene0003_00", str(refused.value))
    assert "unreadable" not in dataset[Pack(0, BAD, (), 7)]  # it completes a batch: no question is lost with it
    # Where its views are left out, nothing is wrong with it.
    assert len(PackDataset([SceneDataset(str(repo), "train", num_views=1)], 4)[Pack(0, BAD, (12,), 7)]["images"]) == 1
    torch.manual_seed(0)
    model = toy_model().train()
    collate = PackCollator(toy_processor(toy_config()))
    good = dataset[Pack(0, 0, (0, 1), 7)]
    alone, beside = (
        model(**collate(batch), num_items_in_batch=torch.tensor(5)).loss for batch in ([good], [good, example])
    )
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=1e-6)


def test_the_message_comes_out_of_a_loaders_process_in_one_line(repo):
    loader = torch.utils.data.DataLoader(
        PackDataset([SceneDataset(str(repo), "train")], 4),
        sampler=[Pack(0, BAD, (12,), 7)],
        num_workers=1,
        collate_fn=list,
    )
    with pytest.raises(UnreadablePictureError, match=r"^\S*toy_scanqa_torn, scene scene0003_00, view 1: .*$"):
        list(loader)


def test_error_names_it_and_skip_goes_on(inputs, repo, skipped, tmp_path, caplog):
    """
    Catches a picture that ends a run, and every resume of it; counts that stay in a data loader's process; names nobody is
    told; settings of which a run that has met the picture may not change the one.
    """
    steps = steps_of_bad_scene(repo)
    assert len(steps) == 2 and steps[0] > 1
    output, arguments = tmp_path / "run", SKIPPED[2:]
    message = run_stage2(*inputs, *arguments, "--save_steps", 1, "--output_dir", output)
    assert message.startswith(f"stage2.py: {repo}, scene scene0003_00, view 1: ")
    assert message.endswith("With --on_unreadable skip the same command leaves such scenes out and goes on.")
    assert "\n" not in message
    assert run_stage2(*inputs, *SKIPPED, "--save_steps", 1, "--output_dir", output) is None
    for folder in (output, skipped):
        counts = counts_of(folder)
        assert counts == {step: sum(step >= read for read in steps) for step in range(steps[0], 7)}
        record = json.loads((folder / "run.json").read_text())
        assert record["unreadable"]["sequences"] == 2
        assert (
            len(record["unreadable"]["scenes"]) == 1
            and "scene scene0003_00, view 1" in record["unreadable"]["scenes"][0]
        )
    assert losses_of(output) == losses_of(skipped)
    warned = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert len(warned) == 1 and "scene scene0003_00, view 1: " in warned[0]


def test_a_resumed_run_leaves_out_and_counts_the_same(inputs, repo, skipped, tmp_path):
    """Catches counts that begin anew, or of steps that are made twice, and counts that no log was due for."""
    output = tmp_path / "run"
    shutil.copytree(skipped, output)
    shutil.rmtree(output / "checkpoint-6")
    assert run_stage2(*inputs, *SKIPPED, "--logging_steps", 50, "--output_dir", output) is None
    steps = steps_of_bad_scene(repo)
    for folder in (output / "checkpoint-4", output / "checkpoint-6", output):
        step = 6 if folder == output else int(folder.name.removeprefix("checkpoint-"))
        assert max(counts_of(folder).values()) == sum(step >= read for read in steps)
    assert json.loads((output / "run.json").read_text())["unreadable"]["sequences"] == 2
    first, second = (load_file(folder / "model.safetensors") for folder in (output, skipped))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


@pytest.mark.slow
def test_two_processes_leave_out_the_same(inputs, skipped, tmp_path):
    """Catches a process that waits for the one that leaves a scene out, and counts that are those of one process."""
    output = tmp_path / "run"
    arguments = [*inputs, *SKIPPED, "--per_device_train_batch_size", 1, "--output_dir", output]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    result = subprocess.run(
        list(map(str, [*command, ROOT / "recipes" / "stage2.py", *arguments])),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert counts_of(output) == counts_of(skipped)
    for step, loss in losses_of(skipped).items():
        assert losses_of(output)[step] == pytest.approx(loss, abs=1e-4)
    assert result.stderr.count("Left out, as on_unreadable: skip has it") == 1


def test_a_step_of_nothing_else_leaves_finite_weights(inputs, tmp_path):
    """Catches a mean over no answers, which is no number."""
    output = tmp_path / "run"
    arguments = ["--global_batch_size", 1, "--per_device_train_batch_size", 1, "--dataloader_num_workers", 0]
    assert run_stage2(*inputs, "--on_unreadable", "skip", *arguments, "--output_dir", output) is None
    losses, counts = losses_of(output), counts_of(output)
    (step,) = [step for step, loss in losses.items() if loss == 0]
    assert counts == {later: 1 for later in range(step, 7)}


def test_evaluations_leave_it_out_and_say_so(inputs, tmp_path, monkeypatch, caplog):
    """Catches an evaluation that the picture ends, hours into a run, and a score that hides what it is not of."""
    argv = [*inputs, *SKIPPED, "--output_dir", tmp_path / "run", "--max_new_tokens", 1, "--eval_strategy", "steps"]
    trainer = make_trainer(*parse_arguments(CONFIGS / "stage2_3d.yaml", list(map(str, argv))))
    decoded, inputs_of = [], SceneDataset.scene_inputs
    monkeypatch.setattr(
        SceneDataset, "scene_inputs", lambda self, scene, *rest: decoded.append(scene) or inputs_of(self, scene, *rest)
    )
    metrics = trainer.evaluate()
    assert metrics["eval_unreadable_questions"] == 4
    assert decoded == [0, 1, 1]  # each to see whether it can be, and that which can
    trainer.evaluate()
    assert decoded == [0, 1, 1, 1]
    assert len([record for record in caplog.records if "scene scene0006_00, view 1" in record.getMessage()]) == 1
    trainer.data_arguments.on_unreadable = "error"
    with pytest.raises(UnreadablePictureError, match="scene scene0006_00, view 1"):
        trainer.evaluate()


def test_other_values_of_the_setting_are_refused(inputs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(
            CONFIGS / "stage2_3d.yaml", [*map(str, inputs), "--output_dir", "o", "--on_unreadable", "ignore"]
        )
    assert ended.value.code == 2 and "invalid choice: 'ignore'" in capsys.readouterr().err
