# SPDX-License-Identifier: Apache-2.0
"""Reads ScanNet scans, as frame dumps (the output of ScanNet's SensReader, `scannet_frames_25k`, ...) or as `.sens` streams;
knows nothing about any question dataset.

A dump of one scan is a folder `<root>/<scene>/` with
- `color/<n>.jpg`, `<n>` being the frame number, which may skip and may be padded with zeros;
- `depth/<n>.png`: uint16 millimetres, 0 where nothing was measured;
- `pose/<n>.txt`: 4x4 camera-to-world in metres, OpenCV camera axes (x right, y down, z forward); a frame whose pose
  was lost holds `-inf`;
- the intrinsics, in one of the places that `data_scripts.readers.frame_dump` names;
- `<scene>.txt`: `key = value` lines, among them `axisAlignment` (16 numbers, row-major: scan world to aligned world;
  not there for test scans, whose alignment is the identity) and `colorWidth`, `colorHeight`, `depthWidth`, `depthHeight`.
A stream is `<root>/<scene>/<scene>.sens` with the same `<scene>.txt` beside it; where there is a dump too, the dump is read.
Where there is no `<scene>.txt` (`scannet_frames_25k` has none), the alignment is the identity.

Source: https://github.com/ScanNet/ScanNet (SensReader and the file descriptions in its README).
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import UnreadableFileError
from ..limits import describe_size_fault
from .frame_dump import Calibration, FrameDump, parse_matrix, read_text
from .frames import Frame, View, is_rigid, is_storable, scale_intrinsics
from .ply import read_vertices
from .sens import SensStream


class Scan:
    """One scan; reads nothing until asked.

    Args:
        folder: `<root>/<scene>`, with the recording.
        others: folders of the same scan under other roots, in which `<scene>.txt` and the mesh are looked for if they are not
            in `folder`.

    Attributes:
        scene_id: the folder's name.
        folder: as given.
        description_file: `<scene>.txt`, or None if there is none.
        mesh_file: `<scene>_vh_clean_2.ply`, or None.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()):
        self.folder = folder
        self.scene_id = folder.name
        self._folders = (folder, *others)

    @property
    def description_file(self) -> Path | None:
        return self._find(f"{self.scene_id}.txt")

    @property
    def mesh_file(self) -> Path | None:
        return self._find(f"{self.scene_id}_vh_clean_2.ply")

    @cached_property
    def axis_alignment(self) -> np.ndarray:
        """`[4, 4]` scan world to aligned world; the identity if there is no `<scene>.txt` or it states none.

        Raises:
            UnreadableFileError: `<scene>.txt` is malformed.
        """
        path = self.description_file
        if "axisAlignment" not in self._description:
            return np.eye(4)
        alignment = parse_matrix(path, "axisAlignment", self._description["axisAlignment"])
        if not (is_rigid(alignment) and is_storable(alignment).all()):
            raise UnreadableFileError(path, "axisAlignment is not a rigid transform of metres")
        return alignment

    def frames(self, geometry: bool = True) -> list[Frame]:
        """All frames that have a picture, by frame number; no picture is decoded.

        Args:
            geometry: False for pictures alone: nothing else is looked at, no frame has a pose.

        Raises:
            UnreadableFileError: there is no picture or stream, a picture's name is not a frame number; with
                `geometry`, also: poses or intrinsics are missing, or one of them or `<scene>.txt` is malformed. A pose
                that is lost (a number is not finite, or not as float32) or was not dumped is no error: the frame has none.
        """
        source = self._source
        numbers = source.numbers()
        if not geometry:
            return [Frame(str(number), source.timestamp(number), None, False, False) for number in numbers]
        with_intrinsics = source.with_intrinsics(numbers)
        world_to_camera = self._world_to_camera(source.poses(numbers))
        return [
            Frame(
                frame_id=str(number),
                timestamp=source.timestamp(number),
                world_to_camera=world_to_camera.get(number),
                has_depth=source.has_depth(number),
                has_intrinsics=number in with_intrinsics,
            )
            for number in numbers
        ]

    def load(self, frame: Frame) -> View:
        """Reads a frame. The intrinsics are scaled with the picture if they are for another size.

        Raises:
            UnreadableFileError: the picture or the depth map is broken, or the intrinsics are not for pictures of a size that is
                known.
        """
        number = int(frame.frame_id)
        image = self.load_image(frame)
        intrinsics = depth = depth_intrinsics = None
        if frame.world_to_camera is not None and frame.has_intrinsics:
            intrinsics = self._scaled("color", number, image.size)
            if frame.has_depth:
                depth, depth_intrinsics = self.load_depth(frame)
        return View(
            frame_id=frame.frame_id,
            image=image,
            encoded=self._source.encoded_picture(number),
            world_to_camera=frame.world_to_camera,
            intrinsics=intrinsics,
            depth=depth,
            depth_intrinsics=depth_intrinsics,
        )

    def load_image(self, frame: Frame, at_least: int | None = None) -> PIL.Image.Image:
        """The picture alone, RGB; for `at_least` see `decode_picture`."""
        return self._source.picture(int(frame.frame_id), at_least)

    def load_depth(self, frame: Frame) -> tuple[np.ndarray, np.ndarray] | None:
        """Depth `[h, w]` float32 metres and its intrinsics `[3, 3]`; None if the frame lacks either."""
        if not (frame.has_depth and frame.has_intrinsics):
            return None
        depth = self._source.depth(int(frame.frame_id))
        return depth, self._scaled("depth", int(frame.frame_id), depth.shape[::-1])

    def files(self) -> Iterator[Path]:
        """Every file of the scan that reading it may touch, in a fixed order."""
        if self.description_file is not None:
            yield self.description_file
        yield from self._source.files()
        if self.mesh_file is not None:
            yield self.mesh_file

    def _find(self, name: str) -> Path | None:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), None)

    def _world_to_camera(self, poses: dict[int, tuple[Path | str, np.ndarray]]) -> dict[int, np.ndarray]:
        """Frame number to `[4, 4]` world-to-camera, from (where it was read, camera-to-world); without the lost ones."""
        numbers = np.array(list(poses), dtype=object)  # a name's number may be longer than 64 bits
        to_scan = np.array([pose for _, pose in poses.values()]).reshape(-1, 4, 4)
        known = is_storable(to_scan).all(axis=(1, 2))
        numbers, to_scan = numbers[known], to_scan[known]
        rigid = is_rigid(to_scan)
        if not rigid.all():
            raise UnreadableFileError(poses[numbers[int(np.argmin(rigid))]][0], "pose is not a rigid transform")
        to_camera = np.linalg.inv(self.axis_alignment @ to_scan)
        known = is_storable(to_camera).all(axis=(1, 2))
        return dict(zip(numbers[known], to_camera[known]))

    @cached_property
    def _source(self) -> "FrameDump | _Stream":
        stream = self.folder / f"{self.folder.name}.sens"
        if stream.is_file() and not (self.folder / "color").is_dir():
            return _Stream(stream)
        return FrameDump(self.folder)

    @cached_property
    def _description(self) -> dict[str, str]:
        if self.description_file is None:
            return {}
        lines = read_text(self.description_file).splitlines()
        return {key.strip(): value for key, _, value in (line.partition("=") for line in lines)}

    def _stated_size(self, sensor: str) -> tuple[int, int] | None:
        """(width, height) of a sensor's pictures, by `<scene>.txt`."""
        keys = (f"{sensor}Width", f"{sensor}Height")
        if not all(key in self._description for key in keys):
            return None
        try:
            stated = tuple(int(self._description[key]) for key in keys)
        except ValueError:
            raise UnreadableFileError(self.description_file, f"{' or '.join(keys)} is not a number") from None
        fault = describe_size_fault(*stated)
        if fault is not None:
            raise UnreadableFileError(self.description_file, f"{' and '.join(keys)}: {fault}")
        return stated

    def _scaled(self, sensor: str, number: int, size: tuple[int, int]) -> np.ndarray:
        """`[3, 3]` intrinsics of a frame's picture or depth map of `size` (width, height).

        Those of a dump are for the size that `<scene>.txt` states or, where the pictures were resized and the intrinsics with
        them, for that of the pictures: for the first of the two in whose middle the principal point lies.
        """
        calibration = self._source.intrinsics(sensor, number)
        before = calibration.size
        if before is None:
            own = size if calibration.sensor == sensor else self._source.picture_size(number)
            sizes = [stated for stated in (self._stated_size(calibration.sensor), own) if stated is not None]
            before = next((size for size in sizes if _in_the_middle(calibration.matrix, size)), None)
            if before is None:
                known = " or ".join(f"{width} x {height}" for width, height in sizes)
                reason = f"the principal point is not in the middle of pictures of {known}"
                if self.description_file is None:
                    reason += f"; {self.scene_id}.txt, which states the sensor's size, is not there"
                raise UnreadableFileError(calibration.where, reason)
        return scale_intrinsics(calibration.matrix, before, size)


