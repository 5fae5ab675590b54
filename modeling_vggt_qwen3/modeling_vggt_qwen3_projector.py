# SPDX-License-Identifier: Apache-2.0
"""What stands between VGGT and the language model: the projectors of its patch tokens, and the encoder of the cameras."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vggt_qwen3 import VggtQwen3Config
from .geometry_vggt_qwen3 import normalized_intrinsics, relative_extrinsics
from .modeling_vggt_layers import eager_attention_forward


def projector_attention(config: VggtQwen3Config) -> str:
    """
    eager or sdpa: padded views need a mask, which flash kernels do not know, and flex_attention's is made by waiting for the
    device; a few latents are little work for any.
    """
    return "eager" if config._attn_implementation == "eager" else "sdpa"


class VggtQwen3PerceiverAttention(nn.Module):
    """Latents attend to `key_value_states`: the visual tokens (cross-attention) or themselves (self-attention)."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        self.config = config
        self.head_dim = config.projector_hidden_size // config.projector_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.k_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.v_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.o_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, hidden_states),
                (self.k_proj, key_value_states),
                (self.v_proj, key_value_states),
            )
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            projector_attention(self.config), eager_attention_forward
        )
        output, _ = attention_interface(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(output.flatten(-2))


class VggtQwen3PerceiverLayer(GradientCheckpointingLayer):
    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        size = config.projector_hidden_size
        self.cross_attention_norm = nn.LayerNorm(size)
        self.context_norm = nn.LayerNorm(size)
        self.cross_attention = VggtQwen3PerceiverAttention(config)
        self.self_attention_norm = nn.LayerNorm(size)
        self.self_attention = VggtQwen3PerceiverAttention(config)
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.projector_mlp_ratio * size),
            nn.GELU(),
            nn.Linear(config.projector_mlp_ratio * size, size),
        )

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        latents = latents + self.cross_attention(
            self.cross_attention_norm(latents), self.context_norm(context), attention_mask
        )
        normed = self.self_attention_norm(latents)
        latents = latents + self.self_attention(normed, normed)
        return latents + self.mlp(self.mlp_norm(latents))


class VggtQwen3PerceiverProjector(nn.Module):
    """Learned latents that read every patch token of every view of a scene."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        self.config = config
        size = config.projector_hidden_size
        in_features = 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
        self.input_norm = nn.LayerNorm(in_features)
        self.input_proj = nn.Linear(in_features, size)
        self.latents = nn.Parameter(torch.zeros(config.projector_num_latents, size))
        self.layers = nn.ModuleList(
            [VggtQwen3PerceiverLayer(config) for _ in range(config.projector_num_hidden_layers)]
        )
        self.output_norm = nn.LayerNorm(size)
        self.output_proj = nn.Linear(size, config.text_config.hidden_size)

    def forward(
        self,
        features: torch.Tensor,  # [S, V, P, 2C * layers]
        grid: tuple[int, int],
        view_mask: torch.Tensor | None = None,  # [S, V]
        view_counts: Sequence[int] | None = None,  # real views of each scene; read by the other projector
    ) -> list[torch.Tensor]:
        context = self.input_proj(self.input_norm(features)).flatten(1, 2)  # [S, V * P, D]
        latents = self.latents.expand(context.shape[0], -1, -1)
        attention_mask = None
        if view_mask is not None:
            # Not by transformers' functions, which look at the mask on the host: it would wait for the device.
            attention_mask = view_mask.bool().repeat_interleave(features.shape[2], dim=1)[:, None, None]
            if projector_attention(self.config) == "eager":
                attention_mask = torch.zeros_like(attention_mask, dtype=context.dtype).masked_fill(
                    ~attention_mask, torch.finfo(context.dtype).min
                )
        for layer in self.layers:
            latents = layer(latents, context, attention_mask)
        return list(self.output_proj(self.output_norm(latents)))  # S × [num_latents, hidden_size]


class VggtQwen3MLPProjector(nn.Module):
    """Each 2×2 square of a view's patch tokens becomes one token; an odd last row or column is repeated."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        in_features = 4 * 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
        self.input_norm = nn.LayerNorm(in_features)
        self.input_proj = nn.Linear(in_features, config.projector_hidden_size)
        self.act = nn.GELU()
        self.output_proj = nn.Linear(config.projector_hidden_size, config.text_config.hidden_size)

    def forward(
        self,
        features: torch.Tensor,
        grid: tuple[int, int],
        view_mask: torch.Tensor | None = None,  # read by the other projector
        view_counts: Sequence[int] | None = None,  # real views of each scene, which come first
    ) -> list[torch.Tensor]:
        rows, columns = grid
        features = features.unflatten(2, grid)  # [S, V, rows, columns, F]
        if rows % 2:
            features = torch.cat([features, features[:, :, -1:]], dim=2)
        if columns % 2:
            features = torch.cat([features, features[:, :, :, -1:]], dim=3)
        features = features.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # [S, V, rows/2, 2, columns/2, 2, F]
        features = features.transpose(3, 4).flatten(4).flatten(2, 3)  # [S, V, T, 4F]
        tokens = self.output_proj(self.act(self.input_proj(self.input_norm(features))))  # [S, V, T, hidden_size]
        if view_counts is None:
            return list(tokens.flatten(1, 2))
        return [scene[:count].flatten(0, 1) for scene, count in zip(tokens, view_counts, strict=True)]


PROJECTORS = {"perceiver": VggtQwen3PerceiverProjector, "mlp": VggtQwen3MLPProjector}


class VggtQwen3GeometryEncoder(nn.Module):
    """One token per view from its pose relative to view 0, its intrinsics and its depth histogram."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        in_features = 12 + 4 + config.geometry_num_depth_bins
        self.input_proj = nn.Linear(in_features, config.geometry_hidden_size)
        self.act = nn.GELU()
        self.output_proj = nn.Linear(config.geometry_hidden_size, config.text_config.hidden_size)
        self.null_embedding = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    def forward(
        self,
        extrinsics: torch.Tensor,  # [S, V, 3, 4] world-to-camera, metres
        intrinsics: torch.Tensor,  # [S, V, 3, 3] pixels of the encoded image
        depth_histogram: torch.Tensor,  # [S, V, bins]
        geometry_mask: torch.Tensor,  # [S, V] False where a view has no geometry
        image_size: tuple[int, int],
    ) -> torch.Tensor:
        """Geometry tokens `[S, V, hidden_size]`; the learned null token where `geometry_mask` is False."""
        # Poses in float32: a camera 5 m away is only known to 2 cm in bfloat16.
        with torch.autocast(extrinsics.device.type, enabled=False):
            poses = relative_extrinsics(extrinsics.float()).flatten(-2)  # [S, V, 12]
            features = torch.cat(
                [poses, normalized_intrinsics(intrinsics.float(), *image_size), depth_histogram.float()], dim=-1
            )
        embeddings = self.output_proj(self.act(self.input_proj(features.to(self.input_proj.weight.dtype))))
        return torch.where(geometry_mask.bool()[..., None], embeddings, self.null_embedding.to(embeddings.dtype))


__all__ = ["PROJECTORS", "VggtQwen3GeometryEncoder", "VggtQwen3PerceiverProjector"]
