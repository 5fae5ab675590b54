# SPDX-License-Identifier: Apache-2.0
"""What a publication holds: a fixed list of names, nothing from elsewhere, no folder of the machine however it is spelled."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import TOKEN
from huggingface_hub import HfApi
from published_run import make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_scripts.hub import UploadError, check_contents, own_file
from data_scripts.machine_paths import find_folder, without_folders
from data_scripts.prepare import _push
from recipes.publishing.checkpoint import checkpoint_files
from recipes.publishing.evaluations import find_evaluations


# What each spelling of a path is cut down to.
SPELLINGS = {
    "/disk/someone/runs/x.py": "x.py",
    "--output_dir=/disk/someone/x": "--output_dir=x",
    "--output_dir=/disk/some one/run 1": "--output_dir=run 1",
    r"\/disk\/someone\/x": "x",
    "file:///disk/someone/x": "x",
    "file://machine/disk/someone/x": "x",
    "~/runs/x": "x",
    "~someone/x": "x",
    "$HOME/runs/x": "x",
    "${SCRATCH}/runs/x": "x",
    r"%USERPROFILE%\runs\x": "x",
    r"C:\Users\someone\x": "x",
    r"C:\\Users\\someone\\x": "x",
    "C:/Users/someone/x": "x",
    r"\\server\someone\x": "x",
    "//server/someone/x": "x",
    "%2Fdisk%2Fsomeone%2Fx": "x",
    "file%3A%2F%2F%2Fdisk%2Fsomeone%2Fx": "x",
    "cannot read (/disk/someone/x): /disk/someone/y, /disk/someone/z": "cannot read (x): y, z",
    "error:/disk/someone/x": "error:x",
}
NO_PATHS = [
    "https://host/a/b", "https://huggingface.co/org%2Fname", "hf://datasets/a/b", "s3://bucket/a/b", "http://host:80/a/b",
    "org/name", "outputs/stage2", "../data/x", "1/2 and and/or", "5 m/s", "<b></b></i>", "C: three", "Q: what?", "/no_think",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("published"))


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run.model, tmp_path / "stage2"))


def test_nothing_but_the_fixed_list(copied):
    """Catches what happens to lie in the folder of a run being published, because its name looks like one of ours."""
    before = set(checkpoint_files(copied))
    for name in (
        "secrets.py", "convert_weights.py", "tokenizer_backup.bin", "tokenizer.json.orig", "model.old.safetensors",
        "model_secret.safetensors", "LICENSE-notes.private", "LICENSE_KEY", ".env", "credentials.json", "README.md", "notes.txt",
        "runs/notes.txt", "model-00001-of-00002.safetensors",
    ):  # fmt: skip
        (copied / name).write_text("x")
    assert set(checkpoint_files(copied)) == before
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names weights in '\.\./other"):
        checkpoint_files(copied)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "trainer_state.json", "run_config.yaml", "model.safetensors", "log"]
)
def test_links_out_of_the_folder(name, copied, tmp_path):
    """Catches a link whose target, which was never meant to be published, is published under the link's name."""
    path = copied / name if name != "log" else next(copied.glob("runs/*/*"))
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    with pytest.raises(UploadError, match=f"{path.name} is not in .*leads to {tmp_path / path.name}"):
        checkpoint_files(copied)


def test_links_within_and_to_the_folder(copied, tmp_path):
    """Catches a run that cannot be published because its own folder is a link, or a file has two names in it."""
    (copied / "tokenizer.json").rename(copied / "kept.json")
    (copied / "tokenizer.json").symlink_to("kept.json")
    (tmp_path / "link").symlink_to(copied)
    assert "tokenizer.json" in checkpoint_files(tmp_path / "link")


