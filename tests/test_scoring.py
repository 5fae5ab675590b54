# SPDX-License-Identifier: Apache-2.0
"""Scores of 3D question answering: the five protocols' matching and captions, files of others, baselines, the report."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import write_toy_checkpoint, write_toy_repo

from recipes import eval as recipes_eval
from recipes import score as recipes_score
from recipes.evaluation import questions
from recipes.evaluation.reading import align, read_predictions, read_references
from recipes.metrics.three_d_qa import captions
from recipes.metrics.three_d_qa.protocols import EM, EM_R, PROTOCOLS, clean_answer, exact_match, protocols_for
from recipes.metrics.three_d_qa.question_types import question_type
from recipes.metrics.three_d_qa.scoring import ALL, most_frequent_answers, score


ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data")) / "scoring" / "dev"

needs_package = pytest.mark.skipif(not captions.has_package(), reason="pycocoevalcap is not installed")
needs_java = pytest.mark.skipif(not (captions.has_package() and captions.has_java()), reason="Java is not installed")
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference scores are not here")


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def run_score(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["recipes.score", *map(str, arguments)])
    recipes_score.main()


################
# Protocols
################


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("  The  Red   Sofa.", "red sofa"),
        ("yes .", "yes "),  # what is deleted leaves its spaces
        ("a / b", "a  b"),
        ("TV", "TV"),
        ("two tvs on the tv stand", "two tvs on TV stand"),
        ("to your letf", "to your left"),
        ("7 o' clock", "seven o'clock"),
        ("none, 20, 21 or 23", "zero, twenty, 21 or twenty-three"),
        ("mat2 mat22 2nd", "mat mat22 2nd"),
        ("the the chair", "the chair"),
        ("an  apple", "apple"),  # runs of spaces go before articles
        ("the", "the"),
        ("the 3rd", "the 3rd"),
        ("a a chair", "a chair"),
        ("walk backwards", "walk backward"),
        ("Café\u2019s?", "cafs"),
    ],
)
def test_cleaning(answer, cleaned):
    """Catches a step that is left out, done in another order, or made more sensible than it is."""
    assert clean_answer(answer) == cleaned


def verdicts_of(prediction, references, dataset):
    return {
        protocol: tuple(int(match[0]) for match in scores.verdicts.values())
        for protocol, scores in score(
            {"system": [prediction]}, [references], ["all"], dataset, captions=False
        )["system"].items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        # leo stops at the first related reference: the equal one after it is lost.
        ("chair", ["wooden chair", "chair"], {"official": (1,), "leo": (0, 1), "llava3d": (1, 1), "chatscene": (1, 1), "video3dllm": (1,)}),
        # Only the raw string counts for official and video3dllm; chatscene cleans the prediction alone.
        ("The Chair.", ["the chair"], {"official": (0,), "leo": (1, 1), "llava3d": (1, 1), "chatscene": (0, 1), "video3dllm": (0,)}),
        ("tv", ["tv"], {"official": (1,), "leo": (1, 1), "llava3d": (1, 1), "chatscene": (0, 0), "video3dllm": (1,)}),
        # An empty answer is part of every reference, but not for chatscene.
        ("", ["chair"], {"official": (0,), "leo": (0, 1), "llava3d": (0, 1), "chatscene": (0, 0), "video3dllm": (0,)}),
        # chatscene drops the period before it cleans, leo leaves the space before it.
        ("yes .", ["yes"], {"official": (0,), "leo": (0, 1), "llava3d": (0, 1), "chatscene": (1, 1), "video3dllm": (0,)}),
        # No answer at all is wrong everywhere.
        (None, ["chair"], {"official": (0,), "leo": (0, 0), "llava3d": (0, 0), "chatscene": (0, 0), "video3dllm": (0,)}),
    ],
)  # fmt: skip
def test_verdicts_on_scanqa(prediction, references, expected):
    assert verdicts_of(prediction, references, "scanqa") == expected


def test_verdicts_on_sqa3d():
    """Catches ScanQA's rules on SQA3D: there chatscene cleans references and video3dllm cleans both; no official."""
    expected = {"leo": (1, 1), "llava3d": (1, 1), "chatscene": (1, 1), "video3dllm": (1,)}
    assert verdicts_of("The TV.", ["tv"], "sqa3d") == expected
    with pytest.raises(ValueError, match="'official' does not score sqa3d; these do: all, leo"):
        protocols_for("sqa3d", "official")


