# SPDX-License-Identifier: Apache-2.0
"""What VGGT-Qwen3's models return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput

from .geometry_vggt_qwen3 import Cameras


@dataclass
class VggtQwen3ImageFeatures(BaseModelOutputWithPooling):
    """
    What the language model reads of each scene.

    Args:
        last_hidden_state (`torch.Tensor` of shape `[S, V, P, 2C * layers]`): The encoder's patch tokens.
        pooler_output (`list[torch.Tensor]`): Per scene, image tokens `[T, hidden_size]` in the language model's space.
        geometry_embeddings (`list[torch.Tensor]`): Per scene, one token per real view, `[V, hidden_size]`.
        cameras (`Cameras`): Those that the geometry tokens are made of.
    """

    geometry_embeddings: list[torch.Tensor] | None = None
    cameras: Cameras | None = None


@dataclass
class VggtQwen3ModelOutputWithPast(BaseModelOutputWithPast):
    image_features: VggtQwen3ImageFeatures | None = None


@dataclass
class VggtQwen3CausalLMOutputWithPast(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None
    image_features: VggtQwen3ImageFeatures | None = None
    losses: dict[str, torch.Tensor] | None = None
    anchors: torch.Tensor | None = None


__all__ = ["VggtQwen3CausalLMOutputWithPast", "VggtQwen3ImageFeatures", "VggtQwen3ModelOutputWithPast"]
