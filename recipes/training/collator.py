# SPDX-License-Identifier: Apache-2.0
"""Packed batches: one scene's prefix, then one segment per question."""

from functools import lru_cache

import numpy as np
import torch

from modeling_vggt_qwen3 import VggtQwen3Processor


VISION_END = "<|vision_end|>"


def chat_prompt(processor: VggtQwen3Processor, question: str, with_images: bool) -> str:
    """The chat-formatted prompt of a question, up to where the answer begins."""
    content = [{"type": "image"}] * with_images + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


class PackCollator:
    """
    Makes the model's inputs of a list of examples from [`PackDataset`].

    A row is a scene's prefix (up to and including the vision block; empty without images), then its segments, each
    the rest of the prompt, the answer and the end-of-turn token. Segments see the prefix and themselves
    (`segment_ids`), and their positions start right after the prefix. Only answers and their end are labels.

    Args:
        processor (`VggtQwen3Processor`): Makes pixels, placeholders and tokens.
    """

    def __init__(self, processor: VggtQwen3Processor):
        self.processor = processor
        self.tokenize_segment = lru_cache(maxsize=65536)(self._tokenize_segment)

    def _tokenize_segment(self, question: str, answer: str, with_images: bool) -> tuple[str, list[int], list[int]]:
        """The prefix's text, the tokens of the rest of the prompt, and those of the answer with its end."""
        prompt = chat_prompt(self.processor, question, with_images)
        prefix, separator, rest = prompt.partition(VISION_END) if with_images else ("", "", prompt)
        tokenizer = self.processor.tokenizer
        prompt_ids = tokenizer(rest, add_special_tokens=False).input_ids
        answer_ids = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        return prefix + separator, prompt_ids, answer_ids

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        prefixes, segments = [], []
        for example in examples:
            tokenized = [
                self.tokenize_segment(question, answer, bool(example["images"]))
                for question, answer in example["questions"]
            ]
            prefixes.append(tokenized[0][0])
            segments.append([(prompt_ids, answer_ids) for _, prompt_ids, answer_ids in tokenized])
        batch = {}
        if any(example["images"] for example in examples):
            batch = dict(
                self.processor(
                    images=[example["images"] for example in examples],
                    text=prefixes,
                    geometry=[example["geometry"] for example in examples],
                    add_special_tokens=False,
                    padding=False,
                    images_kwargs={"return_tensors": "pt"},
                )
            )
            prefix_ids = batch.pop("input_ids")
            batch.pop("attention_mask", None)
            batch = {key: torch.as_tensor(np.asarray(value)) for key, value in batch.items()}
        else:
            prefix_ids = [[] for _ in examples]

        rows = [self._pack(prefix, row) for prefix, row in zip(prefix_ids, segments, strict=True)]
        length = max(len(row["input_ids"]) for row in rows)
        # Padding is one more segment that nothing else sees, so that no attention row is empty.
        padding = {
            "input_ids": self.processor.tokenizer.pad_token_id,
            "position_ids": 0,
            "segment_ids": max(len(row) for row in segments) + 1,
            "labels": -100,
        }
        for key, value in padding.items():
            batch[key] = torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        return batch

    @staticmethod
    def _pack(prefix: list[int], segments: list[tuple[list[int], list[int]]]) -> dict[str, list[int]]:
        input_ids, labels, segment_ids = list(prefix), [-100] * len(prefix), [0] * len(prefix)
        position_ids = list(range(len(prefix)))
        for number, (prompt_ids, answer_ids) in enumerate(segments, start=1):
            input_ids += prompt_ids + answer_ids
            labels += [-100] * len(prompt_ids) + answer_ids
            segment_ids += [number] * (len(prompt_ids) + len(answer_ids))
            position_ids += range(len(prefix), len(prefix) + len(prompt_ids) + len(answer_ids))
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "labels": labels,
        }


__all__ = ["PackCollator", "chat_prompt"]
