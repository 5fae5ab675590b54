# SPDX-License-Identifier: Apache-2.0
"""Runs that are preempted, killed while they save, out of disk, or continued with other settings."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from toys import write_toy_checkpoint, write_toy_repo

from recipes.launching.output import lock_holder, lock_output
from recipes.publishing.upload import publish_run
from recipes.runs.arguments import CONFIGS
from recipes.runs.checkpoints import (
    CheckpointError,
    ResumableTrainer,
    check_checkpoint,
    last_whole_checkpoint,
    remove_old_checkpoints,
)
from recipes.runs.preemption import REQUEUE_EXIT_CODE, SIGNALS
from recipes.runs.run_config import RUN_CONFIG, lock_output_dir, run_at_work
from recipes.training.sft import main


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A toy checkpoint and the arguments that every run here shares."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_toy_checkpoint(folder / "model")
    repo = write_toy_repo(folder / "toy_scanqa_fault", {"train": 6, "val": 2})
    return [
        "--model_name_or_path", model, "--dataset_paths", repo, "--dataset_weights", 1, "--image_size", 28,
        "--global_batch_size", 2, "--per_device_train_batch_size", 2, "--questions_per_scene", 2,
        "--report_to", "none", "--bf16", "false", "--freeze_text_layers", 0, "--max_steps", 6, "--save_steps", 2,
        "--eval_strategy", "no", "--load_best_model_at_end", "false", "--logging_steps", 1, "--seed", 3,
        "--save_total_limit", 5, "--dataloader_num_workers", 0,
    ]  # fmt: skip


def run_stage2(*arguments):
    """Runs stage 2 in this process, as its script does; returns the exit code or message, None if it came to its end."""
    handlers, argv = {number: signal.getsignal(number) for number in SIGNALS}, sys.argv
    sys.argv = ["stage2.py", *map(str, arguments)]
    try:
        main(CONFIGS / "stage2_3d.yaml", publish_run)
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return None


@pytest.fixture
def run(inputs):
    return lambda output, *arguments: run_stage2(*inputs, "--output_dir", output, *arguments)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A run that nothing disturbed: three checkpoints."""
    output = tmp_path_factory.mktemp("whole")
    assert run_stage2(*inputs, "--output_dir", output) is None
    return output


def losses_of(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


################
# Whole or not
################


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    """What a file system can leave of a file when the power goes: its length, without its bytes."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    """One bit in the middle of a file, which its header does not tell."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


def with_code(path):
    size = path.stat().st_size
    torch.save({"state": Harmful()}, path)
    manifest = path.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["files"][path.name] == size
    content["files"][path.name] = path.stat().st_size
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "name", "expected"),
    [
        (Path.unlink, "manifest.json", "written last"),
        (Path.unlink, "rng_state.pth", "rng_state.pth is missing"),
        (cut, "adapter_model.safetensors", "adapter_model.safetensors has"),
        (cut, "optimizer.pt", "optimizer.pt has"),
        (zero, "adapter_model.safetensors", "adapter_model.safetensors: "),
        (zero, "trainer_state.json", "trainer_state.json: "),
        (zero, "scheduler.pt", "scheduler.pt: "),
        (with_code, "optimizer.pt", "system"),
        *(
            (flip, name, f"{name} has other bytes than were written")
            for name in ("adapter_model.safetensors", "optimizer.pt")
        ),
        *((flip, name, name) for name in ("rng_state.pth", "tokenizer.json", "training_args.bin", "README.md")),
    ],
)
def test_a_damaged_checkpoint_is_not_resumed(damage, name, expected, whole, tmp_path, caplog):
    """Catches a choice by name alone: the previous whole one is taken, with a line that names the damaged one."""
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-6" / name)
    with pytest.raises(CheckpointError, match=expected):
        check_checkpoint(tmp_path / "run" / "checkpoint-6")
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-4"
    (line,) = [record.getMessage() for record in caplog.records if "checkpoint-6" in record.getMessage()]
    assert expected in line and "\n" not in line


