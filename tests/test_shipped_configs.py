# SPDX-License-Identifier: Apache-2.0
"""Every key of every shipped YAML changes something: here what trains and how fast, elsewhere what `TESTED` names."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from toys import toy_config, toy_processor, write_toy_checkpoint, write_toy_repo
from transformers import TrainingArguments, set_seed

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration
from recipes.common.scenes import SceneDataset
from recipes.launching.settings import read_settings
from recipes.runs.arguments import CONFIGS, SftArguments, parse_arguments
from recipes.runs.run_config import differences, resolved_config
from recipes.training.collator import PackCollator
from recipes.training.packing import PackDataset
from recipes.training.sft import make_trainer
from recipes.training.trainer import VggtQwen3Trainer, freeze_and_adapt


TESTS = Path(__file__).parent
SHIPPED = sorted(CONFIGS.glob("**/*.yaml"))
KEYS = [(path, key) for path in SHIPPED for key in yaml.safe_load(path.read_text())]
NAMES = [f"{path.relative_to(CONFIGS)}-{key}" for path, key in KEYS]

# Another value of each key that decides what trains, and how fast.
OTHER = {
    "freeze_vision": lambda value: not value,
    "freeze_text": lambda value: not value,
    "freeze_text_layers": lambda value: value[:-1],
    "lora_r": lambda value: value // 2,
    "lora_alpha": lambda value: value * 2,
    "lora_dropout": lambda value: value * 2,
    "lora_target_modules": lambda value: value[:-1],
    "numbers_from": lambda value: "text",
    "anchor_hidden_size": lambda value: value // 2,
    "loss_heads": lambda value: value | {"pointing": 0.25},
    "learning_rate": lambda value: value * 2,
    "projector_learning_rate": lambda value: value * 2,
    "muon_learning_rate": lambda value: value * 2,
    "weight_decay": lambda value: value + 0.1,
    "lr_scheduler_type": lambda value: "linear",
    "warmup_steps": lambda value: value * 4,
}
# Read where a run is made: `test_other_keys_reach_a_run`.
REACHING = {
    "attn_implementation", "dataset_paths", "dataset_weights", "eval_questions", "eval_split", "geometry_source", "image_mode",
    "image_size", "num_views", "per_device_eval_batch_size", "questions_per_scene", "train_split", "view_dropout",
}  # fmt: skip
# Read elsewhere: the test that fails if the key does nothing.
TESTED = {
    "anchor_text_share": ("test_anchor_head.py", "anchor_text_share=0.25"),
    "global_batch_size": ("test_precision.py", "test_the_global_batch_holds_without_the_launcher"),
    "loss_chunk_size": ("test_loss.py", "loss_chunk_size"),
    "model_name_or_path": ("test_training.py", "--model_name_or_path"),
    "output_dir": ("test_training.py", "--output_dir"),
}
# Read by transformers' Trainer alone.
TRANSFORMERS = {
    "activation_checkpointing", "bf16", "dataloader_num_workers", "eval_steps", "eval_strategy",
    "load_best_model_at_end", "logging_steps", "max_grad_norm", "num_train_epochs",
    "per_device_train_batch_size", "report_to", "save_steps", "save_strategy", "save_total_limit", "seed",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    repo = write_toy_repo(tmp_path_factory.mktemp("repo") / "toy_scanqa", {"train": 2})
    return SceneDataset(str(repo), "train")


def what_trains(arguments, source) -> dict:
    """Per parameter that trains its shape, decay and learning rate at three times of a run; LoRA's scale and dropout; losses."""
    model_arguments, data_arguments, training_arguments = arguments
    set_seed(0)
    new_head = {"numbers_from": model_arguments.numbers_from, "anchor_hidden_size": model_arguments.anchor_hidden_size}
    config = toy_config(**(new_head if model_arguments.numbers_from else {}))
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = ["full_attention"] * 6
    processor = toy_processor(config)
    model = freeze_and_adapt(VggtQwen3ForConditionalGeneration(config), model_arguments)
    trainer = VggtQwen3Trainer(
        model=model,
        args=training_arguments,
        train_dataset=PackDataset([source], 4),
        data_collator=PackCollator(processor),
        data_arguments=data_arguments,
        eval_sources=[source],
        loss_weights=model_arguments.loss_heads,
    )
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=100, optimizer=optimizer)
    groups = {
        id(parameter): number for number, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    rates = []
    for step in range(60):
        if step in (1, 10, 59):
            rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    observed = {"losses": trainer.loss_weights, "numbers": model.config.numbers_from}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[id(parameter)]
            decay = optimizer.param_groups[group]["weight_decay"]
            observed[name] = (tuple(parameter.shape), decay, [at_step[group] for at_step in rates])
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            dropout = getattr(module.lora_dropout["default"], "p", 0.0)
            observed[name] = (module.scaling["default"], dropout)
    return observed


@pytest.fixture(scope="module")
def shipped(source, tmp_path_factory):
    argv = ["--report_to", "none", "--bf16", "false", "--output_dir", str(tmp_path_factory.mktemp("run"))]
    return {path: what_trains(parse_arguments(path, argv), source) for path in SHIPPED}


@pytest.mark.parametrize(
    ("path", "key"),
    [pair for pair in KEYS if pair[1] in OTHER],
    ids=[n for n, (_, k) in zip(NAMES, KEYS) if k in OTHER],
)
def test_every_shipped_key_of_training_changes_what_trains(path, key, source, shipped, tmp_path):
    """
    Catches a key that is shipped and does nothing beside the others of its file: a learning rate that no module has, freezing
    beside LoRA, which freezes anyway.
    """
    values = yaml.safe_load(path.read_text())
    values |= {"report_to": "none", "bf16": False, "output_dir": str(tmp_path), key: OTHER[key](values[key])}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    changed = what_trains(parse_arguments(tmp_path / "config.yaml", []), source)
    assert changed != shipped[path]


def test_every_shipped_key_is_tested():
    """Catches a key that is added to a YAML, and to none of the tests of what it does."""
    library = {field.name for field in fields(TrainingArguments)}
    own = set(SftArguments.__annotations__)
    assert library >= TRANSFORMERS and not own & TRANSFORMERS
    keys = {key for _, key in KEYS}
    assert keys - set(OTHER) - REACHING - TRANSFORMERS == set(TESTED)
    for name, text in TESTED.values():
        assert text in (TESTS / name).read_text(), name


def test_other_keys_reach_a_run(tmp_path, monkeypatch):
    """Catches a key that is parsed and dropped before data, processor and model are made; what each does there has a test of its own."""
    checkpoint = write_toy_checkpoint(tmp_path / "model")
    repos = [str(write_toy_repo(tmp_path / f"toy_reaching_{name}", {"first": 2, "second": 2})) for name in "ab"]
    values = {
        "attn_implementation": "eager", "dataset_paths": repos, "dataset_weights": [1.0, 0.0], "eval_questions": 3,
        "eval_split": "second", "geometry_source": "none", "image_mode": "pad", "image_size": 42, "num_views": 2,
        "per_device_eval_batch_size": 7, "questions_per_scene": 3, "train_split": "first", "view_dropout": 0.25,
    }  # fmt: skip
    assert set(values) == REACHING
    values |= {"model_name_or_path": str(checkpoint), "output_dir": str(tmp_path / "run"), "report_to": "none"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    trainer = make_trainer(*parse_arguments(tmp_path / "config.yaml", []))
    assert trainer.model.config.text_config._attn_implementation == "eager"
    assert trainer.model.config.geometry_source == "none"
    image_processor = trainer.processing_class.image_processor
    assert (image_processor.mode, image_processor.image_size) == ("pad", 42)
    data = trainer.train_dataset
    assert (data.questions_per_scene, data.view_dropout) == (3, 0.25)
    assert trainer._get_train_sampler().counts[1] == 0
    assert [source.path for source in data.sources] == [source.path for source in trainer.eval_sources] == repos
    train_source, eval_source = data.sources[0], trainer.eval_sources[0]
    assert (train_source.split, eval_source.split) == ("first", "second")
    assert len(train_source.views(0)[0]) == 2
    asked = {}

    def answer(model, processor, source, rows, batch_size, **kwargs):
        asked.update(rows=rows, batch_size=batch_size)
        return [(row, "red") for row in rows]

    monkeypatch.setattr("recipes.training.evaluating.generate_answers", answer)
    trainer.evaluate()
    assert len(asked["rows"]) == 3 and asked["batch_size"] == 7


def test_released_shapes_are_of_the_documented_models():
    """Catches dry runs of another release than the docs convert: Qwen3-4B has a context and rotary embedding of its own."""
    assert "--text Qwen/Qwen3-4B-Instruct-2507" in (TESTS.parent / "docs" / "quickstart.md").read_text()
    text = VggtQwen3Config.from_json_file(CONFIGS / "released" / "vggt-qwen3-4b.json").text_config
    assert (text.max_position_embeddings, text.rope_parameters["rope_theta"]) == (262_144, 5_000_000)


################
# Settings that contradict each other
################


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("stage2_3d", "--freeze_text false", "freeze_text: false changes nothing beside lora_r: 16"),
        ("stage2_3d", "--freeze-text=false", "Leave freeze_text out, or set lora_r: 0"),
        (
            "stage1_sft",
            "--learning_rate 2e-5",
            "learning_rate changes nothing: freeze_text .* set projector_learning_rate",
        ),
        ("stage2_3d", "--vision_learning_rate 1e-5", "vision_learning_rate changes nothing with freeze_vision: true"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(stage, argv, message, capsys):
    """Catches a run whose user believes that a setting did something; the launcher refuses it as the recipe does."""
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(CONFIGS / f"{stage}.yaml", argv.split())
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(ValueError, match=message):
        read_settings(stage.partition("_")[0], argv.split())


@pytest.mark.parametrize(
    ("stage", "argv"),
    [
        ("stage2_3d", "--freeze_text true"),  # says what LoRA does
        # The YAML's learning_rate has lost its effect, and a command line cannot leave it out.
        ("stage2_3d", "--freeze_text true --lora_r 0"),
        ("stage2_3d", "--lora_r 0 --freeze_text false"),
        ("stage2_3d", "--freeze_vision false --vision_learning_rate 1e-5"),
        ("stage1_sft", "--freeze_text false --learning_rate 2e-5"),
        ("stage1_sft", "--lora_r 8 --learning_rate 2e-4"),
        ("stage1_sft", "--freeze_vision false --learning_rate 2e-5"),
        ("stage1_sft", "--projector_learning_rate 2e-4"),
    ],
)
def test_settings_that_change_something_are_taken(stage, argv):
    """Catches a check that refuses command lines which mean what they say."""
    parse_arguments(CONFIGS / f"{stage}.yaml", argv.split())
    read_settings(stage.partition("_")[0], argv.split())


def test_a_rate_that_nothing_trains_at_does_not_part_runs():
    """Catches a stage 1 that was started while its YAML had a learning rate without effect, and cannot be resumed."""
    arguments = parse_arguments(CONFIGS / "stage1_sft.yaml", [])
    before, here = resolved_config(*arguments), resolved_config(*arguments)
    before["training"]["learning_rate"] = 1e-5
    assert differences(before, here) == []
    for config in (before, here):
        config["model"]["freeze_text"] = False
    assert differences(before, here) == ["learning_rate is 1e-05 there and 5e-05 here"]