class _Stream:
    """The same access to a `.sens` stream; frame number n is its n-th frame."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def stream(self) -> SensStream:
        return SensStream(self.path)

    def numbers(self) -> list[int]:
        return [number for number in range(len(self.stream)) if self.stream.has_picture(number)]

    def timestamp(self, number: int) -> float:
        return float(self.stream.timestamps[number])

    def poses(self, numbers: list[int]) -> dict[int, tuple[str, np.ndarray]]:
        return {number: (f"{self.path} (frame {number})", self.stream.camera_to_world[number]) for number in numbers}

    def with_intrinsics(self, numbers: list[int]) -> set[int]:
        return set(numbers)

    def intrinsics(self, sensor: str, number: int) -> Calibration:
        if sensor == "color":
            return Calibration(self.path, self.stream.color_intrinsics, sensor, self.stream.color_size)
        return Calibration(self.path, self.stream.depth_intrinsics, sensor, self.stream.depth_size)

    def has_depth(self, number: int) -> bool:
        return self.stream.has_depth(number)

    def encoded_picture(self, number: int) -> bytes | None:
        return self.stream.encoded_picture(number)

    def picture(self, number: int, at_least: int | None) -> PIL.Image.Image:
        return self.stream.picture(number, at_least)

    def depth(self, number: int) -> np.ndarray:
        return self.stream.depth(number)

    def files(self) -> Iterator[Path]:
        yield self.path


def _in_the_middle(intrinsics: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the principal point is within an eighth of a picture's width and height of its middle."""
    return all(abs(2 * intrinsics[axis, 2] + 1 - size[axis]) <= size[axis] / 4 for axis in (0, 1))


