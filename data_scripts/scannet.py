# SPDX-License-Identifier: Apache-2.0
"""Reads ScanNet frame dumps (the output of ScanNet's SensReader); knows nothing about any question dataset.

A dump of one scan is a folder `<root>/<scene>/` with
- `color/<n>.jpg`, `<n>` being the frame number: not zero-padded, may skip;
- `depth/<n>.png`: uint16 millimetres, 0 where nothing was measured;
- `pose/<n>.txt`: 4x4 camera-to-world in metres, OpenCV camera axes (x right, y down, z forward); a frame whose pose
  was lost holds `-inf`;
- `intrinsic/intrinsic_color.txt`: 4x4, pixels of the colour sensor;
- `<scene>.txt`: `key = value` lines, among them `axisAlignment` (16 numbers, row-major: scan world to aligned world;
  not there for test scans, whose alignment is the identity) and `colorWidth`, `colorHeight`.

Source: https://github.com/ScanNet/ScanNet (SensReader and the file descriptions in its README).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from .views import UnreadableFileError, describe_decoding_error, read_bytes, read_picture


DEPTH_BINS = 16
DEPTH_BIN_MILLIMETRES = 500  # 16 equal bins over 0-8 m
FRAME_FOLDERS = ("color", "depth", "pose", "intrinsic")


@dataclass
class View:
    """One posed picture of a scan.

    Attributes:
        frame_id: the frame number, as in the file names.
        image: the bytes of the JPEG file, unchanged.
        world_to_camera: `[4, 4]` float32, metres, OpenCV camera axes; the world is the axis-aligned one, z up.
        intrinsics: `[3, 3]` float32, pixels of `image`.
        depth_histogram: `[16]` float32, share of the valid depth pixels in each of 16 equal bins over 0-8 m, anything
            beyond 8 m in the last; all zero if the sensor measured no depth at all in this frame.
    """

    frame_id: str
    image: bytes
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    depth_histogram: np.ndarray


class Scan:
    """One scan's folder; reads nothing but `<scene>.txt` until asked.

    Args:
        folder: `<root>/<scene>`.

    Raises:
        UnreadableFileError: `<scene>.txt` is missing or malformed. Without it nothing says whether the scan is
            aligned, so the identity is assumed only when the file is there and states no alignment.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / f"{folder.name}.txt"
        lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
        values = {key.strip(): value for key, _, value in (line.partition("=") for line in lines)}
        self.axis_alignment = np.eye(4)  # [4, 4] scan world to aligned world
        if "axisAlignment" in values:
            self.axis_alignment = _parse_matrix(path, "axisAlignment", values["axisAlignment"])
            _check_rigid(path, "axisAlignment", self.axis_alignment)
        self.stated_size = None  # (width, height) that the colour intrinsics are for
        if "colorWidth" in values and "colorHeight" in values:
            try:
                self.stated_size = (int(values["colorWidth"]), int(values["colorHeight"]))
            except ValueError:
                raise UnreadableFileError(path, "colorWidth or colorHeight is not a whole number") from None

    def camera_poses(self) -> dict[str, np.ndarray]:
        """Camera-to-world poses of the frames that have both a picture and a valid pose.

        Returns:
            frame_id to `[4, 4]` float64 in metres, in the scan's own (not aligned) world. Frames whose pose is lost
            (any number is not finite) or was not dumped are left out.

        Raises:
            UnreadableFileError: there is no `color` or `pose` folder, a picture's name is not a frame number, or a
                pose is not a 4x4 rigid transform.
        """
        poses = {}
        pose_folder = self.folder / "pose"
        dumped = {path.stem for path in _files(pose_folder, ".txt")}
        for picture in _files(self.folder / "color", ".jpg"):
            if not (picture.stem.isascii() and picture.stem.isdigit()):
                raise UnreadableFileError(picture, "its name is not a frame number")
            if picture.stem not in dumped:
                continue
            path = pose_folder / f"{picture.stem}.txt"
            pose = _read_matrix(path, "pose")
            if not np.isfinite(pose).all():
                continue
            _check_rigid(path, "pose", pose)
            poses[picture.stem] = pose
        return poses

    def views(self, poses: dict[str, np.ndarray]) -> Iterator[View]:
        """Reads the chosen frames one at a time.

        The intrinsics are scaled with the picture if its size is not the one `<scene>.txt` states.

        Args:
            poses: frame_id to `[4, 4]` camera-to-world, a subset of `camera_poses()`.

        Raises:
            UnreadableFileError: a picture is broken, or intrinsics or a depth map are missing or broken.
        """
        path = self.folder / "intrinsic" / "intrinsic_color.txt"
        sensor_intrinsics = _read_matrix(path, "intrinsics")[:3, :3]
        if not np.isfinite(sensor_intrinsics).all() or sensor_intrinsics[0, 0] <= 0 or sensor_intrinsics[1, 1] <= 0:
            raise UnreadableFileError(path, "the focal lengths are not positive numbers")
        for frame_id, camera_to_world in poses.items():
            image, (width, height) = read_picture(self.folder / "color" / f"{frame_id}.jpg")
            intrinsics = sensor_intrinsics.copy()
            if self.stated_size is not None:
                intrinsics[0] *= width / self.stated_size[0]
                intrinsics[1] *= height / self.stated_size[1]
            yield View(
                frame_id=frame_id,
                image=image,
                world_to_camera=np.linalg.inv(self.axis_alignment @ camera_to_world).astype(np.float32),
                intrinsics=intrinsics.astype(np.float32),
                depth_histogram=depth_histogram(read_depth(self.folder / "depth" / f"{frame_id}.png")),
            )


