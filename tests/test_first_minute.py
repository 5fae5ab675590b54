# SPDX-License-Identifier: Apache-2.0
"""What is said of folders that are not here, and of a Hub that does not answer, before anything is imported or written."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from data_scripts.builders import BUILDERS
from recipes.launching import checks
from recipes.launching.checks import check_data, check_weights
from recipes.launching.settings import read_settings
from recipes.runs.arguments import ModelArguments
from recipes.runs.inputs import DATASETS, check_inputs, is_local_name, missing_checkpoint, missing_dataset
from recipes.training.sft import load_data


ROOT = Path(__file__).parent.parent
STAGE2 = ROOT / "recipes" / "configs" / "stage2_3d.yaml"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty folder to work in: relative paths of the configurations lead nowhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("launcher", ["python", "accelerate"])
def test_a_fresh_clone_is_told_what_comes_first(launcher, fresh):
    """Catches a recipe that imports torch, makes its folder and asks the Hub before it says that there is no stage 1."""
    code = (
        "import json, runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print(json.dumps(sorted({'torch', 'transformers', 'huggingface_hub'} & {*sys.modules})))\n"
    )
    command = [sys.executable, "-c", code]
    if launcher == "accelerate":
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]
        command += [ROOT / "recipes" / "accelerate_configs" / "cpu.yaml"]
    # An address that refuses: a request would be heard of.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [*command, ROOT / "recipes" / "stage2.py"], env=environment, capture_output=True, text=True, cwd=fresh
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("stage2.py: ")]
    assert lines == [
        "stage2.py: outputs/stage1 is not here: train stage 1 first (python -m recipes.launch stage1), or give "
        "--model_name_or_path.",
        "stage2.py: data/scanqa is not here: prepare it first (python -m data_scripts.prepare scanqa ... --output "
        "data/scanqa; docs/data.md), or give --dataset_paths.",
        "stage2.py: data/sqa3d is not here: prepare it first (python -m data_scripts.prepare sqa3d ... --output "
        "data/sqa3d; docs/data.md), or give --dataset_paths.",
    ]
    assert "127.0.0.1" not in result.stderr and list(fresh.iterdir()) == []
    if launcher == "python":
        assert result.returncode == 2 and json.loads(result.stdout) == []


def test_inputs_are_those_of_the_command_line_over_the_yaml(fresh, capsys, monkeypatch):
    """Catches a check of the YAML's folders where the user has given others, and one line for each of many processes."""
    (fresh / "model").mkdir()
    (fresh / "one").mkdir()
    check_inputs(STAGE2, ["--model_name_or_path", "model", "--dataset_paths", "one", "org/two", "--bf16", "false"])
    check_inputs(STAGE2, ["--model-name-or-path=model", "--dataset-paths=one"])
    check_inputs(STAGE2, ["--help"])
    own = fresh / "own.yaml"
    own.write_text("model_name_or_path: model\ndataset_paths: [one, ./three]\n")
    with pytest.raises(SystemExit) as exit_info:
        check_inputs(STAGE2, ["--config", str(own)])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "./three is not here: prepare it first" in error and "org/two" not in error
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        check_inputs(STAGE2, [f"--config={own}"])
    assert capsys.readouterr().err == ""
    own.write_text("[")  # the parser says so, better
    check_inputs(STAGE2, ["--config", str(own)])


def test_names_that_can_be_on_the_hub_are_left_to_it(fresh):
    """Catches `outputs/stage1` taken for a repository of the owner `outputs`, and a repository refused as a folder."""
    for name in (
        "outputs/stage1",
        "checkpoints/vggt-qwen3-4b",
        "/abs/model",
        "./model",
        "../a/b",
        "a/b/c",
        "model",
        "~/x",
    ):
        assert is_local_name(name), name
    for name in ("org/name", "facebook/VGGT-1B", "Qwen/Qwen3-4B-Instruct-2507", "a.b/c.d"):
        assert not is_local_name(name), name
        assert missing_checkpoint(name) is None and missing_dataset(name) is None
    assert "convert --vggt" in missing_checkpoint("checkpoints/vggt-qwen3-4b")
    assert "python -m recipes.demo)" in missing_checkpoint("demo/tiny")
    assert "python -m recipes.demo)" in missing_dataset("demo/data/scanqa")
    assert "prepare instruct ... --output data/instruct/llava;" in missing_dataset("data/instruct/llava")
    assert tuple(BUILDERS) == DATASETS


def preflight_settings(tmp_path):
    argv = ["--model_name_or_path", "org/model", "--dataset_paths", "org/one", "org/two"]
    return read_settings("stage2", [*argv, "--output_dir", str(tmp_path / "run")])


def test_preflight_without_a_network_asks_once(tmp_path, monkeypatch):
    """Catches a traceback of httpx, whose errors are no OSError, and a minute of attempts for each part of each dataset."""
    asked = []

    def file_exists(name, *arguments, **options):
        asked.append(name)
        return huggingface_hub.file_exists(name, *arguments, **options)

    monkeypatch.setattr(checks, "file_exists", file_exists)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s for another attempt"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        settings = preflight_settings(tmp_path)
        (weights,) = check_weights(settings.model_name_or_path)
        data = check_data(settings)
    assert "Weights: there is no folder org/model, and the Hub cannot be asked (ConnectError: " in weights
    assert [problem.split(", and ")[0] for problem in data] == [
        "Data: there is no folder org/one",
        "Data: there is no folder org/two",
    ]
    assert all(
        "the Hub cannot be asked (ConnectError" in problem and "HF_HUB_OFFLINE=1" in problem for problem in data
    )
    assert asked == ["org/model", "org/one"]


def test_preflight_offline_looks_into_the_cache_alone(tmp_path, monkeypatch):
    """Catches one missing dataset that is four problems: of each config of each split."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = preflight_settings(tmp_path)
    (weights,) = check_weights(settings.model_name_or_path)
    assert "HF_HUB_OFFLINE is set" in weights and "cache does not have it" in weights
    first, second = check_data(settings)
    assert "org/one is not a prepared repository" in first and "org/two is not a prepared repository" in second


def test_a_recipe_offline_names_what_it_cannot_read():
    """Catches "couldn't connect to load the files", from which nobody knows which setting is meant."""
    with pytest.raises(ValueError, match="model_name_or_path org/model cannot be read: "):
        load_data(ModelArguments("org/model"), None, None)


def test_preflight_asks_the_hub_for_what_may_be_there(hub, tmp_path, monkeypatch):
    """Catches a dataset of a mistyped name that is looked for in four ways, and one that is there and is refused."""
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    settings = preflight_settings(tmp_path)
    assert "the Hub has no such model" in check_weights(settings.model_name_or_path)[0]
    assert ["the Hub has no such dataset" in problem for problem in check_data(settings)] == [True, True]
