# SPDX-License-Identifier: Apache-2.0
"""Parameters, operations, steps and memory that `recipes.launch --dry-run` states."""

import resource
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from toys import toy_config, toy_model, toy_processor, write_toy_checkpoint, write_toy_repo

from recipes.common.scenes import SceneDataset
from recipes.launching import preflight
from recipes.launching.data_size import measure
from recipes.launching.estimate import (
    checkpoint_bytes,
    count_steps,
    describe_run,
    plain_memory,
    step_flops,
    zero_memory,
)
from recipes.launching.meta_ops import Kernel, Recorder, as_on_a_gpu
from recipes.launching.roofline import (
    BANDWIDTH_SHARE,
    GPUS,
    HOST_SECONDS,
    KERNEL_SECONDS,
    MATRIX_SHARE,
    kernel_seconds,
    step_time,
)
from recipes.launching.settings import BatchPlan, model_arguments, plan_batch, read_settings
from recipes.launching.shapes import RELEASED, Parameters, build_on_meta, count_parameters, read_shapes
from recipes.launching.work import Row, measure_work
from recipes.training.collator import PackCollator
from recipes.training.packing import PackDataset, PackSampler
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


def shallow(config):
    """The released shapes with six decoder layers and an encoder of two."""
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = ["full_attention"] * 6
    config.vision_config.num_hidden_layers = config.vision_config.backbone_num_hidden_layers = 2
    config.vision_feature_layers = [0, 1]
    config.vision_config.depth_head_layers = [0, 0, 1, 1]
    return config


def test_operations_are_those_of_the_parameters(checkpoint, repos):
    """Catches forward passes that are left out: two operations per weight and token, more for attention."""
    settings = settings_of(checkpoint, repos, "--view_dropout", 0)
    config, _ = read_shapes("not/here")
    run = describe_run(shallow(config), settings)
    layers = run.parts["language_model: layers"].frozen + run.parts["language_model: LoRA"].trainable
    forward, backward, recomputed = (
        run.work.flops(phase)["language_model"] for phase in ("forward", "backward", "recomputed")
    )
    assert 1.0 < forward / (2 * layers * run.row.length) < 1.2
    # Backward: through frozen weights once, through attention twice. The end of a layer is not run again.
    assert 1.0 < backward / forward < 1.2
    # The layers that LoRA adapts are checkpointed, but for their last matrix product.
    assert 0.2 < recomputed / forward < 0.9
    vision = run.parts["vision_model: alternating blocks"].frozen + run.parts["vision_model: backbone"].frozen
    assert run.work.flops("forward")["vision_model and projector"] > 2 * vision * run.row.patch_tokens * 0.9
    plan = BatchPlan(8, 1, 4, activation_checkpointing=True)
    total, parts = step_flops(run, plan)
    assert parts["recomputed by checkpointing"] >= 32 * recomputed * 0.999
    assert total == pytest.approx(sum(parts.values()))
    without = step_flops(run, BatchPlan(8, 1, 4))[0]
    assert without == pytest.approx(total - parts["recomputed by checkpointing"])
    assert run.step_time(plan, GPUS["H100"]).flops == pytest.approx(total / 8)
    # Without checkpointing every adapted layer keeps its activations.
    assert run.peaks[True] < 0.7 * run.peaks[False]


################
# Memory and time of kernels
################


