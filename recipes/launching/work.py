# SPDX-License-Identifier: Apache-2.0
"""What a training row costs: kernels, operations and memory, found by running the modules on the meta device."""

from argparse import Namespace
from dataclasses import dataclass
from unittest import mock

import torch
from peft import PeftModel
from torch import nn

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ImageProcessorPil, modeling_vggt_depth_head
from modeling_vggt_qwen3.geometry_vggt_qwen3 import Cameras
from modeling_vggt_qwen3.processing_vggt_qwen3 import count_image_tokens

from .data_size import DataSize
from .meta_ops import Kernel, Recorder, as_on_a_gpu


PRIMES = (1009, 1013, 1019, 1021, 1031, 1033)  # numbers of rows: see `Recorder`
PREFIX_TEXT_TOKENS = 5  # <|im_start|>user\n<|vision_start|> ... <|vision_end|>


@dataclass
class Row:
    """
    A packed sequence: a scene's views and its questions.

    Args:
        num_views: Views that are encoded (with view dropout the mean, rounded).
        height, width: Pixels of a view as the encoder sees it.
        visual_tokens: Image and geometry tokens that the language model reads.
        patch_tokens: Patches that the encoder reads.
        text_tokens: All others that the language model reads.
        labels: Tokens with a loss.
        anchors: Places that are asked for.
    """

    num_views: int
    height: int
    width: int
    visual_tokens: int
    patch_tokens: int
    text_tokens: int
    labels: int
    anchors: int

    @property
    def length(self) -> int:
        return self.visual_tokens + self.text_tokens


@dataclass
class Work:
    """Of a micro-step: its kernels by the number of rows, and the bytes that a row takes at the most."""

    kernels: list[Kernel]
    peak: float

    def flops(self, *phases: str) -> dict[str, float]:
        """Operations of one row in each part of the model, in these phases."""
        parts = {}
        for kernel in self.kernels:
            if kernel.flops and kernel.phase in phases:
                parts[kernel.part] = parts.get(kernel.part, 0.0) + kernel.flops
        return parts


def plan_row(
    config: VggtQwen3Config,
    settings: Namespace,
    size: DataSize,
    questions: float,
    tokens: float,
    labels: float,
    full: bool,
) -> Row:
    """
    The row of a scene of `size` with `questions` questions, of `tokens` tokens in all and `labels` in the answers; `full`
    keeps the views that view dropout leaves out.
    """
    stored = size.num_views or settings.num_views or 8
    views = min(settings.num_views or stored, stored)
    if not full:
        views = round(1 + (views - 1) * (1 - settings.view_dropout))
    if settings.blind:
        views = 0
    processor = VggtQwen3ImageProcessorPil(patch_size=config.vision_config.patch_size)
    width, height = size.picture
    options = {"image_size": settings.image_size or config.vision_config.image_size}
    height, width = processor.get_resize(height, width, **options, mode=settings.image_mode or "crop")[-2:]
    rows, columns = height // config.vision_config.patch_size, width // config.vision_config.patch_size
    image_tokens = count_image_tokens(config, views, height, width, config.vision_config.patch_size)
    text = PREFIX_TEXT_TOKENS + round(tokens)
    anchors = round(questions) if config.anchor_hidden_size else 0
    labels = max(1, round(labels))
    return Row(views, height, width, image_tokens + views, views * rows * columns, text, labels, anchors)


