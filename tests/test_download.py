# SPDX-License-Identifier: Apache-2.0
"""Downloads of which something is there already, that another process makes too, or for which there is no room."""

import base64
import contextlib
import hashlib
import shutil
import threading

import faults
import pytest
from file_server import NOISE, SCAN, WHOLE, FileServer, contents, run, zipped
from tqdm import tqdm

from data_scripts import archives, download
from data_scripts.download import Downloader, DownloadError, Item
from data_scripts.download_arkitscenes import main


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)
    with FileServer() as running:
        running.files["/file"] = NOISE
        yield running


@pytest.fixture
def fetch(server, tmp_path):
    """Fetches `/file` to `tmp_path/file`; `attempts` as of an interrupted run."""

    def fetch(attempts=6):
        with tqdm(disable=True) as bar, pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "ATTEMPTS", attempts)
            context = contextlib.nullcontext() if attempts > 1 else pytest.raises(DownloadError, match="arrived")
            with context:
                Downloader(keep_zip=False, bar=bar).fetch(Item(f"{server.url}/file", tmp_path / "file", archive=False))

    return fetch


OTHER = NOISE[::-1]
DATE, LATER = "Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 22 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"a"'}, {"ETag": '"b"'}),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}),
        ({"Last-Modified": DATE}, {"Last-Modified": LATER}),
        ({"ETag": 'W/"a"', "Last-Modified": DATE}, {"ETag": 'W/"a"', "Last-Modified": LATER}),
    ],
    ids=["etag", "weak etag", "date", "weak etag and date"],
)
@pytest.mark.parametrize("ignores_conditions", [False, True])
def test_file_that_changes_on_the_server(server, fetch, tmp_path, before, after, ignores_conditions):
    """Catches the second half of a new version after the first half of the old one, of the same length."""
    server.ignores_conditions = ignores_conditions
    server.headers["/file"] = before
    server.trouble["/file"] = ["cut"]
    fetch(attempts=1)
    server.files["/file"], server.headers["/file"] = OTHER, after
    fetch()
    assert (tmp_path / "file").read_bytes() == OTHER
    assert contents(tmp_path) == ["file"]


def test_same_file_is_gone_on_with(server, fetch, tmp_path):
    """Catches a version taken for another although nothing has changed, and a condition that no server answers."""
    server.headers["/file"] = {"ETag": '"a"', "Last-Modified": DATE}
    server.trouble["/file"] = ["cut"]
    fetch(attempts=1)
    fetch()
    assert (tmp_path / "file").read_bytes() == NOISE
    assert server.requests == [("/file", None), ("/file", f"bytes={len(NOISE) // 2}-")]


def test_another_length_without_any_version(server, fetch, tmp_path):
    """Catches two versions in one file where the server says nothing but the length."""
    server.trouble["/file"] = ["cut"]
    fetch(attempts=1)
    server.files["/file"] = OTHER[:-7]
    fetch()
    assert (tmp_path / "file").read_bytes() == OTHER[:-7]


def test_part_of_an_unknown_version(server, fetch, tmp_path):
    """Catches bytes that nobody can say the origin of as the beginning of the file."""
    (tmp_path / "file.part").write_bytes(OTHER[:1000])
    for text in (None, "", "[]", "3", '{"length": 5}'):
        if text is not None:
            (tmp_path / "file").unlink()
            (tmp_path / "file.part").write_bytes(OTHER[:1000])
            (tmp_path / "file.part.json").write_text(text)
        fetch()
        assert (tmp_path / "file").read_bytes() == NOISE and contents(tmp_path) == ["file"]


MD5, SHA256 = hashlib.md5(NOISE), hashlib.sha256(NOISE)


