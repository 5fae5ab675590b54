# SPDX-License-Identifier: Apache-2.0
"""`recipes.ask`, `recipes.score` and the baselines of `recipes.eval` on what strangers give them: one line, or an answer."""

import contextlib
import csv
import io
import json
import sys
import weakref
from types import SimpleNamespace

import pytest
from hostile import count, predictions, questions
from hypothesis import given, settings
from hypothesis import strategies as st
from test_room_actions import anchor, list_of
from toys import write_toy_checkpoint, write_toy_repo

from recipes import ask, score
from recipes import eval as recipes_eval
from recipes.common.scenes import SceneDataset
from recipes.common.tables import csv_text
from recipes.evaluation import actions
from recipes.evaluation import questions as question_task
from recipes.evaluation.reading import read_json
from recipes.metrics.room_actions.scoring import compare


class Refused(Exception):
    """What a command said before it ended: the line that a user reads."""


def run(module, monkeypatch, *arguments):
    """Runs a command in this process. Raises Refused where it ends with one line; any other error is a traceback."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            module.main()
    except SystemExit as end:
        line = end.code if isinstance(end.code, str) else errors.getvalue().strip().splitlines()[-1]
        assert "\n" not in line.strip(), f"more than a line: {line}"
        raise Refused(line) from None
    printed.getvalue().encode()  # what goes to a terminal or a file


def test_hostile_questions(tmp_path, monkeypatch):
    """Catches tracebacks for bytes that are no text, cameras that are nested or too large, and broken model folders; a config of
    another model, from which a model of billions of random weights would be made."""
    model = write_toy_checkpoint(tmp_path / "model", anchor_hidden_size=32, numbers_from="head")
    (tmp_path / "work").mkdir()
    loaded, load = {}, ask.load_model
    monkeypatch.setattr(
        ask, "load_model", lambda path, *rest: loaded.get(path) or loaded.setdefault(path, load(path, *rest))
    )

    def attempt(arguments):
        return run(ask, monkeypatch, "--max-new-tokens", "2", "--model", *arguments)

    cases = questions.command_lines(tmp_path / "work", model)
    counts = count("questions", cases, attempt, (Refused,), lambda what, _: "recipes.ask: ")
    assert counts.tried > 90 and not counts.tracebacks, "\n".join(counts.tracebacks)
    assert counts.accepted >= 13  # questions are text, whatever they say
    assert set(loaded) == {str(model)}


@pytest.mark.slow
def test_hostile_predictions(tmp_path, monkeypatch):
    """Catches tracebacks, and messages that do not name the file, for nesting, integers of thousands of digits, halves of
    surrogate pairs, cells over 131 kB."""
    (tmp_path / "good.json").write_text(json.dumps(predictions.GOOD))
    (tmp_path / "references.json").write_text(json.dumps(predictions.REFERENCES))
    (tmp_path / "work").mkdir()
    others = ("--compare", "--blind", "--train-references")

    def attempt(case):
        role, path = case
        files = {"--predictions": tmp_path / "good.json", "--references": tmp_path / "references.json", role: path}
        words = [str(word) for pair in files.items() for word in pair]
        run(score, monkeypatch, "--em-only", "--output", str(tmp_path / "out"), *words)

    cases = [
        (f"{role}, {what}", (role, path))
        for number, (what, path) in enumerate(predictions.files(tmp_path / "work"))
        for role in ("--predictions", "--references", others[number % 3])
    ]
    counts = count("predictions", cases, attempt, (Refused,), lambda what, case: case[1].suffix if case[0] == "--references" else case[1].name)  # fmt: skip
    assert counts.tried > 600 and not counts.tracebacks, "\n".join(counts.tracebacks)
    assert counts.accepted > 20


@pytest.mark.parametrize("task", ["scanqa", "arkit_actions"])
def test_hostile_blind_runs(task, tmp_path):
    """Catches a baseline whose rows are no objects, lack keys or hold actions without boxes, found after hours of generation."""
    action = list_of({"center": [0, 0, 1], "extent": [1, 1, 1], "normal": [0, 0, -1]})
    row = {"question_id": "val-0", "prediction": "red"} | ({"action": action} if task == "arkit_actions" else {})
    source = SimpleNamespace(qa={"question_id": ["val-0"]}, path="repo", split="val")
    read = actions.read_blind_run if task == "arkit_actions" else question_task.read_blind_run

    def attempt(folder):
        for known in read(folder, source).values():
            assert isinstance(known, str) if task == "scanqa" else known is None or compare(known, action)

    cases = predictions.blind_runs(tmp_path, row, {"blind": True, "task": task})
    counts = count(f"blind runs of {task}", cases, attempt, (ValueError,), lambda what, folder: str(folder))
    assert counts.tried > 100 and not counts.tracebacks, "\n".join(counts.tracebacks)
    assert counts.refused > counts.accepted > 0


@pytest.mark.parametrize("box", [{"center": [0, 0]}, {"center": ["1", 0, 0]}, {"extent": [float("nan")] * 3}, {"normal": [10**400, 0, 0]}, {"label": 3}])  # fmt: skip
def test_actions_of_a_blind_run_have_boxes(box, tmp_path):
    """Catches boxes that only the scoring would stumble over."""
    row = {"question_id": "val-0", "prediction": "", "action": anchor() | box}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    (tmp_path / "metrics.json").write_text('{"blind": true, "task": "arkit_actions"}')
    with pytest.raises(ValueError, match=r"`action` is not one that recipes.eval wrote: 1 \(val-0\)"):
        actions.read_blind_run(tmp_path, SimpleNamespace(qa={"question_id": ["val-0"]}, path="", split=""))


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.lists(st.text(st.sampled_from("=+-@\t\r'\n\",1.e x"), max_size=6), min_size=1, max_size=5))
def test_formulas_are_text_in_a_spreadsheet(tmp_path_factory, cells):
    """Catches `=HYPERLINK(...)` in an answer that runs where verdicts.csv is opened, numbers that become text, and an apostrophe
    that our own reading keeps."""
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_text(
        csv_text(["id", "text", "right"], [["a", cell, -1] for cell in cells]), encoding="utf-8", newline=""
    )
    with path.open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    for cell, row in zip(cells, written, strict=True):
        assert row["right"] == "-1"
        number = cell.lstrip("+-").replace(".", "", 1).isdigit() and row["text"] == cell
        assert number or not row["text"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [row["text"] for row in read_json(path)] == cells


def test_the_report_keeps_no_decoded_views(tmp_path, monkeypatch):
    """Catches the decoded views of all scenes held until the page is written: they are more than a machine has memory for."""
    model = write_toy_checkpoint(tmp_path / "model")
    repo = write_toy_repo(tmp_path / "repo", {"train": 1, "val": 6}, num_views=3)
    seen, most, read = [], [], SceneDataset.views

    def views(self, scene, *rest):
        images, geometry = read(self, scene, *rest)
        seen.extend(map(weakref.ref, images))
        most.append(sum(image() is not None for image in seen))
        return images, geometry

    monkeypatch.setattr(SceneDataset, "views", views)
    monkeypatch.setattr(question_task, "generate_answers", lambda *args, **_: [(row, "red") for row in args[3]])
    words = ["--model", model, "--dataset", repo, "--split", "val", "--output", tmp_path / "out", "--em-only"]
    run(recipes_eval, monkeypatch, *map(str, [*words, "--report", tmp_path / "page.html"]))
    assert len(most) == 6 and max(most) <= 2 * 3
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 6 * 3