def test_types_are_sqa3d_s_prefixes():
    questions = ["What's that?", " Is it?", "However so?", "can I", "Which?", "Where am I?"]
    types = ["what", "is", "how", "can", "which", "others"]
    assert [question_type(question, "sqa3d") for question in questions] == types
    assert question_type("What color is it?", "scanqa") == "color"


def test_training_matches_as_llava3d_does():
    """Catches a checkpoint that is chosen by another accuracy than the tables show."""
    for prediction in ("2", "The two.", "tow"):
        assert exact_match(prediction, ["two", "a pair"]) == bool(
            verdicts_of(prediction, ["two"], "scanqa")["llava3d"][0]
        )


################
# Captions and intervals
################

PREDICTIONS = ["it is a brown chair", "two", "next to the bed", "", "they're open\nwide", "a lamp on the table"]
REFERENCES = [
    ["brown chair", "a brown chair it is"], ["three", "two"], ["beside the bed"], ["door"], ["open wide"], ["a lamp"]
]  # fmt: skip


@needs_package
def test_bleu_of_sums_is_pycocoevalcap_s():
    """Catches a brevity penalty or guard of our own, and the wrong closest reference."""
    from pycocoevalcap.bleu.bleu import Bleu

    by_question = dict(enumerate(REFERENCES))
    expected, _ = Bleu(4).compute_score(by_question, {n: [text] for n, text in enumerate(PREDICTIONS)}, verbose=0)
    sums = captions.bleu_statistics(PREDICTIONS, REFERENCES).sum(axis=0)
    np.testing.assert_allclose(captions.bleu(sums), expected, rtol=1e-12)


@needs_java
@pytest.mark.slow
def test_java_s_own_scores_and_a_line_per_caption():
    """Catches METEOR statistics in another order or added up wrongly, and captions whose breaks shift all others."""
    lines = [captions.meteor_line(*question, False) for question in zip(PREDICTIONS, REFERENCES, strict=True)]
    statistics = captions.meteor_statistics(lines)
    sums = np.sum([statistics[line] for line in lines], axis=0)
    from pycocoevalcap.meteor.meteor import Meteor

    texts = {n: [text.replace("\n", " ")] for n, text in enumerate(PREDICTIONS)}
    aggregate, each = Meteor().compute_score(dict(enumerate(REFERENCES)), texts)
    assert captions.meteor(sums) == pytest.approx(aggregate, abs=1e-12)
    assert [captions.meteor(statistics[line]) for line in lines] == pytest.approx(each, abs=1e-12)

    odd = ["They're HERE.", "", ".", "a\nb\r\nc\u2028d\x0be", "naïve café", "\n"]
    expected = ["they 're here", "", "", "a b c d e", "naïve café", ""]
    assert list(captions.ptb_tokenize(odd).values()) == expected


@needs_package
def test_without_java_its_metrics_are_left_out(monkeypatch):
    """Catches a tokenizer or METEOR of our own in place of the missing ones."""
    monkeypatch.setattr(captions, "has_java", lambda: False)
    scored = score({"system": PREDICTIONS}, REFERENCES, ["all"] * 6, "scanqa")["system"]
    metrics = {
        protocol: {metric for group, metric in scores.percent if group == ALL} for protocol, scores in scored.items()
    }
    bleu_rouge_cider = {*(f"BLEU-{order}" for order in range(1, 5)), "ROUGE-L", "CIDEr"}
    assert metrics["official"] == {EM} and metrics["llava3d"] == metrics["chatscene"] == {EM, EM_R}
    assert metrics["leo"] == {EM, EM_R, *bleu_rouge_cider} and metrics["video3dllm"] == {EM, *bleu_rouge_cider}
    assert len(captions.left_out()) == 1 and "apt-get install default-jre-headless" in captions.left_out()[0]


