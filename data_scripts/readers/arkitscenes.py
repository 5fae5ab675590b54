# SPDX-License-Identifier: Apache-2.0
"""Reads ARKitScenes scans, downloaded as `3dod` or as `raw`; knows nothing about what is asked of them.

A 3dod scan is `<root>/3dod/<Training|Validation>/<video>/` with `<video>_3dod_annotation.json` and a folder `<video>_frames`; in a
raw scan, `<root>/raw/<split>/<video>/`, the content of that folder lies beside the annotation. The content:
- `lowres_wide/<video>_<seconds>.png`: pictures, 256x192, in the sensor's orientation;
- `lowres_depth/<video>_<seconds>.png`: uint16 millimetres, 0 = none;
- `lowres_wide_intrinsics/<video>_<seconds>.pincam`: `width height fx fy cx cy`;
- `lowres_wide.traj`: lines `seconds rx ry rz tx ty tz`, about ten per second: world-to-camera, the rotation as a vector (axis
  times angle), metres, OpenCV camera axes; the world has z up.
`metadata.csv` says at which side of a scan's pictures the sky is.

Pictures, intrinsics, poses and depth come out turned upright.

Source: https://github.com/apple/ARKitScenes (DATA.md and threedod/benchmark_scripts).
"""

import csv
import io
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import UnreadableFileError, read_bytes
from ..limits import MAX_CAMERA_BYTES, MAX_JSON_BYTES, describe_size_fault
from ..paths import resolve_inside
from .arkitscenes_boxes import ARKITSCENES_LABELS, read_annotation
from .boxes import Box
from .frames import Frame, View, check_intrinsics, decode_picture, read_depth, scale_intrinsics
from .trajectory import LATEST_TIME, Trajectory, read_numbers


FILE_TOLERANCE = 0.001  # seconds between a picture and its intrinsics or depth: the names are rounded differently
LAYOUTS = ("3dod", "raw")
SPLITS = ("Training", "Validation")
# Videos of raw that have no boxes, mesh or trajectory on the server: Apple's script does not ask for them, either.
WITHOUT_3DOD = frozenset(
    "42446164 42897421 42897612 42897848 42899148 42899153 45261582 45663223 45663226 45663227 47332198 47333152 "
    "47333155 47333960 47334515 47334522 47334523 47429677 47430089 47895482 48018149 48018733 48458535 48458541".split()
)
FRAME_FOLDERS = ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics")

# The side of the stored picture at which the sky is -> quarter turns clockwise that bring it to the top.
SKY_DIRECTIONS = {"Up": 0, "Left": 1, "Down": 2, "Right": 3}

# Camera axes [3, 3] after one quarter turn clockwise from the axes before: right was up, down was right.
_QUARTER_TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
_TRANSPOSES = (None, PIL.Image.Transpose.ROTATE_270, PIL.Image.Transpose.ROTATE_180, PIL.Image.Transpose.ROTATE_90)


@dataclass(frozen=True)
class ScanPlace:
    """Where a scan is: its split ("Training" or "Validation"), its folder and the layout ("3dod" or "raw")."""

    split: str
    folder: Path
    layout: str


