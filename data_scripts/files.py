# SPDX-License-Identifier: Apache-2.0
"""Writing files that are whole or absent, also after a power failure. Nothing here needs more than the standard library."""

import os
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


__all__ = ["flush", "write_atomically"]
