# SPDX-License-Identifier: Apache-2.0
"""`python -m data_scripts.prepare`: what it writes, what it refuses, and what it leaves behind."""

import json
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from filelock import FileLock
from scannet_dump import AXIS_ALIGNMENT, camera_to_world, write_scan, write_scanqa, write_sqa3d
from waiting import when_read

from data_scripts.preparation.base import PreparedScene
from data_scripts.preparation.scans import ScanNetBuilder
from data_scripts.prepare import main
from data_scripts.schema import QA_FEATURES, SCENES_FEATURES


ROOT = Path(__file__).parents[1]
SCENES = {"train": ["scene0000_00", "scene0001_00"], "val": ["scene0011_00"]}


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Keeps what load_dataset caches out of the user's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture
def dump(tmp_path):
    """A folder with three scans and the ScanQA files of a train and a val split."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, scenes in SCENES.items():
        for scene in scenes:
            write_scan(folder / "scans", scene, frames=(100, 0, 20, 40), lost=(40,))
        write_scanqa(folder, split, scenes)
    return folder


def scanqa_arguments(dump, output, *more, splits=("train", "val")):
    files = [str(dump / f"ScanQA_v1.0_{split}.json") for split in splits]
    return ["scanqa", "--annotations", *files, "--scannet-root", str(dump / "scans"), "--output", str(output), *more]


def sqa3d_arguments(folder, output, *files):
    return [
        "sqa3d",
        "--annotations",
        *map(str, files),
        "--scannet-root",
        str(folder / "scans"),
        "--output",
        str(output),
    ]


def refused(capsys, arguments, *words):
    """Runs the command; it must fail with status 2 and one line that holds all `words`, and write nothing."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in ("raw", "hf_cache"))


def test_scanqa_repo_outlives_the_dump(dump, tmp_path):
    """Catches paths stored instead of pictures, wrong values or another schema, and a card load_dataset cannot
    read."""
    raw_bytes = (dump / "scans" / "scene0000_00" / "color" / "0.jpg").read_bytes()
    assert main(scanqa_arguments(dump, tmp_path / "repo", "--num-views", "8")) == 0
    shutil.rmtree(dump)
    assert leftovers(tmp_path) == ["repo"]

    questions = datasets.load_dataset(str(tmp_path / "repo"))
    assert set(questions) == {"train", "val"}
    assert questions["train"].features == QA_FEATURES
    assert questions["train"][0] == {
        "scene_id": "scene0000_00",
        "question_id": "train-scene0000_00-0",
        "question": "What colour is the chair?",
        "situation": None,
        "answers": ["brown", "dark brown"],
        "task": "scanqa",
        "object_ids": [4, 5],
        "object_names": ["chair", "chair"],
        "position": None,
        "rotation": None,
        "position_frame": None,
        "action": None,
        "action_world": None,
    }

    scenes = datasets.load_dataset(str(tmp_path / "repo"), "scenes")
    assert scenes["train"].features == SCENES_FEATURES
    assert scenes["train"]["scene_id"][:] == SCENES["train"] and scenes["val"]["scene_id"][:] == SCENES["val"]
    scene = scenes["train"][0]
    assert scene["frame_ids"] == ["20", "0", "100"]  # the most central, the others by number; the lost 40 is not there
    for frame, picture in zip((20, 0, 100), scene["images"]):
        np.testing.assert_allclose(np.asarray(picture)[5, 5], [frame, 100, 200], atol=4)
    undecoded = scenes["train"].cast_column("images", datasets.List(datasets.Image(decode=False)))
    assert undecoded[0]["images"][1]["bytes"] == raw_bytes

    geometry = {name: np.array(value) for name, value in scene["geometry"].items()}
    shapes = {name: value.shape for name, value in geometry.items()}
    assert shapes == {"R": (3, 3, 3), "t": (3, 3), "K": (3, 3, 3), "depth_hist": (3, 16)}
    for view, frame in enumerate((20, 0, 100)):
        in_camera = np.array([0.1, 0.2, 3.0])
        in_world = (AXIS_ALIGNMENT @ camera_to_world(frame) @ np.append(in_camera, 1))[:3]
        np.testing.assert_allclose(geometry["R"][view] @ in_world + geometry["t"][view], in_camera, atol=1e-5)