def test_memory_of_a_row_is_what_is_live_at_a_time():
    """Catches tensors that count after they are freed, weights and gradients of weights that count as rows."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)).to("meta")
    recorder = Recorder(1009)
    with torch.device("meta"), recorder:
        inputs = torch.empty(1009, 8)
        with torch.no_grad():
            for _ in range(5):
                layers(inputs)  # nothing is kept: inputs, one hidden layer before and after GELU
        assert recorder.peak == 4 * (8 + 32 + 32)
        output = layers(inputs)
        recorder.is_backward = True
        output.sum().backward()
    # Kept: inputs, both hidden layers and the output; then the gradients of output and hidden layer come.
    assert recorder.peak == 4 * (8 + 32 + 32 + 8 + 32)
    products = [kernel for kernel in recorder.kernels if kernel.kind == "matrix products"]
    forward = [kernel for kernel in products if kernel.phase == "forward"]
    assert [kernel.flops for kernel in forward] == [2 * 8 * 32] * 12
    assert forward[0].other_bytes == 4 * (8 * 32 + 32) and forward[0].row_bytes == 4 * (8 + 32)
    assert forward[0].tiles(100) == 1 and forward[0].tiles(300) == 3
    assert [kernel.flops for kernel in products if kernel.phase == "backward"] == [2 * 8 * 32] * 3


def test_what_is_kept_equals_what_the_model_keeps(checkpoint, repos):
    """Catches activations that are estimated otherwise than the real modules keep them, in float32 on the CPU."""
    settings = toy_settings(checkpoint, repos, "--bf16", "false", "--lora_r", 0)
    model = build_on_meta(toy_config(), settings)
    row = Row(3, 28, 28, 3 * 1 + 3, 3 * 4, 40, 10, 0)
    measured = measure_work(model, toy_config(), settings, row, False).peak
    real, kept = freeze_and_adapt(toy_model(), model_arguments(settings)).train(), {}
    weights = {parameter.untyped_storage()._cdata for parameter in real.parameters()}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    config = real.config
    ids = torch.full((1, row.length), 5)
    ids[0, :3], ids[0, 3:6] = config.geometry_token_id, config.image_token_id
    labels = torch.where(torch.arange(row.length) > row.length - 1 - row.labels, ids, -100)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real(
            input_ids=ids,
            pixel_values=torch.rand(1, 3, 3, 28, 28),
            segment_ids=torch.zeros_like(ids),
            position_ids=torch.arange(row.length)[None],
            labels=labels,
        )
    total = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    assert 0.9 < measured / total < 1.6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_weights_are_kept_by_eager_attention_only(checkpoint, repos, attention):
    """Catches the square of a long sequence's length in the memory of kernels that do not keep it, and the reverse."""
    settings = toy_settings(checkpoint, repos, "--attn_implementation", attention, "--lora_r", 0)
    model = build_on_meta(toy_config(), settings)
    short, long = (Row(0, 28, 28, 0, 0, length, 8, 0) for length in (512, 1024))
    peaks = [measure_work(model, toy_config(), settings, row, False).peak for row in (short, long)]
    # A mask is of the square too: of bits in both, and of PyTorch's own with fused attention, for all heads together.
    squares = peaks[1] - 2 * peaks[0]
    heads = toy_config().text_config.num_attention_heads
    one = 2 * 2 * (1024**2 - 2 * 512**2)  # of two layers in bfloat16
    assert (squares > heads * one) == (attention == "eager")


def test_checkpointing_is_run_and_not_assumed(checkpoint, repos, monkeypatch):
    """Catches an estimate that says checkpointing works where the model, as in stage 1 once, does not checkpoint."""
    settings = toy_settings(checkpoint, repos, "--lora_r", 0)
    config = toy_config()
    config.text_config.num_hidden_layers, config.text_config.layer_types = 6, ["full_attention"] * 6
    model = build_on_meta(config, settings)
    row = Row(0, 28, 28, 0, 0, 200, 8, 0)
    peaks = [measure_work(model, config, settings, row, on).peak for on in (False, True)]
    assert peaks[1] < 0.7 * peaks[0]
    for layer in model.model.language_model.layers:
        layer.eval()  # which is how a layer is told not to
    off, on = (measure_work(model, config, settings, row, way) for way in (False, True))
    assert on.peak == off.peak and not on.flops("recomputed")


