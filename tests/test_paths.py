# SPDX-License-Identifier: Apache-2.0
"""Names in data become paths under their root, or are refused: `data_scripts.paths`, and that every reader goes that way."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scannet_dump import write_scan

from data_scripts.builders.arkit_actions import ArkitActions
from data_scripts.builders.instruct import Instruct
from data_scripts.builders.records import Records
from data_scripts.builders.scanqa import ScanQA
from data_scripts.paths import UnsafePathError, path_fault, resolve_inside
from data_scripts.preparation.annotations import SceneInput
from data_scripts.preparation.base import Options, Sources
from data_scripts.preparation.scans import scan_folders
from data_scripts.preparation.scene_reading import read_scenes, scene_digest
from data_scripts.readers.arkitscenes import open_scan


OUTSIDE = (
    "../outside",
    "a/../../outside",
    "/etc",
    "\\\\server\\share",
    "..\\outside",
    "C:\\outside",
    "c:outside",
    "..",
    "a/..",
)
NO_NAMES = (
    "",
    ".",
    "./",
    "\0",
    "a\0b",
    "\ud800",
    "a\nb",
    "\x7f",
    "a" * 256,
    "é" * 128,
    "a/" * 600 + "a",
    None,
    3,
    ["a"],
)
NAMES = ("scene0000_00", "coco/train2017/1.jpg", "./a.jpg", "a b/…é.png", "..a", "a..", "...", "ab:c" * 20, "a" * 255)


@pytest.mark.parametrize("name", [*OUTSIDE, *NO_NAMES], ids=ascii)
def test_names_that_are_refused(name, tmp_path):
    """Catches a name that leads out of the root, and one that the system answers by an error of its own (ValueError of a NUL,
    UnicodeEncodeError of a surrogate, OSError of 256 bytes)."""
    with pytest.raises(UnsafePathError, match="is not a path under") as refused:
        resolve_inside(tmp_path, name)
    assert str(tmp_path.parent) not in str(refused.value)  # it may be published


def test_names_that_are_taken(tmp_path):
    """Catches names of real releases refused, and a scene that has two names, of which one is in train and one in val."""
    for name in NAMES:
        assert resolve_inside(tmp_path, name) == tmp_path / name
    for name in ("scene0000_00/", "./scene0000_00", "a/scene0000_00", " "):
        assert path_fault(name, nested=False) is not None


@settings(derandomize=True, deadline=None, max_examples=500, database=None)
@given(name=st.text(st.sampled_from("./\\a:C\0\n ~é\ud800") | st.characters(codec=None), max_size=12))
@example(name="a/./../..")
def test_any_name(name):
    """Catches a spelling of "upwards" that was not thought of, and a name that no system call takes."""
    root = Path("/disk/of/data")
    try:
        path = resolve_inside(root, name)
    except UnsafePathError:
        return
    assert os.path.normpath(path).startswith(f"{root}/") and os.path.normpath(
        path.as_posix().replace("\\", "/")
    ) != str(root)
    assert not path.is_file()  # neither ValueError nor OSError


@pytest.fixture
def planted(tmp_path):
    """A root, and beside it a scan, a picture and a room that would do."""
    for folder in ("3dod/Training", "images"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    write_scan(tmp_path / "outside", "scene0000_00")
    (tmp_path / "outside" / "a.json").write_text("{}")
    picture = tmp_path / "outside" / "scene0000_00" / "color" / "0.jpg"
    return tmp_path / "root", picture


@pytest.mark.parametrize("spelling", ["../outside", "{absolute}", "b/../../outside", "..\\outside"])
def test_no_reader_leaves_its_root(planted, spelling, tmp_path):
    """Catches a reader, or the list of a scene's files, that joins a name by itself: what is beside the root, and would do, is
    neither read nor taken into the fingerprint."""
    root, picture = planted
    outside = spelling.format(absolute=tmp_path / "outside")
    name = f"{outside}/scene0000_00/color/0.jpg"
    geometry = Options(geometry="optional", num_views=1)
    tries = {
        "scan": (ScanQA, Sources(scannet_root=(root,)), SceneInput(f"{outside}/scene0000_00")),
        "picture": (Instruct, Sources(image_root=root), SceneInput(name)),
        "record": (Records, Sources(image_root=root), SceneInput("a", "[]", {"images": [name], "geometry": None})),
        "video": (ArkitActions, Sources(arkitscenes_root=root), SceneInput(f"../../{outside}/scene0000_00")),
    }
    (tmp_path / "scenes").mkdir()
    for what, (builder, sources, scene) in tries.items():
        with pytest.raises(UnsafePathError, match="is not a path under"):
            list(builder.scene_files(sources, scene))
        task = (scene, scene_digest(builder, sources, geometry, scene))
        (failure,) = read_scenes(builder, sources, geometry, [task], tmp_path / "scenes", 1, strict=False).left_out
        assert "is not a path under" in failure["reason"], what
    with pytest.raises(UnsafePathError):
        open_scan(root, f"../../{outside}/scene0000_00")
    with pytest.raises(UnsafePathError):
        scan_folders((root,), f"{outside}/scene0000_00")


def test_links_are_trusted(planted, tmp_path):
    """Catches a check of where links lead: clusters keep scans as links to another disk."""
    root, picture = planted
    (root / "scene0000_00").symlink_to(tmp_path / "outside" / "scene0000_00")
    (root / "images" / "0.jpg").symlink_to(picture)
    sources = Sources(scannet_root=(root,), image_root=root / "images")
    assert len(ScanQA.read_scene(sources, Options(num_views=1), SceneInput("scene0000_00")).images) == 1
    assert Instruct.read_scene(sources, Options(), SceneInput("0.jpg")).images == [picture.read_bytes()]
