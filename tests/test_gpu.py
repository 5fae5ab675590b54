# SPDX-License-Identifier: Apache-2.0
"""
What only a GPU can show, on one: kernels, autocast, host synchronisations, ZeRO on NCCL, compiled layers, the store.

`make test-gpu` runs the tests marked `gpu`. Each has the same body on the CPU, with float32 or another backend where the
CPU lacks something: `make test` runs that one where there is no GPU, so that the body itself is known to work.
"""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_shared_prefix import QUESTIONS, exact_model, make_scenes
from test_store import fill
from toys import toy_config, toy_geometry, toy_processor, toy_views, write_toy_checkpoint, write_toy_repo
from transformers import set_seed

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from recipes.common.generation import generate_answers
from recipes.common.loading import open_store
from recipes.common.scenes import SceneDataset
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.sft import make_trainer


ROOT = Path(__file__).parent.parent
HAS_GPU = torch.cuda.is_available()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="torch sees no NVIDIA GPU")]
ON_CPU = [pytest.mark.skipif(HAS_GPU, reason="the GPU runs the same test")]
DEVICES = pytest.mark.parametrize("device", [pytest.param("cpu", marks=ON_CPU), pytest.param("cuda", marks=ON_GPU)])


def on(device, batch):
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def wide_model(**kwargs):
    """A toy model whose heads have 16 dimensions, the fewest that flex_attention's kernels take."""
    torch.manual_seed(0)
    config = toy_config("perceiver", **kwargs)
    config.text_config.head_dim = 16
    return VggtQwen3ForConditionalGeneration(config), toy_processor(config)


def packed_batch(model, processor):
    scenes = [
        {
            "images": toy_views(views, views),
            "geometry": toy_geometry(views, views),
            "questions": [(question, "next to the bed") for question in QUESTIONS[:count]],
        }
        for views, count in ((3, 4), (3, 2))
    ]
    return PackCollator(processor)(scenes)


def loss_and_gradients(model, batch, device):
    """In bfloat16 autocast on a GPU, in float32 on the CPU; the gradients of what trains, end to end."""
    model.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = model(**batch, num_items_in_batch=torch.tensor(12, device=device)).loss
    loss.backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def assert_same(result, expected, tolerance):
    (loss, gradients), (expected_loss, expected_gradients) = result, expected
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert gradients.keys() == expected_gradients.keys() and gradients
    flat, expected_flat = (torch.cat([g.flatten() for g in some.values()]) for some in (gradients, expected_gradients))
    assert (flat - expected_flat).norm() <= 10 * tolerance * expected_flat.norm()


