# SPDX-License-Identifier: Apache-2.0
"""What every reader of scans gives: frames that are known without decoding a picture, and views, which are loaded frames.

A reader is a class with `scene_id`, `folder`, `frames(geometry)`, `load(frame)`, `load_image(frame, at_least)`,
`load_depth(frame)` and `files()`; see `data_scripts.readers.scannet.Scan` and `data_scripts.readers.arkitscenes.Scan`.

Conventions: poses are world-to-camera, metres, in OpenCV axes (x right, y down, z forward); the world is the dataset's aligned
one, z up. The centre of pixel (column i, row j) has the image coordinates (i, j).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image

from ..files import UnreadableFileError, read_bytes
from ..limits import FARTHEST_CAMERA, LARGEST_NUMBER, SMALLEST_FOCAL_LENGTH, describe_size_fault
from ..pictures import decode_picture, describe_decoding_error


DEPTH_BINS = 16
DEPTH_BIN_METRES = 0.5  # 16 equal bins over 0-8 m


@dataclass(frozen=True)
class Frame:
    """A picture of a scan, as far as it is known without decoding it.

    Attributes:
        frame_id: unique in the scan; part of the file's name, or the number in the stream.
        timestamp: seconds, or None where the format has none.
        world_to_camera: `[4, 4]` float64, or None if the frame has no (valid) pose.
        has_depth: whether a depth map belongs to the frame.
        has_intrinsics: whether intrinsics belong to the frame.
    """

    frame_id: str
    timestamp: float | None
    world_to_camera: np.ndarray | None
    has_depth: bool
    has_intrinsics: bool

    @property
    def complete(self) -> bool:
        """Whether the frame has a pose, intrinsics and depth."""
        return self.world_to_camera is not None and self.has_depth and self.has_intrinsics


@dataclass
class View:
    """A loaded frame.

    Attributes:
        frame_id: as in the frame.
        image: RGB, upright, decoded to its end.
        encoded: the bytes of the JPEG or PNG file if they decode to exactly `image`, else None.
        world_to_camera: `[4, 4]` float64, or None for a frame without pose.
        intrinsics: `[3, 3]` float64, pixels of `image`, or None for a frame without pose or intrinsics.
        depth: `[h, w]` float32 metres along the optical axis, 0 = none; None with `intrinsics`, or without depth. It has
            the camera and the field of view of `image`, not always its size.
        depth_intrinsics: `[3, 3]` float64, pixels of `depth`, or None with it.
    """

    frame_id: str
    image: PIL.Image.Image
    encoded: bytes | None
    world_to_camera: np.ndarray | None
    intrinsics: np.ndarray | None
    depth: np.ndarray | None
    depth_intrinsics: np.ndarray | None

    @property
    def depth_histogram(self) -> np.ndarray:
        """`[16]` float32, see `depth_histogram`; all zero if nothing was measured."""
        return depth_histogram(np.zeros((0, 0), dtype=np.float32) if self.depth is None else self.depth)


class SceneReader(Protocol):
    """The interface of a reader, by which the preparation handles all formats alike."""

    scene_id: str
    folder: Path

    def frames(self, geometry: bool = True) -> list[Frame]:
        """All frames that have a picture, in the order of time; without `geometry` none of them has a pose."""

    def load(self, frame: Frame) -> View:
        """Decodes a frame's picture and, if the frame has a pose, its intrinsics and depth."""

    def load_image(self, frame: Frame, at_least: int | None = None) -> PIL.Image.Image:
        """Decodes the picture alone; with `at_least`, possibly smaller, but no side below so many pixels."""

    def load_depth(self, frame: Frame) -> tuple[np.ndarray, np.ndarray] | None:
        """Depth `[h, w]` float32 metres and its intrinsics `[3, 3]`, without decoding the picture."""

    def files(self) -> Iterator[Path]:
        """Every file that reading the scan may touch, in a fixed order."""


def depth_histogram(depth: np.ndarray) -> np.ndarray:
    """Shares of the valid depth pixels in 16 equal bins over 0-8 m; what lies beyond counts in the last bin.

    Args:
        depth: `[H, W]` metres, 0 = none.

    Returns:
        `[16]` float32 that sums to 1, or all zero if no pixel is valid.
    """
    bins = np.minimum(depth[depth > 0] / DEPTH_BIN_METRES, DEPTH_BINS - 1).astype(np.int64)
    return (np.bincount(bins, minlength=DEPTH_BINS) / max(bins.size, 1)).astype(np.float32)


def read_depth(path: Path) -> np.ndarray:
    """Reads a depth map in millimetres, 0 = none, as `[H, W]` float32 metres.

    Raises:
        UnreadableFileError: the file is missing, broken, not a 16-bit greyscale PNG, or has more than
            `MAX_PICTURE_PIXELS`.
    """
    content = read_bytes(path)
    try:
        with PIL.Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            fault = describe_size_fault(*picture.size)
            if fault is None and picture.mode not in ("I;16", "I"):
                fault = f"depth must be 16-bit greyscale, this is mode {picture.mode}"
            depth = np.asarray(picture) if fault is None else None  # only now are its pixels unpacked
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for a broken file
        raise UnreadableFileError(path, f"not a readable depth map ({describe_decoding_error(error)})") from None
    if fault is not None:
        raise UnreadableFileError(path, fault)
    depth = depth.astype(np.float32)
    depth /= 1000  # in place: 64 MP are 256 MB
    return depth