def measure_work(
    model: nn.Module, config: VggtQwen3Config, settings: Namespace, row: Row, checkpointing: bool
) -> Work:
    """Runs a micro-step of rows like `row` on the meta device, with or without activation checkpointing."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    if checkpointing:
        whole.activation_checkpointing_enable()
    else:
        whole.activation_checkpointing_disable()
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    rows = next(prime for prime in PRIMES if all(size % prime for size in sizes))
    autocast = torch.bfloat16 if settings.bf16 else torch.float16 if settings.fp16 else None
    recorder = Recorder(rows)
    # The depth head's chunks are of views, whatever row they are of; here each row's are together.
    all_views = mock.patch.object(modeling_vggt_depth_head, "VIEWS_PER_CHUNK", rows * max(1, row.num_views))
    with torch.device("meta"), as_on_a_gpu(autocast), all_views, recorder:
        loss = run_forward(whole, config, settings, row, recorder)
        recorder.is_backward = True
        loss.backward()
        del loss
    model.zero_grad(set_to_none=True)
    return Work(recorder.kernels, recorder.peak)


def run_forward(
    model: nn.Module, config: VggtQwen3Config, settings: Namespace, row: Row, recorder: Recorder
) -> torch.Tensor:
    """The loss of `recorder.rows` rows. Parts are named as they are run, and as their gradients come back."""
    rows, base, dtype = recorder.rows, model.model, model.model.get_input_embeddings().weight.dtype

    def enter(part: str, inputs: torch.Tensor | None = None):
        """`part` runs now; once the gradient of its `inputs` is there, the part before it is next."""
        if inputs is not None and inputs.requires_grad:
            before = recorder.part
            inputs.register_hook(lambda gradient: setattr(recorder, "part", before))
        recorder.part = part

    embeddings = base.get_input_embeddings()(torch.empty(rows, row.text_tokens, dtype=torch.long))
    features = None
    if row.num_views:
        enter("vision_model and projector")
        features = base.get_image_features(**image_inputs(config, settings, row, rows, dtype), return_dict=True)
        visual = [torch.stack(tokens).to(dtype) for tokens in (features.pooler_output, features.geometry_embeddings)]
        embeddings = torch.cat([*visual, embeddings], dim=1)
    if not embeddings.requires_grad:
        embeddings.requires_grad_()  # as what is before a blind run's text would
    enter("language_model", embeddings)
    hidden_states = base.language_model(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": torch.empty(rows, 1, row.length, row.length, dtype=torch.bool)},
        position_ids=torch.arange(row.length)[None].expand(rows, -1),
        use_cache=False,
    ).last_hidden_state
    enter("lm_head and loss", hidden_states)
    answered = hidden_states[:, -row.labels :].flatten(0, 1)
    labels = torch.empty(len(answered), dtype=torch.long)

    # With chunks, logits take the memory of a chunk however many rows there are.
    recorder.untracked = recorder.part if getattr(settings, "loss_chunk_size", None) else None
    loss = model.loss_function(
        logits=model.lm_head(answered),
        labels=labels,
        shift_labels=labels,
        vocab_size=config.text_config.vocab_size,
    )
    if row.anchors:
        # Its backward pass comes first of all.
        enter("anchor_head", loss)
        loss = loss + run_anchor_head(base.anchor_head, features, hidden_states[:, : row.anchors])
    return loss


def image_inputs(
    config: VggtQwen3Config, settings: Namespace, row: Row, rows: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """What `get_image_features` reads of scenes with all that they may have."""
    views, patch_size = row.num_views, config.vision_config.patch_size
    cameras = {
        "extrinsics": torch.empty(rows, views, 3, 4),
        "intrinsics": torch.empty(rows, views, 3, 3),
        "depth_histogram": torch.empty(rows, views, config.geometry_num_depth_bins),
    }
    if settings.feature_store is None:
        return cameras | {"pixel_values": torch.empty(rows, views, 3, row.height, row.width)}
    width = 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
    grid = (row.height // patch_size, row.width // patch_size)
    encodings = torch.empty(rows, views, Cameras.packed_size(config.geometry_num_depth_bins))
    stored = {"vision_features": torch.empty(rows, views, *grid, width, dtype=dtype)}
    return cameras | stored | {"camera_encodings": encodings}


def run_anchor_head(head: nn.Module, features, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    What [`VggtQwen3AnchorHead.forward`] runs for `hidden_states [S, A, hidden_size]`, A anchors in each scene; it sorts
    anchors by scene itself, which the meta device cannot do.
    """
    context, _, places = head._context(features)
    anchors = head.query_proj(head.query_norm(hidden_states))
    for layer in head.layers:
        anchors = layer(anchors, context, None)
    anchors = head.output_norm(anchors)
    scores = torch.matmul(head.pointer_query(anchors), head.pointer_key(head.context_norm(context)).transpose(1, 2))
    weights = scores.float().log_softmax(dim=-1).exp()
    attended = torch.matmul(weights.to(context.dtype), context)
    boxes = head.box_mlp(torch.cat([anchors, attended.to(anchors.dtype)], dim=-1))
    return boxes.float().sum() + torch.matmul(weights, places.to(weights.dtype)).float().sum()


__all__ = ["Row", "Work", "measure_work", "plan_row"]
