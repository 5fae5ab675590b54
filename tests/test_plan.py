# SPDX-License-Identifier: Apache-2.0
"""The plan: what is drawn where, and that a reader can tell it apart."""

import io
import re
import warnings

import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image

from recipes.evaluation import plan as plans
from recipes.evaluation.action_page import scene_plans
from recipes.evaluation.plan import Plan, camera_poses, check_plan_path, footprint, plan_png


def box(label="bed", center=(1.0, 2.0, 0.5), extent=(2.0, 1.0, 1.0), normal=(0.0, 1.0, 0.0), **more):
    return {"label": label, "center": list(center), "extent": list(extent), "normal": list(normal), **more}


CAMERAS = np.array([[[0.0, 0.0, 1.5], [1.0, 0.0, -0.2]], [[3.0, 3.0, 1.5], [-1.0, -1.0, 0.0]]])


def drawn(monkeypatch, plan):
    """The picture, and the axes it was drawn on."""
    figures = []
    figure_class = plans.Figure
    monkeypatch.setattr(plans, "Figure", lambda **kwargs: figures.append(figure_class(**kwargs)) or figures[-1])
    picture = Image.open(io.BytesIO(plan_png(plan)))
    return picture, figures[-1].axes[0], figures[-1]


def words_of(axis):
    return [text.get_text() for text in axis.texts]


def test_footprint():
    """Catches half sizes, width along the normal, and the height drawn for the depth."""
    np.testing.assert_allclose(sorted(footprint(box()).tolist()), [[0, 1.5], [0, 2.5], [2, 1.5], [2, 2.5]])
    wall = footprint(box("wall", extent=(4, 2.5, 0)))
    np.testing.assert_allclose(sorted(wall.tolist()), [[-1, 2], [3, 2]])
    tilted = footprint(box(extent=(1, 1, 1), normal=(0, 1, 1)))
    assert np.ptp(tilted[:, 1]) == pytest.approx(2**0.5, abs=1e-5)


def test_cameras_are_where_they_look_from():
    """Catches `t` drawn for the centre, and a direction that is not the third row of `R`."""
    rotation = np.array([[[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]])  # looks along the world's x
    center = np.array([3.0, 4.0, 1.5])
    np.testing.assert_allclose(camera_poses(rotation, -rotation @ center)[0], [center, [1, 0, 0]])


def test_plan_is_to_scale(monkeypatch):
    """Catches axes that are stretched, a scale bar that is no round number of metres, and a picture of another width."""
    picture, axis, _ = drawn(
        monkeypatch, Plan("a room", CAMERAS, [box(name="1")], [box(name="1", center=(1, 2.5, 0))])
    )
    assert picture.width == 800
    width, height = axis.get_window_extent().size
    assert width / np.ptp(axis.get_xlim()) == pytest.approx(height / np.ptp(axis.get_ylim()), rel=0.01)
    (scale,) = [re.fullmatch(r"(\d+|0\.\d) m", words) for words in words_of(axis) if words.endswith(" m")]
    bars = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 6]
    assert [np.ptp(bar) for bar in bars] == pytest.approx([float(scale[1])])
    assert axis.get_xlabel() == "x, world (m)"


