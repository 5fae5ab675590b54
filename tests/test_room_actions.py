# SPDX-License-Identifier: Apache-2.0
"""Scores of actions: the overlap of turned boxes, matching, what does not parse, the constant baseline, the command."""

import copy
import json
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from toys import write_toy_repo

from recipes import eval as recipes_eval
from recipes.evaluation import actions as evaluation
from recipes.metrics.room_actions.baseline import ConstantActions
from recipes.metrics.room_actions.boxes import MIN_DEPTH, box_axes, box_iou, iou_matrix, match
from recipes.metrics.room_actions.reading import read_action
from recipes.metrics.room_actions.scoring import CENTER, NORMAL, _medians, compare, score


ROOT = Path(__file__).parent.parent
UP = [0.0, 0.0, 1.0]


def box(center=(0.0, 0.0, 0.0), extent=(1.0, 1.0, 1.0), normal=(1.0, 0.0, 0.0)):
    return {"center": list(center), "extent": list(extent), "normal": list(normal)}


def anchor(label="bed", **fields):
    return {"action": "place_anchor", "label": label, **box(**fields)}


def list_of(*boxes, label="chair"):
    return {"action": "list_objects", "label": label, "objects": list(boxes)}


def iou(first, second, up=UP):
    return float(iou_matrix([first], [second], up)[0, 0])


def random_boxes(number, seed):
    rng = np.random.default_rng(seed)
    axes = box_axes(rng.normal(size=(number, 3)), rng.normal(size=(number, 3)))
    return rng.normal(size=(number, 3)) * 0.4, axes, rng.uniform(0.3, 2, (number, 3))


################
# Overlap
################


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (box(), box(), 1),
        (box(), box(center=(0.5, 0, 0)), 1 / 3),
        (box(), box(center=(1, 0, 0)), 0),  # a shared face is no overlap
        (box(), box(center=(5, 0, 0)), 0),
        (box(), box(extent=(0.5, 0.5, 0.5), normal=(1, 2, 0)), 1 / 8),  # one in the other
        (box(), box(normal=(1, 1, 0)), 2 * (2**0.5 - 1) / (2 - 2 * (2**0.5 - 1))),  # an octagon
        (box(extent=(1, 1, 3)), box(extent=(3, 1, 1), normal=(0, 1, 0)), 1),  # width and depth change places
        (box(extent=(1, 1, 3)), box(extent=(1, 1, 3), normal=(0, 1, 0)), 1 / 5),  # a quarter turn
        (box(), box(normal=(-1, 0, 0)), 1),  # the other side is the same box
        (box(), box(normal=(0, 0, 1)), 1),  # lying, where height must be chosen
        (box(extent=(1, 2, 3)), box(center=(0, 0, 1), extent=(1, 2, 3)), 1 / 3),  # extent's second is the height
    ],
)
def test_overlap_of_known_boxes(first, second, expected):
    """Catches extents in another order, half sizes, a normal that is not the depth, and touching counted as overlap."""
    assert iou(first, second) == pytest.approx(expected, abs=1e-8)
    assert iou(second, first) == pytest.approx(expected, abs=1e-8)


def test_overlap_does_not_depend_on_the_frame():
    """Catches a vertical that is taken for z: a camera looks down, and boxes that stand lean in its frame."""
    rng = np.random.default_rng(0)
    turn = box_axes(rng.normal(size=(1, 3)), rng.normal(size=(1, 3)))[0]
    first, second = box(extent=(1, 3, 0.5), normal=(1, 0.3, 0)), box(extent=(0.6, 3, 0.6), normal=(1, -1, 0))
    moved = [
        {**each, "center": turn @ each["center"] + 3, "normal": turn @ each["normal"]} for each in (first, second)
    ]
    assert iou(*moved, up=turn @ UP) == pytest.approx(iou(first, second), abs=1e-8)
    assert iou(*moved) != pytest.approx(iou(first, second), abs=0.02)


