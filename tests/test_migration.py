# SPDX-License-Identifier: Apache-2.0
"""docs/migration.md: every key of the original's YAML files is in its table, and what the table says of ours is so."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_docs import run_until_parsed

from recipes.launching.settings import read_settings
from recipes.runs.arguments import CONFIGS


PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
STAGES = {"stage1": "stage1_sft.yaml", "stage2": "stage2_3d.yaml", "stage3": "stage3_arkit.yaml"}
# Of the three stages' YAML files there.
ORIGINAL_KEYS = """
model.name_or_path tokenizer_path model.vision_backbone model.num_vis_tokens model.geom_tokens model.projector model.freeze_vision
model.freeze_text_layers data.datasets data.mix_ratio data.num_views data.image_size data.max_length data.view_dropout
train.precision train.optimizer train.lr train.proj_lr train.weight_decay train.warmup_ratio train.batch_size_per_gpu grad_accum
train.max_steps train.save_every_steps eval_every_steps train.log_every_steps train.gradient_clip train.seed loss_heads lora.rank
alpha dropout lora.target_modules latent_dim num_latents num_heads num_layers ffn_dim
""".split()


def rows() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("## Keys of the YAML files") : text.index("Flags of its trainer")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]


def test_every_key_of_the_original_is_in_the_table():
    """Catches a setting that somebody brings along and finds nothing about."""
    there = " ".join(row[0] for row in rows())
    assert not [key for key in ORIGINAL_KEYS if not re.search(rf"`{re.escape(key)}\b", there)]


def test_values_of_the_table_are_those_of_our_stages():
    """Catches a table that says other values than the YAML files have."""
    configs = [yaml.safe_load((CONFIGS / name).read_text()) for name in STAGES.values()]
    compared = 0
    for _, here, _ in rows():
        for key, values in re.findall(r"`(\w+)`:? ((?:[\d.e-]+|–)(?: / (?:[\d.e-]+|–))*)(?=$|[;, ])", here):
            if key in ("convert", "resize"):
                continue
            values = [value.strip(" ,") for value in values.split(" / ")]
            for config, value in zip(configs, values * (3 if len(values) == 1 else 1), strict=True):
                assert config.get(key) == (None if value == "–" else float(value)), (key, values)
                compared += 1
    assert compared >= 20


OPTIONS = sorted(
    {code for row in rows() for code in re.findall(r"`((?:convert |resize )?--[^`]+ [^`]+)`", " ".join(row[1:]))}
)


def test_there_are_options():
    assert len(OPTIONS) >= 15


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # runpy: the module is imported already
def test_values_of_the_original_can_be_set(option, capsys):
    """Catches a difference that is no choice: an old value that the table offers and that is refused, or changes nothing."""
    words = shlex.split(option)
    required = {"convert": "--vggt vggt --text qwen3 --output model", "resize": "--checkpoint model --output resized"}
    if words[0] in required:
        words += required[words[0]].split()
        run_until_parsed(["-m", "modeling_vggt_qwen3.convert_vggt_qwen3_to_hf", *words])
        return
    changed = set()
    for stage in STAGES:
        before = vars(read_settings(stage, []))
        try:
            after = vars(read_settings(stage, words))
        except (ValueError, SystemExit):
            continue  # an option of another stage
        changed.update(key for key in before if str(before[key]) != str(after[key]))
    assert {word.removeprefix("--") for word in words if word.startswith("--")} <= changed, capsys.readouterr().err
