# SPDX-License-Identifier: Apache-2.0
"""Writing files that are whole or absent, also after a power failure. Nothing here needs more than the standard library."""

import errno
import hashlib
import os
import shutil
from pathlib import Path


def write_atomically(path: Path, content: str | bytes):
    """
    Writes text (UTF-8) or bytes under a temporary name, brings them to the disk and moves the file to `path`: a reader
    sees the whole file or none, and so does who starts the machine again after a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path):
    """Waits until a file's bytes, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path):
    """`flush` of a folder and everything in it. Before the folder is renamed: what is whole by its name has to be whole."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a quota on it, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_os_error(error: OSError, folder: Path) -> str:
    """An error of writing into `folder` as one line; of a full disk, how much is free there and what to do."""
    text = " ".join(str(error).split())
    if not is_disk_full(error):
        return text
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return f"{text}: the disk of {existing} has {free / 2**20:.1f} MiB free, or your quota is used up; make room"


__all__ = ["describe_os_error", "flush", "flush_all", "hash_file", "is_disk_full", "write_atomically"]
