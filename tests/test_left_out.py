# SPDX-License-Identifier: Apache-2.0
"""The guard of a scene, and of a record: what is left out, what is not, and how it is said."""

import errno
import json
import os
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hostile import count
from hostile.annotations import VALUES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scannet_dump import write_scan, write_scanqa
from stage1_releases import CHARTQA_FEATURES, DOCVQA_FEATURES, encoded

from data_scripts.actions.questions import questions
from data_scripts.builders.instruct import Instruct
from data_scripts.download_arkitscenes import find_videos
from data_scripts.instruct_sources import parse_sources
from data_scripts.licences import Origin, card_metadata, describe_licences, find_origin
from data_scripts.plain import plain
from data_scripts.preparation.annotations import Annotations, InputError, SceneInput
from data_scripts.preparation.base import Options, PreparedScene, Sources
from data_scripts.preparation.left_out import BadRecordError, LeftOut
from data_scripts.preparation.scans import ScanNetBuilder, StoredView
from data_scripts.preparation.scene_reading import describe_failure, read_scenes
from data_scripts.preparation.val_share import split_validation
from data_scripts.prepare import main
from data_scripts.readers.boxes import Box
from data_scripts.schema import SchemaError


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A command that prepares two scans."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    scenes = ["scene0000_00", "scene0001_00"]
    for scene in scenes:
        write_scan(tmp_path / "scans", scene, frames=(0, 20))
    file = write_scanqa(tmp_path, "train", scenes)
    return ["scanqa", "--annotations", str(file), "--scannet-root", str(tmp_path / "scans")]


def first_scene_raises(monkeypatch, error: BaseException):
    read_scene = ScanNetBuilder.read_scene

    def read(sources, options, scene):
        if scene.scene_id == "scene0000_00":
            raise error
        return read_scene(sources, options, scene)

    monkeypatch.setattr(ScanNetBuilder, "read_scene", read)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (KeyError("a\n\ud800"), "unexpected KeyError: 'a\\n\\ud800' (test_left_out.py, line"),
        (OverflowError("int too large"), "please report this mistake"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "/disk/scans/" + "a" * 300),
            "cannot be read (File name too long)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/disk/scans/b.png"),
            "b.png: cannot be read (Permission denied)",
        ),
        (SchemaError("'t' of view 0 holds a number that is not finite"), "'t' of view 0"),
    ],
)
def test_one_scene_is_left_out(arguments, monkeypatch, tmp_path, capsys, error, words):
    """Catches an error of one scene that ends all of a preparation, a mistake of this project that looks like a broken file, and
    a folder of this machine in what is published."""
    first_scene_raises(monkeypatch, error)
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("left out: scene scene0000_00")]
    assert words in line and "1 scenes good, 1 left out" in printed
    assert "/home" not in (tmp_path / "repo" / "preparation.json").read_text()
    assert datasets.load_dataset(str(tmp_path / "repo"), split="train")["scene_id"][:] == ["scene0001_00"]
    assert main([*arguments, "--output", str(tmp_path / "strict"), "--strict"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_a_scene(arguments, monkeypatch, tmp_path, error):
    """Catches a full memory or disk that leaves out scene after scene, and an interrupt that leaves out one."""
    first_scene_raises(monkeypatch, error)
    output = tmp_path / "repo"
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            main([*arguments, "--output", str(output)])
    else:
        assert main([*arguments, "--output", str(output)]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert not output.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"t": [[1e39, 0.0, 0.0]]},
        {"K": [[[float("nan")] * 3] * 3]},
        {"R": [[[1.0] * 3] * 2]},
    ],
)
def test_geometry_that_cannot_be_stored(change):
    """Catches a camera that is finite as it is read and infinite as it is stored, in 32 bits."""
    geometry = {"R": [np.eye(3).tolist()], "t": [[0.0] * 3], "K": [np.eye(3).tolist()], "depth_hist": [[0.0] * 16]}
    PreparedScene([b"a"], ["0"], geometry, []).check()
    with pytest.raises(SchemaError, match=f"'{next(iter(change))}'"):
        PreparedScene([b"a"], ["0"], geometry | change, []).check()


def test_question_twice_in_a_scene():
    """Catches two boxes of one identifier, which datasets finds when all scenes are read and writes nothing."""
    row = {"scene_id": "a", "question_id": "a-1", "question": "?", "answers": ["!"], "task": "t"}
    with pytest.raises(ValueError, match="question_id a-1 occurs twice"):
        PreparedScene([b"a"], ["0"], None, [row, row]).check()


def test_file_whose_name_is_not_utf8(arguments, tmp_path):
    """Catches one file of a scan, of another system's encoding, that ends a preparation while its files are listed."""
    name = os.fsencode(tmp_path / "scans" / "scene0000_00" / "depth") + b"/\xff\xfe.png"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0


