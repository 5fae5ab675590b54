# SPDX-License-Identifier: Apache-2.0
"""Samples a room, its furniture and its cameras, and renders the views.

The room's frame is the aligned world: metres, z up, floor at z = 0, walls parallel to the axes, the origin in the middle of
the floor. Its raw frame, the one a scan would be stored in, is turned about z and shifted (`Scene.alignment`).
"""

import colorsys
import math
from dataclasses import dataclass, field

import numpy as np

from . import furniture, render


HEIGHT = 2.6  # of the walls, metres; there is no ceiling, so depth is 0 (none) above them
FIELD_OF_VIEW = 75.0  # degrees
OVERSAMPLING = 2  # colour samples per pixel and axis: without them thin legs break up in small pictures
SEEN_PIXELS = 0.01  # share of the picture that an object has to cover
SEEN_SHARE = 0.4  # share of its projection that has to be unoccluded
GAP = 0.22  # metres between bounding rectangles of footprints
CAMERA_CLEARANCE = {"low": 0.15, "tall": 0.7}  # metres on the floor plan; a camera may look over a low piece
TALL = 1.2  # metres
ATTEMPTS = 16  # layouts tried until every object is well seen; the best one is kept


@dataclass
class Piece:
    """A piece of furniture that stands in the room.

    Attributes:
        category, color: keys of `furniture.CATEGORIES` and `furniture.COLORS`.
        position: `[2]` middle of the footprint, metres, aligned frame.
        yaw: radians, counter-clockwise; the front is the direction (-sin yaw, cos yaw).
        parts: `[P, 8]` see `furniture.build`.
        half_size: `[2]` half the width and depth of the footprint, metres, in the piece's own frame.
    """

    category: str
    color: str
    position: np.ndarray
    yaw: float
    parts: np.ndarray
    half_size: np.ndarray = field(init=False)

    def __post_init__(self):
        self.half_size = _half_size(self.parts)

    @property
    def name(self) -> str:
        return f"{self.color} {self.category}"

    @property
    def rotation(self) -> np.ndarray:
        """`[2, 2]` own frame to aligned frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin], [sin, cos]])

    @property
    def corners(self) -> np.ndarray:
        """`[4, 2]` corners of the footprint, metres, aligned frame."""
        return self.position + (self.half_size * [[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ self.rotation.T

    def distance(self, points: np.ndarray) -> np.ndarray:
        """`[...]` metres on the floor plan from points `[..., 2]` to the footprint, 0 inside."""
        outside = np.abs((points - self.position) @ self.rotation) - self.half_size
        return np.linalg.norm(np.maximum(outside, 0), axis=-1)

    @property
    def clearance(self) -> float:
        """Metres on the floor plan that a camera keeps from the footprint."""
        return CAMERA_CLEARANCE["tall" if self.parts[:, 5].max() > TALL else "low"]

    def gap(self, other: "Piece") -> float:
        """Metres between two footprints that do not overlap: some corner always realises the distance."""
        return float(min(self.distance(other.corners).min(), other.distance(self.corners).min()))


@dataclass
class Scene:
    """A furnished room and its views.

    Attributes:
        size: `[2]` extent of the room along x and y, metres.
        pieces: N objects.
        poses: `[V, 4, 4]` world-to-camera, OpenCV axes, aligned frame, metres.
        camera: `[3, 3]` intrinsics, pixels, the same for colour and depth.
        alignment: `[4, 4]` raw frame to aligned frame.
        rgb: `[V, S, S, 3]` uint8.
        depth: `[V, S, S]` uint16, millimetres along the optical axis, 0 for none.
        ids: `[V, S, S]` int16, the object at the centre of each pixel, -1 for none.
        extent: `[V, N]` pixels each object would cover if nothing stood in front of it.
        seen: `[V, N]` whether an object can be recognised in a view, see `recognisable`.
    """

    size: np.ndarray
    pieces: list[Piece]
    poses: np.ndarray
    camera: np.ndarray
    alignment: np.ndarray
    rgb: np.ndarray
    depth: np.ndarray
    ids: np.ndarray
    extent: np.ndarray
    seen: np.ndarray


def count_pixels(ids: np.ndarray, objects: int) -> np.ndarray:
    """`[V, N]` pixels per view and object of an id buffer `[V, S, S]`."""
    return np.stack([np.bincount(view.ravel() + 1, minlength=objects + 1)[1:] for view in ids])


def recognisable(
    pieces: list[Piece], poses: np.ndarray, camera: np.ndarray, ids: np.ndarray, extent: np.ndarray
) -> np.ndarray:
    """`[V, N]` whether an object covers enough of a view, enough of it is unoccluded, and its middle is in the picture."""
    pixels = count_pixels(ids, len(pieces))
    middles = np.array([[*piece.position, piece.parts[:, 5].max() / 2, 1.0] for piece in pieces])
    points = np.einsum("ij,vjk,nk->vni", camera, poses[:, :3], middles)  # [V, N, 3]
    depth = points[..., 2:]
    inside = (depth > 0) & (np.abs(points[..., :2] - camera[:2, 2] * depth) < ids.shape[1] / 2 * depth)
    return inside.all(axis=2) & (pixels >= SEEN_PIXELS * ids[0].size) & (pixels >= SEEN_SHARE * np.maximum(extent, 1))


def sample_scene(
    rng: np.random.Generator, labels: list[tuple[str, str]], views: int, image_size: int, close_up: bool = False
) -> Scene:
    """Furnishes a room so that the objects can be seen, and renders it.

    Args:
        rng: the only source of chance.
        labels: (category, color) of each object.
        views: number of cameras, spread round the room.
        image_size: pixels along each side of the square pictures.
        close_up: put the cameras where the objects fill much of the picture, rather than at the walls.
    """
    camera = render.intrinsics(image_size, FIELD_OF_VIEW)
    needed = (views + 1) // 2
    best, best_score = None, -1
    # Close up, the room is as small as the furniture allows: what stands together is large together.
    attempt, spare = 0, -0.8 if close_up else 0.0
    while attempt < ATTEMPTS:
        size, pieces = _furnish(rng, labels, spare)
        poses = _close_up_cameras(rng, pieces, views) if close_up else _place_cameras(rng, size, pieces, views)
        if poses is None:
            spare += 0.02  # the cameras do not fit between the furniture: a little more room next time
            continue
        attempt += 1
        quads, normals, owner, tone = scene_faces(size, pieces)
        depth, face, extent = render.rasterize(quads, normals, poses, camera, image_size, groups=owner)
        ids = np.append(owner, -1)[face].astype(np.int16)
        seen = recognisable(pieces, poses, camera, ids, extent)
        times = seen.sum(axis=0)
        # An object that is seen nowhere counts more than any number that are seen less often than wanted.
        score = int(100 * np.minimum(times, 1).sum() + np.minimum(times, needed).sum())
        if score > best_score:
            best, best_score = (size, pieces, poses, quads, normals, tone, depth, ids, extent, seen), score
        if (times >= needed).all():
            break
    size, pieces, poses, quads, normals, tone, depth, ids, extent, seen = best
    palette = _palette(rng, normals, tone, pieces)
    _, face, _ = render.rasterize(quads, normals, poses, camera, image_size, OVERSAMPLING)
    rgb = render.shade(face, palette, OVERSAMPLING)
    rgb += rng.normal(0, 1.5, size=(*rgb.shape[:3], 1)).astype(np.float32)
    return Scene(
        size=size,
        pieces=pieces,
        poses=poses,
        camera=camera,
        alignment=_sample_alignment(rng),
        rgb=np.clip(np.rint(rgb), 0, 255).astype(np.uint8),
        depth=np.rint(depth * 1000).astype(np.uint16),
        ids=ids,
        extent=extent,
        seen=seen,
    )


def sample_labels(rng: np.random.Generator, count: int, repeats: tuple[float, float, float]) -> list[tuple[str, str]]:
    """Draws the (category, color) of each object; categories and colours repeat independently of each other.

    Args:
        count: number of objects, at most 8.
        repeats: how probable it is that the most frequent category (and likewise colour) occurs once, twice, three times.
    """
    drawn = []
    for names in (furniture.CATEGORIES, tuple(furniture.COLORS)):
        most = min(int(rng.choice([1, 2, 3], p=repeats)), count)
        distinct = rng.permutation(len(names))[: count - most + 1]
        chosen = [names[i] for i in [distinct[0]] * (most - 1) + list(distinct)]
        drawn.append([chosen[i] for i in rng.permutation(count)])
    return list(zip(*drawn))


def _furnish(rng: np.random.Generator, labels: list[tuple[str, str]], spare: float) -> tuple[np.ndarray, list[Piece]]:
    side = rng.uniform(3.1, 3.7, size=2) + 0.18 * max(len(labels) - 3, 0) + spare
    # Large pieces first: the small ones find a place between them, not the other way round.
    parts = [furniture.build(category, rng.uniform(0.93, 1.07)) for category, _ in labels]
    order = np.argsort([-np.prod(np.abs(p[:, :4]).max(axis=0)) for p in parts], kind="stable")
    half_sizes = [_half_size(p) for p in parts]
    while True:
        pieces: dict[int, Piece] = {}
        taken: list[tuple[float, float, float, float]] = []  # bounding rectangles of footprints: x0, y0, x1, y1
        for index in order:
            category, color = labels[index]
            for _ in range(40):
                (x, y), yaw, (reach_x, reach_y) = _stand(rng, side, category, half_sizes[index])
                x0, y0, x1, y1 = x - reach_x, y - reach_y, x + reach_x, y + reach_y
                if max(-x0, x1) > side[0] / 2 - 0.02 or max(-y0, y1) > side[1] / 2 - 0.02:
                    continue
                if all(x0 > c + GAP or y0 > d + GAP or x1 < a - GAP or y1 < b - GAP for a, b, c, d in taken):
                    pieces[index] = Piece(category, color, np.array([x, y]), yaw, parts[index])
                    taken.append((x0, y0, x1, y1))
                    break
            else:
                break
        if len(pieces) == len(labels):
            return side, [pieces[i] for i in range(len(labels))]
        side = side + 0.05


def _half_size(parts: np.ndarray) -> np.ndarray:
    """`[2]` half the width and depth of the footprint, in the piece's own frame."""
    return np.abs(parts[:, :4]).max(axis=0).reshape(2, 2).max(axis=1)


