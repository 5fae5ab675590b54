# SPDX-License-Identifier: Apache-2.0
"""`make docs-figures`: what README.md and docs/ say of the demo is what a run gave."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_scripts.files import write_atomically
from recipes import docs_figures
from recipes.demo import FULL, SMOKE
from recipes.demonstration.record import RECORD, start_session, timed_step
from recipes.demonstration.results import SPLITS
from recipes.demonstration.text import PICTURES
from recipes.evaluation.actions import CONSTANT
from recipes.evaluation.report import BLIND, MODEL, TRIVIAL, accuracy
from recipes.metrics.room_actions.scoring import score as score_actions
from recipes.metrics.three_d_qa.scoring import score


ROOT = Path(__file__).parents[1]
PAGE = """# A page
It took <!-- demo:minutes -->99<!-- /demo --> minutes; colors <!-- demo:scanqa color, model -->0.99<!-- /demo -->, anchors
<!-- demo:place_anchor center @0.5 m, model -->99<!-- /demo --> %.

<!-- demo:scores -->
<!-- /demo -->
"""


def write_questions(folder: Path, dataset: str):
    """What recipes.eval leaves of six questions of two types, three of them answered right."""
    types = ["color", "color", "color", "number", "number", "object"]
    answers, references = (
        ["red", "blue", "red", "2", "3", "chair"],
        [["red"], ["blue"], ["green"], ["2"], ["4"], ["bed"]],
    )
    systems = {MODEL: answers, BLIND: ["red"] * 6, TRIVIAL: ["2"] * 6}
    scored = score(systems, references, types, dataset, captions=False)
    metrics = {"num_questions": 6} | accuracy(scored[MODEL])
    metrics["baselines"] = {name: accuracy(scores) for name, scores in scored.items() if name != MODEL}
    rows = [
        {
            "scene_id": f"scene{number:04d}_00",
            "question": f"Question {number}?",
            "question_type": kind,
            "prediction": answer,
        }
        | {"references": true}
        for number, (kind, answer, true) in enumerate(zip(types, answers, references, strict=True))
    ]
    write_atomically(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "metrics.json", json.dumps(metrics))


def write_actions(folder: Path):
    true = {"action": "place_anchor", "label": "bed", "center": [0, 0, 2], "extent": [1, 1, 2], "normal": [0, 0, -1]}
    near, far = true | {"center": [0.3, 0, 2]}, true | {"center": [3.0, 0, 2]}
    systems = {MODEL: [near, true, far, None], BLIND: [far] * 4, CONSTANT: [far] * 4}
    scored = score_actions(systems, [true] * 4)
    summaries = {system: {name: scores.summary() for name, scores in own.items()} for system, own in scored.items()}
    metrics = {"scores": summaries.pop(MODEL), "baselines": summaries}
    rows = [{"question": "Put an anchor on the bed.", "action": near, "reference": true}]
    write_atomically(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "metrics.json", json.dumps(metrics))


def write_demo(folder: Path, settings: dict = FULL):
    """The files of a finished run, through the code that writes them."""
    start_session(folder, settings, "cpu")
    for name in ("rooms", "stage2/train_results.json"):
        with timed_step(folder, name):
            pass
    record = json.loads((folder / RECORD).read_text())
    record["sessions"][0] |= {"commit": "0123456789"}  # also where the tests run outside of a checkout
    record["sessions"][0]["steps"][1]["seconds"] = 444.0
    write_atomically(folder / RECORD, json.dumps(record))
    write_atomically(folder / "stage2" / "run.json", json.dumps({"parameters": {"total": 2_412_345, "trained": 1}}))
    for dataset in SPLITS:
        write_questions(folder / "scores" / "stage2" / dataset, dataset)
    write_actions(folder / "scores" / "stage3" / "arkit_actions")
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)


@pytest.fixture
def demo(tmp_path):
    (tmp_path / "demo").mkdir()
    write_demo(tmp_path / "demo")
    return tmp_path / "demo"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "docs" / "other.md").write_text("On <!-- demo:machine -->?<!-- /demo -->.\n")
    (tmp_path / "docs" / "plain.md").write_text("No numbers.\n")
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "README.md", *sorted((root / "docs").iterdir()))}


def test_numbers_are_those_of_the_run(demo, root):
    """Catches a number that is another one's, a page that is passed over, pictures of another run, and a second call that
    changes something."""
    docs_figures.write(demo, root)
    text = (root / "README.md").read_text()
    assert (
        "It took <!-- demo:minutes -->7<!-- /demo --> minutes; colors <!-- demo:scanqa color, model -->0.67<!-- /demo -->"
        in text
    )
    assert "-->50.00<!-- /demo --> %" in text
    assert re.search(r"scanqa color +3 +0.667 +0.333 +0.333 +0.000", text) and "Put an anchor on the bed." in text
    assert "CPU cores" in (root / "docs" / "other.md").read_text()
    assert all((root / "docs" / name).read_bytes() == (demo / name).read_bytes() for name in PICTURES)
    before = files(root)
    docs_figures.write(demo, root)
    assert files(root) == before
    docs_figures.check(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "README.md").write_text((root / "README.md").read_text().replace("0.667", "0.767")),
        lambda root: (root / "README.md").write_text((root / "README.md").read_text().replace(">7<", ">6<")),
        lambda root: shutil.copy(root / "docs" / "loss.png", root / "docs" / "plan.png"),
    ],
)
def test_check_finds_what_is_not_of_the_run(demo, root, change):
    """Catches a number or a picture that somebody has made nicer by hand."""
    docs_figures.write(demo, root)
    change(root)
    with pytest.raises(ValueError, match="README.md by docs/demo.json|plan.png is not the picture"):
        docs_figures.check(root)


def test_a_run_that_is_not_complete_changes_nothing(demo, root):
    """Catches docs half of one run and half of another, and a message that does not say what is missing."""
    before = files(root)
    (demo / "plan.png").unlink()
    (demo / "stage2" / "run.json").unlink()
    with pytest.raises(ValueError, match="run.json, .*plan.png is missing"):
        docs_figures.write(demo, root)
    (demo / "plan.png").touch()
    (demo / "stage2" / "run.json").write_text('{"parameters": {"total": 1}}')
    shutil.rmtree(demo / "scores" / "stage3")
    with pytest.raises(ValueError, match="stage3/arkit_actions/predictions.jsonl"):
        docs_figures.write(demo, root)
    assert files(root) == before


def test_runs_whose_time_means_nothing_are_refused(demo, root):
    """Catches minutes of a run that was interrupted, went on elsewhere, or learned nothing."""
    with pytest.raises(KeyboardInterrupt), timed_step(demo, "stage3/train_results.json"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="stage3/train_results.json was interrupted"):
        docs_figures.write(demo, root)
    record = json.loads((demo / RECORD).read_text())
    record["sessions"][0]["steps"].pop()
    other = record["sessions"][0] | {"commit": "9876543210"}
    write_atomically(demo / RECORD, json.dumps({"sessions": [*record["sessions"], other]}))
    with pytest.raises(ValueError, match="went on with another commit"):
        docs_figures.write(demo, root)
    shutil.rmtree(demo)
    demo.mkdir()
    write_demo(demo, SMOKE)
    with pytest.raises(ValueError, match="smoke run"):
        docs_figures.write(demo, root)


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- demo:colour -->1<!-- /demo -->", "there is no 'colour' of a demo"),
        ("<!-- demo:minutes -->1", "has no <!-- /demo -->"),
    ],
)
def test_markers_that_do_not_fit(demo, root, text, message):
    """Catches a number that no run would ever replace."""
    (root / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        docs_figures.write(demo, root)


def test_markers_of_this_repository_fit(demo, tmp_path):
    """Catches a marker in README.md or docs/ that the next run could not fill."""
    shutil.copytree(ROOT / "docs", tmp_path / "copy" / "docs")
    shutil.copy(ROOT / "README.md", tmp_path / "copy")
    docs_figures.write(demo, tmp_path / "copy")
    docs_figures.check(tmp_path / "copy")


def test_docs_of_this_repository():
    """Catches a number of the demo in README.md or docs/ that is not of the run that docs/demo.json records."""
    if not (ROOT / "docs" / RECORD).is_file():
        pytest.skip("no run is recorded yet: make demo && make docs-figures")
    result = subprocess.run(
        [sys.executable, "-m", "recipes.docs_figures", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
