# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes in 3D: their axes, their exact overlap, and which predicted box is which true one."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment


# Metres. RoomPlan's walls, doors and windows have no depth, and so no volume to overlap: where one of two boxes is flat
# both count as at least this deep, about what a wall is.
MIN_DEPTH = 0.2
# Metres. Faces of two boxes that are closer than this and parallel are one face.
SAME_PLANE = 1e-9


def box_axes(normals: np.ndarray, ups: np.ndarray) -> np.ndarray:
    """
    Unit axes (width, height, depth) of boxes, right-handed.

    Depth is along the normal, height along `up` made orthogonal to it; where the two are parallel, along the frame's axis
    that is most orthogonal to the normal (the first of equals).

    Args:
        normals, ups: `[N, 3]`, of any length but zero.

    Returns:
        `[N, 3, 3]`, one axis per row.
    """
    depth = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    height = ups - (ups * depth).sum(-1, keepdims=True) * depth
    parallel = np.linalg.norm(height, axis=-1) < 1e-6 * np.linalg.norm(ups, axis=-1)
    other = np.eye(3)[np.abs(depth).argmin(-1)]
    other = other - (other * depth).sum(-1, keepdims=True) * depth
    height = np.where(parallel[:, None], other, height)
    height = height / np.linalg.norm(height, axis=-1, keepdims=True)
    return np.stack([np.cross(height, depth), height, depth], axis=-2)


