# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite: cameras are refused before training, losses and gradients end it with whole weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hostile import count
from hostile.cameras import cameras
from safetensors.torch import load_file
from test_fault_tolerance import run_stage2
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint, write_toy_repo

from data_scripts.limits import FARTHEST_CAMERA
from data_scripts.readers.frames import (
    describe_distance_fault,
    describe_geometry_fault,
    describe_intrinsics_fault,
    is_rigid,
)
from modeling_vggt_qwen3 import processing_vggt_qwen3
from modeling_vggt_qwen3.camera_checks_vggt_qwen3 import FARTHEST, camera_problem
from modeling_vggt_qwen3.geometry_vggt_qwen3 import Cameras
from modeling_vggt_qwen3.modeling_vggt_qwen3_anchor import anchor_losses
from recipes.common.scenes import SceneDataset
from recipes.monitoring.history import read_history
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.runs.checkpoints import check_checkpoint, checkpoints_of
from recipes.runs.zero import ZeroCheckpoint
from recipes.training.packing import PackDataset, PackSampler
from recipes.training.sft import make_trainer
from recipes.training.watch import NonFiniteError


ROOT = Path(__file__).parent.parent


def write_camera(repo, scene, field, place, value, split="train"):
    """Puts `value` at `place` of a field of a prepared scene's cameras; a column that holds it, as strangers may have."""
    path = repo / "scenes" / f"{split}-00000-of-00001.parquet"
    table = Dataset.from_parquet(str(path), cache_dir=str(repo / "cache"))
    rows = [dict(row) for row in table.with_format(None)]
    array = np.asarray(rows[scene]["geometry"][field], dtype=np.float64)
    array[place] = value
    rows[scene]["geometry"][field] = array.tolist()
    Dataset.from_list(rows, features=table.features).to_parquet(path)
    return repo


# Of view 1. The second is finite in float64 and infinite in float32, which it is computed with.
BAD_CAMERAS = [
    ("R", (1, 0, 0), np.nan),
    ("t", (1, 0), 1e39),
    ("t", (1, 2), -np.inf),
    ("t", (1, 2), 1e30),
    ("t", (1, 2), 2e3),
    ("K", (1, 0, 2), np.nan),
    ("K", (1, 1, 1), 0.0),
    ("depth_hist", (1, 3), np.inf),
]


@pytest.mark.parametrize(("field", "place", "value"), BAD_CAMERAS)
def test_the_processor_refuses_cameras_that_are_not_finite(field, place, value):
    """
    Catches a check before the cast to float32, or none: one such camera made a model of numbers that are none, with exit
    code 0 and a loss of 0.000. A focal length of 0 makes rays infinite; squares of 1e30 leave float32; from 10 km away the
    exponentials of the anchor head do.
    """
    processor = toy_processor(toy_model().config)
    geometry = {key: array.astype(np.float64) for key, array in toy_geometry(2).items()}
    geometry[field][place] = value
    with pytest.raises(ValueError, match=rf"geometry of scene 1, view 1: ({field} h|R and t put)"):
        processor(images=[toy_views(2)] * 2, text=["What?"] * 2, geometry=[toy_geometry(2), geometry])
    # Metres may count from far away, as surveyors' do: what counts is where the cameras are to one another.
    geometry = toy_geometry(2)
    geometry["t"] -= geometry["R"] @ np.float32([4e5, 5e6, 0])
    processor(images=[toy_views(2)], text=["What?"], geometry=[geometry])


@pytest.mark.parametrize(("field", "place", "value"), BAD_CAMERAS)
def test_a_data_set_refuses_them_before_training(field, place, value, tmp_path):
    """Catches a bad camera that is found by the step that reads it, after an hour, or not at all."""
    repo = write_toy_repo(tmp_path / f"toy_{field}_{place}_{value}", {"train": 3})
    write_camera(repo, 2, field, place, value)
    message = rf"toy_.*, split train, scene scene0002_00, view 1: ({field} h|R and t put).*Prepare the dataset"
    with pytest.raises(ValueError, match=message):
        SceneDataset(str(repo), "train", num_views=3)
    # The view is not in use: nothing reads its camera.
    assert SceneDataset(str(repo), "train", num_views=1).scene_inputs(2)["geometry"]["t"].shape == (1, 3)


def test_hostile_cameras_of_a_data_set_are_named(tmp_path):
    """Catches columns of other types than ours, which a stranger's repository may have, that end in a traceback."""
    repo = write_toy_repo(tmp_path / "toy_hostile", {"train": 2}, num_views=3)
    source, processor = SceneDataset(str(repo), "train"), toy_processor(toy_model().config)

    def attempt(geometry):
        try:
            column = pa.array([geometry, None])
        except pa.ArrowInvalid as error:
            raise ValueError(f"scene0000_00: not a column: {error}") from error
        source._check_cameras(Dataset(pa.table({"geometry": column})))
        processor(images=[toy_views(3)], text=["What?"], geometry=[geometry])  # takes what the data set takes

    as_lists = ((what, {k: np.asarray(v).tolist() for k, v in geometry.items()}) for what, geometry in cameras(1))
    counts = count("cameras of a data set", as_lists, attempt, (ValueError,), lambda *case: "scene0000_00")
    assert not counts.tracebacks, "\n".join(counts.tracebacks[:3])
    assert counts.tried == 252 and counts.accepted > 80 and counts.refused > 110


