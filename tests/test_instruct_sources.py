# SPDX-License-Identifier: Apache-2.0
"""Stage 1's data from the official releases: LLaVA's mix, ShareGPT4V, DocVQA and ChartQA, as JSON and as Parquet of the Hub."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import yaml
from stage1_releases import (
    CHARTQA_FEATURES,
    COCO,
    DOCVQA_FEATURES,
    OCR_VQA,
    SAM,
    encoded,
    turns,
    write_chartqa,
    write_chartqa_tables,
    write_docvqa,
    write_docvqa_tables,
    write_json,
    write_llava,
    write_picture,
    write_sharegpt4v,
    write_table,
)

from data_scripts.preparation.annotations import Annotations, SceneInput
from data_scripts.preparation.val_share import split_validation
from data_scripts.prepare import main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own to run in, and to cache what load_dataset reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    return tmp_path


def prepare(*arguments) -> int:
    return main(["instruct", "--output", "data", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    """The one line that says why nothing is prepared."""
    assert prepare(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


def pictures(repo: str, split: str) -> dict[str, bytes]:
    scenes = datasets.load_dataset(repo, "scenes", split=split)
    scenes = scenes.cast_column("images", datasets.List(datasets.Image(decode=False)))
    return {scene["scene_id"]: scene["images"][0]["bytes"] for scene in scenes}


def test_four_json_releases_in_one_call(here, capsys):
    """Catches one image root for all sources, an official folder that is not found, text records that stop the rest, and a
    picture of COCO that one source trains on and the other evaluates."""
    write_llava(here), write_sharegpt4v(here), write_docvqa(here), write_chartqa(here)
    charts = [
        f"ChartQA Dataset/{split}/{split}_{kind}.json" for split in ("train", "val") for kind in ("human", "augmented")
    ]
    status = prepare(
        "--source", "llava=llava_v1_5_mix665k.json,images",
        "--source", "sharegpt4v=sharegpt4v_instruct_gpt4-vision_cap100k.json,images",
        "--source", "docvqa=spdocvqa_qas/train_v1.0_withQT.json,spdocvqa_qas/val_v1.0_withQT.json,spdocvqa_images",
        "--source", f"chartqa={','.join(charts)},ChartQA Dataset",
        "--val-share", "0.01",
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out
    assert "1 records with no picture skipped (row 12)" in printed
    assert f"3 pictures are named in llava and in sharegpt4v, for example {COCO[0]}" in printed
    assert sorted(path.name for path in Path("data").iterdir()) == ["chartqa", "docvqa", "llava", "sharegpt4v"]
    for name in ("images", "spdocvqa_images", "ChartQA Dataset"):
        shutil.rmtree(name)
    llava, captions = (datasets.load_dataset(f"data/{name}") for name in ("llava", "sharegpt4v"))
    assert sum(map(len, llava.values())) == 23 and sum(map(len, captions.values())) == 8
    assert set(llava["val"]["scene_id"]) == set(captions["val"]["scene_id"]) == {COCO[2]} and len(llava["val"]) == 2
    assert COCO[2] not in llava["train"]["scene_id"] and COCO[2] not in captions["train"]["scene_id"]
    rows = [row for split in llava.values() for row in split if row["scene_id"] == COCO[0]]
    assert [row["answers"] for row in rows] == [["Noise"], ["It is 0."], ["Noise of all colours."]]
    stored = pictures("data/llava", "train") | pictures("data/llava", "val")
    assert stored[COCO[0]] == encoded(Path(COCO[0]).name)
    documents = datasets.load_dataset("data/docvqa")
    assert documents["train"]["question_id"][:] == ["337", "338", "339"] and len(documents["val"]) == 3
    assert documents["train"]["answers"][0] == ["1/0/93", "1.0.93"]
    charts = datasets.load_dataset("data/chartqa")
    assert set(charts["val"]["scene_id"]) == {"val/png/val41699051005347.png", "val/png/two_col_val20.png"}
    assert len(charts["train"]) == 4 and charts["train"]["task"][0] == "chartqa"
    # The same command finds it done; the card names the source, and no folder of this machine.
    card = Path("data/docvqa/README.md").read_text()
    assert "--source docvqa=train_v1.0_withQT.json,val_v1.0_withQT.json,spdocvqa_images --output data" in card


def test_parquet_of_the_hub(here, capsys):
    """Catches another name of a field, a picture stored once per question or decoded and encoded anew, a question that gets the
    picture of another row, and an official split that is taken for training."""
    write_docvqa_tables(here), write_chartqa_tables(here)
    assert prepare("--source", "docvqa=DocVQA/DocVQA", "--source", "chartqa=ChartQA/data", "--val-share", "0.01") == 0
    assert "note: --val-share 0.01 not used: there is a split val" in capsys.readouterr().out
    shutil.rmtree("DocVQA"), shutil.rmtree("ChartQA")
    documents = datasets.load_dataset("data/docvqa")
    assert {split: len(rows) for split, rows in documents.items()} == {"train": 3, "val": 3, "test": 3}
    assert documents["train"]["scene_id"][:] == [f"documents/trainbl0027_{page}.png" for page in (1, 1, 2)]
    assert documents["train"]["question_id"][:] == ["337", "338", "339"]
    assert documents["val"]["answers"][0] == ["1/0/93", "1.0.93"] and documents["test"]["answers"][0] == []
    stored = pictures("data/docvqa", "val")
    assert stored == {f"documents/valbl0027_{page}.png": encoded(f"valbl0027_{page}.png", "PNG") for page in (1, 2)}
    charts = datasets.load_dataset("data/chartqa")
    assert charts["train"]["question"][:] == ["Question 0?", "Question 1?", "Question 3?", "Question 2?"]
    assert charts["train"]["answers"][:] == [["0"], ["1"], ["3"], ["2"]]
    assert list(pictures("data/chartqa", "train").values()) == [encoded(f"train{name}.png", "PNG") for name in "ab"]
    assert len(pictures("data/chartqa", "test")) == 2
    # Each release's own licence, from the card beside its files.
    for name, licence in (("docvqa", "apache-2.0"), ("chartqa", "gpl-3.0")):
        assert f"license: {licence}" in Path(f"data/{name}/README.md").read_text()


def test_a_chart_in_two_splits(here, capsys):
    """Catches a release refused for a picture that its owners put in two splits, and one passed over without a word."""
    write_chartqa_tables(here, ["train"])
    for shard in list(Path("ChartQA/data").iterdir()):
        shutil.copy(shard, shard.with_name(shard.name.replace("train", "val")))
    assert prepare("--source", "chartqa=ChartQA/data") == 0
    assert "2 pictures are in several splits, as shipped, for example train/" in capsys.readouterr().out
    assert pictures("data/chartqa", "train").keys().isdisjoint(pictures("data/chartqa", "val"))


def test_sources_of_a_yaml(here, capsys):
    """Catches a YAML that prepares something else than the command line, and a key that is read by nothing."""
    write_llava(here), write_chartqa_tables(here)
    config = {
        "llava": {"files": ["llava_v1_5_mix665k.json"], "image_root": "images"},
        "charts": {"files": ["ChartQA/data"]},
    }
    Path("sources.yaml").write_text(yaml.safe_dump(config))
    assert prepare("--sources", "sources.yaml", "--val-share", "0.1") == 0
    by_yaml = {name: json.loads(Path("data", name, "preparation.json").read_text()) for name in config}
    shutil.rmtree("data")
    arguments = ["--source", "llava=llava_v1_5_mix665k.json,images", "--source", "charts=ChartQA/data"]
    assert prepare(*arguments, "--val-share", "0.1") == 0
    for name, manifest in by_yaml.items():
        assert json.loads(Path("data", name, "preparation.json").read_text()) == manifest
    config["llava"]["root"] = "images"
    Path("sources.yaml").write_text(yaml.safe_dump(config))
    assert "sources.yaml: llava: expected 'files'" in refused(capsys, "--sources", "sources.yaml")


def test_absent_pictures(here, capsys):
    """Catches ShareGPT4V without SAM, or LLaVA without OCR-VQA, that cannot be prepared, or that shrinks without a word."""
    write_llava(here, absent=True), write_sharegpt4v(here, absent=True)
    sources = ["--source", "llava=llava_v1_5_mix665k.json,images"]
    sources += ["--source", "sharegpt4v=sharegpt4v_instruct_gpt4-vision_cap100k.json,images"]
    line = refused(capsys, *sources)
    assert f"2 of 11 scenes are not under --image-root images: {', '.join(OCR_VQA)}; --allow-missing" in line
    assert not Path("data").exists() or not any(Path("data").iterdir())
    assert prepare(*sources, "--allow-missing") == 0
    printed = capsys.readouterr().out
    assert f"3 of 8 scenes are absent and left out (--allow-missing): 3 of sam/images ({', '.join(SAM)})" in printed
    questions = datasets.load_dataset("data/sharegpt4v", split="train")
    assert len(questions) == 5 and not set(SAM) & set(questions["scene_id"])
    assert "3 of 8 scenes are absent" in Path("data/sharegpt4v/README.md").read_text()
    assert json.loads(Path("data/sharegpt4v/preparation.json").read_text())["absent"] == SAM
    shutil.rmtree("images/coco"), shutil.rmtree("images/wikiart"), shutil.rmtree("images/web-landmark")
    shutil.rmtree("data")
    assert "there is nothing to prepare" in refused(capsys, *sources[2:], "--allow-missing")


def test_one_bad_record(here, capsys):
    """Catches 665 thousand records that are refused for one, and one that goes without a word."""
    path = write_llava(here)
    records = json.loads(path.read_text())
    records[1]["conversations"][1]["value"] = " "
    records[2]["conversations"].pop(0)
    records[4] = "nonsense"
    records[5]["conversations"] = turns("<image>\n", "Noise")
    path.write_text(json.dumps(records))
    arguments = ["--source", "llava=llava_v1_5_mix665k.json,images"]
    line = refused(capsys, *arguments, "--strict")
    assert "llava_v1_5_mix665k.json: row 1: an answer is empty (--strict)" in line
    assert prepare(*arguments) == 0
    printed = capsys.readouterr().out
    assert "1 records left out (row 1): an answer is empty" in printed
    assert "1 records left out (row 2): 'conversations' is not (human, gpt) pairs of turns" in printed
    assert "1 records left out (row 4): it is a str" in printed
    assert "1 records left out (row 5): a question is empty" in printed
    scenes = datasets.load_dataset("data/llava", split="train")["scene_id"]
    assert COCO[0] in scenes and COCO[1] not in scenes and COCO[3] in scenes


def test_changed_columns(here, capsys):
    """Catches a dataset of the Hub whose columns changed read as something else, or an error that names no column."""
    folder = write_chartqa_tables(here, ["train"])
    features = datasets.Features({("question" if k == "query" else k): v for k, v in CHARTQA_FEATURES.items()})
    row = {"image": {"bytes": encoded("a"), "path": None}, "question": "?", "label": ["1"], "human_or_machine": 0}
    path = write_table(folder / "train-00001-of-00002-7302bae5e425bbc7.parquet", [row], features)
    line = refused(capsys, "--source", "chartqa=ChartQA/data")
    assert str(path.relative_to(here)) in line and "its columns are image (image), question (string)" in line
    assert "HuggingFaceM4/ChartQA: image (image), query (string), label (strings)" in line
    # A column of another kind.
    row = row | {"query": "?", "label": "1"}
    features = CHARTQA_FEATURES | {"label": datasets.Value("string")}
    write_table(path, [{name: row[name] for name in features}], datasets.Features(features))
    assert "label (string), human_or_machine" in refused(capsys, "--source", "chartqa=ChartQA/data")
    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path.relative_to(here)}: not a Parquet file" in refused(capsys, "--source", "chartqa=ChartQA/data")


def test_picture_in_two_sources(here, capsys):
    """Catches an evaluation about a picture that another source trains on, and one name for the pictures of two files."""
    write_picture(here / "images" / "a.jpg"), write_picture(here / "images" / "b.jpg")
    both = [{"id": name, "image": f"{name}.jpg", "conversations": turns("What?", "Noise")} for name in "ab"]
    write_json(here / "one.json", both), write_json(here / "two_val.json", both[:1])
    (here / "images" / "train").symlink_to(here / "images")
    for other in ("two=two_val.json,images", "two=two_val.json,images/train"):
        line = refused(capsys, "--source", "one=one.json,images", "--source", other)
        assert "the picture a.jpg is named in two sources, one (split train) and two (split val)" in line
    write_docvqa_tables(here, ["train"]), write_docvqa(here)
    write_picture(here / "spdocvqa_images" / "documents" / "trainbl0027_1.png")
    line = refused(capsys, "--source", "docvqa=DocVQA/DocVQA,spdocvqa_qas/train_v1.0_withQT.json,spdocvqa_images")
    assert (
        "the picture documents/trainbl0027_1.png is named in DocVQA/DocVQA/train-00000-of-00001.parquet and in" in line
    )
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what to read: --source NAME=FILE,ROOT"),
        (["--source", "one.json"], "expected NAME=FILE,ROOT"),
        (["--source", "a/b=one.json,images"], "'a/b' is no name"),
        (["--source", "a=one.json,images", "--source", "a=one.json,images"], "there are two sources a"),
        (["--source", "a=one.json"], "one.json names its pictures; say last in which folder they are"),
        (["--source", "a=two.json,images"], "there is no two.json"),
        (["--source", "docvqa=lmms-lab/DocVQA"], "hf download lmms-lab/DocVQA --repo-type dataset"),
        (["--source", "a=one.json,pictures"], "there is no folder pictures"),
        (["--source", "a=images"], "the folder images holds no Parquet files"),
        (["--source", "docvqa=one.json,images"], "given as the source docvqa, but its records are those of instruct"),
        (["--source", "a=one.json,images", "--image-root", "images"], "do not go with --source"),
        (["--annotations", "one.json"], "say in which folder they are"),
        (["--sources", "none.yaml"], "none.yaml: cannot be read"),
        (["--source", "a=one.json,images", "--source", "b=one.json,images", "--push-to-hub", "o/n"], "upload one at a time"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_read(here, capsys, arguments, words):
    """Catches a mistake on the command line that ends in a traceback or in a repo of something else."""
    write_picture(here / "images" / "a.jpg")
    record = {"id": "a", "image": "a.jpg", "conversations": turns("What?", "Noise")}
    write_json(here / "one.json", [record])
    assert words in refused(capsys, *arguments)


def test_val_share():
    """Catches questions of one picture on both sides, a share that is another one with other data beside it, and a split
    without a picture, or of absent ones."""
    scenes = [SceneInput.of(f"coco/{number}.jpg", [{"question": "a"}, {"question": "b"}]) for number in range(2000)]
    split = split_validation(Annotations({"train": scenes, "test": scenes[:1]}), 0.05).scenes
    val = {scene.scene_id for scene in split["val"]}
    assert 60 <= len(val) <= 140 and len(split["train"]) == 2000 - len(val) and split["test"] == scenes[:1]
    assert all(len(scene.questions) == 2 for scene in split["val"])
    # A picture's side depends on its own name alone: the others, and its folder, do not count.
    some = [SceneInput.of(scene.scene_id.removeprefix("coco/"), [], None) for scene in scenes[500:1500]]
    again = split_validation(Annotations({"train": some}), 0.05).scenes["val"]
    assert {f"coco/{scene.scene_id}" for scene in again} == val & {scene.scene_id for scene in scenes[500:1500]}
    for share, taken in ((0.0001, "none"), (0.9999, "all")):
        few = split_validation(Annotations({"train": scenes[:3]}), share)
        assert list(few.scenes) == ["train"] and f"of 3 scenes to train on it would take {taken}" in few.notes[0]
    # Absent pictures are not what is held out.
    there = split_validation(Annotations({"train": scenes}), 0.05, lambda scene: scene.scene_id not in val)
    assert list(there.scenes) == ["train"] and len(there.scenes["train"]) == 2000


def test_damaged_picture_of_a_table(here, capsys):
    """Catches a row that stops all others, or that is stored as it is."""
    folder = write_docvqa_tables(here, ["train"])
    path = folder / "train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path).to_pylist()
    table[2]["image"]["bytes"] = table[2]["image"]["bytes"][:40]
    write_table(path, table, DOCVQA_FEATURES)
    assert prepare("--source", "docvqa=DocVQA/DocVQA") == 0
    assert f"{path.name}: row 2: not a readable picture" in capsys.readouterr().out
    assert len(datasets.load_dataset("data/docvqa", split="train")) == 2
    assert os.listdir("data") == ["docvqa"]
