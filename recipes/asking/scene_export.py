# SPDX-License-Identifier: Apache-2.0
"""Pictures of what VGGT's heads predict: a point cloud with the cameras (GLB), and depth beside each photo (PNG)."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw

from modeling_vggt_qwen3 import VggtModel, VggtQwen3ImageProcessorPil
from modeling_vggt_qwen3.geometry_vggt_qwen3 import invert_extrinsics
from modeling_vggt_qwen3.modeling_vggt import VggtGeometry


MAX_POINTS = 1_000_000  # more than a viewer in a browser shows smoothly
MAX_SHEET_WIDTH = 4096  # pixels
FRUSTUM_SIZE = 0.1  # depth of a drawn camera over the median distance of the points from view 0
# OpenCV's axes (y down, z forward) to glTF's (y up, z backward).
TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])


def check_outputs(scene: Path | None, views: Path | None, confidence_percentile: float):
    """
    Checks files that are to be written, before any work is done for them.

    Raises:
        ValueError: naming the file, if its name does not end in `.glb` (scene) or `.png` (views), its folder is
            missing, or trimesh is needed and not installed; or if the percentile is not in [0, 100).
    """
    if not 0 <= confidence_percentile < 100:
        raise ValueError(f"The confidence percentile must be at least 0 and below 100, got {confidence_percentile}.")
    for path, suffix in ((scene, ".glb"), (views, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"{path} must end in {suffix}.")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"Cannot write {path}: there is no folder {path.parent}.")
    if scene is not None:
        try:
            import trimesh  # noqa: F401
        except ImportError as error:
            raise ValueError(f"Writing {scene} needs trimesh: pip install 'vggt-qwen3[scene]'") from error


def check_heads(encoder: VggtModel, scene: Path | None, views: Path | None):
    """Raises ValueError if `encoder` lacks a head that a file to be written needs."""
    if scene is not None and (encoder.camera_head is None or encoder.depth_head is None):
        raise ValueError(f"{scene} needs a checkpoint whose encoder has a camera head and a depth head.")
    if views is not None and encoder.depth_head is None:
        raise ValueError(f"{views} needs a checkpoint whose encoder has a depth head.")


def photo_masks(image_processor: VggtQwen3ImageProcessorPil, photos: list[Image.Image]) -> torch.Tensor:
    """Where the processed views show their photos, `[V, H, W]`: not where they were padded to a square."""
    masks = []
    for photo in photos:
        new_height, new_width, top, left, height, width = image_processor.get_resize(photo.height, photo.width)
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[max(top, 0) : top + new_height, max(left, 0) : left + new_width] = True
        masks.append(mask)
    return torch.stack(masks)


def visible_points(geometry: VggtGeometry, photo_mask: torch.Tensor, confidence_percentile: float) -> torch.Tensor:
    """
    Which pixels of a scene become points, `[V, H, W]`: of the pixels `photo_mask [V, H, W]` (the others are padding)
    those whose confidence reaches the percentile `confidence_percentile` among them, where the point is finite.

    Raises:
        ValueError: if no pixel has a finite point.
    """
    photo_mask = photo_mask & geometry.world_points[0].isfinite().all(dim=-1).cpu()
    if not photo_mask.any():
        raise ValueError("No pixel has a predicted point: the predicted cameras or depths are not finite.")
    confidence = geometry.depth_confidence[0].cpu()
    threshold = np.percentile(confidence[photo_mask].numpy(), confidence_percentile)
    return photo_mask & (confidence >= float(threshold))


def save_scene(
    path: Path,
    pixel_values: torch.Tensor,
    geometry: VggtGeometry,
    photo_mask: torch.Tensor,
    confidence_percentile: float = 50.0,
):
    """
    Writes the predicted points with the photos' colours and the frustum of every camera as a binary glTF file.

    Args:
        path (`Path`): `.glb` file.
        pixel_values (`torch.Tensor` of shape `[1, V, 3, H, W]`): The views, RGB in [0, 1].
        geometry ([`VggtGeometry`]): What `predict_geometry` gave for them.
        photo_mask (`torch.Tensor` of shape `[V, H, W]`): False where a view was padded.
        confidence_percentile (`float`): Share in percent of the points, the least sure ones, to leave out.

    Raises:
        ValueError: if there is no point to draw.
    """
    # An extra: answers need none of it.
    import trimesh
    from trimesh.path import Path3D
    from trimesh.path.entities import Line

    visible = visible_points(geometry, photo_mask, confidence_percentile)
    points = geometry.world_points[0].cpu()[visible].double().numpy()  # [N, 3]
    colors = as_bytes(pixel_values)[visible.numpy()]
    if len(points) > MAX_POINTS:
        chosen = np.linspace(0, len(points) - 1, MAX_POINTS).astype(int)
        points, colors = points[chosen], colors[chosen]
    distance = float(np.median(np.linalg.norm(points, axis=-1)))
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.PointCloud(points, colors=colors), geom_name="points")
    corners = camera_frusta(geometry, tuple(pixel_values.shape[-2:]), FRUSTUM_SIZE * distance)
    num_views = len(corners)
    for view, frustum in enumerate(corners):
        if not np.isfinite(frustum).all():
            continue
        # From red, the reference view, to violet.
        color = np.array(matplotlib.colormaps["hsv"](0.8 * view / num_views, bytes=True))
        # The rectangle of the image, then the edges from the apex to its corners.
        edges = [Line(np.array(corners), color=color) for corners in ([1, 2, 3, 4, 1], [1, 0, 2], [3, 0, 4])]
        lines = Path3D(entities=edges, vertices=frustum, process=False)
        scene.add_geometry(lines, geom_name=f"camera_{view}")
    scene.apply_transform(TO_GLTF)
    _write(path, lambda temporary: temporary.write_bytes(scene.export(file_type="glb")))


def camera_frusta(geometry: VggtGeometry, image_size: tuple[int, int], depth: float) -> np.ndarray:
    """The apex of each camera and the four corners of its image at `depth`, `[V, 5, 3]`, world coordinates."""
    height, width = image_size
    pixels = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=torch.float64)
    rays = pixels @ torch.linalg.inv(geometry.intrinsics[0].cpu().double().nan_to_num(posinf=1e9)).mT  # [V, 4, 3]
    corners = torch.cat([torch.zeros_like(rays[:, :1]), rays * depth], dim=1)  # [V, 5, 3]
    to_world = invert_extrinsics(geometry.extrinsics[0].cpu().double())
    return (corners @ to_world[..., :3].mT + to_world[..., 3].unsqueeze(-2)).numpy()


def save_views(path: Path, pixel_values: torch.Tensor, geometry: VggtGeometry, photo_mask: torch.Tensor):
    """
    Writes a PNG with each photo and, to its right, its depth: from near (red) to far (blue), one scale for all views.

    Args as of [`save_scene`]; the depth is enough.
    """
    num_views, _, height, width = pixel_values.shape[1:]
    depth = geometry.depth[0].cpu().numpy()
    inside = photo_mask.numpy() & np.isfinite(depth)
    if not inside.any():
        raise ValueError("No pixel has a finite predicted depth.")
    near, far = np.percentile(depth[inside], [2, 98])
    scaled = np.where(inside, (depth - near) / max(far - near, 1e-6), 0).clip(0, 1)
    colored = (matplotlib.colormaps["turbo_r"](scaled)[..., :3] * 255).round().astype(np.uint8)  # [V, H, W, 3]
    colored[~inside] = 255
    photos = as_bytes(pixel_values)

    columns = max(1, round(math.sqrt(num_views * height / (2 * width))))
    rows = -(-num_views // columns)
    scale = min(1.0, MAX_SHEET_WIDTH / (columns * 2 * width))
    tile = max(1, int(2 * width * scale)), max(1, int(height * scale))
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]), "white")
    for view in range(num_views):
        pair = Image.fromarray(np.concatenate([photos[view], colored[view]], axis=1)).resize(tile)
        label = f"{view}: depth {np.median(depth[view]):.2f}"
        ImageDraw.Draw(pair).text((2, 1), label, fill="white", stroke_width=1, stroke_fill="black")
        sheet.paste(pair, (view % columns * tile[0], view // columns * tile[1]))
    _write(path, lambda temporary: sheet.save(temporary, format="PNG"))


def as_bytes(pixel_values: torch.Tensor) -> np.ndarray:
    """Views `[1, V, 3, H, W]` in [0, 1] as `[V, H, W, 3]` uint8."""
    return (pixel_values[0].cpu().float().movedim(1, -1) * 255).round().clamp(0, 255).byte().numpy()


def _write(path: Path, write: Callable[[Path], object]):
    """Calls `write` with a temporary sibling of `path`, then moves that into place."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


__all__ = ["check_heads", "check_outputs", "photo_masks", "save_scene", "save_views"]
