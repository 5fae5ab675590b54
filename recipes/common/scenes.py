# SPDX-License-Identifier: Apache-2.0
"""Prepared repositories as scenes: their views, cameras and questions, as training, evaluation and the feature store read them."""

import json
from collections import defaultdict
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from data_scripts.files import UnreadableFileError
from data_scripts.pictures import open_picture, picture_size, to_rgb, upright_size
from data_scripts.schema import missing_columns
from modeling_vggt_qwen3 import VggtQwen3ImageProcessorPil
from modeling_vggt_qwen3.camera_checks_vggt_qwen3 import (
    FARTHEST,
    GEOMETRY_SHAPES,
    LARGEST,
    SMALLEST_FOCAL_LENGTH,
    camera_distances,
    camera_problem,
)

from .feature_store import FeatureStore, StoreEntry


LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class MissingSplitError(ValueError):
    """A prepared repository that is there has no such split."""


class UnreadablePictureError(ValueError):
    """A picture of a prepared repository that cannot be decoded; the message names repository, scene and view."""

    def __init__(self, message: str):
        # A data loader's process puts its traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class SceneDataset:
    """
    One split of a prepared repository: scenes with their views, and questions grouped by scene.

    Args:
        path (`str`): Folder or Hub repository with the configs `scenes` and `qa`.
        split (`str`): Split of both.
        num_views (`int`, *optional*): Views to use of each scene, evenly spaced; view 0 is the first stored one.
        store (`FeatureStore`, *optional*): Read the encoder's features instead of the views.
        image_processor (`VggtQwen3ImageProcessorPil`, *optional*): What the views are decoded for: of JPEGs larger than
            it needs, no more is decoded than that (see [`decode_for`]). Without, views come as they are stored.

    Raises:
        ValueError: if the repository, the split ([`MissingSplitError`]) or a column is not there, a question names an unknown scene, the cameras of
            a view in use are not finite in float32, or the store does not hold a scene.
    """

    def __init__(
        self,
        path: str,
        split: str,
        num_views: int | None = None,
        store: FeatureStore | None = None,
        image_processor: VggtQwen3ImageProcessorPil | None = None,
    ):
        self.path, self.split, self.num_views, self.image_processor = path, split, num_views, image_processor
        try:
            scenes = datasets.load_dataset(path, "scenes", split=split)
            self.qa = datasets.load_dataset(path, "qa", split=split)
        except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
            # Of splits whose columns differ the cause says which.
            reason = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            missing = str(error).startswith("Unknown split")
            raise (MissingSplitError if missing else ValueError)(
                f"{path} is not a prepared dataset with a split {split!r} (made by data_scripts.prepare): {reason}"
            ) from error
        for name, table in (("scenes", scenes), ("qa", self.qa)):
            if missing := missing_columns(name, table.column_names):
                raise ValueError(f"{path}, {name}, split {split}: no column {', '.join(missing)}; prepare it again.")
        # Decoding is left to `views`, which needs to decode only the views that are used.
        self.scenes = scenes.cast_column("images", datasets.List(datasets.Image(decode=False)))
        self.scene_ids = list(scenes["scene_id"])
        row_of_scene = {scene_id: row for row, scene_id in enumerate(self.scene_ids)}
        self.questions_of_scene: dict[int, list[int]] = defaultdict(list)
        for row, scene_id in enumerate(self.qa["scene_id"]):
            if scene_id not in row_of_scene:
                raise ValueError(f"{path}, qa, split {split}, row {row}: scene {scene_id!r} is not among the scenes.")
            self.questions_of_scene[row_of_scene[scene_id]].append(row)
        texts = zip(self.qa["situation"], self.qa["question"], strict=True)
        self.num_characters = [len(situation or "") + len(question) for situation, question in texts]
        self._check_cameras(scenes.select_columns(["geometry"]))
        self.store = store
        if store is not None:
            self.cameras = scenes.select_columns(["geometry"])
            self.stored = [
                store.find(self.pictures(scene), scene_id, f"{path} split {split}")
                for scene, scene_id in enumerate(self.scene_ids)
            ]

    def _check_cameras(self, scenes: datasets.Dataset):
        """Raises ValueError for cameras that no model can be trained with, naming scene, view and field."""
        start = 0
        for rows in scenes.with_format("arrow").iter(batch_size=1000):
            # All at once: of half a million pictures without cameras, one by one would take minutes.
            if not _look_usable(rows["geometry"]):
                for scene, geometry in enumerate(rows["geometry"].to_pylist(), start):
                    self._check_cameras_of(scene, geometry)
            start += len(rows)

    def _check_cameras_of(self, scene: int, geometry: dict | None):
        where = f"{self.path}, split {self.split}, scene {self.scene_ids[scene]}"
        advice = "Prepare the dataset again, which leaves such scenes out, or remove the scene."
        if geometry is None:
            return
        try:
            views = self.views_in_use(max(len(values or []) for values in geometry.values()))
            cameras = geometry_of(geometry, views)
            for key, shape in GEOMETRY_SHAPES.items():
                if cameras[key].shape != (len(views), *shape):
                    raise ValueError(f"{key} has the shape {cameras[key].shape}")
            if cameras["depth_hist"].ndim != 2:
                raise ValueError(f"depth_hist has the shape {cameras['depth_hist'].shape}")
            problem = camera_problem(cameras)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: geometry is not one camera per view: {error!r}. {advice}") from error
        if problem is not None:
            raise ValueError(f"{where}, view {views[problem[0]]}: {problem[1]}. {advice}")

    def pictures(self, scene: int) -> list[bytes]:
        """The encoded pictures of a scene's views in use."""
        images = self.scenes[scene]["images"]
        return [images[view]["bytes"] for view in self.views_in_use(len(images))]

    def picture_sizes(self, scene: int) -> list[tuple[int, int]]:
        """(width, height) of a scene's views in use. Raises ValueError as `views`, if one is not a picture."""
        sizes = []
        for view, picture in enumerate(self.pictures(scene)):
            sizes.append(picture_size(picture, f"{self.path}, scene {self.scene_ids[scene]}, view {view}"))
        return sizes

    def scene_inputs(self, scene: int, entry: StoreEntry | None = None, keep: list[int] | None = None) -> dict:
        """
        What the processor makes the model's inputs of, for some of the views in use of a scene: `geometry`, the
        `image_sizes` that its intrinsics are of, and `images`, or from a store `vision_features` and, of encoders with
        a camera head, `camera_encodings`.

        Args:
            scene (`int`): Row of the scene.
            entry (`StoreEntry`, *optional*): Entry of the store to read; by default that of all views in use.
            keep (`list[int]`, *optional*): Positions, among the views in use (or of `entry`), of those to return.

        Raises:
            ValueError: as `views`.
        """
        if self.store is None:
            images, sizes, geometry = self._decode(scene, keep, self.image_processor)
            return {"images": images, "image_sizes": sizes, "geometry": geometry}
        entry = entry or self.stored[scene]
        kept = list(range(len(entry.views))) if keep is None else keep
        inputs = self.store.read(entry)
        if keep is not None:
            inputs = {name: tensor[keep] for name, tensor in inputs.items()}
        geometry = self.cameras[scene]["geometry"]
        if geometry is not None:
            in_use = self.views_in_use(len(geometry["t"]))
            geometry = geometry_of(geometry, [in_use[entry.views[position]] for position in kept])
        return inputs | {"image_sizes": [entry.image_sizes[position] for position in kept], "geometry": geometry}

    def views(self, scene: int, keep: list[int] | None = None) -> tuple[list[Image.Image], dict | None]:
        """
        The views of a scene and their geometry (None if it has none).

        Args:
            scene (`int`): Row of the scene.
            keep (`list[int]`, *optional*): Positions, among the views in use, of those to return.

        Raises:
            UnreadablePictureError: if a view cannot be decoded, naming repository, scene and view.
        """
        images, _, geometry = self._decode(scene, keep, None)
        return images, geometry

    def _decode(self, scene: int, keep: list[int] | None, image_processor) -> tuple[list, list, dict | None]:
        """Images, sizes (width, height) as stored, upright, and geometry, as `views`; the images decoded for `image_processor`."""
        row = self.scenes[scene]
        views = self.views_in_use(len(row["images"]))
        views = views if keep is None else [views[position] for position in keep]
        images, sizes = [], []
        for view in views:
            where = f"{self.path}, scene {row['scene_id']}, view {view}"
            try:
                with open_picture(row["images"][view]["bytes"], where) as image:
                    sizes.append(upright_size(image))
                    if image_processor is not None:
                        decode_for(image, image_processor)
                    images.append(to_rgb(image))
            except UnreadableFileError as error:
                # A data loader's process cannot hand that one on: it has two arguments.
                raise UnreadablePictureError(str(error)) from None
        return images, sizes, None if row["geometry"] is None else geometry_of(row["geometry"], views)

    def questions(self, rows: Sequence[int]) -> list[dict]:
        """Rows of `qa`, read together: one by one takes longer than the pictures."""
        columns = self.qa[list(rows)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def num_views_of(self, scene: int) -> int:
        """Number of views in use of a scene."""
        if self.store is not None:
            return len(self.stored[scene].views)
        return len(self.views_in_use(len(self.scenes[scene]["images"])))

    def views_in_use(self, num_stored: int) -> list[int]:
        """Which of `num_stored` views are used, in order."""
        if self.num_views is None or self.num_views >= num_stored:
            return list(range(num_stored))
        return [position * num_stored // self.num_views for position in range(self.num_views)]


def geometry_of(geometry: dict, views: list[int]) -> dict[str, np.ndarray]:
    """`R [V,3,3]`, `t [V,3]`, `K [V,3,3]` and `depth_hist [V,16]`, float32, of some of a scene's stored views."""
    with np.errstate(over="ignore"):  # refused where the dataset is opened
        return {
            key: np.asarray([values[view] for view in views], dtype=np.float32) for key, values in geometry.items()
        }


def _look_usable(column: pa.ChunkedArray) -> bool:
    """Whether all cameras of a column `geometry` surely are finite and as many as there are views; nulls are none."""
    scenes = column.combine_chunks().drop_null()
    if not pa.types.is_struct(scenes.type):
        return len(scenes) == 0
    numbers, views = {}, {}  # all numbers of a field in a row; of each scene its number of views
    for key, largest in LARGEST.items():
        if scenes.type.get_field_index(key) < 0:
            return False
        values, dimensions = scenes.field(key), 0
        while any(is_list(values.type) for is_list in LISTS):
            values, dimensions = values.flatten(), dimensions + 1
        if dimensions != 1 + len(GEOMETRY_SHAPES.get(key, [0])):
            return False
        if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
            return False
        with np.errstate(over="ignore"):
            numbers[key] = values.to_numpy(zero_copy_only=False).astype(np.float32)
        views[key] = pc.fill_null(pc.list_value_length(scenes.field(key)), 0).to_numpy(zero_copy_only=False)
        if not (np.abs(numbers[key]) <= largest).all() or (views[key] != views["R"]).any():
            return False
    if any(len(numbers[key]) != views[key].sum() * np.prod(shape) for key, shape in GEOMETRY_SHAPES.items()):
        return False
    if (np.abs(numbers["K"].reshape(-1, 9)[:, [0, 4]]) < SMALLEST_FOCAL_LENGTH).any():
        return False
    first = np.repeat(np.cumsum(views["t"]) - views["t"], views["t"])
    distances = camera_distances(numbers["R"].reshape(-1, 3, 3), numbers["t"].reshape(-1, 3), first)
    return bool((distances <= FARTHEST).all())


def decode_for(image: Image.Image, image_processor: VggtQwen3ImageProcessorPil):
    """
    Has a JPEG that was opened, and not read yet, decoded at a half, a quarter or an eighth of its size: at the smallest
    that is still no smaller than what `image_processor` makes of it. Others, and those that would not divide evenly (the
    cameras' pixels would shift), stay as they are.

    The decoder then leaves out the high frequencies that resizing would have filtered: pixels come out within a few
    levels of 255 of those of a whole picture.
    """
    if image.format != "JPEG":
        return
    width, height = upright_size(image)
    new_height, new_width = image_processor.get_resize(height, width)[:2]
    for scale in (8, 4, 2):
        divides = width % scale == 0 and height % scale == 0
        if divides and width // scale >= new_width and height // scale >= new_height:
            image.draft("RGB", (image.width // scale, image.height // scale))
            return


def question_text(row: dict) -> str:
    """What the user says after the vision block: the situation, if any, and the question."""
    return f"{row['situation']} {row['question']}" if row["situation"] else row["question"]


def action_of(row: dict) -> dict | None:
    """The action that a row of `qa` asks for, as `data_scripts.builders.arkit_actions` describes it; None if it asks for none."""
    return json.loads(row["action"]) if row["action"] else None


def anchor_of(row: dict) -> list[float] | None:
    """Centre, extent and normal (9 numbers, metres, frame of view 0) of the anchor that a row asks to place, or None."""
    action = action_of(row)
    if action is None or action["action"] != "place_anchor":
        return None
    return [*action["center"], *action["extent"], *action["normal"]]


def check_disjoint(train: SceneDataset, other: SceneDataset):
    """Raises ValueError if two splits share a scene, naming it: an evaluation on seen scenes measures memory."""
    shared = sorted(set(train.scene_ids) & set(other.scene_ids))
    if shared:
        raise ValueError(
            f"{train.path} split {train.split} and {other.path} split {other.split} share {len(shared)} scenes, "
            f"for example {shared[0]}."
        )


__all__ = [
    "LISTS",
    "MissingSplitError",
    "SceneDataset",
    "UnreadablePictureError",
    "action_of",
    "anchor_of",
    "check_disjoint",
    "decode_for",
    "geometry_of",
    "question_text",
]
