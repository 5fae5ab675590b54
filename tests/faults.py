# SPDX-License-Identifier: Apache-2.0
"""
Runs a function in a process of its own that is killed, loses its power or finds its disk full at its n-th change to files.

The process is forked from one that has imported what `preload` named and nothing else has happened in, so that a run takes
as long as the function. In it Python's `open` and the functions of `os` that change files count what they do below `root`.
A library that writes without them (in C or Rust) is not counted, but what it wrote is lost with the power as well, unless
`os.fsync` was called for the file.
"""

import builtins
import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


KINDS = ("kill", "power", "full")
_context = multiprocessing.get_context("forkserver")


@dataclass
class Outcome:
    """`status`: what the function returned, or -9 if it was killed; `changes`: how many it made; `output`: what it printed."""

    status: int
    changes: int | None
    output: str


def preload(*modules: str):
    """Names what to import before the first `run`; has no effect after it."""
    _context.set_forkserver_preload(list(modules))


def run(function: Callable[..., int], *arguments, root: Path, kind: str | None = None, at: int = 0) -> Outcome:
    """
    Args:
        function: of a module that can be imported.
        root: the folder below which changes count.
        kind: what happens at the change number `at` (from 0): `kill` -9 in the middle of it; `power`, which also empties
            each file that was not brought to the disk; or `full`, an error from then on wherever room is needed.
            None: nothing does.
    """
    descriptor, log = tempfile.mkstemp()
    os.close(descriptor)
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(function, arguments, root, kind, at, log, theirs))
    process.start()
    theirs.close()
    try:
        status, changes = ours.recv()
    except EOFError:
        status, changes = None, None
    process.join()
    output = Path(log).read_text()
    os.unlink(log)
    assert status is not None or process.exitcode == -signal.SIGKILL, output
    return Outcome(-9 if status is None else status, changes, output)


def points(changes: int, number: int) -> list[int]:
    """At most `number` of the changes, the first and the last among them, evenly spaced."""
    number = min(number, changes)
    return sorted({round(index * (changes - 1) / max(1, number - 1)) for index in range(number)})


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _child(function, arguments, root, kind, at, log, pipe):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if "tqdm" in sys.modules:  # its default is a semaphore, which outlives who is killed
        sys.modules["tqdm"].tqdm.set_lock(threading.RLock())
    _Faults(root, kind, at).install()
    try:
        status = function(*arguments)
    except SystemExit as error:
        status = error.code
    pipe.send((status, _faults.changes))


_faults: "_Faults"


class _Faults:
    def __init__(self, root: Path, kind: str | None, at: int):
        self.root, self.kind, self.at = os.path.realpath(root), kind, at
        self.changes, self.is_full = 0, False
        self.safe: set[int] = {inode for inode, _ in self._files()}  # on the disk

    def _files(self):
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                yield os.stat(path).st_ino, path

    def concerns(self, path, dir_fd: int | None = None) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        folder = os.path.realpath(os.path.dirname(os.path.join(folder, os.fspath(path))))
        return folder == self.root or folder.startswith(self.root + os.sep)

    def change(self, needs_room: bool = True, half: Callable[[], object] = lambda: None):
        """Called before each change; `half` makes half of it."""
        number, self.changes = self.changes, self.changes + 1
        if self.is_full:
            if needs_room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.kind is not None and number == self.at:
            if self.kind != "full":
                half()
                if self.kind == "power":
                    for inode, path in list(self._files()):
                        if inode not in self.safe:
                            os.truncate(path, 0)
                os.kill(os.getpid(), signal.SIGKILL)
            self.is_full = True
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self):
        global _faults
        _faults = self
        shutil._USE_CP_SENDFILE = False  # which copies without writing
        builtins.open = io.open = _open
        for name in ("mkdir", "rename", "replace", "truncate", "unlink", "remove", "rmdir", "fsync"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Callable) -> Callable:
        def counted(path, *arguments, **keywords):
            if self.concerns(path, keywords.get("dir_fd")):
                self.change(needs_room=name in ("mkdir", "rename", "replace", "fsync"))
            result = function(path, *arguments, **keywords)
            if name == "fsync":
                self.safe.add(os.fstat(path).st_ino)
            return result

        return counted


class _File(io.FileIO):
    def write(self, data):
        data = memoryview(data).cast("B")
        _faults.safe.discard(os.fstat(self.fileno()).st_ino)
        is_first = not _faults.is_full
        _faults.change(half=lambda: super(_File, self).write(data[: len(data) // 2]) if is_first else None)
        return super().write(data)


_plain_open = io.open


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    plain = (file, mode, buffering, encoding, errors, newline, closefd, opener)
    if isinstance(file, int) or opener is not None or not set(mode) & set("wax+") or not _faults.concerns(file):
        return _plain_open(*plain)
    _faults.change(needs_room=not os.path.exists(file))
    raw = _File(file, mode.replace("b", "").replace("t", ""))
    if "w" in mode or "x" in mode:
        _faults.safe.discard(os.fstat(raw.fileno()).st_ino)
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode
    return text


__all__ = ["KINDS", "Outcome", "digests", "points", "preload", "run"]
