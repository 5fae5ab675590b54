# SPDX-License-Identifier: Apache-2.0
"""Annotation files, records and instructions of strangers: whatever they hold, one row is left out and named, or can be stored."""

import contextlib
import json
import math
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from hostile import count
from hostile.annotations import PLANTED, VALUES, Case, Reader, cases, changed, places, write_readers
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.preparation.annotations import InputError
from data_scripts.preparation.base import EMPTY_QUESTION, PreparedScene
from data_scripts.preparation.scene_reading import describe_failure, read_scenes, scene_digest, scene_file
from data_scripts.prepare import main
from data_scripts.schema import QA_FEATURES, SCENES_FEATURES


OPENED: list[str] | None = None  # while a list: every path that is opened or listed


def _record(event: str, arguments: tuple) -> None:
    if OPENED is not None and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else "")


sys.addaudithook(_record)  # of the process, for good: it does nothing while `OPENED` is None


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    folder = tmp_path_factory.mktemp("raw")
    return {reader.name: reader for reader in write_readers(folder)}


READERS = (
    "scanqa",
    "sqa3d questions",
    "sqa3d annotations",
    "llava",
    "docvqa",
    "chartqa",
    "records",
    "records in lines",
)


def read(case: Case, folder: Path) -> list[PreparedScene]:
    """Reads a file as `prepare` does, scene by scene, and stores what came of it.

    Raises:
        InputError: the file, or the row, is refused, by a message that names it.
    """
    reader = case.reader
    reader.file.write_bytes(case.content)
    try:
        annotations = reader.builder.read_annotations(reader.sources)
    except InputError as error:
        assert case.whole, f"the good row is lost: {error}"
        raise
    finally:
        reader.file.write_text(reader.text(reader.content))
    assert not any("unexpected" in text for text in annotations.notes + annotations.faults), annotations.notes
    scenes = annotations.scenes["train"]
    good = [scene for scene in scenes if any(scene.scene_id.endswith(name) for name in ("b.jpg", "scene0001_00"))]
    assert case.whole or good, f"the good row is lost; {annotations.notes}"
    tasks = []
    for scene in scenes if case.whole else [scene for scene in scenes if scene not in good]:
        digest = scene_digest(reader.builder, reader.sources, reader.options, scene)
        if digest is None:
            raise InputError(f"{reader.file}: the scene {scene.scene_id} is absent")
        tasks.append((scene, digest))
    (folder / "scenes").mkdir(exist_ok=True)
    reading = read_scenes(reader.builder, reader.sources, reader.options, tasks, folder / "scenes", 1, strict=False)
    assert all("unexpected" not in failure["reason"] for failure in reading.left_out), reading.left_out
    for text in [*annotations.notes, *annotations.faults, *reading.lines(), *map(describe_failure, reading.left_out)]:
        assert text.isprintable() and len(text.encode()) < 3000, text
    refusals = annotations.faults + [f"{reader.file}: {describe_failure(failure)}" for failure in reading.left_out]
    bad = {failure["scene_id"] for failure in reading.left_out}
    found = [
        PreparedScene.read(scene_file(folder / "scenes", digest))
        for scene, digest in tasks
        if scene.scene_id not in bad
    ]
    for (scene, _), prepared in zip((task for task in tasks if task[0].scene_id not in bad), found):
        stored(scene.scene_id, prepared)
    if refusals:
        raise InputError(refusals[0])
    return found


def stored(scene_id: str, scene: PreparedScene) -> None:
    """What is read can be written by `datasets`, and comes back as it was."""
    rows = [EMPTY_QUESTION | row for row in scene.questions]
    back = pyarrow.Table.from_pylist(rows, schema=QA_FEATURES.arrow_schema).to_pylist()
    for row, again in zip(rows, back, strict=True):
        assert QA_FEATURES.encode_example(row) == row
        for name, value in row.items():
            if name in ("position", "rotation") and value is not None:
                assert np.allclose(again[name], value, rtol=1e-6) and all(map(math.isfinite, again[name]))
            else:
                assert again[name] == value, name
    fields = {"scene_id": scene_id, "images": scene.images, "frame_ids": scene.frame_ids, "geometry": scene.geometry}
    encoded = SCENES_FEATURES.encode_example(fields)
    (back,) = pyarrow.Table.from_pylist([encoded], schema=SCENES_FEATURES.arrow_schema).to_pylist()
    assert back["frame_ids"] == scene.frame_ids and back["scene_id"] == scene_id
    for name in scene.geometry or ():
        assert np.isfinite(back["geometry"][name]).all(), name


