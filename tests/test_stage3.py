# SPDX-License-Identifier: Apache-2.0
"""Stage 3 as a user launches it, from a stage-2 checkpoint that has no anchor head."""

import json

import pytest
from safetensors.torch import load_file
from test_training import SHORT, launch
from toys import write_toy_checkpoint, write_toy_repo

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.generation import generate_actions
from recipes.common.loading import load_model
from recipes.common.scenes import SceneDataset
from recipes.runs.arguments import CONFIGS, LOSSES, parse_arguments


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    return [write_toy_repo(tmp_path_factory.mktemp("repos") / "actions", {"train": 6, "val": 2}, task="arkit_actions")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_stage_3_as_a_user_launches_it(checkpoint, repos, tmp_path):
    """The stage's own YAML with LoRA and view dropout: a new head trains, its losses are logged, it comes back."""
    whole = tmp_path / "whole"
    arguments = [*SHORT[:-4], "--per_device_train_batch_size", 2, "--bf16", "false", "--anchor_hidden_size", 32]
    result = launch("stage3", checkpoint, repos, whole, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "has no anchor head: a new one of width 32 trains" in result.stderr
    history = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    weights = {"language": 1.0, "action_json": 1.0, "geometry_consistency": 0.5, "pointing": 1.0}
    for entry in logged:
        parts = {name: entry[f"loss_{name}"] for name in LOSSES}
        assert all(value > 0 for value in parts.values())
        assert sum(weights[name] * parts[name] for name in LOSSES) == pytest.approx(entry["loss"], rel=1e-4)
    assert [entry["eval_exact_match"] for entry in history if "eval_exact_match" in entry]

    model, processor = load_model(str(whole), "sdpa").eval(), VggtQwen3Processor.from_pretrained(whole)
    assert model.config.numbers_from == "head" and processor.has_anchor_head
    assert not any(name.endswith("lora_A.weight") for name in load_file(whole / "model.safetensors"))
    source = SceneDataset(str(repos[0]), "val")
    actions = generate_actions(model, processor, source, list(range(len(source.qa))), texts=False, progress=False)
    assert [row for row, _, _ in actions] == list(range(8)) and all(len(anchor) == 9 for _, _, anchor in actions)

    # It goes on, in bfloat16, from a checkpoint with a head of its own, which keeps its width.
    again = tmp_path / "again"
    result = launch("stage3", whole, repos, again, *arguments, "--bf16", "true", "--anchor_hidden_size", 64)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "has no anchor head" not in result.stderr
    assert load_model(str(again), "sdpa").config.anchor_hidden_size == 32


def test_numbers_from_text_has_no_head(checkpoint, repos, tmp_path):
    """Catches a head that is added where nothing reads it."""
    arguments = [*SHORT[:-4], "--per_device_train_batch_size", 2, "--bf16", "false", "--numbers_from", "text"]
    arguments += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    result = launch("stage3", checkpoint, repos, tmp_path / "text", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not any("anchor_head" in name for name in load_file(tmp_path / "text" / "model.safetensors"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"languge": 1.0}', "must map some of language, action_json"),
        ('{"action_json": -1}', "must not be negative"),
        ('{"action_json": 0, "geometry_consistency": 0, "pointing": 0}', "numbers_from: head needs"),
        ("1.0", "must map"),
        ("{", "Expecting"),
    ],
)
def test_weights_that_make_no_sense_are_errors(value, message, capsys):
    """Catches a misspelt loss that is silently given weight 1."""
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage3_arkit.yaml", ["--loss_heads", value])
    assert message in capsys.readouterr().err
