# SPDX-License-Identifier: Apache-2.0
"""Training on a prepared repository whose files are not those that were written."""

import json
import sys

import pytest
from toys import write_toy_checkpoint, write_toy_repo

from data_scripts.files import hash_file
from data_scripts.manifest import MANIFEST
from recipes.publishing.upload import publish_run
from recipes.runs.arguments import CONFIGS
from recipes.runs.inputs import check_data
from recipes.training.sft import main


def test_training_refuses_damaged_data(tmp_path, monkeypatch):
    """Catches a run that starts or resumes on a file that a disk or a copy has changed, or on a part of a file."""
    model = write_toy_checkpoint(tmp_path / "model")
    repo = tmp_path / "repo"
    write_toy_repo(repo, {"train": 2, "val": 1})
    files = {str(path.relative_to(repo)): path for path in repo.glob("*/*.parquet")}
    manifest = {
        "files": {name: path.stat().st_size for name, path in files.items()},
        "sha256": {name: hash_file(path) for name, path in files.items()},
    }
    (repo / MANIFEST).write_text(json.dumps(manifest))
    check_data([str(repo), "owner/name", str(model)], contents=True)

    def message(*arguments):
        given = ["--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--output_dir"]
        given += [tmp_path / "run", "--report_to", "none", "--bf16", "false", *arguments]
        monkeypatch.setattr(sys, "argv", ["stage2.py", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            main(CONFIGS / "stage2_3d.yaml", publish_run)
        assert not (tmp_path / "run" / "run_config.yaml").exists()
        return ended.value.code

    path = files["scenes/train-00000-of-00001.parquet"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = message()
    assert f"{path}: damaged (not the SHA-256" in text and f"Copy {repo} here again" in text and "\n" not in text
    check_data([str(repo)], contents=False)
    path.write_bytes(content[:-1])
    assert f"{path}: missing or damaged ({len(content) - 1} bytes" in message("--verify_data", "false")
