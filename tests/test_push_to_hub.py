# SPDX-License-Identifier: Apache-2.0
"""Uploads to a Hub of our own: what is there afterwards, what is refused before, and what failures leave behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import READ_TOKEN, TOKEN, Fault, HubServer
from huggingface_hub import HfApi
from published_run import make_run
from safetensors.torch import load_file, save_file

from data_scripts.hub import UploadError, check_names, check_repo, check_token, upload
from recipes.runs.record import hash_weights


ROOT = Path(__file__).parents[1]
# 3 MB: several parts of the large file storage.
FILES = {
    "run.json": b"{}",
    "model.safetensors": bytes(range(256)) * 12000,
    "sub/small.txt": b"small",
    "empty.txt": b"",
}
UPLOAD = """
import sys
from huggingface_hub import HfApi
from data_scripts.hub import check_repo, upload
from tests_files import FILES
options = {"private": False, "tag": "v1.0"}
remote = check_repo(HfApi(), "org/name", "model", FILES, marker="run.json", **options)
upload(HfApi(), "org/name", "model", FILES, remote, message="test", **options)
"""


def push(hub, files, private=False, tag="v1.0", token=TOKEN):
    api = HfApi(endpoint=hub.url, token=token)
    options = {"private": private, "tag": tag}
    remote = check_repo(api, "org/name", "model", files, marker="run.json", **options)
    return upload(api, "org/name", "model", files, remote, message="test", **options)


def contents(commit):
    return {path: stored.content for path, stored in commit.files.items() if path != ".gitattributes"}


################
# What is there
################


def test_repeated_upload_changes_nothing(hub):
    """Catches a second commit of the same content, a tag that moves, and files sent again."""
    url, changed = push(hub, FILES)
    repo = hub.repos["model", "org/name"]
    assert url == f"{hub.url}/org/name" and changed and not repo.private
    assert contents(repo.head) == FILES and repo.tags == {"v1.0": repo.head.oid} and len(repo.commits) == 2
    sent = [request for request in hub.requests if request.startswith("PUT")]
    assert len(sent) == 3 and "/parts/" in sent[0]
    hub.requests.clear()
    assert push(hub, FILES) == (url, False)
    assert len(repo.commits) == 2 and not [request for request in hub.requests if request.startswith("PUT")]


def test_new_version_replaces_the_old(hub):
    """Catches files of an old version that stay, and an old version that its tag no longer finds."""
    push(hub, FILES)
    new = {"run.json": b"{}", "model.safetensors": b"other"}
    push(hub, new, tag="v1.1")
    repo = hub.repos["model", "org/name"]
    assert contents(repo.head) == new and contents(repo.find("v1.0")) == FILES and len(repo.commits) == 3
    assert repo.find("v1.1") is repo.head


def test_private(hub):
    """Catches a repo made public for a moment, and something private put where everybody reads."""
    push(hub, FILES, private=True)
    assert hub.repos["model", "org/name"].private
    hub.put("model", "org/name", FILES)
    with pytest.raises(UploadError, match="is public"):
        push(hub, FILES, private=True)


################
# What is refused before anything is uploaded
################


def test_other_content_is_kept(hub):
    """Catches somebody's repo being overwritten because its name was taken for a new one."""
    hub.put("model", "org/name", {"pytorch_model.bin": b"precious"})
    with pytest.raises(UploadError, match=r"org/name holds something else \(pytorch_model.bin"):
        push(hub, FILES)
    assert len(hub.repos["model", "org/name"].commits) == 2


def test_a_tag_names_one_version(hub):
    """Catches a published version being replaced under its name."""
    push(hub, FILES)
    with pytest.raises(UploadError, match="tag v1.0 of org/name names another version"):
        push(hub, FILES | {"sub/small.txt": b"smell"})
    assert len(hub.repos["model", "org/name"].commits) == 2


def test_tokens(hub, monkeypatch):
    """Catches a token that is missing, wrong or too weak being noticed only after the work is done."""
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    for token, words in ((None, "hf auth login"), ("hf_wrong", "401"), (READ_TOKEN, "may only read")):
        with pytest.raises(UploadError, match=words):
            check_token(HfApi(endpoint=hub.url, token=token))
    check_token(HfApi(endpoint=hub.url, token=TOKEN))


