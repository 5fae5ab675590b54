# SPDX-License-Identifier: Apache-2.0
"""A file of settings is used as it says, or refused in one line that names the file or the setting."""

import contextlib
import io
import re

import pytest
import yaml
from hostile import count
from hostile.settings import settings, texts

from data_scripts.instruct_sources import parse_sources
from data_scripts.preparation.annotations import InputError
from data_scripts.yaml_files import read_yaml
from recipes.runs.arguments import CONFIGS, make_parser, parse_arguments
from recipes.runs.inputs import check_inputs
from recipes.runs.run_config import RUN_CONFIG, check_output_dir, resolved_config, write_run_config


BASE = {
    "model_name_or_path": "a/b", "output_dir": "out", "dataset_paths": "[a/b, c/d]", "dataset_weights": "[1.0, 2.0]", "bf16": "false",
    "learning_rate": "1.0e-5", "num_train_epochs": "1", "max_steps": "10", "lr_scheduler_type": "cosine", "optim": "adamw_torch",
    "eval_strategy": "steps", "eval_steps": "5", "save_strategy": "steps", "save_steps": "5", "report_to": "none", "lora_r": "4",
    "loss_heads": "{language: 1.0}", "lora_target_modules": "[q_proj]", "freeze_text_layers": "[0]", "view_dropout": "0.1",
    "geometry_source": "none", "attn_implementation": "sdpa", "warmup_steps": "0.03", "seed": "3", "num_views": "4",
    "lr_scheduler_kwargs": "{a: 1}", "accelerator_config": "{split_batches: false}", "hub_token": "x", "logging_steps": "1",
    "per_device_train_batch_size": "1", "global_batch_size": "2", "compile_layers": "false", "dataloader_num_workers": "0",
}  # fmt: skip


class Refused(Exception):
    """What a command says when it exits with status 2."""


def used(path):
    """What a recipe does with its settings before it loads anything."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            check_inputs(CONFIGS / "stage2_3d.yaml", ["--config", str(path)])
            parse_arguments(CONFIGS / "stage2_3d.yaml", ["--config", str(path)])
    except SystemExit as end:
        lines = said.getvalue().strip().splitlines()
        assert end.code == 2 and 1 <= len(lines) <= 3, lines
        raise Refused("\n".join(lines)) from None


def test_hostile_settings_of_a_run(tmp_path):
    """Catches a traceback, a message that does not name file or setting, a bomb that fills the memory, and code being run."""
    path = tmp_path / "run.yaml"

    def attempt(case):
        what, content = case
        path.write_bytes(content)
        try:
            used(path)
        except Refused as refusal:
            key = what.partition(":")[0]
            assert str(path) in str(refusal) or (key in BASE and key in str(refusal)), refusal
            raise

    cases = ((what, (what, content)) for what, content in settings(BASE, seed=0, values=200))
    counts = count("settings", cases, attempt, (Refused,), lambda what, case: "")
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)
    assert counts.refused > 80 and counts.accepted > 30


def test_hostile_files_are_named(tmp_path):
    """Catches a message about YAML that leaves open in which file, or where in it."""
    path = tmp_path / "some.yaml"

    def attempt(content):
        path.write_bytes(content)
        read_yaml(path)

    refusals = (ValueError,)
    counts = count("YAML files", texts().items(), attempt, refusals, lambda what, case: f"{path}: cannot be read")
    assert counts.tracebacks == [] and counts.refused > 15
    for text, words in (
        ("a: 1\nb: 2\na: 3\n", "line 1: 'a' is there more than once"),
        ("a: &a [1, *a]\n", "line 1 refers to itself"),
        ('a: 1\nb: "x\\0"\n', "line 2 holds a character that is none"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(words)):
            read_yaml(path)
    path.write_text("x: &x {a: [1, 2.5, null, yes]}\ny: {<<: *x, b: 'ä'}\n")
    assert read_yaml(path) == yaml.safe_load(path.read_text())


def test_hostile_records_of_a_run(tmp_path):
    """Catches an output folder of somebody else's that ends a launch in a traceback."""
    good = tmp_path / "good"
    argv = ["--output_dir", str(good), "--bf16", "false", "--model_name_or_path", "a", "--dataset_paths", "b"]
    config = resolved_config(*parse_arguments(CONFIGS / "stage2_3d.yaml", argv))
    write_run_config(good, config)
    (good / "checkpoint-2").mkdir()
    base = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6).strip() for key, value in config.items()}

    def attempt(content):
        (good / RUN_CONFIG).write_bytes(content)
        check_output_dir(good, config)

    counts = count("run_config.yaml", settings(base, 0, 60), attempt, (ValueError,), lambda what, case: str(good))
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)
    attempt("".join(f"{key}: {value}\n" for key, value in base.items()).encode())


def test_hostile_lists_of_sources(tmp_path):
    """Catches a traceback where `prepare instruct --sources` reads its file."""
    path = tmp_path / "sources.yaml"

    def attempt(content):
        path.write_bytes(content)
        parse_sources([], path)

    (tmp_path / "a.json").write_text("[]")
    base = {"llava": f"{{files: ['{tmp_path}/a.json'], image_root: '{tmp_path}'}}"}
    counts = count("lists of sources", settings(base, 0, 60), attempt, (InputError,), lambda what, case: str(path))
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)
    attempt(f"llava: {base['llava']}".encode())


def test_a_wrong_value_is_one_line(capsys):
    """Catches two hundred lines of usage above the one that says what is wrong."""
    with pytest.raises(SystemExit):
        make_parser(CONFIGS / "stage2_3d.yaml").parse_args(["--learning_rate", "x"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "learning_rate" in line