@contextlib.contextmanager
def nothing_planted_is_opened():
    """Fails if a file or folder that lies outside of the roots is opened."""
    global OPENED
    OPENED = opened = []
    try:
        yield
    finally:
        OPENED = None
    outside = [path for path in opened if f"/{PLANTED}/" in f"{os.path.normpath(path)}/" or "passwd" in path]
    assert opened and not outside, outside


@pytest.mark.parametrize("name", READERS)
def test_hostile_files(readers, name, tmp_path):
    """Catches a row that ends all of a preparation by a traceback, a message that names no file, a row that can be read and not be
    stored, a good row lost with a bad one, and a name in data that leads out of its root."""
    reader = readers[name]
    with nothing_planted_is_opened():
        counts = count(
            f"{name} files",
            cases(reader),
            lambda case: read(case, tmp_path),
            (InputError,),
            lambda what, case: case.reader.file.name,
        )
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)[-3000:]
    assert counts.tried > 100 and counts.refused > 100 and counts.accepted > 5


@pytest.mark.parametrize("name", READERS)
def test_all_hostile_rows_in_one_file(readers, name, tmp_path, monkeypatch, capsys):
    """Catches one of some hundred hostile rows that ends the others' preparation, by the real command; and `--strict` that takes
    them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    reader = readers[name]
    rows = []
    for place in places(reader.rows(reader.content)[0]):
        for value, token in VALUES.items():
            if value != "nested too deeply":
                rows.append(_row_text(reader, place, token))
    content = json.loads(json.dumps(reader.content))
    reader.rows(content)[0] = "<rows>"
    separator = "\n" if reader.lines else ", "
    text = reader.text(content).replace('"<rows>"', separator.join(rows))
    command = {"ScanQA": "scanqa", "SQA3D": "sqa3d", "Instruct": "instruct", "Records": "records"}
    arguments = [command[reader.builder.__name__]]
    for option, value in vars(reader.sources).items():
        if value:
            paths = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{option.replace('_', '-')}", *map(str, paths)]
    arguments += ["--output", str(tmp_path / "repo")]
    reader.file.write_text(text)
    try:
        assert main([*arguments, "--strict"]) == 2
        assert reader.file.name in capsys.readouterr().err.splitlines()[-1]
        assert main([*arguments, "--allow-missing"]) == 0, capsys.readouterr().err[-1000:]
    finally:
        reader.file.write_text(reader.text(reader.content))
    printed = capsys.readouterr().out
    assert "unexpected" not in printed and "records left out" in printed
    repo = str(tmp_path / "repo")
    scenes = datasets.load_dataset(repo, split="train")["scene_id"]
    assert any(scene.endswith(("b.jpg", "scene0001_00")) for scene in scenes)
    assert set(scenes) == set(datasets.load_dataset(repo, "scenes", split="train")["scene_id"])


def _row_text(reader: Reader, place: tuple, token: str) -> str:
    content = changed(reader, place, token).decode()
    good = json.dumps(reader.rows(reader.content)[1])
    if reader.lines:
        return content.removesuffix(f"\n{good}")
    start = reader.text(reader.content).index(json.dumps(reader.rows(reader.content)[0]))
    return content[start : content.rindex(f", {good}")]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**320)
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(["a.jpg", "../outside/a.jpg", "/etc/passwd", "scene0001_00", "C:\\a", "\0", "\ud800"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", READERS)
def test_any_value_in_any_field(readers, name, tmp_path):
    """Catches, with values that nobody thought of, what `test_hostile_files` does: a row is refused and its file named, or what it
    becomes can be stored and comes back."""
    reader = readers[name]
    ways = list(places(reader.rows(reader.content)[0]))

    @settings(derandomize=True, deadline=None, max_examples=60, database=None)
    @given(place=st.sampled_from(ways), value=JSON_VALUES)
    def check(place, value):
        try:
            read(Case(reader, changed(reader, place, json.dumps(value))), tmp_path)
        except InputError as error:
            assert reader.file.name in str(error) and str(error).isprintable()

    with nothing_planted_is_opened():
        check()
