# SPDX-License-Identifier: Apache-2.0
"""VGGT's depth head: a DPT that turns patch tokens of four alternating pairs into depth and its confidence.

Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, arXiv 2103.13413.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from .configuration_vggt_qwen3 import VggtConfig


POSITION_SCALE = 0.1
POSITION_THETA = 100.0
OUTPUT_HIDDEN_SIZE = 32
# Views decoded at a time: one at 518 × 518 pixels takes about half a gigabyte while it is decoded.
VIEWS_PER_CHUNK = 4


def position_embedding(channels: int, height: int, width: int, aspect_ratio: float, device) -> torch.Tensor:
    """
    Sine-cosine embedding `[channels, height, width]`, float32, of the position in the image: the first half of the
    channels tells x, the second y. The image's diagonal has length 2, whatever its `aspect_ratio` (width / height).
    """
    diagonal = (aspect_ratio**2 + 1) ** 0.5
    x = axis_embedding(channels, width, aspect_ratio / diagonal, device)
    y = axis_embedding(channels, height, 1 / diagonal, device)
    return torch.cat([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)])


@lru_cache(maxsize=64)
def axis_embedding(channels: int, size: int, span: float, device) -> torch.Tensor:
    """
    `[channels / 2, size]`, float32, of one axis. Kept: it is computed in float64, which some accelerators lack, and a copy to
    the device makes the host wait.
    """
    end = span * (size - 1) / size
    frequencies = POSITION_THETA ** -(np.arange(channels // 4) / (channels // 4))
    angles = np.linspace(-end, end, size)[None] * frequencies[:, None]
    embedding = np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
    with torch.inference_mode(False):  # what is kept serves training, too
        return torch.from_numpy(embedding).to(device)


class VggtResidualUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The released weights were trained with an in-place activation: the skip carries the activated input.
        hidden_states = hidden_states.relu()
        return self.conv2(self.conv1(hidden_states).relu()) + hidden_states


class VggtFusionBlock(nn.Module):
    """Adds a level of the pyramid to what the coarser ones gave, and enlarges the sum to the next level's size."""

    def __init__(self, channels: int, has_skip: bool = True):
        super().__init__()
        if has_skip:
            self.residual_unit1 = VggtResidualUnit(channels)
        self.residual_unit2 = VggtResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        if skip is not None:
            hidden_states = hidden_states + self.residual_unit1(skip)
        return self.out_conv(enlarge(self.residual_unit2(hidden_states), size))


def enlarge(hidden_states: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(hidden_states, size=size, mode="bilinear", align_corners=True)


class VggtDepthHead(nn.Module):
    """Reassembles the tokens into a pyramid of four levels and fuses it from the coarsest up."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.config = config
        sizes, fusion_size = config.depth_head_neck_hidden_sizes, config.depth_head_fusion_hidden_size
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.projections = nn.ModuleList([nn.Conv2d(2 * config.hidden_size, size, 1) for size in sizes])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(sizes[0], sizes[0], 4, stride=4),
                nn.ConvTranspose2d(sizes[1], sizes[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(sizes[3], sizes[3], 3, stride=2, padding=1),
            ]
        )
        self.neck_convs = nn.ModuleList([nn.Conv2d(size, fusion_size, 3, padding=1, bias=False) for size in sizes])
        self.fusion_blocks = nn.ModuleList([VggtFusionBlock(fusion_size, has_skip=level < 3) for level in range(4)])
        self.output_conv1 = nn.Conv2d(fusion_size, fusion_size // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(fusion_size // 2, OUTPUT_HIDDEN_SIZE, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(OUTPUT_HIDDEN_SIZE, 2, 1),
        )

    def forward(
        self, hidden_states: Sequence[torch.Tensor], image_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (four `torch.Tensor` of shape `[B, V, 1 + R + P, 2C]`): Outputs of the pairs
                `depth_head_layers`.
            image_size (`(int, int)`): Height and width of the views in pixels.

        Returns:
            Depth and its confidence (at least 1), `[B, V, H, W]` each.
        """
        batch_size, num_views = hidden_states[0].shape[:2]
        first_patch = 1 + self.config.num_register_tokens
        dtype = self.norm.weight.dtype
        layers = [layer.flatten(0, 1) for layer in hidden_states]
        chunks = []
        for start in range(0, batch_size * num_views, VIEWS_PER_CHUNK):
            views = slice(start, start + VIEWS_PER_CHUNK)
            # Cast by the chunk, so that no layer is held in float32 as a whole.
            chunks.append(self.decode([layer[views, first_patch:].to(dtype) for layer in layers], image_size))
        depth, confidence = torch.cat(chunks).unflatten(0, (batch_size, num_views)).unbind(dim=2)
        return depth, confidence

    def decode(self, layers: list[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
        """Depth and confidence `[n, 2, H, W]` of n views, from four tensors of patch tokens `[n, P, 2C]`."""
        height, width = image_size
        grid = height // self.config.patch_size, width // self.config.patch_size
        pyramid = []
        for level, tokens in enumerate(layers):
            features = self.norm(tokens).transpose(1, 2).unflatten(-1, grid)  # [n, 2C, rows, columns]
            features = self.add_position(self.projections[level](features), image_size)
            pyramid.append(self.neck_convs[level](self.resize_layers[level](features)))
        hidden_states = pyramid[3]
        for level in (3, 2, 1, 0):
            rows, columns = hidden_states.shape[-2:]
            size = pyramid[level - 1].shape[-2:] if level else (2 * rows, 2 * columns)
            hidden_states = self.fusion_blocks[level](hidden_states, pyramid[level] if level < 3 else None, size)
        hidden_states = self.add_position(enlarge(self.output_conv1(hidden_states), image_size), image_size)
        depth, confidence = self.output_conv2(hidden_states).unbind(dim=1)
        return torch.stack([depth.exp(), 1 + confidence.exp()], dim=1)

    def add_position(self, hidden_states: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        channels, rows, columns = hidden_states.shape[1:]
        embedding = position_embedding(channels, rows, columns, image_size[1] / image_size[0], hidden_states.device)
        return hidden_states + (POSITION_SCALE * embedding).to(hidden_states.dtype)


__all__ = ["VggtDepthHead"]