def test_a_loss_in_chunks_takes_the_memory_of_one(checkpoint, repos):
    """Catches logits of a whole micro-batch where the loss is made in chunks, and none where it is not."""
    settings = toy_settings(checkpoint, repos)
    settings.loss_chunk_size = None
    run = describe_run(toy_config(), settings)
    settings.loss_chunk_size = 16
    chunked = describe_run(toy_config(), settings)
    one, eight = BatchPlan(1, 1, 8), BatchPlan(1, 8, 1)
    logits = run.largest_row.labels * toy_config().text_config.vocab_size
    assert run.activations(eight) - chunked.activations(eight) > 8 * 6 * logits - 16 * 8 * logits
    assert chunked.activations(eight) - chunked.activations(one) < 8 * (run.activations(one) - 6 * logits)
    assert run.work.flops("forward") == chunked.work.flops("forward")


def test_autocast_is_that_of_a_gpu():
    """Catches norms that are counted in bfloat16, and products in float32."""
    norm, linear = torch.nn.LayerNorm(8).to("meta"), torch.nn.Linear(8, 8).to("meta")
    inputs = torch.empty(2, 8, device="meta", dtype=torch.bfloat16)
    with as_on_a_gpu(torch.bfloat16):
        assert norm(inputs).dtype == torch.float32 and linear(norm(inputs)).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("meta") and torch.get_autocast_dtype("meta") == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
        with torch.autocast("meta", enabled=False):
            assert linear(norm(inputs.float())).dtype == torch.float32
    with as_on_a_gpu(None):
        assert linear(inputs.float()).dtype == torch.float32


