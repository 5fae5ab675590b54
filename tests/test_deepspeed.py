# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed as on GPUs, with processes on the CPU over gloo: training, checkpoints on other numbers of processes, kills."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys import write_toy_checkpoint, write_toy_repo

from recipes.runs.checkpoints import check_checkpoint, checkpoints_of
from recipes.runs.zero import ZeroCheckpoint


ROOT = Path(__file__).parent.parent
ACCELERATE_CONFIGS = ROOT / "recipes" / "accelerate_configs"
STEPS = 6


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A toy checkpoint and the arguments that every run here shares; two sequences a step, whoever takes them."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_toy_checkpoint(folder / "model")
    repo = write_toy_repo(folder / "toy_scanqa_deepspeed", {"train": 8, "val": 2})
    return [
        "--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--image_size", 28,
        "--per_device_train_batch_size", 1, "--questions_per_scene", 2, "--report_to", "none", "--bf16", "false",
        "--freeze_text_layers", 0, "--lora_dropout", 0, "--learning_rate", 0.01, "--save_steps", 2,
        "--eval_strategy", "no", "--load_best_model_at_end", "false", "--logging_steps", 1, "--seed", 3,
        "--save_total_limit", 20, "--dataloader_num_workers", 0, "--warmup_steps", 0,
    ]  # fmt: skip


