# SPDX-License-Identifier: Apache-2.0
"""Prepared repositories as packed training examples: one scene's views and several of its questions."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from data_scripts.pictures import open_picture, picture_size, to_rgb, upright_size
from data_scripts.schema import missing_columns
from data_scripts.views import UnreadableFileError
from modeling_vggt_qwen3 import VggtQwen3ImageProcessorPil
from modeling_vggt_qwen3.processing_vggt_qwen3 import (
    FARTHEST,
    GEOMETRY_SHAPES,
    LARGEST,
    SMALLEST_FOCAL_LENGTH,
    camera_distances,
    camera_problem,
)

from .store import FeatureStore, StoreEntry


# Batches that are sorted by length together: enough for little padding, few enough for a random order.
GROUPED_BATCHES = 16
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class MissingSplitError(ValueError):
    """A prepared repository that is there has no such split."""


class UnreadablePictureError(ValueError):
    """A picture of a prepared repository that cannot be decoded; the message names repository, scene and view."""

    def __init__(self, message: str):
        # A data loader's process puts its traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class Pack:
    """What one training sequence holds. All randomness of the example is in `seed`: any process can make it."""

    dataset: int
    scene: int
    questions: tuple[int, ...]
    seed: int


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


class PackDataset(torch.utils.data.Dataset):
    """
    Training examples, indexed by [`Pack`]: what `scene_inputs` gives, a list of (question, answer) texts, the list
    `anchors` of their boxes (see [`anchor_of`]), and the `pack` itself. One that was left out has neither views nor
    questions, which changes nothing in the loss, and is `unreadable`: (repository, scene, message).

    Args:
        sources (`list[SceneDataset]`): The datasets to mix.
        questions_per_scene (`int`): Most questions of a sequence.
        view_dropout (`float`): Probability of leaving out each view but view 0.
        blind (`bool`): Give no images at all.
        drop_tokens (`bool`): With a feature store, drop the tokens of views after the encoder has mixed all views.
            Otherwise one of the subsets in the store is drawn, which the encoder has seen as it is.
        anchor_text_share (`float`): Share of the anchors that are trained with the text of their action; the others, whose
            answer is None, train the anchor head alone. The first question of a sequence always has its text.
        on_unreadable (`"error"` or `"skip"`): What becomes of a pack whose pictures cannot be decoded.

    Raises:
        ValueError: if a question has no answer to train on, naming it, or a store has no subsets for `view_dropout`.
    """

    def __init__(
        self,
        sources: list[SceneDataset],
        questions_per_scene: int,
        view_dropout: float = 0.0,
        blind: bool = False,
        drop_tokens: bool = False,
        anchor_text_share: float = 1.0,
        on_unreadable: str = "error",
    ):
        self.sources = sources
        self.on_unreadable = on_unreadable
        self.questions_per_scene = questions_per_scene
        self.view_dropout = view_dropout
        self.blind = blind
        self.drop_tokens = drop_tokens
        self.anchor_text_share = anchor_text_share
        for source in sources:
            if source.store is not None and view_dropout and not drop_tokens:
                for entry in source.stored:
                    source.store.find_subsets(entry, view_dropout)
            for row, answers in enumerate(source.qa["answers"]):
                if not answers:
                    raise ValueError(
                        f"{source.path}, qa, split {source.split}, row {row} "
                        f"(question {source.qa[row]['question_id']}) has no answer to train on."
                    )

    def packs_of_source(self, source: int) -> int:
        """Number of sequences that hold each question of `source` once."""
        size = self.questions_per_scene
        return sum(-(-len(questions) // size) for questions in self.sources[source].questions_of_scene.values())

    def num_characters(self, pack: Pack) -> int:
        """Length of a pack's texts, which goes with the length of its sequence."""
        return sum(self.sources[pack.dataset].num_characters[question] for question in pack.questions)

    def __len__(self) -> int:
        return sum(self.packs_of_source(source) for source in range(len(self.sources)))

    def __getitem__(self, pack: Pack) -> dict:
        try:
            return self._example(pack) | {"pack": pack}
        except UnreadablePictureError as error:
            if self.on_unreadable == "error":
                raise
            # Whoever reads it, and whenever, leaves out the same; no other pack draws another number for it.
            nothing = {"images": [], "image_sizes": [], "geometry": None, "questions": [], "anchors": [], "pack": pack}
            if not pack.questions:  # which only completes a batch
                return nothing
            source = self.sources[pack.dataset]
            return nothing | {"unreadable": (source.path, source.scene_ids[pack.scene], str(error))}

    def _example(self, pack: Pack) -> dict:
        source = self.sources[pack.dataset]
        rng = np.random.default_rng(pack.seed)
        questions, anchors = [], []
        for row in source.questions(pack.questions):
            anchors.append(anchor_of(row))
            # Every reference is as good: which one is learned is drawn anew in every epoch.
            answer = row["answers"][rng.integers(len(row["answers"]))]
            if self.anchor_text_share < 1 and anchors[-1] is not None and len(anchors) > 1:
                answer = answer if rng.random() < self.anchor_text_share else None
            questions.append((question_text(row), answer))
        if self.blind:
            return {"images": [], "image_sizes": [], "geometry": None, "questions": questions, "anchors": anchors}
        if source.store is not None and self.view_dropout and not self.drop_tokens:
            subsets = source.store.find_subsets(source.stored[pack.scene], self.view_dropout)
            inputs = source.scene_inputs(pack.scene, subsets[rng.integers(len(subsets))])
        else:
            keep = None
            if self.view_dropout:
                num_views = source.num_views_of(pack.scene)
                keep = [view for view in range(num_views) if view == 0 or rng.random() >= self.view_dropout]
            inputs = source.scene_inputs(pack.scene, keep=keep)
        return inputs | {"questions": questions, "anchors": anchors}


