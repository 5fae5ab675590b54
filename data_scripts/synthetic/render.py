# SPDX-License-Identifier: Apache-2.0
"""An exact renderer for flat quads: numpy, no loop over faces, pixels or views.

Conventions: cameras are OpenCV (x right, y down, z forward), poses world-to-camera, lengths metres. The centre of pixel
(column i, row j) has the image coordinates (i, j), so that a picture of width W spans -0.5 to W - 0.5.

In pixel coordinates both the sides of a projected quad and its inverse depth are affine, also for a quad that reaches behind
the camera. Every row of a quad is therefore one span whose ends have a closed form, and no clipping is needed.
"""

import numpy as np


FAR = 100.0  # metres; a face further away (or behind the camera) is not drawn

# The corners of the six faces of a unit box (index into the 8 corners, x fastest), wound the same way round, with the
# outward normal of each.
_FACES = np.array([[0, 2, 6, 4], [1, 5, 7, 3], [0, 4, 5, 1], [2, 3, 7, 6], [0, 1, 3, 2], [4, 6, 7, 5]])
_NORMALS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], dtype=np.float64)


def box_quads(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces of axis-aligned boxes.

    Args:
        low, high: `[B, 3]` opposite corners, metres.

    Returns:
        corners `[B, 6, 4, 3]` and outward unit normals `[6, 3]`.
    """
    corner = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)[:, ::-1]
    corners = low[:, None] + corner * (high - low)[:, None]  # [B, 8, 3]
    return corners[:, _FACES], _NORMALS


def intrinsics(size: int, field_of_view: float) -> np.ndarray:
    """`[3, 3]` pinhole intrinsics of a square picture, in pixels; `field_of_view` in degrees."""
    focal = size / 2 / np.tan(np.radians(field_of_view) / 2)
    centre = (size - 1) / 2
    return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`[4, 4]` world-to-camera pose of an upright camera at `position` that looks at `target` (world z up, metres)."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = [right, np.cross(forward, right), forward]
    pose[:3, 3] = -pose[:3, :3] @ position
    return pose


def rasterize(
    quads: np.ndarray,
    normals: np.ndarray,
    poses: np.ndarray,
    camera: np.ndarray,
    size: int,
    oversampling: int = 1,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draws quads into every view, nearest first, one sample at the centre of each (sub)pixel.

    Args:
        quads: `[Q, 4, 3]` corners in order round the quad, world, metres; at most 65535 of them.
        normals: `[Q, 3]` outward normals, world; a face seen from behind is not drawn.
        poses: `[V, 4, 4]` world-to-camera.
        camera: `[3, 3]` intrinsics in pixels of a picture of `size` x `size`.
        oversampling: samples per pixel and axis; the result is `oversampling` times as wide and high.
        groups: `[Q]` integers, what each quad is part of (-1 none); asks for the third result.

    Returns:
        depth `[V, S, S]` float32 along the optical axis in metres (0: nothing there), face `[V, S, S]` int64 index of
        the quad seen (-1 none), and per view and group the number of samples the group would cover if nothing stood
        in front of it `[V, G]`, or None.
    """
    views, samples = len(poses), size * oversampling
    rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
    corners = np.einsum("vij,qkj->vqki", rotation, quads) + translation[:, None, None]  # [V, Q, 4, 3]
    towards = np.einsum("vij,qj->vqi", rotation, normals)  # [V, Q, 3]
    distance = np.einsum("vqi,vqi->vq", towards, corners[:, :, 0])
    drawn = distance < -1e-6  # it faces the camera; nor is it wholly behind it or beyond one side of the picture
    (left, right), (top, bottom) = ((np.array([-0.5, size - 0.5]) - camera[i, 2]) / camera[i, i] for i in (0, 1))
    x, y, z = np.moveaxis(corners, -1, 0)  # [V, Q, 4]
    for inwards in (z, x - left * z, right * z - x, y - top * z, bottom * z - y):
        drawn &= inwards.max(axis=2) > 0
    view, quad = np.nonzero(drawn)
    corners = corners[view, quad]  # [F, 4, 3]
    planes = np.empty((len(view), 5, 3))  # each a half-space of viewing rays (x, y, 1) that hit the face
    planes[:, :4] = np.cross(corners, np.roll(corners, -1, axis=1))
    planes[:, :4] *= np.sign(np.einsum("fki,fi->fk", planes[:, :4], corners.mean(axis=1)))[..., None]
    inverse_depth = towards[view, quad] / distance[view, quad][:, None]  # dotted with the ray (x, y, 1)
    planes[:, 4] = inverse_depth - [0, 0, 1 / FAR]

    def per_pixel(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        along, down = plane[..., 0] / camera[0, 0], plane[..., 1] / camera[1, 1]
        return along, down, plane[..., 2] - along * camera[0, 2] - down * camera[1, 2]

    # Sample s lies at image coordinate s / oversampling + first.
    first = (1 / oversampling - 1) / 2
    rows = np.arange(samples) / oversampling + first
    low = np.full((len(view), samples), -np.inf)  # [F, S] of each row of a face
    high = np.full_like(low, np.inf)
    for along, down, constant in zip(*(values.T for values in per_pixel(planes))):
        flat = np.abs(along) < 1e-12
        at_row = down[:, None] * rows + constant[:, None]
        bound = -at_row / np.where(flat, 1.0, along)[:, None]
        np.maximum(low, bound, out=low, where=((along > 0) & ~flat)[:, None])
        np.minimum(high, bound, out=high, where=((along < 0) & ~flat)[:, None])
        low[flat[:, None] & (at_row < 0)] = np.inf
    start = np.clip(np.ceil((low - first) * oversampling), 0, samples).astype(np.int64)  # [F, S]
    stop = np.clip(np.floor((high - first) * oversampling) + 1, 0, samples).astype(np.int64)
    face, row = np.nonzero(stop > start)
    start, length = start[face, row], (stop - start)[face, row]

    along, down, constant = per_pixel(inverse_depth)
    along = along / oversampling
    offset = np.cumsum(length) - length
    column = np.arange(int(length.sum())) - np.repeat(offset - start, length)
    at_start = (down[face] * rows[row] + constant[face] + along[face] * oversampling * first).astype(np.float32)
    value = np.repeat(along[face].astype(np.float32), length) * column.astype(np.float32)
    value += np.repeat(at_start, length)
    pixel = column + np.repeat((view[face] * samples + row) * samples, length)

    # Positive floats order like their bits, so the nearest face wins by an integer maximum that carries its index.
    key = (value.view(np.int32).astype(np.int64) << 16) | np.repeat(quad[face] + 1, length)
    buffer = np.zeros(views * samples * samples, dtype=np.int64)
    np.maximum.at(buffer, pixel, key)
    buffer = buffer.reshape(views, samples, samples)
    nearest = (buffer >> 16).astype(np.int32).view(np.float32)
    depth = np.divide(1, nearest, out=np.zeros_like(nearest), where=nearest > 0)
    extent = None
    if groups is not None:
        count = int(groups.max(initial=-1)) + 1
        covered = np.zeros(
            (count + 1, views * samples * samples), dtype=bool
        )  # the last row takes what is in no group
        covered[np.repeat(groups[quad[face]], length), pixel] = True
        extent = covered[:count].reshape(count, views, -1).sum(axis=2).T
    return depth, (buffer & 0xFFFF) - 1, extent


def shade(face: np.ndarray, palette: np.ndarray, oversampling: int) -> np.ndarray:
    """Colours faces and averages the samples of each pixel.

    Args:
        face: `[V, S, S]` quad indices, -1 for none.
        palette: `[Q + 1, 3]` uint8, the last row the colour of none.
        oversampling: samples per pixel and axis.

    Returns:
        `[V, S / oversampling, S / oversampling, 3]` float32, 0 to 255.
    """
    views, samples = face.shape[:2]
    size = samples // oversampling
    color = palette[face].reshape(views, size, oversampling, size, oversampling, 3)
    total = np.zeros((views, size, size, 3), dtype=np.uint16)
    for y in range(oversampling):
        for x in range(oversampling):
            total += color[:, :, y, :, x]
    return total.astype(np.float32) / oversampling**2


__all__ = ["box_quads", "intrinsics", "look_at", "rasterize", "shade"]