def test_overlap_of_tilted_boxes_by_sampling():
    """Catches a method for upright boxes only, and corners lost in clipping."""
    number, samples = 40, 100_000
    first, second = random_boxes(number, 1), random_boxes(number, 2)
    exact, rng = box_iou(first, second), np.random.default_rng(3)
    assert (exact > 0.05).sum() > 10
    for index in range(number):
        points = first[0][index] + (rng.random((samples, 3)) - 0.5) * first[2][index] @ first[1][index]
        inside = (np.abs((points - second[0][index]) @ second[1][index].T) <= second[2][index] / 2).all(axis=1)
        common = inside.mean() * first[2][index].prod()
        union = first[2][index].prod() + second[2][index].prod() - common
        assert exact[index] == pytest.approx(common / union, abs=0.01)


def test_overlap_of_equal_tilted_boxes_is_one():
    """Catches faces in one plane that are counted twice, or not at all, also where rounding moved them."""
    boxes = random_boxes(500, 4)
    noise = np.random.default_rng(5).normal(size=(500, 3))
    for shift in (0, 1e-15, 1e-12, 1e-10, 1e-8):
        np.testing.assert_allclose(box_iou(boxes, (boxes[0] + shift * noise, *boxes[1:])), 1, atol=1e-4)
    renamed = boxes[0], boxes[1][:, [1, 2, 0]], boxes[2][:, [1, 2, 0]]
    np.testing.assert_allclose(box_iou(boxes, renamed), 1, atol=1e-12)
    np.testing.assert_allclose(box_iou(boxes, random_boxes(500, 6)), box_iou(random_boxes(500, 6), boxes), atol=1e-6)


def test_flat_boxes_have_a_thickness():
    """Catches a wall that overlaps nothing, itself neither, and one that overlaps all that is parallel."""
    wall = box(extent=(4, 2.5, 0))
    assert iou(wall, wall) == pytest.approx(1)
    assert iou(wall, box(center=(MIN_DEPTH / 2, 0, 0), extent=(4, 2.5, 0))) == pytest.approx(1 / 3)
    assert iou(wall, box(extent=(4, 2.5, MIN_DEPTH / 2))) == pytest.approx(1)
    assert iou(wall, box(center=(1, 0, 0), extent=(4, 2.5, 0))) == 0
    assert iou(box(extent=(0, 1, 1)), box()) == 0  # no width is no box
    assert iou(box(extent=(1, 1, 0.05)), box(extent=(1, 1, 0.1))) == pytest.approx(0.5)  # thin is not flat


def test_matching_is_one_to_one():
    """Catches a box found twice, and a greedy pair that leaves another box without its partner."""
    assert match(np.array([[0.9], [0.8]]), 0.25) == [(0, 0)]
    assert match(np.array([[0.9, 0.6], [0.6, 0.1]]), 0.5) == [(0, 1), (1, 0)]
    assert match(np.array([[0.9, 0.6], [0.6, 0.9]]), 0.5) == [(0, 0), (1, 1)]
    assert match(np.zeros((2, 3)), 0.25) == match(np.zeros((0, 3)), 0.25) == []


################
# Scores
################


def test_what_is_not_an_action_is_wrong_in_everything():
    """Catches predictions that are left out of a mean or a median because they do not parse or are another action."""
    true = anchor()
    wrong = [None, list_of(box()), anchor(center=(0, 0, 9), normal=(-1, 0, 0), label="sofa")]
    for bad in wrong:
        result = score({"m": [true, bad, bad]}, [true] * 3)["m"]["place_anchor"].summary()
        assert result["n"] == 3 and result["not valid"] == (2 if bad is None else 0)
        for metric in ("label", "center @0.25 m", "center @1 m", "IoU @0.25", "IoU @0.5", "normal @30 deg"):
            assert result[metric] == pytest.approx(100 / 3), metric
        assert result["action"] == pytest.approx(100 if bad == wrong[2] else 100 / 3)
        assert result[NORMAL] == pytest.approx(180)
        assert result[CENTER] == (9 if bad == wrong[2] else None)
        json.dumps(result, allow_nan=False)
    for bad in (None, anchor(), list_of(box(), box(), label="table")):
        result = compare(bad, list_of(box(), box((5, 5, 5))))
        assert result.matches["objects", 0.25] == (0, 2, 2) and not result.label