def test_intervals_and_paired_differences():
    """Catches draws that differ between systems: two systems that differ in one question of 400 are told apart well."""
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.3
    first = ["yes" if each else "no" for each in right]
    second = ["yes", *first[1:]] if first[0] == "no" else ["no", *first[1:]]
    systems = {"first": first, "second": second}
    scored = score(systems, [["yes"]] * 400, ["a", "b"] * 200, "scanqa", "leo", captions=False)
    summary = scored["first"]["leo"].summary()
    low, high = summary["intervals"][EM]
    standard_error = 100 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert summary[EM] == pytest.approx(100 * right.mean())
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert {kind: entry["n"] for kind, entry in summary["types"].items()} == {"a": 200, "b": 200}
    difference = scored["second"]["leo"].difference(scored["first"]["leo"])[EM]
    assert abs(difference["difference"]) == pytest.approx(0.25)
    assert difference["interval"][1] - difference["interval"][0] < 1.5


def test_most_frequent_training_answer():
    training = [("color", ["red"]), ("color", ["blue", "red"]), ("number", ["two"]), ("number", ["one"])]
    assert most_frequent_answers(training, ["number", "color", "place"]) == ["one", "red", "red"]


def test_evaluate_loads_the_module(tmp_path):
    """Catches a file that the module needs and `evaluate` does not copy."""
    import evaluate

    metric = evaluate.load(str(ROOT / "recipes" / "metrics" / "three_d_qa"), cache_dir=str(tmp_path))
    scores = metric.compute(
        predictions=["a chair", "2"], references=[["chair"], ["two", "three"]], captions=False,
        questions=["What is it?", "How many are there?"],
    )  # fmt: skip
    assert set(scores) == set(PROTOCOLS)
    assert scores["llava3d"][EM] == 100 and scores["official"][EM] == 0
    assert scores["llava3d"]["types"]["number"]["n"] == 1
    assert set(metric.compute(predictions=["a"], references=[["b"]], protocol="leo", captions=False)) == {"leo"}


################
# Files
################

SCANQA = [
    {"question_id": f"val-{number}", "question": question, "answers": answers, "scene_id": "scene0000_00"}
    for number, (question, answers) in enumerate(
        [("What color is it?", ["red", "dark red"]), ("How many chairs?", ["two"]), ("Where is it?", ["by the door"])]
    )
]
SQA3D_QUESTIONS = {"questions": [{"question_id": n, "question": "What is it?", "scene_id": "s"} for n in (7, 8)]}
SQA3D_ANNOTATIONS = {"annotations": [{"question_id": n, "answers": [{"answer": "desk"}]} for n in (8, 7)]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", [{"question_id": f"val-{n}", "prediction": text} for n, text in enumerate(["red", "2", "door"])]),
        ("a.json", {"val-0": "red", "val-1": "2", "val-2": "door"}),
        ("a.jsonl", "".join(json.dumps({"qid": f"val-{n}", "pred": t}) + "\n" for n, t in enumerate(["red", "2", "door"]))),
        ("a.csv", "\ufeffid,answer,text\nval-2,door,x\nval-0,red,y\nval-1,2,z\n"),
    ],
)  # fmt: skip
def test_scores_of_a_file(name, content, tmp_path, monkeypatch, capsys):
    """Every format, in any order of the rows, gives the same scores, verdicts and table."""
    predictions = write(tmp_path / name, content)
    references = write(tmp_path / "ScanQA_v1.0_val.json", SCANQA)
    output = tmp_path / "out"
    run_score(monkeypatch, "--predictions", predictions, "--references", references, "--em-only", "--output", output)
    scores = json.loads((output / "scores.json").read_text())
    third = pytest.approx(100 / 3)
    assert scores["official"] == {EM: third} and scores["leo"][EM] == pytest.approx(200 / 3)
    assert scores["leo"][EM_R] == 100
    with open(output / "verdicts.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question_id"] for row in rows] == ["val-0", "val-1", "val-2"]
    assert [(row["official EM@1"], row["leo EM@1"]) for row in rows] == [("1", "1"), ("0", "1"), ("0", "0")]
    details = json.loads((output / "details.json").read_text())
    assert details["protocols"]["leo"]["types"]["number"] == {"n": 1, EM: 100, EM_R: 100, "intervals": {EM: [100, 100], EM_R: [100, 100]}}  # fmt: skip
    assert "video3dllm" in capsys.readouterr().out


