# SPDX-License-Identifier: Apache-2.0
"""The layouts ScanNet comes in: `scans` and `scans_test`, `scannet_frames_25k`, dumps with padded names; and half of it."""

import glob
import json
import shlex
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest
from docs_commands import commands
from room_truth import assert_true, room

from data_scripts.files import UnreadableFileError
from data_scripts.prepare import main
from data_scripts.readers.scannet import open_scan, scan_roots
from data_scripts.synthetic import (
    Settings,
    build_scene,
    generate,
    scannet_writer,
    scene_name,
    sens_writer,
    split_of_scenes,
)
from data_scripts.synthetic.writers import write_json


LAYOUTS = {
    "dump": scannet_writer.write_scan,
    "frames_25k": scannet_writer.write_frames_25k,
    "padded": scannet_writer.write_padded_scan,
    "sens": sens_writer.write_sens,
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Keeps what load_dataset caches out of the user's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


################
# Readers
################


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_views(tmp_path, layout):
    """Catches padded names without pose and depth, intrinsics looked for in one place only, and another world or camera
    in one layout than in the others."""
    scene = room()
    folder, others = tmp_path / "frames" / "scene0000_00", []
    LAYOUTS[layout](folder, scene)
    if layout == "frames_25k":  # its description and mesh are those of `scans`
        others = [tmp_path / "scans" / "scene0000_00"]
        others[0].mkdir(parents=True)
        scannet_writer.write_description(others[0], scene)
    scan = open_scan(folder, others)
    frames = scan.frames()
    step = {"dump": 20, "padded": 20, "frames_25k": 100, "sens": 1}[layout]
    assert [frame.frame_id for frame in frames] == [str(step * view) for view in range(3)]
    for number, frame in enumerate(frames):
        assert frame.complete
        view = scan.load(frame)
        assert_true(view, scene, number, world=np.eye(4), exact_picture=False)
        depth, camera = scan.load_depth(frame)
        assert np.array_equal(depth, view.depth) and np.array_equal(camera, view.depth_intrinsics)
    read = {path.name for path in scan.files()}
    assert f"{folder.name}.txt" in read and not {"label", "instance"} & {path.parent.name for path in scan.files()}
    if layout == "frames_25k":
        assert {"intrinsics_color.txt", "intrinsics_depth.txt"} <= read


def test_frames_without_their_own_intrinsics(tmp_path):
    """Catches a frame that borrows another one's camera, and one number under two names."""
    scannet_writer.write_padded_scan(tmp_path / "scene0000_00", room())
    (tmp_path / "scene0000_00" / "intrinsic" / "000020.txt").unlink()
    scan = open_scan(tmp_path / "scene0000_00")
    frames = scan.frames()
    assert [frame.has_intrinsics for frame in frames] == [True, False, True]
    assert scan.load(frames[1]).intrinsics is None and scan.load_depth(frames[1]) is None
    color = tmp_path / "scene0000_00" / "color"
    shutil.copy(color / "000020.jpg", color / "._000020.jpg")  # of an archive made on macOS
    shutil.copy(color / "000020.jpg", color / "20.jpg")
    with pytest.raises(UnreadableFileError, match="20.jpg: frame 20 is there twice, as 000020.jpg too"):
        open_scan(color.parent).frames()


def test_intrinsics_are_those_of_a_size_that_is_known(tmp_path):
    """Catches intrinsics of the sensor used for smaller pictures where nothing states the sensor's size, and intrinsics that
    were made smaller with the pictures being scaled once more."""
    folder = tmp_path / "scene0000_00"
    scene = room()
    scannet_writer.write_padded_scan(folder, scene)
    for path in (folder / "color").iterdir():  # half as large
        PIL.Image.open(path).resize((32, 24)).save(path)
    expected = scene.camera.copy()
    expected[:2] /= 2
    expected[:2, 2] -= 0.25
    view = open_scan(folder).load(open_scan(folder).frames()[0])
    np.testing.assert_allclose(view.intrinsics, expected, atol=1e-5)
    np.testing.assert_allclose(view.depth_intrinsics, scene.camera, atol=1e-5)
    (folder / "scene0000_00.txt").unlink()
    scan = open_scan(folder)
    with pytest.raises(UnreadableFileError, match="000000.txt: the principal point.*32 x 24; scene0000_00.txt, which"):
        scan.load(scan.frames()[0])
    for path in (folder / "intrinsic").iterdir():
        np.savetxt(path, expected)  # 3x3, of the pictures as they are now
    for described in (False, True):
        if described:
            scannet_writer.write_description(folder, scene)
        scan = open_scan(folder)
        view = scan.load(scan.frames()[0])
        np.testing.assert_allclose(view.intrinsics, expected, atol=1e-5)
        np.testing.assert_allclose(view.depth_intrinsics, scene.camera, atol=1e-5)


def test_roots(tmp_path):
    """Catches the test scans of an official download overlooked, and a root searched twice."""
    download = tmp_path / "ScanNet"
    for name in ("scans", "scans_test"):
        (download / name).mkdir(parents=True)
    both = (download / "scans", download / "scans_test")
    assert scan_roots([download]) == scan_roots([both[0]]) == scan_roots(both) == both
    assert scan_roots([both[1]]) == both[1:]
    assert scan_roots([tmp_path / "nowhere", tmp_path]) == (tmp_path / "nowhere", tmp_path)


################
# The command
################

SETTINGS = Settings(scenes=5, views=2, image_size=40, seed=3, instruct_images=0)
SPLITS = split_of_scenes(SETTINGS)
(TEST,) = (index for index, split in enumerate(SPLITS) if split == "test")


@pytest.fixture
def download(tmp_path, monkeypatch):
    """The folder in which the documented commands are run: ScanNet as downloaded, and the annotation files.

    The room of the test splits lies in `scans_test`, without alignment, and is one of ScanQA's `test_wo_obj`.
    """
    generate(SETTINGS, tmp_path / "rooms", progress=False)
    for index, split in enumerate(SPLITS):
        root = tmp_path / ("scans_test" if split == "test" else "scans")
        sens_writer.write_sens(root / scene_name(index), build_scene(SETTINGS, index))
    path = tmp_path / "scans_test" / scene_name(TEST) / f"{scene_name(TEST)}.txt"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines if not line.startswith("axisAlignment")))
    for path in (*(tmp_path / "rooms" / "sqa3d").iterdir(), *(tmp_path / "rooms" / "scanqa").iterdir()):
        shutil.copy(path, tmp_path / path.name)
    rows = json.loads((tmp_path / "ScanQA_v1.0_test_w_obj.json").read_text())
    (tmp_path / "ScanQA_v1.0_test_w_obj.json").unlink()
    keys = ("question", "question_id", "scene_id")
    write_json(tmp_path / "ScanQA_v1.0_test_wo_obj.json", [{key: row[key] for key in keys} for row in rows])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented(dataset: str, *more: str) -> int:
    """Runs the command of docs/data.md that prepares a dataset, in this process; later words override."""
    (command,) = (c for c, where in commands().items() if c.startswith(f"python -m data_scripts.prepare {dataset} "))
    words = shlex.split(command)[3:]
    words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    return main([*words, "--workers", "1", *more])