def test_many_reasons_are_some_lines(tmp_path):
    """Catches a note, and a line of the card, for each of a million bad records."""
    left_out = LeftOut(tmp_path / "a.json")
    for number in range(1000):
        with left_out.guard(number):
            raise KeyError(f"{number}\x1b[2J" * 100)
    notes = left_out.notes()
    assert len(notes) == 21 and "980 records left out for other reasons" in notes[-1]
    assert all(note.isprintable() and len(note) < 500 for note in notes)


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(text=st.text(st.characters(codec=None), max_size=400))
def test_any_text_is_plain(text):
    """Catches what a terminal obeys, and what a card cannot be written with."""
    line = plain(text)
    assert "\n" not in line and "\x1b" not in line and len(line) <= 2000 and plain(line, None) == line
    line.encode()


HOSTILE_TEXTS = {
    "": b"",
    "NUL": b"a\0b",
    "not UTF-8": b"\xff\xfe",
    "blank": b"  ",
    "null": None,
    "5,000 characters": b"a" * 5000,
}


def hostile_tables(folder):
    """Rows of DocVQA and ChartQA in which one text, of four, is hostile; a good row after them."""
    for features, kind in ((DOCVQA_FEATURES, "docvqa"), (CHARTQA_FEATURES, "chartqa")):
        good = {
            "questionId": "2",
            "question": "How many?",
            "query": "How many?",
            "image": {"bytes": encoded("a"), "path": None},
            "ucsf_document_id": "doc",
            "ucsf_document_page_no": "1",
            "answers": ["3"],
            "label": ["3"],
        }
        schema = features.arrow_schema
        names = [field.name for field in schema if field.name in good]
        for name in names:
            for what, value in HOSTILE_TEXTS.items():
                if name == "image" and what not in ("null", "", "not UTF-8"):
                    continue
                row = good | {"questionId": "1", name: {"bytes": value, "path": None} if name == "image" else value}
                columns = []
                for field in schema:
                    values = [row.get(field.name), good.get(field.name)]
                    if pyarrow.types.is_string(field.type):  # written as bytes, read as text
                        binary = [text.encode() if isinstance(text, str) else text for text in values]
                        array = pyarrow.array(binary, pyarrow.binary())
                        columns.append(
                            pyarrow.StringArray.from_buffers(
                                2, array.buffers()[1], array.buffers()[2], array.buffers()[0]
                            )
                        )
                    elif name == field.name and name in ("answers", "label"):
                        array = pyarrow.array([value, b"3"], pyarrow.binary())
                        texts = pyarrow.StringArray.from_buffers(
                            2, array.buffers()[1], array.buffers()[2], array.buffers()[0]
                        )
                        columns.append(pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2], pyarrow.int32()), texts))
                    else:
                        columns.append(pyarrow.array(values, field.type))
                path = folder / f"{kind}_{len(list(folder.iterdir()))}_train.parquet"
                pyarrow.parquet.write_table(
                    pyarrow.Table.from_arrays(columns, names=[field.name for field in schema]), path
                )
                yield f"{kind}: {name} {what}", path


def test_hostile_tables(tmp_path):
    """Catches a text of a Parquet file that is not UTF-8, or is null, that ends all by an error without a file's name."""

    def attempt(path):
        annotations = Instruct.read_annotations(Sources(annotations=(path,)))
        scenes = annotations.scenes["train"]
        assert any(row["answers"] == ["3"] for scene in scenes for row in scene.questions), "the good row is lost"
        assert not any("unexpected" in note for note in annotations.notes), annotations.notes
        tasks = [(scene, f"{path.stem}{number}") for number, scene in enumerate(scenes)]
        sources = Sources(annotations=(path,))
        reading = read_scenes(Instruct, sources, Options(), tasks, tmp_path / "scenes", 1, strict=False)
        left_out = [note for note in annotations.notes if "skipped" in note or "left out" in note]
        left_out += map(describe_failure, reading.left_out)
        assert not any("unexpected" in line for line in left_out), left_out
        if left_out:
            raise InputError(left_out[0])

    (tmp_path / "tables").mkdir(), (tmp_path / "scenes").mkdir()
    counts = count("tables", hostile_tables(tmp_path / "tables"), attempt, (InputError,), lambda what, path: path.name)
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)[-3000:]
    assert counts.tried > 40 and counts.refused > 25


def test_hostile_cards(tmp_path):
    """Catches a card beside the raw files whose licence is a number or an object, and that ends all by a traceback."""
    default = Origin("title", "source", "licence", ("unknown",))
    cases = {}
    for key in ("license", "license_name", "pretty_name"):
        for what, token in VALUES.items():
            text = f"---\nlicense: other\n{key}: {token}\n---\n" if key != "license" else f"---\n{key}: {token}\n---\n"
            cases[f"{key}: {what}"] = text.encode("utf-8", "surrogatepass")
    cases |= {
        "not UTF-8": b"---\nlicense: \xff\n---\n",
        "no YAML": b"---\n{[\n---\n",
        "tag": b"---\nlicense: !!python/name:os.system\n---\n",
    }

    def attempt(content):
        (tmp_path / "README.md").write_bytes(content)
        origin = find_origin(default, [tmp_path])
        assert isinstance(origin.private, bool) and describe_licences(origin.licences)
        f"{yaml.safe_dump(card_metadata(origin.licences))}{origin}".encode()

    counts = count("cards", cases.items(), attempt, (ValueError,), lambda what, case: "README.md")
    assert counts.tracebacks == [] and counts.tried > 100 and counts.refused > 30, "\n".join(counts.tracebacks)[-3000:]


