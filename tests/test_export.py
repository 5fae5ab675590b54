# SPDX-License-Identifier: Apache-2.0
"""From checkpoints of every kind to folders that load."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_fault_tolerance import run_stage2
from toys import toy_views, write_toy_checkpoint, write_toy_repo
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.common.loading import load_model
from recipes.export import main as export_main
from recipes.runs.zero import ZeroCheckpoint
from recipes.training.trainer import VggtQwen3Trainer


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = write_toy_checkpoint(folder / "model")
    repo = write_toy_repo(folder / "toy_scanqa_export", {"train": 4, "val": 1})
    return [
        "--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--image_size", 28,
        "--global_batch_size", 1, "--per_device_train_batch_size", 1, "--questions_per_scene", 2,
        "--report_to", "none", "--freeze_text_layers", 0, "--max_steps", 2, "--save_steps", 2, "--eval_strategy", "no",
        "--load_best_model_at_end", "false", "--seed", 3, "--dataloader_num_workers", 0,
        "--warmup_steps", 0, "--projector_learning_rate", 0.05,
    ]  # fmt: skip


def checkpoint_of(inputs, output, *arguments):
    """The checkpoint of a run in this process."""
    assert run_stage2(*inputs, "--output_dir", output, *arguments) is None
    return output / "checkpoint-2"


RATE = ["--learning_rate", 0.05]
LORA = ["--bf16", "false", *RATE]


@pytest.fixture(scope="module")
def lora(inputs, tmp_path_factory):
    return checkpoint_of(inputs, tmp_path_factory.mktemp("lora"), *LORA)


def export(checkpoint, output, *arguments):
    try:
        export_main([str(part) for part in ("--checkpoint", checkpoint, "--output", output, *arguments)])
    except SystemExit as ended:
        return ended.code
    return None


@torch.no_grad()
def logits_of(model, processor):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the chair?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return model.eval()(**processor(text=text, images=toy_views(2), return_tensors="pt")).logits


def test_merged_and_unmerged_logits_agree(inputs, lora, tmp_path):
    """Catches an adapter that is merged wrongly, or modules beside it that are forgotten; nothing of Trainer's is needed."""
    assert export(lora, tmp_path / "merged", "--merge-lora", "--dtype", "float32") is None
    assert export(lora, tmp_path / "adapter") is None
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    base = AutoModelForImageTextToText.from_pretrained(inputs[1])
    before = logits_of(base, processor)
    unmerged = PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = logits_of(unmerged, processor)
    torch.testing.assert_close(logits_of(merged, processor), expected, atol=1e-5, rtol=0)
    print(f"largest difference {(logits_of(merged, processor) - expected).abs().max():.1e}")
    assert (expected - before).abs().max() > 1e-2  # the training is in it
    # As the run itself leaves it at its end.
    final = AutoModelForImageTextToText.from_pretrained(lora.parent)
    torch.testing.assert_close(logits_of(final, processor), expected, atol=1e-5, rtol=0)
    assert '"use_cache": false' not in (tmp_path / "merged" / "config.json").read_text()
    assert {path.name for path in (tmp_path / "merged").glob("*.py")} >= {"modeling_vggt_qwen3.py", "modeling_vggt.py"}
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    # The adapter names the model that it belongs to.
    assert str(inputs[1]) in (tmp_path / "adapter" / "adapter_config.json").read_text()