@pytest.mark.parametrize("name", ["name", "org/na me", "a/b/c", "org/name.git", "org/--name", "/name", ""])
def test_wrong_names(name):
    """Catches a name that the Hub would refuse, or take for a repo of another account, being tried."""
    with pytest.raises(UploadError, match="cannot name a repo"):
        check_names(name, "v1.0")
    with pytest.raises(UploadError, match="cannot name a tag"):
        check_names("org/name", "v 1")


################
# Failures
################


@pytest.mark.parametrize(
    "method, path, status", [("POST", "/commit/", 500), ("POST", "/commit/", 409), ("POST", "/repos/create", 500)]
)
def test_server_fails(hub, method, path, status):
    """Catches a failure that is swallowed, told in fifty lines, or leaves half a version; the second call goes on."""
    hub.faults.append(Fault(method, path, status=status, message="out of order"))
    with pytest.raises(UploadError, match=f"{status}: out of order.*same command goes on") as failure:
        push(hub, FILES)
    assert "\n" not in str(failure.value)
    repo = hub.repos.get(("model", "org/name"))
    assert repo is None or (contents(repo.head) == {} and not repo.tags)
    push(hub, FILES)
    repo = hub.repos["model", "org/name"]
    assert contents(repo.head) == FILES and len(repo.commits) == 2
    assert len([request for request in hub.requests if "/parts/1" in request]) == 1  # not sent again


def test_passing_failures_are_retried(hub):
    """Catches an upload given up because one request of many was answered with 500 or cut in the middle."""
    hub.faults += [Fault("PUT", "/parts/1", status=500, times=2), Fault("PUT", "/parts/2", cut_after=1000)]
    push(hub, FILES)
    assert contents(hub.repos["model", "org/name"].head) == FILES and not hub.faults


def test_tag_fails(hub):
    """Catches a version that stays without its tag because its content is there already."""
    hub.faults.append(Fault("POST", "/tag/", status=409, message="busy"))
    with pytest.raises(UploadError, match="409: busy"):
        push(hub, FILES)
    push(hub, FILES)
    repo = hub.repos["model", "org/name"]
    assert repo.tags == {"v1.0": repo.head.oid} and len(repo.commits) == 2


def test_somebody_else_was_faster(hub):
    """Catches a commit that was made between the check and the upload being overwritten."""
    push(hub, FILES)
    api, new = HfApi(endpoint=hub.url, token=TOKEN), {"run.json": b"{}"}
    options = {"private": False, "tag": "v2"}
    remote = check_repo(api, "org/name", "model", new, marker="run.json", **options)
    repo = hub.repos["model", "org/name"]
    repo.commit("theirs", dict(repo.head.files))
    with pytest.raises(UploadError, match="412.*commit has happened since"):
        upload(api, "org/name", "model", new, remote, message="test", **options)
    assert repo.head.title == "theirs"


def test_killed_half_way(tmp_path):
    """Catches half a version being visible after a kill, and a repeated upload that ends in something else."""
    (tmp_path / "tests_files.py").write_text(f"FILES = {FILES!r}")
    reached = threading.Event()
    with HubServer() as hub:
        hub.faults.append(Fault("PUT", "/parts/3", cut_after=1000, reached=reached))
        environment = hub.environment(tmp_path) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        process = subprocess.Popen([sys.executable, "-c", UPLOAD], env=environment, stderr=subprocess.DEVNULL)
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        repo = hub.repos["model", "org/name"]
        assert contents(repo.head) == {} and not repo.tags
        subprocess.run([sys.executable, "-c", UPLOAD], env=environment, check=True)
        assert contents(repo.head) == FILES and repo.tags == {"v1.0": repo.head.oid} and len(repo.commits) == 2


################
# A model
################

# The local checkpoint and the published one, as a stranger loads them: the package itself cannot be imported.
LOAD_MODEL = """
import importlib.abc, sys
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_vggt_qwen3", "recipes", "data_scripts"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
logits = []
for source in ("org/name", sys.argv[1]):
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    views = [Image.new("RGB", (28, 28), color) for color in ("red", "green")]
    content = [*({"type": "image", "image": view} for view in views), {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    logits.append(model(**inputs).logits)
assert torch.equal(*logits) and logits[0].abs().max() > 0
code = ModelCard.load("org/name").text.split("```python\\n")[1].split("```")[0]
exec(code)
"""