def test_hostile_lists_of_sources(tmp_path):
    """Catches a YAML of sources that ends in a traceback: its values are dates, aliases, or nested without end."""
    (tmp_path / "a.json").write_text("[]")
    cases = {f"files: {what}": f"a:\n  files: {token}\n  image_root: .\n" for what, token in VALUES.items()}
    cases |= {
        f"image_root: {what}": f"a:\n  files: [a.json]\n  image_root: {token}\n" for what, token in VALUES.items()
    }
    cases |= {f"name: {what}": f"? {token}\n: files: [a.json]\n" for what, token in VALUES.items()}
    cases |= {f"all: {what}": token for what, token in VALUES.items()}
    cases["date"] = "a: 2001-99-99"
    path = tmp_path / "sources.yaml"

    def attempt(text):
        path.write_text(text)
        parse_sources([], path)

    counts = count("lists of sources", cases.items(), attempt, (InputError,), lambda what, case: "sources.yaml")
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)[-3000:]


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(
    labels=st.lists(
        st.text(st.characters(codec=None), max_size=40) | st.sampled_from(["chair", "tv_monitor"]), max_size=4
    ),
    identifiers=st.lists(st.text(st.characters(codec=None), max_size=8), min_size=4, max_size=4),
    numbers=st.lists(st.floats(-0.5, 0.5) | st.floats(-1e6, 1e6), min_size=24, max_size=24),
)
@example(["chair"], ["\ud800"] * 4, [0.0] * 24)
@example(["chair", "tv_monitor"], ["list_objects-tv monitor", "b", "c", "d"], [0.0] * 24)
def test_questions_about_any_boxes(labels, identifiers, numbers):
    """Catches labels, identifiers and places of a stranger's boxes for which no question can be made, and ends by another error
    than one that leaves the scene out."""
    depth = np.full((6, 10), 3.0, dtype=np.float32)
    intrinsics = np.array([[8.0, 0, 4.5], [0, 8.0, 2.5], [0, 0, 1]])
    view = StoredView("0", b"a", (10, 6), np.eye(4), intrinsics, np.zeros(16), depth, intrinsics)
    boxes = [
        Box(identifier, "object", label, np.array([0, 0, 2.0]) + numbers[6 * index : 6 * index + 3], np.eye(3), np.abs(numbers[3 + 6 * index : 6 + 6 * index]) + 0.1)
        for index, (label, identifier) in enumerate(zip(labels, identifiers))
    ]  # fmt: skip
    try:
        rows = questions("41", boxes, [view], Options(), False, [])
        scene = PreparedScene([b"a"], ["0"], None, rows)
        scene.check()
    except (SchemaError, BadRecordError) as error:
        assert "question_id" in str(error)
        return
    assert all(json.loads(row["action"]) for row in rows)
    assert rows or identifiers[0] != "list_objects-tv monitor"


def test_hostile_lists_of_videos(tmp_path):
    """Catches a CSV field of 131 kB, another encoding, or an id that is a path, which end in a traceback or leave the folder."""
    path = tmp_path / "videos.csv"
    ids = ["../41", "/etc/passwd", "4" * 5000, "\0", "C:\\1", "", "٤١", "nan", '"', "4\r1", "a" * 200_000]
    cases = {ascii(name)[:40]: f"video_id,fold\n{name},Training\n".encode() for name in ids}
    cases |= {f"fold {name[:9]!a}": f"video_id,fold\n41,{name}\n".encode() for name in ids}
    good = "video_id,fold\n41,Training\n"
    cases |= {
        "UTF-16": good.encode("utf-16"),
        "not UTF-8": good.encode() + b"\xff\n",
        "nothing": b"",
        "binary": bytes(range(256)) * 9,
    }
    cases |= {
        "byte order mark": good.encode("utf-8-sig"),
        "too many": good.encode() + b"42,Training,3,4\n",
        "few": good.encode() + b"42\n",
    }

    def attempt(content):
        path.write_bytes(content)
        args = SimpleNamespace(video_id=None, video_id_csv=path, split=None)
        assert set(find_videos(args)) <= {("Training", "41"), ("Training", "42")}

    counts = count("lists of videos", cases.items(), attempt, (ValueError,), lambda what, case: "videos.csv")
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)[-3000:]
    assert counts.accepted == 2


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(names=st.lists(st.text(min_size=1, max_size=20), unique=True), share=st.floats(1e-9, 1, exclude_max=True))
def test_any_names_are_split(names, share):
    """Catches a picture that is in both splits, or in none, whatever it is called."""
    scenes = [SceneInput(name) for name in names]
    parts = split_validation(Annotations({"train": scenes}), share).scenes
    assert sorted(scene.scene_id for part in parts.values() for scene in part) == sorted(names)


def test_scene_input_keeps_what_it_is_given():
    """Catches rows that change on their way through the packed questions."""
    row = {"question": "\0 \u2028 é", "answers": ["\U0001f600"]}
    assert SceneInput.of("a", [row]).questions == [row]