@pytest.mark.parametrize(
    ("device", "implementation"),
    [
        pytest.param("cpu", "sdpa", marks=ON_CPU),
        pytest.param("cuda", "sdpa", marks=ON_GPU),
        pytest.param("cuda", "flex_attention", marks=ON_GPU),
    ],
)
def test_packed_rows_are_those_of_eager_attention(device, implementation):
    """Catches a kernel that drops the mask of packing: questions of a scene would see each other's answers."""
    model, processor = wide_model()
    model.to(device).train()
    batch = on(device, packed_batch(model, processor))
    model.set_attn_implementation("eager")
    expected = loss_and_gradients(model, batch, device)
    model.model.language_model.set_attn_implementation(implementation)
    assert_same(loss_and_gradients(model, batch, device), expected, 0.02 if device == "cuda" else 1e-4)
    # The mask matters: with every token of one segment the loss is another one.
    batch["segment_ids"] = torch.where(batch["segment_ids"] > 0, 1, 0)
    other = loss_and_gradients(model, batch, device)[0]
    assert abs(other - expected[0]) > 0.001 * expected[0]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_is_refused_for_packing(implementation, capsys):
    """Catches a run on a GPU that drops the mask where on the CPU it would have stopped for want of the package."""
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage2_3d.yaml", ["--attn_implementation", implementation])
    assert implementation in capsys.readouterr().err


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    return {
        "stage2": write_toy_repo(folder / "toy_gpu_scanqa", {"train": 8, "val": 2}),
        "stage3": write_toy_repo(folder / "toy_gpu_actions", {"train": 8, "val": 2}, task="arkit_actions"),
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """In bfloat16, with VGGT's heads: what a GPU trains from."""
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"), "perceiver", heads=True)
    VggtQwen3ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def arguments_of(checkpoint, repo, output, *arguments):
    argv = ["--model_name_or_path", checkpoint, "--output_dir", output, "--dataset_paths", repo, "--image_size", 28]
    argv += ["--dataset_weights", 1, "--max_steps", 3, "--logging_steps", 1, "--report_to", "none", "--bf16", "true"]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += ["--per_device_train_batch_size", 2, "--global_batch_size", 2]
    argv += ["--dataloader_num_workers", 0, "--lora_dropout", 0.0, *arguments]
    return list(map(str, argv))


def trainer_of(stage, checkpoint, repos, output, *arguments):
    options = {"stage2": ["--freeze_text_layers", 0], "stage3": ["--anchor_hidden_size", 32]}[stage]
    options += ["--learning_rate", 0.01]
    (config,) = CONFIGS.glob(f"{stage}_*.yaml")
    set_seed(0)
    return make_trainer(*parse_arguments(config, arguments_of(checkpoint, repos[stage], output, *options, *arguments)))


def wrapped(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@DEVICES
@pytest.mark.parametrize(("stage", "source"), [("stage2", "dataset"), ("stage2", "predicted"), ("stage3", "dataset")])
def test_autocast_leaves_cameras_and_heads_in_float32(device, stage, source, checkpoint, repos, tmp_path):
    """Catches cameras rounded to bfloat16 (centimetres in a room), heads in bfloat16, and losses that are not finite."""
    trainer = trainer_of(stage, checkpoint, repos, tmp_path / "out", "--geometry_source", source)
    model = wrapped(trainer.model).model
    given = []
    encoder = model.geometry_encoder
    encoder = getattr(encoder, "modules_to_save", {"default": encoder})["default"]
    encoder.register_forward_pre_hook(lambda module, args: given.extend(value.dtype for value in args[:2]))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(loss > 0 and loss == loss and loss < 100 for loss in losses)
    assert set(given) == {torch.float32} and len(given) >= 6
    heads = [*model.vision_model.camera_head.parameters(), *model.vision_model.depth_head.parameters()]
    assert {parameter.dtype for parameter in heads} == {torch.float32}
    assert model.vision_model.backbone.embeddings.cls_token.dtype == torch.bfloat16
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {device}


def micro_step(trainer):
    """A micro-step of the trainer, prepared: everything is on the device, and the first one is over."""
    trainer.train()
    device = trainer.args.device
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, device)
    return lambda: trainer.training_step(trainer.model_wrapped, batches[0], num_items)


def synchronisations(step, device) -> list[str]:
    """Where a call waits for the GPU; empty on a CPU, which tests/test_host_syncs.py counts in another way."""
    if device == "cpu":
        step()
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchronizing CUDA operation" in str(warning.message)
    ]


@DEVICES
@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_micro_step_waits_for_the_gpu_once_at_most(device, stage, checkpoint, repos, tmp_path):
    """Catches counts and boolean indexing in the forward pass: the host stops, and the GPU runs dry, at each of them."""
    trainer = trainer_of(stage, checkpoint, repos, tmp_path / "out", "--logging_steps", 1000)
    found = synchronisations(micro_step(trainer), device)
    assert len(found) <= 1, found


def trained_tensors(output):
    """Name to tensor of what a run trained: of the adapter where there is one, else of the model."""
    adapter = output / "adapter"
    file = adapter / "adapter_model.safetensors" if adapter.is_dir() else output / "model.safetensors"
    return load_file(file)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize(
    ("device", "config"),
    [
        pytest.param("cpu", "cpu", marks=[*ON_CPU, pytest.mark.slow]),
        *(pytest.param("cuda", config, marks=ON_GPU) for config in ("ddp", "zero2", "zero3")),
    ],
)
def test_all_that_trains_moves_under_every_launcher(device, config, stage, checkpoint, repos, tmp_path):
    """
    Catches training in bfloat16 without master weights, where small updates are rounded away, and DeepSpeed's casts of
    inputs: 30 steps of a bfloat16 checkpoint, after which every trained tensor has moved and nothing else has.
    """
    output = tmp_path / "out"
    (yaml,) = CONFIGS.glob(f"{stage}_*.yaml")
    argv = arguments_of(
        checkpoint, repos["stage2"], output, "--config", yaml, "--max_steps", 30, "--bf16", device == "cuda",
        "--projector_learning_rate", 0.01, "--logging_steps", 10,
    )  # fmt: skip
    if stage == "stage2":
        argv += ["--freeze_text_layers", "0", "--learning_rate", "0.01"]
    if config == "ddp":  # accelerate takes two processes and more
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    else:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
        command += [str(ROOT / "recipes" / "accelerate_configs" / f"{config}.yaml"), "--num_processes", "1"]
    result = subprocess.run(
        [*command, str(ROOT / "recipes" / f"{stage}.py"), *argv],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}
    still, unseen = [], ("null_embedding",)  # every scene here has cameras
    for name, tensor in trained_tensors(output).items():
        plain = name.removeprefix("base_model.model.")
        if "lora_A" in name:
            continue  # where it began is not known; lora_B began at zero, and moves through it
        start = torch.zeros_like(tensor) if "lora_B" in name else before[plain]
        part = plain.split(".")[1]
        expected = "lora_B" in name or part in ("projector", "geometry_encoder")
        moved = not torch.equal(tensor.float(), start.float())
        if moved != expected and not plain.endswith(unseen):
            still.append((name, moved))
    assert not still, still