def test_hashing_can_be_left_out_and_old_manifests_have_none(whole, run, tmp_path, caplog):
    """Catches a checkpoint of before there were hashes that is refused, and a setting that changes nothing."""
    shutil.copytree(whole, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoint-6" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["sha256"].keys() == content["files"].keys()
    flip(manifest.parent / "adapter_model.safetensors")
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-4"
    assert last_whole_checkpoint(tmp_path / "run", hashes=False).name == "checkpoint-6"
    assert run(tmp_path / "run", "--verify_checkpoint", "false", "--resume_from_checkpoint", manifest.parent) is None
    assert "other bytes" in run(tmp_path / "run", "--resume_from_checkpoint", manifest.parent)
    del content["sha256"]
    manifest.write_text(json.dumps(content))
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-6"


def test_a_run_without_a_whole_checkpoint_does_not_start_again_by_itself(whole, run, tmp_path):
    """Catches a week of training that begins anew, and writes over what might have been saved."""
    shutil.copytree(whole, tmp_path / "run")
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        (folder / "manifest.json").unlink()
    assert "None of the 3 checkpoints" in run(tmp_path / "run")


def test_a_run_starts_where_resume_from_checkpoint_says(whole, run, tmp_path):
    """Catches a choice that is read and dropped: steps trained before the checkpoint, or a run that goes on unasked."""
    assert run(tmp_path / "named", "--resume_from_checkpoint", whole / "checkpoint-2") is None
    assert losses_of(tmp_path / "named") == losses_of(whole)
    assert {folder.name for folder in (tmp_path / "named").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}

    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-2")
    assert run(tmp_path / "again", "--resume_from_checkpoint", "none") is None
    assert (tmp_path / "again" / "checkpoint-2").is_dir()
    assert "checkpoint-3" in run(tmp_path / "named", "--resume_from_checkpoint", whole / "checkpoint-3")


def test_a_run_killed_while_it_saves_resumes_from_the_one_before(whole, run, tmp_path, monkeypatch):
    """Catches a half-written checkpoint that is picked, and an old one deleted before the new one is whole."""
    save_rng_state = ResumableTrainer._save_rng_state

    def killed(trainer, output_dir):
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        save_rng_state(trainer, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTrainer, "_save_rng_state", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "--save_total_limit", 1)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / "_saving" / "checkpoint-4" / "adapter_model.safetensors").exists()
    assert run(tmp_path, "--save_total_limit", 1) is None
    assert losses_of(tmp_path) == losses_of(whole)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert not (tmp_path / "_saving").exists()


@pytest.mark.parametrize("stopped", [1, 2])
def test_workers_persist_and_a_resumed_run_is_the_same(stopped, run, tmp_path, monkeypatch):
    """
    Catches data loader workers that are started, and open their files, anew in every epoch, or outlive the training; and
    a resumed run, whose workers start once more, that draws other dropout: within an epoch (1) and between two (2).
    """
    started, iterator = [], torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    start = iterator.__init__
    monkeypatch.setattr(iterator, "__init__", lambda *arguments: started.append(1) or start(*arguments))
    # Two steps an epoch, three epochs.
    arguments = [
        "--global_batch_size",
        6,
        "--per_device_train_batch_size",
        6,
        "--save_steps",
        1,
        "--dataloader_num_workers",
        1,
    ]
    arguments += ["--lora_dropout", 0.3, "--save_total_limit", 9]
    assert run(tmp_path / "whole", *arguments) is None
    assert len(started) == 1
    assert not multiprocessing.active_children()
    assert (
        run(tmp_path / "again", *arguments, "--resume_from_checkpoint", tmp_path / f"whole/checkpoint-{stopped}")
        is None
    )
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "whole")


def test_a_clock_ahead_does_not_delete_the_newest_checkpoint(whole, run, tmp_path):
    """Catches an age that is told by time of change: of a file server whose clock was an hour ahead before it was set."""
    shutil.copytree(whole, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    os.utime(tmp_path / "run" / "checkpoint-2", (time.time() + 3600,) * 2)
    assert run(tmp_path / "run", "--save_total_limit", 1) is None
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize(
    ("newest", "limit", "best", "kept"),
    [
        (40, 2, None, [30, 40]),
        (40, 1, 20, [20, 40]),  # the best and the newest stay whatever the limit is
        (40, 3, 20, [20, 30, 40]),
        (40, None, None, [9, 20, 30, 40]),
        (40, 0, None, [9, 20, 30, 40]),
        (20, 1, None, [20]),  # begun anew in a folder of before, or gone back: what comes later is older
        (20, 2, None, [9, 20]),
        (20, 2, 40, [20, 40]),
    ],
)
def test_old_checkpoints_are_told_by_their_step(newest, limit, best, kept, tmp_path):
    """Catches steps in the order of words (9 after 40), a best or newest one that is deleted, and copies that are a user's own."""
    for age, step in enumerate((40, 9, 30, 20)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() - 100 * age,) * 2)
    (tmp_path / "checkpoint-8-mine").mkdir()
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    remove_old_checkpoints(tmp_path / f"checkpoint-{newest}", limit, best)
    left = sorted(folder.name for folder in tmp_path.iterdir())
    assert left == sorted(["checkpoint-8-mine", *(f"checkpoint-{step}" for step in kept)])


