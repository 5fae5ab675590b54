#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Refuses what is never committed: weights, data and pictures of one's own, and files that are large.

.ci/check_files.py [FILE ...]      # without any: all that git tracks
"""

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path


LIMIT = 500_000  # bytes; the largest are the hashes of .ci/requirements.lock
# Where pictures and weights belong, and how large one may be there: a clone takes all of them, of all times.
ALLOWED = {"docs/*.png": 1_000_000, "tests/fixtures/*": 2_000_000}
PICTURES = ".bmp .gif .heic .jpeg .jpg .mov .mp4 .png .tif .tiff .webp".split()
WEIGHTS = ".bin .ckpt .gguf .onnx .pickle .pkl .pt .pth .safetensors".split()
DATA = ".7z .arrow .glb .gz .npy .npz .parquet .ply .sens .tar .tgz .zip .zst".split()


def fault(name: str) -> str | None:
    """What is wrong with the file `name`, a path from the repository's root; None if nothing is."""
    path = Path(name)
    limit = next((limit for pattern, limit in ALLOWED.items() if fnmatch(name, pattern)), None)
    if limit is None and path.suffix.lower() in {*PICTURES, *WEIGHTS, *DATA}:
        return f"{name}: pictures, weights and data are not committed, but for {' and '.join(ALLOWED)}"
    limit = limit or LIMIT
    if path.is_file() and path.stat().st_size > limit:
        return f"{name}: {path.stat().st_size:,} bytes, more than {limit:,}"
    return None


def main(names: list[str]) -> int:
    if not names:
        listed = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, text=True, check=True).stdout
        names = listed.split("\0")[:-1]
    faults = list(filter(None, map(fault, names)))
    print("\n".join(faults), end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
