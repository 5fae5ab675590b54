# SPDX-License-Identifier: Apache-2.0
"""Archives that a server sends to who downloads: refused by name, and nothing of them written elsewhere."""

import itertools
import tempfile
from pathlib import Path

import pytest
from file_server import FileServer, contents
from hostile import count
from hostile.archives import damaged, harmful, zipped
from tqdm import tqdm

from data_scripts import archives, download
from data_scripts.archives import ArchiveError, unpack
from data_scripts.download import Downloader, DownloadError, Item


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetches an archive into a folder of its own; asserts that there is nothing then but what belongs there."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    numbers = itertools.count()
    (tmp_path / "downloads").mkdir()
    with FileServer() as server, tqdm(disable=True) as bar:

        def fetch(content):
            server.files["/41.zip"] = content
            folder = tmp_path / "downloads" / str(next(numbers))
            try:
                Downloader(keep_zip=False, bar=bar).fetch(Item(f"{server.url}/41.zip", folder / "41", archive=True))
            finally:
                others = {path.split("/")[0] for path in contents(folder)} - {"41", "41.zip"}
                assert not others and not any(path.is_symlink() for path in folder.rglob("*"))
                assert {path.name for path in tmp_path.iterdir()} == {"downloads"}

        yield fetch


def test_harmful_archives(fetch):
    """
    Catches an archive that writes outside its folder, makes links, fills the disk or memory, or is a traceback; and one
    that is asked for again and again although it arrived as it is.
    """
    counts = count("archives", harmful(), fetch, (DownloadError,), lambda what, content: "41")
    assert not counts.tracebacks and counts.accepted == 0 and counts.refused == 21, counts.tracebacks


def test_damaged_archives(tmp_path):
    """Catches damage for which zipfile, or what decompresses for it, has an error of another kind: the command's end."""
    path = tmp_path / "41.zip"

    def attempt(content):
        path.write_bytes(content)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            unpack(path, Path(folder))

    counts = count("damaged archives", damaged(400), attempt, (ArchiveError,), lambda what, content: "")
    assert not counts.tracebacks and counts.refused > 300, counts.tracebacks


@pytest.mark.parametrize(
    ("bound", "value", "words"),
    [("MAX_MEMBERS", 2, "3 files"), ("MAX_BYTES", 1000, "1,001 bytes"), ("MAX_RATIO", 1, "at most 1 times")],
)
def test_bounds(tmp_path, monkeypatch, bound, value, words):
    """Catches a bound that is not looked at, that another one hides, or that each archive inside an archive has anew."""
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 0)
    members = [("41/a", b"a" * 500), ("41/b", b"b" * 500), ("41/c", b"c")]
    inside = zipped(("1.zip", zipped(*members[:2], method=0)), ("2.zip", zipped(members[2], method=0)), method=0)
    for index, content in enumerate((zipped(*members), inside)):
        path = tmp_path / f"{index}.zip"
        path.write_bytes(content)
        unpack(path, tmp_path / f"unpacked-{index}")
        monkeypatch.setattr(archives, bound, value)
        with pytest.raises(ArchiveError, match=words if index == 0 else "unpack"):
            unpack(path, tmp_path / "refused")
        monkeypatch.undo()
        monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 0)