def assert_true_scenes(repo, steps: dict[int, int]):
    """Every room is there with the cameras it has; `steps` from its number to the distance between its frame numbers."""
    found = 0
    for split in datasets.load_dataset(str(repo), "scenes").values():
        for row in split:
            index = int(row["scene_id"][5:9])
            scene = build_scene(SETTINGS, index)
            world = scene.alignment if index == TEST else np.eye(4)
            for view, frame_id in enumerate(row["frame_ids"]):
                truth = scene.poses[int(frame_id) // steps.get(index, 1)] @ world
                np.testing.assert_allclose(row["geometry"]["R"][view], truth[:3, :3], atol=5e-4)
                np.testing.assert_allclose(row["geometry"]["t"][view], truth[:3, 3], atol=5e-4)
                np.testing.assert_allclose(row["geometry"]["K"][view], scene.camera, atol=1e-4)
            assert len(set(row["frame_ids"])) == SETTINGS.views
            found += 1
    assert found == SETTINGS.scenes


def test_documented_commands_on_the_official_download(download, capsys):
    """Catches the documented commands refusing ScanQA's test_wo_obj, whose scans are in `scans_test`, and its scans turned by an
    alignment of others; and a position of SQA3D in another world than the views."""
    assert documented("scanqa") == 0
    assert "(5 scenes good, 0 left out)" in capsys.readouterr().out
    assert_true_scenes("data/scanqa", {})
    questions = datasets.load_dataset("data/scanqa")
    assert set(questions) == {"train", "val", "test_wo_obj"} and questions["test_wo_obj"]["answers"][0] == []
    assert "--scannet-root scans scans_test" in (download / "data" / "scanqa" / "README.md").read_text()

    assert documented("sqa3d") == 0
    assert_true_scenes("data/sqa3d", {})
    rows = {row["question_id"]: row for split in datasets.load_dataset("data/sqa3d").values() for row in split}
    usual = download / "rooms" / "scannet"
    assert documented("sqa3d", "--scannet-root", str(usual), "--output", "data/usual") == 0
    expected = [row for split in datasets.load_dataset("data/usual").values() for row in split]
    assert len(rows) == len(expected)
    for row in expected:
        found = rows[row["question_id"]]
        assert found["position_frame"] == row["position_frame"] == "aligned"
        world = np.eye(4)
        if row["scene_id"] == scene_name(TEST):
            world = build_scene(SETTINGS, TEST).alignment
        np.testing.assert_allclose((world @ [*found["position"], 1])[:3], row["position"], atol=1e-5)


def test_one_repo_of_several_layouts(download, capsys):
    """Catches a layout that the command does not find or reads into another world, and the description and the mesh that
    `scannet_frames_25k` lacks not being taken from `scans`."""
    frames, padded, *_ = (index for index, split in enumerate(SPLITS) if split == "train")
    for index, layout in ((frames, "frames_25k"), (padded, "padded")):
        root = download / ("scannet_frames_25k" if layout == "frames_25k" else "scans")
        (download / "scans" / scene_name(index) / f"{scene_name(index)}.sens").unlink()
        if layout == "padded":
            shutil.rmtree(root / scene_name(index))
        LAYOUTS[layout](root / scene_name(index), build_scene(SETTINGS, index))
    roots = ["--scannet-root", ".", "scannet_frames_25k"]
    assert documented("sqa3d", *roots) == 0
    printed = capsys.readouterr().out
    assert "(5 scenes good, 0 left out)" in printed and "taken for aligned" not in printed
    assert_true_scenes("data/sqa3d", {frames: 100, padded: 20})
    rows = [row for split in datasets.load_dataset("data/sqa3d").values() for row in split]
    assert {row["position_frame"] for row in rows} == {"aligned"}

    # Without `scans` nothing states the alignment, nor the mesh's middle: both are said, once.
    train = next((download / "scans").glob(f"{scene_name(frames)}/*.txt"))
    train.unlink()
    (train.with_name(f"{scene_name(frames)}_vh_clean_2.ply")).unlink()
    assert documented("sqa3d", *roots, "--output", "data/other") == 0
    printed = capsys.readouterr().out
    name = scene_name(frames)
    assert (
        f"scans without <scene>.txt, taken for aligned: 1 in 1 scenes, the first in {name} (no {name}.txt)" in printed
    )
    assert "positions left in the annotation's own frame: " in printed
    rows = [row for split in datasets.load_dataset("data/other").values() for row in split]
    assert {row["scene_id"] for row in rows if row["position_frame"] == "annotation"} == {name}
    row = next(row for row in datasets.load_dataset("data/other", "scenes")["train"] if row["scene_id"] == name)
    scene = build_scene(SETTINGS, frames)
    truth = scene.poses[int(row["frame_ids"][0]) // 100] @ scene.alignment
    np.testing.assert_allclose(row["geometry"]["R"][0], truth[:3, :3], atol=5e-4)


def test_a_scan_in_two_roots_is_refused(download, capsys):
    """Catches one of two recordings of a scan taken without a word; a link to the same folder is no second one."""
    name = scene_name(SPLITS.index("train"))
    (download / "more").mkdir()
    (download / "more" / name).symlink_to(download / "scans" / name)
    assert documented("scanqa", "--scannet-root", "scans", "more") == 0
    (download / "more" / name).unlink()
    LAYOUTS["frames_25k"](download / "more" / name, room())
    assert documented("scanqa", "--scannet-root", "scans", "more", "--output", "data/two") == 2
    error = capsys.readouterr().err
    assert f"scene {name} is in two folders of --scannet-root" in error
    assert str(download / "scans" / name) in error and str(download / "more" / name) in error
    assert not (download / "data" / "two").exists()


def test_half_of_scannet(download, capsys):
    """Catches absent scenes that are left out unasked, in silence or without their questions, a split that came out empty, and
    half of a dataset taken for what is there later."""
    train = [scene_name(index) for index, split in enumerate(SPLITS) if split == "train"]
    shutil.move(download / "scans" / train[1], download / "later")
    shutil.rmtree(download / "scans_test")
    (download / "scans" / train[1]).mkdir()  # of a download that stopped, or of its mesh alone
    shutil.copy(next((download / "later").glob("*.ply")), download / "scans" / train[1])
    assert documented("scanqa") == 2
    error = capsys.readouterr().err
    assert (
        f"2 of 5 scenes are not under --scannet-root {download / 'scans'}: {scene_name(TEST)}, {train[1]}; " in error
    )
    assert "--allow-missing leaves them out" in error and not (download / "data").exists()

    assert documented("scanqa", "--allow-missing") == 0
    printed = capsys.readouterr().out
    said = f"2 of 5 scenes are absent and left out (--allow-missing): 2 ({scene_name(TEST)}, {train[1]})"
    assert f"note: {said}\n" in printed
    assert "note: the split 'test_wo_obj' is left out: none of its 1 scenes is there" in printed
    assert "(3 scenes good, 0 left out, 2 absent)" in printed
    card = (download / "data" / "scanqa" / "README.md").read_text()
    assert said in card and "2 scenes and their questions were left out" in card
    questions = datasets.load_dataset("data/scanqa")
    assert set(questions) == {"train", "val"}
    assert set(questions["train"]["scene_id"]) == {train[0], train[2]}
    assert documented("scanqa", "--allow-missing") == 0
    assert "already prepared: data/scanqa (3 scenes good, 0 left out, 2 absent)" in capsys.readouterr().out

    shutil.rmtree(download / "scans" / train[1])
    shutil.move(download / "later", download / "scans" / train[1])
    assert documented("scanqa", "--allow-missing") == 2
    assert "other inputs or options" in capsys.readouterr().err
    assert documented("scanqa", "--allow-missing", "--scannet-root", "data", "--output", "nothing") == 2
    assert "there is nothing to prepare" in capsys.readouterr().err