def test_sqa3d_files_in_any_order(tmp_path):
    questions = write(tmp_path / "q.json", SQA3D_QUESTIONS)
    annotations = write(tmp_path / "a.json", SQA3D_ANNOTATIONS)
    both = write(tmp_path / "both.json", {"questions": SQA3D_QUESTIONS, "annotations": SQA3D_ANNOTATIONS})
    for paths in ([questions, annotations], [annotations, questions], [both]):
        read = read_references(paths)
        assert (read.dataset, read.ids, read.references) == ("sqa3d", ["7", "8"], [["desk"], ["desk"]])
    with pytest.raises(ValueError, match="SQA3D file of annotations is alone"):
        read_references([annotations])


def test_prepared_datasets_are_references(tmp_path):
    repo = write_toy_repo(tmp_path / "repo", {"train": 2, "val": 1}, task="sqa3d")
    read = read_references([repo], "val")
    assert read.dataset == "sqa3d" and len(read.ids) == 4 and read.types == ["what", "is", "how", "others"]
    with pytest.raises(ValueError, match="splits train, val: choose one with --split"):
        read_references([repo])
    with pytest.raises(ValueError, match="no split 'test'"):
        read_references([repo], "test")


def test_own_references_replace_the_official_ones(tmp_path):
    rows = [{"question_id": f"val-{n}", "prediction": "red", "references": ["blue"]} for n in range(3)]
    questions = read_references([write(tmp_path / "r.json", SCANQA)])
    predictions, _ = read_predictions(write(tmp_path / "p.json", rows))
    _, references, remarks = align(predictions, questions, "p.json")
    assert references == [["blue"]] * 3 and "of their own" in remarks[0]


GOOD = {"val-0": "red", "val-1": "two", "val-2": "door"}


