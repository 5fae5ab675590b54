# SPDX-License-Identifier: Apache-2.0
"""VGGT's camera head: refines the pose and the field of view of every view of a scene, from their camera tokens."""

import copy

import torch
from torch import nn

from .configuration_vggt_qwen3 import VggtConfig
from .modeling_vggt_layers import VggtBlock


NUM_ITERATIONS = 4
POSE_ENCODING_SIZE = 9  # translation, quaternion (x, y, z, w), vertical and horizontal field of view


class VggtPoseBranch(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.fc1 = nn.Linear(size, size // 2)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(size // 2, POSE_ENCODING_SIZE)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class VggtCameraHead(nn.Module):
    """
    Four times, the camera tokens are modulated by the pose found so far, attend to those of the other views, and
    correct that pose (Wang et al., arXiv 2503.11651, section 3.3).
    """

    def __init__(self, config: VggtConfig):
        super().__init__()
        size = 2 * config.hidden_size
        trunk_config = copy.copy(config)
        trunk_config.hidden_size = size
        # Flash kernels know no float32, and a view is one token here.
        trunk_config._attn_implementation = "sdpa"
        self.trunk_config = trunk_config
        self.token_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_ENCODING_SIZE))
        self.embed_pose = nn.Linear(POSE_ENCODING_SIZE, size)
        self.modulation_act = nn.SiLU()
        self.pose_modulation = nn.Linear(size, 3 * size)
        self.modulated_norm = nn.LayerNorm(size, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(
            [VggtBlock(trunk_config, qk_norm=False) for _ in range(config.camera_head_num_layers)]
        )
        self.trunk_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.pose_branch = VggtPoseBranch(size)

    def forward(self, camera_tokens: torch.Tensor, view_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """
        Args:
            camera_tokens (`torch.Tensor` of shape `[B, V, 2C]`): Camera tokens of the last alternating pair.
            view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): True for real views.

        Returns:
            The pose encodings after each iteration, `[B, V, 9]` each, the last being the best.
        """
        camera_tokens = self.token_norm(camera_tokens)
        attention_mask = None
        if view_mask is not None:
            # That of sdpa. transformers would look at it on the host, which would wait for the device.
            attention_mask = view_mask.bool()[:, None, None]  # [B, 1, 1, V]
        encodings, pose = [], None
        for _ in range(NUM_ITERATIONS):
            previous = self.empty_pose_tokens.expand(*camera_tokens.shape[:2], -1) if pose is None else pose.detach()
            modulation = self.pose_modulation(self.modulation_act(self.embed_pose(previous)))
            shift, scale, gate = modulation.chunk(3, dim=-1)
            hidden_states = gate * (self.modulated_norm(camera_tokens) * (1 + scale) + shift) + camera_tokens
            for block in self.trunk:
                hidden_states = block(hidden_states, None, attention_mask)
            correction = self.pose_branch(self.trunk_norm(hidden_states))
            pose = correction if pose is None else pose + correction
            # Of the running sum only what leaves the head is activated: a field of view is not negative.
            encodings.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1))
        return tuple(encodings)


__all__ = ["VggtCameraHead"]