def open_scan(folder: Path, others: Sequence[Path] = ()) -> Scan:
    """The scan in `folder`; for `others` see `Scan`.

    Raises:
        UnreadableFileError: `folder` holds neither a `color` folder nor a `.sens` stream.
    """
    if not has_recording(folder):
        raise UnreadableFileError(folder, f"neither a folder 'color' nor a stream {folder.name}.sens")
    return Scan(folder, others)


def has_recording(folder: Path) -> bool:
    """Whether a scan's folder has pictures, and not only a mesh and a description."""
    return (folder / "color").is_dir() or (folder / f"{folder.name}.sens").is_file()


def scan_roots(given: Sequence[Path]) -> tuple[Path, ...]:
    """The folders that hold scans: of ScanNet as downloaded, `scans` and `scans_test`, where only one was named.

    Args:
        given: a folder that has `scans` or `scans_test` in it stands for these; `scans` for the `scans_test` beside it too;
            any other for itself.
    """
    roots: dict[Path, None] = {}  # in order, each once
    for root in map(Path, map(os.path.abspath, given)):
        inside = [root / name for name in ("scans", "scans_test") if (root / name).is_dir()]
        beside = [root.with_name("scans_test")] if root.name == "scans" else []
        found = inside or [root, *(path for path in beside if path.is_dir())]
        roots |= dict.fromkeys(found)
    return tuple(roots)


def scan_files(folder: Path) -> Iterator[Path]:
    """See `Scan.files`."""
    return Scan(folder).files()


def mesh_center(folder: Path) -> np.ndarray | None:
    """The centre of the bounding box of a scan's mesh, from which SQA3D measures its positions.

    Args:
        folder: `<root>/<scene>`, or wherever `Scan.mesh_file` is.

    Returns:
        `[3]` float64 metres, scan world (not aligned); None if there is no `<scene>_vh_clean_2.ply`.

    Raises:
        UnreadableFileError: the file is there but is no mesh, or is cut short.
    """
    path = folder / f"{folder.name}_vh_clean_2.ply"
    if not path.is_file():
        return None
    points = read_vertices(path)
    if points.size == 0 or not is_storable(points).all():
        raise UnreadableFileError(path, "the mesh has no vertices, or one that is not finite")
    return (points.min(axis=0) + points.max(axis=0)) / 2


__all__ = ["Scan", "has_recording", "mesh_center", "open_scan", "scan_files", "scan_roots"]