@DEVICES
def test_compiled_layers_are_whole_and_equal(device):
    """Catches graph breaks in an encoder block or a decoder layer, and code that compiles to something else."""
    model, processor = wide_model()
    model.to(device).train()
    batch = on(device, packed_batch(model, processor))
    expected = loss_and_gradients(model, batch, device)
    compiled = copy.deepcopy(model)
    layers = [*compiled.model.language_model.layers]
    for blocks in (compiled.model.vision_model.frame_blocks, compiled.model.vision_model.global_blocks):
        layers += blocks
    torch.compiler.reset()
    for layer in layers:
        layer.compile(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    result = loss_and_gradients(compiled, batch, device)
    assert_same(result, expected, 0.02 if device == "cuda" else 1e-4)
    torch.compiler.reset()


@DEVICES
def test_a_store_holds_what_the_encoder_gives(device, checkpoint, repos, tmp_path):
    """Catches features that the GPU's kernels round otherwise than training does, and a store that stays on the GPU."""
    repo = repos["stage2"]
    store = fill(checkpoint, repo, tmp_path / "store", dtype="bfloat16")
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(checkpoint).to(device).eval()
    source = SceneDataset(str(repo), "val", store=open_store(str(store), str(checkpoint), processor))
    images, _ = SceneDataset(str(repo), "val").views(0)
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"][None]
    with torch.no_grad():
        expected = model.model.encode_views(pixel_values.to(device, model.dtype))[0].cpu()
    stored = source.scene_inputs(0)["vision_features"]
    assert stored.device.type == "cpu" and stored.dtype == torch.bfloat16
    torch.testing.assert_close(stored.flatten(1, 2), expected, atol=0.02, rtol=0.02)
    # And a run reads it.
    trainer = trainer_of("stage2", checkpoint, repos, tmp_path / "out", "--feature_store", store, "--view_dropout", 0)
    assert trainer.train().training_loss > 0


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_with_shared_prefixes(device, dtype, checkpoint, repos):
    """Catches caches and masks on the wrong device or of the wrong type; in float64 answers are those of single prompts."""
    if dtype == torch.bfloat16:
        model = VggtQwen3ForConditionalGeneration.from_pretrained(checkpoint).to(device).eval()
        assert model.dtype == torch.bfloat16
        processor = VggtQwen3Processor.from_pretrained(checkpoint)
        source = SceneDataset(str(repos["stage2"]), "val")
        rows = list(range(len(source.qa)))
        answers = list(
            generate_answers(model, processor, source, rows, max_new_tokens=4, min_new_tokens=4, progress=False)
        )
        assert sorted(row for row, _ in answers) == rows
        return
    model, processor = exact_model("perceiver")
    model.to(device)
    (views, geometry, questions) = next(scene for scene in make_scenes(4) if len(scene[2]) > 1)
    scene_inputs, ids = processor.prepare_questions([questions], [views], [geometry])
    kwargs = {"do_sample": False, "max_new_tokens": 4}
    (answers,) = model.answer_questions(on(device, scene_inputs), ids, **kwargs)
    prefix = scene_inputs["input_ids"]
    for question, answer in zip(ids[0], answers, strict=True):
        row = torch.cat([prefix, torch.tensor([question])], dim=1)
        inputs = on(device, {k: v for k, v in scene_inputs.items() if k not in ("input_ids", "attention_mask")})
        alone = model.generate(**inputs, input_ids=row.to(device), **kwargs)[0, row.shape[1] :].tolist()
        assert alone == list(answer)


def test_make_keeps_gpu_tests_apart():
    """Catches a GPU machine whose `make test` takes the GPU that another process trains on."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    recipes = {
        line.partition(":")[0]: lines[number + 1] for number, line in enumerate(lines) if line.startswith("test")
    }
    assert all("not gpu" in recipes[target] for target in ("test", "test-slow")) and "-m gpu" in recipes["test-gpu"]
