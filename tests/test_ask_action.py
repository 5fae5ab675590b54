# SPDX-License-Identifier: Apache-2.0
"""`recipes.ask --action`: an action about photos, with and without their cameras (in this process: it starts faster)."""

import json
import sys

import pytest
from PIL import Image
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint

from recipes import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with an anchor head, three photos and their cameras."""
    folder = tmp_path_factory.mktemp("ask")
    write_toy_checkpoint(folder / "model", anchor_hidden_size=32, numbers_from="head")
    for number, view in enumerate(toy_views(3)):
        view.save(folder / f"{number}.png")
    cameras = {key: value.tolist() for key, value in toy_geometry(3).items()}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    return folder


def run(folder, monkeypatch, *arguments):
    photos = [str(folder / f"{number}.png") for number in range(3)]
    command = ["recipes.ask", "--model", str(folder / "model"), *photos, "Put an anchor on the bed.", *arguments]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    ask.main()


def test_an_action_with_cameras(folder, monkeypatch, capsys):
    """Catches an action that does not parse without training, numbers of the text instead of the head, a missing plan."""
    plan = folder / "plan.png"
    run(folder, monkeypatch, "--action", "place_anchor", "--cameras", folder / "cameras.json", "--save-plan", plan)
    printed = capsys.readouterr()
    action = json.loads(printed.out)
    assert action["action"] == "place_anchor" and "relative" not in printed.err
    # The head's normal is of unit length to two decimals; a random text's is not.
    assert sum(value**2 for value in action["normal"]) == pytest.approx(1, abs=0.02)
    assert Image.open(plan).width == 800


def test_an_action_without_cameras_says_that_lengths_are_relative(folder, monkeypatch, capsys):
    """Catches metres that nobody measured."""
    run(folder, monkeypatch, "--action", "list_objects")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["action"] == "list_objects" and "lengths are relative" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save-plan", "plan.png"], "--save-plan draws an action"),
        (["--action", "fly"], "invalid choice: 'fly'"),
        (["--action", "place_anchor", "--cameras", "nowhere.json"], "Cannot read the cameras nowhere.json"),
        (["--action", "place_anchor", "--save-plan", "plan.jpg"], "plan.jpg must end in .png"),
    ],
)
def test_bad_arguments(folder, monkeypatch, capsys, arguments, message):
    """Catches mistakes that are found after the model has answered."""
    with pytest.raises(SystemExit) as stop:
        run(folder, monkeypatch, *arguments)
    assert message in capsys.readouterr().err + str(stop.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"R": [], "t": []}, "must be an object with R, t, K, depth_hist"),
        ({"R": [[1, 2], [3]], "t": [], "K": [], "depth_hist": []}, "other than numbers in rows of one length"),
        ({key: [[0.0]] for key in ("R", "t", "K", "depth_hist")}, "must have shape"),
    ],
)
def test_cameras_of_another_form_are_an_error(folder, monkeypatch, content, message):
    """Catches keys that are silently left out, and numbers of another shape."""
    cameras = folder / "half.json"
    cameras.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=message):
        run(folder, monkeypatch, "--action", "place_anchor", "--cameras", cameras)


def test_a_context_without_room_is_an_error(folder):
    """Catches an action that is cut off after all the work."""
    processor = toy_processor(toy_model().config)
    with pytest.raises(ValueError, match="room for 3 more tokens; the shortest place_anchor takes"):
        processor.action_token_budget("place_anchor", 3)
    assert processor.action_token_budget("place_anchor", 10**6) == processor.maximum_action_tokens("place_anchor")