def test_links_of_evaluations_and_prepared_data(run, tmp_path):
    """Catches links and `..` in what is read from other folders: scores, and the files that a manifest names."""
    scores = Path(shutil.copytree(run.scores, tmp_path / "scores"))
    (scores / "details.json").rename(tmp_path / "details.json")
    (scores / "details.json").symlink_to(tmp_path / "details.json")
    (evaluation,) = find_evaluations(run.model, [scores])
    with pytest.raises(UploadError, match="details.json is not in"):
        evaluation.files()
    data = tmp_path / "data"
    data.mkdir()
    (data / "README.md").write_text("---\n---\n")
    (data / "preparation.json").write_text(json.dumps({"files": {"../details.json": 1}}))
    with pytest.raises(UploadError, match=r"\.\./details.json is not in"):
        _push(None, "org/data", data, True, "v1")
    with pytest.raises(UploadError, match="is not in"):
        own_file(data, "/etc/hostname")


def test_prepared_data_go_without_paths(hub, tmp_path):
    """Catches folders of the machine in the manifest's list of scenes that were left out, and in the card's notes."""
    (tmp_path / "qa").mkdir()
    table = pyarrow.table({"question": ["What is it?"]})
    pyarrow.parquet.write_table(table, tmp_path / "qa" / "train-00000-of-00001.parquet")
    left_out = [{"scene_id": "a", "file": "/disk/someone/scans/a.sens", "reason": "file:///disk/someone/b is cut"}]
    manifest = {"files": {"qa/train-00000-of-00001.parquet": 1}, "left_out": left_out, "notes": []}
    (tmp_path / "preparation.json").write_text(json.dumps(manifest))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nSee `/disk/someone/notes.txt`.\n")
    _push(HfApi(endpoint=hub.url, token=TOKEN), "org/data", tmp_path, True, "v1")
    files = hub.repos["dataset", "org/data"].head.files
    assert b"someone" not in b"".join(file.content for file in files.values())
    kept = json.loads(files["preparation.json"].content)
    assert kept["left_out"] == [{"scene_id": "a", "file": "a.sens", "reason": "b is cut"}]


@pytest.mark.parametrize("text", SPELLINGS)
def test_paths_in_all_spellings(text):
    """Catches folders and user names that are published because they are written in another way than on Linux."""
    assert without_folders(text) == SPELLINGS[text]
    assert without_folders({"a": [f"see {text}"]}) == {"a": [f"see {SPELLINGS[text]}"]} or " one/" in text
    assert "someone" not in without_folders(f"see {text}")


@pytest.mark.parametrize("text", NO_PATHS)
def test_what_is_no_path_stays(text):
    """Catches addresses, names of repositories, fractions and relative paths being cut."""
    assert without_folders(text) == text and without_folders(f"see {text}, ok") == f"see {text}, ok"


@pytest.mark.parametrize("spelled", ["{}", "file://{}/x", '"{}"', "a={}/b"])
def test_folders_of_this_machine_are_refused(spelled, monkeypatch, tmp_path):
    """Catches a path in a file that is published as it is: code, configuration, licence."""
    monkeypatch.setenv("HOME", str(tmp_path / "some one"))
    home = str(tmp_path / "some one")
    for path in (home, home.replace("/", "\\/"), home.replace("/", "%2F")):
        content = f"first\n{spelled.format(path)}\n".encode()
        with pytest.raises(UploadError, match="processing_vggt_qwen3.py, line 2: names a folder of this machine"):
            check_contents({"processing_vggt_qwen3.py": content})
    check_contents({"a.json": b"some one", "b.json": f"{home}s".encode(), "c.md": b"https://host/a"})
    assert find_folder(b"/a/b", [Path("/")]) is None


def test_logs_are_their_numbers(run, tmp_path):
    """Catches arguments, folders and the host's name in TensorBoard logs, and curves that are lost with them."""
    ((name, content),) = [item for item in checkpoint_files(run.model).items() if item[0].startswith("runs/")]
    assert b"output_dir" not in content and b"somehost" not in content and "somehost" not in name
    assert os.uname().nodename not in name and str(run.model).encode() not in content
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    log = EventAccumulator(str(path)).Reload()
    (event,) = log.Scalars("train/loss")
    assert (event.step, event.value) == (2, 1.5) and log.Tags()["tensors"] == []