def test_dtype_of_what_is_written(inputs, lora, tmp_path):
    """Catches an option that is parsed and not used, and modules trained in float32 that stay so."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert export(lora, tmp_path / name, "--merge-lora", "--dtype", name) is None
        assert {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}


# Stage 1: nothing of the encoder and the language model trains.
FROZEN = ["--bf16", "false", "--lora_r", 0, "--freeze_text", "true"]


@pytest.fixture(scope="module")
def frozen(inputs, tmp_path_factory):
    return checkpoint_of(inputs, tmp_path_factory.mktemp("frozen"), *FROZEN)


def test_a_checkpoint_without_lora_holds_what_trains(inputs, frozen, tmp_path):
    """Catches 22.5 GB of frozen weights in every checkpoint of stage 1, and an export that forgets what they were."""
    checkpoint = frozen
    trained = load_file(checkpoint / "trained.safetensors")
    assert {name.split(".")[1] for name in trained} == {"projector", "geometry_encoder"}
    assert not list(checkpoint.glob("model*"))
    whole = sum(path.stat().st_size for path in Path(inputs[1]).glob("*.safetensors"))
    # The weights and AdamW's two moments of them, in float32.
    weights = 4 * sum(tensor.numel() for tensor in trained.values())
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert sizes["trained.safetensors"] < 1.2 * weights and sizes["optimizer.pt"] < 2.4 * weights < whole
    assert "no LoRA to merge" in export(checkpoint, tmp_path / "model", "--merge-lora")
    assert export(checkpoint, tmp_path / "model") is None
    weights, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", checkpoint.parent))
    assert weights.keys() == final.keys()
    assert all(torch.equal(tensor, final[name]) for name, tensor in weights.items())
    assert all(torch.equal(tensor, final[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_a_checkpoint_is_not_combined_with_another_base(kind, inputs, tmp_path, request):
    """Catches an adapter or a projector put into a model that was trained, or converted, anew under the same name."""
    checkpoint = request.getfixturevalue(kind)
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent, run)
    base = Path(inputs[1])
    kept = shutil.copytree(base, tmp_path / "kept")
    arguments = [*inputs, "--output_dir", run, *(FROZEN if kind == "frozen" else LORA)]
    try:
        write_toy_checkpoint(base, seed=1)
        for message in (export(run / checkpoint.name, tmp_path / "model"), run_stage2(*arguments)):
            assert f"trained on {base} (weights " in message and f"{base} has other weights (" in message
    finally:
        shutil.rmtree(base)
        shutil.copytree(kept, base)
    assert not (tmp_path / "model").exists()
    assert export(run / checkpoint.name, tmp_path / "model") is None


def test_the_best_and_the_last_checkpoint_without_lora(inputs, frozen, tmp_path, monkeypatch):
    """Catches a best model that is not loaded at the end, since no file has its usual name, and a resume that loses weights."""

    def evaluate(trainer, *arguments, **kwargs):
        metrics = {"eval_exact_match": {1: 0.5, 2: 0.25}[trainer.state.global_step]}
        trainer.log(metrics)
        return metrics

    monkeypatch.setattr(VggtQwen3Trainer, "evaluate", evaluate)
    best = [
        *FROZEN,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--load_best_model_at_end",
        "true",
    ]
    output = checkpoint_of(inputs, tmp_path / "best", *best).parent
    final = load_file(output / "model.safetensors")
    trained = [load_file(output / f"checkpoint-{step}" / "trained.safetensors") for step in (1, 2)]
    assert all(torch.equal(final[name], tensor) for name, tensor in trained[0].items())
    assert not all(torch.equal(final[name], tensor) for name, tensor in trained[1].items())
    # Resumed after the first step, the second is the same.
    shutil.rmtree(output / "checkpoint-2")
    (output / "model.safetensors").unlink()
    assert run_stage2(*inputs, "--output_dir", output, *best) is None
    again = load_file(output / "checkpoint-2" / "trained.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in trained[1].items())
    # Other parameters train: refused.
    (output / "run_config.yaml").unlink()
    arguments = [*best, "--freeze_text", "false", "--resume_from_checkpoint", output / "checkpoint-1"]
    message = run_stage2(*inputs, "--output_dir", tmp_path / "other", *arguments)
    assert "and this run train different parameters: " in message and "up_proj.weight None there, (" in message


def test_bad_input_leaves_nothing_behind(lora, tmp_path):
    """Catches half a model that looks like one."""
    damaged = tmp_path / "damaged" / "checkpoint-2"
    shutil.copytree(lora, damaged)
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "adapter_model.safetensors has" in export(damaged, tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists" in export(lora, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "full"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("lora_r", [0, 16])
def test_zero_checkpoints_come_back_whole(stage, lora_r, inputs, tmp_path):
    """Catches weights of 16 bits exported in place of the optimizer's float32, and parts of processes in the wrong order."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", 0, "--num_processes", 2]
    command += ["--config_file", ROOT / "recipes" / "accelerate_configs" / f"{stage}.yaml", ROOT / "recipes/stage2.py"]
    command += [*inputs, "--output_dir", tmp_path / "run", "--lora_r", lora_r, "--bf16", "true", *RATE]
    command += ["--global_batch_size", 2]
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    merge = ["--merge-lora"] if lora_r else []
    # What is frozen is in none of its files, under no name: with LoRA a tied lm_head is an embedding that is frozen.
    checkpoint = tmp_path / "run" / "checkpoint-2"
    zero = ZeroCheckpoint(checkpoint)
    assert not list(checkpoint.glob("model*.safetensors"))
    assert set(zero.model["module"]) - set(zero.places) <= (set() if lora_r else {"lm_head.weight"})
    assert not zero.model.get("frozen_param_fragments")
    assert export(tmp_path / "run" / "checkpoint-2", tmp_path / "exported", *merge, "--dtype", "float32") is None
    # Loaded, because the weights that DeepSpeed consolidates carry other names in the file.
    folders = (tmp_path / "exported", tmp_path / "run", inputs[1])
    exported, final, start = (load_model(str(folder), "sdpa").state_dict() for folder in folders)
    assert exported.keys() == final.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], exported[name])}
    assert any(".projector." in name for name in moved) and any("layers.1.self_attn" in name for name in moved)
    assert not any(".vision_model." in name or "layers.0." in name for name in moved)
    for name, tensor in exported.items():
        # The run's own final weights have gone through bfloat16.
        torch.testing.assert_close(tensor, final[name].float(), atol=2e-2, rtol=2e-2, msg=name)
    assert any(not torch.equal(exported[name], exported[name].bfloat16().float()) for name in moved)