def _stand(
    rng: np.random.Generator, side: np.ndarray, category: str, half_size: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Position `[2]` and yaw drawn for a piece, and `[2]` half the bounding rectangle of its footprint."""
    at_wall = furniture.stands_at_wall(category)
    turn, gap = (0.04, 0.03) if at_wall else (0.2, 0.15)  # radians, metres
    quarter = int(rng.integers(4))
    yaw = quarter * math.pi / 2 + rng.uniform(-turn, turn)
    cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
    reach = np.array([cos * half_size[0] + sin * half_size[1], sin * half_size[0] + cos * half_size[1]])
    position = rng.uniform(-1, 1, size=2) * np.maximum(side / 2 - reach - gap, 0)
    if at_wall:  # the front (-sin yaw, cos yaw) looks away from the wall
        axis, sign = ((1, -1), (0, 1), (1, 1), (0, -1))[quarter]
        position[axis] = sign * max(side[axis] / 2 - reach[axis] - gap, 0)
    return position, yaw, reach


def _place_cameras(rng: np.random.Generator, side: np.ndarray, pieces: list[Piece], views: int) -> np.ndarray | None:
    start = rng.uniform(0, 2 * np.pi)
    rotations = np.stack([piece.rotation for piece in pieces])
    middles = np.stack([piece.position for piece in pieces])
    half_sizes = np.stack([piece.half_size for piece in pieces])
    clearances = np.array([piece.clearance for piece in pieces])
    poses = []
    for view in range(views):
        for _ in range(12):
            angle = start + (view + rng.uniform(-0.4, 0.4)) * 2 * np.pi / views
            ray = np.array([np.cos(angle), np.sin(angle)])
            inside = side / 2 - rng.uniform(0.12, 0.3)
            position = ray * (inside / np.maximum(np.abs(ray), 1e-9)).min()
            # Piece.distance of all pieces at once: most of the positions tried are refused.
            outside = np.abs(((position - middles)[:, None] @ rotations)[:, 0]) - half_sizes
            if (np.hypot(*np.maximum(outside, 0).T) >= clearances).all():
                break
        else:
            return None
        target = np.append(rng.uniform(-0.3, 0.3, size=2), rng.uniform(0.45, 0.7))
        poses.append(render.look_at(np.append(position, rng.uniform(1.6, 2.1)), target))
    return np.stack(poses)


def _close_up_cameras(rng: np.random.Generator, pieces: list[Piece], views: int) -> np.ndarray:
    """Cameras that look at the middle of the pieces from about as far as it takes to see them whole.

    They may stand behind a wall: walls are seen from their inner side only.
    """
    points = np.concatenate(
        [
            [[*corner, height] for corner in piece.corners for height in (0, piece.parts[:, 5].max())]
            for piece in pieces
        ]
    )
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    fitting = np.linalg.norm(points - middle, axis=1).max() / np.tan(np.radians(FIELD_OF_VIEW / 2))
    poses = []
    while len(poses) < views:
        distance = fitting * rng.uniform(0.75, 1.4)
        azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(15, 40))
        toward = np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        # From behind, what stands at a wall is a plain board. Two such pieces may face each other: then any side does.
        fronts = [piece.rotation[:, 1] @ toward[:2] for piece in pieces if furniture.stands_at_wall(piece.category)]
        if fronts and max(fronts) < 0.3:
            continue
        poses.append(render.look_at(middle + distance * toward, middle + rng.uniform(-0.15, 0.15, size=3)))
    return np.stack(poses)


def scene_faces(side: np.ndarray, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Quads `[Q, 4, 3]`, normals `[Q, 3]`, object index or -1 `[Q]`, brightness `[Q]`; the first five are the room's."""
    half = np.append(side / 2, HEIGHT)
    shell, outward = render.box_quads(np.array([[-half[0], -half[1], 0.0]]), half[None])
    quads, normals = [shell[0, :5]], [-outward[:5]]
    owner, tone = [np.full(5, -1)], [np.ones(5)]
    for index, piece in enumerate(pieces):
        corners, outward = render.box_quads(piece.parts[:, [0, 2, 4]], piece.parts[:, [1, 3, 5]])
        turn = np.eye(3)
        turn[:2, :2] = piece.rotation
        count = len(piece.parts)
        quads.append((corners @ turn.T + np.append(piece.position, 0)).reshape(-1, 4, 3))
        normals.append(np.tile(outward @ turn.T, (count, 1)))
        owner.append(np.full(6 * count, index))
        tone.append(np.repeat(piece.parts[:, 6], 6))
    return np.concatenate(quads), np.concatenate(normals), np.concatenate(owner), np.concatenate(tone)


def _palette(rng: np.random.Generator, normals: np.ndarray, tone: np.ndarray, pieces: list[Piece]) -> np.ndarray:
    """`[Q + 1, 3]` uint8 colours of the faces: one light from above and from one side, the same in every room."""
    light = np.where(normals[:, 2] > 0.5, 1.0, 0.78 + 0.14 * normals @ np.array([0.45, 0.89, 0.0]))
    # Walls and floor stay dull and of middling brightness: no object colour is.
    wall = 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.06, 0.16), rng.uniform(0.56, 0.72)))
    floor = 255 * np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.05, 0.12), rng.uniform(0.12, 0.3), rng.uniform(0.34, 0.46))
    )
    base = [np.tile(wall, (4, 1)), floor[None]]
    base += [np.repeat(furniture.colors_of(piece.parts, piece.color), 6, axis=0) for piece in pieces]
    colors = np.concatenate(base) * (light * tone)[:, None]
    return np.concatenate([colors, [[176, 186, 196]]]).astype(np.uint8)  # the last: above the walls


def _sample_alignment(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0.2, 2 * np.pi - 0.2)  # never near the identity: a reader that ignores it must be caught
    alignment = np.eye(4)
    alignment[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    alignment[:3, 3] = [*rng.uniform(-3, 3, size=2), rng.uniform(-0.3, 0.3)]
    # As many decimals as the dump's text files hold, so that the written poses are consistent with it.
    return np.round(alignment, 6)


__all__ = ["Piece", "Scene", "count_pixels", "recognisable", "sample_labels", "sample_scene"]
