# SPDX-License-Identifier: Apache-2.0
"""Rooms whose cameras, boxes and walls are known, and what a reader makes of them."""

from dataclasses import replace

import numpy as np

from data_scripts.readers.boxes import Box
from data_scripts.readers.frames import View
from data_scripts.synthetic import Settings, build_scene
from data_scripts.synthetic.layout import HEIGHT, Scene


CROP = 8  # rows


def room(index: int = 0, views: int = 3) -> Scene:
    """A room whose pictures are 64 wide and 48 high: in a square one width and height could be exchanged unseen."""
    scene = build_scene(Settings(3, views, 64, 7, 0, (5, 6)), index)
    camera = scene.camera.copy()
    camera[1, 2] -= CROP
    rows = slice(CROP, -CROP)
    return replace(
        scene,
        camera=camera,
        rgb=scene.rgb[:, rows],
        depth=scene.depth[:, rows],
        ids=scene.ids[:, rows],
        seen=scene.seen,
    )


def assert_true(view: View, scene: Scene, number: int, world: np.ndarray, exact_picture: bool) -> None:
    """Camera within 1 mm and 0.1 pixels, depth within 1 mm, picture of the right frame the right way up.

    Args:
        world: `[4, 4]` world of the reader to the room's aligned frame.
    """
    truth = scene.poses[number] @ world
    found = view.world_to_camera
    np.testing.assert_allclose(found[:3, :3], truth[:3, :3], atol=2e-4)
    camera_place = [-pose[:3, :3].T @ pose[:3, 3] for pose in (found, truth)]
    assert np.linalg.norm(camera_place[0] - camera_place[1]) < 1e-3
    np.testing.assert_allclose(view.intrinsics, scene.camera, atol=1e-2)
    np.testing.assert_allclose(view.depth_intrinsics, scene.camera, atol=1e-2)
    # Points all over the view, one to six metres away, in the world and back.
    u, v, z = (axis.ravel() for axis in np.meshgrid([0, 20, 63], [0, 30, 47], [1.0, 3.0, 6.0]))
    points = np.linalg.inv(scene.camera) @ np.stack([u * z, v * z, z])
    points = np.linalg.inv(truth) @ np.vstack([points, np.ones(len(z))])
    seen = view.intrinsics @ (found @ points)[:3]
    assert np.abs(seen[:2] / seen[2] - [u, v]).max() < 0.1
    assert np.abs(view.depth - scene.depth[number] / 1000).max() < 1e-3
    difference = np.abs(np.asarray(view.image, dtype=float) - scene.rgb[number])
    assert difference.max() == 0 if exact_picture else difference.mean() < 4


def true_corners(scene: Scene, index: int, world: np.ndarray) -> np.ndarray:
    """`[8, 3]` corners of a piece of furniture in the reader's world."""
    piece = scene.pieces[index]
    low, high = piece.parts[:, 4].min(), piece.parts[:, 5].max()
    corners = [[*corner, z, 1] for corner in piece.corners for z in (low, high)]
    return (np.linalg.inv(world) @ np.array(corners).T).T[:, :3]


def wall_corners(scene: Scene, world: np.ndarray) -> list[np.ndarray]:
    """The four corners `[4, 3]` of each of the four walls."""
    x, y = scene.size / 2
    floor = [(-x, -y), (x, -y), (x, y), (-x, y)]
    walls = [[[*end, z, 1] for end in (a, b) for z in (0, HEIGHT)] for a, b in zip(floor, floor[1:] + floor[:1])]
    return [(np.linalg.inv(world) @ np.array(wall).T).T[:, :3] for wall in walls]


def same_points(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sets of points are the same within a millimetre, in whatever order."""
    distance = np.linalg.norm(one[:, None] - other, axis=-1)
    return bool((distance.min(axis=0) < 1e-3).all() and (distance.min(axis=1) < 1e-3).all())


def assert_boxes_hold_what_the_pictures_show(scene: Scene, boxes: list[Box], views: list[View]) -> None:
    """Every pixel of an object, placed in the world by its depth and the camera read, lies in the object's box."""
    checked = 0
    for number, view in enumerate(views):
        v, u = np.nonzero(scene.ids[number] >= 0)
        z = view.depth[v, u]
        points = np.linalg.inv(view.depth_intrinsics) @ np.stack([u * z, v * z, z])
        points = (np.linalg.inv(view.world_to_camera) @ np.vstack([points, np.ones(len(z))]))[:3].T
        for index, box in enumerate(boxes):
            inside = np.abs((points[scene.ids[number][v, u] == index] - box.center) @ box.axes.T)
            assert (inside <= box.size / 2 + 4e-3).all()  # depth is in whole millimetres along slanted rays
            checked += len(inside)
    assert checked > 500