def test_streaming(dump, tmp_path):
    """Catches a repo that only reads when downloaded whole."""
    assert main(scanqa_arguments(dump, tmp_path / "repo", "--num-views", "2")) == 0
    stream = datasets.load_dataset(str(tmp_path / "repo"), "scenes", split="val", streaming=True)
    (scene,) = list(stream)
    assert [picture.size for picture in scene["images"]] == [(48, 32)] * 2
    assert np.array(scene["geometry"]["K"]).shape == (2, 3, 3)
    questions = datasets.load_dataset(str(tmp_path / "repo"), split="val", streaming=True)
    assert next(iter(questions))["scene_id"] == "scene0011_00"


def test_scanqa_test_files(dump, tmp_path):
    """Catches the official test files, which have no answers, being refused, answers that are there being dropped, and a card
    that sends people to a server which is closed."""
    write_scan(dump / "scans", "scene0700_00")
    write_scan(dump / "scans", "scene0701_00")
    write_scanqa(dump, "test_w_obj", ["scene0700_00"])
    write_scanqa(dump, "test_wo_obj", ["scene0701_00"])
    edit(dump / "ScanQA_v1.0_test_wo_obj.json", lambda rows: rows[0].update(answers=["red"]))
    assert main(scanqa_arguments(dump, tmp_path / "repo", splits=("test_w_obj", "test_wo_obj"))) == 0
    questions = datasets.load_dataset(str(tmp_path / "repo"))
    assert questions["test_w_obj"][0]["answers"] == [] and questions["test_w_obj"][0]["object_ids"] == []
    assert questions["test_wo_obj"][0]["answers"] == ["red"]
    assert "whose server closed in February 2026. Report `val`." in (tmp_path / "repo" / "README.md").read_text()


def test_sqa3d(dump, tmp_path):
    """Catches alternative situations left out of train or let into val, and numbers in another order."""
    files = write_sqa3d(dump, "train", SCENES["train"]) + write_sqa3d(dump, "val", SCENES["val"])
    assert main(sqa3d_arguments(dump, tmp_path / "repo", *files)) == 0
    questions = datasets.load_dataset(str(tmp_path / "repo"))
    assert questions["train"]["question_id"][:3] == ["220602000000", "220602000000-1", "220602000000-2"]
    assert questions["train"]["situation"][:3] == ["I face the door.", "I see the door.", "A door is ahead."]
    assert questions["val"]["question_id"][:] == ["220602000000"]
    row = questions["val"][0]
    assert row["answers"] == ["table"] and row["task"] == "sqa3d" and row["object_ids"] == []
    np.testing.assert_allclose(row["position"], [0.5, -1.25, 0])
    np.testing.assert_allclose(row["rotation"], [0, 0, -0.6, 0.8])
    assert row["position_frame"] == "annotation"  # there is no mesh; see test_sqa3d_positions.py
    assert "relative to the centre" in (tmp_path / "repo" / "README.md").read_text()


def test_sqa3d_partner_missing(dump, tmp_path, capsys):
    """Catches questions prepared without their answers."""
    questions, annotations = write_sqa3d(dump, "train", SCENES["train"])
    refused(capsys, sqa3d_arguments(dump, tmp_path / "repo", questions), annotations.name)
    refused(capsys, sqa3d_arguments(dump, tmp_path / "repo", annotations), questions.name)


def test_sqa3d_join_mismatch(dump, tmp_path, capsys):
    """Catches a join that drops rows without a partner and without a word, on either side, or pairs rows by their order."""
    files = write_sqa3d(dump, "train", SCENES["train"])
    whole = [path.read_text() for path in files]
    arguments = [*sqa3d_arguments(dump, tmp_path / "repo", *files), "--strict"]
    edit(files[1], lambda content: content["annotations"].pop())
    refused(capsys, arguments, "row 1", "220602000001 has no annotation")
    files[1].write_text(whole[1])
    edit(files[0], lambda content: content["questions"].pop())
    refused(capsys, arguments, "row 1", "220602000001 has no question")
    files[0].write_text(whole[0])
    edit(files[1], lambda content: content["annotations"][0].update(scene_id="scene0001_00"))
    refused(capsys, arguments, "scene0000_00", "scene0001_00")
    assert main(arguments[:-1]) == 0
    left_out = f"{files[0].name}: 1 records left out (row 0): question_id 220602000000 is about scene0000_00 here"
    assert left_out in capsys.readouterr().out
    assert set(datasets.load_dataset(str(tmp_path / "repo"))["train"]["scene_id"]) == {"scene0001_00"}