def test_what_is_prepared_can_be_trained_with():
    """Catches bounds of preparation beyond those of training: a scene that is written, and then refused."""
    assert FARTHEST_CAMERA == FARTHEST
    taken = 0
    for what, geometry in cameras(2):
        try:
            arrays = {key: np.asarray(values, np.float64) for key, values in geometry.items()}
            shapes = {key: values.shape for key, values in arrays.items()}
        except ValueError:
            continue
        if shapes != {"R": (3, 3, 3), "t": (3, 3), "K": (3, 3, 3), "depth_hist": (3, 16)}:
            continue
        poses = np.tile(np.eye(4), (3, 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = arrays["R"], arrays["t"]
        faults = describe_geometry_fault(arrays), describe_intrinsics_fault(arrays["K"])
        if any(faults) or not is_rigid(poses).all() or describe_distance_fault(arrays):
            continue
        taken += 1
        assert camera_problem({key: values.astype(np.float32) for key, values in arrays.items()}) is None, what
    assert taken > 30


def test_hostile_cameras_are_refused_or_harmless():
    """Catches bounds that let pass what makes the geometry encoder's tokens or the anchor head's rays infinite."""
    torch.manual_seed(0)
    model = toy_model(anchor_hidden_size=32, numbers_from="head")
    processor = toy_processor(model.config)
    tokens = torch.randn(1, 3, 4, model.model.anchor_head.feature_norm.normalized_shape[0])

    def attempt(geometry):
        batch = processor(images=[toy_views(3)], text=["What?"], geometry=[geometry], return_tensors="pt")
        names = ("extrinsics", "intrinsics", "depth_histogram", "geometry_mask")
        arrays = [batch[name] for name in names]
        assert model.model.geometry_encoder(*arrays, (28, 28)).isfinite().all()
        if batch["depth_histogram"].abs().max() > 1e3:
            return  # counts where shares should be: taken, and too much for an anchor head as random as this one
        found = Cameras(*arrays, None, (28, 28))
        features = SimpleNamespace(cameras=found, last_hidden_state=tokens)
        boxes, log_attention = model.model.anchor_head(torch.ones(1, 32), torch.zeros(1, dtype=torch.long), features)
        target = torch.tensor([[0.1, 0.1, 2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0]])
        losses = anchor_losses(boxes, target, torch.zeros(1, dtype=torch.long), log_attention, found, 14)
        gradients = torch.autograd.grad(sum(losses.values()), model.model.anchor_head.parameters(), allow_unused=True)
        assert all(tensor.isfinite().all() for tensor in [*losses.values(), *gradients] if tensor is not None), losses

    counts = count("cameras", cameras(0), attempt, (ValueError,), lambda what, geometry: what.split()[0].split("[")[0])
    assert not counts.tracebacks, "\n".join(trace.splitlines()[0][:60] for trace in counts.tracebacks)
    assert counts.tried == 252 and counts.accepted > 80 and counts.refused > 110


################
# Training
################


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A toy checkpoint, a repository with a camera at infinity in scene 5, and settings of two sequences a step."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_toy_checkpoint(folder / "model")
    repo = write_toy_repo(folder / "toy_scanqa_infinite", {"train": 8, "val": 2})
    write_camera(repo, 5, "t", (1, 0), 1e39)
    return [
        "--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--image_size", 28,
        "--per_device_train_batch_size", 1, "--global_batch_size", 2, "--questions_per_scene", 4, "--report_to", "none",
        "--bf16", "false", "--freeze_text_layers", 0, "--eval_strategy", "no", "--load_best_model_at_end", "false",
        "--save_steps", 1, "--logging_steps", 1, "--save_total_limit", 9, "--dataloader_num_workers", 0, "--seed", 3,
    ]  # fmt: skip


def blindfold(monkeypatch):
    """Takes away the checks of cameras, so that what is left is that of losses and gradients."""
    monkeypatch.setattr(processing_vggt_qwen3, "camera_problem", lambda geometry: None)
    monkeypatch.setattr(SceneDataset, "_check_cameras", lambda self, scenes: None)


BLINDFOLDED = """
from modeling_vggt_qwen3 import processing_vggt_qwen3
from recipes.common.scenes import SceneDataset
from recipes.publishing.upload import publish_run
from recipes.runs.arguments import CONFIGS
from recipes.training.sft import main

processing_vggt_qwen3.camera_problem = lambda geometry: None
SceneDataset._check_cameras = lambda self, scenes: None
main(CONFIGS / "stage2_3d.yaml", publish_run)
"""


def step_of_scene(repo, scene, monkeypatch):
    """The first optimizer step of two sequences that reads it, counted from 1."""
    with monkeypatch.context() as patch:
        blindfold(patch)
        sampler = PackSampler(PackDataset([SceneDataset(str(repo), "train")], 4), None, seed=3, batch_size=2)
    return next(position // 2 + 1 for position, pack in enumerate(sampler) if pack.scene == scene)


def assert_stopped(output, message, inputs, monkeypatch):
    """Step and scene are named, the last checkpoint is of the step before and finite, and nothing says it is finished."""
    step = step_of_scene(inputs[3], 5, monkeypatch)
    assert step > 1
    assert f"step {step}: the loss is not finite. The weights are those after step {step - 1}." in message
    ids = [f"train-scene0005_00-{number}" for number in range(4)]
    assert "toy_scanqa_infinite, scene scene0005_00 (questions train-scene0005_00-" in message
    assert all(name in message for name in ids)
    assert message.count(", scene ") == 1  # the other sequence of the step, whose loss is finite, is not accused
    assert f"checkpoint-{step - 1} is of before" in message
    last = checkpoints_of(output)[0]
    assert last.name == f"checkpoint-{step - 1}"
    check_checkpoint(last)
    if (last / "latest").exists():
        checkpoint = ZeroCheckpoint(last)
        weights = {name: checkpoint.tensor(name) for name in checkpoint.places}
    else:
        weights = load_file(last / "adapter_model.safetensors")
    assert len(weights) > 10 and all(tensor.isfinite().all() for tensor in weights.values())
    assert not list(output.glob("*.safetensors")) and not (output / "train_results.json").exists()
    assert read_history(output).status.startswith(f"stopped at step {step}: the loss is not finite")
    (sequence,) = json.loads((output / "stopped.json").read_text())["sequences"]
    assert sequence["scene_id"] == "scene0005_00" and sorted(sequence["question_ids"]) == ids


def test_training_stops_at_the_first_loss_that_is_not_finite(inputs, tmp_path, monkeypatch, capsys):
    """
    Catches what one camera did: a run that ends with exit code 0, a loss of 0.000 and weights that are no numbers, of which
    each later checkpoint is made.
    """
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        blindfold(patch)
        assert run_stage2(*inputs, "--output_dir", output, "--max_steps", 8) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("stage2.py: step ")
        assert_stopped(output, line, inputs, monkeypatch)
        # It would do the same again. While it trains it is not said to have stopped.
        assert run_stage2(*inputs, "--output_dir", output, "--max_steps", 8) == 1
    assert "scene scene0005_00, view 1: t holds inf" in run_stage2(*inputs, "--output_dir", output, "--max_steps", 8)
    assert not read_history(output).status.startswith(("stopped", "finished"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "zero2"])
def test_two_processes_stop_together(launcher, inputs, tmp_path, monkeypatch):
    """Catches a rank that goes on, or waits for ever, since only the other one has the scene."""
    (tmp_path / "stage2.py").write_text(BLINDFOLDED)
    config = ROOT / "recipes" / "accelerate_configs" / f"{launcher}.yaml"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    if launcher != "ddp":
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", 0]
        command += ["--config_file", config, "--num_processes", 2]
    output = tmp_path / "run"
    result = subprocess.run(
        list(map(str, [*command, tmp_path / "stage2.py", *inputs, "--output_dir", output, "--max_steps", 8])),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        timeout=200,
    )
    assert result.returncode != 0, result.stderr[-3000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("stage2.py: ")]
    assert len(lines) == 1, result.stderr[-3000:]
    assert_stopped(output, lines[0], inputs, monkeypatch)


@pytest.mark.parametrize("spoiled", ["gradient", "loss"])
def test_neither_alone_reaches_the_weights(spoiled, inputs, tmp_path, monkeypatch):
    """Catches a check of one of the two: a gradient overflows where the loss is finite, and a loss where no gradient does."""
    argv = [*inputs, "--output_dir", tmp_path / "run", "--max_steps", 4, "--save_strategy", "no"]
    with monkeypatch.context() as patch:
        blindfold(patch)
        trainer = make_trainer(*parse_arguments(CONFIGS / "stage2_3d.yaml", list(map(str, argv))))
    step, calls = trainer.training_step, []

    def training_step(model, *arguments):
        calls.append(1)
        loss = step(model, *arguments)
        if len(calls) == 2:
            if spoiled == "loss":
                trainer.watch.losses[-1] = loss + torch.inf
            else:
                next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        return loss

    monkeypatch.setattr(trainer, "training_step", training_step)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    reason = {"gradient": "the norm of the gradient", "loss": "the loss"}[spoiled]
    with pytest.raises(NonFiniteError, match=rf"^step 1: {reason} is not finite\. .*: .*, scene scene") as caught:
        trainer.train()
    assert len(caught.value.sequences) == {"gradient": 2, "loss": 1}[spoiled]
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if p.requires_grad)
