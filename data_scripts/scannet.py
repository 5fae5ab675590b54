# SPDX-License-Identifier: Apache-2.0
"""Reads ScanNet scans, as frame dumps (the output of ScanNet's SensReader) or as `.sens` streams; knows nothing about any
question dataset.

A dump of one scan is a folder `<root>/<scene>/` with
- `color/<n>.jpg`, `<n>` being the frame number: not zero-padded, may skip;
- `depth/<n>.png`: uint16 millimetres, 0 where nothing was measured;
- `pose/<n>.txt`: 4x4 camera-to-world in metres, OpenCV camera axes (x right, y down, z forward); a frame whose pose
  was lost holds `-inf`;
- `intrinsic/intrinsic_color.txt`, `intrinsic/intrinsic_depth.txt`: 4x4, pixels of the two sensors;
- `<scene>.txt`: `key = value` lines, among them `axisAlignment` (16 numbers, row-major: scan world to aligned world;
  not there for test scans, whose alignment is the identity) and `colorWidth`, `colorHeight`, `depthWidth`, `depthHeight`.
A stream is `<root>/<scene>/<scene>.sens` with the same `<scene>.txt` beside it; where there is a dump too, the dump is read.

Source: https://github.com/ScanNet/ScanNet (SensReader and the file descriptions in its README).
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
from plyfile import PlyData, PlyParseError

from .frames import Frame, View, check_intrinsics, decode_picture, is_rigid, read_depth, scale_intrinsics
from .sens import SensStream
from .views import UnreadableFileError, read_bytes


FRAME_FOLDERS = ("color", "depth", "pose", "intrinsic")


class Scan:
    """One scan; reads nothing until asked.

    Args:
        folder: `<root>/<scene>`.

    Attributes:
        scene_id: the folder's name.
        folder: as given.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.scene_id = folder.name

    @cached_property
    def axis_alignment(self) -> np.ndarray:
        """`[4, 4]` scan world to aligned world.

        Raises:
            UnreadableFileError: `<scene>.txt` is missing or malformed. Without it nothing says whether the scan is
                aligned, so the identity is assumed only when the file is there and states no alignment.
        """
        path = self._description_file
        if "axisAlignment" not in self._description:
            return np.eye(4)
        alignment = _parse_matrix(path, "axisAlignment", self._description["axisAlignment"])
        if not is_rigid(alignment):
            raise UnreadableFileError(path, "axisAlignment is not a rigid transform")
        return alignment

    def frames(self, geometry: bool = True) -> list[Frame]:
        """All frames that have a picture, by frame number; no picture is decoded.

        Args:
            geometry: False for pictures alone: nothing else is looked at, no frame has a pose.

        Raises:
            UnreadableFileError: there is no picture or stream, a picture's name is not a frame number; with
                `geometry`, also: poses, intrinsics or `<scene>.txt` are missing, or one of them is malformed. A pose
                that is lost (a number is not finite) or was not dumped is no error: the frame has none.
        """
        source = self._source
        numbers = source.numbers()
        if not geometry:
            return [Frame(str(number), source.timestamp(number), None, False, False) for number in numbers]
        source.color_intrinsics()
        world_to_camera = self._world_to_camera(source.poses(numbers))
        return [
            Frame(
                frame_id=str(number),
                timestamp=source.timestamp(number),
                world_to_camera=world_to_camera.get(number),
                has_depth=source.has_depth(number),
                has_intrinsics=True,
            )
            for number in numbers
        ]

    def load(self, frame: Frame) -> View:
        """Reads a frame. The intrinsics are scaled with the picture if its size is not the stated one.

        Raises:
            UnreadableFileError: the picture or the depth map is broken.
        """
        number = int(frame.frame_id)
        image = self.load_image(frame)
        intrinsics = depth = depth_intrinsics = None
        if frame.world_to_camera is not None:
            intrinsics = self._scaled(*self._source.color_intrinsics(), image.size, "color")
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
        """Depth `[h, w]` float32 metres and its intrinsics `[3, 3]`; None if the frame has no depth."""
        if not frame.has_depth:
            return None
        depth = self._source.depth(int(frame.frame_id))
        return depth, self._scaled(*self._source.depth_intrinsics(), depth.shape[::-1], "depth")

    def files(self) -> Iterator[Path]:
        """Every file of the scan that reading it may touch, in a fixed order."""
        yield self._description_file
        yield from self._source.files()
        mesh = self.folder / f"{self.folder.name}_vh_clean_2.ply"
        if mesh.is_file():
            yield mesh

    def _world_to_camera(self, poses: dict[int, tuple[Path | str, np.ndarray]]) -> dict[int, np.ndarray]:
        """Frame number to `[4, 4]` world-to-camera, from (where it was read, camera-to-world); without the lost ones."""
        numbers = [number for number, (_, pose) in poses.items() if np.isfinite(pose).all()]
        to_scan = np.array([poses[number][1] for number in numbers]).reshape(-1, 4, 4)
        rigid = is_rigid(to_scan)
        if not rigid.all():
            raise UnreadableFileError(poses[numbers[int(np.argmin(rigid))]][0], "pose is not a rigid transform")
        return dict(zip(numbers, np.linalg.inv(self.axis_alignment @ to_scan)))

    @cached_property
    def _source(self) -> "_FrameDump | _Stream":
        stream = self.folder / f"{self.folder.name}.sens"
        if stream.is_file() and not (self.folder / "color").is_dir():
            return _Stream(stream)
        return _FrameDump(self.folder)

    @property
    def _description_file(self) -> Path:
        return self.folder / f"{self.folder.name}.txt"

    @cached_property
    def _description(self) -> dict[str, str]:
        lines = read_bytes(self._description_file).decode("utf-8", errors="replace").splitlines()
        return {key.strip(): value for key, _, value in (line.partition("=") for line in lines)}

    def _scaled(
        self, intrinsics: np.ndarray, stated: tuple[int, int] | None, size: tuple[int, int], sensor: str
    ) -> np.ndarray:
        """`intrinsics` of a picture of `size` (width, height); those of a dump are for the size `<scene>.txt` states."""
        keys = (f"{sensor}Width", f"{sensor}Height")
        if stated is None and all(key in self._description for key in keys):
            try:
                stated = tuple(int(self._description[key]) for key in keys)
            except ValueError:
                raise UnreadableFileError(self._description_file, f"{' or '.join(keys)} is not a number") from None
            if min(stated) < 1:
                raise UnreadableFileError(self._description_file, f"{' or '.join(keys)} is not positive")
        if stated is None:
            return intrinsics
        return scale_intrinsics(intrinsics, stated, size)