@pytest.fixture
def instruct(tmp_path):
    folder = tmp_path / "raw"
    for name, colour in (("coco/a.jpg", 10), ("coco/b.png", 90), ("c.jpg", 170)):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 10), (colour, colour, colour)).save(path)
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Which colour?\n<image>"},
        {"from": "gpt", "value": "Grey."},
    ]
    (folder / "llava_instruct_150k.json").write_text(
        json.dumps(
            [
                {"id": "a", "image": "coco/a.jpg", "conversations": turns},
                {"id": "a", "image": "coco/a.jpg", "conversations": turns[:2]},
                {"id": "b", "image": "coco/b.png", "conversations": turns},
                {"id": "text", "conversations": turns},
                {"id": "many", "image": ["coco/a.jpg", "c.jpg"], "conversations": turns},
            ]
        )
    )
    (folder / "instruct_val.json").write_text(json.dumps([{"id": 7, "image": "c.jpg", "conversations": turns}]))
    return folder


def instruct_arguments(folder, output, *files):
    paths = [str(folder / name) for name in files]
    return ["instruct", "--annotations", *paths, "--image-root", str(folder / "images"), "--output", str(output)]


def test_instruct(instruct, tmp_path, capsys):
    """Catches turns lost or paired wrongly, markers left in the text, re-encoded pictures, and silent skipping."""
    png = (instruct / "images" / "coco" / "b.png").read_bytes()
    assert main(instruct_arguments(instruct, tmp_path / "repo", "llava_instruct_150k.json", "instruct_val.json")) == 0
    printed = capsys.readouterr().out
    assert "1 records with no picture skipped" in printed and "1 records with several pictures skipped" in printed
    assert "llava_instruct_150k.json: its name says no split, taken as train" in printed
    shutil.rmtree(instruct)
    questions = datasets.load_dataset(str(tmp_path / "repo"))
    assert questions["train"]["question_id"][:] == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert questions["train"]["question"][:2] == ["What is it?", "Which colour?"]
    assert questions["train"]["answers"][:2] == [["A square."], ["Grey."]]
    assert questions["val"]["question_id"][:] == ["7-0", "7-1"]
    scenes = datasets.load_dataset(str(tmp_path / "repo"), "scenes")
    assert scenes["train"]["scene_id"][:] == ["coco/a.jpg", "coco/b.png"]
    scene = scenes["train"].cast_column("images", datasets.List(datasets.Image(decode=False)))[1]
    assert scene["geometry"] is None and scene["frame_ids"] == ["0"] and scene["images"][0]["bytes"] == png
    assert PIL.Image.open(BytesIO(png)).size == (20, 10)
    stream = datasets.load_dataset(str(tmp_path / "repo"), "scenes", split="train", streaming=True)
    assert next(iter(stream))["geometry"] is None


def test_instruct_malformed_turns(instruct, tmp_path, capsys):
    """Catches an answer being taken for a question."""
    edit(instruct / "instruct_val.json", lambda rows: rows[0]["conversations"].pop(0))
    refused(capsys, instruct_arguments(instruct, tmp_path / "repo", "instruct_val.json"), "row 0", "pairs of turns")


def test_image_outside_the_root(instruct, tmp_path, capsys):
    """Catches annotation files that would embed other files of this machine in a repo meant to be published."""
    edit(instruct / "instruct_val.json", lambda rows: rows[0].update(image="../secret.png"))
    refused(capsys, instruct_arguments(instruct, tmp_path / "repo", "instruct_val.json"), "row 0", "image root")


def test_shared_scene(dump, tmp_path, capsys):
    """Catches a scene of the training split leaking into validation."""
    write_scanqa(dump, "val", ["scene0011_00", "scene0001_00"])
    refused(capsys, scanqa_arguments(dump, tmp_path / "repo"), "scene0001_00", "'train'", "'val'")


