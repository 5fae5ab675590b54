# SPDX-License-Identifier: Apache-2.0
"""Files of predictions, references and of blind runs, for `recipes.score` and `recipes.eval`."""

import json
from collections.abc import Iterator
from pathlib import Path


DEEP, DEEP_OBJECTS = "[" * 200_000, '{"a":' * 200_000
HUGE, HUGER = "1" + "0" * 400, "1" + "0" * 6000
REFERENCES = [
    {"question_id": f"val-{i}", "question": q, "answers": ["red"]} for i, q in enumerate(("What color?", "Where?"))
]
GOOD = [{"question_id": f"val-{i}", "prediction": "red"} for i in range(2)]
# Of one value of a row.
VALUES = [
    "1.5",
    "null",
    "true",
    '["a"]',
    '{"a": 1}',
    "NaN",
    "-Infinity",
    HUGE,
    HUGER,
    '"\\ud800"',
    '"a\\udfff"',
    '"a\\u0000b"',
    '""',
    '" \\u2028 "',
]
VALUES += [
    '"\\u001b[31m\\r\\n"',
    json.dumps("x " * 50_000),
    json.dumps("x" * 200_000),
    '"=cmd()"',
    '"🛏️"',
    "[" * 100_000 + "]" * 100_000,
]
FILES = [
    "",
    "null",
    "3",
    '"x"',
    "NaN",
    "[[1]]",
    "[]",
    "{}",
    '{"val-0": 1}',
    '[{"\\ud800": "x"}]',
    '[{"prediction": "x"}]',
    DEEP,
    DEEP_OBJECTS,
]
FILES += [
    json.dumps(GOOD + GOOD),
    json.dumps(GOOD)[:-9],
    '[{"question_id": "a", "question_id": "val-0", "prediction": "x"}]',
]
FILES += [json.dumps(GOOD[0]) + "\n" + DEEP, '{"val-0": "red", "val-1": "red"}', "\ufeff" + json.dumps(GOOD), "\0"]
CSV = [
    "",
    "question_id,prediction\n",
    "question_id,prediction\nval-0,r\0ed\n",
    "question_id,prediction\nval-0\n",
    "question_id,prediction\rval-0,a\r",
]
CSV += [
    f"question_id,prediction\nval-0,{'x' * 200_000}\n",
    'question_id,prediction\nval-0,"red\n',
    "question_id,question_id,prediction\na,val-0,b\n",
]
CSV += [f"question_id,prediction,references\nval-0,a,{text}\nval-1,a,[]\n" for text in ("[", "[1]", DEEP, HUGER)]
CSV += ["question_id,prediction\nval-0,'=1\nval-1,red\n"]


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """What each holds, and a file."""
    contents = [(f"{what[:30]!r}", text, ".json") for what, text in zip(FILES, FILES, strict=True)]
    contents += [(f"{text[:30]!r}", text, ".jsonl") for text in FILES]
    contents += [(f"CSV {text[-30:]!r}", text, ".csv") for text in CSV]
    for row in (GOOD[0], REFERENCES[0], GOOD[0] | {"references": ["red"]}):
        others = json.dumps(GOOD[1] if "prediction" in row else REFERENCES[1])
        for key in row:
            for value in VALUES:
                text = json.dumps(row | {key: "VALUE"}).replace('"VALUE"', value)
                contents.append((f"{key} {value[:20]}", f"[{text}, {others}]", ".json"))
    for number, (what, text, suffix) in enumerate(contents):
        path = folder / f"{number}{suffix}"
        path.write_text(text, encoding="utf-8", newline="")
        yield f"{suffix}, {what}", path
    for number, content in enumerate(
        (b"\xff\xfe\x00", json.dumps(GOOD).encode("utf-16"), '["\ud800"]'.encode("utf-8", "surrogatepass"))
    ):
        path = folder / f"bytes{number}.json"
        path.write_bytes(content)
        yield f"bytes {content[:6]!r}", path


def blind_runs(folder: Path, row: dict, metrics: dict) -> Iterator[tuple[str, Path]]:
    """What each holds, and an output of `recipes.eval` of the good `row` and `metrics`, with one value or one file changed."""
    changed = [(f"{key} {value[:20]}", {key: value}, {}) for key in row for value in VALUES]
    changed += [
        (f"metrics, {key} {value[:20]}", {}, {key: value})
        for key in ("blind", "task")
        for value in VALUES
        if key in metrics
    ]
    runs = [(what, _changed(row, rows), _changed(metrics, numbers)) for what, rows, numbers in changed]
    runs += [(f"predictions {text[:20]!r}", text, json.dumps(metrics)) for text in FILES]
    runs += [(f"metrics {text[:20]!r}", json.dumps(row), text) for text in FILES]
    for number, (what, predictions, numbers) in enumerate(runs):
        output = folder / str(number)
        output.mkdir()
        (output / "predictions.jsonl").write_text(predictions, encoding="utf-8")
        (output / "metrics.json").write_text(numbers, encoding="utf-8")
        yield what, output
    yield "nothing", folder


def _changed(content: dict, change: dict[str, str]) -> str:
    text = json.dumps(content | dict.fromkeys(change, "VALUE"))
    for value in change.values():
        text = text.replace('"VALUE"', value)
    return text


__all__ = ["GOOD", "REFERENCES", "blind_runs", "files"]
