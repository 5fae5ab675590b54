# SPDX-License-Identifier: Apache-2.0
"""From a scan, whatever its raw format, to the views of a prepared scene."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import UnreadableFileError
from ..paths import path_fault, resolve_inside
from ..pictures import encode_png, is_plain, open_picture, orientation_of
from ..readers.frames import (
    Frame,
    SceneReader,
    View,
    describe_distance_fault,
    describe_geometry_fault,
    scale_intrinsics,
)
from ..readers.scannet import Scan, has_recording, open_scan
from .annotations import InputError, SceneInput
from .base import Options, PreparationBuilder, PreparedScene, Remark, Sources
from .left_out import BadRecordError
from .view_selection import select_views


JPEG_QUALITY = 92


@dataclass
class StoredView:
    """A view as it is stored, and the depth it was made from.

    Attributes:
        frame_id: its name in the raw data.
        image: encoded.
        size: (width, height) of `image`.
        world_to_camera, intrinsics: `[4, 4]` and `[3, 3]` float64, pixels of `image`; None without geometry.
        depth_histogram: `[16]` float32.
        depth, depth_intrinsics: `[h, w]` metres and `[3, 3]`, as the sensor gave them; None without geometry.
    """

    frame_id: str
    image: bytes
    size: tuple[int, int]
    world_to_camera: np.ndarray | None
    intrinsics: np.ndarray | None
    depth_histogram: np.ndarray
    depth: np.ndarray | None
    depth_intrinsics: np.ndarray | None


def read_scan(scan: SceneReader, options: Options) -> tuple[list[StoredView], list[Remark]]:
    """Chooses and reads the views of a scan.

    Returns:
        the views, either all with geometry or all without, and what the user should know.

    Raises:
        UnreadableFileError: no frame can be used, a chosen picture is broken, geometry is required and missing, or a chosen
            view's camera is not finite as it is stored.
    """
    remarks: list[Remark] = []
    frames = None
    if options.geometry != "none":
        try:
            frames = _posed_frames(scan, remarks)
        except UnreadableFileError as error:
            if options.geometry == "required":
                raise
            name = Path(error.file).name
            remarks = [Remark("scenes prepared without geometry", 1, f"{name}: {error.reason}")]
    if frames is None:
        frames = scan.frames(geometry=False)
        if not frames:
            raise UnreadableFileError(scan.folder, "no picture")
    chosen, rejected = select_views(
        scan, frames, options.num_views, options.view_selection, options.max_frames, options.seed
    )
    if rejected:
        remarks.append(Remark("black, blurred or broken frames passed over", len(rejected), rejected[0]))
    views = [_store(scan, frame, options.image_size) for frame in chosen]
    geometry = _geometry(views)
    fault = describe_geometry_fault(geometry or {}) or describe_distance_fault(geometry)
    if fault is not None:
        raise UnreadableFileError(scan.folder, fault)
    if len(views) < options.num_views:
        remarks.append(Remark("scenes with fewer views than asked for", 1, f"{len(views)} of {options.num_views}"))
    return views, remarks


def prepared_scene(views: list[StoredView], questions: list[dict], remarks: list[Remark]) -> PreparedScene:
    """The scene with these views."""
    return PreparedScene(
        images=[view.image for view in views],
        frame_ids=[view.frame_id for view in views],
        geometry=_geometry(views),
        questions=questions,
        remarks=remarks,
    )


def _geometry(views: list[StoredView]) -> dict[str, list] | None:
    if views[0].world_to_camera is None:
        return None
    return {
        "R": [view.world_to_camera[:3, :3].tolist() for view in views],
        "t": [view.world_to_camera[:3, 3].tolist() for view in views],
        "K": [view.intrinsics.tolist() for view in views],
        "depth_hist": [view.depth_histogram.tolist() for view in views],
    }


def shrink(image: PIL.Image.Image, image_size: int | None) -> PIL.Image.Image:
    """`image` with its longer side brought down to `image_size` pixels; a smaller one as it is."""
    if image_size is None or max(image.size) <= image_size:
        return image
    scale = image_size / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], PIL.Image.Resampling.LANCZOS)


def encode(image: PIL.Image.Image) -> bytes:
    """JPEG at full chroma resolution: thin lines and small lettering survive."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