def test_unknown_scene(dump, tmp_path, capsys):
    """Catches questions dropped because their scan was never downloaded."""
    shutil.rmtree(dump / "scans" / "scene0001_00")
    refused(capsys, scanqa_arguments(dump, tmp_path / "repo"), "1 of 3 scenes", "scene0001_00")


def test_bad_annotation_files(dump, tmp_path, capsys):
    """Catches an annotation file found broken only after an hour, a message that does not say where, and one bad row that ends
    all, or that goes without a word."""
    path = dump / "ScanQA_v1.0_train.json"
    arguments = scanqa_arguments(dump, tmp_path / "repo")
    whole = path.read_text()
    edit(path, lambda rows: rows[1].pop("answers"))
    refused(capsys, [*arguments, "--strict"], path.name, "row 1", "'answers'")
    path.write_text(whole)
    edit(path, lambda rows: rows[1].update(question_id=rows[0]["question_id"]))
    twice = "row 1: question_id train-scene0000_00-0 occurs twice, first in row 0"
    refused(capsys, [*arguments, "--strict"], path.name, twice)
    assert main(scanqa_arguments(dump, tmp_path / "good")) == 0
    assert f"{path.name}: 1 records left out ({twice.replace(': ', '): ', 1)}" in capsys.readouterr().out
    path.write_text(whole[:-5])
    refused(capsys, arguments, path.name, "not a JSON file")
    path.write_text("[]")
    refused(capsys, arguments, path.name, "empty list")
    path.unlink()
    refused(capsys, arguments, path.name, "cannot be read")
    other = dump / "ScanQA_train.json"
    other.write_text(whole)
    arguments[arguments.index(str(path))] = str(other)
    refused(capsys, arguments, other.name, "not named")


def test_two_files_for_a_split(dump, tmp_path, capsys):
    """Catches the second file replacing the first."""
    (dump / "copy").mkdir()
    copy = shutil.copy(dump / "ScanQA_v1.0_val.json", dump / "copy")
    arguments = scanqa_arguments(dump, tmp_path / "repo", splits=("val",))
    arguments.insert(2, str(copy))
    refused(capsys, arguments, "two annotation files", "'val'")


def test_bad_scenes_are_left_out_with_their_questions(dump, tmp_path, capsys):
    """Catches a broken picture stored, a bad scene's questions kept, and a scene lost without a word."""
    broken = dump / "scans" / "scene0000_00" / "color" / "20.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    refused(capsys, scanqa_arguments(dump, tmp_path / "strict", "--strict"), "scene0000_00", "20.jpg", "--strict")
    assert leftovers(tmp_path) == []  # not a single scene to go on from

    assert main(scanqa_arguments(dump, tmp_path / "repo")) == 0
    printed = capsys.readouterr().out
    assert "left out: scene scene0000_00" in printed and "20.jpg" in printed
    assert "2 scenes good, 1 left out" in printed
    assert datasets.load_dataset(str(tmp_path / "repo"))["train"]["scene_id"][:] == ["scene0001_00"]
    scenes = datasets.load_dataset(str(tmp_path / "repo"), "scenes")
    assert scenes["train"]["scene_id"][:] == ["scene0001_00"]
    refused(capsys, scanqa_arguments(dump, tmp_path / "repo", "--strict"), "scene0000_00")  # not "already prepared"


def test_scenes_without_geometry(dump, tmp_path, capsys):
    """Catches a scene without a single pose, or a frame without depth, becoming an empty or invented one, and pictures that
    are all one has being refused where geometry is optional."""
    for path in (dump / "scans" / "scene0000_00" / "pose").iterdir():
        path.write_text("-inf " * 16)
    (dump / "scans" / "scene0001_00" / "depth" / "0.png").unlink()
    shutil.rmtree(dump / "scans" / "scene0011_00" / "pose")
    refused(capsys, scanqa_arguments(dump, tmp_path / "required"), "no usable scene", "'val'", "pose: folder missing")
    assert main(scanqa_arguments(dump, tmp_path / "required", splits=("train",))) == 0
    printed = capsys.readouterr().out
    assert "no frame has a valid pose, intrinsics and depth (4 without a pose)" in printed
    assert "frames without depth: 1 in 1 scenes, the first in scene0001_00 (frame 0)" in printed
    assert datasets.load_dataset(str(tmp_path / "required"), "scenes")["train"]["frame_ids"][0] == ["20", "100"]

    assert main(scanqa_arguments(dump, tmp_path / "optional", "--geometry", "optional")) == 0
    assert "scenes prepared without geometry: 2 in 2 scenes, the first in scene0000_00" in capsys.readouterr().out
    train = datasets.load_dataset(str(tmp_path / "optional"), "scenes")["train"]
    assert train[0]["geometry"] is None and train[1]["geometry"] is not None
    assert train[0]["frame_ids"] == ["40", "0", "20", "100"]

    assert main(scanqa_arguments(dump, tmp_path / "none", "--geometry", "none", "--num-views", "3")) == 0
    scenes = datasets.load_dataset(str(tmp_path / "none"), "scenes")["train"]
    assert [scene["geometry"] for scene in scenes] == [None, None]
    assert [len(scene["frame_ids"]) for scene in scenes] == [3, 3]


