# SPDX-License-Identifier: Apache-2.0
"""The files of a feature store: shards, their indexes, and the memory of which have been verified."""

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from data_scripts.files import write_atomically


logger = logging.getLogger(__name__)

VERIFIED = "verified.json"
BLOCK_BYTES = 2**24  # read at once to verify; a thread holds no more than that
VERIFYING_THREADS = 8
QUIET_SECONDS = 5  # of verifying, before a bar shows
REPAIR = "Run recipes.feature_store again: it replaces what is damaged."


@dataclass(frozen=True)
class StoreEntry:
    """The features of all views of a scene, or of a random subset of them."""

    scene: str  # hash of all its views in use
    views: tuple[int, ...]  # positions among them
    scene_id: str
    source: str  # dataset and split that it was made from, for messages
    view_dropout: float | None  # probability that the subset leaves out a view; None for all views
    draw: int  # number of the subset
    image_sizes: tuple[tuple[int, int], ...]  # (width, height) before preprocessing
    checksums: dict[str, str]  # per tensor
    shard: str

    @property
    def name(self) -> str:
        return self.scene if self.view_dropout is None else f"{self.scene}-{self.view_dropout}-{self.draw}"


def hash_tensor(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()


def read_shard(index: Path) -> dict:
    """A shard's index: `{"name", "size", "entries"}`. Raises ValueError if it is damaged."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        entries = []
        for entry in content["entries"]:
            sizes = tuple(tuple(size) for size in entry["image_sizes"])
            arguments = entry | {"views": tuple(entry["views"]), "image_sizes": sizes, "shard": index.stem}
            entries.append(StoreEntry(**arguments))
        return {"name": index.stem, "size": content["size"], "entries": entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The feature store's index {index} is damaged: {error!r}. {REPAIR}") from error


def shard_problem(path: Path, shard: dict) -> str | None:
    """What is wrong with a shard's file, as far as its size and its header tell."""
    file = path / f"{shard['name']}.safetensors"
    size = file.stat().st_size if file.exists() else None
    if size != shard["size"]:
        return (
            f"{file.name} has {size} bytes, not {shard['size']}." if size is not None else f"{file.name} is missing."
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            present = set(tensors.keys())
    except SafetensorError as error:
        return f"{file.name} cannot be read: {error}."
    absent = {f"{entry.name}.{name}" for entry in shard["entries"] for name in entry.checksums} - present
    return f"{file.name} does not hold {sorted(absent)[0]}." if absent else None


def signature(path: Path, shard: str) -> list:
    """
    What tells a shard's files from what they become when somebody writes to them, or copies them. The times of change
    are the file system's own, which no program can set back.
    """
    file = (path / f"{shard}.safetensors").stat()
    index = hashlib.sha256((path / f"{shard}.json").read_bytes()).hexdigest()
    return [file.st_size, file.st_mtime_ns, file.st_ctime_ns, index]


def checksum_problem(path: Path, shard: dict, progress: Callable[[int], object] = lambda count: None) -> str | None:
    """
    The first tensor of a shard whose bytes do not match their checksum. The file is read front to back, once, and not
    through a memory map, whose pages a network file system brings in small pieces.

    Args:
        shard (`dict`): Of [`read_shard`], without a [`shard_problem`].
        progress (`Callable`): Called with the number of bytes that were read, after each block.
    """
    with (path / f"{shard['name']}.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        expected = {
            f"{entry.name}.{name}": (entry, name, checksum)
            for entry in shard["entries"]
            for name, checksum in entry.checksums.items()
        }
        for key in sorted(expected, key=lambda key: header[key]["data_offsets"]):
            begin, end = header[key]["data_offsets"]
            file.seek(8 + length + begin)
            digest = hashlib.sha256()
            while begin < end and (block := file.read(min(BLOCK_BYTES, end - begin))):
                digest.update(block)  # without the interpreter's lock: the threads run side by side
                progress(len(block))
                begin += len(block)
            entry, name, checksum = expected[key]
            if digest.hexdigest() != checksum:
                return (
                    f"{name} of scene {entry.scene_id} (views {list(entry.views)}) in {shard['name']}.safetensors does "
                    "not match its checksum."
                )
    return None


def verify(path: Path, shards: list[dict]) -> dict[str, list]:
    """
    The signatures of all shards, once each has been found to match its checksums: now, or earlier as `verified.json`
    tells. Of several processes one reads, while the others wait for what it finds.

    Raises:
        ValueError: naming a shard that is damaged. Those that are whole are remembered as verified.
    """
    for shard in shards:
        if problem := shard_problem(path, shard):
            raise ValueError(f"The feature store {path} is damaged: {problem} {REPAIR}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path / ".verify.lock", blocking=True))
        except OSError as error:
            logger.warning("%s cannot be written to (%s): each process verifies it for itself.", path, error)
        verified = read_verified(path)
        signatures = {shard["name"]: signature(path, shard["name"]) for shard in shards}
        unread = [shard for shard in shards if verified.get(shard["name"]) != signatures[shard["name"]]]
        options = {"total": sum(shard["size"] for shard in unread), "unit": "B", "unit_scale": True}
        with (
            tqdm(desc=f"verifying {path}", delay=QUIET_SECONDS, disable=not unread, **options) as bar,
            ThreadPoolExecutor(VERIFYING_THREADS) as pool,
        ):
            problems = list(pool.map(lambda shard: checksum_problem(path, shard, bar.update), unread))
        whole = {shard["name"] for shard, problem in zip(unread, problems, strict=True) if problem is None}
        if whole:
            with contextlib.suppress(OSError):
                write_json(path / VERIFIED, verified | {name: signatures[name] for name in sorted(whole)})
    for problem in problems:
        if problem is not None:
            raise ValueError(f"The feature store {path} is damaged: {problem} {REPAIR}")
    return signatures


def read_verified(path: Path) -> dict[str, list]:
    """What `verified.json` holds; nothing if it is not there or no JSON object: then all is read."""
    try:
        verified = json.loads((path / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return verified if isinstance(verified, dict) else {}


def write_json(path: Path, value):
    """Writes `value`, whole."""
    write_atomically(path, json.dumps(value, indent=1))


@contextmanager
def locked(path: Path, blocking: bool) -> Iterator[bool]:
    """Whether this process holds the lock file `path`. The lock of a process that dies is free again."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


__all__ = [
    "StoreEntry",
    "checksum_problem",
    "hash_tensor",
    "locked",
    "read_shard",
    "shard_problem",
    "signature",
    "verify",
    "write_json",
]