def read_depth(path: Path) -> np.ndarray:
    """Reads a depth map, `[H, W]` unsigned integers in millimetres, 0 = none.

    Raises:
        UnreadableFileError: the file is missing, broken or not a 16-bit greyscale PNG.
    """
    content = read_bytes(path)
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            mode = picture.mode
            depth = np.asarray(picture)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for a broken file
        raise UnreadableFileError(path, f"not a readable depth map ({describe_decoding_error(error)})") from None
    if mode not in ("I;16", "I"):
        raise UnreadableFileError(path, f"depth must be 16-bit greyscale, this is mode {mode}")
    return depth


def depth_histogram(depth: np.ndarray) -> np.ndarray:
    """Shares of the valid depth pixels in 16 equal bins over 0-8 m; what lies beyond counts in the last bin.

    Args:
        depth: `[H, W]` millimetres, 0 = none.

    Returns:
        `[16]` float32 that sums to 1, or all zero if no pixel is valid.
    """
    valid = depth[depth > 0].astype(np.int64)
    counts = np.bincount(np.minimum(valid // DEPTH_BIN_MILLIMETRES, DEPTH_BINS - 1), minlength=DEPTH_BINS)
    return (counts / max(valid.size, 1)).astype(np.float32)


def scan_files(folder: Path) -> Iterator[Path]:
    """Every file of a scan that reading it may touch, in a fixed order."""
    yield folder / f"{folder.name}.txt"
    for name in FRAME_FOLDERS:
        if (folder / name).is_dir():
            yield from sorted((folder / name).iterdir())


def _files(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        raise UnreadableFileError(folder, "folder missing")
    return [path for path in folder.iterdir() if path.suffix == suffix]


def _read_matrix(path: Path, what: str) -> np.ndarray:
    return _parse_matrix(path, what, read_bytes(path).decode("utf-8", errors="replace"))


def _parse_matrix(path: Path, what: str, text: str) -> np.ndarray:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        raise UnreadableFileError(path, f"{what} holds something that is not a number") from None
    if len(numbers) != 16:
        raise UnreadableFileError(path, f"{what} holds {len(numbers)} numbers, expected 16")
    return np.array(numbers).reshape(4, 4)


def _check_rigid(path: Path, what: str, matrix: np.ndarray) -> None:
    rotation = matrix[:3, :3]
    orthonormal = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-2
    if not (orthonormal and np.linalg.det(rotation) > 0 and np.abs(matrix[3] - [0, 0, 0, 1]).max() < 1e-6):
        raise UnreadableFileError(path, f"{what} is not a rigid transform")


__all__ = ["Scan", "View", "depth_histogram", "read_depth", "scan_files"]