def test_image_size(dump, tmp_path, capsys):
    """Catches intrinsics that are not scaled with the picture, and small pictures that are enlarged."""
    assert main(scanqa_arguments(dump, tmp_path / "small", "--image-size", "24")) == 0
    assert main(scanqa_arguments(dump, tmp_path / "large", "--image-size", "4000")) == 0
    assert main(scanqa_arguments(dump, tmp_path / "same")) == 0
    assert "scenes with fewer views than asked for: 3 in 3 scenes" in capsys.readouterr().out
    small, large, same = (
        datasets.load_dataset(str(tmp_path / name), "scenes")["val"][0] for name in ("small", "large", "same")
    )
    assert small["images"][0].size == (24, 16) and large["images"][0].size == (48, 32)
    assert same["geometry"] == large["geometry"]
    point = np.array([0.2, -0.1, 1])
    before, after = (np.array(scene["geometry"]["K"][0]) @ point for scene in (same, small))
    np.testing.assert_allclose(after[:2] + 0.5, (before[:2] + 0.5) / 2, atol=1e-4)  # pixel centres are whole numbers


def test_workers_give_the_same_repo(dump, tmp_path, capsys):
    """Catches failures recorded in a worker and forgotten, and scenes lost between workers."""
    (dump / "scans" / "scene0001_00" / "depth" / "20.png").write_bytes(b"not a picture")
    assert main(scanqa_arguments(dump, tmp_path / "one")) == 0
    one = capsys.readouterr().out
    assert main(scanqa_arguments(dump, tmp_path / "two", "--workers", "2")) == 0
    assert one.replace("/one", "/two") == capsys.readouterr().out
    for name in ("scenes", "qa"):
        repos = [datasets.load_dataset(str(tmp_path / repo), name) for repo in ("one", "two")]
        for split in ("train", "val"):
            assert repos[0][split].to_list() == repos[1][split].to_list()
    refused(capsys, scanqa_arguments(dump, tmp_path / "three", "--workers", "2", "--strict"), "scene0001_00", "20.png")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_run_is_gone_on_with(dump, tmp_path, monkeypatch, capsys, error):
    """Catches half a repo at the output after Ctrl-C or with the disk full, work that is done again, and a scene kept although
    its files or its questions have changed since."""
    read_scene = ScanNetBuilder.read_scene
    fail_at, read = "scene0011_00", []

    def record(sources, options, scene):
        read.append(scene.scene_id)
        if scene.scene_id == fail_at:
            raise error
        return read_scene(sources, options, scene)

    monkeypatch.setattr(ScanNetBuilder, "read_scene", record)
    assert main(scanqa_arguments(dump, tmp_path / "repo")) == (1 if isinstance(error, OSError) else 130)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert ("No space left" if isinstance(error, OSError) else "interrupted") in message
    assert leftovers(tmp_path) == [".repo.partial"]
    assert read == ["scene0000_00", "scene0001_00", "scene0011_00"]

    picture = dump / "scans" / "scene0001_00" / "color" / "0.jpg"
    PIL.Image.new("RGB", (48, 32), (255, 255, 255)).save(picture)
    fail_at = None
    read.clear()
    assert main(scanqa_arguments(dump, tmp_path / "repo")) == 0
    assert read == ["scene0001_00", "scene0011_00"]
    assert "1 scenes had been read by an interrupted run" in capsys.readouterr().out
    assert leftovers(tmp_path) == ["repo"]
    assert main(scanqa_arguments(dump, tmp_path / "fresh")) == 0
    for name in ("scenes", "qa"):
        repos = [datasets.load_dataset(str(tmp_path / repo), name) for repo in ("repo", "fresh")]
        for split in ("train", "val"):
            assert repos[0][split].to_list() == repos[1][split].to_list()


