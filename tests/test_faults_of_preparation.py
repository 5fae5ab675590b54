# SPDX-License-Identifier: Apache-2.0
"""`prepare`, `rooms` and the download, killed, cut off from power and out of disk at their n-th change to files."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from file_server import FileServer
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME
from scannet_dump import write_scan, write_scanqa
from waiting import when_read

from data_scripts import download_arkitscenes, hub, prepare, rooms
from data_scripts.manifest import MANIFEST, check_repo_files
from data_scripts.preparation import repo
from data_scripts.preparation import scene_reading as reading
from data_scripts.preparation.base import PreparedScene


SCENES = {"train": ["scene0000_00", "scene0001_00"], "val": ["scene0011_00"]}
faults.preload("data_scripts.prepare", "data_scripts.rooms", "data_scripts.download_arkitscenes", "pyarrow.parquet")


def sweep(function, arguments, folder: Path, kinds: dict[str, int], repeatable=True, at_once=True) -> str:
    """
    Runs the command undisturbed, then with a fault at each of some of its changes, and again after each fault.

    Args:
        arguments: of an output folder.
        kinds: fault to how many of the changes to try.
        repeatable: the command may be given again when the output is there.
        at_once: the output appears whole.

    Returns: the counts, a line.
    """
    (folder / "whole").mkdir(parents=True)
    whole = faults.run(function, arguments(folder / "whole" / "out"), root=folder / "whole")
    assert whole.status == 0, whole.output
    expected = faults.digests(folder / "whole")
    counts = []
    for kind, number in kinds.items():
        tried = faults.points(whole.changes, number)
        for at in tried:
            root = folder / f"{kind}-{at}"
            root.mkdir()
            broken = faults.run(function, arguments(root / "out"), root=root, kind=kind, at=at)
            where = (kind, at, broken.output)
            if kind != "full":
                assert broken.status == -9, where
            elif broken.status != 0:  # else it was no more than something to remove that failed
                lines = [line for line in broken.output.splitlines() if line.startswith(("error: ", "failed: "))]
                assert broken.status == 1 and "Traceback" not in broken.output and len(lines) == 1, where
                assert str(root) in lines[0] and "MiB free" in lines[0], where
            if at_once and (root / "out").exists():
                assert faults.digests(root / "out") == faults.digests(folder / "whole" / "out"), where
                if not repeatable:
                    continue
            again = faults.run(function, arguments(root / "out"), root=root)
            assert again.status == 0, (*where, again.output)
            assert faults.digests(root) == expected, where
        counts.append(f"{len(tried)} times {kind}")
    return f"{whole.changes} changes to files, {', '.join(counts)}: all went on to the same files"


@pytest.fixture
def arguments(tmp_path):
    """The command over three scans, of an output folder."""
    for split, scenes in SCENES.items():
        for scene in scenes:
            write_scan(tmp_path / "raw" / "scans", scene, frames=(0, 20))
        write_scanqa(tmp_path / "raw", split, scenes)
    files = [str(tmp_path / "raw" / f"ScanQA_v1.0_{split}.json") for split in SCENES]
    fixed = ["scanqa", "--annotations", *files, "--scannet-root", f"{tmp_path}/raw/scans", "--output"]
    return lambda output: [*fixed, str(output)]


def test_damaged_scene_files_are_read_again(arguments, tmp_path, monkeypatch, capsys):
    """Catches a scene file that was left empty, cut or flipped and is taken for a scene, or ends every later call."""
    assert prepare.main(arguments(tmp_path / "fresh" / "repo")) == 0
    read_parquet = PreparedScene.read
    monkeypatch.setattr(PreparedScene, "read", lambda path, pictures=True: (_ for _ in ()).throw(KeyboardInterrupt))
    assert prepare.main(arguments(tmp_path / "again" / "repo")) == 130
    monkeypatch.setattr(PreparedScene, "read", read_parquet)
    empty, cut, flipped = sorted((tmp_path / "again" / ".repo.partial" / "scenes").glob("*/*"))
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 1  # in the last picture
    flipped.write_bytes(content)
    capsys.readouterr()
    assert prepare.main(arguments(tmp_path / "again" / "repo")) == 0
    assert "repaired: 3 scenes" in capsys.readouterr().out
    assert faults.digests(tmp_path / "again") == faults.digests(tmp_path / "fresh")


def test_scene_file_damaged_while_parquet_is_written(arguments, tmp_path, monkeypatch, capsys):
    """Catches a picture that a failing disk changed between reading the scenes and writing them, published as it is."""
    write = repo._write

    def damage(builder_class, work, *others):
        path = min((work / "scenes").glob("*/*"))
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
        return write(builder_class, work, *others)

    monkeypatch.setattr(repo, "_write", damage)
    assert prepare.main(arguments(tmp_path / "repo")) == 1
    assert "damaged since it was written" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    assert prepare.main(arguments(tmp_path / "repo")) == 0
    printed = capsys.readouterr().out
    assert "repaired: 1 scenes" in printed and "2 scenes had been read" in printed


def test_damaged_repository(arguments, tmp_path, capsys):
    """
    Catches a flipped byte in a prepared repository that is uploaded or trained on; and one prepared before manifests had
    checksums refused.
    """
    assert prepare.main(arguments(tmp_path / "repo")) == 0
    manifest = check_repo_files(tmp_path / "repo")
    assert manifest["sha256"].keys() == manifest["files"].keys() and len(manifest["files"]) == 4
    path = max((tmp_path / "repo" / "scenes").glob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    check_repo_files(tmp_path / "repo", contents=False)
    capsys.readouterr()
    assert prepare.main(arguments(tmp_path / "repo")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "SHA-256" in line and "remove" in line
    del manifest["sha256"]
    (tmp_path / "repo" / MANIFEST).write_text(json.dumps(manifest))
    assert prepare.main(arguments(tmp_path / "repo")) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"qa/a.parquet": 1}, "sha256": 3}',
        "[" * 100_000,
        "\udcff",
        '{"files": 3}',
        '{"files": {}}',
        '{"files": {"../repo.txt": 8}, "fingerprint": "", "counts": {}, "left_out": [], "notes": []}',
    ],
)
def test_damaged_manifest(arguments, tmp_path, capsys, text):
    """Catches a manifest of another form that is a traceback, and one that names files of others (which are uploaded)."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo.txt").write_text("precious")
    (tmp_path / "repo" / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    assert prepare.main(arguments(tmp_path / "repo")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "repo" / MANIFEST) in line and "damaged" in line


def test_full_disk_while_uploading(monkeypatch):
    """Catches a message that does not say which disk is full: large files pass through the cache in the home folder."""
    api = HfApi()

    def fail(*arguments, **keywords):
        raise RuntimeError("upload failed") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(api, "create_repo", fail)
    with pytest.raises(hub.UploadError, match="MiB free") as error:
        hub.upload(api, "me/data", "dataset", {}, hub.Remote(), private=True, tag=None, message="")
    assert "the same command goes on" in str(error.value)
    assert HF_HOME in str(error.value) or str(Path(HF_HOME).parent) in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_quota(arguments, tmp_path, monkeypatch, capsys, number):
    """Catches a quota that is used up, and that is not said to be one."""

    def fail(path, content):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reading, "write_atomically", fail)
    assert prepare.main(arguments(tmp_path / "repo")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert os.strerror(number) in line and "MiB free, or your quota" in line and str(tmp_path) in line


@pytest.mark.slow
def test_preparation(arguments, tmp_path):
    """
    Catches a kill, a power failure or a full disk after which the same command does not make the same repository, byte by
    byte, or leaves something beside it; a repository that appears before it is whole; a full disk that is a traceback.
    """
    print("prepare:", sweep(prepare.main, arguments, tmp_path / "runs", {"kill": 16, "power": 16, "full": 16}))


@pytest.mark.slow
def test_rooms(tmp_path):
    """Catches the same of generating rooms, and folders of killed processes that nobody removes."""

    def arguments(output):
        options = (
            "--scenes 3 --views 1 --image-size 28 --seed 0 --instruct-images 2 --formats scannet arkitscenes".split()
        )
        return ["--output", str(output), *options]

    kinds = {"kill": 5, "power": 5, "full": 5}
    print("rooms:", sweep(rooms.main, arguments, tmp_path / "runs", kinds, repeatable=False))


@pytest.mark.slow
def test_download(tmp_path):
    """Catches the same of downloading: half a file or scan taken for a whole one, parts, locks and archives that stay."""
    with FileServer() as server:
        server.headers = {path: {"ETag": f'"{len(content)}"'} for path, content in server.files.items()}

        def arguments(output):
            options = ["--split", "Training", "--video_id", "41", "--assets", "lowres_wide", "lowres_wide.traj"]
            return [*options, "--workers", "1", "--base-url", server.url, "--output", str(output)]

        kinds = {"kill": 30, "power": 30, "full": 30}
        print("download:", sweep(download_arkitscenes.main, arguments, tmp_path / "runs", kinds, at_once=False))


@pytest.mark.slow
def test_workers_end_with_a_killed_command(arguments, tmp_path):
    """Catches worker processes that wait for ever for tasks of a command that was killed, as for want of memory."""
    picture = tmp_path / "raw" / "scans" / "scene0001_00" / "color" / "20.jpg"
    environment, waits = when_read(picture, tmp_path / "waiting")
    command = [sys.executable, "-m", "data_scripts.prepare", *arguments(tmp_path / "repo"), "--workers", "2"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not waits.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait()
    workers = [pid for pid in children if "spawn_main" in _command_line(pid)]
    while any("spawn_main" in _command_line(pid) for pid in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.05)
    assert prepare.main(arguments(tmp_path / "repo")) == 0


def _command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