def box_arrays(boxes: Sequence[dict], up: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Centres `[N, 3]`, axes `[N, 3, 3]` (one per row) and sizes `[N, 3]` of boxes given as `center`, `extent`, `normal`.

    Args:
        up: `[3]` the world's vertical, in the frame of the boxes.
    """
    centers, sizes, normals = (
        np.array([box[key] for box in boxes], dtype=np.float64).reshape(-1, 3)
        for key in ("center", "extent", "normal")
    )
    return centers, box_axes(normals, np.broadcast_to(np.asarray(up, dtype=np.float64), normals.shape)), sizes


def box_iou(
    first: tuple[np.ndarray, np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """
    Intersection over union of pairs of oriented boxes, exact whatever their rotations.

    The intersection's faces are the parts of either box's faces that lie in the other; the divergence theorem makes its
    volume of them. A flat box counts as `MIN_DEPTH` deep, and then the other as at least that.

    Args:
        first, second: Centres `[N, 3]`, axes `[N, 3, 3]` (one per row), sizes `[N, 3]`; metres.

    Returns:
        `[N]` in [0, 1]; 0 where a box has no width or no height.
    """
    (centers_a, axes_a, sizes_a), (centers_b, axes_b, sizes_b) = first, second
    flat = ((sizes_a[:, 2] == 0) | (sizes_b[:, 2] == 0))[:, None] & np.array([False, False, True])
    sizes_a, sizes_b = (np.where(flat, np.maximum(sizes, MIN_DEPTH), sizes) for sizes in (sizes_a, sizes_b))
    volumes_a, volumes_b = sizes_a.prod(-1), sizes_b.prod(-1)
    intersections = np.zeros(len(centers_a))
    distances = np.linalg.norm(centers_b - centers_a, axis=-1)
    reach = (np.linalg.norm(sizes_a, axis=-1) + np.linalg.norm(sizes_b, axis=-1)) / 2
    near = np.flatnonzero((distances < reach) & (volumes_a > 0) & (volumes_b > 0))
    # About the first box's centre, where the numbers are small.
    a = np.zeros((len(near), 3)), axes_a[near], sizes_a[near]
    b = (centers_b - centers_a)[near], axes_b[near], sizes_b[near]
    intersections[near] = _face_terms(a, b, SAME_PLANE) + _face_terms(b, a, -SAME_PLANE)
    intersections = np.clip(intersections, 0, np.minimum(volumes_a, volumes_b))
    unions = volumes_a + volumes_b - intersections
    return np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)


def _face_terms(box, other, margin: float) -> np.ndarray:
    """
    `[N]` what the faces of `box`, as far as they lie in `other`, add to the intersection's volume.

    Args:
        margin: How far outside of a face of `other` that looks the same way still counts as inside; negative leaves out
            the faces that the two share.
    """
    (centers, axes, sizes), (other_centers, other_axes, other_sizes) = box, other
    # Face 2 i + s of a box is at -size/2 (s = 0) or size/2 along axis i, its corners in a ring about the other two.
    signs = np.array([[s if i == k else 0 for k in range(3)] for i in range(3) for s in (-1, 1)])  # [6, 3]
    ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.repeat(signs[:, None], 4, axis=1)  # [6, 4, 3]
    for face in range(6):
        corners[face][:, [k for k in range(3) if k != face // 2]] = ring
    number = len(centers)
    half = sizes[:, None, None] / 2 * corners  # [N, 6, 4, 3] along the box's own axes
    polygons = centers[:, None, None] + np.einsum("nfci,nij->nfcj", half, axes)
    normals = np.einsum("fi,nij->nfj", signs, axes)  # [N, 6, 3] outward
    # In the other box's own frame its faces are x, y, z = +-size/2.
    polygons = np.einsum("nfcj,nij->nfci", polygons - other_centers[:, None, None], other_axes).reshape(-1, 4, 3)
    limits = np.repeat(other_sizes / 2, 6, axis=0)  # [6 N, 3]
    facing = np.einsum("nfj,nij->nfi", normals, other_axes).reshape(-1, 3)
    counts = np.full(len(polygons), 4)
    for axis in range(3):
        for sign in (-1, 1):
            # Faces that touch from outside look at each other, and bound nothing in common.
            margins = np.where(sign * facing[:, axis] < 0, -SAME_PLANE, margin)
            outside = sign * polygons[..., axis] - (limits[:, axis] + margins)[:, None]
            polygons, counts = _clip(polygons, counts, outside)
    # Newell: half the sum of the cross products of neighbours; what repeats the last corner adds nothing.
    origin = polygons[:, :1]
    areas = np.linalg.norm(
        np.cross(polygons - origin, np.roll(polygons, -1, axis=1) - origin).sum(axis=1) / 2, axis=-1
    )
    areas = np.where(counts > 2, areas, 0).reshape(number, 6)
    heights = np.einsum("nfj,nj->nf", normals, centers) + sizes[:, [0, 0, 1, 1, 2, 2]] / 2
    return (areas * heights).sum(-1) / 3


def _clip(polygons: np.ndarray, counts: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Convex polygons without what is outside of a plane each (Sutherland and Hodgman, Communications of the ACM, 1974).

    Args:
        polygons: `[N, K, 3]` corners in a ring, the last repeated up to K.
        counts: `[N]` how many corners each has; 0 for none left.
        outside: `[N, K]` signed distances of the corners.

    Returns:
        `[N, K + 1, 3]` and `[N]` of the same kind.
    """
    number, size = outside.shape
    following, outside_following = np.roll(polygons, -1, axis=1), np.roll(outside, -1, axis=1)
    inside = outside <= 0
    crosses = inside != (outside_following <= 0)
    step = np.where(crosses, outside - outside_following, 1)
    crossing = polygons + (outside / step)[..., None] * (following - polygons)
    # Per edge: its first corner if inside, then where it crosses the plane.
    points = np.stack([polygons, crossing], axis=2).reshape(number, 2 * size, 3)
    kept = np.stack([inside, crosses], axis=2).reshape(number, 2 * size) & (counts > 0)[:, None]
    order = np.argsort(~kept, axis=1, kind="stable")[:, : size + 1]
    counts = kept.sum(axis=1)
    order = np.take_along_axis(order, np.minimum(np.arange(size + 1), np.maximum(counts[:, None] - 1, 0)), axis=1)
    return np.take_along_axis(points, order[..., None], axis=1), counts


def iou_matrix(predicted: Sequence[dict], true: Sequence[dict], up: Sequence[float]) -> np.ndarray:
    """`[P, T]` IoU of every predicted box with every true one, dicts of `center`, `extent`, `normal`."""
    if not predicted or not true:
        return np.zeros((len(predicted), len(true)))
    a, b = box_arrays(predicted, up), box_arrays(true, up)
    rows, columns = np.divmod(np.arange(len(predicted) * len(true)), len(true))
    return box_iou([part[rows] for part in a], [part[columns] for part in b]).reshape(len(predicted), len(true))


def match(ious: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """
    One-to-one pairs (row, column) with an IoU of at least `threshold`: as many as possible, of those the ones that
    overlap most. A box predicted twice is right once.
    """
    # The overlaps of all pairs together weigh less than one pair more.
    weights = np.where(ious >= threshold, 1 + ious / (2 * max(1, min(ious.shape))), 0)
    pairs = zip(*linear_sum_assignment(weights, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in pairs if ious[row, column] >= threshold]


__all__ = ["MIN_DEPTH", "box_arrays", "box_axes", "box_iou", "iou_matrix", "match"]