class PackSampler(torch.utils.data.Sampler[Pack]):
    """
    The packs of an epoch, in an order that depends on nothing but seed and epoch: every process draws the same list.

    Without weights an epoch holds every question exactly once. With weights it has as many packs, of which dataset i
    has the share `weights[i]`; within a dataset no question comes again before all others have come.

    Args:
        dataset (`PackDataset`): What to sample from.
        weights (`list[float]`, *optional*): Share of each of its sources.
        seed (`int`): The same seed gives the same epochs.
        batch_size (`int`): Packs that one step takes on all processes together: they get similar lengths, so that
            little is padded. Packs without questions complete the last batch: what else would complete it are packs
            that have been seen.
    """

    def __init__(self, dataset: PackDataset, weights: list[float] | None = None, seed: int = 0, batch_size: int = 1):
        self.dataset, self.seed, self.batch_size, self.epoch = dataset, seed, batch_size, 0
        self.counts = [dataset.packs_of_source(source) for source in range(len(dataset.sources))]
        if weights:
            # Largest remainders, so that the counts add up to the epoch's length.
            exact = np.asarray(weights) / sum(weights) * sum(self.counts)
            counts = np.floor(exact).astype(int)
            for source in np.argsort(counts - exact, kind="stable")[: sum(self.counts) - counts.sum()]:
                counts[source] += 1
            self.counts = counts.tolist()

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-sum(self.counts) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[Pack]:
        packs = []
        for source, count in enumerate(self.counts):
            cycle, drawn = 0, []
            while len(drawn) < count:
                drawn.extend(self._shuffled_packs(source, cycle))
                cycle += 1
            packs.extend(drawn[:count])
        rng = np.random.default_rng([self.seed, self.epoch])
        packs = [packs[position] for position in rng.permutation(len(packs))]
        batches = []
        window = GROUPED_BATCHES * self.batch_size
        for start in range(0, len(packs), window):
            grouped = sorted(packs[start : start + window], key=self.dataset.num_characters)
            batches += [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        batches[-1] += [replace(batches[-1][0], questions=())] * (self.batch_size - len(batches[-1]))
        batches = [batches[position] for position in rng.permutation(len(batches))]
        return iter([pack for batch in batches for pack in batch])

    def _shuffled_packs(self, source: int, cycle: int) -> list[Pack]:
        """Every question of `source` once, packed by scene, in random order."""
        rng = np.random.default_rng([self.seed, self.epoch, source, cycle])
        size, packs = self.dataset.questions_per_scene, []
        for scene, questions in self.dataset.sources[source].questions_of_scene.items():
            questions = rng.permutation(questions).tolist()
            for start in range(0, len(questions), size):
                packs.append(
                    Pack(
                        source, scene, tuple(questions[start : start + size]), int(rng.integers(2**63, dtype=np.int64))
                    )
                )
        return [packs[position] for position in rng.permutation(len(packs))]


def check_disjoint(train: SceneDataset, other: SceneDataset):
    """Raises ValueError if two splits share a scene, naming it: an evaluation on seen scenes measures memory."""
    shared = sorted(set(train.scene_ids) & set(other.scene_ids))
    if shared:
        raise ValueError(
            f"{train.path} split {train.split} and {other.path} split {other.split} share {len(shared)} scenes, "
            f"for example {shared[0]}."
        )


__all__ = [
    "MissingSplitError",
    "Pack",
    "PackDataset",
    "PackSampler",
    "SceneDataset",
    "UnreadablePictureError",
    "action_of",
    "anchor_of",
    "check_disjoint",
    "decode_for",
    "question_text",
]