def start(config, processes, inputs, output, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", 0]
    command += ["--config_file", ACCELERATE_CONFIGS / f"{config}.yaml", "--num_processes", processes]
    command += [ROOT / "recipes" / "stage2.py", *inputs, "--output_dir", output]
    command += ["--global_batch_size", 2, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=(Path(output).parent / f"{Path(output).name}.log").open("a"),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        start_new_session=True,
    )


def run(config, processes, inputs, output, *arguments):
    """A run to its end."""
    process = start(config, processes, inputs, output, *arguments)
    try:
        code = process.wait(timeout=300)
    finally:
        kill(process)
    assert code == 0, (Path(output).parent / f"{Path(output).name}.log").read_text()[-4000:]


def kill(process):
    """Ends a launcher and all that it started at once, as a machine that fails does."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses_of(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def assert_same_run(output, whole):
    """The same losses to 1e-4 and the same weights."""
    losses, expected = losses_of(output), losses_of(whole)
    assert list(losses) == list(expected)
    worst = max(abs(losses[step] - expected[step]) for step in expected)
    print(f"{output.name}: {len(losses)} losses, largest difference {worst:.1e}")
    assert worst < 1e-4
    first, second = (load_file(folder / "model.safetensors") for folder in (output, whole))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=1e-3, msg=name)
    assert max(expected.values()) - min(expected.values()) > 0.05  # it moved: equal curves mean something


################
# Settings
################


@pytest.mark.parametrize("config", sorted(ACCELERATE_CONFIGS.glob("zero*.yaml")), ids=lambda path: path.stem)
def test_configs_leave_to_the_recipe_what_is_the_recipes(config):
    """Catches a batch, a clipping or a precision that the accelerate config decides unseen."""
    content = yaml.safe_load(config.read_text())
    assert content["mixed_precision"] == "no"
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        assert content["deepspeed_config"][key] == "auto"


CONTRADICTIONS = """
import os, sys
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.runs.zero import check_deepspeed_config

for setting in ("", "GRADIENT_ACCUMULATION_STEPS=8", "GRADIENT_CLIPPING=0.5", "MIXED_PRECISION=bf16"):
    name, _, value = setting.partition("=")
    os.environ["ACCELERATE_" + name] = value
    arguments = parse_arguments(CONFIGS / "stage2_3d.yaml", sys.argv[1:])[2]
    del os.environ["ACCELERATE_" + name]
    try:
        check_deepspeed_config(arguments)
    except ValueError as error:
        print(error)
    else:
        print("agree")
"""


def test_a_contradiction_names_both_values(inputs, tmp_path):
    """Catches a setting of the YAML that DeepSpeed's silently replaces. In a process of its own: it is one of many."""
    argv = [*inputs, "--output_dir", tmp_path, "--global_batch_size", 4]
    # What accelerate launch makes of its config.
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "DS_ACCELERATOR": "cpu"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    result = subprocess.run(
        [sys.executable, "-c", CONTRADICTIONS, *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line == "agree" or "disagree" in line]
    assert lines[0] == "agree"
    assert "gradient_accumulation_steps=8 vs hf gradient_accumulation_steps=4" in lines[1]
    assert "gradient_clipping=0.5 vs hf max_grad_norm=1.0" in lines[2]
    assert "bf16.enabled=True vs hf" in lines[3] and "=False" in lines[3]


################
# Whole runs
################


@pytest.mark.slow
def test_zero_3_with_two_processes(inputs, tmp_path):
    """ZeRO-3 as on GPUs: partitioned parameters train in bfloat16, generate in the evaluation and come back whole."""
    output = tmp_path / "zero3"
    run(
        "zero3", 2, inputs, output, "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2, "--bf16", "true",
        "--load_best_model_at_end", "true",
    )  # fmt: skip
    assert set(losses_of(output)) == {1, 2}
    before, after = (load_file(folder / "model.safetensors") for folder in (inputs[1], output))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    assert any(".projector." in name and not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_zero_3_saves_an_adapter_beside_an_encoder_that_trains(inputs, tmp_path):
    """Catches PEFT's copy of the encoder without its frozen parameters: a run that ended at its first checkpoint."""
    output = tmp_path / "encoder"
    run("zero3", 1, inputs, output, "--max_steps", 2, "--save_steps", 1, "--freeze_vision", "false")
    before, after = (load_file(folder / "model.safetensors") for folder in (inputs[1], output))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {name for name in before if ".vision_model." in name and not torch.equal(before[name], after[name])}
    assert len(changed) > 10 and not any(name.endswith("mask_token") for name in changed)
    saved = load_file(output / "checkpoint-1" / "adapter_model.safetensors")
    (name,) = [name for name in saved if name.endswith("vision_model.backbone.embeddings.mask_token")]
    assert torch.equal(saved[name], before["model.vision_model.backbone.embeddings.mask_token"])


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def whole(request, inputs, tmp_path_factory):
    """The config's name and the folder of a run of two processes that nothing disturbed."""
    output = tmp_path_factory.mktemp(request.param) / "whole"
    run(request.param, 2, inputs, output, "--max_steps", STEPS)
    return request.param, output


def keep_checkpoints(source, target, *steps):
    """A copy of a run as it was after it had saved `steps`."""
    shutil.copytree(source, target)
    for folder in checkpoints_of(target):
        if int(folder.name.removeprefix("checkpoint-")) not in steps:
            shutil.rmtree(folder)
    for path in target.glob("*.safetensors"):
        path.unlink()


@pytest.mark.slow
def test_two_processes_one_and_two_again(whole, inputs, tmp_path):
    """Catches optimizer states that stay with the processes that had them, and a data order that depends on their number."""
    config, output = whole
    keep_checkpoints(output, tmp_path / "one", 2)
    run(config, 1, inputs, tmp_path / "one", "--max_steps", STEPS)
    assert_same_run(tmp_path / "one", output)
    assert ZeroCheckpoint(tmp_path / "one" / "checkpoint-4").world_size == 1
    keep_checkpoints(tmp_path / "one", tmp_path / "two", 2, 4)
    run(config, 2, inputs, tmp_path / "two", "--max_steps", STEPS)
    assert_same_run(tmp_path / "two", output)


@pytest.mark.slow
def test_checkpoints_read_as_deepspeed_reads_them(whole):
    """Catches parameters put together in the wrong order, or with padding in them."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = whole[1] / f"checkpoint-{STEPS}"
    check_checkpoint(folder)
    checkpoint, expected = ZeroCheckpoint(folder), get_fp32_state_dict_from_zero_checkpoint(str(folder))
    assert checkpoint.world_size == 2 and len(checkpoint.places) > 10
    for name in checkpoint.places:
        torch.testing.assert_close(checkpoint.tensor(name), expected[name], atol=0, rtol=0)
        assert all(checkpoint.tensor(name, key).shape == expected[name].shape for key in checkpoint.state_keys)
    (folder / f"global_step{STEPS}").joinpath("moved").mkdir()
    next(folder.rglob("*rank_1*optim_states.pt")).rename(folder / f"global_step{STEPS}" / "moved" / "file.pt")
    with pytest.raises(ValueError, match="1 optimizer files of 2 processes"):
        ZeroCheckpoint(folder)


@pytest.mark.slow
def test_a_run_killed_twice_has_the_same_losses(inputs, tmp_path):
    """
    Catches a resume that loses optimizer states, random states, steps or packs: kill -9 of all, then of one process. An
    epoch has 8 steps: both are within one, the second within the second epoch.
    """
    steps, seed = 14, random.randrange(10**6)
    rng = random.Random(seed)
    print("seed", seed)
    arguments = ["--max_steps", steps, "--num_train_epochs", 5]
    run("zero3", 2, inputs, tmp_path / "whole", *arguments)
    output = tmp_path / "killed"
    for saved, all_of_them in ((rng.choice([2, 4]), True), (10, False)):
        process = start("zero3", 2, inputs, output, *arguments)
        try:
            deadline = time.time() + 200
            while not (output / f"checkpoint-{saved}").exists():
                assert process.poll() is None and time.time() < deadline, output.with_suffix(".log").read_text()[
                    -3000:
                ]
                time.sleep(0.02)
            time.sleep(rng.random())
            workers = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
            if all_of_them:
                kill(process)
            else:
                workers[rng.randrange(2)].kill()
                assert process.wait(timeout=100) != 0
        finally:
            kill(process)
        assert not list(output.glob("*.safetensors")), "it was over before it was killed"
        print("killed after", checkpoints_of(output)[0].name)
    run("zero3", 2, inputs, output, *arguments)
    assert_same_run(output, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2_offload", "zero3_offload"])
def test_offload_trains_as_without(config, inputs, tmp_path):
    """Catches a config that asks for what is not installed, and states that DeepSpeed's Adam keeps in another form."""
    arguments = ["--max_steps", 4]
    run(config.removesuffix("_offload"), 1, inputs, tmp_path / "whole", *arguments)
    keep_checkpoints(tmp_path / "whole", tmp_path / "offload", 2)
    run(config, 1, inputs, tmp_path / "offload", *arguments)
    assert_same_run(tmp_path / "offload", tmp_path / "whole")


MIXED = """
import sys
import deepspeed, torch
from transformers import AutoModelForImageTextToText
from transformers.integrations import HfDeepSpeedConfig
import modeling_vggt_qwen3
sys.path.insert(0, "tests")
from toys import toy_processor, toy_views

deepspeed.init_distributed("gloo")
rank = torch.distributed.get_rank()
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": int(sys.argv[2]), "stage3_param_persistence_threshold": 0}}
ds = HfDeepSpeedConfig(config)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).train()
processor = toy_processor(model.config)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config | {"zero_allow_untested_optimizer": True})
for step in range(3):
    images = toy_views(2, seed=step) if (rank + step) % 2 else None
    inputs = processor(text=processor.image_token * bool(images) + "What is it? red", images=images, return_tensors="pt")
    results = []
    for model.loss_chunk_size in (None, 4):
        loss = engine(**inputs, labels=inputs["input_ids"], num_items_in_batch=torch.tensor(20)).loss
        engine.backward(loss)
        engine.step()
        results.append(torch.tensor([loss.item(), float(engine.get_global_grad_norm())]))
    assert results[0].isfinite().all() and results[0].min() > 0.1, results
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
print("DONE", rank, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_images_on_one_rank_only(stage, inputs, tmp_path):
    """
    Catches a rank that leaves the encoder or the projector out, or that calls the head once per chunk of its answers: the
    others wait for its part of them for ever. And chunks that change loss or gradient.
    """
    (tmp_path / "mixed.py").write_text(MIXED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    result = subprocess.run(
        list(map(str, [*command, tmp_path / "mixed.py", inputs[1], stage])),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        timeout=150,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("DONE") == 2


@pytest.mark.slow
def test_ranks_whose_scenes_have_other_numbers_of_views(inputs, tmp_path):
    """Catches an encoder that runs its layers once per number of views: under ZeRO-3 the ranks would wait for ever."""
    arguments = [
        "--per_device_train_batch_size",
        2,
        "--global_batch_size",
        4,
        "--view_dropout",
        0.5,
        "--freeze_vision",
        "false",
        "--lora_r",
        0,
    ]
    run("zero3", 2, inputs, tmp_path / "views", *arguments, "--max_steps", 4, "--save_strategy", "no")
    assert len(losses_of(tmp_path / "views")) == 4
