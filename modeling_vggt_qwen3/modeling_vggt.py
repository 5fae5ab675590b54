# SPDX-License-Identifier: Apache-2.0
"""VGGT's aggregator: DINOv2 patch tokens of several views, mixed by alternating frame and global attention.

Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025, arXiv 2503.11651.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_vggt_qwen3 import VggtConfig


class VggtRotaryEmbedding(nn.Module):
    """2-D rotary embedding: the first half of a head rotates by the patch's row, the second half by its column."""

    inv_freq: torch.Tensor

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", self.compute_inv_freq(config), persistent=False)

    @staticmethod
    def compute_inv_freq(config: VggtConfig) -> torch.Tensor:
        half = config.hidden_size // config.num_attention_heads // 2
        return config.rope_theta ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)  # [head_dim / 4]

    @torch.no_grad()
    def forward(self, rows: int, columns: int, num_special_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[num_special_tokens + rows * columns, head_dim]`, float32, of one view's tokens."""
        device = self.inv_freq.device
        row, column = torch.meshgrid(
            torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device), indexing="ij"
        )
        patches = torch.stack([row.flatten(), column.flatten()], dim=-1)  # [P, 2]
        # Camera and register tokens sit at (0, 0), which no patch has.
        positions = torch.cat([patches.new_zeros(num_special_tokens, 2), patches])  # [1 + R + P, 2]
        angles = positions[..., None].float() * self.inv_freq.float()  # [1 + R + P, 2, head_dim / 4]
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
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [batch, tokens, C]
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        input_shape = hidden_states.shape[:-1]
        query, key, value = self.qkv(hidden_states).view(*input_shape, 3, -1, self.head_dim).unbind(dim=-3)
        cos, sin = position_embeddings
        query = apply_rotary_embedding(self.q_norm(query).transpose(1, 2), cos, sin).to(value.dtype)
        key = apply_rotary_embedding(self.k_norm(key).transpose(1, 2), cos, sin).to(value.dtype)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention_interface(
            self, query, key, value.transpose(1, 2), attention_mask, dropout=0.0, scaling=self.scaling
        )
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
    """Pre-norm transformer block; frame and global blocks differ only in what they are given."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VggtAttention(config)
        self.ls1 = VggtLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VggtMLP(config)
        self.ls2 = VggtLayerScale(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.ls1(
            self.attn(self.norm1(hidden_states), position_embeddings, attention_mask)
        )
        return hidden_states + self.ls2(self.mlp(self.norm2(hidden_states)))


class VggtPreTrainedModel(PreTrainedModel):
    config: VggtConfig
    base_model_prefix = "vggt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VggtBlock", "Dinov2WithRegistersLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VggtLayerScale):
            init.constant_(module.gamma, self.config.layer_scale_init_value)
        elif isinstance(module, VggtRotaryEmbedding):
            # Loading happens on the meta device, where a non-persistent buffer loses its values.
            init.copy_(module.inv_freq, module.compute_inv_freq(module.config))
        elif isinstance(module, VggtModel):
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_token, std=1e-6)
            init.copy_(module.image_mean, torch.tensor(self.config.image_mean).view(3, 1, 1))
            init.copy_(module.image_std, torch.tensor(self.config.image_std).view(3, 1, 1))


class VggtModel(VggtPreTrainedModel):
    """
    The VGGT aggregator: a DINOv2 backbone per view, then alternating frame and global attention over all views.

    View 0 is the reference frame: it has camera and register tokens of its own, all others share theirs.
    """

    def __init__(self, config: VggtConfig):
        super().__init__(config)
        self.backbone = Dinov2WithRegistersModel._from_config(
            Dinov2WithRegistersConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.hidden_size,
                num_attention_heads=config.num_attention_heads,
                num_hidden_layers=config.backbone_num_hidden_layers,
                mlp_ratio=config.mlp_ratio,
                num_register_tokens=config.num_register_tokens,
                layer_norm_eps=config.backbone_layer_norm_eps,
                layerscale_value=config.backbone_layer_scale_init_value,
                initializer_range=config.initializer_range,
            ),
            attn_implementation=config._attn_implementation,
        )
        # Only masked-image pre-training reads the mask token; frozen, it does not count as trained here.
        self.backbone.embeddings.mask_token.requires_grad_(False)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.hidden_size))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, config.hidden_size))
        self.rotary_emb = VggtRotaryEmbedding(config)
        self.frame_blocks = nn.ModuleList([VggtBlock(config) for _ in range(config.num_hidden_layers)])
        self.global_blocks = nn.ModuleList([VggtBlock(config) for _ in range(config.num_hidden_layers)])
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)
        self.post_init()

    @property
    def num_special_tokens(self) -> int:
        """Camera and register tokens before a view's patch tokens."""
        return 1 + self.config.num_register_tokens

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        hidden_state_layers: Sequence[int] | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `[B, V, 3, H, W]`): RGB in [0, 1], H and W multiples of the patch
                size. Normalisation happens inside.
            view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): True for real views, False for padding in
                batches whose scenes have different numbers of views. View 0 must be real.
            output_hidden_states (`bool`): Return the output of every alternating pair.
            hidden_state_layers (`Sequence[int]`, *optional*): Return the outputs of these pairs only, in this order;
                no other is kept in memory.

        Returns:
            `BaseModelOutput` with `last_hidden_state [B, V, 1 + R + P, 2C]` (frame output, then global output, on
            the channel axis) and, on request, `hidden_states`, a tuple of tensors of that shape.

        Raises:
            ValueError: if `pixel_values` is not five-dimensional, has no views, or H or W is not a multiple of the
                patch size.
        """
        patch_size = self.config.patch_size
        if pixel_values.dim() != 5 or pixel_values.shape[1] == 0:
            raise ValueError(
                f"pixel_values must have shape [batch, views >= 1, 3, height, width], got {tuple(pixel_values.shape)}."
            )
        batch_size, num_views, _, height, width = pixel_values.shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"Image size {height}×{width} must be a multiple of the patch size {patch_size}.")
        num_layers = self.config.num_hidden_layers
        if output_hidden_states:
            hidden_state_layers = range(num_layers)
        wanted = [layer % num_layers for layer in hidden_state_layers or ()]

        pixel_values = (pixel_values - self.image_mean) / self.image_std
        patches = self.backbone(pixel_values.flatten(0, 1)).last_hidden_state
        patches = patches[:, 1 + self.config.num_register_tokens :]  # [B * V, P, C]
        special = torch.cat([self.camera_token, self.register_token], dim=2)  # [1, 2, 1 + R, C]
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, num_views - 1, -1, -1)], dim=1)
        special = special.expand(batch_size, -1, -1, -1).flatten(0, 1).to(patches.dtype)  # [B * V, 1 + R, C]
        hidden_states = torch.cat([special, patches], dim=1)  # [B * V, N, C]
        num_tokens, channels = hidden_states.shape[1:]

        cos, sin = self.rotary_emb(height // patch_size, width // patch_size, self.num_special_tokens)
        cos, sin = cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)
        frame_positions = (cos, sin)
        global_positions = (cos.repeat(num_views, 1), sin.repeat(num_views, 1))
        global_mask = None
        if view_mask is not None:
            global_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states.view(batch_size, num_views * num_tokens, channels),
                attention_mask=view_mask.bool().repeat_interleave(num_tokens, dim=1),
            )

        kept = {}
        pairs = zip(self.frame_blocks, self.global_blocks, strict=True)
        for layer, (frame_block, global_block) in enumerate(pairs):
            frame_output = frame_block(hidden_states, frame_positions)
            global_output = global_block(
                frame_output.view(batch_size, num_views * num_tokens, channels), global_positions, global_mask
            )
            hidden_states = global_output.view(batch_size * num_views, num_tokens, channels)
            if layer in wanted or layer == num_layers - 1:
                output = torch.cat([frame_output, hidden_states], dim=-1)
                output = output.view(batch_size, num_views, num_tokens, 2 * channels)
                if layer in wanted:
                    kept[layer] = output
        return BaseModelOutput(
            last_hidden_state=output, hidden_states=tuple(kept[layer] for layer in wanted) if wanted else None
        )


# Upstream's names on the left. The aggregator's blocks keep upstream's names, its backbone takes DINOv2's of transformers.
_UPSTREAM_BACKBONE_NAMES = [
    (r"^register_tokens$", "embeddings.register_tokens"),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.ls([12])\.gamma$", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
]


def convert_vggt_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Maps the released VGGT's parameter names to those of [`VggtModel`]; the backbone's fused `qkv` is split in three.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Tensors under upstream names (`aggregator.*`; other heads are not
            part of the aggregator and are left to the caller).

    Returns:
        `dict[str, torch.Tensor]`: the aggregator's tensors under this project's names.

    Raises:
        ValueError: if a key does not begin with `aggregator.`, naming up to five such keys.
    """
    foreign = [key for key in state_dict if not key.startswith("aggregator.")]
    if foreign:
        raise ValueError(f"{len(foreign)} keys are not part of VGGT's aggregator: {', '.join(sorted(foreign)[:5])}.")
    converted = {}
    for key, tensor in state_dict.items():
        name = key.removeprefix("aggregator.")
        if not name.startswith("patch_embed."):
            converted[name] = tensor
            continue
        name = name.removeprefix("patch_embed.")
        if fused := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            for part, chunk in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                converted[f"backbone.encoder.layer.{fused[1]}.attention.{part}.{fused[2]}"] = chunk
            continue
        for pattern, replacement in _UPSTREAM_BACKBONE_NAMES:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        converted[f"backbone.{name}"] = tensor
    return converted


__all__ = ["VggtModel", "VggtPreTrainedModel", "convert_vggt_state_dict"]
