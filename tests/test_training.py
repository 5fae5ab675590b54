# SPDX-License-Identifier: Apache-2.0
"""Sampling, freezing, LoRA, parameter groups, and whole runs of the recipes as a user launches them."""

import json
import os
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, List, load_dataset
from datasets import Image as HubImage
from PIL import Image
from safetensors.torch import load_file
from toys import toy_config, toy_model, toy_processor, write_toy_checkpoint, write_toy_repo
from transformers import AutoModelForImageTextToText

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.loading import load_model
from recipes.common.scenes import SceneDataset, check_disjoint
from recipes.runs.arguments import CONFIGS, ModelArguments, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.muon import MuonAdamW, orthogonalize
from recipes.training.packing import Pack, PackDataset, PackSampler
from recipes.training.sft import make_trainer
from recipes.training.trainer import VggtQwen3Trainer, freeze_and_adapt


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    return [
        write_toy_repo(folder / "toy_scanqa", {"train": 6, "val": 2}),
        write_toy_repo(folder / "toy_sqa3d", {"train": 6, "val": 2}, task="sqa3d"),
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def packs_of(dataset, weights=None, seed=0, epoch=0):
    sampler = PackSampler(dataset, weights, seed)
    sampler.set_epoch(epoch)
    packs = list(sampler)
    assert len(packs) == len(sampler)
    return packs


################
# Data
################


def test_an_epoch_holds_every_question_once(repos):
    """Catches questions lost at the border of a pack, or a scene that fills more than one."""
    dataset = PackDataset([SceneDataset(str(path), "train") for path in repos], questions_per_scene=3)
    packs = packs_of(dataset)
    assert max(len(pack.questions) for pack in packs) == 3
    counts = Counter((pack.dataset, question) for pack in packs for question in pack.questions)
    assert counts == {(source, question): 1 for source in range(2) for question in range(24)}
    for pack in packs:
        qa, scenes = dataset.sources[pack.dataset].qa, dataset.sources[pack.dataset].scene_ids
        assert {qa[question]["scene_id"] for question in pack.questions} == {scenes[pack.scene]}


def photo(width, height, seed=0):
    """A smooth picture with edges, as photos are: noise is what no decoder can reduce well."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    for color in ("white", "black", "red"):
        left, top = int(rng.integers(width // 2)), int(rng.integers(height // 2))
        image.paste(color, (left, top, left + width // 4, top + height // 4))
    return image


def encoded(image, file_format, **options):
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write_photo_repo(folder, pictures):
    """A prepared repository of one scene, with `pictures` as its views."""
    write_toy_repo(folder, {"train": 1}, num_views=len(pictures))
    path = folder / "scenes" / "train-00000-of-00001.parquet"
    scenes = Dataset.from_parquet(str(path), cache_dir=str(folder / "cache")).cast_column(
        "images", List(HubImage(decode=False))
    )
    row = dict(scenes[0]) | {"images": [{"bytes": picture, "path": None} for picture in pictures]}
    Dataset.from_list([row], features=scenes.features).to_parquet(path)
    return folder


def test_jpegs_are_decoded_no_larger_than_needed(checkpoint, tmp_path):
    """
    Catches decoding of eight times the pixels that the encoder sees; cameras that are taken for those of the smaller
    picture; a picture smaller than needed, or whose size does not divide.
    """
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    processor.image_processor.image_size = 448
    sizes = {"half": (1296, 968), "quarter": (1920, 1440), "eighth": (3840, 2880)}
    sizes |= {"large enough": (896, 672), "just too small": (894, 672), "odd": (1295, 968), "small": (640, 480)}
    expected = [(648, 484), (480, 360), (480, 360), (448, 336), (894, 672), (1295, 968), (640, 480)]
    pictures = [encoded(photo(*size), "JPEG", quality=90) for size in sizes.values()]
    repo = write_photo_repo(tmp_path / "toy_photos", [*pictures, encoded(photo(1296, 968), "PNG")])
    plain = SceneDataset(str(repo), "train")
    reduced = SceneDataset(str(repo), "train", image_processor=processor.image_processor)
    inputs = reduced.scene_inputs(0)
    assert [image.size for image in inputs["images"]] == [*expected, (1296, 968)]
    assert inputs["image_sizes"] == [*sizes.values(), (1296, 968)]
    assert [image.size for image in reduced.views(0)[0]] == inputs["image_sizes"]  # for a report: as they are stored
    # The same cameras, bit for bit, and nearly the same pixels; those of what is not reduced exactly.
    batches = [
        PackCollator(processor)(
            [source.scene_inputs(0, keep=[0, 1, 2, 3, 6, 7]) | {"questions": [("Where?", "here")]}]
        )
        for source in (plain, reduced)
    ]
    for name in ("extrinsics", "intrinsics", "depth_histogram", "geometry_mask"):
        assert torch.equal(batches[0][name], batches[1][name])
    difference = 255 * (batches[0]["pixel_values"] - batches[1]["pixel_values"]).abs()[0]
    assert not difference[4:].any()
    assert difference[0].mean() < 1 and difference[:4].mean() < 1.5, difference.mean(dim=(1, 2, 3))
    # The same in evaluation, beside a scene without cameras.
    asked = [["Where is it?"]] * 2
    scenes = [source.scene_inputs(0, keep=[0, 1]) for source in (reduced, plain)]
    scenes[1]["geometry"] = None
    evaluated, _ = processor.prepare_questions(
        asked, **{name: [scene[name] for scene in scenes] for name in scenes[0]}
    )
    assert torch.equal(evaluated["intrinsics"][0, :2], batches[0]["intrinsics"][0, :2])
    broken = write_photo_repo(tmp_path / "toy_broken", [pictures[0][:2000]])
    with pytest.raises(
        ValueError, match="toy_broken, scene scene0000_00, view 0: not a readable picture .image file is truncated"
    ):
        SceneDataset(str(broken), "train", image_processor=processor.image_processor).scene_inputs(0)


def test_weights_are_shares_of_the_packs(repos):
    """Catches weights that are read and dropped, and a small dataset that repeats questions before others have come."""
    dataset = PackDataset([SceneDataset(str(path), "train") for path in repos], questions_per_scene=2)
    packs = packs_of(dataset, [0.75, 0.25])
    assert Counter(pack.dataset for pack in packs) == {0: 18, 1: 6}
    repeated = Counter(question for pack in packs if pack.dataset == 0 for question in pack.questions)
    assert set(repeated.values()) == {1, 2} and len(repeated) == 24


def test_order_depends_on_seed_and_epoch_alone(repos):
    """Catches processes that draw different lists, and epochs that repeat the first."""
    dataset = PackDataset([SceneDataset(str(path), "train") for path in repos], questions_per_scene=2)
    assert packs_of(dataset) == packs_of(dataset)
    assert packs_of(dataset) != packs_of(dataset, epoch=1)
    assert packs_of(dataset) != packs_of(dataset, seed=1)
    np.random.seed(7)
    torch.manual_seed(7)
    example, again = (dataset[packs_of(dataset)[0]] for _ in range(2))
    assert example["questions"] == again["questions"] and len(example["images"]) == len(again["images"])


def test_view_dropout_keeps_view_0_and_its_cameras(repos):
    """Catches a dropout that is never read, drops the reference view, or leaves geometry of dropped views."""
    source = SceneDataset(str(repos[0]), "train")
    all_views, all_geometry = source.views(0)
    dataset = PackDataset([source], questions_per_scene=2, view_dropout=0.5)
    kept = Counter()
    for seed in range(200):
        example = dataset[Pack(0, 0, (0,), seed)]
        assert example["images"][0].tobytes() == all_views[0].tobytes()
        positions = [[view.tobytes() for view in all_views].index(view.tobytes()) for view in example["images"]]
        np.testing.assert_array_equal(example["geometry"]["t"], all_geometry["t"][positions])
        kept.update(positions)
    assert kept[0] == 200 and 70 < kept[1] < 130 and 70 < kept[2] < 130


def test_num_views_and_blind(repos):
    views, geometry = SceneDataset(str(repos[0]), "train", num_views=2).views(0)
    assert len(views) == 2 and geometry["t"].shape == (2, 3)
    blind = PackDataset([SceneDataset(str(repos[0]), "train")], questions_per_scene=2, blind=True)
    assert blind[Pack(0, 0, (0,), 0)]["images"] == []
    batch = PackCollator(toy_processor(toy_config()))([blind[Pack(0, 0, (0, 1), 0)]])
    assert "pixel_values" not in batch


def test_answers_are_drawn_among_the_references(repos):
    source = SceneDataset(str(repos[0]), "train")
    source.qa = source.qa.map(lambda row: row | {"answers": ["red", "crimson"]})
    dataset = PackDataset([source], questions_per_scene=2)
    drawn = Counter(dataset[Pack(0, 0, (0,), seed)]["questions"][0][1] for seed in range(100))
    assert set(drawn) == {"red", "crimson"} and min(drawn.values()) > 25


def test_only_answers_and_their_end_are_labels():
    """Catches a loss on the question, and answers without the end-of-turn token."""
    processor = toy_processor(toy_config())
    batch = PackCollator(processor)(
        [
            {"images": [], "geometry": None, "questions": [("What color is the bed?", "red"), ("Where?", "a bed")]},
            {"images": [], "geometry": None, "questions": [("How many?", "two")]},
        ]
    )
    for row, answers in zip(range(2), (["red", "a bed"], ["two"]), strict=True):
        for segment, answer in enumerate(answers, start=1):
            where = (batch["segment_ids"][row] == segment) & (batch["labels"][row] != -100)
            assert processor.tokenizer.decode(batch["labels"][row][where]) == f"{answer}<|im_end|>"
            assert torch.equal(batch["labels"][row][where], batch["input_ids"][row][where])
    assert (batch["labels"] != -100).sum() == 7


def test_situations_come_before_questions(repos):
    dataset = PackDataset([SceneDataset(str(repos[1]), "train")], questions_per_scene=2)
    assert dataset[Pack(0, 0, (0,), 0)]["questions"][0][0].startswith("I am standing next to the bed. What color")


def test_shared_scenes_and_answerless_questions_are_refused(repos, tmp_path):
    train = SceneDataset(str(repos[0]), "train")
    check_disjoint(train, SceneDataset(str(repos[0]), "val"))
    with pytest.raises(ValueError, match="share 6 scenes, for example scene0000_00"):
        check_disjoint(train, SceneDataset(str(repos[1]), "train"))
    train.qa = train.qa.map(lambda row: row | {"answers": []})
    with pytest.raises(ValueError, match="row 0 .question train-scene0000_00-0. has no answer"):
        PackDataset([train], questions_per_scene=2)
    with pytest.raises(ValueError, match="not a prepared dataset with a split 'test'"):
        SceneDataset(str(repos[0]), "test")
    with pytest.raises(ValueError, match="nowhere is not a prepared dataset"):
        SceneDataset(str(tmp_path / "nowhere"), "train")


def test_missing_columns_are_named_before_training(tmp_path):
    """Catches a repository of an older schema that fails at the first row that is read."""
    repo = write_toy_repo(tmp_path / "old", {"train": 1})
    path = next((repo / "qa").glob("train*.parquet"))
    Dataset.from_parquet(str(path)).remove_columns("action").to_parquet(path)
    with pytest.raises(ValueError, match="old, qa, split train: no column action; prepare it again"):
        SceneDataset(str(repo), "train")


def test_unreadable_views_name_the_scene(repos):
    source = SceneDataset(str(repos[0]), "train")
    row = source.scenes[0]
    row["images"][1]["bytes"] = row["images"][1]["bytes"][:60]
    source.scenes = [row]
    with pytest.raises(ValueError, match="scene scene0000_00, view 1"):
        source.views(0)


def test_load_dataset_reads_both_configs(repos):
    assert load_dataset(str(repos[0]), split="val").num_rows == 8
    assert len(load_dataset(str(repos[0]), "scenes", split="val")[0]["images"]) == 3


################
# Settings
################


def test_every_recipe_config_is_read_whole():
    """Catches a key that nothing reads: unknown ones make the parser exit."""
    for path in sorted(CONFIGS.glob("**/*.yaml")):
        model, data, training = parse_arguments(path, [])
        for key, value in yaml.safe_load(path.read_text()).items():
            holder = next(holder for holder in (model, data, training) if hasattr(holder, key))
            assert getattr(holder, key) in (value, [value]), (path, key)


def test_stage_2_is_the_documented_recipe():
    model, data, training = parse_arguments(CONFIGS / "stage2_3d.yaml", [])
    assert (data.num_views, data.image_size, data.view_dropout, data.dataset_weights) == (8, 448, 0.3, [0.7, 0.3])
    assert (model.lora_r, model.lora_alpha, model.freeze_vision) == (16, 32, True)
    assert model.freeze_text_layers == [0, 1, 2, 3]
    assert model.lora_target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (training.learning_rate, training.projector_learning_rate) == (2e-4, 1e-4)
    assert training.bf16 and training.lr_scheduler_type == "cosine" and training.max_grad_norm == 1.0


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("view_dropuot: 0.3", [], "unknown key 'view_dropuot'. Did you mean 'view_dropout'"),
        ("view_dropout: many", [], "invalid float value: 'many'"),
        ("questions_per_scene: 2.5", [], "invalid int value: '2.5'"),
        ("view_dropout: 1.0", [], "below 1"),
        ("num_views: 0", [], "at least 1"),
        ("dataset_weights: [1.0]", [], "1 entries for 2"),
        ("- a list", [], "`key: value` lines"),
        ("", ["--no_such_argument", "1"], "no_such_argument"),
        ("", ["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_settings_exit_with_one_line(text, argv, message, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: o\ndataset_paths: [a, b]\n{text}\n")
    if text.startswith("-"):
        path.write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(path, argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


################
# What trains
################


def collated(model, dataset):
    return PackCollator(toy_processor(model.config))([dataset[pack] for pack in packs_of(dataset)[:2]])


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_freezing_and_lora_train_just_what_they_say(freeze_vision, repos):
    """Catches LoRA or freezing settings that are never read."""
    model = freeze_and_adapt(
        toy_model(),
        ModelArguments(
            model_name_or_path="", freeze_vision=freeze_vision, freeze_text_layers=[0], lora_r=2, lora_alpha=4
        ),
    )
    dataset = PackDataset([SceneDataset(str(repos[0]), "train")], questions_per_scene=4)
    trainable = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert any(".projector." in name for name in trainable) and any(".geometry_encoder." in name for name in trainable)
    assert any(".vision_model." in name for name in trainable) != freeze_vision
    lora = [name for name in trainable if "lora_" in name]
    assert len(lora) == 2 * 4 and all(".layers.1." in name for name in lora)
    text = [name for name in trainable if ".language_model." in name or "lm_head" in name]
    assert text == lora
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    for _ in range(2):  # LoRA's A moves once B has left zero
        model(**collated(model, dataset)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: not torch.equal(p, {**trainable, **frozen}[name]) for name, p in model.named_parameters()}
    assert [name for name in trainable if not moved[name] and "null_embedding" not in name] == []
    assert [name for name in frozen if moved[name]] == []


def test_lora_adapts_the_modules_it_is_given():
    """Catches target modules that are read and replaced by the default."""
    arguments = ModelArguments(model_name_or_path="", lora_r=2, lora_target_modules=["v_proj", "up_proj"])
    model = freeze_and_adapt(toy_model(), arguments)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"v_proj", "up_proj"}


def test_freeze_text_leaves_projector_and_geometry_encoder():
    """Catches a stage 1 that trains the language model as well."""
    model = freeze_and_adapt(toy_model(), ModelArguments(model_name_or_path="", freeze_text=True))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable and all(".projector." in name or ".geometry_encoder." in name for name in trainable)


@pytest.mark.parametrize("muon", [[], ["--muon_learning_rate", "0.04"]])
def test_each_module_has_its_learning_rate(muon, repos, tmp_path):
    """Catches learning rates that are read and dropped, and decay on norms and biases."""
    argv = ["--output_dir", str(tmp_path), "--report_to", "none", "--learning_rate", "0.01", "--weight_decay", "0.1"]
    argv += ["--projector_learning_rate", "0.02", "--vision_learning_rate", "0.03", "--freeze_vision", "false"]
    _, data, training = parse_arguments(CONFIGS / "rooms" / "stage1.yaml", argv + muon)
    if not muon:
        training.muon_learning_rate = None
    model = toy_model()
    source = SceneDataset(str(repos[0]), "train")
    trainer = VggtQwen3Trainer(
        model=model,
        args=training,
        train_dataset=PackDataset([source], 4),
        data_collator=PackCollator(toy_processor(model.config)),
        data_arguments=data,
        eval_sources=[source],
    )
    group_of = {id(p): group for group in trainer.create_optimizer().param_groups for p in group["params"]}
    trainable = {name: group_of[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(group_of) == len(trainable)
    expected = {"model.projector": 0.02, "model.geometry_encoder": 0.02, "model.vision_model": 0.03}
    for name, group in trainable.items():
        rate = next((rate for prefix, rate in expected.items() if name.startswith(prefix)), 0.01)
        assert group["lr"] == (0.04 if group.get("use_muon") else rate), name
        assert "bias" not in name or group["weight_decay"] == 0.0
    assert any(group.get("use_muon") for group in trainable.values()) == bool(muon)
    assert trainable["model.projector.input_proj.weight"]["weight_decay"] == 0.1


def test_frozen_layers_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"names \[7\], but the language model has layers 0-1"):
        freeze_and_adapt(toy_model(), ModelArguments(model_name_or_path="", freeze_text_layers=[7]))


def test_muon_orthogonalises_and_resumes():
    """Catches a Newton-Schulz that diverges, and momentum lost by saving."""
    singular_values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 20, 8)).float())
    assert 0.6 < singular_values.min() and singular_values.max() < 1.3

    def make(state=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": params, "lr": 0.1, "weight_decay": 0.1} for params in (matrices, vectors)]
        return model, MuonAdamW(groups[:1], groups[1:], fused=False)

    def run(model, optimizer, steps):
        for _ in range(steps):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = make()
    run(model, optimizer, 4)
    halfway, first = make()
    run(halfway, first, 2)
    resumed, second = make()
    resumed.load_state_dict(halfway.state_dict())
    second.load_state_dict(first.state_dict())
    run(resumed, second, 2)
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], parameter, atol=0, rtol=0)
    with pytest.raises(ValueError, match="matrices"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 1.0, "weight_decay": 0.0}], [])


################
# Whole runs
################


ACCELERATE = ["accelerate.commands.launch", "--config_file", ROOT / "recipes" / "accelerate_configs" / "cpu.yaml"]


def launch(stage, checkpoint, repos, output, *arguments, launcher=ACCELERATE, environment=None):
    command = [sys.executable, "-m", *map(str, launcher), str(ROOT / "recipes" / f"{stage}.py")]
    command += ["--model_name_or_path", str(checkpoint), "--output_dir", str(output)]
    command += ["--dataset_paths", *map(str, repos), "--image_size", "28", "--dataloader_num_workers", "0"]
    command += ["--report_to", "none", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
    )


def losses_of(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


SHORT = [
    "--global_batch_size",
    2,
    "--max_steps",
    4,
    "--eval_steps",
    2,
    "--save_steps",
    2,
    "--logging_steps",
    1,
    "--seed",
    3,
]
SHORT += ["--per_device_train_batch_size", 2, "--freeze_text_layers", 0, "--bf16", "false"]


def test_stage_2_as_a_user_launches_it(checkpoint, repos, tmp_path):
    """The stage's own YAML with LoRA, mixing and view dropout: trains, evaluates, saves merged, loads, resumes."""
    whole = tmp_path / "whole"
    result = launch("stage2", checkpoint, repos, whole, *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    evaluations = [
        entry
        for entry in json.loads((whole / "trainer_state.json").read_text())["log_history"]
        if "eval_exact_match" in entry
    ]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert {path.name for path in whole.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}

    model = load_model(str(whole), "sdpa")
    assert '"use_cache": false' not in (whole / "config.json").read_text()
    before, after = load_file(checkpoint / "model.safetensors"), load_file(whole / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".projector." in name for name in changed)
    assert any("layers.1.self_attn.q_proj" in name for name in changed)  # the merged LoRA
    assert not any(".vision_model." in name or "layers.0." in name or ".mlp." in name for name in changed)
    assert AutoModelForImageTextToText.from_pretrained(whole).config.image_token_id == model.config.image_token_id

    # Interrupted after the second step and resumed: the same losses, the same weights.
    halves = tmp_path / "halves"
    result = launch("stage2", checkpoint, repos, halves, *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    for path in [*halves.glob("*.safetensors"), *(halves / "checkpoint-4").iterdir()]:
        path.unlink()
    (halves / "checkpoint-4").rmdir()
    result = launch("stage2", checkpoint, repos, halves, *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses_of(halves) == losses_of(whole)
    resumed = load_file(halves / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in after.items())


def test_two_processes_train_like_one(checkpoint, repos, tmp_path):
    """Catches processes that see the same packs, and a loss normalised per process: the batch of 4 is the same."""
    arguments = [
        "--max_steps",
        2,
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
    ]
    arguments += ["--logging_steps", 1, "--bf16", "false", "--lora_dropout", 0.0, "--freeze_text_layers", 0]
    arguments += ["--global_batch_size", 4]
    one, two = tmp_path / "one", tmp_path / "two"
    result = launch("stage2", checkpoint, repos, one, *arguments, "--per_device_train_batch_size", 4)
    assert result.returncode == 0, result.stderr[-3000:]
    # accelerate starts several CPU processes only under MPI; torchrun needs none.
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    result = launch(
        "stage2", checkpoint, repos, two, *arguments, "--per_device_train_batch_size", 2, launcher=launcher
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for step, loss in losses_of(one).items():
        assert losses_of(two)[step] == pytest.approx(loss, abs=1e-4)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


def test_stage_1_trains_everything_without_lora(checkpoint, repos, tmp_path):
    """Catches parts of a model from scratch that stay as they were."""
    output = tmp_path / "stage1"
    config = ROOT / "recipes" / "configs" / "rooms" / "stage1.yaml"
    result = launch(
        "stage1", checkpoint, repos[:1], output, "--config", config, "--max_steps", 3, "--eval_strategy", "no",
        "--save_strategy", "no", "--load_best_model_at_end", "false", "--per_device_train_batch_size", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    before, after = load_file(checkpoint / "model.safetensors"), load_file(output / "model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name.endswith(("mask_token", "null_embedding")) for name in same), same


def test_bad_data_stops_a_run_before_training(checkpoint, repos, tmp_path):
    result = launch("stage2", checkpoint, repos, tmp_path / "out", "--train_split", "val", "--eval_split", "val")
    assert result.returncode == 1
    assert "share 2 scenes" in result.stderr and "Traceback" not in result.stderr.split("stage2.py:")[0]


def test_bfloat16_only_where_the_cpu_has_it(monkeypatch):
    """Catches a demo that takes hours on a CPU which has to imitate bfloat16."""
    for capabilities, expected in (({"avx2": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        assert orthogonalize(torch.randn(1, 4, 4)).dtype == expected


def test_image_settings_and_eval_questions_reach_a_run(tmp_path, monkeypatch):
    """Catches settings that are parsed and never read."""
    model = write_toy_checkpoint(tmp_path / "model")
    repo = write_toy_repo(tmp_path / "toy_scanqa_settings", {"train": 2, "val": 2})
    argv = ["--model_name_or_path", model, "--dataset_paths", repo, "--output_dir", tmp_path / "run"]
    argv += ["--dataset_weights", 1, "--image_size", 42, "--image_mode", "pad", "--eval_questions", 3]
    argv += ["--freeze_text_layers", 0, "--report_to", "none", "--bf16", "false", "--max_new_tokens", 2]
    trainer = make_trainer(*parse_arguments(CONFIGS / "stage2_3d.yaml", list(map(str, argv))))
    assert trainer.processing_class.image_processor.mode == "pad"
    packs = [trainer.train_dataset[pack] for pack in list(trainer._get_train_sampler())[:1]]
    assert trainer.data_collator(packs)["pixel_values"].shape[-2:] == (42, 42)
    asked = []

    def answer(model, processor, source, rows, **kwargs):
        asked.extend(rows)
        return [(row, "red") for row in rows]

    monkeypatch.setattr("recipes.training.evaluating.generate_answers", answer)
    trainer.evaluate()
    assert len(asked) == len(set(asked)) == 3