def test_labels_do_not_cover_each_other(monkeypatch):
    """Catches labels printed on top of each other where true and predicted boxes agree."""
    true = [box(name=str(i), center=(i % 2, i // 2, 0)) for i in range(8)]
    _, axis, figure = drawn(monkeypatch, Plan("a room", CAMERAS, true, true))
    texts = [text for text in axis.texts if text.get_text()]
    assert sum("bed" in text.get_text() for text in texts) == 16
    extents = [text.get_window_extent() for text in texts if not text.get_text().endswith(" m")]
    overlaps = [(a, b) for i, a in enumerate(extents) for b in extents[:i] if a.overlaps(b)]
    assert not overlaps


def test_labels_of_an_untrained_model(monkeypatch):
    """Catches a label as wide as the room, one that is read as a formula, and warnings of letters no font has."""
    labels = ["wallwallwallwallwallwallwallwall", "$x_{$", "ּ޼", "椅子"]
    predicted = [box(label, center=(index, 0, 0)) for index, label in enumerate(labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, axis, _ = drawn(monkeypatch, Plan("a room", CAMERAS, [box()], predicted))
    assert "wallwallwallwallw…" in words_of(axis) and "椅子" in words_of(axis)


def test_far_predictions_stay_marks(monkeypatch):
    """Catches a wild prediction that makes the room a dot."""
    plan = Plan("a room", CAMERAS, [box(name="1")], [box(name="1", center=(99, -99, 0))])
    _, axis, figure = drawn(monkeypatch, plan)
    assert np.ptp(axis.get_xlim()) < 15 and np.ptp(axis.get_ylim()) < 15
    assert "1 bed" in words_of(axis)
    assert "predicted outside" in [text.get_text() for text in figure.legends[0].get_texts()]


def row(action, name, world=True):
    moved = {**action, "center": [action["center"][0] + 10, *action["center"][1:]]}
    return {
        "scene_id": "s",
        "question_id": name,
        "reference": action,
        "action": action,
        "reference_world": moved if world else None,
        "action_world": moved if world else None,
    }


def test_plan_of_a_scene_is_in_the_world():
    """Catches boxes of view 0's frame among cameras of the world."""
    geometry = {"R": np.eye(3)[None], "t": np.zeros((1, 3))}
    rows = [row({"action": "place_anchor", **box()}, "a"), row({"action": "place_anchor", **box("sofa")}, "b")]
    (plan,) = scene_plans(rows, geometry).values()
    assert [each["center"][0] for each in plan.true] == [11, 11] and plan.metric
    assert [each["name"] for each in plan.predicted] == ["1", "2"]


def test_plan_without_cameras_says_so(monkeypatch):
    """Catches metres where only a relative scale is known, and a plan seen from the side."""
    (plan,) = scene_plans([row({"action": "place_anchor", **box()}, "a", world=False)], None).values()
    assert plan.true[0]["center"] == [1, 0.5, -2]  # right, ahead, up
    _, axis, _ = drawn(monkeypatch, plan)
    assert axis.get_ylabel() == "z, ahead of view 0 (relative)"
    assert any("relative scale" in words for words in words_of(axis))


def test_truth_is_not_needed(monkeypatch):
    """Catches a room that is cut off, and a legend of what is not there, where only the prediction is known."""
    _, axis, figure = drawn(monkeypatch, Plan("photos", CAMERAS[:1], [], [box(center=(8, 8, 0))]))
    assert axis.get_xlim()[1] > 9
    assert "true" not in [text.get_text() for text in figure.legends[0].get_texts()]
    drawn(monkeypatch, Plan("nothing found", CAMERAS[:1], [], []))


def test_paths_are_checked(tmp_path):
    """Catches a mistake that shows after the work is done."""
    check_plan_path(tmp_path / "plan.png")
    for path in (tmp_path / "plan.jpg", tmp_path / "missing" / "plan.png"):
        with pytest.raises(ValueError, match=str(path)):
            check_plan_path(path)


def test_many_boxes_are_bounded_and_said(monkeypatch):
    """Catches minutes for a scene of 2,000 boxes: every label measured anew at each of 73 places, and all boxes drawn."""
    measured = []
    measure = Annotation.get_window_extent
    monkeypatch.setattr(
        Annotation, "get_window_extent", lambda text, *rest: measured.append(text) or measure(text, *rest)
    )
    rng = np.random.default_rng(0)
    boxes = [box(name=str(number), center=rng.uniform(-5, 5, 3).tolist()) for number in range(2000)]
    _, axis, _ = drawn(monkeypatch, Plan("a room", CAMERAS, boxes, boxes[:1900]))
    assert len(axis.patches) == 2 * 2 * plans.MOST_BOXES + len(CAMERAS)
    assert sum("bed" in words for words in words_of(axis)) == 2 * plans.MOST_BOXES
    assert "3,500 more boxes are not drawn" in words_of(axis)
    assert len(measured) <= 2 * 2 * plans.MOST_BOXES  # once to find its place, and to draw
    _, axis, _ = drawn(monkeypatch, Plan("a room", CAMERAS, boxes[:5], boxes[:5]))
    assert not any("not drawn" in words for words in words_of(axis))