def test_interrupted_while_writing(dump, tmp_path, monkeypatch, capsys):
    """Catches an interrupt that the library which writes Parquet turns into an error of its own."""

    def interrupt(path, pictures=True):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreparedScene, "read", interrupt)
    assert main(scanqa_arguments(dump, tmp_path / "repo")) == 130
    monkeypatch.undo()
    assert leftovers(tmp_path) == [".repo.partial"]
    assert main(scanqa_arguments(dump, tmp_path / "repo")) == 0
    assert leftovers(tmp_path) == ["repo"]


def test_two_preparations_at_once(dump, tmp_path, capsys):
    """Catches two jobs that write into the same folder."""
    (tmp_path / ".repo.partial").mkdir()
    with FileLock(tmp_path / ".repo.partial" / "lock"):
        refused(capsys, scanqa_arguments(dump, tmp_path / "repo"), "being prepared by another process")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_terminated_command_cleans_up(dump, tmp_path, workers):
    """Catches a time limit of a batch system that leaves half a repo or processes, or waits for its workers forever."""
    picture = dump / "scans" / "scene0001_00" / "color" / "20.jpg"
    environment, waits = when_read(picture, tmp_path / "waiting")
    command = [sys.executable, "-m", "data_scripts.prepare"]
    command += scanqa_arguments(dump, tmp_path / "repo", "--workers", workers)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not waits.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "interrupted" in message.splitlines()[-1]
    assert not (tmp_path / "repo").exists()


def test_prepared_twice(dump, tmp_path, capsys):
    """Catches needless work, a stale repo taken for a fresh one, and a damaged or foreign folder overwritten or
    trusted."""
    output = tmp_path / "repo"
    arguments = scanqa_arguments(dump, output)
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert "already prepared" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}

    refused(capsys, [*arguments, "--num-views", "2"], "other inputs or options")
    edit(dump / "ScanQA_v1.0_val.json", lambda rows: rows[0].update(question="Is there a door?"))
    refused(capsys, arguments, "other inputs or options")
    shutil.rmtree(output)
    assert main(arguments) == 0
    assert datasets.load_dataset(str(output), split="val")[0]["question"] == "Is there a door?"

    picture = dump / "scans" / "scene0011_00" / "color" / "0.jpg"
    PIL.Image.new("RGB", (48, 32), (255, 255, 255)).save(picture)
    refused(capsys, arguments, "other inputs or options")
    shutil.rmtree(output)
    assert main(arguments) == 0
    scene = datasets.load_dataset(str(output), "scenes", split="val")[0]
    assert np.asarray(scene["images"][scene["frame_ids"].index("0")]).min() > 250

    next((output / "qa").glob("*.parquet")).unlink()
    refused(capsys, arguments, "missing or damaged")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    refused(capsys, scanqa_arguments(dump, foreign), "not a prepared repo")
    assert (foreign / "thesis.txt").exists()


def test_card(dump, tmp_path):
    """Catches a card without licence, counts or frames, and local paths in what is published."""
    write_scan(dump / "scans", "scene0002_00", frames=())
    write_scanqa(dump, "train", [*SCENES["train"], "scene0002_00"])
    assert main(scanqa_arguments(dump, tmp_path / "repo", "--num-views", "2")) == 0
    card = (tmp_path / "repo" / "README.md").read_text()
    for words in ("CC BY-NC-SA 3.0", "ScanNet terms of use", "| train | 2 | 4 | 2 |", "| val | 1 | 2 | 1 |"):
        assert words in card
    for words in ("world-to-camera", "z up", "0-8 m", "--num-views 2", "ScanQA_v1.0_train.json"):
        assert words in card
    assert "1 scenes and their questions were left out" in card
    published = card + (tmp_path / "repo" / "preparation.json").read_text()
    assert str(tmp_path) not in published