def rows_of(predictions):
    return [{"question_id": key, "prediction": text} for key, text in predictions.items()]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (rows_of(GOOD)[:1], r"without a prediction \(--allow-missing counts them as wrong\): 2 \(val-1, val-2\)"),
        (rows_of(GOOD) + rows_of(GOOD)[:1], r"occur more than once: 1 \(val-0\)"),
        (rows_of(GOOD | {"val-9": "x"}), r"the references do not have: 1 \(val-9\)"),
        (rows_of(GOOD | {"val-1": 2}), r"predictions that are not text: 1 \(val-1\)"),
        (rows_of(GOOD | {"val-1": None}), r"predictions that are not text: 1 \(val-1\)"),
        (rows_of(GOOD | {"val-1": "\ud800"}), r"predictions that are not text: 1 \(val-1\)"),
        ([row | {"references": []} for row in rows_of(GOOD)], "empty list of references: 3"),
        ([row | {"references": [1]} for row in rows_of(GOOD)], "references are not a list of texts: 3"),
        (
            [{"question_id": 220602000037, "prediction": "left"}],
            "none of its question ids .* Another dataset or split",
        ),
        (SCANQA[0], "expected a list of predictions"),
        ([{"question_id": "val-0", "says": "red"}], "no known key for --prediction-key in rows 1 .*question_id, says"),
        ([], "holds no predictions"),
        ("[1, 2", "is not JSON"),
    ],
)
def test_bad_predictions_are_named(predictions, message, tmp_path):
    questions = read_references([write(tmp_path / "r.json", SCANQA)])
    with pytest.raises(ValueError, match=message):
        align(read_predictions(write(tmp_path / "p.json", predictions))[0], questions, "p.json")


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([row | {"answers": []} for row in SCANQA], r"without references, which cannot be scored: 3 \(val-0"),
        ([row | {"answers": [3]} for row in SCANQA], "not all text: 3"),
        (SCANQA + SCANQA[:1], r"more than once: 1 \(val-0\)"),
        ([{"question_id": "val-0", "prediction": "red"}], "row 0: no 'question'"),
        ({"data": []}, "expected ScanQA's list"),
        ([], "no questions"),
    ],
)
def test_bad_references_are_named(references, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_references([write(tmp_path / "r.json", references)])


def test_missing_predictions_are_wrong_only_when_asked(tmp_path, monkeypatch, capsys):
    """Catches questions that fall out of the mean, and a missing answer that is related to every reference."""
    predictions, references = write(tmp_path / "p.json", {"val-0": "red"}), write(tmp_path / "r.json", SCANQA)
    files = ["--predictions", predictions, "--references", references, "--em-only"]
    with pytest.raises(SystemExit, match="recipes.score: .*without a prediction"):
        run_score(monkeypatch, *files)
    run_score(monkeypatch, *files, "--allow-missing", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["llava3d"] == pytest.approx({EM: 100 / 3, EM_R: 100 / 3})  # fmt: skip
    assert "counted as wrong: 2 (val-1, val-2)" in capsys.readouterr().out


def test_comparison_and_baselines(tmp_path, monkeypatch, capsys):
    """The paired difference, what flipped, and both baselines, in files and tables."""
    predictions = write(tmp_path / "p.json", GOOD)
    other = write(tmp_path / "other.json", GOOD | {"val-0": "blue", "val-2": "by the door"})
    blind = write(tmp_path / "blind.json", dict.fromkeys(GOOD, "two"))
    references = write(tmp_path / "r.json", SCANQA)
    training = write(tmp_path / "train.json", [row | {"question_id": f"train-{row['question_id']}"} for row in SCANQA])
    run_score(
        monkeypatch, "--predictions", predictions, "--references", references, "--compare", other, "--blind", blind,
        "--train-references", training, "--em-only", "--output", tmp_path / "out",
    )  # fmt: skip
    with open(tmp_path / "out" / "flipped.csv", encoding="utf-8", newline="") as file:
        flips = [(row["question_id"], row["right"]) for row in csv.DictReader(file) if row["protocol"] == "official"]
    assert flips == [("val-0", "model"), ("val-2", str(other))]
    beside = json.loads((tmp_path / "out" / "details.json").read_text())["baselines"]
    assert beside["blind"]["official"][EM] == pytest.approx(100 / 3)
    assert beside["blind"]["official"]["model minus this"][EM]["difference"] == pytest.approx(100 / 3)
    assert beside["most frequent training answer"]["official"][EM] == 100
    assert "right only here: 1 (val-0)" in capsys.readouterr().out


################
# recipes.eval
################


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_toy_checkpoint(folder / "model")
    return folder, write_toy_repo(folder / "repo", {"train": 2, "val": 2})


def run_eval(monkeypatch, toy, output, *arguments):
    folder, repo = toy
    command = ["recipes.eval", "--model", folder / "model", "--dataset", repo, "--split", "val", "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, [*command, "--max-new-tokens", 4, "--em-only", *arguments])))
    recipes_eval.main()


def test_evaluation_with_its_baselines_and_page(toy, tmp_path, monkeypatch, capsys):
    """A blind run, then one beside it: the difference is in metrics and table, the page holds all that it shows."""
    run_eval(monkeypatch, toy, tmp_path / "blind", "--blind")
    real = questions.generate_answers

    def awkward(*args, **kwargs):
        answers = list(real(*args, **kwargs))
        yield from [(0, "</script><b>red")] + [(row, "red") if row == 4 else (row, text) for row, text in answers[1:]]

    monkeypatch.setattr(questions, "generate_answers", awkward)
    page_path = tmp_path / "page.html"
    run_eval(monkeypatch, toy, tmp_path / "seeing", "--blind-run", tmp_path / "blind", "--report", page_path)
    metrics = json.loads((tmp_path / "seeing" / "metrics.json").read_text())
    assert (
        metrics["num_questions"] == 8
        and metrics["exact_match"] >= 1 / 8
        and set(metrics["protocols"]) == set(PROTOCOLS)
    )
    # The toy questions have the same answers in every scene.
    assert metrics["baselines"]["most frequent training answer"]["exact_match"] == 1.0
    assert (
        set(metrics["baselines"]["blind"]["types"])
        == set(metrics["types"])
        == {"color", "existence", "number", "place"}
    )
    assert "blind: llava3d EM@1" in capsys.readouterr().out

    page = page_path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:", page)
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert [row["prediction"] for row in data["rows"]][0] == "</script><b>red" and data["rows"][4]["verdicts"]["official"] == [1]  # fmt: skip
    assert {len(views) for views in data["views"].values()} == {3} and len(data["rows"]) == 8
    assert "<svg" in page and page.count("</script>") == 2


def test_a_run_that_is_not_blind_is_no_blind_baseline(toy, tmp_path, monkeypatch):
    run_eval(monkeypatch, toy, tmp_path / "seeing")
    with pytest.raises(SystemExit, match="not of an evaluation with --blind"):
        run_eval(monkeypatch, toy, tmp_path / "again", "--blind-run", tmp_path / "seeing")


def test_prompt_style_reaches_the_prompt(toy, tmp_path, monkeypatch):
    """Catches a style that is read and dropped, or that leaks into the questions of the report."""
    asked = []

    def answers(model, processor, source, rows, **kwargs):
        asked.append(source.qa[0]["question"])
        yield from ((row, "red") for row in rows)

    monkeypatch.setattr(questions, "generate_answers", answers)
    for style in ("official", "video3dllm"):
        run_eval(monkeypatch, toy, tmp_path / style, "--prompt-style", style)
    question = json.loads((tmp_path / "video3dllm" / "predictions.jsonl").read_text().split("\n")[0])["question"]
    assert asked == [question, question + " Answer the question simply."]


################
# The published code's numbers
################


@needs_shared_data
@needs_java
@pytest.mark.slow
@pytest.mark.parametrize("name", ["scanqa_leave_one_out", "scanqa_wordy", "sqa3d"])
def test_reference_scores(name, tmp_path, monkeypatch):
    """Every value of every protocol that the peers' own code gives, to 1e-5 percent points."""
    references = SHARED / ("sqa3d_references.json" if name == "sqa3d" else "scanqa_references.json")
    predictions = SHARED / f"{name}_predictions.json"
    run_score(monkeypatch, "--predictions", predictions, "--references", references, "--output", tmp_path)
    scores, details = (json.loads((tmp_path / f"{part}.json").read_text()) for part in ("scores", "details"))
    expected = json.loads((SHARED / "expected_scores.json").read_text())["scores"][name]
    assert set(scores) == set(expected) & set(PROTOCOLS)
    for protocol, values in scores.items():
        assert values == pytest.approx(expected[protocol]["percent"], abs=1e-5), protocol
        for kind, of_type in expected[protocol].get("per_type_percent", {}).items():
            got = details["protocols"][protocol]["types"][kind]
            assert {metric: got[metric] for metric in of_type} == pytest.approx(of_type, abs=1e-5), (protocol, kind)


def test_exact_match_alone_needs_no_heavy_library():
    """Catches an import of torch, transformers or datasets on the way to EM, which alone takes longer than scoring."""
    code = "import sys, recipes.score; print([n for n in ('torch', 'datasets', 'evaluate', 'matplotlib') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