def test_the_best_checkpoint_is_known_by_its_final_name(run, tmp_path):
    """Catches a trainer_state.json that points into the folder which the checkpoint was written in."""
    best = ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 2, "--eval_questions", 1]
    assert run(tmp_path, *best, "--max_steps", 4, "--max_new_tokens", 1) is None
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]) == tmp_path / f"checkpoint-{state['best_global_step']}"


def test_a_full_disk_leaves_the_last_checkpoint(whole, run, tmp_path):
    """Catches a last good checkpoint lost to one that does not fit: on a real file system with room for one and a half."""
    size = sum(path.stat().st_size for path in (whole / "checkpoint-2").rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        message = run(disk / "run")
        assert "Saving" in message and "checkpoint-4 failed" in message and "MiB were free" in message
        assert "checkpoint-2 is whole" in message
        assert last_whole_checkpoint(disk / "run").name == "checkpoint-2"
        # With more room the same command goes on.
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", disk], check=True)
        assert run(disk / "run") is None
        assert losses_of(disk / "run") == losses_of(whole)
    finally:
        subprocess.run(["umount", disk], check=True)


################
# Preemption
################


@pytest.mark.parametrize("number", SIGNALS)
def test_a_preempted_run_saves_and_goes_on(number, whole, run, tmp_path, monkeypatch):
    """Catches a signal that ends the run at once, a second one that breaks the checkpoint, and lost or repeated steps."""
    step, save_rng_state = ResumableTrainer.training_step, ResumableTrainer._save_rng_state

    def signalled_step(trainer, *arguments):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), number)
        return step(trainer, *arguments)

    def signalled_save(trainer, output_dir):
        os.kill(os.getpid(), signal.SIGTERM)
        save_rng_state(trainer, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTrainer, "training_step", signalled_step)
        patch.setattr(ResumableTrainer, "_save_rng_state", signalled_save)
        assert run(tmp_path) == REQUEUE_EXIT_CODE
    check_checkpoint(tmp_path / "checkpoint-3")
    told = json.loads((tmp_path / "preempted.json").read_text())
    assert (told["step"], told["checkpoint"]) == (3, "checkpoint-3")
    assert not list(tmp_path.glob("*.safetensors"))
    assert run(tmp_path) is None
    assert losses_of(tmp_path) == losses_of(whole)
    assert not (tmp_path / "preempted.json").exists() and list(tmp_path.glob("*.safetensors"))


