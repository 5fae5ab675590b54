# SPDX-License-Identifier: Apache-2.0
"""A disk that is full while something is saved: one line, nothing half-written, and the same command goes on."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from test_fault_tolerance import losses_of, run_stage2
from tokenizers import Tokenizer
from toys import write_toy_checkpoint, write_toy_repo

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from recipes import export, feature_store
from recipes.common import feature_store_writer as store_writer
from recipes.common.loading import open_store
from recipes.runs.checkpoints import check_checkpoint, checkpoints_of
from recipes.runs.disk import is_full


FULL = Path("/dev/full")  # takes nothing


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toy_checkpoint(folder / "model")
    write_toy_repo(folder / "toy_scanqa_full", {"train": 4, "val": 1})
    return folder


def arguments_of(toys, output):
    return [
        "--model_name_or_path", toys / "model", "--dataset_paths", toys / "toy_scanqa_full", "--dataset_weights", 1,
        "--image_size", 28, "--global_batch_size", 1, "--per_device_train_batch_size", 1, "--questions_per_scene", 2,
        "--report_to", "none", "--bf16", "false", "--freeze_text_layers", 0, "--max_steps", 2, "--save_steps", 1,
        "--eval_strategy", "no", "--load_best_model_at_end", "false", "--logging_steps", 1, "--seed", 3,
        "--dataloader_num_workers", 0, "--output_dir", output,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(toys, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert run_stage2(*arguments_of(toys, output)) is None
    return output


def main_of(module, *argv):
    """A command's exit code or message; None if it came to its end."""
    before, sys.argv = sys.argv, [module.__name__, *map(str, argv)]
    try:
        module.main()
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv = before
    return None


def store_argv(toys, output):
    return [
        "--model",
        toys / "model",
        "--dataset",
        toys / "toy_scanqa_full",
        "--split",
        "train",
        "val",
        "--output",
        output,
    ]


def opened_store(toys, output):
    return open_store(str(output), str(toys / "model"), VggtQwen3Processor.from_pretrained(toys / "model"))


def is_the_line(message, target) -> bool:
    return f"Saving {target}" in message and "MiB were free)" in message and "\n" not in message


def fill_up(*arguments, **options):
    """What the tokenizer's library does with a file that does not fit."""
    Tokenizer.from_str('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}').save(str(FULL))


needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="needs /dev/full")


@needs_full
@pytest.mark.parametrize("library", ["python", "torch", "torch, old format", "tokenizers", "safetensors", "large"])
def test_every_library_is_understood(library):
    """Catches a library that says in words of its own, without an errno, that a disk is full."""
    error = {
        # Which replaces the file that it is given: what it raises, seen on a full tmpfs.
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "large": OSError(errno.EFBIG, "File too large"),
    }.get(library)
    if error is None:
        with pytest.raises(Exception) as caught:
            if library == "tokenizers":
                fill_up()
            elif library == "python":
                FULL.write_text("text")
            else:
                torch.save(torch.ones(100_000), FULL, _use_new_zipfile_serialization="old" not in library)
        error = caught.value
    assert is_full(error)
    assert not is_full(ValueError("shapes")) and not is_full(FileNotFoundError(errno.ENOENT, "No such file"))


