# SPDX-License-Identifier: Apache-2.0
"""Which cameras the model can compute with: the processor refuses others, and data sets leave them out."""

import numpy as np


GEOMETRY_SHAPES = {"R": (3, 3), "t": (3,), "K": (3, 3)}
# Beyond these the model's numbers leave float32: squares, quotients, and exponentials of what depends on distances. A room's
# cameras are far from them. No number of a rotation is above 1; metres may count from far away; histograms should be shares,
# and some are counts of pixels.
LARGEST = {"R": 10.0, "t": 1e9, "K": 1e6, "depth_hist": 1e6}
SMALLEST_FOCAL_LENGTH = 1e-3
FARTHEST = 1000.0  # metres between the cameras of view 0 and another


def camera_problem(geometry: dict[str, np.ndarray]) -> tuple[int, str] | None:
    """
    What in a scene's cameras would make the model's numbers infinite, or not numbers.

    Args:
        geometry (`dict`): `R [V, 3, 3]`, `t [V, 3]`, `K [V, 3, 3]` and `depth_hist [V, bins]` as they are computed with: a
            number that float64 holds may be infinite in float32.

    Returns:
        The first view with a problem, and the field and what is wrong with it; None for cameras that can be used.
    """
    for key, largest in LARGEST.items():
        array = geometry[key]
        fits = np.abs(array) <= largest  # False of what is not a number
        if not fits.all():
            place = tuple(np.argwhere(~fits)[0])
            return int(place[0]), f"{key} holds {array[place]}, and has to be finite (at most {largest:g}) in float32"
    focal_lengths = np.abs(np.diagonal(geometry["K"], axis1=-2, axis2=-1)[..., :2])
    if (focal_lengths < SMALLEST_FOCAL_LENGTH).any():
        place = tuple(np.argwhere(focal_lengths < SMALLEST_FOCAL_LENGTH)[0])
        return int(place[0]), f"K has the focal length {focal_lengths[place]}, through which rays are divided"
    distances = camera_distances(geometry["R"], geometry["t"], np.zeros(len(geometry["t"]), dtype=int))
    if (distances > FARTHEST).any():
        view = int(np.argmax(distances > FARTHEST))
        return (
            view,
            f"R and t put the camera {distances[view]:.0f} m from that of view 0, and at most {FARTHEST:g} m can be",
        )
    return None


def camera_distances(rotations: np.ndarray, translations: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Distances `[N]` of the centres of cameras `R [N, 3, 3]`, `t [N, 3]` from those that `reference [N]` numbers, metres."""
    centers = -np.einsum("nij,ni->nj", rotations, translations)
    return np.linalg.norm(centers - centers[reference], axis=-1)


__all__ = [
    "FARTHEST",
    "GEOMETRY_SHAPES",
    "LARGEST",
    "SMALLEST_FOCAL_LENGTH",
    "camera_distances",
    "camera_problem",
]
