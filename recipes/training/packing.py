# SPDX-License-Identifier: Apache-2.0
"""Prepared repositories as packed training examples: one scene's views and several of its questions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from recipes.common.scenes import SceneDataset, UnreadablePictureError, anchor_of, question_text


# Batches that are sorted by length together: enough for little padding, few enough for a random order.
GROUPED_BATCHES = 16


@dataclass(frozen=True)
class Pack:
    """What one training sequence holds. All randomness of the example is in `seed`: any process can make it."""

    dataset: int
    scene: int
    questions: tuple[int, ...]
    seed: int


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


__all__ = ["Pack", "PackDataset", "PackSampler"]
