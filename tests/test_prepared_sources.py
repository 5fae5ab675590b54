# SPDX-License-Identifier: Apache-2.0
"""The other sources of prepared repos (records, DocVQA, ChartQA), the official counts, the page of a scene, the upload."""

import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from scannet_dump import write_scan, write_scanqa

from data_scripts.builders.scanqa import ScanQA
from data_scripts.preparation.base import Sources
from data_scripts.prepare import main
from data_scripts.view import _box_from_above
from data_scripts.view import main as view_main


SHARED_DATA = Path(os.environ.get("VGGT_QWEN3_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Keeps what load_dataset caches out of the user's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def picture(path: Path, size=(20, 10), value=100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (value, value, value)).save(path)
    return path


def geom_token(views=2):
    """Cameras that stand at (view, 0, 1) and look along y: camera-to-world, as records have them."""
    to_world = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return {
        "R": [to_world.ravel().tolist()] * views,
        "t": [[float(view), 0, 1] for view in range(views)],
        "K": [[20.0, 0, 9.5, 0, 20, 4.5, 0, 0, 1]] * views,
        "depth_hist": [[1.0] + [0] * 15] * views,
    }


def record(**changes):
    return {
        "images": ["a b/0.jpg", "a b/1.jpg"],
        "geom_token": geom_token(),
        "question": "Où est la chaise ?",
        "answer": "à côté",
        "task": "scanqa",
        "scene_id": "cuisine",
    } | changes


def test_records(tmp_path, capsys):
    """Catches camera-to-world stored as world-to-camera, pictures stored once per question, other cameras under the same
    scene, and bad records that become rows or vanish without a word."""
    for view in (0, 1):
        picture(tmp_path / "images" / "a b" / f"{view}.jpg")
    nan, turned = geom_token(), geom_token()
    nan["t"][1][0] = float("nan")
    turned["R"] = (np.array(turned["R"]) * 2).tolist()
    action = {"action": "place_anchor", "label": "tür"}
    rows = [
        record(),
        record(question="And now?", situation="I sit."),
        record(question=None, instruction="Place it.", answer=None, action_json=action, task="arkit"),
        record(geom_token=None, scene_id=None),
        record(images=["a b/1.jpg"], geom_token=None),
        record(geom_token=nan),
        record(geom_token=turned),
        record(geom_token=geom_token(3)),
        record(answer=" "),
        record(images=[]),
        "nonsense",
    ]
    rows[2].pop("question")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    val = record(scene_id="salon", images=[str(tmp_path / "images" / "a b" / "0.jpg")], geom_token=None)
    (tmp_path / "records_val.json").write_text(json.dumps([val], ensure_ascii=False))
    files = [str(tmp_path / "train.jsonl"), str(tmp_path / "records_val.json")]
    arguments = ["records", "--records", *files, "--image-root", str(tmp_path / "images"), "--image-size", "10"]
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "(record 5): geom_token 't' holds",
        "'R' is not a rotation",
        "'R' does not hold 2 x 9",
        "it is empty",
    ):
        assert words in printed
    assert "(record 9): 'images' is not" in printed and "(record 10): not an object" in printed

    questions = datasets.load_dataset(str(tmp_path / "repo"))
    train = questions["train"]
    assert train["question"][:] == [
        "Où est la chaise ?",
        "And now?",
        "Place it.",
        "Où est la chaise ?",
        "Où est la chaise ?",
    ]
    assert train["situation"][1] == "I sit." and train["answers"][0] == ["à côté"]
    assert json.loads(train["action"][2]) == action and json.loads(train["answers"][2][0]) == action
    scenes = datasets.load_dataset(str(tmp_path / "repo"), "scenes")
    ids = scenes["train"]["scene_id"][:]
    assert ids[0] == "cuisine" and ids[1].startswith("views-") and ids[2] == "cuisine#2"
    assert train["scene_id"][:] == [ids[0]] * 3 + ids[1:]
    assert scenes["val"]["scene_id"][:] == ["salon"]
    first = scenes["train"][0]
    assert [image.size for image in first["images"]] == [(10, 5)] * 2
    assert scenes["train"][1]["geometry"] is None
    geometry = {name: np.array(values) for name, values in first["geometry"].items()}
    # Two metres ahead of camera 1, in the world: (1, 2, 1).
    np.testing.assert_allclose(geometry["R"][1] @ [1, 2, 1] + geometry["t"][1], [0, 0, 2], atol=1e-6)
    np.testing.assert_allclose(geometry["K"][0], [[10, 0, 4.5], [0, 10, 2.0], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", ["array", "data", "samples", "lines", "lines.json", "array.jsonl", "data indented"])
def test_layouts_of_record_files(layout, newline, tmp_path, capsys):
    """Catches a layout of the original repository's files that is refused, and text that Windows' line ends change."""
    picture(tmp_path / "images" / "a" / "0.jpg")
    rows = [
        record(images=["a/0.jpg"], geom_token=geom_token(1), answer="è"),
        record(images=["a\\0.jpg"], geom_token=geom_token(1), question="And\nnow?"),
    ]
    if layout.startswith("lines"):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        key = layout.partition(" ")[0]
        content = {"version": 1, key: rows} if key in ("data", "samples") else rows
        text = json.dumps(content, ensure_ascii=False, indent=2 if "indented" in layout else None)
    name = {"lines": "train.jsonl", "array.jsonl": "train.jsonl"}.get(layout, "train.json")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", newline).encode())
    arguments = ["records", "--records", str(tmp_path / name), "--image-root", str(tmp_path / "images")]
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0, capsys.readouterr().err
    rows = datasets.load_dataset(str(tmp_path / "repo"), split="train")
    assert rows["question"][:] == ["Où est la chaise ?", "And\nnow?"] and rows["answers"][0] == ["è"]
    assert set(rows["scene_id"]) == {"cuisine"}


def test_records_without_task_or_depth(tmp_path, capsys):
    """Catches records that vanish since they name no task or hold no depth, depth made up for them, and views without it
    where depth is required."""
    for view in (0, 1):
        picture(tmp_path / "images" / "a b" / f"{view}.jpg")
    bare, half, nested = geom_token(), geom_token(), geom_token()
    del bare["depth_hist"]
    half["depth_hist"] = [None, half["depth_hist"][1]]
    nested["R"] = np.array(nested["R"]).reshape(2, 3, 3).tolist()
    tokens = {"bare": bare, "null": geom_token() | {"depth_hist": None}, "half": half, "nested": nested, "none": {}}
    rows = [record(geom_token=token, scene_id=name) for name, token in tokens.items()]
    del rows[0]["task"]
    rows[1]["task"] = None
    rows.append(record(geom_token=geom_token() | {"depth_hist": [[1.0]]}, scene_id="short"))
    (tmp_path / "train.json").write_text(json.dumps({"samples": rows}))
    arguments = ["records", "--records", str(tmp_path / "train.json"), "--image-root", str(tmp_path / "images")]
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0
    printed = capsys.readouterr().out
    assert "train.json: 2 records name no task: it is 'records'" in printed
    assert "train.json: 3 records have a geom_token without depth_hist: their depth counts as not measured" in printed
    assert "(record 5): geom_token 'depth_hist' does not hold 2 x 16 numbers" in printed
    assert datasets.load_dataset(str(tmp_path / "repo"), split="train")["task"][:] == ["records"] * 2 + ["scanqa"] * 3
    scenes = {
        row["scene_id"]: row["geometry"] for row in datasets.load_dataset(str(tmp_path / "repo"), "scenes")["train"]
    }
    assert list(scenes) == list(tokens) and scenes["none"] is None
    for name, sums in (("bare", [0, 0]), ("null", [0, 0]), ("half", [0, 1]), ("nested", [1, 1])):
        assert np.sum(scenes[name]["depth_hist"], axis=1).tolist() == sums, name
        assert scenes[name]["R"] == scenes["nested"]["R"] and scenes[name]["t"] == scenes["nested"]["t"]
    assert main([*arguments, "--geometry", "required", "--output", str(tmp_path / "strict")]) == 0
    printed = capsys.readouterr().out
    assert "left out: scene half: half: its records' geom_token has no depth_hist" in printed
    assert datasets.load_dataset(str(tmp_path / "strict"), "scenes")["train"]["scene_id"][:] == ["nested"]


def test_unusable_records(tmp_path, capsys):
    """Catches a broken line that ends all or goes without a word, a picture from elsewhere, a missing picture that becomes a scene,
    and records with faults that --strict takes."""
    picture(tmp_path / "images" / "0.jpg")
    path = tmp_path / "train.jsonl"
    arguments = ["records", "--records", str(path), "--image-root", str(tmp_path / "images"), "--output"]

    def refused(text, *words, options=()):
        path.write_text(text)
        assert main([*arguments, str(tmp_path / "repo"), *options]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error

    good = json.dumps(record(images=["0.jpg"], geom_token=None, scene_id="a"))
    refused(good + "\n{", "record 1: line 2: not JSON", "(--strict)", options=["--strict"])
    assert main([*arguments, str(tmp_path / "good")]) == 0
    assert "train.jsonl: 1 records left out (record 1): line 2: not JSON" in capsys.readouterr().out
    refused("{a\n[", "no record can be used; record 0: line 1: not JSON")
    refused(json.dumps(record(answer={"center": [float("nan")]})), "'answer' holds a number that is not finite")
    refused("", "no record can be used")
    refused('{\n"rows": []}', "one record per line; found a dict with rows")
    refused(json.dumps(record(answer="")), "no record can be used; record 0:")
    refused(json.dumps(record(images=["../secret.jpg"])), "record 0", "not a path under the image root")
    refused(json.dumps(record(images=["1.jpg"], geom_token=None)), "no usable scene", "1.jpg: missing")


def test_docvqa_and_chartqa(tmp_path, capsys):
    """Catches pictures looked for in the wrong folder of the official downloads, a number as a label refused, questions of two
    files that bear the same id, and a question without answer that is kept."""
    root = tmp_path / "images"
    picture(root / "documents" / "d.png", (1700, 2200))
    picture(root / "train" / "png" / "c.png")
    picture(root / "val" / "png" / "c.png")
    documents = [
        {"questionId": 7, "question": "Quel total ?", "image": "documents/d.png", "answers": ["3 €", "3"]},
        {"questionId": 8, "question": "And?", "image": "documents/d.png", "answers": []},
    ]
    chart = [
        {"imgname": "c.png", "query": f"How many {thing}?", "label": label}
        for thing, label in (("a", "2"), ("b", 2.5))
    ]
    for name, content in (
        ("train_v1.0_withQT.json", {"data": documents}),
        ("train_human.json", chart),
        ("val_human.json", chart[:1]),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    files = [str(tmp_path / name) for name in ("train_v1.0_withQT.json", "train_human.json", "val_human.json")]
    arguments = ["instruct", "--annotations", *files, "--image-root", str(root), "--image-size", "440"]
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0
    assert "1 records with no answer skipped" in capsys.readouterr().out
    train = datasets.load_dataset(str(tmp_path / "repo"), split="train")
    assert train["scene_id"][:] == ["documents/d.png", "train/png/c.png", "train/png/c.png"]
    assert train["answers"][:] == [["3 €", "3"], ["2"], ["2.5"]] and train["task"][:] == [
        "docvqa",
        "chartqa",
        "chartqa",
    ]
    assert train["question_id"][:] == ["train_v1.0_withQT-7", "train_human-c.png-0", "train_human-c.png-1"]
    scenes = datasets.load_dataset(str(tmp_path / "repo"), "scenes")
    assert [scene["images"][0].size for scene in scenes["train"]] == [(340, 440), (20, 10)]
    assert scenes["val"]["scene_id"][:] == ["val/png/c.png"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the official files are not here")
def test_official_counts():
    """Catches a reader that drops rows of the real file, and a count that is not the official one."""
    path = SHARED_DATA / "scanqa" / "ScanQA_v1.0_test_w_obj.json"
    annotations = ScanQA.read_annotations(Sources(annotations=(path,)))
    (scenes,) = annotations.scenes.values()
    assert len(scenes) == 70 and sum(len(scene.questions) for scene in scenes) == 4976
    assert annotations.notes == []


def test_other_counts_are_reported(tmp_path):
    """Catches half an official file taken for all of it without a word."""
    path = write_scanqa(tmp_path, "val", ["scene0011_00"])
    notes = ScanQA.read_annotations(Sources(annotations=(path,))).notes
    assert notes[0] == "ScanQA_v1.0_val.json: 1 questions; the official release has 4,675"


@pytest.fixture
def scanqa(tmp_path):
    write_scan(tmp_path / "raw" / "scans", "scene0000_00")
    path = write_scanqa(tmp_path / "raw", "train", ["scene0000_00"])
    content = json.loads(path.read_text())
    content[0]["question"] = "Où <b> & 椅子?"
    path.write_text(json.dumps(content))
    arguments = ["scanqa", "--annotations", str(path), "--scannet-root", str(tmp_path / "raw" / "scans"), "--output"]
    return [*arguments, str(tmp_path / "repo")]


def test_page(scanqa, tmp_path, capsys):
    """Catches text that becomes markup, pictures or scripts loaded from elsewhere, and a page of a scene that is not there."""
    assert main(scanqa) == 0
    output = tmp_path / "my pages" / "page 1.html"
    assert view_main([str(tmp_path / "repo"), "--scene", "scene0000_00", "--output", str(output)]) == 0
    page = output.read_text(encoding="utf-8")
    assert "Où &lt;b&gt; &amp; 椅子?" in page and "dark brown" in page and "scene0000_00 (train)" in page
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page
    assert page.count("<polygon") == 3 and "depth: 0.0 to 8.0+ m, median about 0.75 m" in page
    assert [path.name for path in output.parent.iterdir()] == ["page 1.html"]
    assert view_main([str(tmp_path / "repo"), "--scene", "scene9", "--output", str(output)]) == 2
    assert "no scene scene9; it has 1" in capsys.readouterr().err
    assert view_main([str(tmp_path), "--scene", "a", "--output", str(output)]) == 2


def test_page_of_actions(tmp_path):
    """Catches boxes drawn elsewhere than where they are."""
    label, corners = _box_from_above(["sofa", [2, 1, 0.4], [2, 0.8, 1], [0, 1, 0]])
    assert label == "sofa"
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [[1, 0.5], [3, 1.5]])


def test_repo_is_small(tmp_path):
    """Catches pictures stored once per question: 25 questions a scene must not take a tenth of that."""
    noise = np.random.default_rng(0)
    folder = write_scan(tmp_path / "scans", "scene0000_00", frames=range(8))
    for path in (folder / "color").iterdir():
        PIL.Image.fromarray(noise.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(path)
    path = write_scanqa(tmp_path, "train", ["scene0000_00"])
    (row,) = json.loads(path.read_text())
    path.write_text(json.dumps([row | {"question_id": f"q{number}"} for number in range(25)]))
    arguments = ["scanqa", "--annotations", str(path), "--scannet-root", str(tmp_path / "scans")]
    assert main([*arguments, "--output", str(tmp_path / "repo")]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "repo").rglob("*") if path.is_file())
    with_pictures = 25 * sum(path.stat().st_size for path in (folder / "color").iterdir())
    assert size < with_pictures / 10


def test_help_names_every_source(capsys):
    """Catches an option that a dataset takes but its help does not explain."""
    for name, flag in (("records", "--records"), ("arkit_actions", "--roomplan-root"), ("scanqa", "--geometry")):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert re.search(rf"{flag}.*\s+\S+", capsys.readouterr().out)
