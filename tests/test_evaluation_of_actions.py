# SPDX-License-Identifier: Apache-2.0
"""Evaluations that ask for some kinds of action only, or for none: metrics of what is there, never a crash."""

import json

import pytest
import test_room_actions
from huggingface_hub import EvalResult
from test_room_actions import anchor, box, list_of, run_eval, write_action_repo
from toys import write_toy_checkpoint

from recipes import eval as recipes_eval
from recipes.common.scenes import SceneDataset
from recipes.evaluation import actions as evaluation
from recipes.launching.checks import check_data
from recipes.launching.settings import read_settings
from recipes.monitoring.figure import describe, draw_run
from recipes.monitoring.history import RunHistory, add
from recipes.publishing.evaluations import _read, eval_results
from recipes.publishing.upload import make_unevaluated_card
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training import evaluating
from recipes.training.sft import make_trainer


ROOM = {"action": "describe_room"} | {kind: [] for kind in ("walls", "doors", "windows")}
ROOM |= {"objects": [{"label": "bed", **box((0, 0, 2))}, {"label": "lamp", **box((2, 0, 2))}]}
EMPTY = {"action": "describe_room"} | {kind: [] for kind in ("walls", "doors", "windows", "objects")}
ANCHOR, LIST = anchor("bed", center=(0, 0, 2)), list_of(box((0, 0, 2)), box((2, 0, 2)))
KINDS = {"place_anchor": [ANCHOR], "list_objects": [LIST], "describe_room": [ROOM]}
KINDS |= {"all": [ANCHOR, LIST, ROOM], "empty lists": [EMPTY, list_of()]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("model"), anchor_hidden_size=32, numbers_from="head")


def words_of(checkpoint, repo, output, *more) -> list[str]:
    words = ["--model_name_or_path", checkpoint, "--dataset_paths", repo, "--output_dir", output, "--image_size", 28]
    words += ["--bf16", "false", "--report_to", "none", "--dataloader_num_workers", 0, "--lora_r", 0, "--num_views", 2]
    return [str(word) for word in [*words, *more]]


