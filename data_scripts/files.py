# SPDX-License-Identifier: Apache-2.0
"""Files: written whole or not at all, also after a power failure; read with a bound, or refused by name. Nothing here needs more than the standard library."""

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from .json_text import JSONError, parse_json
from .limits import MAX_FILE_BYTES, MAX_JSON_BYTES


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
    existing, free = free_space(folder)
    return f"{text}: the disk of {existing} has {free:.1f} MiB free, or your quota is used up; make room"


def free_space(path: Path) -> tuple[Path, float]:
    """The nearest folder of `path` that is there, and how many MiB its disk has free."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return existing, shutil.disk_usage(existing).free / 2**20


class UnreadableFileError(ValueError):
    """A raw file that cannot be used; `file` is its path and `reason` says why in a few words."""

    def __init__(self, file: str | Path, reason: str):
        super().__init__(str(file), reason)  # both arguments, so that the error survives pickling between processes
        self.file = str(file)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `UnreadableFileError` if it cannot be read or is not JSON."""
    content = read_bytes(path, MAX_JSON_BYTES)
    try:
        return parse_json(content)
    except JSONError as error:
        raise UnreadableFileError(path, f"not a JSON file ({error})") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: Path, at_most: int = MAX_FILE_BYTES) -> bytes:
    """The content of `path`.

    Raises:
        UnreadableFileError: it cannot be read, is no regular file (a pipe would be waited for without end) or holds more than
            `at_most` bytes.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFileError(path, "not a regular file")
            if status.st_size > at_most:
                raise UnreadableFileError(path, f"{status.st_size} bytes, more than {at_most >> 20} MiB")
            return stream.read()
    except UnreadableFileError:
        raise
    except ValueError as error:  # a NUL or half a surrogate pair in the path
        raise UnreadableFileError(path, f"not a path ({error})") from None
    except FileNotFoundError:
        raise UnreadableFileError(path, "missing") from None
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be read ({error.strerror})") from None


__all__ = [
    "UnreadableFileError",
    "describe_os_error",
    "flush",
    "flush_all",
    "free_space",
    "hash_file",
    "is_disk_full",
    "read_bytes",
    "read_json",
    "write_atomically",
]
