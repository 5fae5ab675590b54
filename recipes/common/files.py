# SPDX-License-Identifier: Apache-2.0
"""Whether output can be written, before the work that makes it."""

import tempfile
from pathlib import Path


def check_writable(folder: Path, option: str):
    """Raises ValueError, naming the option, if a folder, which need not be there yet, cannot be written to: before the work."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): give another with {option}.") from error


__all__ = ["check_writable"]
