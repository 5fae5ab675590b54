# SPDX-License-Identifier: Apache-2.0
"""Scans that strangers made: each is read, or refused by an error that names the file. Counts: `pytest -s`."""

import json
import random
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from hostile import count
from hostile.scans import WORDS, Case, arkitscenes_scan, roomplan, scannet_dump, sens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scannet_dump import camera_to_world, write_scan, write_scanqa

from data_scripts.files import UnreadableFileError
from data_scripts.prepare import main
from data_scripts.synthetic.arkitscenes_writer import video_id


# Numbers that overflow warn before they do harm.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::PIL.Image.DecompressionBombWarning")

MAKERS = {make.__name__: make for make in (scannet_dump, sens, arkitscenes_scan, roomplan)}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """One scan per format; each case leaves it as it was."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_no_scan_ends_in_a_traceback(worlds, name):
    """Catches a scan that ends a whole preparation, or is taken for good: numpy's, Pillow's or struct's error, and numbers that
    overflow."""
    world = worlds[name]
    world.read()  # as it is, it is accepted

    def names(what: str, case: Case) -> str:
        return Path(case.file).name

    counts = count(f"scans, {name}", world.cases, world.tried, (UnreadableFileError,), names)
    assert counts.tracebacks == [] and counts.tried > 200 and counts.refused > 100
    world.read()


################
# Properties: whatever is in a file, it is read or refused by name
################


def many(examples: int):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def read_or_refused(world, file: str, content: bytes):
    with world.replaced(Case(file, content)):
        try:
            world.read()
        except UnreadableFileError as error:
            assert Path(file).name in str(error)


words = st.one_of(st.floats().map(repr), st.integers().map(str), st.sampled_from(WORDS), st.text(max_size=6))
lines = st.lists(st.lists(words, max_size=8).map(" ".join), max_size=4).map("\n".join)
matrices = st.lists(st.one_of(st.floats(), st.floats(-2, 2)), min_size=16, max_size=16).map(
    lambda row: " ".join(map(repr, row))
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(st.characters(codec=None), max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)


@many(100)
@given(
    st.sampled_from(["pose/0.txt", "intrinsic/intrinsic_color.txt", "scene0000_00.txt"]), st.one_of(lines, matrices)
)
def test_texts_of_scannet(worlds, file, text):
    """Catches a pose, a camera or an alignment, whatever is written there, that ends in a traceback."""
    prefix = "axisAlignment = " if file == "scene0000_00.txt" else ""
    read_or_refused(worlds["scannet_dump"], file, (prefix + text).encode(errors="surrogatepass"))


@many(60)
@given(
    st.sampled_from(["lowres_wide.traj", ".pincam"]),
    st.one_of(lines, st.lists(st.floats(), min_size=6, max_size=7).map(lambda row: " ".join(map(repr, row)))),
)
def test_texts_of_arkitscenes(worlds, suffix, text):
    """Catches a trajectory or a camera, whatever is written there, that ends in a traceback."""
    world = worlds["arkitscenes_scan"]
    file = next(case.file for _, case in world.cases if case.file.endswith(suffix))
    read_or_refused(world, file, text.encode(errors="surrogatepass"))


@many(100)
@given(st.sampled_from(["roomplan", "arkitscenes_scan"]), st.integers(0, 10**6), values)
def test_jsons(worlds, name, place, value):
    """Catches a value of another kind, anywhere in a room's or an annotation's JSON, that ends in a traceback."""
    world = worlds[name]
    file = "room.json" if name == "roomplan" else f"{video_id(0)}_3dod_annotation.json"
    content = json.loads((world.folder / file).read_text())
    parent, draw = content, random.Random(place)
    while True:  # down to some value
        key = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        if not isinstance(parent[key], list | dict) or not parent[key] or draw.random() < 0.3:
            break
        parent = parent[key]
    parent[key] = value
    read_or_refused(world, file, json.dumps(content).encode())


@many(150)
@given(
    st.sampled_from([("sens", "scene0000_00.sens"), ("scannet_dump", "scene0000_00_vh_clean_2.ply")]),
    st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 1000)),
)
def test_bytes(worlds, where, changes, length):
    """Catches a stream's header or frame, or a mesh's header, whatever its bytes, that ends in a traceback or in all memory."""
    name, file = where
    content = bytearray((worlds[name].folder / file).read_bytes())
    for offset, new in changes:
        content[offset : offset + len(new)] = new
    read_or_refused(worlds[name], file, bytes(content[:length]))


def test_a_room_of_thousands_of_boxes_is_none(worlds):
    """Catches a file of 2 MB that keeps a preparation busy for hours: telling 1,000 boxes apart takes half a minute."""
    for name, file, key in (
        ("roomplan", "room.json", "objects"),
        ("arkitscenes_scan", f"{video_id(0)}_3dod_annotation.json", "data"),
    ):
        content = json.loads((worlds[name].folder / file).read_text())
        for number in (1000, 1001):
            content[key] = content[key][:1] * number
            with worlds[name].replaced(Case(file, json.dumps(content).encode())):
                if number == 1000:
                    worlds[name].read()
                else:
                    with pytest.raises(UnreadableFileError, match=f"{file}: '{key}' has 1001 entries, more than 1000"):
                        worlds[name].read()


################
# A preparation
################


def test_cameras_are_checked_as_they_are_stored(tmp_path, monkeypatch, capsys):
    """Catches `1e39`, finite in float64 and infinite in float32: one such camera in a prepared repository destroys a model. A frame
    or a record with one is left out, as is a scene of nothing else, by name; the others are prepared."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    scenes = [f"scene000{number}_00" for number in range(4)]
    for scene in scenes:
        write_scan(tmp_path / "scans", scene)

    def move(scene: str, frame: int):
        pose = camera_to_world(frame)
        pose[0, 3] = 1e39
        np.savetxt(tmp_path / "scans" / scene / "pose" / f"{frame}.txt", pose)

    move(scenes[1], 20)
    for frame in (0, 20, 100):
        move(scenes[2], frame)
    (tmp_path / "scans" / scenes[3] / "intrinsic" / "intrinsic_color.txt").write_text("60 0 1e39 0 62 16 0 0 1")
    questions = write_scanqa(tmp_path, "train", scenes)
    arguments = ["--annotations", str(questions), "--scannet-root", str(tmp_path / "scans")]
    assert main(["scanqa", *arguments, "--output", str(tmp_path / "repo"), "--workers", "1"]) == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert f"{scenes[2]}: no frame has a valid pose, intrinsics and depth (3 without a pose)" in said
    assert "intrinsic_color.txt: the intrinsics hold a number that is not finite, or beyond 1e+06" in said
    assert f"frames without a pose: 1 in 1 scenes, the first in {scenes[1]} (frame 20)" in said
    stored = datasets.load_dataset(str(tmp_path / "repo"), "scenes")["train"]
    assert stored["scene_id"][:] == scenes[:2] and [len(images) for images in stored["images"]] == [3, 2]

    to_world = [1.0, 0, 0, 0, 0, 1, 0, -1, 0]
    good = {"R": [to_world], "t": [[0.0, 0, 1]], "K": [[20.0, 0, 9.5, 0, 20, 4.5, 0, 0, 1]]}
    tokens = [
        good,
        good | {"t": [[1e39, 0, 0]]},
        good | {"t": [[0, 1e30, 0]]},
        good | {"K": [[20.0, 0, 1e39, 0, 20, 4.5, 0, 0, 1]]},
        good | {"K": [[1e-50, 0, 9.5, 0, 20, 4.5, 0, 0, 1]]},
        good | {"t": [[10**400, 0, 0]]},
        good | {"depth_hist": [[-1e39] + [0] * 15]},
    ]
    (tmp_path / "images").mkdir()
    rows = []
    for number, token in enumerate(tokens):
        PIL.Image.new("RGB", (20, 10)).save(tmp_path / "images" / f"{number}.jpg")
        rows.append(
            {"images": [f"{number}.jpg"], "geom_token": token, "question": "?", "answer": "!", "task": "scanqa"}
        )
    (tmp_path / "train.json").write_text(json.dumps(rows))
    arguments = ["--records", str(tmp_path / "train.json"), "--image-root", str(tmp_path / "images"), "--workers", "1"]
    assert main(["records", *arguments, "--output", str(tmp_path / "records")]) == 0
    said = capsys.readouterr().out
    for number, reason in (
        (1, "geom_token: t of view 0 holds 1e+39: not finite, or beyond 1e+06"),
        (2, "geom_token: t of view 0 holds 1e+30"),
        (3, "geom_token: K of view 0 holds 1e+39"),
        (4, "geom_token 'K': the focal lengths are not positive numbers"),
        (5, "geom_token"),
        (6, "geom_token: depth_hist of view 0 holds -1e+39"),
    ):
        assert re.search(rf"record {number}\)?: {re.escape(reason)}", said), number
    stored = datasets.load_dataset(str(tmp_path / "records"), "scenes")["train"]
    assert len(stored) == 1 and np.isfinite(np.float32(stored[0]["geometry"]["t"])).all()
