# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and asking: what `accelerate launch`, `python -m` and `vggt-qwen3` run."""

from pathlib import Path


def top_file(name: str) -> Path:
    """
    Where a file of the repository's top is: above this folder in a clone, in it where a wheel was installed, which has
    `CITATION.cff` and `constraints.txt` (setup.py puts them there). What lies above then belongs to others.
    """
    folder = Path(__file__).parent
    return (folder if (folder / "constraints.txt").is_file() else folder.parent) / name
