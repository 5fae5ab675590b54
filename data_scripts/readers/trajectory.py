# SPDX-License-Identifier: Apache-2.0
"""The camera's path of an ARKitScenes scan: a `.traj` file, poses about ten times a second, interpolated between them."""

from bisect import bisect_left
from pathlib import Path

import numpy as np

from ..files import UnreadableFileError, read_bytes
from ..limits import MAX_TRAJECTORY_BYTES
from .frames import is_storable


POSE_TOLERANCE = 0.005  # seconds between a picture and the nearest line of the trajectory
LATEST_TIME = 1e12  # seconds; beyond it float64 does not tell milliseconds apart


class Trajectory:
    """A `.traj` file.

    Attributes:
        times: `[N]` seconds, increasing.
        rotations: `[N, 3, 3]`, centers `[N, 3]`: world-to-camera rotation and place of the camera in the world, metres.

    A line with a number that is not finite, or not as float32, is a lost pose: it is left out.

    Raises:
        UnreadableFileError: the file is missing, holds no pose, or a line does not hold seven numbers.
    """

    def __init__(self, path: Path):
        lines = read_bytes(path, MAX_TRAJECTORY_BYTES).decode("utf-8", errors="replace").splitlines()
        rows = [
            read_numbers(path, line, 7, "seconds rx ry rz tx ty tz", number)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        rows = [row for row in rows if abs(row[0]) <= LATEST_TIME and is_storable(row[1:]).all()]
        if not rows:
            raise UnreadableFileError(path, "the trajectory holds no pose")
        table = np.array(rows)
        table = table[np.unique(table[:, 0], return_index=True)[1]]  # sorted, each time once
        self.times = table[:, 0]
        self.rotations = np.stack([rotation_from_vector(vector) for vector in table[:, 1:4]])
        self.centers = -np.einsum("nji,nj->ni", self.rotations, table[:, 4:])

    def at(self, time: float) -> np.ndarray | None:
        """`[4, 4]` world-to-camera at `time`, or None if no line lies within 5 ms."""
        after = bisect_left(self.times, time)
        before = max(after - 1, 0)
        after = min(after, len(self.times) - 1)
        if min(abs(self.times[before] - time), abs(self.times[after] - time)) > POSE_TOLERANCE + 1e-9:
            return None
        share = 0.0
        if before != after:
            # Before the first and after the last line nothing is extrapolated.
            share = float(np.clip((time - self.times[before]) / (self.times[after] - self.times[before]), 0, 1))
        step = rotation_vector(self.rotations[after] @ self.rotations[before].T)
        pose = np.eye(4)
        pose[:3, :3] = rotation_from_vector(share * step) @ self.rotations[before]
        center = (1 - share) * self.centers[before] + share * self.centers[after]
        pose[:3, 3] = -pose[:3, :3] @ center
        return pose

    def quarter_turns(self) -> int:
        """Quarter turns clockwise that bring most of the pictures upright, from where the world's up points in them: 0 to 3."""
        right, down = self.rotations[:, :2, 2].T  # of the direction up, in camera axes
        votes = np.argmax(np.stack([-down, -right, down, right]), axis=0)  # sky above, left, below, right
        return int(np.bincount(votes, minlength=4).argmax())


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """`[3, 3]` rotation about the axis `vector [3]` by its length in radians (Rodrigues' formula)."""
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """`[3]` axis times angle of a rotation `[3, 3]`, the angle from 0 to pi."""
    skew = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    angle = np.arctan2(np.linalg.norm(skew), np.trace(rotation) - 1)
    if angle < 1e-9:
        return skew / 2
    if angle < np.pi - 1e-4:
        return skew * angle / np.linalg.norm(skew)
    # Near half a turn the axis is what the rotation leaves in place: the largest column of R + 1 is along it.
    symmetric = (rotation + rotation.T) / 2 + np.eye(3)
    axis = symmetric[:, np.argmax(np.diag(symmetric))]
    axis = axis / np.linalg.norm(axis)
    return axis * angle * (-1 if axis @ skew < 0 else 1)


def read_numbers(path: Path, text: str, count: int, names: str, line: int | None = None) -> list[float]:
    """The numbers in `text`, separated by spaces; raises `UnreadableFileError` if there are not `count`.

    Args:
        path: what an error names.
        text: a line, or a whole file.
        count: how many are expected.
        names: what they are, for the error.
        line: number of the line, for the error.
    """
    where = "" if line is None else f"line {line}: "
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        raise UnreadableFileError(path, f"{where}something that is not a number, expected {names}") from None
    if len(numbers) != count:
        raise UnreadableFileError(path, f"{where}{len(numbers)} numbers, expected {count}: {names}")
    return numbers


__all__ = ["Trajectory", "read_numbers", "rotation_from_vector", "rotation_vector"]