class _FrameDump:
    """Access to the files of a dump by frame number."""

    def __init__(self, folder: Path):
        self.folder = folder

    def numbers(self) -> list[int]:
        names = _files(self.folder / "color", ".jpg")
        for path in names:
            # Not "007": the other files of the frame would not be found under that number.
            if not (path.stem.isascii() and path.stem.isdigit() and str(int(path.stem)) == path.stem):
                raise UnreadableFileError(path, "its name is not a frame number")
        return sorted(int(path.stem) for path in names)

    def timestamp(self, number: int) -> None:
        return None

    def poses(self, numbers: list[int]) -> dict[int, tuple[Path, np.ndarray]]:
        dumped = {path.stem for path in _files(self.folder / "pose", ".txt")}
        paths = {number: self.folder / "pose" / f"{number}.txt" for number in numbers if str(number) in dumped}
        return {number: (path, _read_matrix(path, "pose")) for number, path in paths.items()}

    def color_intrinsics(self) -> tuple[np.ndarray, None]:
        return self._intrinsics("color"), None

    def depth_intrinsics(self) -> tuple[np.ndarray, None]:
        return self._intrinsics("depth"), None

    def has_depth(self, number: int) -> bool:
        return str(number) in self._with_depth

    def encoded_picture(self, number: int) -> bytes:
        return read_bytes(self.folder / "color" / f"{number}.jpg")

    def picture(self, number: int, at_least: int | None) -> PIL.Image.Image:
        return decode_picture(self.encoded_picture(number), self.folder / "color" / f"{number}.jpg", at_least)

    def depth(self, number: int) -> np.ndarray:
        return read_depth(self.folder / "depth" / f"{number}.png")

    def files(self) -> Iterator[Path]:
        for name in FRAME_FOLDERS:
            if (self.folder / name).is_dir():
                yield from sorted((self.folder / name).iterdir())

    @cached_property
    def _with_depth(self) -> set[str]:
        folder = self.folder / "depth"
        return {path.stem for path in _files(folder, ".png")} if folder.is_dir() else set()

    def _intrinsics(self, sensor: str) -> np.ndarray:
        path = self.folder / "intrinsic" / f"intrinsic_{sensor}.txt"
        return check_intrinsics(path, _read_matrix(path, "intrinsics")[:3, :3])


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

    def color_intrinsics(self) -> tuple[np.ndarray, tuple[int, int]]:
        return self.stream.color_intrinsics, self.stream.color_size

    def depth_intrinsics(self) -> tuple[np.ndarray, tuple[int, int]]:
        return self.stream.depth_intrinsics, self.stream.depth_size

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


def open_scan(folder: Path) -> Scan:
    """The scan in `folder`.

    Raises:
        UnreadableFileError: `folder` holds neither a `color` folder nor a `.sens` stream.
    """
    if not (folder / "color").is_dir() and not (folder / f"{folder.name}.sens").is_file():
        raise UnreadableFileError(folder, f"neither a folder 'color' nor a stream {folder.name}.sens")
    return Scan(folder)


def scan_files(folder: Path) -> Iterator[Path]:
    """See `Scan.files`."""
    return Scan(folder).files()


def mesh_center(folder: Path) -> np.ndarray | None:
    """The centre of the bounding box of a scan's mesh, from which SQA3D measures its positions.

    Args:
        folder: `<root>/<scene>`.

    Returns:
        `[3]` float64 metres, scan world (not aligned); None if there is no `<scene>_vh_clean_2.ply`.

    Raises:
        UnreadableFileError: the file is there but is no mesh, or is cut short.
    """
    path = folder / f"{folder.name}_vh_clean_2.ply"
    if not path.is_file():
        return None
    try:
        vertices = PlyData.read(path, known_list_len={"face": {"vertex_indices": 3}})["vertex"]
        points = np.stack([np.asarray(vertices[axis], dtype=np.float64) for axis in "xyz"])
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise UnreadableFileError(path, f"not a readable mesh ({' '.join(str(error).split())})") from None
    if points.size == 0 or not np.isfinite(points).all():
        raise UnreadableFileError(path, "the mesh has no vertices, or one that is not finite")
    return (points.min(axis=1) + points.max(axis=1)) / 2


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


__all__ = ["Scan", "mesh_center", "open_scan", "scan_files"]
