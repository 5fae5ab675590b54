# SPDX-License-Identifier: Apache-2.0
"""Annotation files, records and instruction files as a stranger may write them: each valid field replaced by each hostile value."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from scannet_dump import write_scan, write_scanqa, write_sqa3d

from data_scripts.builders.instruct import Instruct
from data_scripts.builders.records import Records
from data_scripts.builders.scanqa import ScanQA
from data_scripts.builders.sqa3d import SQA3D
from data_scripts.preparation.base import Options, PreparationBuilder, Sources


SCENE, PICTURE = "scene0000_00", "a.jpg"
PLANTED = "outside"  # beside every root: what no reader may open

# What a field may hold, as it stands in the file: Python cannot write all of it.
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "beyond int32": "2147483648",
    "beyond int64": "9223372036854775808",
    "beyond float64": "1" + "0" * 400,
    "beyond the digits of int": "9" * 5000,
    "beyond float32": "1e39",
    "1e999": "1e999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "empty text": '""',
    "blank": '" \\n\\t"',
    "dot": '"."',
    "NUL": '"a\\u0000.jpg"',
    "half a surrogate pair": '"\\ud800"',
    "reversed surrogate pair": '"\\udc00\\ud800"',
    "text turned around": '"\\u202egpj.exe"',
    "terminal escape": '"\\u001b]0;owned\\u0007"',
    "5,000 characters": json.dumps("a" * 5000),
    "many folders": json.dumps("a/" * 3000 + "a"),
    "upwards": json.dumps(f"../{PLANTED}/{SCENE}"),
    "upwards inside": json.dumps(f"b/../../{PLANTED}/{PICTURE}"),
    "backslashes": json.dumps(f"..\\{PLANTED}\\{PICTURE}"),
    "drive": '"C:/Windows/win.ini"',
    "absolute": '"/etc/passwd"',
    "empty list": "[]",
    "empty object": "{}",
    "list of null": "[null]",
    "list of lists": "[[[]]]",
    "list of bool": "[true, false]",
    "list of big": "[1e999, 99999999999]",
    "object": '{"a": {"b": NaN}}',
    "nested": "[" * 400 + "]" * 400,
    "nested too deeply": "[" * 100_000 + "]" * 100_000,
}


@dataclass
class Reader:
    """A reader's valid input, of which hostile ones are made.

    Attributes:
        builder: of the preparation.
        sources: what it is called with.
        file: the annotation file that is changed.
        rows: the list in `content` of which the first row is changed; the second stays good.
        content: of the whole file.
        lines: whether the file holds a row per line.
    """

    name: str
    builder: type[PreparationBuilder]
    sources: Sources
    file: Path
    content: Any
    rows: Callable[[Any], list]
    lines: bool = False
    options: Options = Options(num_views=1, geometry="optional", val_share=None)

    def text(self, content: Any) -> str:
        return "\n".join(map(json.dumps, content)) if self.lines else json.dumps(content)


@dataclass
class Case:
    """A file's bytes; `whole`: the file as a whole is changed, so that no row of it need be used."""

    reader: Reader
    content: bytes
    whole: bool = False


