# SPDX-License-Identifier: Apache-2.0
"""Unpacks zips that come from elsewhere, within bounds."""

import errno
import os
import shutil
import stat
import zipfile
from pathlib import Path

from .paths import path_fault


# The largest archive of ARKitScenes has some ten thousand pictures and gigabytes, which do not compress.
MAX_MEMBERS = 1_000_000
MAX_BYTES = 64 << 30
MAX_RATIO = 200  # of bytes unpacked to bytes packed; text compresses to a tenth, a bomb to a thousandth
ALWAYS_ALLOWED = 16 << 20  # bytes, whatever the ratio


class ArchiveError(ValueError):
    """A zip that is not unpacked: it is damaged, or holds what it must not; the message says what."""


class DamagedArchiveError(ArchiveError):
    """A zip that did not arrive as it was sent, as far as can be told."""


def unpack(path: Path, folder: Path):
    """
    Unpacks a zip into `folder`; a zip inside it is unpacked where it lies, and removed.

    Both together hold at most `MAX_MEMBERS` files of `MAX_BYTES`, and `MAX_RATIO` times what the outer one has. As many
    bytes as its directory says are written of a member, never more.

    Raises:
        ArchiveError: it holds more, or a name that leads out of `folder`, a link or a device. Nothing is written of it.
        DamagedArchiveError: it cannot be read, or a checksum is another.
        OSError: writing failed; with ENOSPC before anything is written, where that can be told.
    """
    try:
        members, size = _extract(path, folder, MAX_MEMBERS, min(MAX_BYTES, _allowed(path)))
        for inner in sorted(path for path in folder.rglob("*.zip") if path.is_file()):
            of_inner, size_of_inner = _extract(
                inner, inner.parent, MAX_MEMBERS - members, min(MAX_BYTES, _allowed(path)) - size
            )
            members, size = members + of_inner, size + size_of_inner
            inner.unlink()
    except ArchiveError:
        raise
    except Exception as error:  # zipfile, zlib, bz2, lzma and struct each have their own words for damage
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # which seeking nowhere is
            raise
        raise DamagedArchiveError(f"no intact zip ({' '.join(str(error).split()) or type(error).__name__})") from error


def _allowed(path: Path) -> int:
    return max(ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size)


def _extract(path: Path, folder: Path, max_members: int, max_bytes: int) -> tuple[int, int]:
    """Returns how many members and bytes there were."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if len(members) > max_members:
            raise ArchiveError(f"holds {len(members):,} files or more, where at most {MAX_MEMBERS:,} are unpacked")
        if size > max_bytes:
            raise ArchiveError(
                f"unpacks to {size:,} bytes, of {path.stat().st_size:,}: at most {MAX_RATIO} times as many, and "
                f"{MAX_BYTES:,}, are unpacked"
            )
        for member in members:
            _check_member(member)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size / 2**20:.1f} MiB", str(path))
        archive.extractall(folder)  # compares every CRC
    return len(members), size


def _check_member(member: zipfile.ZipInfo):
    if fault := path_fault(member.filename):
        raise ArchiveError(f"names {member.filename!r}, which is not a path in its folder: {fault}")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"holds {member.filename!r}, which is neither a file nor a folder but a link or a device")


__all__ = ["ArchiveError", "DamagedArchiveError", "unpack"]