def publish_command(model, *options):
    return [sys.executable, "push_to_hub.py", "--model", str(model), "--repo-id", "org/name", *options]


@pytest.mark.slow
def test_model_round_trip(tmp_path):
    """Catches a published model that strangers cannot load, that answers otherwise, or a card whose code does not run."""
    run = make_run(tmp_path / "run")
    with HubServer(chunk_size=1 << 18) as hub:
        environment = hub.environment(tmp_path / "home")
        dry = subprocess.run(
            publish_command(run.model, "--dry-run"),
            env=environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=False,
        )
        assert dry.returncode == 0 and "nothing was uploaded" in dry.stdout and not hub.repos, dry.stderr
        for expected in ("published: ", "already published: "):
            command = publish_command(run.model, "--private")
            done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False)
            assert done.returncode == 0 and done.stdout.startswith(expected), done.stderr
        repo = hub.repos["model", "org/name"]
        assert repo.private and len(repo.commits) == 2 and repo.tags == {"v1.0": repo.head.oid}
        assert repo.head.files["README.md"].content.decode() in dry.stdout
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD_MODEL, str(run.model)],
            env=environment, cwd=tmp_path, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert loaded.returncode == 0, loaded.stderr[-2000:]
        printed = repo.head.files["README.md"].content.decode().split("prints\n\n```\n")[1].split("\n```")[0]
        assert loaded.stdout.strip() == printed.strip()


@pytest.mark.slow
def test_broken_checkpoint_is_not_published(tmp_path):
    """Catches code or weights that do not load elsewhere being found out by those who download them."""
    run = make_run(tmp_path / "run")
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        weights = load_file(run.model / "model.safetensors")
        save_file({name: tensor for name, tensor in weights.items() if "projector" not in name}, run.model / "model.safetensors", {"format": "pt"})  # fmt: skip
        evaluation = json.loads((run.scores / "metrics.json").read_text())
        (run.scores / "metrics.json").write_text(json.dumps(evaluation | {"weights_sha256": hash_weights(run.model)}))
        code = run.model / "processing_vggt_qwen3.py"
        for text, words in (
            (code.read_text(), "missing_keys: "),
            ("import recipes\n" + code.read_text(), "is hidden"),
        ):
            code.write_text(text)
            done = subprocess.run(publish_command(run.model), env=environment, cwd=ROOT, text=True, capture_output=True, check=False)  # fmt: skip
            assert done.returncode == 2 and words in done.stderr and not hub.repos, done.stderr


@pytest.mark.slow
def test_trainer_pushes_the_same_card(tmp_path):
    """Catches Trainer's own card, pickles or half a model on the Hub when a recipe is run with push_to_hub."""
    run = make_run(tmp_path / "run")
    options = (
        f"--model_name_or_path {run.model} --output_dir {tmp_path / 'out'} --dataset_paths {run.data} --dataset_weights 1 "
        "--image_size 28 --max_steps 2 --bf16 false --report_to tensorboard --eval_strategy steps --eval_steps 2 "
        "--save_strategy steps --save_steps 2 --dataloader_num_workers 0 --global_batch_size 1 "
        "--freeze_text_layers 0 --push_to_hub true --hub_model_id org/trained --hub_private_repo true"
    )
    command = [sys.executable, "recipes/stage2.py", *options.split()]
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0 and f"published: {hub.url}/org/trained" in done.stdout, done.stderr[-3000:]
        repo = hub.repos["model", "org/trained"]
        assert repo.private and len(repo.commits) == 2 and "model.safetensors" in repo.head.files
        assert not [
            path for path in repo.head.files if "checkpoint" in path or path.endswith(".bin") or "adapter" in path
        ]
        assert [path for path in repo.head.files if path.startswith("runs/")]
        card = repo.head.files["README.md"].content.decode()
        assert "Not evaluated by `recipes.eval` yet" in card and "eval_exact_match" in card and "Run 2 of 2" in card
