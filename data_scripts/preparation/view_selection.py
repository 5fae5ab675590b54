# SPDX-License-Identifier: Apache-2.0
"""Which frames of a scan become views.

A selection is `uniform` (evenly spaced in time), `random` (seeded) or `coverage` (the frames that together see most of the
room). The views come out with the most central one first, then in the order of time: view 0 is the frame of reference of
whatever a model predicts, so it should share as much as possible with the others.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import PIL.Image

from ..files import UnreadableFileError
from ..readers.frames import Frame, SceneReader


VIEW_SELECTIONS = ("uniform", "random", "coverage")

VOXEL = 0.2  # metres along each side of what `coverage` counts
DEPTH_SAMPLES = 80  # along the longer side of a depth map
AHEAD = 2.0  # metres in front of a camera, about where a room's contents are
DARK = 16  # of 255: a picture of which 95 % is darker is black
BLURRED = 0.65  # of the measure of `blur`; sharp pictures, with or without texture, have 0.1 to 0.4
LOOK_PIXELS = 256  # shorter side of the picture that is looked at for that


def select_views(
    scan: SceneReader,
    frames: list[Frame],
    num_views: int,
    selection: str,
    max_frames: int,
    seed: int = 0,
) -> tuple[list[Frame], list[str]]:
    """Chooses the views of a scan.

    Args:
        scan: the scan, from which `coverage` reads depth maps and the pictures it is about to choose.
        frames: the candidates in the order of time; all with a pose, or all without. Those without are chosen by their
            order alone, `coverage` then being `uniform`.
        num_views: how many are wanted.
        selection: one of `VIEW_SELECTIONS`.
        max_frames: candidates beyond so many are thinned out evenly first.
        seed: of `random`; the choice depends on it and the scan's id alone.

    Returns:
        at most `num_views` frames, the most central one first and the others in the order of time; and, one line each,
        what `coverage` did not choose although it would have shown most: black, blurred and broken pictures.

    Raises:
        UnreadableFileError: `coverage` finds no usable picture.
    """
    frames = [frames[index] for index in spread(len(frames), max_frames)]
    posed = all(frame.world_to_camera is not None for frame in frames)
    rejected = []
    if selection == "random":
        digest = hashlib.sha256(f"{seed} {scan.scene_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        chosen = sorted(rng.permutation(len(frames))[:num_views].tolist())
    elif selection == "coverage" and posed:

        def usable(index: int) -> bool:
            fault = picture_fault(scan, frames[index])
            if fault is not None:
                rejected.append(f"frame {frames[index].frame_id}: {fault}")
            return fault is None

        seen = []
        for frame in frames:
            try:
                seen.append(visible_voxels(scan, frame))
            except UnreadableFileError as error:  # a broken depth map: not a candidate
                rejected.append(f"frame {frame.frame_id}: {error.reason}")
                seen.append(None)
        chosen = sorted(select_coverage(seen, num_views, usable))
        if not chosen:
            raise UnreadableFileError(scan.folder, f"no frame is usable; {rejected[0]}")
    else:
        chosen = spread(len(frames), num_views)
    chosen = [frames[index] for index in chosen]
    first = central([frame.world_to_camera for frame in chosen]) if posed else len(chosen) // 2
    return [chosen[first], *chosen[:first], *chosen[first + 1 :]], rejected


def spread(count: int, wanted: int) -> list[int]:
    """`min(count, wanted)` indices: the middle ones of `wanted` equally long stretches of `range(count)`.

    The middle rather than the ends, because a hand-held scan tends to start and stop with the camera lowered.
    """
    if count <= wanted:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def central(poses: list[np.ndarray]) -> int:
    """The index of the camera that is nearest to all the others together.

    The distance between two cameras is that of their centres plus that of the points two metres in front of them, so
    that both where a camera stands and where it looks count.

    Args:
        poses: `[4, 4]` world-to-camera, metres, OpenCV axes.
    """
    poses = np.stack(poses)
    to_world = poses[:, :3, :3].transpose(0, 2, 1)
    total = np.zeros(len(poses))
    for depth in (0.0, AHEAD):
        points = np.einsum("vij,vj->vi", to_world, np.array([0, 0, depth]) - poses[:, :3, 3])
        total += np.linalg.norm(points[:, None] - points, axis=-1).sum(axis=1)
    return int(total.argmin())


def visible_voxels(scan: SceneReader, frame: Frame) -> np.ndarray:
    """The voxels in which a frame's depth map measured something.

    Args:
        scan, frame: a frame that has a pose, intrinsics and depth.

    Returns:
        `[N]` int64, sorted, each voxel once: its three whole coordinates in units of `VOXEL`, packed into one number.
    """
    depth, intrinsics = scan.load_depth(frame)
    step = max(1, round(max(depth.shape) / DEPTH_SAMPLES))
    rows, columns = np.mgrid[step // 2 : depth.shape[0] : step, step // 2 : depth.shape[1] : step]
    z = depth[rows, columns].astype(np.float64)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(intrinsics).T
    points = (rays * z[..., None])[z > 0] - frame.world_to_camera[:3, 3]  # times R transposed: rows are points
    cells = np.floor(points @ frame.world_to_camera[:3, :3] / VOXEL).astype(np.int64)
    return np.unique(((cells + (1 << 19)) << np.array([40, 20, 0])).sum(axis=1))


def select_coverage(seen: list[np.ndarray | None], num_views: int, usable: Callable[[int], bool]) -> list[int]:
    """Greedy maximum coverage, then exchanges: the frames that together see most voxels.

    A frame is chosen again and again by how many voxels it adds, which is within 1 - 1/e of the best possible; then each
    chosen frame is exchanged for another one as long as that adds voxels. Once everything is seen, what adds most to a
    second, third, ... view of everything is chosen.

    Args:
        seen: per frame the voxels it sees (sorted, unique), or None for one that is no candidate.
        num_views: how many are wanted.
        usable: asked once for each frame that is about to be chosen; False rejects it.

    Returns:
        indices of at most `num_views` frames, in no particular order.
    """
    index_of, codes = np.unique(
        np.concatenate([voxels for voxels in seen if voxels is not None] or [np.zeros(0, np.int64)]),
        return_inverse=True,
    )
    lengths = [0 if voxels is None else len(voxels) for voxels in seen]
    parts = np.split(codes, np.cumsum(lengths)[:-1])  # per frame the positions of its voxels
    candidates = {index for index, voxels in enumerate(seen) if voxels is not None}
    checked: dict[int, bool] = {}
    count = np.zeros(len(index_of), dtype=np.int64)  # views that see each voxel
    chosen: list[int] = []

    def best(level: int) -> int | None:
        """The usable candidate that adds most voxels seen by exactly `level` chosen views, or None if none adds any."""
        gains = {index: int((count[parts[index]] == level).sum()) for index in candidates.difference(chosen)}
        for index in sorted(gains, key=lambda index: (-gains[index], index)):
            if gains[index] == 0:
                return None
            if checked.setdefault(index, False) or usable(index):
                checked[index] = True
                return index
            candidates.discard(index)
        return None

    level = 0
    while len(chosen) < num_views and level <= len(chosen):
        index = best(level)
        if index is None:
            level += 1
        else:
            chosen.append(index)
            count[parts[index]] += 1

    for _ in range(num_views):  # in practice one or two rounds
        changed = False
        for position, old in enumerate(chosen):
            count[parts[old]] -= 1
            lost = int((count[parts[old]] == 0).sum())
            new = best(0)
            gained = 0 if new is None else int((count[parts[new]] == 0).sum())
            if gained > lost:
                chosen[position], changed = new, True
            count[parts[chosen[position]]] += 1
        if not changed:
            break
    return chosen


def picture_fault(scan: SceneReader, frame: Frame) -> str | None:
    """What makes a frame's picture no view: "black", "blurred" or how it is broken; None if nothing does."""
    try:
        picture = scan.load_image(frame, at_least=LOOK_PIXELS)
    except UnreadableFileError as error:
        return error.reason
    if min(picture.size) > LOOK_PIXELS:
        scale = LOOK_PIXELS / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], PIL.Image.Resampling.BOX)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    if np.quantile(grey, 0.95) < DARK:
        return "black"
    return "blurred" if blur(grey) > BLURRED else None


def blur(grey: np.ndarray) -> float:
    """How blurred a picture is: 0 sharp, 1 blurred, whatever its contrast and texture.

    Blurring a sharp picture further takes away most of the differences between neighbouring pixels, blurring a blurred one
    does not. The measure of Crete et al., "The blur effect" (SPIE 2007), here with a window of 9 pixels.

    Args:
        grey: `[H, W]`.
    """
    measures = []
    for picture in (grey, grey.T):  # a moving camera blurs one direction
        window = 9
        total = np.cumsum(picture, axis=1, dtype=np.float64)
        smooth = (total[:, window:] - total[:, :-window]) / window
        difference = np.abs(np.diff(picture[:, window // 2 + 1 : -(window // 2)], axis=1))
        taken = np.maximum(difference - np.abs(np.diff(smooth, axis=1)), 0)
        measures.append(1 - taken.sum() / max(difference.sum(), 1e-9))
    return float(max(measures))


__all__ = [
    "VIEW_SELECTIONS",
    "blur",
    "central",
    "picture_fault",
    "select_coverage",
    "select_views",
    "spread",
    "visible_voxels",
]
