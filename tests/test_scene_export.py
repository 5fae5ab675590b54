# SPDX-License-Identifier: Apache-2.0
"""`recipes.ask` with its pictures of predicted geometry, run as a user runs it (in this process: it starts faster)."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_views, write_toy_checkpoint

from modeling_vggt_qwen3.modeling_vggt import VggtGeometry
from recipes import ask
from recipes.asking.scene_export import camera_frusta, save_scene, save_views


trimesh = pytest.importorskip("trimesh")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {heads: write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"), heads=heads) for heads in (True, False)}


@pytest.fixture
def run(checkpoints, tmp_path, monkeypatch, capsys):
    """Runs the command on `photos`; returns its exit message (None for success)."""

    def run(*arguments, photos, heads=True):
        paths = []
        for number, photo in enumerate(photos):
            paths.append(str(tmp_path / f"photo{number}.png"))
            photo.save(paths[-1])
        argv = ["ask", "--model", str(checkpoints[heads]), *paths, "Where is it?", "--max-new-tokens", "2", *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
        try:
            ask.main()
        except SystemExit as error:
            return str(error.code)

    return run


def points_and_cameras(path):
    scene = trimesh.load_scene(path)
    points = [geometry for geometry in scene.geometry.values() if isinstance(geometry, trimesh.PointCloud)]
    assert len(points) == 1
    return points[0], len(scene.geometry) - 1


@pytest.mark.parametrize("num_views", [1, 3, 100])
def test_scene_and_views_are_written(run, tmp_path, num_views):
    """Catches a scene of the first view only, points without colours, a threshold that is not applied, lost cameras."""
    scene, views = tmp_path / "scene.glb", tmp_path / "views.png"
    assert run("--save-scene", scene, "--save-views", views, photos=toy_views(num_views)) is None
    points, num_cameras = points_and_cameras(scene)
    assert num_cameras == num_views
    assert len(points.vertices) == pytest.approx(num_views * 28 * 28 / 2, rel=0.01)
    assert len(np.unique(points.colors[:, :3], axis=0)) > 100
    width, height = Image.open(views).size
    assert width * height >= num_views * 28 * 56
    assert sorted(path.suffix for path in tmp_path.iterdir() if "photo" not in path.name) == [".glb", ".png"]


def test_confidence_percentile(run, tmp_path):
    scene = tmp_path / "scene.glb"
    assert run("--save-scene", scene, "--confidence-percentile", "0", photos=toy_views(2)) is None
    assert len(points_and_cameras(scene)[0].vertices) == 2 * 28 * 28


def test_photos_of_different_shapes(run, tmp_path):
    """Catches padding that becomes white points; without padding the photos do not fit together, which must be said."""
    photos = [toy_views(1, side=28)[0], toy_views(1, side=56)[0].crop((0, 0, 56, 28))]
    scene = tmp_path / "scene.glb"
    assert "different sizes" in run("--save-scene", scene, photos=photos)
    arguments = ("--save-scene", scene, "--confidence-percentile", "0", "--image-mode", "pad")
    assert run(*arguments, photos=photos) is None
    assert len(points_and_cameras(scene)[0].vertices) == 28 * 28 + 28 * 14


@pytest.mark.parametrize(
    ("arguments", "heads", "message"),
    [
        (("--save-scene", "{tmp}/scene.glb"), False, "needs a checkpoint whose encoder has a camera head"),
        (("--save-views", "{tmp}/views.png"), False, "needs a checkpoint whose encoder has a depth head"),
        (("--save-scene", "{tmp}/scene.ply"), True, "must end in .glb"),
        (("--save-views", "{tmp}/nowhere/views.png"), True, "there is no folder"),
        (("--save-scene", "{tmp}/scene.glb", "--confidence-percentile", "100"), True, "at least 0 and below 100"),
    ],
)
def test_what_cannot_be_written_is_refused(run, tmp_path, arguments, heads, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in run(*arguments, photos=toy_views(1), heads=heads)
    assert all("photo" in path.name for path in tmp_path.iterdir())


def test_missing_trimesh_is_said_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    assert "pip install 'vggt-qwen3[scene]'" in run("--save-scene", tmp_path / "scene.glb", photos=toy_views(1))


def known_geometry(height: int, width: int) -> VggtGeometry:
    """One camera at x = 1 that looks along z, and a wall 2 in front of it."""
    extrinsics = torch.eye(4)[None, None, :3].clone()
    extrinsics[..., 0, 3] = -1
    intrinsics = torch.tensor([[10.0, 0, width / 2], [0, 10.0, height / 2], [0, 0, 1]])[None, None]
    points = torch.zeros(1, 1, height, width, 3)
    points[..., 2] = 2.0
    points[..., 1] = torch.arange(height)[:, None] / height
    ones = torch.ones(1, 1, height, width)
    return VggtGeometry(
        extrinsics=extrinsics, intrinsics=intrinsics, depth=2 * ones, depth_confidence=ones, world_points=points
    )


def test_the_scene_is_upright_and_the_frustum_stands_at_the_camera(tmp_path):
    """Catches OpenCV's axes in a glTF file, which shows the room upside down, and frusta of the inverse pose."""
    geometry = known_geometry(28, 42)
    frustum = camera_frusta(geometry, (28, 42), depth=0.5)[0]
    np.testing.assert_allclose(frustum[0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(frustum[3], [1 + 0.5 * 2.1, 0.5 * 1.4, 0.5], atol=1e-6)
    mask = torch.ones(1, 28, 42, dtype=torch.bool)
    save_scene(tmp_path / "scene.glb", torch.rand(1, 1, 3, 28, 42), geometry, mask)
    scene = trimesh.load_scene(tmp_path / "scene.glb")
    low, high = scene.bounds
    # What OpenCV has below (y > 0) and ahead (z > 0) glTF has at negative y and z.
    assert low[1] < -0.9 and low[2] == pytest.approx(-2) and high[2] == pytest.approx(0)


def test_points_that_are_not_finite_are_left_out(tmp_path):
    """Catches a file that no viewer opens."""
    geometry = known_geometry(28, 28)
    geometry.world_points[:, :, :14] = torch.inf
    mask = torch.ones(1, 28, 28, dtype=torch.bool)
    save_scene(tmp_path / "scene.glb", torch.rand(1, 1, 3, 28, 28), geometry, mask, confidence_percentile=0)
    assert len(points_and_cameras(tmp_path / "scene.glb")[0].vertices) == 14 * 28
    geometry.world_points[:] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        save_scene(tmp_path / "other.glb", torch.rand(1, 1, 3, 28, 28), geometry, mask)
    assert not (tmp_path / "other.glb").exists()


def test_near_and_far_have_their_colours(tmp_path):
    """Catches depth and photo swapped, or one scale per view."""
    geometry = known_geometry(28, 28)
    geometry.depth = torch.cat([torch.full((1, 1, 28, 28), 1.0), torch.full((1, 1, 28, 28), 3.0)], dim=1)
    photos = torch.zeros(1, 2, 3, 28, 28)
    photos[:, :, 1] = 1.0
    save_views(tmp_path / "views.png", photos, geometry, torch.ones(2, 28, 28, dtype=torch.bool))
    sheet = np.asarray(Image.open(tmp_path / "views.png")).astype(int)
    assert sheet.shape == (56, 56, 3)
    assert sheet[20, 10].tolist() == sheet[50, 10].tolist() == [0, 255, 0]
    near, far = sheet[20, 45], sheet[50, 45]
    assert near[0] > near[2] and far[0] < 100 and not np.array_equal(near, far)
