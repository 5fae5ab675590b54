# SPDX-License-Identifier: Apache-2.0
"""The attention mask of packed scenes: one prefix, and questions that do not see each other."""

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from .configuration_vggt_qwen3 import PACKING_ATTENTION


def create_packed_mask(
    text_config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor,
):
    """
    The mask of packed scenes: a token sees, causally, the prefix (segment 0) and its own segment.

    Args:
        text_config (`PreTrainedConfig`): Of the language model.
        inputs_embeds (`torch.Tensor` of shape `[B, L, hidden_size]`): What it reads.
        attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): 1 for tokens, 0 for padding.
        segment_ids (`torch.Tensor` of shape `[B, L]`): 0 for the prefix, n for the n-th question and its answer.

    Returns:
        What `text_config._attn_implementation` takes for a mask.

    Raises:
        ValueError: if the language model has layers that are not full attention (their window counts tokens, which are not
            adjacent in a packed sequence), or its attention implementation cannot express the mask.
    """
    if text_config._attn_implementation not in PACKING_ATTENTION:
        raise ValueError(
            f"attn_implementation {text_config._attn_implementation!r} of the language model cannot express the mask "
            f"of packed scenes (segment_ids): their questions would see each other's answers. Use one of "
            f"{', '.join(PACKING_ATTENTION)}; the encoder may have another."
        )
    if set(getattr(text_config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError("Packed scenes need a language model with full attention in all layers.")

    def same_scene_or_segment(batch_idx, head_idx, q_idx, kv_idx):
        key_segment = segment_ids[batch_idx, kv_idx]
        return (key_segment == 0) | (key_segment == segment_ids[batch_idx, q_idx])

    return create_causal_mask(
        config=text_config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=None,
        and_mask_function=same_scene_or_segment,
    )


__all__ = ["create_packed_mask"]
