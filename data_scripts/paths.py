# SPDX-License-Identifier: Apache-2.0
"""From a name that data give (a scene's id, the picture of a record, a video) to its path: under its root, or not at all.

Trusted is who runs the command: the folders that he names, and the links that lie in them, wherever these lead (on clusters a
folder of scans is often one of links to another disk). Names that stand in files are not trusted. None of them leaves the
root by itself, and since data cannot make links, none does by a link that was not put there on purpose.
"""

import re
from pathlib import Path, PurePosixPath


MAX_PART = 255  # bytes, of file systems
MAX_NAME = 1024  # bytes of all of it; longer ones no system opens under every root
# Control characters, NUL among them, are in no name that somebody meant; halves of surrogate pairs are no text.
_NO_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:")


class UnsafePathError(ValueError):
    """A name in data that is no path under its root; the message is one line."""


def path_fault(name: object, nested: bool = True) -> str | None:
    """Why `name` is no path under a root; None if it is one.

    Args:
        nested: whether it may have folders; otherwise it is the name of a file or folder directly under the root, and a scene
            has one name only.
    """
    if not isinstance(name, str):
        return f"it is a {type(name).__name__}, not a text"
    if _NO_NAME.search(name):
        return "it holds a control character, or half of a surrogate pair"
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return "it is an absolute path"
    if ".." in parts:
        return "it leads upwards (..)"
    if not PurePosixPath(name).parts:
        return "it is empty"
    if not nested and (len(parts) > 1 or not name.strip()):
        return "it is not the name of one folder or file"
    if len(name.encode()) > MAX_NAME or any(len(part.encode()) > MAX_PART for part in name.split("/")):
        return f"it is longer than a file's name can be ({len(name):,} characters)"
    return None


def resolve_inside(root: Path, name: object, nested: bool = True) -> Path:
    """The path of `name` under `root`; nothing need be there. For `nested` see `path_fault`.

    Raises:
        UnsafePathError: names name, root (by its last part: what was left out may be published) and why: absolute, with `..`, with a drive, empty, over-long, no text.
    """
    fault = path_fault(name, nested)
    if fault is not None:
        raise UnsafePathError(f"{name!r} is not a path under {root.name or root}: {fault}")
    return root / name


__all__ = ["UnsafePathError", "path_fault", "resolve_inside"]
