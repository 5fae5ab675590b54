# SPDX-License-Identifier: Apache-2.0
"""Writing a feature store: shard by shard, by several processes at once, and again from where it stopped."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_scripts.files import flush

from .feature_store import DTYPES, check_key, read_store_json
from .feature_store_shards import (
    StoreEntry,
    checksum_problem,
    hash_tensor,
    locked,
    read_shard,
    shard_problem,
    write_json,
)


class FeatureStoreWriter:
    """
    Fills a store; several processes on one file system may do so at the same time.

    Args:
        path (`Path`): Its folder, made if it does not exist.
        key (`dict`): `store_key` of the checkpoint and the preprocessing.
        dtype (`str`): Of the stored features.

    Raises:
        ValueError: if the folder holds a store with another key or dtype, or something else.
    """

    def __init__(self, path: Path, key: dict, dtype: str):
        self.path, self.dtype = path, DTYPES[dtype]
        self.checked: dict[str, list[StoreEntry] | None] = {}
        if path.exists() and not (path / "store.json").exists() and any(path.glob("[!.]*")):
            raise ValueError(f"{path} exists and is not a feature store.")
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / ".lock", blocking=True):
            if not (path / "store.json").exists():
                write_json(path / "store.json", key | {"dtype": dtype})
        check_key(path, read_store_json(path), key | {"dtype": dtype})

    def write(
        self, groups: list[list[StoreEntry]], encode: Callable[[StoreEntry], dict[str, torch.Tensor]]
    ) -> Iterator[int]:
        """
        Makes one shard of each group of entries: of those that no whole shard holds yet.

        Args:
            groups (`list[list[StoreEntry]]`): The same in every process; their checksums and shards are not read.
            encode (`Callable`): Gives an entry's tensors.

        Yields:
            `int`: per group, how many entries were computed. Groups that another process works on come last.
        """
        holders = {}
        for index in sorted(self.path.glob("shard-*.json")):
            for entry in self._entries(index.stem) or ():
                holders[entry.name] = index.stem
        later = []
        for blocking, pending in ((False, groups), (True, later)):
            for group in pending:
                digest = hashlib.sha256(" ".join(entry.name for entry in group).encode()).hexdigest()[:16]
                shard = f"shard-{digest}"
                with locked(self.path / f".{shard}.lock", blocking) as mine:
                    if not mine:
                        later.append(group)
                        continue
                    own = [entry for entry in group if holders.get(entry.name, shard) == shard]
                    # Whoever held the lock may have finished it since this process looked.
                    self.checked.pop(shard, None)
                    held = {entry.name for entry in self._entries(shard) or ()}
                    missing = [entry for entry in own if entry.name not in held]
                    if missing:
                        self._write_shard(shard, own, encode)
                yield len(own) if missing else 0

    def _entries(self, shard: str) -> list[StoreEntry] | None:
        """The entries of a shard, or None if it is not finished or anything in it is damaged."""
        if shard not in self.checked:
            self.checked[shard] = None
            try:
                content = read_shard(self.path / f"{shard}.json")
                if shard_problem(self.path, content) is None and checksum_problem(self.path, content) is None:
                    self.checked[shard] = content["entries"]
            except ValueError:
                pass  # to be made again
        return self.checked[shard]

    def _write_shard(self, shard: str, group: list[StoreEntry], encode: Callable):
        tensors, index = {}, []
        for entry in group:
            encoded = {name: tensor.cpu().contiguous() for name, tensor in encode(entry).items()}
            encoded["vision_features"] = encoded["vision_features"].to(self.dtype)
            tensors |= {f"{entry.name}.{name}": tensor for name, tensor in encoded.items()}
            described = asdict(entry) | {"checksums": {name: hash_tensor(t) for name, t in encoded.items()}}
            del described["shard"]
            index.append(described)
        # Only the lock's holder writes under this name; what an interrupted run left there is overwritten.
        temporary = self.path / f".{shard}.tmp"
        try:
            save_file(tensors, temporary)
            flush(temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)  # room that a full disk needs
            raise
        size = temporary.stat().st_size
        (self.path / f"{shard}.json").unlink(missing_ok=True)
        os.replace(temporary, self.path / f"{shard}.safetensors")
        write_json(self.path / f"{shard}.json", {"size": size, "entries": index})


__all__ = ["FeatureStoreWriter"]
