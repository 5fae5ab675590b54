# SPDX-License-Identifier: Apache-2.0
"""Datasets that have nothing to evaluate on: they train beside others, and stop a run that would evaluate on nothing."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from stage1_releases import write_chartqa_tables, write_docvqa_tables, write_llava, write_sharegpt4v
from toys import write_toy_checkpoint, write_toy_repo

from data_scripts.prepare import main as prepare
from recipes.launching.checks import check_data
from recipes.launching.settings import read_settings
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.sft import make_trainer


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """One that has no split val, and one that has; they share no scene."""
    folder = tmp_path_factory.mktemp("repos")
    return [
        write_toy_repo(folder / "toy_without", {"train": 2}),
        write_toy_repo(folder / "toy_with", {"other": 2, "train": 2, "val": 2}),
    ]


def small(checkpoint, repos, output, *more) -> list[str]:
    words = ["--model_name_or_path", checkpoint, "--dataset_paths", *repos, "--dataset_weights", *[1] * len(repos)]
    words += ["--output_dir", output, "--image_size", 28, "--bf16", "false", "--report_to", "none"]
    words += ["--dataloader_num_workers", 0, "--eval_questions", 3, "--max_new_tokens", 2, *more]
    return [str(word) for word in words]


def test_a_dataset_without_the_split_trains(checkpoint, repos, tmp_path, caplog):
    """Catches official data without a validation part that cannot train, that trains without being evaluated and not a word, and
    a score that is put down to the dataset before it."""
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(*parse_arguments(CONFIGS / "stage1_sft.yaml", small(checkpoint, repos, tmp_path)))
    (said,) = [record.getMessage() for record in caplog.records if "evaluations" in record.getMessage()]
    assert said == f"Without a split 'val', trained on and left out of evaluations: {repos[0]}"
    assert [source.path for source in trainer.train_dataset.sources] == list(map(str, repos))
    assert [source.path for source in trainer.eval_sources] == [str(repos[1])]
    scores = [name for name in trainer.evaluate() if name.startswith("eval_exact_match")]
    assert scores == ["eval_exact_match", "eval_exact_match_1"]
    assert check_data(read_settings("stage1", small(checkpoint, repos, tmp_path))) == []


def test_nothing_to_evaluate_on(checkpoint, repos, tmp_path):
    """Catches a run that picks its best checkpoint by nothing; the launcher says it once, however many datasets and tables."""
    argv = small(checkpoint, repos, tmp_path, "--eval_split", "none")
    words = rf"no split 'none' \(eval_split\) in {repos[0]}, {repos[1]}: .*--val-share.*eval_strategy: no"
    with pytest.raises(ValueError, match=words):
        make_trainer(*parse_arguments(CONFIGS / "stage1_sft.yaml", argv))
    (problem,) = check_data(read_settings("stage1", argv))
    assert "no split 'none' (eval_split)" in problem
    argv += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    assert check_data(read_settings("stage1", argv)) == []
    assert make_trainer(*parse_arguments(CONFIGS / "stage1_sft.yaml", argv)).eval_sources == []


def test_a_missing_dataset_is_no_missing_split(checkpoint, repos, tmp_path):
    """Catches a folder that is not there, or has no split to train on, passed over as one without a validation part."""
    argv = small(checkpoint, [repos[1], tmp_path / "nowhere"], tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a prepared dataset"):
        make_trainer(*parse_arguments(CONFIGS / "stage1_sft.yaml", argv))
    assert any("nowhere is not here" in problem for problem in check_data(read_settings("stage1", argv)))
    argv = small(checkpoint, repos, tmp_path, "--train_split", "other")
    with pytest.raises(ValueError, match="toy_without is not a prepared dataset with a split 'other'"):
        make_trainer(*parse_arguments(CONFIGS / "stage1_sft.yaml", argv))
    assert any("toy_without has no split 'other'" in problem for problem in check_data(read_settings("stage1", argv)))


def test_other_paths_come_without_the_weights_of_the_yaml():
    """Catches `--dataset_paths mine` refused for the weights of four datasets that it does not train on."""

    def read(*argv):
        stage1, launcher = (
            parse_arguments(CONFIGS / "stage1_sft.yaml", list(argv))[1],
            read_settings("stage1", list(argv)),
        )
        assert stage1.dataset_weights == launcher.dataset_weights
        return stage1.dataset_weights

    assert read() == [0.6, 0.2, 0.1, 0.1] == read("--dataset_paths", "a", "b", "c", "d")
    assert read("--dataset_paths", "mine") == [] == read("--dataset-paths=mine")
    assert read("--dataset_paths", "a", "b", "--dataset_weights", "1", "3") == [1, 3]
    with pytest.raises(SystemExit):
        read("--dataset_paths", "a", "b", "--dataset_weights", "1")


@pytest.mark.slow
def test_stage_1_on_the_official_releases(checkpoint, tmp_path, monkeypatch):
    """Catches a prepared release that stage 1 cannot read, mix by its weights, or evaluate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    write_llava(tmp_path, absent=True), write_sharegpt4v(tmp_path, absent=True)
    write_docvqa_tables(tmp_path, ["train"]), write_chartqa_tables(tmp_path)
    command = ["instruct", "--output", "data/instruct", "--val-share", "0.01", "--allow-missing"]
    command += ["--source", "llava=llava_v1_5_mix665k.json,images", "--source", "docvqa=DocVQA/DocVQA"]
    command += ["--source", "sharegpt4v=sharegpt4v_instruct_gpt4-vision_cap100k.json,images"]
    assert prepare([*command, "--source", "chartqa=ChartQA/data"]) == 0
    # The datasets, weights and split are those that stage1_sft.yaml names.
    words = f"--model_name_or_path {checkpoint} --output_dir run --image_size 28 --bf16 false --max_steps 2".split()
    words += (
        "--global_batch_size 2 --per_device_train_batch_size 2 --dataloader_num_workers 0 --report_to none".split()
    )
    words += "--eval_steps 2 --save_steps 2 --eval_questions 2 --max_new_tokens 2 --logging_steps 1".split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "stage1.py"), *words, "--activation_checkpointing", "false", "--use_cpu", "true"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in entry for entry in history) == 2
    (scores,) = [entry for entry in history if "eval_exact_match" in entry]
    assert {f"eval_exact_match_{number}" for number in range(4)} <= scores.keys()
