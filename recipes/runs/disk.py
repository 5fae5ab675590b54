# SPDX-License-Identifier: Apache-2.0
"""A disk that takes no more: what the libraries that write then say, each in its own words, as one line."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from data_scripts.files import flush, flush_all, free_space

from .trained import CheckpointError


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch.save (which only sees that it is elsewhere in the file than it meant to be), safetensors, tokenizers.
SAYS_FULL = re.compile(
    rf"\(os error ({'|'.join(map(str, FULL))})\)|inline_container\.cc|No space left on device|Disk quota exceeded"
)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that a disk or a quota is full, or a file has become too large for its file system."""
    return getattr(error, "errno", None) in FULL or SAYS_FULL.search(str(error)) is not None


def is_write_error(error: BaseException) -> bool:
    """Whether `error`, of writing, is the disk's: it is full, or it fails in another way."""
    return isinstance(error, (OSError, SafetensorError)) or is_full(error)


def failed_line(target: Path, error: BaseException, then: str = "") -> str:
    """The line that says that `target` could not be written, and what to do `then`."""
    return f"Saving {target} failed ({free_space(target)[1]:.1f} MiB were free): {' '.join(str(error).split())}. {then}".rstrip()


@contextmanager
def saving(target: Path, then: Callable[[], str] = str) -> Iterator[None]:
    """
    Within it `target` is written.

    Args:
        then (`Callable`): Says what to do when there is room.

    Raises:
        CheckpointError: of one line, if the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointError) or not is_full(error):
            raise
        raise CheckpointError(failed_line(target, error, then())) from error


def move_into(folder: Path, target: Path):
    """
    Moves what is in `folder` into the folder `target`, on the same file system, once it is on the disk: files take the
    place of those of their names, folders that of whole folders. Weights come last, without which it is no model.
    """
    flush_all(folder)
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name)):
        if path.is_dir():
            shutil.rmtree(target / path.name, ignore_errors=True)
        os.replace(path, target / path.name)
    folder.rmdir()
    flush(target)


__all__ = ["failed_line", "is_full", "is_write_error", "move_into", "saving"]
