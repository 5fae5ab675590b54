# SPDX-License-Identifier: Apache-2.0
"""Answers to the questions of a prepared dataset; what a scene's questions share is computed once."""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from modeling_vggt_qwen3 import VggtQwen3Processor

from .scenes import SceneDataset, action_of, anchor_of, question_text


# Questions whose scenes are encoded together, where a run does not say: about as many scenes as have eight.
GATHERED_QUESTIONS = 64


def question_batches(
    source: SceneDataset, rows: list[int], batch_size: int, split_scenes: bool = False
) -> list[list[tuple[int, list[int]]]]:
    """
    `rows` of `source.qa` as batches of about `batch_size` questions: lists of (scene, its questions).

    A scene is in one batch, which only a scene with more questions makes larger; with `split_scenes` no batch is
    larger.
    """
    wanted = set(rows)
    batches, count = [[]], 0
    for scene, questions in source.questions_of_scene.items():
        questions = [question for question in questions if question in wanted]
        size = batch_size if split_scenes else max(1, len(questions))
        for start in range(0, len(questions), size):
            part = questions[start : start + size]
            if count + len(part) > batch_size:
                batches.append([])
                count = 0
            batches[-1].append((scene, part))
            count += len(part)
    return [batch for batch in batches if batch]


def passes_of(batches: list, process: tuple[int, int], synced_gpus: bool) -> list[tuple[list, bool]]:
    """What the process (rank, world size) runs: every world-size-th batch, and whether another process answers it."""
    rank, world_size = process
    passes = [(batch, False) for batch in batches[rank::world_size]]
    if synced_gpus and len(passes) < -(-len(batches) // world_size):
        passes.append((batches[0], True))
    return passes


def prepare_batch(
    processor: VggtQwen3Processor, source: SceneDataset, batch: list[tuple[int, list[int]]], blind: bool
) -> tuple[dict[str, torch.Tensor], list[list[list[int]]]]:
    """The inputs of `answer_questions` for a batch of [`question_batches`]."""
    rows = [source.questions(rows) for _, rows in batch]
    questions = [[question_text(row) for row in asked] for asked in rows]
    anchors = [[anchor_of(row) is not None for row in asked] for asked in rows]
    if blind:
        return processor.prepare_questions(questions, anchors=anchors)
    scenes = [source.scene_inputs(scene) for scene, _ in batch]
    columns = {name: [scene[name] for scene in scenes] for name in scenes[0]}
    return processor.prepare_questions(questions, **columns, anchors=anchors)


@torch.no_grad()
def generate_answers(
    model,
    processor: VggtQwen3Processor,
    source: SceneDataset,
    rows: list[int],
    *,
    blind: bool = False,
    batch_size: int | None = None,
    max_new_tokens: int = 32,
    process: tuple[int, int] = (0, 1),
    synced_gpus: bool = False,
    progress: bool = True,
    **generate_kwargs,
) -> Iterator[tuple[int, str]]:
    """
    Answers questions, greedily unless `generate_kwargs` say otherwise.

    Args:
        model: A [`VggtQwen3ForConditionalGeneration`] (or a PEFT model around one) in eval mode.
        source (`SceneDataset`): The scenes and questions.
        rows (`list[int]`): Rows of `source.qa` to answer.
        blind (`bool`): Withhold the images.
        batch_size (`int`, *optional*): Most questions to decode together, and whose scenes are encoded together; by
            default as many as there is memory for their keys and values, of `GATHERED_QUESTIONS` or one scene.
        process (`(rank, world size)`): Answer every world-size-th batch.
        synced_gpus (`bool`): Under ZeRO-3, whose processes must all run the same number of forward passes: one with
            fewer batches repeats one and gives no answers for it.
        generate_kwargs: For [`~transformers.GenerationMixin.generate`], for example `num_beams`.

    Yields:
        `(row, answer)`.

    Raises:
        ValueError: if a question does not fit into the model's context, naming it.
    """
    batches = question_batches(source, rows, batch_size or GATHERED_QUESTIONS, split_scenes=synced_gpus)
    passes = passes_of(batches, process, synced_gpus)
    for batch, repeated in tqdm(passes, desc=f"answering {source.path}", disable=not progress, leave=False):
        scene_inputs, questions = prepare_batch(processor, source, batch, blind)
        try:
            answers = model.answer_questions(
                {name: tensor.to(model.device) for name, tensor in scene_inputs.items()},
                questions,
                batch_size=batch_size,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                synced_gpus=synced_gpus,
                **generate_kwargs,
            )
        except ValueError as error:
            scenes = ", ".join(source.scene_ids[scene] for scene, _ in batch)
            raise ValueError(
                f"{source.path}, split {source.split}, scenes {scenes} (counted from 0): {error}"
            ) from error
        texts = processor.tokenizer.batch_decode([ids for scene in answers for ids in scene], skip_special_tokens=True)
        if not repeated:
            yield from zip([row for _, questions in batch for row in questions], map(str.strip, texts), strict=True)


@torch.no_grad()
def generate_actions(
    model,
    processor: VggtQwen3Processor,
    source: SceneDataset,
    rows: list[int],
    *,
    blind: bool = False,
    batch_size: int | None = None,
    texts: bool = True,
    process: tuple[int, int] = (0, 1),
    synced_gpus: bool = False,
    progress: bool = True,
    **generate_kwargs,
) -> list[tuple[int, str | None, list[float] | None]]:
    """
    Actions for rows of `source.qa` that ask for one, decoded under the grammar of the action that each row asks for.

    Args:
        texts (`bool`): Decode the texts. Without, only the anchor head's boxes are computed.
        The others as in `generate_answers`.

    Returns:
        Per row, in order: `(row, text, anchor)`; the anchor head's box (centre, extent, normal, metres, frame of view 0)
        for a place_anchor of a model with an anchor head, otherwise None; the text None without `texts`.

    Raises:
        ValueError: if a row asks for no action, or a question does not fit into the model's context.
    """
    of_action: dict[str, list[int]] = {}
    for row, example in zip(rows, source.questions(rows), strict=True):
        action = action_of(example)
        if action is None:
            raise ValueError(f"{source.path}, qa, split {source.split}, row {row} asks for no action.")
        of_action.setdefault(action["action"], []).append(row)
    results = []
    # The same order of actions on all processes: under ZeRO-3 they decode together.
    for action in sorted(of_action):
        if not texts and action != "place_anchor":
            continue
        options = dict(generate_kwargs)
        if texts:
            options["logits_processor"] = [processor.action_logits_processor(action)]
        most = batch_size or GATHERED_QUESTIONS
        batches = question_batches(source, of_action[action], most, split_scenes=synced_gpus)
        passes = passes_of(batches, process, synced_gpus)
        for batch, repeated in tqdm(passes, desc=f"{action}, {source.path}", disable=not progress, leave=False):
            scene_inputs, questions = prepare_batch(processor, source, batch, blind)
            prompt = max(len(ids) for asked in questions for ids in asked)
            prompt += 0 if blind else scene_inputs["input_ids"].shape[1]
            room = model.config.text_config.max_position_embeddings - prompt
            longest = processor.action_token_budget(action, room) if texts else 1
            answers, anchors = model.answer_questions(
                {name: tensor.to(model.device) for name, tensor in scene_inputs.items()},
                questions,
                batch_size=batch_size,
                return_anchors=True,
                synced_gpus=synced_gpus,
                **{"do_sample": False, "max_new_tokens": longest} | options,
            )
            if repeated:
                continue
            flat = [ids for scene in answers for ids in scene]
            decoded = processor.tokenizer.batch_decode(flat, skip_special_tokens=True) if texts else [None] * len(flat)
            boxes = [None if box is None else box.tolist() for scene in anchors for box in scene]
            results += zip([row for _, asked in batch for row in asked], decoded, boxes, strict=True)
    return sorted(results)


__all__ = ["generate_actions", "generate_answers", "prepare_batch", "question_batches"]