def test_errors_of_an_anchor():
    """Catches an angle in radians or without sign, a distance per axis, and a label that is compared loosely."""
    right = compare(anchor(center=(0.3, 0.4, 0), normal=(0, 1, 0)), anchor(), UP)
    assert right.center_error == pytest.approx(0.5) and right.normal_error == pytest.approx(90)
    assert compare(anchor(normal=(-1, 0, 0)), anchor()).normal_error == pytest.approx(180)
    assert not compare(anchor("beds"), anchor("bed")).label


def test_lists_are_scored_by_boxes():
    """Catches precision and recall that change places, a repeated box that counts, and a mean over instructions."""
    left, right, third = box((0, 0, 0)), box((3, 0, 0)), box((6, 0, 0))
    predictions = [list_of(left, left), list_of(left, right, third)]  # two equal chairs; the second was missed
    references = [list_of(left, right), list_of(left)]
    result = score({"m": predictions}, references)["m"]["list_objects"].summary()
    assert result["objects precision @0.5"] == pytest.approx(100 * 2 / 5)
    assert result["objects recall @0.5"] == pytest.approx(100 * 2 / 3)
    assert result["labels"]["chair"]["n"] == 2
    nothing = score({"m": [list_of()]}, [list_of(left)])["m"]["list_objects"].summary()
    assert nothing["objects precision @0.5"] is None and nothing["objects recall @0.5"] == 0


def test_rooms_are_scored_by_kind():
    """Catches an object that is matched by another category, and kinds that are thrown together."""
    wall, chair = box(extent=(4, 2, 0)), {"label": "chair", **box()}
    empty = {"walls": [], "doors": [], "windows": []}
    reference = {"action": "describe_room", **empty, "walls": [wall], "objects": [chair]}
    prediction = {"action": "describe_room", **empty, "doors": [wall], "objects": [{**chair, "label": "table"}]}
    result = score({"m": [prediction], "same": [reference]}, [reference] * 1, [UP])
    own, same = (result[name]["describe_room"].summary() for name in ("m", "same"))
    assert own["walls recall @0.25"] == own["objects recall @0.25"] == own["doors precision @0.25"] == 0
    assert same["walls recall @0.5"] == same["objects precision @0.5"] == 100 and same["doors recall @0.5"] is None
    assert "label" not in own and own["labels"] == {}


def test_medians_by_weight():
    """Catches a median that weights or even numbers shift, and one that infinity makes not a number."""
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=9), rng.integers(0, 4, (20, 9)).astype(float)
    expected = [np.median(np.repeat(values, each.astype(int))) for each in counts]
    np.testing.assert_allclose(_medians(values, counts), expected)
    assert _medians(np.array([1, np.inf, 3]), np.ones((1, 3)))[0] == 3
    assert np.isnan(_medians(values, np.zeros((1, 9)))[0])


def test_module_loads_and_reports(tmp_path):
    """Catches a file that `evaluate` does not take along, and a reference that is no action."""
    metric = evaluate.load(str(ROOT / "recipes" / "metrics" / "room_actions"), cache_dir=str(tmp_path))
    good, short = json.dumps(anchor()), '{"action": "place_anchor", "label": "bed", "center": [0.00, 1.'
    result = metric.compute(predictions=[good, short], references=[good, good])["place_anchor"]
    assert result["valid"] == 50 and result["not valid"] == 1 and result["IoU @0.5"] == 50
    assert result["intervals"]["valid"] == [0, 100]
    with pytest.raises(ValueError, match="1 of 2 references are not actions"):
        metric.compute(predictions=[good, good], references=[good, short])


################
# The constant baseline
################


def test_constant_of_a_label():
    """Catches means for medians, a normal that is not unit length, and constants of all labels together."""
    training = [anchor("bed", center=(x, 0, 2), normal=n) for x, n in ((1, (1, 0, 0)), (2, (1, 0, 0)), (9, (0, 1, 0)))]
    training += [anchor("sofa", center=(-5, 0, 0))] * 2
    constant = ConstantActions(training)
    answer = constant.answer(anchor("bed", center=(7, 7, 7)))
    assert answer["label"] == "bed" and answer["center"] == [2, 0, 2]
    np.testing.assert_allclose(answer["normal"], np.array([2, 1, 0]) / 5**0.5)
    # A label never seen takes what all of them have together.
    assert constant.answer(anchor("harp"))["center"] == [1, 0, 2]
    (listed,) = constant.answer(list_of(label="harp"))["objects"]
    assert listed["center"] == [1, 0, 2] and "label" not in listed