def trainer_of(*arguments):
    return make_trainer(*parse_arguments(CONFIGS / "stage3_arkit.yaml", words_of(*arguments)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_while_training_measures_what_is_there(kind, checkpoint, tmp_path, monkeypatch):
    """Catches the division by zero where nothing asks for an anchor, lists and rooms that nothing is said of, an evaluation that
    ends a run for want of the metric that chooses checkpoints, and a sample of which every question counts as an anchor."""
    repo = write_action_repo(tmp_path / "repo", {"train": [ANCHOR], "val": KINDS[kind]})
    problems = check_data(read_settings("stage3", words_of(checkpoint, repo, tmp_path / "run")))
    said = ["never for place_anchor" in problem for problem in problems]
    assert said == [True] * ("place_anchor" not in {action["action"] for action in KINDS[kind]}), problems
    if "place_anchor" not in {action["action"] for action in KINDS[kind]}:
        with pytest.raises(
            ValueError, match="never for place_anchor .* no eval_exact_match .*load_best_model_at_end: f"
        ):
            trainer_of(checkpoint, repo, tmp_path / "run")
    trainer = trainer_of(checkpoint, repo, tmp_path / "run", "--load_best_model_at_end", "false")
    said = []
    # Truth, with the second box of each list left out.
    short = {"list_objects": list_of(box((0, 0, 2))), "describe_room": ROOM | {"objects": ROOM["objects"][:1]}}

    def generate(model, processor, source, rows, **options):
        said.extend(rows)
        answers = [json.loads(source.qa[row]["action"]) for row in rows]
        short_of = [short[a["action"]] if a.get("objects") else a for a in answers]
        return [
            (row, json.dumps(action), [0, 0, 2, 1, 1, 1, 1, 0, 0]) for row, action in zip(rows, short_of, strict=True)
        ]

    monkeypatch.setattr(evaluating, "generate_actions", generate)
    metrics = trainer.evaluate()
    assert sorted(said) == list(range(len(KINDS[kind])))
    scores = {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if name.count("_") > 1 and "per_" not in name
    }
    expected = {"exact_match": 1.0} if kind in ("place_anchor", "all") else {}
    for action in ("list_objects", "describe_room"):
        if kind in (action, "all"):
            expected |= {f"{action}_valid": 1.0, f"{action}_precision": 1.0, f"{action}_recall": 0.5}
        elif kind == "empty lists":
            expected[f"{action}_valid"] = 1.0
    assert scores == expected
    assert trainer._determine_best_metric(metrics, None) == ("exact_match" in expected)
    history = RunHistory(tmp_path / "run")
    history.last_write, history.status = 1.0, "finished"
    add(history, 1, {"loss": 1.0, "epoch": 1.0} | metrics)
    assert describe(history)
    draw_run(history, tmp_path / "run.png")


def test_lists_and_rooms_are_decoded(checkpoint, tmp_path):
    """Catches a list that is asked for without its text, or as a process alone decodes it: by the model and its grammar."""
    repo = write_action_repo(tmp_path / "repo", {"train": [ANCHOR], "val": [LIST] * 3})
    trainer = trainer_of(checkpoint, repo, tmp_path / "run", "--load_best_model_at_end", "false")
    trainer.model.config.text_config.max_position_embeddings = 400  # a random model would go on and on
    metrics = trainer.evaluate()
    assert "eval_list_objects_valid" in metrics and "eval_exact_match" not in metrics


def test_no_more_lists_than_are_affordable(tmp_path):
    """Catches an evaluation that decodes 500 rooms of thousands of tokens each; and one of rows that nobody can score."""
    repo = write_action_repo(tmp_path / "repo", {"train": [LIST] * 40 + [ANCHOR] * 40})
    source = SceneDataset(str(repo), "train")
    asked = evaluating.rows_to_ask(source, None, 0)
    assert {name: len(rows) for name, rows in asked.items()} == {"list_objects": 32, "place_anchor": 40}
    assert evaluating.rows_to_ask(source, 20, 7) == evaluating.rows_to_ask(source, 20, 7)
    assert sum(map(len, evaluating.rows_to_ask(source, 20, 7).values())) == 20
    source.qa = source.qa.map(lambda row: {"action": '{"action": "fly"}'})
    with pytest.raises(ValueError, match=r"row 0 \(question train-0\): `action` is not"):
        evaluating.rows_to_ask(source, None, 0)
    source.qa = source.qa.map(lambda row: {"action": None, "answers": []})
    assert evaluating.rows_to_ask(source, None, 0) == {}
    assert evaluating.metrics_of([]) == {}


@pytest.mark.parametrize("with_boxes", [True, False], ids=["boxes in training", "no box in training"])
@pytest.mark.parametrize("kind", KINDS)
def test_recipes_eval_of_some_kinds_of_action(kind, with_boxes, tmp_path, monkeypatch, capsys):
    """Catches scores, baselines, tables, a page, a plan or rows of a card that need a kind of action that is not asked for."""
    monkeypatch.setattr(recipes_eval, "load_model", lambda *_: test_room_actions.Model())
    monkeypatch.setattr(evaluation, "VggtQwen3Config", test_room_actions.Config)
    monkeypatch.setattr(recipes_eval, "VggtQwen3Processor", test_room_actions.Processor)
    said = [
        (row, json.dumps(action), [0, 0, 2, 1, 1, 1, 1, 0, 0] if action is ANCHOR else None)
        for row, action in enumerate(KINDS[kind])
    ]
    monkeypatch.setattr(evaluation, "generate_actions", lambda *_, **__: said)
    repo = write_action_repo(tmp_path / "repo", {"train": [ANCHOR] if with_boxes else [EMPTY], "val": KINDS[kind]})
    options = ["--split", "val", "--report", tmp_path / "page.html", "--save-plan", tmp_path / "plan.png"]
    run_eval(monkeypatch, repo, tmp_path / "blind", "--split", "val", "--blind")
    rows, metrics = run_eval(monkeypatch, repo, tmp_path / "out", *options, "--blind-run", tmp_path / "blind")
    assert len(rows) == len(KINDS[kind])
    assert set(metrics["scores"]) == {action["action"] for action in KINDS[kind]}
    assert set(metrics["baselines"]) >= {"blind"} and ("constant" in metrics["baselines"]) == with_boxes
    assert ("no constant baseline" in capsys.readouterr().out) != with_boxes
    assert (tmp_path / "plan.png").stat().st_size and "</html>" in (tmp_path / "page.html").read_text()
    results = eval_results([_read(tmp_path / "out")])
    assert results and all(isinstance(result, EvalResult) for result in results)


def test_card_of_a_run_without_exact_match(tmp_path, monkeypatch):
    """Catches a card that says nothing was measured where lists were."""
    from recipes.publishing import upload

    entries = [{"eval_list_objects_recall": 0.25, "eval_runtime": 1.0, "step": 1}, {"loss": 1.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    monkeypatch.setattr(upload, "read_record", lambda _: {})
    monkeypatch.setattr(upload, "model_card", lambda inputs: inputs.last_metrics)
    assert make_unevaluated_card(tmp_path, "x/y") == {"eval_list_objects_recall": 0.25}


def test_lists_need_libraries_that_training_does_not(checkpoint, tmp_path, monkeypatch, caplog):
    """Catches a run that ends at its first evaluation for want of xgrammar, or leaves lists out and does not say so."""
    monkeypatch.setattr(evaluating, "OF_BOXES", ("a_library_that_is_not_there",))
    repo = write_action_repo(tmp_path / "repo", {"train": [ANCHOR], "val": [ANCHOR, LIST, ROOM]})
    with caplog.at_level("WARNING"):
        trainer = trainer_of(checkpoint, repo, tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records if "left out of evaluations" in record.getMessage()]
    assert "Lists and rooms are left out of evaluations: without a_library_that_is_not_there" in said
    metrics = trainer.evaluate()
    assert "eval_exact_match" in metrics and not any("list_objects" in name or "room" in name for name in metrics)
