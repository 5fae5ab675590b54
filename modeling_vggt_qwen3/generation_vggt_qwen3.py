# SPDX-License-Identifier: Apache-2.0
"""Answers to many questions about few scenes: what the questions of a scene share is computed once."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin, LogitsProcessorList

from .action_decoding_vggt_qwen3 import ActionLogitsProcessor
from .modeling_vggt_qwen3_inputs import OF_SCENES


# Of the memory that is free, what keys and values may take: the rest is for logits, activations, and the copy of a layer's
# keys and values that is made when they grow.
KV_SHARE = 0.5
# Without an accelerator a larger batch answers no faster.
KV_BYTES_ON_CPU = 2**32


class VggtQwen3GenerationMixin(GenerationMixin):
    """[`~transformers.GenerationMixin`] with shared-prefix decoding and with features in place of pixels."""

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size: int = 1, inputs_embeds=None):
        # For beams, transformers repeats the image tokens of each text; the geometry tokens have to follow.
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, expand_size, inputs_embeds)
        if "image" in expanded:
            geometry = expanded["image"].geometry_embeddings
            expanded["image"].geometry_embeddings = [tokens for tokens in geometry for _ in range(expand_size)]
        return expanded

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict) -> dict:
        # transformers encodes pixels before it decodes; stored features it would take for a leftover and drop.
        if model_kwargs.get("vision_features") is not None:
            scene_inputs = {name: model_kwargs.pop(name) for name in list(model_kwargs) if name in OF_SCENES}
            features = self.model.get_image_features(**scene_inputs, return_dict=True)
            model_kwargs["mm_encoder_outputs"] = {"image": features}
        return super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)

    @torch.no_grad()
    def answer_questions(
        self,
        scene_inputs: Mapping[str, torch.Tensor],
        questions: Sequence[Sequence[Sequence[int]]],
        *,
        batch_size: int | None = None,
        kv_bytes: int | None = None,
        return_anchors: bool = False,
        **generate_kwargs,
    ) -> list[list[list[int]]] | tuple[list[list[list[int]]], list[list[torch.Tensor | None]]]:
        r"""
        Answers several questions about each of several scenes: with the tokens that `generate` gives for each alone.

        The scenes are encoded together, and the keys and values of what a scene's questions share (everything up to
        and including the vision block) are computed once. They are expanded over its questions, which are decoded in
        left-padded batches; a row that has ended is padded until its batch has.

        Args:
            scene_inputs (`Mapping[str, torch.Tensor]`): Of S scenes, their left-padded prefixes `input_ids [S, L]` and
                `attention_mask [S, L]`, with `pixel_values [S, V, 3, H, W]` (or `vision_features`), `view_mask` and
                geometry as in `forward`. Empty for questions without images.
            questions (`Sequence[Sequence[Sequence[int]]]`): Per scene and question, the tokens that follow the prefix.
                [`VggtQwen3Processor.prepare_questions`] makes both.
            batch_size (`int`, *optional*): Most questions to decode together; by default as many as `kv_bytes` holds.
            kv_bytes (`int`, *optional*): Memory for the keys and values of the questions that are decoded together, of
                prefix, question and answer in all layers and beams; a batch has at least one question. By default half
                of what is free, rounded down to a power of two, so that the same machine makes the same batches (see
                [`default_kv_bytes`]). Under `synced_gpus` all processes decode as many batches as the one with most.
            return_anchors (`bool`): Also return the boxes that the anchor head predicts for the `<|anchor|>` tokens
                with which questions end.
            generate_kwargs: For [`~transformers.GenerationMixin.generate`], for example `max_new_tokens`, `num_beams`. Of
                `logits_processor`, an [`ActionLogitsProcessor`] of one action per row has one per question, in the
                order of scenes and questions.

        Returns:
            `list[list[list[int]]]`: per scene and question, the answer's tokens up to and including its end. With
            `return_anchors` also, per scene and question, the box `[9]` (centre, extent, normal in the frame of view 0,
            metres), None for a question that does not end with `<|anchor|>`.

        Raises:
            ValueError: if scenes and lists of questions differ in number, there is no question, a question has no
                tokens or does not fit into the context with its answer, more than one sequence per question is asked
                for, or the language model has layers that are not full attention.
        """
        options = {key: value for key, value in generate_kwargs.items() if key != "generation_config"}
        config, _ = self._prepare_generation_config(generate_kwargs.get("generation_config"), **options)
        ends = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or [])
        pad = config.pad_token_id if config.pad_token_id is not None else (ends or [0])[0]
        prefix_ids, prefix_mask = scene_inputs.get("input_ids"), scene_inputs.get("attention_mask")
        lengths = [0] * len(questions) if prefix_mask is None else prefix_mask.sum(1).tolist()
        self._check_questions(lengths, questions, config)

        cache, features = None, None
        if prefix_ids is not None:
            position_ids = (prefix_mask.cumsum(1) - 1).clamp(min=0)
            prefix = self.model(**scene_inputs, position_ids=position_ids, use_cache=True)
            cache, features = prefix.past_key_values, prefix.image_features

        processors = generate_kwargs.pop("logits_processor", None) or []
        # Questions of one length together, so that little is padded.
        order = [(scene, number) for scene, tokens in enumerate(questions) for number in range(len(tokens))]
        rows = {question: row for row, question in enumerate(order)}
        order.sort(key=lambda item: len(questions[item[0]][item[1]]))
        answers = [[None] * len(tokens) for tokens in questions]
        anchors = [[None] * len(tokens) for tokens in questions]
        kv_bytes = default_kv_bytes(self.device) if kv_bytes is None else kv_bytes
        sizes = [len(questions[scene][number]) for scene, number in order]
        prefix_length = 0 if prefix_ids is None else prefix_ids.shape[1]
        token_bytes = self._kv_bytes_per_token(cache) * config.num_beams
        batches = batches_of(
            sizes, batch_size, kv_bytes, token_bytes, prefix_length + answer_length(config, prefix_length)
        )
        if generate_kwargs.get("synced_gpus"):
            # Another process may have more: under ZeRO-3 none decodes alone. What is decoded again gives the same answers.
            batches += [batches[-1]] * (most_of_all_processes(len(batches), self.device) - len(batches))
        for start, end in batches:
            batch = order[start:end]
            suffixes = [list(questions[scene][number]) for scene, number in batch]
            length = max(map(len, suffixes))
            padding = [length - len(ids) for ids in suffixes]
            input_ids = [[pad] * width + ids for width, ids in zip(padding, suffixes, strict=True)]
            attention_mask = [[0] * width + [1] * (length - width) for width in padding]
            input_ids, attention_mask = (
                torch.tensor(rows, device=self.device) for rows in (input_ids, attention_mask)
            )
            scenes = torch.tensor([scene for scene, _ in batch], device=self.device)
            if return_anchors:
                boxes = self._anchors_of_batch(cache, features, prefix_mask, scenes, input_ids, attention_mask)
                for (scene, number), box in zip(batch, boxes, strict=True):
                    anchors[scene][number] = box
            shared = {}
            if cache is not None:
                # A question's padding comes after its prefix: the mask hides it, and positions do not count it.
                input_ids = torch.cat([prefix_ids[scenes], input_ids], dim=1)
                attention_mask = torch.cat([prefix_mask[scenes], attention_mask], dim=1)
                shared = {"past_key_values": select_rows(cache, scenes.repeat_interleave(config.num_beams))}
            of_batch = [
                processor.for_rows([rows[question] for question in batch])
                if isinstance(processor, ActionLogitsProcessor)
                else processor
                for processor in processors
            ]
            output = self.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=True,
                logits_processor=LogitsProcessorList(of_batch),
                **shared,
                **generate_kwargs,
            )
            for (scene, number), tokens in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                end = next((position + 1 for position, token in enumerate(tokens) if token in ends), len(tokens))
                answers[scene][number] = tokens[:end]
        return (answers, anchors) if return_anchors else answers

    def _anchors_of_batch(
        self, cache, features, prefix_mask, scenes: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> list[torch.Tensor | None]:
        """The box `[9]` of each row of `input_ids [B, L]` that ends with `<|anchor|>`, about the scenes `[B]`."""
        ends = (input_ids[:, -1] == self.config.anchor_token_id).nonzero()[:, 0]
        boxes = [None] * len(input_ids)
        if self.model.anchor_head is None or not len(ends):
            return boxes
        input_ids, attention_mask, scenes = input_ids[ends], attention_mask[ends], scenes[ends]
        shared = {}
        if cache is not None:
            attention_mask = torch.cat([prefix_mask[scenes], attention_mask], dim=1)
            shared = {"past_key_values": select_rows(cache, scenes)}
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **shared)
        if features is None:
            scenes = torch.full_like(scenes, -1)
        predicted, _ = self.model.anchor_head(outputs.last_hidden_state[:, -1], scenes, features)
        for row, box in zip(ends.tolist(), predicted, strict=True):
            boxes[row] = box
        return boxes

    def _kv_bytes_per_token(self, cache: Cache | None) -> int:
        """Bytes of a token's keys and values in all layers."""
        if cache is not None:
            of_layers = [
                tensor for layer in cache.layers for tensor in (layer.keys, layer.values)
            ]  # [S, heads, L, width]
            return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in of_layers)
        config = self.config.text_config
        width = 2 * config.num_key_value_heads * config.head_dim
        return config.num_hidden_layers * width * self.model.language_model.embed_tokens.weight.element_size()

    def _check_questions(self, prefix_lengths: list[int], questions: Sequence[Sequence[Sequence[int]]], config):
        """Raises the errors of `answer_questions`."""
        if len(prefix_lengths) != len(questions):
            raise ValueError(f"Got {len(prefix_lengths)} scenes and lists of questions for {len(questions)}.")
        if not any(len(tokens) for tokens in questions):
            raise ValueError(f"There is no question about any of {len(questions)} scenes.")
        if config.num_return_sequences not in (None, 1):
            raise ValueError(
                f"num_return_sequences must be 1, one answer per question; got {config.num_return_sequences}."
            )
        text_config = self.config.text_config
        if set(getattr(text_config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ValueError("answer_questions needs a language model with full attention in all layers.")
        context, room = text_config.max_position_embeddings, config.max_new_tokens or 1
        for scene, (prefix_length, tokens) in enumerate(zip(prefix_lengths, questions, strict=True)):
            for number, ids in enumerate(tokens):
                if not len(ids):
                    raise ValueError(f"Question {number} of scene {scene} has no tokens.")
                if prefix_length + len(ids) + room > context:
                    raise ValueError(
                        f"Question {number} of scene {scene} does not fit: a prefix of {prefix_length} tokens, "
                        f"{len(ids)} of the question and {room} of the answer exceed the context of {context}."
                    )


def batches_of(
    lengths: Sequence[int], batch_size: int | None, kv_bytes: int, token_bytes: int, shared: int
) -> list[tuple[int, int]]:
    """
    Where the batches of questions of `lengths`, which ascend, begin and end: each as large as `batch_size` and memory
    allow, of at least one question.

    Args:
        kv_bytes (`int`): Memory for keys and values.
        token_bytes (`int`): Of those, for one token of one question.
        shared (`int`): Tokens of a question beside its own: of the prefix and the answer.
    """
    batches, start = [], 0
    for end in range(1, len(lengths) + 1):
        # Padded, all questions are as long as the last one.
        rows, tokens = end - start, shared + lengths[end - 1]
        if rows > 1 and (rows * tokens * token_bytes > kv_bytes or rows > (batch_size or rows)):
            batches.append((start, end - 1))
            start = end - 1
    return [*batches, (start, len(lengths))]


def answer_length(config, prefix_length: int) -> int:
    """Most tokens of an answer that `config`, a generation config, allows."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return max(1, (config.max_length or 1) - prefix_length)


def default_kv_bytes(device: torch.device) -> int:
    """`KV_SHARE` of the memory that is free on `device`, without an accelerator at most `KV_BYTES_ON_CPU`; a power of two."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # PyTorch keeps what tensors that are gone have used.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        share = int(KV_SHARE * free)
    else:
        share, meminfo = KV_BYTES_ON_CPU, Path("/proc/meminfo")
        if meminfo.is_file():
            available = meminfo.read_text(encoding="utf-8").partition("MemAvailable:")[2].split()[0]  # kB
            share = min(share, int(KV_SHARE * 1024 * int(available)))
    return 1 << max(0, share.bit_length() - 1)


def most_of_all_processes(number: int, device: torch.device) -> int:
    """The largest `number` of all processes; the only one where there is one process."""
    if not dist.is_initialized():
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """A cache of some rows of `cache`, which stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


__all__ = ["VggtQwen3GenerationMixin", "default_kv_bytes"]