def test_a_signal_before_training_ends_the_run_at_once(run, tmp_path, monkeypatch):
    """Catches minutes of loading that a preempted job no longer has."""
    monkeypatch.setattr("recipes.training.sft.load_for_training", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert run(tmp_path) == REQUEUE_EXIT_CODE
    assert json.loads((tmp_path / "preempted.json").read_text())["checkpoint"] is None


def launched(inputs, output, *arguments):
    """Stage 2 with two processes under torchrun, each with a data loader of its own: returns torchrun's process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command += [ROOT / "recipes" / "stage2.py", *inputs, "--output_dir", output, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["torchrun", "worker"])
def test_two_processes_are_preempted_together(receiver, inputs, tmp_path):
    """Catches ranks that stop at different steps (a hang), data loaders that die of the signal, and a partial checkpoint."""
    long = ["--max_steps", 500, "--save_steps", 1000, "--per_device_train_batch_size", 1]
    long += ["--dataloader_num_workers", 1, "--num_train_epochs", 100]
    with launched(inputs, tmp_path, *long, "--max_steps", 500) as process:
        try:
            workers = training_processes(process)
            if receiver == "torchrun":
                process.terminate()  # torchrun passes SIGTERM on to the processes' groups: data loaders included
            else:
                workers[1].send_signal(signal.SIGUSR1)
            errors = process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode != 0
    assert (tmp_path / "preempted.json").exists(), errors[-3000:]
    told = json.loads((tmp_path / "preempted.json").read_text())
    assert told["checkpoint"] is not None, errors[-3000:]
    check_checkpoint(tmp_path / told["checkpoint"])
    assert (tmp_path / told["checkpoint"] / "rng_state_1.pth").exists()
    assert not list(tmp_path.glob("*.safetensors"))
    # The same settings, but for where the signal comes: it goes on where it stopped.
    with launched(inputs, tmp_path, *long) as process:
        training_processes(process)
        process.terminate()
        process.communicate(timeout=120)
    assert json.loads((tmp_path / "preempted.json").read_text())["step"] > told["step"]


# A process of a run on two machines. Saving is slow on the first; each looks whether all is there that it flushes.
TWO_MACHINES = """
import sys, time
from torch import nn
from transformers import TrainingArguments
from recipes.runs import checkpoints

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return {"loss": self.linear(x).square().mean()}

write_manifest, flush_all = checkpoints.write_manifest, checkpoints.flush_all

def slowly(folder, **about):
    time.sleep(0.5)
    write_manifest(folder, **about)

def flush(folder):
    assert (folder / "manifest.json").is_file(), "flushed while another machine writes"
    flush_all(folder)

checkpoints.flush_all = flush
checkpoints.write_manifest = slowly
arguments = TrainingArguments(
    sys.argv[1], max_steps=2, save_steps=1, use_cpu=True, report_to="none", remove_unused_columns=False
)
data = [{"x": [0.5, float(row)]} for row in range(8)]
checkpoints.ResumableTrainer(Model(), arguments, train_dataset=data).train()
"""


def test_machines_save_one_checkpoint_together(tmp_path):
    """
    Catches a machine that brings a checkpoint to the disk while another still writes in its folder: a file that has
    just been renamed ended the run, in one save of some hundred.
    """
    (tmp_path / RUN_CONFIG).write_text("{}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Each is the first of its machine.
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_MACHINES, tmp_path],
            env=environment | {"RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    for step in (1, 2):
        check_checkpoint(tmp_path / f"checkpoint-{step}")
    assert json.loads((tmp_path / "checkpoint-2" / "manifest.json").read_text())["world_size"] == 2


def training_processes(launcher, timeout=120):
    """The training processes of a launcher, once they have data loaders: that is, once they train."""
    deadline = time.time() + timeout
    while time.time() < deadline and launcher.poll() is None:
        workers = sorted(psutil.Process(launcher.pid).children(), key=lambda process: process.pid)
        if len(workers) == 2 and all(worker.children() for worker in workers):
            time.sleep(1)
            return workers
        time.sleep(0.1)
    raise AssertionError(launcher.stderr.read() if launcher.poll() is not None else "training did not begin")


################
# Another run's output
################


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--learning_rate", 0.5], "learning_rate is 0.0002 there and 0.5 here"),
        (["--lora_r", 4], "lora_r is 16 there and 4 here"),
        (["--global_batch_size", 1, "--per_device_train_batch_size", 1], "global_batch_size is 2 there and 1 here"),
        (["--seed", 4, "--max_steps", 8], "max_steps is 6 there and 8 here; seed is 3 there and 4 here"),
    ],
)
def test_another_configuration_does_not_continue_a_run(changed, expected, whole, run):
    """Catches a run that goes on with other settings, or a resumed data order that skips and repeats packs."""
    before = (whole / "run_config.yaml").read_text()
    assert expected in run(whole, *changed)
    assert (whole / "run_config.yaml").read_text() == before


def test_what_does_not_change_the_result_may_change(whole, run, tmp_path):
    """Catches a run that cannot be resumed on another machine: half the micro-batch, accumulated, is the same run."""
    shutil.copytree(whole, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    smaller = ["--per_device_train_batch_size", 1, "--eval_questions", 3, "--loss_chunk_size", 8]
    assert run(tmp_path / "run", *smaller, "--lora_dropout", 0.05) is None
    assert yaml.safe_load((tmp_path / "run" / "run_config.yaml").read_text())["data"]["eval_questions"] == 3
    assert set(losses_of(tmp_path / "run")) == set(range(1, 7))


def test_a_folder_that_is_no_run_is_refused(whole, run, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"someone's")
    assert "no run_config.yaml" in run(tmp_path)


def test_a_second_run_in_one_folder_is_kept_out(whole, run, tmp_path):
    """
    Catches two runs started by a plain `accelerate launch` that delete each other's checkpoints, a lock that outlives a
    process killed with -9 or one held by its data loaders, and one that refuses the run that goes on.
    """
    shutil.copytree(whole, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    reads, writes = os.pipe()
    if (first := os.fork()) == 0:  # a run, and a data loader of it
        lock_output_dir(tmp_path / "run")
        loader = os.fork()
        if loader != 0:
            os.write(writes, str(loader).encode())
        signal.pause()
        os._exit(0)
    try:
        loader = int(os.read(reads, 20))
        message = run(tmp_path / "run")
        assert f"is in use by another run: process {first} on {socket.gethostname()}" in message
        with pytest.raises(ValueError, match=f"process {first} on"):
            lock_output(tmp_path / "run", 0)
        assert lock_holder(tmp_path / "run") == f"process {first} on {socket.gethostname()}"
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    try:
        assert run_at_work(tmp_path / "run") is None
        assert run(tmp_path / "run") is None
    finally:
        os.kill(loader, signal.SIGKILL)
