# SPDX-License-Identifier: Apache-2.0
"""A file that is read without end, for what is stopped meanwhile. (A pipe would do, but the readers refuse what is no file.)"""

import os
from pathlib import Path


CUSTOMIZE = """
import builtins, io, time

opened = builtins.open

def wait(file, *args, **kwargs):
    if str(file) == {file!r}:
        opened({sign!r}, "w").close()
        while True:
            time.sleep(0.05)
    return opened(file, *args, **kwargs)

builtins.open = io.open = wait
"""


def when_read(file: Path, folder: Path) -> tuple[dict[str, str], Path]:
    """The environment of a Python process that waits, as do its children, once it opens `file`; and what is there once it does.

    Args:
        file: as the process spells it.
        folder: an empty one, for the module that makes it wait.
    """
    folder.mkdir()
    sign = folder / "waits"
    (folder / "sitecustomize.py").write_text(CUSTOMIZE.format(file=str(file), sign=str(sign)))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, sign


__all__ = ["when_read"]
