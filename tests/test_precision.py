# SPDX-License-Identifier: Apache-2.0
"""What is float32 and what bfloat16 while a bfloat16 checkpoint trains, under every launcher; and the batch of a step."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from toys import toy_model, toy_processor, write_toy_repo

from modeling_vggt_qwen3 import VggtQwen3Config
from recipes.runs.arguments import (
    CONFIGS,
    accumulation_steps,
    check_checkpoint_for,
    check_training_arguments,
    parse_arguments,
)
from recipes.runs.trained import TRAINED
from recipes.runs.zero import ZeroCheckpoint
from recipes.training.sft import make_trainer


ROOT = Path(__file__).parent.parent
ACCELERATE_CONFIGS = ROOT / "recipes" / "accelerate_configs"
STAGES = {"stage1": "stage1_sft", "stage2": "stage2_3d", "stage3": "stage3_arkit"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A toy in bfloat16, as released models are, whose encoder has heads and whose projector has norms."""
    folder = tmp_path_factory.mktemp("bfloat16")
    torch.manual_seed(0)
    model = toy_model("perceiver", heads=True).to(torch.bfloat16)
    for part in (model, toy_processor(model.config)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """Per stage, scenes of which every second has no cameras: what stands in for cameras trains, too."""
    folders = {}
    for stage in STAGES:
        task = "arkit_actions" if stage == "stage3" else "scanqa"
        folders[stage] = write_toy_repo(tmp_path_factory.mktemp(stage) / "repo", {"train": 8, "val": 2}, task=task)
        file = folders[stage] / "scenes" / "train-00000-of-00001.parquet"
        scenes = Dataset.from_parquet(str(file))
        rows = [row | ({"geometry": None} if number % 2 else {}) for number, row in enumerate(scenes)]
        Dataset.from_list(rows, features=scenes.features).to_parquet(file)
    return folders


def arguments_of(checkpoint, repo, stage, output, *arguments):
    argv = ["--model_name_or_path", checkpoint, "--dataset_paths", repo, "--output_dir", output, "--image_size", 28]
    argv += ["--dataset_weights", 1, "--global_batch_size", 2, "--per_device_train_batch_size", 1, "--seed", 3]
    argv += ["--questions_per_scene", 2, "--report_to", "none", "--dataloader_num_workers", 0, "--max_steps", 30]
    argv += ["--save_steps", 10, "--save_total_limit", 9, "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    argv += {"stage1": [], "stage2": ["--freeze_text_layers", 0], "stage3": ["--anchor_hidden_size", 32]}[stage]
    return list(map(str, [*argv, *arguments]))


################
# Types
################


@pytest.mark.parametrize("stage", STAGES)
def test_what_trains_is_float32_and_what_does_not_stays(stage, checkpoint, repos, tmp_path):
    """Catches bfloat16 weights without float32 copies: steps of a usual size are rounded away."""
    config = CONFIGS / f"{STAGES[stage]}.yaml"
    for bf16, frozen in (("true", torch.bfloat16), ("false", torch.float32)):
        argv = arguments_of(checkpoint, repos[stage], stage, tmp_path / bf16, "--bf16", bf16)
        model = make_trainer(*parse_arguments(config, argv)).model
        types = {True: set(), False: set()}
        for name, parameter in model.named_parameters():
            if "camera_head" in name or "depth_head" in name:
                assert parameter.dtype == torch.float32 and not parameter.requires_grad
            else:
                types[parameter.requires_grad].add(parameter.dtype)
        assert types == {True: {torch.float32}, False: {frozen}}


################
# Training
################


def moved(output: Path) -> dict[str, bool]:
    """Of each tensor that trains, in float32, whether it moved between steps 10 and 30."""
    first, last = (output / f"checkpoint-{step}" for step in (10, 30))
    if (first / "latest").exists():
        first, last = ZeroCheckpoint(first), ZeroCheckpoint(last)
        return {name: not torch.equal(first.tensor(name), last.tensor(name)) for name in first.places}
    file = next(name for name in ("adapter_model.safetensors", TRAINED) if (first / name).exists())
    first, last = (load_file(folder / file) for folder in (first, last))
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    return {name: not torch.equal(tensor, last[name]) for name, tensor in first.items()}


LAUNCHERS = {"cpu": 1, "ddp": 2, "zero2": 1, "zero3": 1}


@pytest.fixture(scope="module")
def runs(checkpoint, repos, tmp_path_factory):
    """30 steps of every stage under every launcher, two runs at a time: output folder and log of each."""
    folder = tmp_path_factory.mktemp("runs")

    def run(launcher, stage):
        output = folder / f"{launcher}-{stage}"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", 0]
        command += ["--config_file", ACCELERATE_CONFIGS / f"{launcher}.yaml", "--num_processes", LAUNCHERS[launcher]]
        command += [ROOT / "recipes" / f"{stage}.py", *arguments_of(checkpoint, repos[stage], stage, output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
        return output, result

    with ThreadPoolExecutor(2) as pool:
        futures = {(launcher, stage): pool.submit(run, launcher, stage) for launcher in LAUNCHERS for stage in STAGES}
    return {key: future.result() for key, future in futures.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_everything_that_trains_moves(launcher, stage, runs):
    """Catches steps that are lost in bfloat16, types that do not meet under one of the launchers, and parts no loss reaches."""
    output, result = runs[launcher, stage]
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    moves = moved(output)
    assert len(moves) > 30 and all(moves.values()), [name for name, moves in moves.items() if not moves]
    # What comes out is of the checkpoint's type again.
    after, heads = load_file(output / "model.safetensors"), ("camera_head", "depth_head")
    types = {tensor.dtype for name, tensor in after.items() if not any(head in name for head in heads)}
    assert types == {torch.bfloat16}


CAMERAS = """
import json, sys
import torch
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.sft import load_model, make_trainer

model_arguments, data_arguments, training_arguments = parse_arguments(CONFIGS / f"{sys.argv[1]}.yaml", sys.argv[2:])
try:
    trainer = make_trainer(model_arguments, data_arguments, training_arguments)
except ValueError as error:
    print("REFUSED", error)
    sys.exit()
seen = []
for name, module in trainer.model.named_modules():
    if name.endswith("geometry_encoder.modules_to_save.default"):
        module.register_forward_pre_hook(lambda module, arguments: seen.append([a.detach().clone() for a in arguments[:4]]))
trainer.train()
batch = next(iter(trainer.get_train_dataloader()))
if data_arguments.geometry_source == "predicted":
    model = load_model(model_arguments.model_name_or_path, "sdpa").model.eval()
    cameras = model.encode_views_and_geometry(batch["pixel_values"])[1]
    expected = [cameras.extrinsics, cameras.intrinsics, cameras.depth_histogram]
else:
    expected = [batch[name] for name in ("extrinsics", "intrinsics", "depth_histogram")]
print("RESULT", json.dumps({
    "types": sorted({str(tensor.dtype) for tensor in seen[0][:3]}),
    "difference": max((a - b).abs().max().item() for a, b in zip(seen[0][:3], expected)),
    "heads": sorted({str(p.dtype) for n, p in trainer.model.named_parameters() if "_head." in n and "vision_model" in n}),
}))
"""


@pytest.mark.slow
def test_cameras_are_exact_under_deepspeed(checkpoint, repos, tmp_path):
    """
    Catches cameras that are rounded to bfloat16 on their way to the model (centimetres in a room), and VGGT's heads in
    bfloat16, which predict other cameras in training than in inference.
    """
    (tmp_path / "cameras.py").write_text(CAMERAS)

    def run(launcher, geometry_source):
        arguments = arguments_of(
            checkpoint, repos["stage2"], "stage2", tmp_path / f"{launcher}-{geometry_source}", "--max_steps", 1,
            "--view_dropout", 0, "--save_strategy", "no", "--geometry_source", geometry_source,
        )  # fmt: skip
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, "--main_process_port", 0]
        command += ["--config_file", ACCELERATE_CONFIGS / f"{launcher}.yaml", tmp_path / "cameras.py", "stage2_3d"]
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            list(map(str, [*command, *arguments])),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    cases = [("zero2", "dataset"), ("zero2", "predicted"), ("zero3", "dataset"), ("zero3", "predicted")]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(cases, pool.map(lambda case: run(*case), cases), strict=True))
    for case, result in results.items():
        output = result.stdout
        if case == ("zero3", "predicted"):
            assert "REFUSED geometry_source: predicted needs VGGT's camera and depth heads in float32" in output
            continue
        assert "RESULT" in output, (result.stdout + result.stderr)[-5000:]
        found = json.loads(output.partition("RESULT ")[2].splitlines()[0])
        assert found["types"] == ["torch.float32"] and found["difference"] == 0, (case, found)
        assert found["heads"] == (["torch.float32"] if case[0] == "zero2" else ["torch.bfloat16"])


################
# The batch, and what is refused
################


@pytest.mark.parametrize(
    ("total", "micro_batch", "processes", "given", "expected"),
    [
        (None, 2, 4, None, 1),
        (None, 2, 4, 3, 3),
        (32, 1, 8, None, 4),
        (32, 1, 1, None, 32),
        (32, 2, 4, 4, 4),
        (32, 3, 1, None, "Set per_device_train_batch_size to 1 or 2 or 4 or 8 or 16 or 32."),
        (4, 1, 8, None, "8 processes cannot share it"),
        (32, 1, 1, 4, "Leave gradient_accumulation_steps out"),
    ],
)
def test_accumulation_follows_from_the_global_batch(total, micro_batch, processes, given, expected):
    """Catches a batch that depends on how a run was launched."""
    if isinstance(expected, int):
        assert accumulation_steps(total, micro_batch, processes, given) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            accumulation_steps(total, micro_batch, processes, given)


def test_the_global_batch_holds_without_the_launcher(checkpoint, tmp_path, capsys):
    """Catches a warning in place of the batch that the configuration says."""
    for stage, batch in (("stage1", 128), ("stage2", 32), ("stage3", 32)):
        training = parse_arguments(CONFIGS / f"{STAGES[stage]}.yaml", [])[2]
        assert training.gradient_accumulation_steps * training.per_device_train_batch_size == batch
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage2_3d.yaml", ["--per_device_train_batch_size", "3"])
    assert "global_batch_size 32 is no multiple of 1 processes" in capsys.readouterr().err


def test_several_processes_on_a_cpu_are_started_or_refused(monkeypatch, capsys):
    """Catches `accelerate launch --cpu --num_processes 2`, which starts one process and says nothing."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage2_3d.yaml", [])
    assert "accelerate launch --cpu starts one process" in capsys.readouterr().err
    monkeypatch.setenv("PMI_SIZE", "1")  # under MPI
    parse_arguments(CONFIGS / "stage2_3d.yaml", [])


@pytest.mark.slow
def test_accelerate_launch_says_why_two_processes_are_one(tmp_path):
    """The command itself: catches accelerate setting something else than the test above believes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [str(ROOT / "recipes" / "stage2.py"), "--output_dir", str(tmp_path)]
    command += "--model_name_or_path org/model --dataset_paths org/data --dataset_weights 1".split()
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode != 0 and "starts one process without MPI" in result.stderr


def test_precisions_that_no_run_can_have_are_refused(monkeypatch):
    """Catches an hour of loading before, or an emulation in place of, an error."""
    arguments = SimpleNamespace(bf16=True, fp16=False, device=torch.device("cuda"), deepspeed_plugin=None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(ValueError, match="bf16: Tesla V100 computes bfloat16 only by emulating it. Set bf16: false"):
        check_training_arguments(arguments)
    arguments = SimpleNamespace(bf16=False, fp16=True, device=torch.device("cuda"), deepspeed_plugin=object())
    with pytest.raises(ValueError, match="fp16 with DeepSpeed"):
        check_training_arguments(arguments)
    data = SimpleNamespace(geometry_source=None, feature_store=None)
    with pytest.raises(ValueError, match="fp16: the checkpoint is bfloat16"):
        check_checkpoint_for(VggtQwen3Config(dtype=torch.bfloat16), data, arguments)
    check_checkpoint_for(VggtQwen3Config(dtype=torch.float32), data, arguments)