def is_rigid(matrices: np.ndarray) -> np.ndarray:
    """Whether each of `[..., 4, 4]` is a rotation and a translation, to the precision of numbers with three decimals.

    Returns:
        `[...]` bool.
    """
    rotation = matrices[..., :3, :3]
    with np.errstate(invalid="ignore", over="ignore"):
        product = rotation @ np.swapaxes(rotation, -1, -2)
        orthonormal = np.abs(product - np.eye(3)).max(axis=(-1, -2)) < 1e-2  # False for what is not finite
        right_handed = np.linalg.det(rotation) > 0
    affine = np.abs(matrices[..., 3, :] - [0, 0, 0, 1]).max(axis=-1) < 1e-6
    return orthonormal & right_handed & affine & np.isfinite(matrices).all(axis=(-1, -2))


def check_intrinsics(where: str | Path, intrinsics: np.ndarray) -> np.ndarray:
    """Returns `[3, 3]` intrinsics as they are; raises `UnreadableFileError` if they are not those of a camera."""
    fault = describe_intrinsics_fault(intrinsics)
    if fault is not None:
        raise UnreadableFileError(where, fault)
    return intrinsics


def describe_intrinsics_fault(intrinsics: np.ndarray) -> str | None:
    """What makes `[..., 3, 3]` intrinsics unusable, in a few words, or None if nothing does."""
    if not (intrinsics[..., [0, 1], [0, 1]] >= SMALLEST_FOCAL_LENGTH).all():  # also what is not a number
        return "the focal lengths are not positive numbers"
    if not is_storable(intrinsics).all():
        return f"the intrinsics hold a number that is not finite, or beyond {LARGEST_NUMBER:.0e}"
    if np.abs(intrinsics[..., [1, 2, 2, 2], [0, 0, 1, 2]] - [0, 0, 0, 1]).max(initial=0) > 1e-6:
        return "the intrinsics are not of the form fx s cx, 0 fy cy, 0 0 1"
    return None


def is_storable(numbers: np.ndarray) -> np.ndarray:
    """Whether each number of a camera is finite and at most `LARGEST_NUMBER` in float32, as it is stored; bool of its shape.

    One that is finite in float64 alone (1e39) is infinite for the model, and one such camera destroys it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(np.asarray(numbers).astype(np.float32)) <= LARGEST_NUMBER  # False for what is not a number


def describe_geometry_fault(geometry: dict[str, list]) -> str | None:
    """What a scene's cameras hold that cannot be stored, naming field and view, or None.

    Args:
        geometry: `R`, `t`, `K`, `depth_hist` with one entry per view, as arrays or nested lists.
    """
    for name, numbers in geometry.items():
        numbers = np.asarray(numbers, dtype=np.float64)
        wrong = np.argwhere(~is_storable(numbers))
        if len(wrong):
            number = numbers[tuple(wrong[0])]
            return f"{name} of view {wrong[0][0]} holds {number:g}: not finite, or beyond {LARGEST_NUMBER:.0e}"
    return None


def describe_distance_fault(geometry: dict[str, np.ndarray] | None) -> str | None:
    """Which camera of a scene, by `R` `[V, 3, 3]` and `t` `[V, 3]` from world to camera, is too far from that of view 0, or None."""
    if geometry is None:
        return None
    centers = -np.einsum("vij,vi->vj", np.asarray(geometry["R"]), np.asarray(geometry["t"]))
    distances = np.linalg.norm(centers - centers[0], axis=-1)
    view = int(np.argmax(distances > FARTHEST_CAMERA))
    if distances[view] <= FARTHEST_CAMERA:
        return None
    return f"the camera of view {view} is {distances[view]:.0f} m from that of view 0, more than {FARTHEST_CAMERA:.0f}"


def scale_intrinsics(intrinsics: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """`[3, 3]` intrinsics of a resized picture; sizes are (width, height).

    A picture of width W spans -0.5 to W - 0.5, so the principal point shifts beside being scaled.
    """
    scaled = intrinsics.copy()
    for axis in (0, 1):
        scale = after[axis] / before[axis]
        scaled[axis] *= scale
        scaled[axis, 2] += (scale - 1) / 2
    return scaled


__all__ = [
    "DEPTH_BINS",
    "Frame",
    "SceneReader",
    "View",
    "check_intrinsics",
    "decode_picture",
    "depth_histogram",
    "describe_distance_fault",
    "describe_geometry_fault",
    "describe_intrinsics_fault",
    "is_rigid",
    "is_storable",
    "read_depth",
    "scale_intrinsics",
]
