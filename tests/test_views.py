# SPDX-License-Identifier: Apache-2.0
"""Which frames of a scan become views."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest

from data_scripts.files import UnreadableFileError
from data_scripts.preparation.view_selection import (
    BLURRED,
    blur,
    central,
    select_coverage,
    select_views,
    spread,
    visible_voxels,
)
from data_scripts.readers.frames import Frame
from data_scripts.synthetic import layout, render
from data_scripts.synthetic.layout import sample_labels, sample_scene


SIDE = 84


class RoomScan:
    """A reader of frames that are rendered in memory: pictures of squares, true depth and poses."""

    def __init__(self, scene_id: str, poses: np.ndarray, depth: np.ndarray, camera: np.ndarray):
        self.scene_id, self.folder = scene_id, Path(scene_id)
        self.depth, self.camera = depth, camera
        self.all = [Frame(str(20 * number), None, pose, True, True) for number, pose in enumerate(poses)]
        blocks = np.random.default_rng(0).integers(0, 255, (SIDE // 12, SIDE // 12))
        self.pictures = [PIL.Image.fromarray(np.kron(blocks, np.ones((12, 12))).astype(np.uint8))] * len(poses)

    def load_depth(self, frame):
        return self.depth[self.all.index(frame)], self.camera

    def load_image(self, frame, at_least=None):
        picture = self.pictures[self.all.index(frame)]
        if picture is None:
            raise UnreadableFileError(f"{frame.frame_id}.jpg", "cut short")
        return picture


def walk(rng: np.random.Generator, size: np.ndarray, frames: int) -> np.ndarray:
    """Poses of somebody who walks once round the middle of the room and looks about, as scans are made by hand."""
    start, turn = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.3) * 2 * np.pi
    swing = np.cumsum(rng.normal(0, 0.35, frames))
    pitch = -0.35 + 0.25 * np.sin(np.cumsum(rng.normal(0.3, 0.2, frames)))
    poses = []
    for frame in range(frames):
        angle = start + turn * frame / frames
        place = np.array([*(0.28 * size * [np.cos(angle), np.sin(angle)]), 1.5 + 0.1 * rng.normal()])
        yaw = angle + swing[frame]
        level = np.cos(pitch[frame])
        poses.append(render.look_at(place, place + [np.cos(yaw) * level, np.sin(yaw) * level, np.sin(pitch[frame])]))
    return np.stack(poses)


def scan_of_room(number: int, frames: int = 40) -> RoomScan:
    rng = np.random.default_rng([5, number])
    labels = sample_labels(rng, int(rng.integers(3, 6)), (0.45, 0.33, 0.22))
    scene = sample_scene(rng, labels, 4, 28)
    quads, normals, _, _ = layout.scene_faces(scene.size, scene.pieces)
    camera = render.intrinsics(SIDE, layout.FIELD_OF_VIEW)
    poses = walk(rng, scene.size, frames)
    return RoomScan(f"room{number}", poses, render.rasterize(quads, normals, poses, camera, SIDE)[0], camera)


def voxels(scan: RoomScan, frames: list[Frame]) -> int:
    return len(np.unique(np.concatenate([visible_voxels(scan, frame) for frame in frames])))


@pytest.mark.parametrize("rooms", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_coverage_sees_more(rooms, monkeypatch, capsys):
    """Catches a coverage that is no better than even spacing: poses taken for their inverse, depth in other units, a greedy
    step that counts what is seen already."""
    monkeypatch.setattr(layout, "ATTEMPTS", 1)
    seen = []
    for number in range(rooms):
        scan = scan_of_room(number)
        choices = [select_views(scan, scan.all, 4, how, 200)[0] for how in ("uniform", "random", "coverage")]
        assert [len(set(frame.frame_id for frame in chosen)) for chosen in choices] == [4, 4, 4]
        seen.append([voxels(scan, chosen) for chosen in choices])
    uniform, random, coverage = np.array(seen).T
    with capsys.disabled():
        print(
            f"\ncoverage over uniform {(coverage / uniform).mean():.3f}, over random {(coverage / random).mean():.3f}"
        )
    assert ((coverage >= uniform) & (coverage >= random)).mean() >= 0.95
    assert (coverage / uniform).mean() >= 1.1


def test_voxels_are_where_things_are():
    """Catches a point placed on the wrong side of the camera, or at its distance instead of its depth."""
    pose = render.look_at(np.array([0.0, 0, 1]), np.array([3.0, 0, 1]))
    camera = render.intrinsics(9, 60.0)
    scan = RoomScan("wall", pose[None], np.full((1, 9, 9), 3.1), camera)
    codes = visible_voxels(scan, scan.all[0])
    cells = [((codes >> shift) & ((1 << 20) - 1)) - (1 << 19) for shift in (40, 20, 0)]
    assert set(cells[0].tolist()) == {15}  # x = 3.1 m, whatever the column
    assert cells[1].min() == -8 and cells[1].max() == 7  # 3.1 m times the tangent of 30 degrees, a bit less


def test_coverage_passes_over_bad_pictures(monkeypatch):
    """Catches black, blurred and broken pictures that become views, and a scan of nothing else that becomes a scene."""
    monkeypatch.setattr(layout, "ATTEMPTS", 1)
    scan = scan_of_room(0, frames=12)
    best = [frame.frame_id for frame in select_views(scan, scan.all, 3, "coverage", 200)[0]]
    bad = [next(i for i, frame in enumerate(scan.all) if frame.frame_id == name) for name in best]
    scan.pictures[bad[0]] = PIL.Image.new("RGB", (SIDE, SIDE), (6, 6, 6))
    scan.pictures[bad[1]] = scan.pictures[bad[1]].filter(PIL.ImageFilter.GaussianBlur(4))
    scan.pictures[bad[2]] = None
    chosen, rejected = select_views(scan, scan.all, 3, "coverage", 200)
    assert len(chosen) == 3 and not {frame.frame_id for frame in chosen} & set(best)
    assert sorted(line.split(": ")[1] for line in rejected) == ["black", "blurred", "cut short"]
    scan.pictures = [None] * 12
    with pytest.raises(UnreadableFileError, match="no frame is usable"):
        select_views(scan, scan.all, 3, "coverage", 200)


def test_blur_is_told_from_lack_of_texture():
    """Catches a plain wall taken for a blurred picture, and motion along one direction taken for sharp."""
    rng = np.random.default_rng(0)
    wall = PIL.Image.fromarray(np.rint(180 + rng.normal(0, 1.5, (256, 300))).astype(np.uint8))
    edges = PIL.Image.fromarray(np.kron(rng.integers(0, 255, (16, 20)), np.ones((16, 16))).astype(np.uint8))
    for picture in (wall, edges):
        assert blur(np.asarray(picture, dtype=np.float32)) < 0.4
    for blurred in (PIL.ImageFilter.GaussianBlur(4), PIL.ImageFilter.BoxBlur((8, 0))):
        assert blur(np.asarray(edges.filter(blurred), dtype=np.float32)) > BLURRED


def test_coverage_fills_up():
    """Catches fewer views than asked for once everything is seen, and the same frame twice."""
    seen = [np.array([1, 2, 3]), np.array([1]), None, np.array([2, 3]), np.array([], dtype=np.int64)]
    assert sorted(select_coverage(seen, 3, lambda index: True)) == [0, 1, 3]
    assert select_coverage(seen, 1, lambda index: index != 0) == [3]


def test_random_is_seeded():
    """Catches a choice that changes between runs, or is the same in every scene."""
    poses = np.tile(np.eye(4), (50, 1, 1))
    scans = [RoomScan(name, poses, np.ones((50, 2, 2)), np.eye(3)) for name in ("a", "b")]

    def chosen(scan, seed):
        return [frame.frame_id for frame in select_views(scan, scan.all, 5, "random", 200, seed)[0]]

    assert chosen(scans[0], 0) == chosen(scans[0], 0)
    assert len({tuple(chosen(scan, seed)) for scan in scans for seed in (0, 1)}) == 4


def test_view_0_is_the_most_central():
    """Catches a view at the edge of the scan as the frame of reference, and the others out of order."""
    poses = [render.look_at(np.array([x, 0.0, 1.5]), np.array([x, 3.0, 1.0])) for x in (0, 4.0, 2, 1, 3)]
    assert central(poses) == 2
    turned = [render.look_at(np.zeros(3), np.array([np.cos(a), np.sin(a), 0])) for a in (0.0, 1.2, 0.5)]
    assert central(turned) == 2
    scan = RoomScan("row", np.stack(poses), np.ones((5, 2, 2)), np.eye(3))
    frames = [frame.frame_id for frame in select_views(scan, scan.all, 5, "uniform", 200)[0]]
    assert frames == ["40", "0", "20", "60", "80"]


def test_spread_and_max_frames():
    """Catches a selection that clusters or repeats, and candidates that are cut off instead of thinned out."""
    assert spread(3, 8) == [0, 1, 2] and spread(3, 1) == [1]
    for wanted in range(1, 101):
        indices = spread(100, wanted)
        gaps = np.diff(indices)
        assert len(set(indices)) == wanted and (wanted == 1 or gaps.max() - gaps.min() <= 1)
    scan = RoomScan("row", np.tile(np.eye(4), (100, 1, 1)), np.ones((100, 2, 2)), np.eye(3))
    frames = [int(frame.frame_id) // 20 for frame in select_views(scan, scan.all, 50, "random", 10)[0]]
    assert sorted(frames) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
