# SPDX-License-Identifier: Apache-2.0
"""The manifest of a checkpoint: sizes and SHA-256 of its files, written last, and checked before any is used."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import NoneType

import torch
from safetensors import safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals as random_state_globals

from data_scripts.files import flush, hash_file, write_atomically

from .trained import CheckpointError
from .zero import known_classes


MANIFEST = "manifest.json"
# torch.save files that resuming never reads.
NEVER_LOADED = ("training_args.bin",)
# Of the state of a Trainer.
STATE = {
    "global_step": int,
    "epoch": (int, float),
    "train_batch_size": (int, NoneType),
    "num_input_tokens_seen": int,
    "total_flos": (int, float),
    "log_history": list,
    "best_metric": (int, float, NoneType),
    "best_model_checkpoint": (str, NoneType),
    "stateful_callbacks": dict,
}
THREADS = 8  # that read files; hashing leaves the interpreter's lock alone


def check_checkpoint(folder: Path, hashes: bool = True):
    """
    Checks that every file of a checkpoint is there, of the size it was written with, and of a format that can be read.

    Args:
        hashes (`bool`): Whether every file is read to compare its SHA-256 as well, about 800 MB a second and core. A
            manifest of before there were hashes is taken without.

    Raises:
        CheckpointError: naming the folder, the file and what is wrong with it.
    """
    folder = Path(folder)
    failed = f"{folder} is not a whole checkpoint: "
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes, written = dict(manifest["files"]), dict(manifest.get("sha256", {}))
        paths = {name: folder / name for name in {**sizes, **written}}
    except FileNotFoundError:
        raise CheckpointError(f"{failed}no {MANIFEST}, which is written last") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{failed}{MANIFEST}: {in_a_line(error)}") from None
    for name, path in paths.items():
        try:
            inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
        except (OSError, ValueError) as error:  # no name that a file can have
            raise CheckpointError(f"{failed}{MANIFEST} names {name[:60]!r}: {in_a_line(error)}") from None
        if not inside:
            raise CheckpointError(f"{failed}{name} is not in it")
        if not there:
            raise CheckpointError(f"{failed}{name} is missing")
        if path.stat().st_size != sizes.get(name):
            raise CheckpointError(f"{failed}{name} has {path.stat().st_size} bytes, written were {sizes.get(name)}")
        try:
            check_format(path)
        except Exception as error:  # readers of three formats, each with errors of its own for what it does not expect
            raise CheckpointError(f"{failed}{name}: {in_a_line(error)}") from None
    found = hash_files(folder, [paths[name] for name in written]) if hashes else written
    for name, digest in written.items():
        if found[name] != digest:
            raise CheckpointError(
                f"{failed}{name} has other bytes than were written (SHA-256 {found[name][:12]}, written was "
                f"{str(digest)[:12]})"
            )


def check_format(path: Path):
    """Raises if the header of a safetensors, JSON or torch file does not fit it, or if it would run code when loaded."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt"):
            return
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == TRAINER_STATE_NAME:
            check_state(content)
    if path.suffix in (".pt", ".pth", ".bin") and path.name not in NEVER_LOADED:
        known = known_classes() if path.name.endswith("_optim_states.pt") else []
        with random_state_globals(), torch.serialization.safe_globals(known):
            if unknown := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                raise ValueError(f"holds objects that a checkpoint does not: {', '.join(sorted(unknown))}")


def check_state(content: dict):
    """Raises if it is not what a Trainer keeps of its own state; the rest of the values only tell of settings."""
    state = TrainerState(**content)
    for name, types in STATE.items():
        if not isinstance(getattr(state, name), types):
            raise ValueError(f"{name} is {getattr(state, name)!r}")
    if state.global_step < 0:
        raise ValueError(f"global_step is {state.global_step}")
    (state.best_model_checkpoint or "").encode()  # no half of a surrogate pair


def in_a_line(error: BaseException, longest: int = 300) -> str:
    """What an error says, without line breaks, and not longer than a line or two."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}..."


def hash_files(folder: Path, paths: list[Path], flushed: bool = False) -> dict[str, str]:
    """
    SHA-256 of files by their names in `folder`, read side by side, the largest first.

    Args:
        flushed (`bool`): Has them brought to the disk meanwhile.
    """
    paths = sorted(paths, key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(hash_file, paths)
        list(pool.map(flush, paths if flushed else ()))
        return dict(zip((str(path.relative_to(folder)) for path in paths), hashes, strict=True))


def write_manifest(folder: Path, **about):
    """Lists the files of `folder` and their sizes in its manifest, beside what `about` says."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    write_atomically(folder / MANIFEST, json.dumps({**about, "files": files}, indent=1) + "\n")


__all__ = ["MANIFEST", "check_checkpoint", "hash_files", "in_a_line", "write_manifest"]
