# SPDX-License-Identifier: Apache-2.0
"""Greedy answers to the questions of a prepared dataset; each scene is encoded once for all its questions."""

from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from modeling_vggt_qwen3 import VggtQwen3Processor
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ImageFeatures
from recipes.training.collator import VISION_END, chat_prompt
from recipes.training.data import SceneDataset, question_text


def exact_match(prediction: str, references: list[str]) -> bool:
    """Whether `prediction` is one of `references`, whatever their case and white space."""
    return " ".join(prediction.lower().split()) in [" ".join(reference.lower().split()) for reference in references]


def question_batches(source: SceneDataset, rows: list[int], batch_size: int) -> list[list[tuple[int, list[int]]]]:
    """`rows` of `source.qa` as batches of at most `batch_size` questions: lists of (scene, its questions)."""
    wanted = set(rows)
    batches, count = [[]], 0
    for scene, questions in source.questions_of_scene.items():
        questions = [question for question in questions if question in wanted]
        while questions:
            room = batch_size - count
            if room == 0:
                batches.append([])
                count, room = 0, batch_size
            batches[-1].append((scene, questions[:room]))
            count += len(questions[:room])
            questions = questions[room:]
    return [batch for batch in batches if batch]


def model_inputs(
    model, processor: VggtQwen3Processor, source: SceneDataset, batch: list[tuple[int, list[int]]], blind: bool
) -> dict:
    """Left-padded prompts of a batch of [`question_batches`], with the features of its scenes."""
    prompts = [
        [chat_prompt(processor, question_text(source.qa[row]), not blind) for row in questions]
        for _, questions in batch
    ]
    inputs, prefix_ids, rests = {}, [[] for _ in batch], prompts
    if not blind:
        views = [source.views(scene) for scene, _ in batch]
        encoded = processor(
            images=[images for images, _ in views],
            text=[scene_prompts[0].partition(VISION_END)[0] + VISION_END for scene_prompts in prompts],
            geometry=[geometry for _, geometry in views],
            images_kwargs={"return_tensors": "pt"},
        )
        prefix_ids = encoded.pop("input_ids")
        encoded.pop("attention_mask")
        rests = [[prompt.partition(VISION_END)[2] for prompt in scene_prompts] for scene_prompts in prompts]
        features = model.get_image_features(
            **{key: torch.as_tensor(np.asarray(value)).to(model.device) for key, value in encoded.items()}
        )
        repeats = [scene for scene, (_, questions) in enumerate(batch) for _ in questions]
        inputs["mm_encoder_outputs"] = {
            "image": VggtQwen3ImageFeatures(
                pooler_output=[features.pooler_output[scene] for scene in repeats],
                geometry_embeddings=[features.geometry_embeddings[scene] for scene in repeats],
            )
        }
    sequences = [
        prefix + processor.tokenizer(rest, add_special_tokens=False).input_ids
        for prefix, scene_rests in zip(prefix_ids, rests, strict=True)
        for rest in scene_rests
    ]
    padded = processor.tokenizer.pad({"input_ids": sequences}, padding_side="left", return_tensors="pt")
    return inputs | {key: padded[key].to(model.device) for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def generate_answers(
    model,
    processor: VggtQwen3Processor,
    source: SceneDataset,
    rows: list[int],
    *,
    blind: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    process: tuple[int, int] = (0, 1),
    synced_gpus: bool = False,
    progress: bool = True,
) -> Iterator[tuple[int, str]]:
    """
    Answers questions greedily.

    Args:
        model: A [`VggtQwen3ForConditionalGeneration`] (or a PEFT model around one) in eval mode.
        source (`SceneDataset`): The scenes and questions.
        rows (`list[int]`): Rows of `source.qa` to answer.
        blind (`bool`): Withhold the images.
        batch_size (`int`): Questions per batch.
        process (`(rank, world size)`): Answer every world-size-th batch.
        synced_gpus (`bool`): Under ZeRO-3, whose processes must all run the same number of forward passes: one with
            fewer batches repeats its last and gives no answers for it.

    Yields:
        `(row, answer)`.
    """
    batches = question_batches(source, rows, batch_size)
    rank, world_size = process
    own = batches[rank::world_size]
    passes = -(-len(batches) // world_size) if synced_gpus else len(own)
    for step in tqdm(range(passes), desc=f"answering {source.path}", disable=not progress, leave=False):
        repeated = step >= len(own)
        batch = batches[0] if repeated else own[step]
        inputs = model_inputs(model, processor, source, batch, blind)
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, synced_gpus=synced_gpus, use_cache=True
        )
        answers = processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if not repeated:
            yield from zip([row for _, questions in batch for row in questions], map(str.strip, answers), strict=True)


__all__ = ["exact_match", "generate_answers", "question_batches"]