class ScanNetBuilder(PreparationBuilder):
    """Base of the builders whose scenes are ScanNet scans; see `data_scripts.readers.scannet`.

    `R`, `t` are world-to-camera in OpenCV axes; the world is the scan's axis-aligned one (metres, z up).
    """

    SOURCES = ("annotations", "scannet_root")
    OPTIONS = ("num_views", "view_selection", "max_frames", "seed", "geometry", "image_size")
    SCENES_PER_BATCH = 4  # eight views of 1296x968 are some two megabytes, and a batch is in memory several times over

    @classmethod
    def scene_files(cls, sources: Sources, scene: SceneInput) -> Iterator[Path]:
        folders = scan_folders(sources.scannet_root, scene.scene_id)
        if folders:
            yield folders[0]
            yield from open_scan(folders[0], folders[1:]).files()

    @classmethod
    def scan_of(cls, sources: Sources, scene: SceneInput) -> Scan:
        folders = scan_folders(sources.scannet_root, scene.scene_id)
        # Gone since it was found: an error.
        folder, *others = folders or [resolve_inside(sources.scannet_root[0], scene.scene_id, nested=False)]
        return open_scan(folder, others)

    @classmethod
    def read_scene(cls, sources: Sources, options: Options, scene: SceneInput) -> PreparedScene:
        scan = cls.scan_of(sources, scene)
        views, remarks = read_scan(scan, options)
        if views[0].world_to_camera is not None and scan.description_file is None:
            remarks.append(Remark("scans without <scene>.txt, taken for aligned", 1, f"no {scene.scene_id}.txt"))
        return prepared_scene(views, scene.questions, remarks)


def check_scene_id(scene_id: str) -> str:
    """`scene_id`, if it is the name of a folder under a root; raises `BadRecordError`."""
    fault = path_fault(scene_id, nested=False)
    if fault is not None:
        raise BadRecordError(f"'scene_id' {scene_id!r} is not the name of a folder of scans: {fault}")
    return scene_id


def scan_folders(roots: tuple[Path, ...], scene_id: str) -> list[Path]:
    """The folders of a scan under all roots, the one with its recording first; empty if no root has its recording.

    The others may hold its description and its mesh: `scannet_frames_25k` comes without them, and `scans` has them. An
    interrupted download leaves empty folders, and one of the meshes alone has no recording: these scans are as good as absent.

    Raises:
        InputError: two of the folders have a recording.
        UnsafePathError: `scene_id` is not the name of a folder.
    """
    places = [resolve_inside(root, scene_id, nested=False) for root in roots]
    folders = [folder for folder in places if folder.is_dir()]
    recordings = {folder.resolve(): folder for folder in folders if has_recording(folder)}
    if len(recordings) > 1:
        first, second, *_ = recordings.values()
        raise InputError(
            f"scene {scene_id} is in two folders of --scannet-root, {first} and {second}: give one of them"
        )
    return sorted(folders, key=lambda folder: folder not in recordings.values()) if recordings else []


def _posed_frames(scan: SceneReader, remarks: list[Remark]) -> list[Frame]:
    """The frames that have everything; raises `UnreadableFileError` if there are none."""
    frames, lacking, first = [], Counter(), {}
    for frame in scan.frames():
        lack = next(
            (
                what
                for what, there in (
                    ("a pose", frame.world_to_camera is not None),
                    ("intrinsics", frame.has_intrinsics),
                    ("depth", frame.has_depth),
                )
                if not there
            ),
            None,
        )
        if lack is None:
            frames.append(frame)
        else:
            lacking[lack] += 1
            first.setdefault(lack, frame.frame_id)
    if not frames:
        what = f"a valid pose, intrinsics and depth ({_join(lacking)})" if lacking else "a picture"
        raise UnreadableFileError(scan.folder, f"no frame has {what}")
    remarks += [Remark(f"frames without {what}", count, f"frame {first[what]}") for what, count in lacking.items()]
    return frames


def _store(scan: SceneReader, frame: Frame, image_size: int | None) -> StoredView:
    view = scan.load(frame)
    image = shrink(view.image, image_size)
    encoded = None if view.encoded is None else _encoded(view, scan.folder)
    return StoredView(
        frame_id=view.frame_id,
        image=encoded if encoded is not None and image is view.image else encode(image),
        size=image.size,
        world_to_camera=view.world_to_camera,
        intrinsics=None if view.intrinsics is None else scale_intrinsics(view.intrinsics, view.image.size, image.size),
        depth_histogram=view.depth_histogram,
        depth=view.depth,
        depth_intrinsics=view.depth_intrinsics,
    )


def _encoded(view: View, folder: Path) -> bytes:
    """A view's own bytes, or a PNG if not every reader would take them for its picture.

    Raises:
        UnreadableFileError: its EXIF data turn the picture, and nothing turns its camera.
    """
    with open_picture(view.encoded, folder) as picture:
        if view.intrinsics is not None and orientation_of(picture) not in (1, None):
            reason = f"frame {view.frame_id}: its EXIF data turn it, but not its camera; save it without them"
            raise UnreadableFileError(folder, reason)
        return view.encoded if is_plain(picture) else encode_png(view.image)


def _join(lacking: Counter) -> str:
    return ", ".join(f"{count} without {what}" for what, count in lacking.items())


__all__ = [
    "ScanNetBuilder",
    "StoredView",
    "check_scene_id",
    "encode",
    "prepared_scene",
    "read_scan",
    "shrink",
]
