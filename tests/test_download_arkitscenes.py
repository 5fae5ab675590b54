# SPDX-License-Identifier: Apache-2.0
"""`python -m data_scripts.download_arkitscenes` against a server on this machine that misbehaves on purpose."""

import json
import zipfile
from collections import Counter

import pytest
from file_server import NOISE, SCAN, WHOLE, FileServer, contents, run, zipped

from data_scripts import download, download_arkitscenes
from data_scripts.readers.arkitscenes import find_scans


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)
    with FileServer() as running:
        yield running


def test_layouts(server, tmp_path, capsys):
    """Catches files in another place than the one the reader looks in, and fetching again what is there."""
    assert run(server, tmp_path / "a b", "3dod", "--split", "Training", "--video_id", "41") == 0
    assert contents(tmp_path / "a b") == WHOLE
    assets = ["--assets", "lowres_wide", "lowres_wide.traj"]
    assert run(server, tmp_path / "a b", "raw", "--split", "Training", "--video_id", "41", *assets) == 0
    assert contents(tmp_path / "a b" / "raw") == [
        "Training/41/lowres_wide.traj",
        "Training/41/lowres_wide/41_1.000.png",
        "metadata.csv",
    ]
    requests = len(server.requests)
    assert run(server, tmp_path / "a b", "--split", "Training", "--video_id", "41") == 0
    assert len(server.requests) == requests
    assert "0 fetched, 2 there already, 0 failed" in capsys.readouterr().out


def test_cut_transfers_are_gone_on_with(server, tmp_path):
    """Catches half a file taken for a whole one, and starting again from the first byte."""
    path = "/threedod/Training/41.zip"
    server.trouble[path] = ["cut", "cut", 500, 503]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert contents(tmp_path) == WHOLE
    starts = [byte_range for name, byte_range in server.requests if name == path]
    half, quarter = len(SCAN) // 2, len(SCAN) - len(SCAN) // 2
    later = half + quarter // 2
    assert starts == [None, f"bytes={half}-", f"bytes={later}-", f"bytes={later}-", f"bytes={later}-"]


def test_a_later_run_goes_on(server, tmp_path, monkeypatch, capsys):
    """Catches what an earlier run fetched being thrown away."""
    path = "/threedod/Training/41.zip"
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.trouble[path] = ["cut"]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 1
    assert f"{len(SCAN) // 2} of {len(SCAN)} bytes arrived" in capsys.readouterr().err
    assert contents(tmp_path) == ["3dod/Training/41.zip.part", "3dod/Training/41.zip.part.json", "3dod/metadata.csv"]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert server.requests[-1] == (path, f"bytes={len(SCAN) // 2}-")
    assert contents(tmp_path) == WHOLE


def test_server_that_does_not_resume(server, tmp_path):
    """Catches the whole file appended to the half of it that was there."""
    server.resumes = False
    server.trouble["/threedod/Training/41.zip"] = ["cut"]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert contents(tmp_path) == WHOLE


def test_part_that_does_not_fit(server, tmp_path):
    """Catches an endless 416, and a file of right length and wrong content taken for the archive."""
    folder = tmp_path / "3dod" / "Training"
    folder.mkdir(parents=True)
    (folder / "41.zip.part").write_bytes(bytes(2 * len(SCAN)))
    unknown = {"length": None, "etag": None, "last_modified": None, "checksum": None}
    (folder / "41.zip.part.json").write_text(json.dumps(unknown))
    server.trouble["/threedod/Training/41.zip"] = [None, "garble"]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert contents(tmp_path) == WHOLE
    assert [part for name, part in server.requests if name.endswith("41.zip")] == [
        f"bytes={2 * len(SCAN)}-",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("offset_in_header", "damage"),
    [(None, b"\xff" * 8), (10, b"\x63"), (8, b"\x01")],
    ids=["data", "method", "encrypted"],
)
def test_damage_inside_an_archive(server, tmp_path, offset_in_header, damage):
    """Catches a broken compressed file, or a header that names an unknown method or a password, that ends the command."""
    scan = zipped({"41/41_3dod_annotation.json": b"{}" * 500}, zipfile.ZIP_DEFLATED)
    broken = bytearray(scan)
    if offset_in_header is None:
        start = 30 + len("41/41_3dod_annotation.json")  # of the compressed data
        broken[start : start + len(damage)] = damage
    else:
        directory = scan.index(b"PK\x01\x02")
        broken[directory + offset_in_header] = damage[0]
    server.files["/threedod/Training/41.zip"] = scan
    server.trouble["/threedod/Training/41.zip"] = [bytes(broken)]
    assert run(server, tmp_path, "--split", "Training", "--video_id", "41") == 0
    assert (tmp_path / "3dod" / "Training" / "41" / "41_3dod_annotation.json").read_bytes() == b"{}" * 500


def test_zip_in_a_zip(server, tmp_path, capsys):
    """Catches an inner archive left packed, and one without the scan taken for it."""
    server.files["/threedod/Training/41.zip"] = zipped({"41.zip": SCAN})
    assert run(server, tmp_path / "nested", "--split", "Training", "--video_id", "41") == 0
    assert contents(tmp_path / "nested") == WHOLE
    server.files["/threedod/Training/41.zip"] = zipped({"42/a.json": b"{}"})
    assert run(server, tmp_path / "other", "--split", "Training", "--video_id", "41") == 1
    assert "holds no folder 41, but 42" in capsys.readouterr().err
    assert contents(tmp_path / "other") == ["3dod/metadata.csv"]


