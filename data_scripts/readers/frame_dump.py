# SPDX-License-Identifier: Apache-2.0
"""The files of one scan that was unpacked into single pictures, by frame number, in each of the layouts that are about.

All have `color/<n>.jpg`, `depth/<n>.png` and `pose/<n>.txt`; `<n>` is the frame number, may skip, and may be padded with zeros
(`000100`), in each folder in its own way. The intrinsics (3x3 or 4x4) are found where they are, in this order:
- `intrinsic/intrinsic_{color,depth}.txt`: ScanNet's SensReader;
- `intrinsics_{color,depth}.txt` in the scan's folder: ScanNet's `scannet_frames_25k`, whose `label` and `instance` are not read;
- `intrinsic/<n>.txt` or `intrinsics/<n>.txt`: one file per frame, of the picture; the depth map has the same camera.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import UnreadableFileError, read_bytes
from ..limits import MAX_CAMERA_BYTES
from ..pictures import picture_size
from .frames import check_intrinsics, decode_picture, read_depth


@dataclass(frozen=True)
class Calibration:
    """Intrinsics as they are stored.

    Attributes:
        where: the file.
        matrix: `[3, 3]` float64.
        sensor: "color" or "depth": whose pixels they are in.
        size: (width, height) of the pictures they are for, or None where the file does not say.
    """

    where: str | Path
    matrix: np.ndarray
    sensor: str
    size: tuple[int, int] | None


class FrameDump:
    """Access to the files of a dump by frame number."""

    def __init__(self, folder: Path):
        self.folder = folder

    def numbers(self) -> list[int]:
        return sorted(self._color)

    def timestamp(self, number: int) -> None:
        return None

    def poses(self, numbers: list[int]) -> dict[int, tuple[Path, np.ndarray]]:
        """Frame number to (file, `[4, 4]` camera-to-world), of those that were dumped."""
        paths = _numbered(self.folder / "pose", ".txt")
        return {number: (paths[number], read_matrix(paths[number], "pose")) for number in numbers if number in paths}

    def with_intrinsics(self, numbers: list[int]) -> set[int]:
        """The frames that have intrinsics; raises `UnreadableFileError` if there are none at all."""
        if self._per_frame:
            return set(numbers) & set(self._per_frame)
        self._shared("color")
        return set(numbers)

    def intrinsics(self, sensor: str, number: int) -> Calibration:
        if not self._per_frame:
            return self._shared(sensor)
        path = self._per_frame[number]
        return Calibration(path, _read_intrinsics(path), "color", None)

    def has_depth(self, number: int) -> bool:
        return number in self._depth

    def encoded_picture(self, number: int) -> bytes:
        return read_bytes(self._color[number])

    def picture(self, number: int, at_least: int | None) -> PIL.Image.Image:
        return decode_picture(self.encoded_picture(number), self._color[number], at_least)

    def picture_size(self, number: int) -> tuple[int, int]:
        """(width, height), without decoding the picture."""
        return picture_size(self.encoded_picture(number), self._color[number])

    def depth(self, number: int) -> np.ndarray:
        return read_depth(self._depth[number])

    def files(self) -> Iterator[Path]:
        for name in ("color", "depth", "pose", "intrinsic", "intrinsics"):
            if (self.folder / name).is_dir():
                yield from sorted((self.folder / name).iterdir())
        yield from sorted(self.folder.glob("intrinsics_*.txt"))

    @cached_property
    def _color(self) -> dict[int, Path]:
        return _numbered(self.folder / "color", ".jpg", only_frames=True)

    @cached_property
    def _depth(self) -> dict[int, Path]:
        folder = self.folder / "depth"
        return _numbered(folder, ".png") if folder.is_dir() else {}

    @cached_property
    def _per_frame(self) -> dict[int, Path]:
        """Frame number to its own intrinsics; empty where the frames share theirs."""
        if any(path.is_file() for path in self._shared_files("color")):
            return {}
        folders = [self.folder / name for name in ("intrinsic", "intrinsics")]
        return next((found for folder in folders if folder.is_dir() and (found := _numbered(folder, ".txt"))), {})

    def _shared_files(self, sensor: str) -> tuple[Path, Path]:
        return self.folder / "intrinsic" / f"intrinsic_{sensor}.txt", self.folder / f"intrinsics_{sensor}.txt"

    def _shared(self, sensor: str) -> Calibration:
        paths = self._shared_files(sensor)
        path = next((path for path in paths if path.is_file()), paths[0])
        return Calibration(path, _read_intrinsics(path), sensor, None)


def read_matrix(path: Path, what: str) -> np.ndarray:
    """`[4, 4]` from a text file of 16 numbers; raises `UnreadableFileError` for anything else."""
    return parse_matrix(path, what, read_text(path))


def parse_matrix(path: Path, what: str, text: str, sizes: tuple[int, ...] = (4,)) -> np.ndarray:
    """`[n, n]` of the numbers in `text`, n being one of `sizes`."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        raise UnreadableFileError(path, f"{what} holds something that is not a number") from None
    side = next((side for side in sizes if side * side == len(numbers)), None)
    if side is None:
        expected = " or ".join(str(side * side) for side in sizes)
        raise UnreadableFileError(path, f"{what} holds {len(numbers)} numbers, expected {expected}")
    return np.array(numbers).reshape(side, side)


def read_text(path: Path) -> str:
    # Windows editors put a byte order mark first, which would become part of the first word.
    return read_bytes(path, MAX_CAMERA_BYTES).decode("utf-8-sig", errors="replace")


def _read_intrinsics(path: Path) -> np.ndarray:
    return check_intrinsics(path, parse_matrix(path, "intrinsics", read_text(path), sizes=(4, 3))[:3, :3])


def _numbered(folder: Path, suffix: str, only_frames: bool = False) -> dict[int, Path]:
    """Frame number to file, of the files with that suffix; `only_frames`: other names than a number are an error."""
    if not folder.is_dir():
        raise UnreadableFileError(folder, "folder missing")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != suffix or path.name.startswith("."):  # macOS puts "._0.jpg" beside "0.jpg" in archives
            continue
        if not (path.stem.isascii() and path.stem.isdigit()):
            if only_frames:
                raise UnreadableFileError(path, "its name is not a frame number")
            continue
        number = int(path.stem)
        if number in found:
            raise UnreadableFileError(path, f"frame {number} is there twice, as {found[number].name} too")
        found[number] = path
    return found


__all__ = ["Calibration", "FrameDump", "parse_matrix", "read_matrix", "read_text"]