def test_a_kernel_takes_what_bounds_it():
    """Catches a utilisation that does not fall where kernels are short, small or bounded by memory or the host."""
    card = GPUS["H100"]
    tile = 128 * 128 * 2 * 4096
    full = Kernel("x", "matrix products", "forward", 132 * tile, 0, 0, ((132 * 128, True), (128, False)))
    seconds = kernel_seconds(full, 1, card)
    assert seconds == pytest.approx(132 * tile / (MATRIX_SHARE * card.peak))
    # One tile more is a second wave.
    more = Kernel("x", "matrix products", "forward", 133 * tile, 0, 0, ((133 * 128, True), (128, False)))
    assert kernel_seconds(more, 1, card) == pytest.approx(2 * seconds)
    moves = Kernel("x", "other", "backward", 0, 1e9, 5e8)
    assert kernel_seconds(moves, 2, card) == pytest.approx(2.5e9 / (BANDWIDTH_SHARE * card.bandwidth))
    short = Kernel("x", "other", "recomputed", 0, 8, 0)
    assert kernel_seconds(short, 1, card) == KERNEL_SECONDS
    # Many short kernels wait for the host, unless a row more fills them; what is not recomputed is left out.
    kernels = [short] * 1000 + [full]
    assert step_time(kernels, 1, 1, True, 0, card).seconds == pytest.approx(1001 * HOST_SECONDS["forward"])
    assert step_time(kernels, 1, 1, False, 0, card).kernels == 1
    halves = [step_time([full, short], rows, 8 // rows, True, 0, card) for rows in (1, 2)]
    assert halves[0].flops == halves[1].flops and halves[0].host == 2 * halves[1].host


WAYS = {
    "stage 3": ("--numbers_from", "head", "--anchor_hidden_size", 32),
    "predicted": ("--geometry_source", "predicted"),
    "no cameras": ("--geometry_source", "none"),
    "encoder trains": ("--freeze_vision", "false"),
    "no LoRA": ("--lora_r", 0),
    "store": ("--feature_store", "somewhere", "--view_dropout", 0),
    "predicted and stored": ("--feature_store", "somewhere", "--view_dropout", 0, "--geometry_source", "predicted"),
    "blind": ("--blind", "true"),
    "float32": ("--bf16", "false"),
    "float16": ("--bf16", "false", "--fp16", "true"),
    "eager": ("--attn_implementation", "eager"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_can_be_measured(way, checkpoint, repos):
    """Catches settings that the dry run breaks on, or whose modules it leaves out."""
    config = toy_config("perceiver", heads=True)
    config.dtype = torch.bfloat16 if way != "float16" else torch.float32
    run = describe_run(config, toy_settings(checkpoint, repos, *WAYS[way]))
    forward, backward = run.work.flops("forward"), run.work.flops("backward")
    assert ("vision_model and projector" in forward) == (way != "blind")
    assert ("anchor_head" in forward) == ("anchor_head" in backward) == (way == "stage 3")
    assert min(forward.values()) > 0 and 0 < run.peaks[True] <= run.peaks[False]
    # Each kernel is run once for all rows.
    assert 0 < run.step_time(BatchPlan(1, 1, 1), GPUS["A100"]).kernels < 3000


def test_parts_take_what_they_take(checkpoint, repos):
    """Catches heads, an encoder's backward pass and float32 numbers that are not counted."""
    ways = ("no LoRA", "predicted", "encoder trains", "store", "float32")
    runs = {
        way: describe_run(toy_config(heads=True, dtype=torch.bfloat16), toy_settings(checkpoint, repos, *WAYS[way]))
        for way in ways
    }
    name = "vision_model and projector"
    plain = runs["no LoRA"].work
    assert runs["predicted"].work.flops("forward")[name] > 1.1 * plain.flops("forward")[name]
    assert runs["store"].work.flops("forward")[name] < 0.5 * plain.flops("forward")[name]
    assert runs["encoder trains"].work.flops("backward")[name] > 2 * plain.flops("backward")[name]
    assert runs["encoder trains"].peaks[False] > runs["no LoRA"].peaks[False]
    assert runs["float32"].peaks[False] > 1.2 * runs["no LoRA"].peaks[False]


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
    settings = toy_settings(checkpoint, repos[:1], "--questions_per_scene", 4, "--dataset_weights", 1)
    run = describe_run(toy_config(), settings)
    source = SceneDataset(str(repos[0]), "train")
    dataset = PackDataset([source], questions_per_scene=4)
    batch = PackCollator(toy_processor(toy_config()))([dataset[next(iter(PackSampler(dataset)))]])
    visual = (batch["input_ids"] == toy_config().image_token_id).sum() + batch["pixel_values"].shape[1]
    assert run.largest_row.visual_tokens == visual
    assert run.largest_row.length == pytest.approx(batch["input_ids"].shape[1], abs=6)


def test_answers_are_counted(checkpoint, tmp_path):
    """Catches the three tokens that once stood for every answer: of LLaVA's and of actions it is 90."""
    repo = write_toy_repo(tmp_path / "toy_arkit_actions_dry", {"train": 3}, task="arkit_actions")
    settings = toy_settings(checkpoint, [repo], "--questions_per_scene", 4, "--dataset_weights", 1)
    size = measure(str(repo), settings)
    dataset = PackDataset([SceneDataset(str(repo), "train")], questions_per_scene=4)
    collator = PackCollator(toy_processor(toy_config()))
    labels = [(collator([dataset[pack]])["labels"] != -100).sum().item() for pack in PackSampler(dataset)]
    assert size.labels[0] > 50 and sum(labels) == pytest.approx(12 * size.labels[0])
    run = describe_run(toy_config(), settings)
    assert run.row.labels == pytest.approx(sum(labels) / 3, abs=1) and run.largest_row.labels >= max(labels)
    assert (
        describe_run(
            toy_config(), toy_settings(checkpoint, ["data/instruct"], "--dataset_weights", 1)
        ).largest_row.labels
        > 90
    )
    # Their logits are a vocabulary wide.
    logits = [kernel.row_bytes for kernel in run.work.kernels if kernel.part == "lm_head and loss"]
    assert max(logits) > 4 * run.row.labels * toy_config().text_config.vocab_size


def test_memory_shrinks_with_processes_and_offload(checkpoint, repos):
    """Catches states that are not shared among processes, and offload that leaves them on the GPU."""
    run = describe_run(toy_config(), toy_settings(checkpoint, repos))
    one, eight = BatchPlan(1, 1, 8), BatchPlan(8, 1, 1)
    trainable, frozen = run.total.trainable, run.frozen_bytes
    assert zero_memory(run, eight, 2, False).optimizer == zero_memory(run, one, 2, False).optimizer / 8
    # Beside float32 weights autocast's copies; the heads are float32 in any case.
    assert zero_memory(run, eight, 2, False).weights == frozen + 6 * trainable
    assert zero_memory(run, eight, 2, False).gradients == 4 * trainable / 8 + 4 * run.bucket
    assert zero_memory(run, eight, 3, False).weights == 2 * run.num_parameters * (1 + 1 / 8)
    offloaded = zero_memory(run, eight, 3, True)
    assert offloaded.optimizer == 0 and offloaded.host > 12 * run.total.trainable / 8
    assert (
        zero_memory(run, BatchPlan(1, 4, 1), 2, False).activations == 4 * zero_memory(run, one, 2, False).activations
    )
    assert plain_memory(run, one).weights == frozen + 6 * trainable
    assert (plain_memory(run, one).gradients, plain_memory(run, eight).gradients) == (4 * trainable, 8 * trainable)
    assert plain_memory(run, one).optimizer == 8 * trainable
    assert checkpoint_bytes(run, True)[0] > checkpoint_bytes(run, False)[0] > 8 * run.total.trainable
    assert run.bucket == trainable + trainable % 2


def test_a_global_batch_that_cannot_be_shared_is_refused():
    settings = read_settings("stage2", [])
    assert [plan_batch(settings, number, 4, False).argv()[1::2] for number in (1, 8, 32)] == [
        ["4", "8", "false"],
        ["4", "1", "false"],
        ["1", "1", "false"],
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
    assert "Steps: unknown" in text and "50% as given is reckoned with" in text
    # Of data whose kind is known lengths are assumed, and said; of others nothing is.
    text = preflight.dry_run(arguments, [*argv, "--dataset_paths", "nowhere/instruct", "--dataset_weights", "1"])
    assert "90 of an answer assumed" in text and "Steps: unknown" in text and "unknown" not in fits(text)
    text = preflight.dry_run(arguments, [*argv, "--dataset_paths", "nowhere/mine", "--dataset_weights", "1"])
    assert fits(text).split() == ["unknown"] * 5 and "Operations and hours: unknown" in text


def fits(text: str) -> str:
    """The last column of the memory table."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("GB per GPU"))
    return " ".join(line.split()[-1] for line in lines[start + 2 : start + 7])


def test_utilisation_is_derived_from_the_kernels(checkpoint, repos):
    """Catches the 40 % that once were assumed for every model, micro-batch and GPU."""
    arguments = Namespace(stage="stage2", mode="full", safe=False, num_processes=8, num_machines=1, gpu="H100")
    arguments.utilisation = None
    argv = ["--dataset_paths", *map(str, repos), "--model_name_or_path", str(checkpoint), "--image_size", "28"]
    argv += ["--freeze_text_layers", "0", "--global_batch_size", "2048"]
    few, many = (preflight.dry_run(arguments, [*argv, "--per_device_train_batch_size", size]) for size in ("1", "8"))
    seconds = [float(text.split(" seconds per step")[0].rpartition(" ")[2]) for text in (few, many)]
    # A toy's kernels are short: the host is what takes time, and eight micro-batches take eight times as long.
    assert seconds[0] == pytest.approx(8 * seconds[1], rel=0.1)
    assert "Utilisation: 0% of the peak, bounded by the host" in few and "micro-batch 8 × accumulation 32" in many


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
