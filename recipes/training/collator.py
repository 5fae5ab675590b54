# SPDX-License-Identifier: Apache-2.0
"""Packed batches: one scene's prefix, then one segment per question."""

from functools import lru_cache

import torch

from modeling_vggt_qwen3 import VggtQwen3Processor
from modeling_vggt_qwen3.modeling_vggt_qwen3_anchor import find_anchors

from ..common.scenes import SceneDataset, question_text


def chat_prompt(processor: VggtQwen3Processor, question: str, with_images: bool) -> str:
    """The chat-formatted prompt of a question, up to where the answer begins."""
    content = [{"type": "image"}] * with_images + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def collate_named(collate, examples: list[dict]) -> dict:
    """
    The batch that `collate` makes, with what [`StepWatch`] reads and no model takes: `packs` and, of those that were left
    out, `unreadable`.
    """
    named = {"packs": [example["pack"] for example in examples if "pack" in example]}
    named["unreadable"] = [example["unreadable"] for example in examples if "unreadable" in example]
    return collate(examples) | named


class PackCollator:
    """
    Makes the model's inputs of a list of examples from [`PackDataset`].

    A row is a scene's prefix (up to and including the vision block; empty without images), then its segments, each
    the rest of the prompt, the answer and the end-of-turn token. Segments see the prefix and themselves
    (`segment_ids`), and their positions start right after the prefix. Only answers and their end are labels. With an
    anchor head, prompts that ask for a place end with `<|anchor|>`; their boxes are `anchor_targets`. Where labels,
    placeholders and anchors are comes with the batch (see [`VggtQwen3ForConditionalGeneration.forward`]).

    Args:
        processor (`VggtQwen3Processor`): Makes pixels, placeholders and tokens.
        context (`int`, *optional*): Positions that the language model has. A prefix with a question and its answer has
            to fit; the number of segments in a row is not limited by it, since each starts after the prefix.
    """

    def __init__(self, processor: VggtQwen3Processor, context: int | None = None):
        self.processor = processor
        self.context = context
        self.tokenize_segment = lru_cache(maxsize=65536)(self._tokenize_segment)

    def _tokenize_segment(
        self, question: str, answer: str | None, with_images: bool, anchor: bool
    ) -> tuple[list[int], list[int]]:
        """The tokens of the prompt after the prefix, and those of the answer with its end, none if it is None."""
        _, prompt_ids = self.processor.split_prompt(question, with_images, anchor)
        if answer is None:
            return prompt_ids, []
        return prompt_ids, self.processor.encode_text(answer) + [self.processor.tokenizer.eos_token_id]

    def check_context(self, source: SceneDataset):
        """Raises ValueError for a question that does not fit into the context with its longest answer, naming it."""
        columns = zip(source.num_characters, source.qa["answers"], strict=True)
        for row, (length, answers) in enumerate(columns if self.context is not None else ()):
            # A character is at most four tokens, and the chat template's own are far fewer than 64.
            if 4 * (length + max(map(len, answers), default=0)) + 64 <= self.context:
                continue
            example = source.qa[row]
            for answer in example["answers"]:
                prompt_ids, answer_ids = self._tokenize_segment(question_text(example), answer, True, True)
                if len(prompt_ids) + len(answer_ids) > self.context:
                    raise ValueError(
                        f"{source.path}, qa, split {source.split}, row {row} (question {example['question_id']}): a "
                        f"question of {len(prompt_ids)} and an answer of {len(answer_ids)} tokens exceed the language "
                        f"model's context of {self.context}."
                    )

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor | list[int] | int]:
        stored = "vision_features" in examples[0]
        with_images = [stored or bool(example["images"]) for example in examples]
        prefixes = [self.processor.split_prompt("", images)[0] for images in with_images]
        anchors = [example.get("anchors") or [None] * len(example["questions"]) for example in examples]
        segments = [
            [
                self.tokenize_segment(question, answer, images, anchor is not None)
                for (question, answer), anchor in zip(example["questions"], boxes, strict=True)
            ]
            for example, images, boxes in zip(examples, with_images, anchors, strict=True)
        ]
        batch = {}
        prefix_ids = [[] for _ in examples]
        if stored:
            names = ["vision_features", "image_sizes", "geometry", "camera_encodings"]
            columns = {name: [example[name] for example in examples] for name in names if name in examples[0]}
            batch = dict(self.processor.encode_features(text=prefixes, **columns))
        elif any(with_images):
            batch = dict(
                self.processor(
                    images=[example["images"] for example in examples],
                    text=prefixes,
                    geometry=[example["geometry"] for example in examples],
                    image_sizes=[example.get("image_sizes") for example in examples],
                    add_special_tokens=False,
                    padding=False,
                    images_kwargs={"return_tensors": "pt"},
                )
            )
        if batch:
            prefix_ids = batch.pop("input_ids")
            batch.pop("attention_mask", None)
            batch = {key: torch.as_tensor(value) for key, value in batch.items()}

        for example, prefix, row in zip(examples, prefix_ids, segments, strict=True):
            for (question, _), (prompt_ids, answer_ids) in zip(example["questions"], row, strict=True):
                if self.context is not None and len(prefix) + len(prompt_ids) + len(answer_ids) > self.context:
                    raise ValueError(
                        f"A prefix of {len(prefix)}, a question of {len(prompt_ids)} and an answer of "
                        f"{len(answer_ids)} tokens exceed the language model's context of {self.context}: {question[:80]!r}"
                    )
        rows = [self._pack(prefix, row) for prefix, row in zip(prefix_ids, segments, strict=True)]
        length = max(1, *(len(row["input_ids"]) for row in rows))
        # Padding is one more segment that nothing else sees, so that no attention row is empty.
        padding = {
            "input_ids": self.processor.tokenizer.pad_token_id,
            "position_ids": 0,
            "segment_ids": max(len(row) for row in segments) + 1,
            "labels": -100,
        }
        for key, value in padding.items():
            batch[key] = torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        targets = [box for boxes in anchors for box in boxes if box is not None]
        if targets and self.processor.has_anchor_head:
            batch["anchor_targets"] = torch.tensor(targets)
        return batch | self._find(batch, prefix_ids)

    def _find(
        self, batch: dict[str, torch.Tensor], prefix_ids: list[list[int]]
    ) -> dict[str, torch.Tensor | list[int] | int]:
        """
        Where in a batch the model finds what it reads. Here all is on the host; the model would make it wait for the GPU.
        What the host needs is Python numbers, for the same reason. Texts have no placeholders or anchors of their own:
        what looks like one is tokenised as characters.
        """
        processor, input_ids = self.processor, batch["input_ids"]
        # Where the next token is a label.
        labelled = torch.nn.functional.pad(batch["labels"][:, 1:] != -100, (0, 1))
        found = {"label_indices": labelled.flatten().nonzero()[:, 0]}
        if "view_mask" in batch:
            found["view_counts"] = batch["view_mask"].sum(dim=1).tolist()
        if any(prefix_ids):
            for name, token_id in (("image", processor.image_token_id), ("geometry", processor.geometry_token_id)):
                found[f"{name}_indices"] = (input_ids == token_id).flatten().nonzero()[:, 0]
        if processor.has_anchor_head:
            token_id = processor.tokenizer.convert_tokens_to_ids(processor.anchor_token)
            positions, most = find_anchors(input_ids, token_id, processor.image_token_id)
            found |= {"anchor_positions": positions, "anchors_per_scene": most}
        return found

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


__all__ = ["PackCollator", "chat_prompt", "collate_named"]
