# SPDX-License-Identifier: Apache-2.0
"""Parameters, operations, steps and memory that `recipes.launch --dry-run` states."""

import resource
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from toys import toy_config, toy_model, toy_processor, write_toy_checkpoint, write_toy_repo

from recipes.launching import preflight
from recipes.launching.estimate import (
    checkpoint_bytes,
    count_steps,
    describe_run,
    plain_memory,
    step_flops,
    zero_memory,
)
from recipes.launching.settings import BatchPlan, model_arguments, plan_batch, read_settings
from recipes.launching.shapes import RELEASED, Parameters, build_on_meta, count_parameters, read_shapes
from recipes.training.data import PackDataset, PackSampler, SceneDataset
from recipes.training.trainer import freeze_and_adapt


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    return [
        write_toy_repo(folder / "toy_scanqa_dry", {"train": 5, "val": 2}),
        write_toy_repo(folder / "toy_sqa3d_dry", {"train": 3, "val": 2}, task="sqa3d"),
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def settings_of(checkpoint, repos, *argv, stage="stage2"):
    argv = ["--model_name_or_path", checkpoint, "--dataset_paths", *repos, *argv]
    return read_settings(stage, list(map(str, argv)))


def toy_settings(checkpoint, repos, *argv):
    fitting = ["--image_size", 28, "--freeze_text_layers", 0, "--num_views", 3]
    return settings_of(checkpoint, repos, *fitting, *argv)


def linear(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs


def vit_block(size, mlp, head_dim=0):
    """Two layer norms, attention with fused or separate q, k and v, its norms per head, two LayerScales, an MLP."""
    attention = linear(size, 3 * size) + linear(size, size) + 4 * head_dim
    return 4 * size + attention + 2 * size + linear(size, mlp * size) + linear(mlp * size, size)


def expected_counts(config) -> dict[str, int]:
    """By hand from the numbers of a config with a perceiver: what each part has."""
    vision, text = config.vision_config, config.text_config
    c, patch = vision.hidden_size, vision.patch_size
    positions = (vision.image_size // patch) ** 2 + 1
    backbone = linear(3 * patch**2, c) + positions * c + (1 + 1 + vision.num_register_tokens) * c + 2 * c
    backbone += vision.backbone_num_hidden_layers * vit_block(c, vision.mlp_ratio)
    blocks = 2 * (1 + vision.num_register_tokens) * c
    blocks += 2 * vision.num_hidden_layers * vit_block(c, vision.mlp_ratio, c // vision.num_attention_heads)

    h, q = text.hidden_size, text.num_attention_heads * text.head_dim
    kv = text.num_key_value_heads * text.head_dim
    layer = h * q + 2 * h * kv + q * h + 2 * text.head_dim + 3 * h * text.intermediate_size + 2 * h

    d, features = config.projector_hidden_size, 2 * c * len(config.vision_feature_layers)
    attention = 4 * linear(d, d)
    mlp = linear(d, config.projector_mlp_ratio * d) + linear(config.projector_mlp_ratio * d, d)
    projector = 2 * features + linear(features, d) + config.projector_num_latents * d
    projector += config.projector_num_hidden_layers * (2 * attention + mlp + 4 * 2 * d) + 2 * d + linear(d, h)
    g = config.geometry_hidden_size
    return {
        "vision_model: backbone": backbone,
        "vision_model: alternating blocks": blocks,
        "language_model: embeddings": text.vocab_size * h,
        "language_model: layers": text.num_hidden_layers * layer + h,
        "projector": projector,
        "geometry_encoder": linear(12 + 4 + config.geometry_num_depth_bins, g) + linear(g, h) + h,
    }


def test_full_size_counts_equal_the_sums_from_the_config():
    """Catches shapes that are not those of the released models, and parameters that are counted twice or not at all."""
    settings = read_settings("stage2", [])
    config, origin = read_shapes("not/here")
    assert "released" in origin
    parts = count_parameters(build_on_meta(config, settings))
    for name, expected in expected_counts(config).items():
        assert parts[name].trainable + parts[name].frozen == expected, name
    # The published figures of VGGT's aggregator and of Qwen3-4B.
    vision = ("vision_model: backbone", "vision_model: alternating blocks")
    assert sum(parts[name].frozen for name in vision) == 909_112_320
    assert sum(part.frozen for name, part in parts.items() if name.startswith("language_model")) == 4_022_468_096
    text = config.text_config
    widths = {
        "q_proj": text.num_attention_heads,
        "k_proj": text.num_key_value_heads,
        "v_proj": text.num_key_value_heads,
    }
    lora = sum(settings.lora_r * (text.hidden_size + heads * text.head_dim) for heads in widths.values())
    lora += settings.lora_r * (text.hidden_size + text.num_attention_heads * text.head_dim)
    assert parts["language_model: LoRA"].trainable == 32 * lora
    trainable = {name for name, part in parts.items() if part.trainable}
    assert trainable == {"projector", "geometry_encoder", "language_model: LoRA"}


@pytest.mark.parametrize("freeze_vision", ["true", "false"])
@pytest.mark.parametrize("lora_r", [0, 2])
def test_counts_equal_those_of_the_real_module(checkpoint, repos, freeze_vision, lora_r):
    """Catches a table that is about another model than the one that trains."""
    settings = toy_settings(checkpoint, repos, "--freeze_vision", freeze_vision, "--lora_r", lora_r)
    config, origin = read_shapes(str(checkpoint))
    assert origin == str(checkpoint / "config.json")
    total = sum(count_parameters(build_on_meta(config, settings)).values(), Parameters())
    real = freeze_and_adapt(toy_model(), model_arguments(settings))
    counts = [0, 0]
    for parameter in real.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert [total.frozen + total.copies, total.trainable] == counts


def test_operations_are_those_of_the_parameters(checkpoint, repos):
    """Catches forward passes that are left out: two operations per weight and token, more for attention."""
    settings = settings_of(checkpoint, repos, "--view_dropout", 0)
    config, _ = read_shapes("not/here")
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = ["full_attention"] * 6
    config.vision_config.num_hidden_layers = config.vision_config.backbone_num_hidden_layers = 2
    run = describe_run(config, settings)
    layers = run.parts["language_model: layers"].frozen + run.parts["language_model: LoRA"].trainable
    forward = run.work.forward["language_model"]
    assert 1.0 < forward / (2 * layers * run.row.length) < 1.2
    # Backward: through frozen weights once, through attention twice.
    assert 1.0 < run.work.backward["language_model"] / forward < 1.2
    assert run.work.backward["vision_model"] == 0 < run.work.forward["vision_model"]
    plan = BatchPlan(8, 1, 4)
    total, parts = step_flops(run, plan)
    assert parts["recomputed by checkpointing"] == pytest.approx(32 * forward)
    assert total == pytest.approx(sum(parts.values()))
    settings.activation_checkpointing = False
    assert step_flops(run, plan)[0] == pytest.approx(total - 32 * forward)
    # Without checkpointing every layer keeps its activations.
    assert run.largest_work.kept_checkpointed < 0.7 * run.largest_work.kept


def test_steps_are_those_of_the_sampler(checkpoint, repos):
    """Catches sequences, accumulation or padding of the last batch that are counted otherwise than the run does."""
    settings = toy_settings(checkpoint, repos, "--questions_per_scene", 3, "--num_train_epochs", 2)
    run = describe_run(toy_config(), settings)
    assert [size.questions for size in run.sizes] == [20, 12] and [size.packs for size in run.sizes] == [10, 6]
    dataset = PackDataset([SceneDataset(str(path), "train") for path in repos], questions_per_scene=3)
    for plan in (BatchPlan(1, 2, 1), BatchPlan(2, 3, 2), BatchPlan(1, 5, 3)):
        sampler = PackSampler(dataset, None, 0, plan.micro_batch * plan.num_processes)
        batches = len(sampler) // (plan.micro_batch * plan.num_processes)
        per_epoch = -(-batches // plan.accumulation)
        assert count_steps(run, plan) == (2 * per_epoch, per_epoch)
    settings.max_steps = 7
    assert count_steps(run, plan)[0] == 7


def test_rows_have_the_length_that_the_collator_makes(checkpoint, repos):
    """Catches visual tokens or views that are counted otherwise than the processor makes them."""
    from recipes.training.collator import PackCollator

    settings = toy_settings(checkpoint, repos[:1], "--questions_per_scene", 4, "--dataset_weights", 1)
    run = describe_run(toy_config(), settings)
    source = SceneDataset(str(repos[0]), "train")
    dataset = PackDataset([source], questions_per_scene=4)
    batch = PackCollator(toy_processor(toy_config()))([dataset[next(iter(PackSampler(dataset)))]])
    visual = (batch["input_ids"] == toy_config().image_token_id).sum() + batch["pixel_values"].shape[1]
    assert run.largest_row.visual_tokens == visual
    assert run.largest_row.length == pytest.approx(batch["input_ids"].shape[1], abs=6)


def test_memory_shrinks_with_processes_and_offload(checkpoint, repos):
    """Catches states that are not shared among processes, and offload that leaves them on the GPU."""
    run = describe_run(toy_config(), toy_settings(checkpoint, repos))
    one, eight = BatchPlan(1, 1, 8), BatchPlan(8, 1, 1)
    assert zero_memory(run, eight, 2, False).optimizer == zero_memory(run, one, 2, False).optimizer / 8
    assert zero_memory(run, eight, 2, False).weights == 2 * run.num_parameters
    offloaded = zero_memory(run, eight, 3, True)
    assert offloaded.optimizer == 0 and offloaded.host > 12 * run.total.trainable / 8
    assert (
        zero_memory(run, BatchPlan(1, 4, 1), 2, False).activations == 4 * zero_memory(run, one, 2, False).activations
    )
    assert plain_memory(run, one).weights == run.weight_bytes == 4 * run.num_parameters
    assert checkpoint_bytes(run, True)[0] > checkpoint_bytes(run, False)[0] > 8 * run.total.trainable


def test_a_global_batch_that_cannot_be_shared_is_refused():
    settings = read_settings("stage2", [])
    assert [plan_batch(settings, number, 4).argv()[1::2] for number in (1, 8, 32)] == [
        ["4", "8"],
        ["4", "1"],
        ["1", "1"],
    ]
    assert all(plan_batch(settings, number, 4).global_batch == 32 for number in (1, 2, 4, 8, 16, 32))
    with pytest.raises(ValueError, match="32 sequences cannot be shared by 3 processes. Take 1, 2, 4, 8, 16, 32"):
        plan_batch(settings, 3, 4)


def test_data_that_is_not_here_is_said_to_be_missing(checkpoint):
    """Catches made-up figures: official counts where there are any, and none where there are not."""
    arguments = Namespace(stage="stage2", mode="full", safe=False, num_processes=8, num_machines=1, gpu="H100")
    arguments.utilisation = 0.5
    argv = ["--dataset_paths", "nowhere/scanqa", "nowhere/mine", "--dataset_weights", "0.5", "0.5"]
    argv += ["--model_name_or_path", str(checkpoint), "--image_size", "28", "--freeze_text_layers", "0"]
    text = preflight.dry_run(arguments, argv)
    assert "25,563" in text and "official counts" in text
    assert "nowhere/mine: not on this machine, and there are no official counts for it" in text
    assert "Steps: not known" in text and "8 × H100 at 50% of 989 TFLOP/s" in text


@pytest.mark.slow
def test_full_size_in_a_minute_and_four_gigabytes():
    """The promise of the dry run: on a laptop, with neither GPU nor network."""
    started = time.monotonic()
    command = [sys.executable, "-m", "recipes.launch", "stage2", "--dry-run", "--num_processes", "8"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4e6  # kilobytes
    assert "ZeRO-3" in result.stdout and "hours in all" in result.stdout
    assert RELEASED.is_file()