@needs_full
@pytest.mark.parametrize("at", ["checkpoint", "end"])
def test_a_full_disk_while_the_tokenizer_is_written(at, toys, whole, tmp_path, monkeypatch):
    """Catches a traceback from below Python, and a model that is half there."""
    save = VggtQwen3Processor.save_pretrained

    def full(processor, folder, *arguments, **options):
        if ("checkpoint-2" in str(folder)) == (at == "checkpoint"):
            if at == "checkpoint" or "checkpoint-" not in str(folder):
                (Path(folder) / "tokenizer.json").write_text('{"half":')
                fill_up()
        return save(processor, folder, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(VggtQwen3Processor, "save_pretrained", full)
        message = run_stage2(*arguments_of(toys, tmp_path))
    last = tmp_path / f"checkpoint-{1 if at == 'checkpoint' else 2}"
    assert is_the_line(message, tmp_path) and f"{last} is whole: when there is room" in message
    check_checkpoint(last)
    there = {path.name for path in tmp_path.iterdir()} - {last.name, "checkpoint-1"}
    assert there <= {".run.lock", "run_config.yaml", "run.json", "trainer_state.json", "runs"}, there
    assert run_stage2(*arguments_of(toys, tmp_path)) is None
    assert losses_of(tmp_path) == losses_of(whole)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


@needs_full
def test_a_full_disk_while_a_model_is_exported(whole, tmp_path, monkeypatch):
    """As the above, of recipes.export."""
    argv = ["--checkpoint", whole / "checkpoint-2", "--output", tmp_path / "exported", "--merge-lora"]
    with monkeypatch.context() as patch:
        patch.setattr(VggtQwen3Processor, "save_pretrained", fill_up)
        assert is_the_line(main_of(export, *argv), tmp_path / "exported")
    assert not list(tmp_path.iterdir())
    assert main_of(export, *argv) is None


@needs_full
def test_a_full_disk_while_a_store_is_filled(toys, tmp_path, monkeypatch):
    """As the above, of recipes.feature_store; what had been stored stays and is not computed again."""

    def full(tensors, path, **options):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(feature_store, "ENTRIES_PER_SHARD", 2)
    with monkeypatch.context() as patch:
        patch.setattr(store_writer, "save_file", full)
        message = main_of(feature_store, *store_argv(toys, tmp_path / "store"))
    assert is_the_line(message, tmp_path / "store") and "the same command goes on" in message
    assert {path.name for path in (tmp_path / "store").iterdir() if not path.name.endswith(".lock")} == {"store.json"}
    assert main_of(feature_store, *store_argv(toys, tmp_path / "store")) is None
    assert len(opened_store(toys, tmp_path / "store").entries) == 5


################
# Every size of disk
################


@pytest.fixture
def disk(tmp_path):
    """A file system of a size that may be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def size_of(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def assert_whole_files(folder: Path):
    """No model is there, or a whole one."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.keys()
    if list(folder.glob("*.safetensors")):
        VggtQwen3ForConditionalGeneration.from_pretrained(folder)
        VggtQwen3Processor.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("run", 8), ("export", 12), ("store", 12)])
def test_every_size_of_disk(what, number, toys, whole, disk, tmp_path):
    """Catches a place to save at which a full disk is a traceback, or leaves a file cut short under its final name."""
    output = disk / "out"
    if what == "run":
        command, need = (lambda: run_stage2(*arguments_of(toys, output))), 2.5 * size_of(whole)
    elif what == "export":
        argv = ["--checkpoint", whole / "checkpoint-2", "--output", output, "--merge-lora"]
        command, need = (lambda: main_of(export, *argv)), 1.2 * size_of(whole)
    else:
        argv = store_argv(toys, output)
        assert main_of(feature_store, *store_argv(toys, tmp_path / "store")) is None
        command, need = (lambda: main_of(feature_store, *argv)), 1.5 * size_of(tmp_path / "store")
    refused = finished = 0
    for step in range(1, number + 1):
        shutil.rmtree(output, ignore_errors=True)
        size = max(int(need * step / number), 8192)
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        message = command()
        if message is None:
            finished += 1
        else:
            refused += 1
            assert is_the_line(message, disk) or "cannot write to" in message, message
        if what == "run":
            for folder in checkpoints_of(output):
                check_checkpoint(folder)
            assert_whole_files(output)
            assert not (output / "_saving").exists()
        elif what == "export":
            assert [path.name for path in disk.iterdir()] == (["out"] if message is None else [])
            assert_whole_files(output)
        elif (output / "store.json").is_file():
            opened_store(toys, output)  # as far as it has been filled
            assert not [path for path in output.iterdir() if path.name.endswith(".tmp")]
    print(f"full disks, {what}: {number} tried, {refused} refused by name, {finished} finished, 0 tracebacks")
    assert refused and finished
