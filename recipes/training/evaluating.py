# SPDX-License-Identifier: Apache-2.0
"""What an evaluation while training asks and measures: text answers, anchors, and of lists and rooms their boxes."""

import logging
import math
import random
from collections.abc import Sequence
from importlib.util import find_spec

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.generation import generate_actions, generate_answers
from recipes.metrics.room_actions.reading import read_action
from recipes.metrics.three_d_qa.protocols import exact_match

from ..common.scenes import SceneDataset, action_of, anchor_of
from ..runs.arguments import no_exact_match


logger = logging.getLogger(__name__)

NEAR = 0.5  # metres between the centres of an anchor that counts as right
BEST = "eval_exact_match"
ANCHOR = "place_anchor"
BOXES = ("list_objects", "describe_room")
# Of each of these no more in an evaluation: a text has up to thousands of tokens, which anchors of the head do without.
MOST_OF_BOXES = 32
# What decodes and scores them, and training alone does not need.
OF_BOXES = ("scipy", "xgrammar")


def rows_to_ask(source: SceneDataset, most: int | None, seed: int) -> dict[str | None, list[int]]:
    """
    The questions of an evaluation, the same in each and in every run with this seed: rows of `source.qa` by the action that
    they ask for, None of those that are answered in words and have a reference. Lists and rooms are left out where what they need
    is not installed.

    Raises:
        ValueError: if a row's action is none, naming it.
    """
    rows = list(range(len(source.qa)))
    if most is not None:
        rows = sorted(random.Random(seed).sample(rows, min(len(rows), most)))
    asked = {}
    for row, example in zip(rows, source.questions(rows), strict=True):
        if example["action"] is not None and read_action(example["action"]) is None:
            raise ValueError(
                f"{source.path}, qa, split {source.split}, row {row} (question {example['question_id']}): `action` is not "
                "JSON of one of the schemas; prepare it again."
            )
        action = action_of(example)
        if action is not None or example["answers"]:
            asked.setdefault(action and action["action"], []).append(row)
    most_of_boxes = 0 if missing_libraries() else MOST_OF_BOXES
    asked = {name: own[:most_of_boxes] if name in BOXES else own for name, own in asked.items()}
    return {name: own for name, own in asked.items() if own}


def missing_libraries() -> list[str]:
    return [name for name in OF_BOXES if find_spec(name) is None]


def check_evaluations(sources: Sequence[SceneDataset], data_arguments, training_arguments):
    """
    Says what evaluations will not measure. Raises ValueError if the best checkpoint is to be chosen by an exact match that no
    question of an evaluation has.
    """
    if (missing := missing_libraries()) and training_arguments.eval_strategy != "no":
        texts = [text for source in sources for text in source.qa["action"]]
        if any(text and '"place_anchor"' not in text for text in texts) and training_arguments.process_index == 0:
            logger.warning(
                "Lists and rooms are left out of evaluations: without %s. pip install 'vggt-qwen3[eval,actions]' for them",
                " and ".join(missing),
            )
    needed = training_arguments.load_best_model_at_end or training_arguments.save_strategy == "best"
    if training_arguments.eval_strategy == "no" or not needed:
        return
    asked = [rows_to_ask(source, data_arguments.eval_questions, training_arguments.seed) for source in sources]
    if any(None in rows or ANCHOR in rows for rows in asked):
        return
    raise ValueError(no_exact_match([source.path for source in sources], data_arguments.eval_split))


def measure(
    model,
    processor: VggtQwen3Processor,
    source: SceneDataset,
    asked: dict[str | None, list[int]],
    max_new_tokens: int,
    **options,
) -> list[tuple[str, tuple]]:
    """
    Asks the questions `asked` of [`rows_to_ask`] that are this process's, and says of each what came out.

    Args:
        options: For `generate_answers` and `generate_actions`.

    Returns:
        ("exact_match", (right,)) of answers and anchors, where an anchor is right within `NEAR` of the true one;
        (action, (valid, matched, predicted, true)) of lists and rooms, with boxes counted at an IoU of 0.25.
    """
    # An extra: text answers and anchors need none of it.
    if boxes := sorted(row for name in BOXES for row in asked.get(name, ())):
        from recipes.metrics.room_actions.scoring import IOUS, compare

    found = []
    if None in asked:
        answers = generate_answers(model, processor, source, asked[None], max_new_tokens=max_new_tokens, **options)
        found += [("exact_match", (exact_match(answer, source.qa[row]["answers"]),)) for row, answer in answers]
    if ANCHOR in asked:
        from_head = model.config.numbers_from == "head"
        actions = generate_actions(model, processor, source, asked[ANCHOR], texts=not from_head, **options)
        for row, text, anchor in actions:
            action = None if from_head else read_action(text)
            center = anchor[:3] if from_head else action and action["center"]
            near = center is not None and math.dist(center, anchor_of(source.qa[row])[:3]) <= NEAR
            found.append(("exact_match", (near,)))
    for row, text, _ in generate_actions(model, processor, source, boxes, **options) if boxes else ():
        example = source.qa[row]
        reference = action_of(example)
        compared = compare(read_action(text), reference, vertical(source, example["scene_id"]))
        counts = [count for (_, iou), count in compared.matches.items() if iou == IOUS[0]]
        found.append((reference["action"], (compared.valid, *map(sum, zip(*counts, strict=True)))))
    return found


def vertical(source: SceneDataset, scene_id: str) -> Sequence[float]:
    """`[3]` the world's vertical in the frame of view 0; that of a level view where a scene has no cameras."""
    from recipes.metrics.room_actions.scoring import LEVEL_UP

    geometry = source.scenes.select_columns(["geometry"])[source.scene_ids.index(scene_id)]["geometry"]
    return LEVEL_UP if geometry is None else [row[2] for row in geometry["R"][0]]


def metrics_of(found: Sequence[tuple[str, tuple]], prefix: str = "eval") -> dict[str, float]:
    """
    What `measure` found of all questions as metrics: `{prefix}_exact_match`, and of each action with boxes
    `{prefix}_{action}_valid`, `_precision` and `_recall`. One that nothing was asked for, or that has no boxes to divide
    by, is left out.
    """
    metrics = {}
    if right := [counts[0] for name, counts in found if name == "exact_match"]:
        metrics[f"{prefix}_exact_match"] = sum(right) / len(right)
    for action in BOXES:
        own = [counts for name, counts in found if name == action]
        valid, matched, predicted, true = map(sum, zip(*own, strict=True)) if own else (0, 0, 0, 0)
        for name, part, whole in (
            ("valid", valid, len(own)),
            ("precision", matched, predicted),
            ("recall", matched, true),
        ):
            if whole:
                metrics[f"{prefix}_{action}_{name}"] = part / whole
    return metrics


__all__ = ["BEST", "check_evaluations", "measure", "metrics_of", "rows_to_ask"]