def test_absent_and_failing_files(server, tmp_path, monkeypatch, capsys):
    """Catches one missing video that stops the others, a 404 asked for again, and an endless 500."""
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    server.files["/threedod/Training/43.zip"] = SCAN
    server.trouble["/threedod/Training/43.zip"] = [500] * 9
    assert run(server, tmp_path, "--split", "Training", "--video_id", "42", "41", "43", "41") == 1
    error = capsys.readouterr().err
    assert "42.zip: HTTP 404" in error and "43.zip: HTTP 500" in error and "(3 attempts)" in error
    assert contents(tmp_path) == WHOLE
    times = Counter(name for name, _ in server.requests)
    assert times["/threedod/Training/42.zip"] == 1 and times["/threedod/Training/43.zip"] == 3
    assert times["/threedod/Training/41.zip"] == 1


def test_csv(server, tmp_path, capsys):
    """Catches videos of the other fold, and a file of another format read as an empty list."""
    table = tmp_path / "videos.csv"
    table.write_text("visit_id,video_id,fold\n1,41,Training\n,42,Validation\n")
    assert run(server, tmp_path / "out", "3dod", "--video_id_csv", str(table), "--split", "Training") == 0
    assert contents(tmp_path / "out") == WHOLE
    table.write_text("id\n41\n")
    assert run(server, tmp_path / "out", "--video_id_csv", str(table)) == 2
    assert "line 2: expected columns video_id and fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--video_id", "41"], "--video_id needs --split"),
        (["raw", "--split", "Training", "--video_id", "41"], "raw needs --assets"),
        (["3dod", "--split", "Training", "--video_id", "41", "--assets", "mov"], "one archive per video"),
        (["--split", "Training", "--video_id", "../41"], "no video id"),
    ],
)
def test_bad_arguments(server, tmp_path, capsys, arguments, words):
    """Catches a request for a file that cannot be."""
    assert run(server, tmp_path / "out", *arguments) == 2
    assert words in capsys.readouterr().err and not server.requests


LIST = "/threedod/3dod_train_val_splits.csv"


def run_list(server, output, *arguments):
    """With the list of videos, too, from the server here."""
    return run(server, output, *arguments, "--list-url", server.url)


def test_all_of_apples_list(server, tmp_path, capsys):
    """Catches a command that wants a list from the user, takes one fold alone, or does not say how much is to come."""
    server.files[LIST] = b"video_id,visit_id,fold\r\n41,NA,Training\r\n42,7,Validation\r\n"  # Windows' line ends
    server.files["/threedod/Validation/42.zip"] = zipped({"42/42_3dod_annotation.json": b"{}"})
    assert run_list(server, tmp_path, "3dod") == 0
    validation = "3dod/Validation/42/42_3dod_annotation.json"
    assert contents(tmp_path) == sorted([*WHOLE, validation, "3dod/3dod_train_val_splits.csv"])
    printed = capsys.readouterr().out
    assert "2 videos (Training 1, Validation 1)" in printed and "about 0.2 GB to fetch (124 MB a scan" in printed
    requests = len(server.requests)
    assert run_list(server, tmp_path, "3dod", "--split", "Training") == 0
    assert len(server.requests) == requests  # the list is not fetched again, either
    assert "about 0.0 GB" in capsys.readouterr().out


def test_list_that_cannot_be_had(server, tmp_path, capsys):
    """Catches a traceback, and a failure that does not say what else to do."""
    assert run_list(server, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"{LIST}: HTTP 404" in error and "--video_id_csv" in error


def test_videos_without_boxes(server, tmp_path, capsys):
    """Catches an exit status of 1 for ever, because of files of which Apple's script knows that they do not exist."""
    exempt = "47334522"
    server.files[f"/raw/Training/{exempt}/lowres_wide.zip"] = zipped({f"lowres_wide/{exempt}_1.000.png": NOISE})
    assets = ["--assets", "lowres_wide", "lowres_wide.traj", "annotation"]
    server.files["/raw/Training/41/41_3dod_annotation.json"] = b"{}"
    assert run(server, tmp_path, "raw", "--split", "Training", "--video_id", exempt, "41", *assets) == 0
    assert {path for path in contents(tmp_path) if exempt in path} == {
        f"raw/Training/{exempt}/lowres_wide/{exempt}_1.000.png"
    }
    assert (
        f"1 videos that have no annotation, lowres_wide.traj on the server, as Apple's script knows: fetched without: {exempt}"
        in capsys.readouterr().out
    )
    assert run(server, tmp_path / "3dod", "--split", "Training", "--video_id", exempt, "41") == 0
    assert contents(tmp_path / "3dod") == WHOLE
    assert f"not fetched: {exempt}" in capsys.readouterr().out
    # A file of any other video that is not there is a failure still.
    del server.files["/raw/Training/41/41_3dod_annotation.json"]
    assert run(server, tmp_path / "again", "raw", "--split", "Training", "--video_id", "41", *assets) == 1


def test_every_exempt_video_once():
    """Catches an id of Apple's list that got lost or has a digit too few."""
    assert len(download_arkitscenes.WITHOUT_3DOD) == 24
    assert all(len(video_id) == 8 and video_id.isdigit() for video_id in download_arkitscenes.WITHOUT_3DOD)


def test_what_is_being_unpacked_is_no_scan(tmp_path):
    """Catches the folder of an interrupted download prepared as a scan of its own."""
    for name in ("41", ".42.unpacking"):
        (tmp_path / "3dod" / "Training" / name).mkdir(parents=True)
    assert list(find_scans(tmp_path)) == ["41"]