def write_readers(folder: Path) -> list[Reader]:
    """A valid input of each reader under `folder`, and beside their roots what they may not open."""
    for root in ("scans", PLANTED):
        for scene in (SCENE, "scene0001_00"):
            write_scan(folder / root, scene, frames=(0, 20))
    for name in (
        f"images/{PICTURE}",
        "images/b.jpg",
        f"{PLANTED}/{PICTURE}",
        "images/train/png/a.jpg",
        "images/png/b.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 10), (len(name), 90, 0)).save(folder / name)
    scenes, images, scans = [SCENE, "scene0001_00"], folder / "images", (folder / "scans",)
    questions, annotations = write_sqa3d(folder, "train", scenes)
    scanqa = write_scanqa(folder, "train", scenes)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A wall."}]
    llava = [{"id": name, "image": name, "conversations": turns} for name in (PICTURE, "b.jpg")]
    docvqa = [
        {"questionId": number, "question": "Total?", "image": name, "answers": ["3"]}
        for number, name in enumerate((PICTURE, "b.jpg"))
    ]
    chartqa = [
        {"imgname": name, "query": "How many?", "label": label} for name, label in ((PICTURE, "2"), ("b.jpg", 2.5))
    ]
    token = {
        "R": [np.eye(3).ravel().tolist()],
        "t": [[0.0, 0.0, 1.0]],
        "K": [[5.0, 0, 3.5, 0, 5, 2.5, 0, 0, 1]],
        "depth_hist": [[1.0] + [0.0] * 15],
    }
    records = [
        {"images": [name], "geom_token": token, "question": "Where?", "answer": "There.", "action_json": {"a": 1}}
        | {"task": "records", "scene_id": name, "situation": "I stand."}
        for name in (PICTURE, "b.jpg")
    ]

    def rows_under(key: str) -> Callable[[Any], list]:
        return lambda content: content[key]

    def pictures(name: str) -> Sources:
        return Sources(annotations=(folder / name,), image_root=images)

    def as_they_are(content: list) -> list:
        return content

    sqa3d = Sources(annotations=(questions, annotations), scannet_root=scans)
    in_files = Sources(records=(folder / "train.json",), image_root=images)
    in_lines = Sources(records=(folder / "train.jsonl",), image_root=images)
    return [
        Reader(
            "scanqa", ScanQA, Sources(annotations=(scanqa,), scannet_root=scans), scanqa, _read(scanqa), as_they_are
        ),
        Reader("sqa3d questions", SQA3D, sqa3d, questions, _read(questions), rows_under("questions")),
        Reader("sqa3d annotations", SQA3D, sqa3d, annotations, _read(annotations), rows_under("annotations")),
        Reader("llava", Instruct, pictures("llava_train.json"), folder / "llava_train.json", llava, as_they_are),
        Reader(
            "docvqa",
            Instruct,
            pictures("docvqa_train.json"),
            folder / "docvqa_train.json",
            {"data": docvqa},
            rows_under("data"),
        ),
        Reader("chartqa", Instruct, pictures("chart_train.json"), folder / "chart_train.json", chartqa, as_they_are),
        Reader("records", Records, in_files, folder / "train.json", {"samples": records}, rows_under("samples")),
        Reader("records in lines", Records, in_lines, folder / "train.jsonl", records, as_they_are, lines=True),
    ]


def cases(reader: Reader) -> Iterator[tuple[str, Case]]:
    """What is changed, and the case: every field of a row by every value, structure, and the file as a whole."""
    for place in places(reader.rows(reader.content)[0]):
        for value, token in VALUES.items():
            content, what = changed(reader, place, token), f"{reader.name}: {'.'.join(map(str, place))} {value}"
            # A parser gives up at what is nested too deeply, before it knows of rows.
            yield what, Case(reader, content, whole=value == "nested too deeply" and not reader.lines)
        if place:
            yield f"{reader.name}: without {place}", Case(reader, changed(reader, place, None))
    good = reader.text(reader.content)
    content = json.loads(json.dumps(reader.content))
    reader.rows(content).insert(1, reader.rows(content)[0])
    yield f"{reader.name}: a row twice", Case(reader, reader.text(content).encode())
    for what, text in {
        "nothing": b"",
        "NUL": b"\0" * 64,
        "cut short": good[:-7].encode(),
        "byte order mark": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"),
        "UTF-32": good.encode("utf-32"),
        "not UTF-8": good.replace("a", "\udcff").encode(errors="surrogateescape"),
        "a picture": (reader.sources.image_root or reader.sources.scannet_root[0])
        .parent.joinpath("images", PICTURE)
        .read_bytes(),
        "text after it": good.encode() + b"}",
        **{f"it is {what}": token.encode() for what, token in VALUES.items()},
    }.items():
        yield f"{reader.name}: the file: {what}", Case(reader, text, whole=True)


def places(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """The ways into `value`: keys of objects, the first index of lists; the empty one first."""
    yield before
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*before, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*before, 0))


def changed(reader: Reader, place: tuple, token: str | None) -> bytes:
    """The file with what stands at `place` of its first row replaced by `token`, which is JSON; None: without it."""
    content = json.loads(json.dumps(reader.content))
    *way, last = (0, *place)
    target = reader.rows(content)
    for key in way:
        target = target[key]
    if token is None:
        del target[last]
    else:
        target[last] = "<here>"
    return reader.text(content).replace('"<here>"', token or "").encode()


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


__all__ = ["PICTURE", "PLANTED", "SCENE", "VALUES", "Case", "Reader", "cases", "changed", "places", "write_readers"]
