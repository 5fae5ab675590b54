# SPDX-License-Identifier: Apache-2.0
"""What a training row costs: operations and kept activations, found by running the modules on the meta device."""

from argparse import Namespace
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ImageProcessorPil

from .data_size import DataSize


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
    """

    num_views: int
    height: int
    width: int
    visual_tokens: int
    patch_tokens: int
    text_tokens: int
    labels: int

    @property
    def length(self) -> int:
        return self.visual_tokens + self.text_tokens


@dataclass
class Work:
    """Of one row: operations (matrix products and convolutions), and bytes that stay until the backward pass."""

    forward: dict[str, int]
    backward: dict[str, int]
    kept: int  # without activation checkpointing
    kept_checkpointed: int
    recomputed_forward: int  # operations that checkpointing repeats


def plan_row(
    config: VggtQwen3Config, settings: Namespace, size: DataSize, questions: float, tokens: float, full: bool
) -> Row:
    """
    The row of a scene of `size` with `questions` questions, of `tokens` tokens in all; `full` keeps the views that view
    dropout leaves out.
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
    if config.projector_type == "perceiver":
        image_tokens = config.projector_num_latents if views else 0
    else:
        image_tokens = views * -(-rows // 2) * -(-columns // 2)
    text = PREFIX_TEXT_TOKENS + round(tokens)
    # An answer is about three tokens with its end.
    return Row(views, height, width, image_tokens + views, views * rows * columns, text, max(1, round(3 * questions)))


class KeptBytes:
    """Sums the storages that autograd keeps for the backward pass, parameters and attention weights left out."""

    def __init__(self, model: nn.Module, length: int):
        self.parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.length, self.storages = length, {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Attention kernels compute their weights again; eager attention, which runs here, would keep them.
        is_attention = tensor.dim() > 2 and tuple(tensor.shape[-2:]) == (self.length, self.length)
        if storage._cdata not in self.parameters and not is_attention:
            self.storages[storage._cdata] = storage
        return tensor

    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def run_module(module: nn.Module, length: int, function, backward: bool = True) -> tuple[int, int, int]:
    """Operations forward and backward of `function()`, and bytes kept in between."""
    kept = KeptBytes(module, length)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if not backward:
            with torch.no_grad():
                function()
            return counter.get_total_flops(), 0, 0
        with saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            output = function()
        forward, bytes_kept = counter.get_total_flops(), kept.total()
        output.float().sum().backward()
    module.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops() - forward, bytes_kept


def measure_work(model: nn.Module, config: VggtQwen3Config, settings: Namespace, row: Row) -> Work:
    """Runs encoder, projector, language model and head on one `row`, on the meta device."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    base, head = whole.model, whole.lm_head
    forward, backward, kept = {}, {}, {}
    dtype, hidden = base.language_model.get_input_embeddings().weight.dtype, config.text_config.hidden_size
    layers = config.text_config.num_hidden_layers
    features = 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
    grid = (row.height // config.vision_config.patch_size, row.width // config.vision_config.patch_size)
    encoder_blocks = 2 * config.vision_config.num_hidden_layers + config.vision_config.backbone_num_hidden_layers
    encoder_trains = any(parameter.requires_grad for parameter in base.vision_model.parameters())
    tokens = row.patch_tokens // max(1, row.num_views) + 1 + config.vision_config.num_register_tokens

    def empty(*shape, grad=False):
        return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)

    if row.num_views and settings.feature_store is None:
        pixel_values = empty(1, row.num_views, 3, row.height, row.width)
        forward["vision_model"], backward["vision_model"], kept["vision_model"] = run_module(
            base.vision_model, tokens, lambda: base.vision_model(pixel_values).last_hidden_state, encoder_trains
        )
        if settings.geometry_source == "predicted":
            forward["vision_model"] += count_heads(base.vision_model, row, features, dtype)
    if row.num_views:
        patches = empty(1, row.num_views, grid[0] * grid[1], features, grad=encoder_trains)
        forward["projector"], backward["projector"], kept["projector"] = run_module(
            base.projector, -1, lambda: torch.cat(base.projector(patches, grid))
        )
        kept["projector"] += patches.nbytes
    embeddings = empty(1, row.length, hidden, grad=True)
    mask = {"full_attention": empty(1, 1, row.length, row.length)}
    positions = torch.arange(row.length, device="meta")[None]
    forward["language_model"], backward["language_model"], kept["language_model"] = run_module(
        base.language_model,
        row.length,
        lambda: (
            base.language_model(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
        ),
    )
    answered = empty(1, row.labels, hidden, grad=True)
    forward["lm_head"], backward["lm_head"], _ = run_module(head, -1, lambda: head(answered))
    # Logits as they are, in float32 for the loss, and their gradient.
    kept["lm_head"] = row.labels * config.text_config.vocab_size * (dtype.itemsize + 8)

    # Checkpointing keeps each layer's input, and one layer's activations while it is run again.
    checkpointed = dict(kept)
    layer = kept["language_model"] // layers
    checkpointed["language_model"] = layers * row.length * hidden * dtype.itemsize + layer
    recomputed = forward["language_model"]
    if encoder_trains and "vision_model" in kept:
        block_input = row.num_views * tokens * config.vision_config.hidden_size * dtype.itemsize
        checkpointed["vision_model"] = encoder_blocks * block_input + kept["vision_model"] // encoder_blocks
        recomputed += forward["vision_model"]
    if not encoder_trains and row.num_views:
        # A frozen encoder keeps nothing, but its widest block and the layers for the projector pass through.
        width = row.num_views * tokens * config.vision_config.hidden_size * dtype.itemsize
        kept["vision_model"] = checkpointed["vision_model"] = width * 3 * config.vision_config.mlp_ratio
    return Work(forward, backward, sum(kept.values()), sum(checkpointed.values()), recomputed)


def count_heads(vision_model: nn.Module, row: Row, features: int, dtype: torch.dtype) -> int:
    """Operations of the camera head and the depth head, which run for predicted geometry."""
    pixel_values = torch.empty(1, row.num_views, 3, row.height, row.width, dtype=dtype, device="meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as whole:
        vision_model.predict_geometry(pixel_values)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as encoder:
        vision_model(pixel_values)
    return whole.get_total_flops() - encoder.get_total_flops()


__all__ = ["Row", "Work", "measure_work", "plan_row"]
