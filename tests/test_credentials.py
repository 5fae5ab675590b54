# SPDX-License-Identifier: Apache-2.0
"""Tokens: not in what a run leaves or says, and never in what is published."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hub_server import TOKEN
from huggingface_hub import HfApi
from published_run import make_run, record_run
from safetensors.torch import save_file
from toys import write_toy_checkpoint, write_toy_repo

import push_to_hub
from data_scripts.credentials import (
    HUB_TOKEN_VARIABLE,
    REMOVED,
    find_credential,
    hide_credentials,
    without_credentials,
)
from data_scripts.hub import UploadError, check_contents, check_repo, upload
from recipes import launch
from recipes.publishing.checkpoint import checkpoint_files
from recipes.publishing.upload import make_unevaluated_card
from recipes.runs.arguments import CONFIGS, ModelArguments, SftArguments, parse_arguments
from recipes.runs.record import read_record
from recipes.runs.run_config import resolved_config, write_run_config


ROOT = Path(__file__).parents[1]
# Put together here, or this file would hold what is looked for.
SECRET = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
PLAIN = "my-own-gateway-word"  # a token without a form of its own
FORMS = {
    "Hugging Face": SECRET,
    "its organizations": "api_org_" + SECRET[3:],
    "GitHub": "ghp_" + SECRET[3:] + "89",
    "GitHub, fine-grained": "github_pat_" + "11ABCDEFG0" + SECRET[3:],
    "OpenAI": "sk-proj-" + SECRET[3:],
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "Slack": "xoxb-" + "123456789012-abcdef",
    "Weights and Biases": "WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567",
    "an address": "https://someone:" + "password1@host/repo.git",
    "a key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
}
HARMLESS = [
    "hf_hub_download(repo, name)", "--max_new_tokens 32", "git@github.com:org/name.git", "https://host:8080/a@b", "desk-lamp-of-the-living-room-on-the-left",
    "0123456789abcdef" * 4, "-----BEGIN CERTIFICATE-----", '{"eos_token_id": 3, "image_tokens": "many"}', "user@host: a, b", "key: value",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("published"))


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run's checkpoint that a test may put things into."""
    return Path(shutil.copytree(run.model, tmp_path / "stage2"))


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_tokens(form):
    """Catches a kind of token that is stored, shown or published because nobody thought of its form."""
    text = f"first line\nsaid {FORMS[form]} and more"
    hidden = hide_credentials(text)
    assert REMOVED in hidden and FORMS[form] not in hidden and hidden.startswith("first line\nsaid ")
    assert find_credential(text.encode()) == "line 2" and find_credential(hidden.encode()) is None


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_token_stays(text):
    """Catches records that lose settings, and publications that are refused, for a word that looks a little like a token."""
    assert hide_credentials(text) == text and find_credential(text.encode()) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", PLAIN],
        [f"--hub_token={PLAIN}"],
        ["--push-to-hub-token", PLAIN],
        [f"--wandb_api_key={PLAIN}"],
        ["--password", PLAIN],
    ],
)
def test_secret_arguments_are_dropped_from_commands(words):
    """Catches a token that stays because its argument is written in another way, or is no token of the Hub."""
    command = ["recipes/stage2.py", "--lora_r", "4", *words, "--max_new_tokens", "8"]
    kept = ["recipes/stage2.py", "--lora_r", "4", "--max_new_tokens", "8"]
    assert without_credentials({"command": command})["command"] == kept
    assert PLAIN not in hide_credentials(" ".join(command)) and PLAIN not in hide_credentials(str(command))
    assert PLAIN not in str(without_credentials({"a": [{"hub_token": PLAIN}], "b": f'{{"api_key": "{PLAIN}"}}'}))


