# SPDX-License-Identifier: Apache-2.0
"""`prepare`, `rooms` and the download, killed, cut off from power and out of disk at their n-th change to files."""

from pathlib import Path

import faults
import pytest
from scannet_dump import write_scan, write_scanqa

from data_scripts import prepare


SCENES = {"train": ["scene0000_00", "scene0001_00"], "val": ["scene0011_00"]}
faults.preload("data_scripts.prepare", "data_scripts.rooms", "data_scripts.download_arkitscenes", "pyarrow.parquet")


def sweep(function, arguments, folder: Path, kinds: dict[str, int], goes_on: bool = True) -> str:
    """
    Runs the command undisturbed, then with a fault at each of some of its changes, and again after each fault.

    Args:
        arguments: of an output folder.
        kinds: fault to how many of the changes to try.

    Returns: the counts, a line.
    """
    (folder / "whole").mkdir(parents=True)
    whole = faults.run(function, arguments(folder / "whole" / "out"), root=folder / "whole")
    assert whole.status == 0, whole.output
    expected = faults.digests(folder / "whole")
    counts = {}
    for kind, number in kinds.items():
        for at in (tried := faults.points(whole.changes, number)):
            root = folder / f"{kind}-{at}"
            root.mkdir()
            broken = faults.run(function, arguments(root / "out"), root=root, kind=kind, at=at)
            if kind == "full" and broken.status == 0:
                pass  # what failed was not needed
            elif kind == "full":
                assert broken.status == 1, (at, broken.output)
                assert "Traceback" not in broken.output, (at, broken.output)
                last = broken.output.strip().splitlines()[-1]
                assert str(root) in last and "MiB free" in last, (at, broken.output)
            else:
                assert broken.status == -9
            if (root / "out").exists():
                assert faults.digests(root / "out") == faults.digests(folder / "whole" / "out")
            again = faults.run(function, arguments(root / "out"), root=root)
            assert again.status == 0, (kind, at, again.output)
            assert faults.digests(root) == expected, (kind, at)
        counts[kind] = len(tried)
    return f"{whole.changes} changes to files; " + ", ".join(f"{kind} {number}" for kind, number in counts.items())


@pytest.mark.slow
def test_preparation(tmp_path):
    """
    Catches a kill, a power failure or a full disk after which the same command does not make the same repository, byte by
    byte, or leaves something beside it; a repository that appears before it is whole; a full disk that is a traceback.
    """
    for split, scenes in SCENES.items():
        for scene in scenes:
            write_scan(tmp_path / "raw" / "scans", scene, frames=(0, 20))
        write_scanqa(tmp_path / "raw", split, scenes)
    files = [str(tmp_path / "raw" / f"ScanQA_v1.0_{split}.json") for split in SCENES]

    def arguments(output):
        return ["scanqa", "--annotations", *files, "--scannet-root", f"{tmp_path}/raw/scans", "--output", str(output)]

    print("prepare:", sweep(prepare.main, arguments, tmp_path / "runs", {"kill": 20, "power": 20, "full": 20}))