def test_constant_of_lists_and_rooms():
    """Catches a mean number of boxes, and rooms that hold every category that ever was."""
    chairs = [list_of(*[box((x, 0, 0)) for x in range(number)]) for number in (2, 2, 4)]
    empty = {"walls": [], "doors": [], "windows": []}
    rooms = [
        {"action": "describe_room", **empty, "walls": [box()] * 4, "objects": [{"label": label, **box()}]}
        for label in ("bed", "bed", "harp")
    ]
    constant = ConstantActions([*chairs, *rooms])
    assert len(constant.answer(list_of(box()))["objects"]) == 2
    room = constant.answer(rooms[2])
    assert len(room["walls"]) == 4 and room["doors"] == [] and [each["label"] for each in room["objects"]] == ["bed"]


################
# The command
################


def write_action_repo(folder, splits):
    """A prepared repository of random views, whose questions ask for the given actions: {split: [action]}."""
    import datasets

    write_toy_repo(folder, dict.fromkeys(splits, 1), task="arkit_actions")
    for split, actions in splits.items():
        file = folder / "qa" / f"{split}-00000-of-00001.parquet"
        rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(folder / "cache"))
        first = rows[0]
        own = [
            {**first, "question_id": f"{split}-{number}", "answers": [json.dumps(action)]}
            | {"action": json.dumps(action), "action_world": json.dumps(action)}
            for number, action in enumerate(actions)
        ]
        features = datasets.Features({**rows.features, "action_world": datasets.Value("string")})
        datasets.Dataset.from_list(own, features=features).to_parquet(file)
    return folder


class Processor:
    has_anchor_head = True
    image_processor = None

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return cls()


class Config:
    numbers_from = "head"

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return cls()


class Model:
    def to(self, device):
        return self

    def eval(self):
        return self


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """Beds at 1 m in training, at 3 m in val; the "model" says each time what its text and its head are given to say."""
    train = [anchor("bed", center=(0, 0, 1)), list_of(box((0, 0, 1)))]
    val = [anchor("bed", center=(0, 0, 3)), anchor("bed", center=(0, 0, 3)), list_of(box((0, 0, 1)), box((2, 0, 1)))]
    monkeypatch.setattr(recipes_eval, "load_model", lambda *_: Model())
    monkeypatch.setattr(evaluation, "VggtQwen3Config", Config)
    monkeypatch.setattr(recipes_eval, "VggtQwen3Processor", Processor)
    said = [
        (0, json.dumps(anchor("bed", center=(0, 0, 2.5))), [0, 0, 3, 1, 1, 1, 1, 0, 0]),
        (1, '{"action": "place_anchor", "label', [0, 0, 3, 1, 1, 1, 1, 0, 0]),
        (2, json.dumps(val[2]), None),
    ]
    monkeypatch.setattr(evaluation, "generate_actions", lambda *_, **__: copy.deepcopy(said))
    return write_action_repo(tmp_path / "repo", {"train": train, "val": val})


def run_eval(monkeypatch, repo, output, *options):
    arguments = ["--model", str(output / "no-model"), "--dataset", str(repo), "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", ["recipes.eval", *map(str, arguments)])
    recipes_eval.main()
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return rows, json.loads((output / "metrics.json").read_text())


