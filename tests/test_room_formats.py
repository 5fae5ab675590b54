# SPDX-License-Identifier: Apache-2.0
"""A set of rooms in every raw format: official names, the same room in each, the same bytes for the same seed."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_scripts import rooms
from data_scripts.readers.arkitscenes import find_scans, open_scan, read_sky_directions
from data_scripts.readers.roomplan import read_captured_room
from data_scripts.readers.scannet import open_scan as open_scannet
from data_scripts.synthetic import FORMATS, Settings, build_scene, generate, scene_name, split_of_scenes


SETTINGS = Settings(scenes=5, views=2, image_size=40, seed=3, instruct_images=0, formats=FORMATS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rooms") / "all"
    generate(SETTINGS, path, progress=False)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_format_holds_the_same_room(folder):
    """Catches a room that is another one in another format, and a split that differs between them."""
    places = find_scans(folder / "arkitscenes")
    assert [place.layout for place in places.values()] == ["3dod"] * SETTINGS.scenes
    for index, (split, (video, place)) in enumerate(zip(split_of_scenes(SETTINGS), places.items(), strict=True)):
        assert place.split == ("Training" if split == "train" else "Validation")
        scene = build_scene(SETTINGS, index)
        turned = open_scan(folder / "arkitscenes", video)
        raw_layout = type(turned)(folder / "arkitscenes" / "raw" / place.split / video, turned.sky_direction)
        scans = [open_scannet(folder / name / scene_name(index)) for name in ("scannet", "scannet_padded", "sens")]
        frames = open_scannet(folder / "scannet_25k" / scene_name(index))  # which states no alignment
        for scan, world in [
            *((scan, np.eye(4)) for scan in scans),
            *((s, scene.alignment) for s in (frames, turned, raw_layout)),
        ]:
            for frame, truth in zip(scan.frames(), scene.poses, strict=True):
                np.testing.assert_allclose(frame.world_to_camera, truth @ world, atol=5e-4)
        boxes, _ = turned.boxes()
        objects = [
            box for box in read_captured_room(folder / "roomplan" / f"{video}.json").boxes() if box.kind == "object"
        ]
        for box, other in zip(boxes, objects, strict=True):
            np.testing.assert_allclose(np.sort(box.corners, axis=0), np.sort(other.corners, axis=0), atol=1e-3)


def test_files_follow_the_official_formats(folder):
    """Catches a missing or additional file, a wrong name and a wrong number of columns."""
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "arkitscenes",
        "instruct",
        "roomplan",
        "scanqa",
        "scannet",
        "scannet_25k",
        "scannet_padded",
        "sens",
        "sqa3d",
    }
    assert sorted(path.name for path in (folder / "sens" / "scene0001_00").iterdir()) == [
        "scene0001_00.sens",
        "scene0001_00.txt",
        "scene0001_00_vh_clean_2.ply",
    ]
    frames = folder / "scannet_25k" / "scene0001_00"
    kinds = {"color": "jpg", "depth": "png", "instance": "png", "label": "png", "pose": "txt"}
    assert {path.name for path in frames.iterdir()} == {*kinds, "intrinsics_color.txt", "intrinsics_depth.txt"}
    for kind, suffix in kinds.items():
        assert {path.name for path in (frames / kind).iterdir()} == {f"{n}.{suffix}" for n in ("000000", "000100")}
    assert set(read_sky_directions(folder / "arkitscenes")) == {str(40_000_000 + index) for index in range(5)}
    assert len(set(read_sky_directions(folder / "arkitscenes").values())) > 1
    for layout in ("3dod", "raw"):
        (scan,) = (folder / "arkitscenes" / layout).glob("*/40000001")
        files = {path.name for path in scan.iterdir()}
        common = {"40000001_3dod_annotation.json", "40000001_3dod_mesh.ply"}
        content = {"lowres_wide", "lowres_depth", "lowres_wide_intrinsics", "lowres_wide.traj"}
        assert files == common | ({"40000001_frames"} if layout == "3dod" else content | {"confidence"})
        content_folder = scan / "40000001_frames" if layout == "3dod" else scan
        names = {path.stem for path in (content_folder / "lowres_wide").iterdir()}
        assert len(names) == 2 and all(re.fullmatch(r"40000001_\d+\.\d{3}", name) for name in names)
        for name, suffix in (("lowres_depth", ".png"), ("lowres_wide_intrinsics", ".pincam")):
            assert {path.name for path in (content_folder / name).iterdir()} == {f"{stem}{suffix}" for stem in names}
        (depth, _) = (content_folder / "lowres_depth").iterdir()
        assert np.asarray(PIL.Image.open(depth)).dtype == np.uint16
        pincam = next((content_folder / "lowres_wide_intrinsics").iterdir()).read_text().split()
        assert pincam[:2] == ["40", "40"] and len(pincam) == 6
        lines = (content_folder / "lowres_wide.traj").read_text().splitlines()
        assert all(len(line.split()) == 7 for line in lines)
        times = [float(line.split()[0]) for line in lines]
        assert len(times) == 6 and np.abs(np.diff(times) - 0.1).max() < 0.01  # ten poses per second
        annotation = json.loads((scan / "40000001_3dod_annotation.json").read_text())
        for row in annotation["data"]:
            assert {"uid", "label", "segments"} <= set(row)
            assert {key: len(value) for key, value in row["segments"]["obbAligned"].items()} == {
                "centroid": 3,
                "axesLengths": 3,
                "normalizedAxes": 9,
            }
    room = json.loads((folder / "roomplan" / "40000001.json").read_text())
    lists = {"walls", "doors", "windows", "openings", "floors", "objects"}
    assert set(room) == lists | {"version", "story", "sections"}
    surface = {"category", "completedEdges", "confidence", "curve", "dimensions", "identifier", "parentIdentifier"}
    assert all(
        set(wall) == surface | {"polygonCorners", "story", "transform"} for wall in room["walls"] + room["floors"]
    )
    assert all(
        re.fullmatch(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", wall["identifier"]) for wall in room["walls"]
    )


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    """Catches ids, times or compression that depend on the process, the run, or the other formats that are written."""
    generate(SETTINGS, tmp_path / "two", workers=2, progress=False)
    assert tree(folder) == tree(tmp_path / "two")
    alone = Settings(**{**vars(SETTINGS), "formats": ("arkitscenes_raw",)})
    generate(alone, tmp_path / "alone", progress=False, preview=True)
    assert (tmp_path / "alone" / "preview.png").is_file()
    assert tree(tmp_path / "alone" / "arkitscenes" / "raw") == tree(folder / "arkitscenes" / "raw")


def test_the_command_writes_the_formats_asked_for(tmp_path, capsys):
    """Catches an option that is not passed on, another default than ScanNet, and an unknown format found out late."""
    arguments = ["--scenes", "3", "--views", "1", "--image-size", "28", "--seed", "0", "--instruct-images", "0"]
    assert rooms.main([*arguments, "--output", str(tmp_path / "one"), "--formats", "roomplan", "sens"]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"README.md", "instruct", "roomplan", "scanqa", "sens", "sqa3d"}
    with pytest.raises(SystemExit):
        rooms.main([*arguments, "--output", str(tmp_path / "two"), "--formats", "matterport"])
    assert "matterport" in capsys.readouterr().err and not (tmp_path / "two").exists()
    with pytest.raises(ValueError, match="formats must be some of scannet, scannet_25k"):
        Settings(3, 1, 28, 0, 0, formats=())
