# SPDX-License-Identifier: Apache-2.0
"""Whether a prepared repository is as it was written, by its `preparation.json`. Imports only the standard library."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .files import hash_file
from .paths import path_fault


MANIFEST = "preparation.json"
THREADS = 8  # that read files; hashing leaves the interpreter's lock alone


class DamagedRepoError(ValueError):
    """A prepared repository has not the files that its manifest names; the message is one line and names the file."""


def check_repo_files(folder: Path, contents: bool = True) -> dict[str, Any]:
    """
    Compares the Parquet files of a prepared repository with its manifest, and returns the manifest.

    Args:
        contents: compare the SHA-256 of every file too, which reads all of it. A repository that was prepared before
            manifests had them is compared by sizes.

    Raises:
        DamagedRepoError: the manifest cannot be read; a file is missing or of another size or content.
        OSError: a file cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        sizes, hashes = manifest["files"], manifest.get("sha256", {})
        files = [(folder / name, size, hashes[name] if hashes else None) for name, size in sizes.items()]
        if any(path_fault(name) for name in sizes):
            raise ValueError("names that lead out of the repository, which somebody else may have made")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedRepoError(f"{folder / MANIFEST}: damaged") from None
    for path, size, _ in files:
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            is_now = "missing" if found is None else f"{found} bytes"
            raise DamagedRepoError(f"{path}: missing or damaged ({is_now}; {MANIFEST} says {size} bytes)")
    if contents and hashes:
        with ThreadPoolExecutor(THREADS) as pool:
            for (path, _, checksum), found in zip(files, pool.map(hash_file, (path for path, _, _ in files))):
                if found != checksum:
                    raise DamagedRepoError(f"{path}: damaged (not the SHA-256 that {MANIFEST} says)")
    return manifest


__all__ = ["MANIFEST", "DamagedRepoError", "check_repo_files"]
