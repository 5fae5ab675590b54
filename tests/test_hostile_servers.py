# SPDX-License-Identifier: Apache-2.0
"""Servers that answer anything: a download ends with a file, or with a line that names it."""

import json

import pytest
from hostile import count
from hostile.servers import AnswerServer, answers
from tqdm import tqdm

from data_scripts import download
from data_scripts.download import Downloader, DownloadError, Item


@pytest.mark.parametrize("resumes", [False, True], ids=["new", "resumed"])
def test_answers(tmp_path, monkeypatch, resumes):
    """Catches an answer that is a traceback or an endless wait, a redirect to files of this machine, and other bytes appended."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(download, "TIMEOUT", 5)
    monkeypatch.setattr(download, "flush", lambda path: None)  # 150 files
    target = tmp_path / "file"
    with AnswerServer() as server, tqdm(disable=True) as bar:

        def attempt(answer):
            for path in tmp_path.iterdir():
                path.unlink()
            if resumes:
                version = {"length": 5, "etag": '"a"', "last_modified": None, "checksum": None}
                (tmp_path / "file.part").write_bytes(b"he")
                (tmp_path / "file.part.json").write_text(json.dumps(version))
            server.answer = answer
            try:
                Downloader(keep_zip=False, bar=bar).fetch(Item(f"{server.url}/file", target, archive=False))
                assert b"root:" not in target.read_bytes()
            finally:
                assert not (tmp_path / ".file.lock").exists()

        counts = count("servers", answers(100), attempt, (DownloadError,), lambda what, answer: "/file")
    assert not counts.tracebacks and counts.refused > 50 and counts.accepted > 10, "\n".join(counts.tracebacks)