def test_evaluation_of_actions(repo, tmp_path, monkeypatch, capsys):
    """Catches a constant made of the split that is scored, a head that mends a text that does not parse, numbers of the wrong
    source, and rows in a frame that is not theirs."""
    split = ["--split", "val"]
    _, blind = run_eval(monkeypatch, repo, tmp_path / "blind", *split, "--blind", "--numbers-from", "text")
    assert blind["numbers_from"] == "text" and blind["scores"]["place_anchor"][CENTER] is None
    more = [
        "--blind-run",
        tmp_path / "blind",
        "--report",
        tmp_path / "page.html",
        "--save-plan",
        tmp_path / "plan.png",
    ]
    rows, metrics = run_eval(monkeypatch, repo, tmp_path / "out", *split, *more)
    scores, others = metrics["scores"]["place_anchor"], metrics["baselines"]
    assert metrics["numbers_from"] == "head" and metrics["num_not_valid"] == 1
    assert scores["valid"] == 50 and scores["center @0.25 m"] == 50 and scores["not valid"] == 1
    assert others["model, numbers from text"]["place_anchor"]["center @0.25 m"] == 0
    assert others["model, numbers from text"]["place_anchor"]["center @0.5 m"] == 50
    assert others["constant"]["place_anchor"][CENTER] == 2  # val's bed is at 3 m, training's at 1 m
    assert others["blind"]["place_anchor"]["center @0.25 m"] == 0
    assert others["constant"]["place_anchor"]["model minus this"]["center @0.25 m"]["difference"] == 50
    assert metrics["scores"]["list_objects"]["objects recall @0.5"] == 100
    assert others["constant"]["list_objects"]["objects recall @0.5"] == 50
    # Where view 0's camera is the world's, up to `R`, `t`.
    from recipes.common.scenes import SceneDataset

    geometry = SceneDataset(str(repo), "val").scenes[0]["geometry"]
    rotation, translation = np.array(geometry["R"][0]), np.array(geometry["t"][0])
    np.testing.assert_allclose(rotation @ rows[0]["action_world"]["center"] + translation, [0, 0, 3], atol=1e-5)
    np.testing.assert_allclose(rows[0]["up"], rotation @ [0, 0, 1], atol=1e-6)
    assert rows[1]["action"] is None and rows[1]["errors"]["center_error"] is None
    printed = capsys.readouterr().out
    assert "place_anchor: 2 instructions, 1 predictions do not parse" in printed and "constant" in printed
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page.replace("https://", "") and page.count("data:image/png") == 2
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert not list(tmp_path.glob("**/*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--em-only"], "--em-only: for text answers only"),
        (["--save-plan", "plan.pdf"], "plan.pdf must end in .png"),
        (["--save-plan", "plan.png", "--plan-scene", "attic"], "--plan-scene attic"),
        (["--blind-run", "nowhere"], "nowhere/predictions.jsonl is not of a run"),
    ],
)
def test_what_does_not_fit_is_said_first(repo, tmp_path, monkeypatch, options, message):
    """Catches an option without effect, and a mistake that shows after an hour of decoding."""
    monkeypatch.setattr(recipes_eval, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=message):
        run_eval(monkeypatch, repo, tmp_path / "out", "--split", "val", *options)


def test_questions_refuse_options_of_actions(tmp_path, monkeypatch):
    """Catches a plan that is asked for and never drawn."""
    write_toy_repo(tmp_path / "repo", {"val": 1})
    monkeypatch.setattr(evaluation, "VggtQwen3Config", Config)
    monkeypatch.setattr(recipes_eval, "VggtQwen3Processor", Processor)
    with pytest.raises(SystemExit, match="--save-plan: for actions only"):
        run_eval(monkeypatch, tmp_path / "repo", tmp_path / "out", "--split", "val", "--save-plan", "plan.png")


def test_references_that_are_no_actions_are_named(repo, tmp_path, monkeypatch):
    """Catches a crash in the middle, and rows that are silently left out."""
    broken = write_action_repo(tmp_path / "broken", {"val": [anchor(), {"action": "dance"}]})
    with pytest.raises(SystemExit, match=r"not JSON of one of the schemas: 1 \(val-1\)"):
        run_eval(monkeypatch, broken, tmp_path / "out", "--split", "val")


def test_nothing_parses_as_an_action_but_actions():
    """Catches a parser of the metric that is laxer than the schema."""
    for text in (None, "", "[]", "{}", json.dumps(anchor())[:-1], json.dumps(anchor() | {"x": 1}), "[" * 100_000):
        assert read_action(text) is None
    assert read_action(json.dumps(anchor())) == anchor()