class Scan:
    """One scan; reads nothing until asked.

    Args:
        folder: `<root>/<layout>/<split>/<video>`.
        sky_direction: "Up", "Down", "Left" or "Right", the side of the stored pictures at which the sky is; None to find it
            from the poses, or to leave the pictures as they are where there are none.

    Attributes:
        scene_id: the video's id.
    """

    def __init__(self, folder: Path, sky_direction: str | None = None):
        if sky_direction is not None and sky_direction not in SKY_DIRECTIONS:
            raise ValueError(f"sky_direction must be one of {', '.join(SKY_DIRECTIONS)}, got '{sky_direction}'")
        self.folder = folder
        self.scene_id = folder.name
        self.sky_direction = sky_direction

    def frames(self, geometry: bool = True) -> list[Frame]:
        """All frames that have a picture, in the order of time; no picture is decoded.

        A frame has a pose if a line of the trajectory lies within 5 ms of it. The pose is interpolated between the two lines
        around the frame: at constant speed between the camera's places, and about a fixed axis.

        Args:
            geometry: False for pictures alone: nothing else is looked at, no frame has a pose.

        Raises:
            UnreadableFileError: there is no picture, a file's name holds no time, or, with `geometry`, the trajectory is
                missing or malformed.
        """
        pictures = self._pictures
        if not geometry:
            return [Frame(frame_id, time, None, False, False) for frame_id, (time, _) in pictures.items()]
        trajectory = self._trajectory
        return [
            Frame(
                frame_id=frame_id,
                timestamp=time,
                world_to_camera=_turn_pose(trajectory.at(time), self._turns),
                has_depth=self._depths.at(time) is not None,
                has_intrinsics=self._intrinsics.at(time) is not None,
            )
            for frame_id, (time, _) in pictures.items()
        ]

    def load(self, frame: Frame) -> View:
        """Reads a frame and turns it upright.

        Raises:
            UnreadableFileError: the picture, the intrinsics or the depth map is broken.
        """
        path = self._pictures[frame.frame_id][1]
        encoded = read_bytes(path)
        image = decode_picture(encoded, path)
        intrinsics = depth = depth_intrinsics = None
        turns = self._turns
        if frame.world_to_camera is not None:
            if frame.has_intrinsics:
                intrinsics = _turn_intrinsics(self._sensor_intrinsics(frame, image.size), image.size, turns)
            if frame.has_depth and frame.has_intrinsics:
                depth, depth_intrinsics = self.load_depth(frame)
        return View(
            frame_id=frame.frame_id,
            image=_turn_image(image, turns),
            encoded=None if turns else encoded,
            world_to_camera=frame.world_to_camera,
            intrinsics=intrinsics,
            depth=depth,
            depth_intrinsics=depth_intrinsics,
        )

    def load_image(self, frame: Frame, at_least: int | None = None) -> PIL.Image.Image:
        """The picture alone, RGB, upright; for `at_least` see `decode_picture`."""
        path = self._pictures[frame.frame_id][1]
        return _turn_image(decode_picture(read_bytes(path), path, at_least), self._turns)

    def load_depth(self, frame: Frame) -> tuple[np.ndarray, np.ndarray] | None:
        """Depth `[h, w]` float32 metres, upright, and its intrinsics `[3, 3]`; None if the frame lacks either."""
        if not (frame.has_depth and frame.has_intrinsics):
            return None
        depth = read_depth(self._depths.at(frame.timestamp))
        size = depth.shape[::-1]
        intrinsics = _turn_intrinsics(self._sensor_intrinsics(frame, size), size, self._turns)
        return np.ascontiguousarray(np.rot90(depth, -self._turns)), intrinsics

    def boxes(self) -> tuple[list[Box], list[str]]:
        """The annotated boxes, see `read_annotation`."""
        return read_annotation(self.annotation_file)

    @property
    def annotation_file(self) -> Path:
        return self.folder / f"{self.scene_id}_3dod_annotation.json"

    def files(self) -> Iterator[Path]:
        """Every file of the scan that reading it may touch, in a fixed order."""
        for path in (self.annotation_file, self._content / "lowres_wide.traj"):
            if path.is_file():
                yield path
        for name in FRAME_FOLDERS:
            if (self._content / name).is_dir():
                yield from sorted((self._content / name).iterdir())

    @property
    def _content(self) -> Path:
        frames = self.folder / f"{self.scene_id}_frames"
        return frames if frames.is_dir() else self.folder

    @cached_property
    def _pictures(self) -> dict[str, tuple[float, Path]]:
        """frame_id to (seconds, file), in the order of time."""
        folder = self._content / "lowres_wide"
        if not folder.is_dir():
            raise UnreadableFileError(folder, "folder missing")
        timed = [(_time_of(path), path) for path in folder.glob("*.png")]
        return {path.stem.rpartition("_")[2]: (time, path) for time, path in sorted(timed)}

    @cached_property
    def _trajectory(self) -> Trajectory:
        return Trajectory(self._content / "lowres_wide.traj")

    @cached_property
    def _turns(self) -> int:
        """Quarter turns clockwise that bring the pictures upright."""
        if self.sky_direction is not None:
            return SKY_DIRECTIONS[self.sky_direction]
        try:
            return self._trajectory.quarter_turns()
        except UnreadableFileError:  # `frames` has raised it if poses were asked for
            return 0

    @cached_property
    def _depths(self) -> "_TimedFiles":
        return _TimedFiles(self._content / "lowres_depth", ".png")

    @cached_property
    def _intrinsics(self) -> "_TimedFiles":
        return _TimedFiles(self._content / "lowres_wide_intrinsics", ".pincam")

    def _sensor_intrinsics(self, frame: Frame, size: tuple[int, int]) -> np.ndarray:
        """`[3, 3]` of a picture of `size` (width, height) before it is turned."""
        path = self._intrinsics.at(frame.timestamp)
        text = read_bytes(path, MAX_CAMERA_BYTES).decode("utf-8", errors="replace")
        numbers = read_numbers(path, text, 6, "width height fx fy cx cy")
        width, height, fx, fy, cx, cy = numbers
        fault = describe_size_fault(width, height)
        if fault is not None:
            raise UnreadableFileError(path, f"its width and height are {fault}")
        intrinsics = check_intrinsics(path, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        return scale_intrinsics(intrinsics, (width, height), size)


def find_scans(root: Path) -> dict[str, ScanPlace]:
    """The scans under `root`, by video id in a fixed order; one that is there in both layouts is taken from `3dod`."""
    found = {}
    for layout in LAYOUTS:
        for split in SPLITS:
            folder = root / layout / split
            for scan in sorted(folder.iterdir()) if folder.is_dir() else ():
                if scan.is_dir() and not scan.name.startswith("."):  # what a download is unpacking is no scan yet
                    found.setdefault(scan.name, ScanPlace(split, scan, layout))
    return dict(sorted(found.items()))


def read_sky_directions(root: Path) -> dict[str, str]:
    """Video id to the side of its pictures at which the sky is, from `metadata.csv` in `root`, `root/raw` or `root/3dod`.

    Videos whose entry is empty or something else ("NA") are left out, as is everything where there is no such file.

    Raises:
        UnreadableFileError: the file has no columns `video_id` and `sky_direction`, or is no CSV file.
    """
    directions = {}
    for path in (root / "metadata.csv", root / "raw" / "metadata.csv", root / "3dod" / "metadata.csv"):
        if path.is_file():
            directions = _read_metadata(path, path.stat().st_mtime_ns) | directions
    return directions


def open_scan(root: Path, video_id: str) -> Scan:
    """The scan `video_id` under `root`, turned as `metadata.csv` says or, absent that, as the poses say.

    Raises:
        UnreadableFileError: there is no such scan.
        UnsafePathError: `video_id` is not the name of a folder.
    """
    for layout in LAYOUTS:
        for split in SPLITS:
            folder = resolve_inside(root / layout / split, video_id, nested=False)
            if folder.is_dir():
                return Scan(folder, read_sky_directions(root).get(video_id))
    raise UnreadableFileError(root, f"no scan {video_id} under {{3dod,raw}}/{{Training,Validation}}")


@lru_cache(maxsize=8)  # the scans of a data set are opened one by one, and it has thousands
def _read_metadata(path: Path, modified: int) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig", errors="replace")))
    try:
        if not {"video_id", "sky_direction"} <= set(rows.fieldnames or ()):
            raise UnreadableFileError(path, "it has no columns video_id and sky_direction")
        return {
            # pandas writes a whole number in a column with gaps as 41048190.0
            row["video_id"].removesuffix(".0"): row["sky_direction"]
            for row in rows
            if row["sky_direction"] in SKY_DIRECTIONS and row["video_id"]
        }
    except csv.Error as error:  # a field of more than 131 kB
        raise UnreadableFileError(path, f"not a CSV file, in line {rows.line_num + 1} ({error})") from None


class _TimedFiles:
    """The files of a folder by the time in their names; none if there is no such folder."""

    def __init__(self, folder: Path, suffix: str):
        timed = sorted((_time_of(path), path) for path in folder.glob(f"*{suffix}"))
        self._times = [time for time, _ in timed]
        self._paths = [path for _, path in timed]

    def at(self, time: float) -> Path | None:
        """The file nearest to `time`, or None if none lies within a millisecond."""
        after = bisect_left(self._times, time)
        near = [index for index in (after - 1, after) if 0 <= index < len(self._times)]
        best = min(near, key=lambda index: abs(self._times[index] - time), default=None)
        if best is None or abs(self._times[best] - time) > FILE_TOLERANCE + 1e-6:
            return None
        return self._paths[best]


def _time_of(path: Path) -> float:
    try:
        time = float(path.stem.rpartition("_")[2])
    except ValueError:
        time = math.nan
    if not abs(time) <= LATEST_TIME:
        raise UnreadableFileError(path, "its name is not <video>_<seconds>")
    return time


def _turn_image(image: PIL.Image.Image, turns: int) -> PIL.Image.Image:
    return image.transpose(_TRANSPOSES[turns]) if turns else image


def _turn_pose(pose: np.ndarray | None, turns: int) -> np.ndarray | None:
    if pose is None:
        return None
    turned = pose.copy()
    turned[:3] = np.linalg.matrix_power(_QUARTER_TURN, turns) @ pose[:3]
    return turned


def _turn_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], turns: int) -> np.ndarray:
    """Intrinsics of the turned picture; `size` (width, height) before."""
    width, height = size
    for _ in range(turns):
        (fx, _, cx), (_, fy, cy), _ = intrinsics
        # Clockwise: column = height - 1 - row, row = column.
        intrinsics = np.array([[fy, 0, height - 1 - cy], [0, fx, cx], [0, 0, 1]])
        width, height = height, width
    return intrinsics


__all__ = [
    "ARKITSCENES_LABELS",
    "SKY_DIRECTIONS",
    "SPLITS",
    "Scan",
    "ScanPlace",
    "Trajectory",
    "WITHOUT_3DOD",
    "find_scans",
    "open_scan",
    "read_annotation",
    "read_sky_directions",
]