@pytest.mark.parametrize(
    ("headers", "compared"),
    [
        ({"Content-MD5": base64.b64encode(MD5.digest()).decode()}, True),
        ({"Repr-Digest": f"sha-256=:{base64.b64encode(SHA256.digest()).decode()}:"}, True),
        ({"Server": "AmazonS3", "ETag": f'"{MD5.hexdigest()}"'}, True),
        ({"ETag": f'"{"0" * 32}"'}, False),
        ({"Server": "AmazonS3", "ETag": f'"{"0" * 32}-3"'}, False),
        ({"Server": "AmazonS3", "ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"}, False),
        ({"Content-MD5": "no digest"}, False),
    ],
    ids=["md5", "sha256", "s3", "another server", "s3 in parts", "s3 encrypted", "nonsense"],
)
def test_checksums(server, fetch, tmp_path, headers, compared):
    """Catches a file of the right length with other bytes, and a checksum guessed from what is none."""
    server.headers["/file"] = headers
    server.trouble["/file"] = ["garble"]
    fetch()
    assert (tmp_path / "file").read_bytes() == (NOISE if compared else bytes(len(NOISE)))
    assert len(server.requests) == 1 + compared and contents(tmp_path) == ["file"]


def test_whole_part(server, fetch, tmp_path):
    """Catches a file fetched again whose command was killed between its last byte and its name."""
    server.trouble["/file"] = ["cut"]
    fetch(attempts=1)
    (tmp_path / "file.part").write_bytes(NOISE)
    fetch()
    assert (tmp_path / "file").read_bytes() == NOISE and len(server.requests) == 1


def test_two_at_once(server, tmp_path):
    """Catches two commands that write into one part, or unpack into one folder, and a lock that stays."""
    go_on = threading.Event()
    server.trouble["/threedod/Training/41.zip"] = [go_on]
    arguments = [server, tmp_path, "--split", "Training", "--video_id", "41"]
    statuses = []
    commands = [threading.Thread(target=lambda: statuses.append(run(*arguments))) for _ in range(2)]
    for command in commands:
        command.start()
    while [path for path, _ in server.requests].count("/threedod/Training/41.zip") < 1:
        commands[0].join(0.01)
    commands[1].join(0.5)
    assert len(statuses) == 0
    go_on.set()
    for command in commands:
        command.join()
    assert statuses == [0, 0] and contents(tmp_path) == WHOLE
    assert sorted(path for path, _ in server.requests) == ["/threedod/Training/41.zip", "/threedod/metadata.csv"]


def test_no_room_to_unpack(server, tmp_path, monkeypatch, capsys):
    """Catches an archive fetched six times because there is no room for what is in it, and one thrown away."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 20 >> 2))
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(error) == 1 and str(tmp_path) in error[0] and "0.2 MiB free" in error[0] and "goes on" in error[0]
    requests = len(server.requests)
    assert contents(tmp_path) == ["3dod/Training/41.zip", "3dod/metadata.csv"]
    monkeypatch.undo()
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert len(server.requests) == requests and contents(tmp_path) == WHOLE


def test_full_disk_stops_everything(server, tmp_path):
    """Catches six attempts with a full disk, each other file tried too, and what has arrived thrown away."""
    folder = tmp_path / "out" / "3dod" / "Training"
    for video_id in map(str, range(42, 50)):
        server.files[f"/threedod/Training/{video_id}.zip"] = zipped({f"{video_id}/a.png": NOISE})
    arguments = ["--split", "Training", "--video_id", *map(str, range(41, 50)), "--workers", "1"]
    arguments += ["--output", str(tmp_path / "out"), "--base-url", server.url]
    # In the folder of the scans the eighth change is the second time that something comes of the first.
    outcome = faults.run(main, arguments, root=folder, kind="full", at=7)
    failures = [line for line in outcome.output.splitlines() if line.startswith("failed: ")]
    assert outcome.status == 1 and len(failures) == 1 and "Traceback" not in outcome.output
    assert str(folder) in failures[0] and "MiB free" in failures[0] and "goes on" in failures[0]
    assert [path for path, _ in server.requests] == ["/threedod/metadata.csv", "/threedod/Training/41.zip"]
    size = (folder / "41.zip.part").stat().st_size
    assert download.CHUNK < size < len(SCAN)
    assert main(arguments) == 0
    assert server.requests[2] == ("/threedod/Training/41.zip", f"bytes={size}-") and len(server.requests) == 11
    assert len(contents(tmp_path)) == 1 + 2 + 8
