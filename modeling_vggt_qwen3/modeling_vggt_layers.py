# SPDX-License-Identifier: Apache-2.0
"""The transformer block of VGGT's alternating attention and camera head, and its 2-D rotary embedding."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vggt_qwen3 import VggtConfig


class VggtRotaryEmbedding(nn.Module):
    """2-D rotary embedding: the first half of a head rotates by the patch's row, the second half by its column."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.half = config.hidden_size // config.num_attention_heads // 2
        self.theta = config.rope_theta

    @torch.no_grad()
    def forward(
        self, rows: int, columns: int, num_special_tokens: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[num_special_tokens + rows * columns, head_dim]`, float32, of one view's tokens."""
        # Computed here: as a buffer the frequencies would be rounded with the weights of a bfloat16 model.
        exponents = torch.arange(0, self.half, 2, dtype=torch.float32, device=device) / self.half
        inv_freq = self.theta**-exponents  # [head_dim / 4]
        row, column = torch.meshgrid(
            torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device), indexing="ij"
        )
        patches = torch.stack([row.flatten(), column.flatten()], dim=-1)  # [P, 2]
        # Camera and register tokens sit at (0, 0), which no patch has.
        positions = torch.cat([patches.new_zeros(num_special_tokens, 2), patches])  # [1 + R + P, 2]
        angles = positions[..., None].float() * inv_freq  # [1 + R + P, 2, head_dim / 4]
        angles = torch.cat([angles, angles], dim=-1).flatten(-2)  # [1 + R + P, head_dim]
        return angles.cos(), angles.sin()


def apply_rotary_embedding(hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `[batch, heads, tokens, head_dim]`, each half of the head on its own."""
    halves = hidden_states.unflatten(-1, (2, 2, -1))
    rotated = torch.stack([-halves[..., 1, :], halves[..., 0, :]], dim=-2).flatten(-3)
    return hidden_states * cos + rotated * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class VggtAttention(nn.Module):
    """
    Self-attention in each batch entry; or, with `scene_groups`, in each scene of one long entry. A group `(scenes, tokens)`
    is so many scenes, one after another, of so many tokens: they need no mask, and the layer runs once for all groups.
    """

    def __init__(self, config: VggtConfig, qk_norm: bool = True):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [batch, tokens, C]
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        scene_groups: Sequence[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        input_shape = hidden_states.shape[:-1]
        query, key, value = self.qkv(hidden_states).view(*input_shape, 3, -1, self.head_dim).unbind(dim=-3)
        query, key = self.q_norm(query).transpose(1, 2), self.k_norm(key).transpose(1, 2)
        if position_embeddings is not None:
            # The angles are float32, and so is the rotation: bfloat16 cannot tell neighbouring patches apart.
            query = apply_rotary_embedding(query, *position_embeddings)
            key = apply_rotary_embedding(key, *position_embeddings)
        query, key = query.to(value.dtype), key.to(value.dtype)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        value = value.transpose(1, 2)  # [batch, heads, tokens, head_dim]
        options = {"dropout": 0.0, "scaling": self.scaling}
        if scene_groups is None:
            output, _ = attention_interface(self, query, key, value, attention_mask, **options)
        else:
            outputs, start = [], 0
            for num_scenes, num_tokens in scene_groups:
                end = start + num_scenes * num_tokens
                states = (
                    states[0, :, start:end].unflatten(1, (num_scenes, num_tokens)).transpose(0, 1)
                    for states in (query, key, value)
                )
                group_output, _ = attention_interface(self, *states, None, **options)
                outputs.append(group_output.flatten(0, 1))  # [scenes * tokens, heads, head_dim]
                start = end
            output = torch.cat(outputs)
        return self.proj(output.reshape(*input_shape, -1))


class VggtLayerScale(nn.Module):
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.gamma


class VggtMLP(nn.Module):
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class VggtBlock(GradientCheckpointingLayer):
    """
    Pre-norm transformer block. Frame and global blocks differ only in what they are given; those of the camera head
    have no norm on queries and keys and are given no positions.
    """

    def __init__(self, config: VggtConfig, qk_norm: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VggtAttention(config, qk_norm)
        self.ls1 = VggtLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VggtMLP(config)
        self.ls2 = VggtLayerScale(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        scene_groups: Sequence[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.ls1(
            self.attn(self.norm1(hidden_states), position_embeddings, attention_mask, scene_groups)
        )
        return hidden_states + self.ls2(self.mlp(self.norm2(hidden_states)))


__all__ = ["VggtBlock", "VggtLayerScale", "VggtRotaryEmbedding", "eager_attention_forward"]
