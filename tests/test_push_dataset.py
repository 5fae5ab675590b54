# SPDX-License-Identifier: Apache-2.0
"""`prepare --push-to-hub` to a Hub of our own: what is there afterwards, what is refused, and who may read it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, Fault, HubServer
from huggingface_hub import DatasetCard, HfApi, metadata_load
from scannet_dump import write_scan, write_scanqa

from data_scripts.prepare import main as prepare


ROOT = Path(__file__).parents[1]


@pytest.fixture
def dump(tmp_path):
    """Raw files of ScanNet and ScanQA: the command that prepares them, which has to be told where to upload to."""
    for split, scene in (("train", "scene0000_00"), ("val", "scene0011_00")):
        write_scan(tmp_path / "raw" / "scans", scene)
        write_scanqa(tmp_path / "raw", split, [scene])
    files = [str(tmp_path / "raw" / f"ScanQA_v1.0_{split}.json") for split in ("train", "val")]
    return ["scanqa", "--annotations", *files, "--scannet-root", str(tmp_path / "raw" / "scans")]


LOAD_DATA = """
import sys
from datasets import load_dataset
from huggingface_hub import DatasetCard
questions, scenes = load_dataset("org/data", split="train"), load_dataset("org/data", "scenes", split="train")
assert load_dataset("org/data", "scenes", split="val", revision="v1.0")["scene_id"][:] == ["scene0011_00"]
(stream,) = load_dataset("org/data", "scenes", split="val", streaming=True)
assert stream["images"][0].size == scenes[0]["images"][0].size
assert 'load_dataset("org/data", "scenes")' in DatasetCard.load("org/data").text
print(questions[0]["question"], scenes[0]["scene_id"], len(scenes[0]["images"]))
"""


def test_dataset_round_trip(dump, tmp_path):
    """Catches a dataset that does not load from the Hub as it does from the folder, or a second push that changes it."""
    with HubServer(chunk_size=4096) as hub:
        environment = hub.environment(tmp_path / "home")
        command = [sys.executable, "-m", "data_scripts.prepare", *dump, "--output", str(tmp_path / "prepared")]
        command += ["--push-to-hub", "org/data"]
        run = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False)
        assert run.returncode == 0 and f"uploaded: {hub.url}/datasets/org/data (tag v1.0)" in run.stdout, run.stderr
        repo = hub.repos["dataset", "org/data"]
        assert repo.private and repo.tags == {"v1.0": repo.head.oid}
        loaded = [sys.executable, "-c", LOAD_DATA]
        run = subprocess.run(loaded, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
        assert run.stdout == "What colour is the chair? scene0000_00 3\n", run.stderr
        anonymous = hub.environment(tmp_path / "other", token=None)
        assert subprocess.run(loaded, env=anonymous, cwd=tmp_path, capture_output=True, check=False).returncode != 0


@pytest.fixture
def prepare_and_push(hub, dump, tmp_path, monkeypatch, capsys):
    """Prepares and pushes to org/data in this process; returns exit status and what was said."""
    monkeypatch.setattr(
        "data_scripts.prepare.HfApi", lambda **options: HfApi(endpoint=hub.url, token=TOKEN, **options)
    )

    def call(*options):
        status = prepare([*dump, "--output", str(tmp_path / "prepared"), "--push-to-hub", *(options or ["org/data"])])
        return status, "".join(capsys.readouterr())

    return call


def test_dataset_is_pushed_once(hub, prepare_and_push):
    """Catches a new commit of the same data, and new data under a published version's name."""
    assert prepare_and_push()[0] == 0
    status, said = prepare_and_push()
    assert status == 0 and "already uploaded" in said and len(hub.repos["dataset", "org/data"].commits) == 2


def test_private_data_stays_private(hub, prepare_and_push, dump, tmp_path):
    """Catches pictures that must not be passed on in a public repo, and a licence beside the files that is not read."""
    status, said = prepare_and_push("org/data", "--no-private")
    assert status == 2 and "ScanNet terms of use" in said and not (tmp_path / "prepared").exists()
    hub.put("dataset", "org/data", {})
    status, said = prepare_and_push()
    assert (
        status == 1
        and "is public and has to be private" in said
        and len(hub.repos["dataset", "org/data"].commits) == 2
    )
    (tmp_path / "raw" / "README.md").write_text("---\nlicense: mit\npretty_name: My rooms\n---\n")
    hub.repos.clear()
    shutil.rmtree(tmp_path / "prepared")
    assert prepare_and_push()[0] == 0 and not hub.repos["dataset", "org/data"].private
    card = DatasetCard.load(tmp_path / "prepared" / "README.md")
    assert (
        card.data.license == "mit"
        and "My rooms in the format of ScanQA" in card.text
        and "ScanNet terms" not in card.text
    )


def test_dataset_card_passes_the_hubs_checks(prepare_and_push, tmp_path):
    """Catches metadata that the Hub refuses, or from which nobody can tell what is allowed."""
    assert prepare_and_push()[0] == 0  # the server checks as the Hub does
    metadata = metadata_load(tmp_path / "prepared" / "README.md")
    assert metadata["license"] == ["cc-by-nc-sa-3.0", "other"] and metadata["license_name"] == "scannet-terms-of-use"
    assert DatasetCard.load(tmp_path / "prepared" / "README.md").data.configs[0]["config_name"] == "qa"


def test_push_is_refused_before_the_work(prepare_and_push, tmp_path, monkeypatch):
    """Catches hours of preparation before a wrong name or a missing token is noticed."""
    assert prepare_and_push("data")[0] == 2 and not (tmp_path / "prepared").exists()
    monkeypatch.setattr(
        "data_scripts.prepare.HfApi", lambda **options: HfApi(token="hf_wrong", endpoint="http://127.0.0.1:9")
    )
    status, said = prepare_and_push("org/data")
    assert status == 2 and "does not accept the token" in said and not (tmp_path / "prepared").exists()


def test_interrupted_push_of_a_dataset(hub, prepare_and_push):
    """Catches prepared data being lost, or prepared again, because uploading them failed."""
    hub.faults.append(Fault("POST", "/commit/", status=500))
    status, said = prepare_and_push()
    assert status == 1 and "is prepared but was not uploaded" in said and "500" in said
    status, said = prepare_and_push()
    assert status == 0 and "already prepared" in said and "\nuploaded: " in said