def test_a_settings_token_is_in_no_form_of_the_arguments(tmp_path):
    """Catches a token in training_args.bin (a pickle of them), in what TensorBoard and others get, or in a traceback."""
    arguments = SftArguments(output_dir=str(tmp_path), hub_token=SECRET, run_name=f"try {SECRET}")
    torch.save(arguments, tmp_path / "training_args.bin")
    kept = (tmp_path / "training_args.bin").read_bytes()
    for form in (kept, pickle.dumps(arguments), repr(arguments), arguments.to_json_string(), str(arguments.to_dict())):
        assert SECRET not in (form.decode("latin-1") if isinstance(form, bytes) else form)
    assert arguments.hub_token == SECRET
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert loaded.hub_token is None and loaded.learning_rate == arguments.learning_rate


def test_tokens_of_an_earlier_version_are_not_passed_on(run, copied):
    """Catches the token that an older `run.json` holds in the card, in the next stage's record, and in a publication."""
    record = json.loads((copied / "run.json").read_text())
    record["command"] += ["--hub_token", PLAIN]
    (copied / "run.json").write_text(json.dumps(record))
    (copied / "run_config.yaml").write_text((copied / "run_config.yaml").read_text() + f"  hub_token: {PLAIN}\n")
    assert PLAIN not in make_unevaluated_card(copied, "org/name") and PLAIN not in str(read_record(str(copied)))
    for content in checkpoint_files(copied).values():
        assert PLAIN.encode() not in (content if isinstance(content, bytes) else content.read_bytes())
    later = copied.parent / "stage3"
    later.mkdir()
    record_run(later, ModelArguments(str(copied)), [run.data])
    assert PLAIN not in (later / "run.json").read_text()


@pytest.mark.parametrize("words", [["--hub_tokens", SECRET], ["--learning_rate", SECRET]])
def test_errors_do_not_repeat_a_token(words, tmp_path, capsys, monkeypatch):
    """Catches a token in the log of a job because its argument was mistyped."""
    argv = ["--model_name_or_path", "m", "--dataset_paths", "d", "--output_dir", str(tmp_path), *words]
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage2_3d.yaml", argv)
    monkeypatch.setattr("sys.argv", ["recipes.launch", "stage2", *words])
    with pytest.raises(SystemExit):
        launch.main()
    said = capsys.readouterr().err
    assert SECRET not in said and REMOVED in said


def test_a_token_in_a_yaml_file_is_used_and_not_kept(tmp_path):
    """Catches a token that is safe on the command line and copied to run_config.yaml from a file, or that no upload gets."""
    text = (CONFIGS / "stage2_3d.yaml").read_text()
    (tmp_path / "stage2.yaml").write_text(f"{text}\nhub_token: {PLAIN}\nrun_name: {SECRET}\n")
    argv = ["--config", str(tmp_path / "stage2.yaml"), "--output_dir", str(tmp_path / "run"), "--bf16", "false"]
    model, data, training = parse_arguments(CONFIGS / "stage2_3d.yaml", argv)
    assert training.hub_token == PLAIN
    write_run_config(tmp_path / "run", resolved_config(model, data, training))
    kept = (tmp_path / "run" / "run_config.yaml").read_text()
    assert PLAIN not in kept and SECRET not in kept and f"run_name: {REMOVED}" in kept


def test_the_launcher_hands_a_token_on_unseen(monkeypatch):
    """Catches a token in the command line of a child, which every user of the machine sees, or one that does not arrive."""
    monkeypatch.setenv(HUB_TOKEN_VARIABLE, PLAIN)
    assert SftArguments(output_dir="out").hub_token == PLAIN
    assert HUB_TOKEN_VARIABLE not in os.environ  # data loaders and compilers have no use for it
    assert SftArguments(output_dir="out").hub_token is None


