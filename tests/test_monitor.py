# SPDX-License-Identifier: Apache-2.0
"""What a run reports while it trains, and what `recipes.monitor` makes of it."""

import json
import time

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from toys import toy_config, toy_processor, write_toy_repo

from recipes.common.scenes import SceneDataset
from recipes.launching.output import lock_output
from recipes.monitoring.figure import describe, draw_run
from recipes.monitoring.history import duration, read_history
from recipes.runs.checkpoints import MANIFEST
from recipes.training.collator import PackCollator
from recipes.training.packing import Pack, PackDataset
from recipes.training.throughput import Throughput


NOW = 1_800_000_000.0


def write_checkpoint(output, step, history, whole=True):
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = {"log_history": history, "max_steps": 100, "best_model_checkpoint": str(output / "checkpoint-10")}
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(state))
    if whole:
        sizes = {path.name: path.stat().st_size}
        (folder / MANIFEST).write_text(json.dumps({"files": sizes}))


def write_config(output, max_steps=-1, epochs=4.0):
    training = {"max_steps": max_steps, "num_train_epochs": epochs}
    config = {"model": {}, "data": {}, "training": training, "batch": {}}
    output.mkdir(exist_ok=True)
    (output / "run_config.yaml").write_text(yaml.safe_dump(config))


def write_events(output, points, name="session"):
    """(step, seconds, {tag: value}) as TensorBoard's files hold them."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(output / "runs" / name))
    for step, seconds, values in points:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, walltime=NOW + seconds)
    writer.flush()
    return writer


def test_a_run_that_goes_on_is_read_from_checkpoints_and_logs(tmp_path):
    """Catches a monitor that shows only what a checkpoint holds, and values that an interruption made stale."""
    output = tmp_path / "run"
    write_config(output)
    write_checkpoint(output, 10, [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 2.0, "eval_exact_match": 0.25}])
    write_checkpoint(output, 20, [], whole=False)
    write_events(output, [(5, 10, {"train/loss": 3.0}), (15, 30, {"train/loss": 9.0})], "before")
    points = [(step, 100 + 2 * step, {"train/loss": 30 / step, "train/epoch": step / 25}) for step in (15, 20, 25)]
    points[-1][2].update({"eval/exact_match": 0.5, "train/loss_action_json": 0.125, "train/questions_per_second": 7.0})
    writer = write_events(output, points)
    history = read_history(output, now=NOW + 200)
    assert history.steps_with("loss") == [(5, 3.0), (10, 2.0), (15, 2.0), (20, 1.5), (25, pytest.approx(1.2))]
    assert history.steps_with("eval_exact_match") == [(10, 0.25), (25, 0.5)]
    assert history.max_steps == 100 and history.last_step == 25
    assert [step for step, problem in history.checkpoints if problem is None] == [10]
    text = describe(history)
    assert "step 25 of 100" in text and "checkpoint-10 (best)" in text
    assert "NOT WHOLE" in text and "checkpoint-20" in text
    header = next(line for line in text.splitlines() if line.startswith("step  "))
    assert "loss_action_json" in header and "questions/s" in header and "exact match" in header
    draw_run(history, tmp_path / "run.png")
    assert Image.open(tmp_path / "run.png").size[0] > 1000
    writer.close()


def test_time_left_is_that_of_the_latest_steps(tmp_path):
    """Catches an estimate that takes the hours between two sessions for training."""
    output = tmp_path / "run"
    write_config(output, max_steps=60)
    write_events(output, [(step, step, {"train/loss": 1.0}) for step in range(1, 31)], "first")
    write_events(output, [(step, 90_000 + 2 * step, {"train/loss": 1.0}) for step in range(31, 52)], "second")
    history = read_history(output)
    assert history.seconds_per_step == pytest.approx(2.0)
    assert history.seconds_left == pytest.approx(18.0)
    write_config(output, epochs=4.0)
    write_events(output, [(51, 90_102, {"train/epoch": 2.0})], "third")
    assert read_history(output).max_steps == 102


def test_the_status_tells_running_finished_and_preempted_apart(tmp_path):
    output = tmp_path / "run"
    write_config(output)
    write_events(output, [(1, 0, {"train/loss": 1.0})])
    assert "cannot be told" in read_history(output, now=time.time()).status
    assert read_history(output, now=time.time() + 7200).status.startswith("not running: last wrote 2 h 00 min ago")
    lock = lock_output(output, 0)
    assert read_history(output, now=time.time() + 7200).status.startswith("running (process")
    lock.close()
    (output / "preempted.json").write_text(json.dumps({"signal": "SIGTERM", "step": 1}))
    assert read_history(output).status.startswith("preempted by SIGTERM at step 1")
    (output / "train_results.json").write_text("{}")
    assert read_history(output).status == "finished"
    assert [duration(number) for number in (7.2, 61, 3660)] == ["7 s", "1 min 01 s", "1 h 01 min"]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        read_history(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not the output folder of a run"):
        read_history(tmp_path)
    write_config(tmp_path / "run")
    assert "nothing logged yet" in describe(read_history(tmp_path / "run"))
    (tmp_path / "run" / "trainer_state.json").write_text('{"log_history": [')
    with pytest.raises(ValueError, match="trainer_state.json cannot be read"):
        read_history(tmp_path / "run")


def test_questions_tokens_and_padding_are_counted(tmp_path):
    """Catches padding taken for text, prefixes taken for questions, and rows without either."""
    source = SceneDataset(str(write_toy_repo(tmp_path / "toy_monitor", {"train": 2})), "train")
    processor = toy_processor(toy_config())
    for blind in (False, True):
        dataset = PackDataset([source], questions_per_scene=4, blind=blind)
        packs = [Pack(0, 0, (0, 1, 2), 0), Pack(0, 1, (4,), 0), Pack(0, 1, (), 0)]
        batch = PackCollator(processor)([dataset[pack] for pack in packs])
        throughput = Throughput(processor.tokenizer.pad_token_id)
        throughput.count([batch, batch])
        measured = throughput.measure(Accelerator(cpu=True))
        lengths = (batch["input_ids"] != processor.tokenizer.pad_token_id).sum(dim=1)
        assert measured["padding"] == pytest.approx(1 - lengths.sum().item() / batch["input_ids"].numel())
        ratio = measured["questions_per_second"] / measured["tokens_per_second"]
        assert ratio == pytest.approx(4 / lengths.sum().item())
        assert measured["memory_gb"] > 0.05
        assert throughput.measure(Accelerator(cpu=True)) == {}


def test_evaluations_and_saving_are_not_training_time(monkeypatch):
    """Catches rates that fall wherever a run evaluates."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    throughput = Throughput(pad_token_id=0)
    batch = {"input_ids": torch.ones(2, 10, dtype=torch.long), "segment_ids": torch.ones(2, 10, dtype=torch.long)}
    throughput.count([batch])
    clock[0] = 1.0
    throughput.on_step_end(None, None, None)
    clock[0] = 101.0
    throughput.on_evaluate(None, None, None)
    clock[0] = 201.0
    throughput.on_save(None, None, None)
    throughput.count([batch])
    clock[0] = 202.0
    throughput.on_step_end(None, None, None)
    assert throughput.measure(Accelerator(cpu=True))["tokens_per_second"] == pytest.approx(40 / 2)