def test_the_job_scripts_say_no_token(tmp_path):
    """Catches a token in a job's output, which often lies where others read."""
    stubs = """
        scontrol() { [ "$2" = hostnames ] && echo node1 || echo "NodeName=node1 NodeAddr=10.0.0.1 Port=1"; }
        srun() { true; }
    """
    variables = {"MODULES": "", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7"}
    script = f"{stubs}\n. recipes/slurm/common.sh\nrun_stage stage2 --num_processes auto -- --hub_token {PLAIN}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=os.environ | variables, text=True, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0 and "stage2, meeting at 10.0.0.1:20007" in done.stdout, done
    assert PLAIN not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_leaves_no_trace_of_its_token(tmp_path):
    """Catches a token in any byte of any file of a run, or in what it prints, also where accelerate tells a failed command."""
    model = write_toy_checkpoint(tmp_path / "model")
    data = write_toy_repo(tmp_path / "toy_scanqa", {"train": 2, "val": 1})
    options = (
        f"--model_name_or_path {model} --dataset_paths {data} --dataset_weights 1 --image_size 28 --max_steps 1 --bf16 false "
        "--report_to tensorboard --logging_steps 1 --eval_strategy no --load_best_model_at_end false --save_strategy steps "
        "--save_steps 1 --dataloader_num_workers 0 --global_batch_size 1 --freeze_text_layers 0 "
        f"--output_dir {tmp_path / 'run'} --hub_token={PLAIN} --run_name {SECRET}"
    )
    command = [sys.executable, "-m", "recipes.launch", "stage2", "--num_processes", "1", "--", *options.split()]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"run.json", "run_config.yaml", "training_args.bin"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    for path in files:
        assert PLAIN.encode() not in path.read_bytes() and SECRET.encode() not in path.read_bytes(), path
    command += ["--deepspeed", str(tmp_path / "missing.json"), "--output_dir", str(tmp_path / "other")]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode != 0 and "recipes.launch: the run failed" in done.stderr
    assert "returned non-zero exit status" in done.stderr  # accelerate's, with the command
    assert PLAIN not in said + done.stdout + done.stderr and SECRET not in said + done.stdout + done.stderr


################
# Publishing
################


def plant(copied: Path, where: str):
    """Puts a token into a file of the checkpoint that is published as it is."""
    if where == "model.safetensors":
        save_file({"a": torch.zeros(1)}, copied / where, {"format": "pt", "note": SECRET})
    else:
        (copied / where).write_text((copied / where).read_text() + f"\n\n# {SECRET}\n")


@pytest.mark.parametrize(
    "where", ["processing_vggt_qwen3.py", "model.safetensors", "chat_template.jinja", "merges.txt"]
)
def test_a_planted_token_is_not_published(where, copied, run, hub, capsys, monkeypatch):
    """Catches a token in what everybody can read; the refusal names file and line, and does not show the token."""
    (copied / "merges.txt").write_text("a b\n")
    lines = 0 if where == "model.safetensors" else (copied / where).read_text().count("\n")
    plant(copied, where)
    place = "the header" if where == "model.safetensors" else f"line {lines + 3}"
    if where != "model.safetensors":  # the scores are of these weights
        monkeypatch.setattr("recipes.publishing.upload.validate", lambda *arguments: pytest.fail("was run"))
        argv = ["push_to_hub.py", "--model", str(copied), "--repo-id", "org/name", "--evaluation", str(run.scores)]
        monkeypatch.setattr("sys.argv", [*argv, "--dry-run"])
        assert push_to_hub.main() == 2
        said = "".join(capsys.readouterr())
        assert f"{where}, {place}" in said and SECRET not in said
    files = checkpoint_files(copied)
    api, options = HfApi(endpoint=hub.url, token=TOKEN), {"private": True, "tag": None}
    remote = check_repo(api, "org/name", "model", files, marker="run.json", **options)
    with pytest.raises(UploadError, match=f"{where}, {place}") as refusal:
        upload(api, "org/name", "model", files, remote, message="test", **options)
    assert SECRET not in str(refusal.value) and not hub.repos


def test_tokens_in_the_texts_of_a_parquet_file(tmp_path):
    """Catches a token that compression hides in a column of questions; pictures are not read."""
    path = tmp_path / "data.parquet"
    pictures = pyarrow.array([{"bytes": SECRET.encode(), "path": "a.jpg"}])
    for answers, expected in ((["red"], None), ([f"the token {SECRET}"], "column answers")):
        pyarrow.parquet.write_table(pyarrow.table({"answers": [answers], "image": pictures}), path, compression="zstd")
        assert find_credential(path) == expected
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UploadError, match="qa/data.parquet cannot be read"):
        check_contents({"qa/data.parquet": path})
