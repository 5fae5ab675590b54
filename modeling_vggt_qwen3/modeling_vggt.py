# SPDX-License-Identifier: Apache-2.0
"""VGGT: DINOv2 patch tokens of several views, mixed by alternating frame and global attention; cameras and depth.

Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025, arXiv 2503.11651.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_vggt_qwen3 import VggtConfig
from .geometry_vggt_qwen3 import pose_encoding_to_camera, unproject_depth
from .modeling_vggt_camera_head import VggtCameraHead
from .modeling_vggt_depth_head import VggtDepthHead
from .modeling_vggt_layers import VggtBlock, VggtLayerScale, VggtRotaryEmbedding


@dataclass
class VggtGeometry(ModelOutput):
    """
    Cameras and depth of the views of scenes, in the frame and the unit of VGGT: the camera of view 0 is at the origin
    (up to the prediction's error), OpenCV axes, and the scene's size is about 1.

    Args:
        pose_encoding (`[B, V, 9]`): Translation, quaternion (x, y, z, w), vertical and horizontal field of view
            (radians), after the last iteration.
        extrinsics (`[B, V, 3, 4]`): World-to-camera.
        intrinsics (`[B, V, 3, 3]`): Pixels of `pixel_values`.
        depth (`[B, V, H, W]`): Distance along the optical axis.
        depth_confidence (`[B, V, H, W]`): At least 1; the larger, the surer.
        world_points (`[B, V, H, W, 3]`): The depth, unprojected.
        pose_encodings (tuple of `[B, V, 9]`): After each iteration of the camera head.
    """

    pose_encoding: torch.Tensor | None = None
    extrinsics: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    depth: torch.Tensor | None = None
    depth_confidence: torch.Tensor | None = None
    world_points: torch.Tensor | None = None
    pose_encodings: tuple[torch.Tensor, ...] | None = None


class SceneLayout:
    """
    Which views of a padded batch are real, in Python numbers: the views of scenes of one number of views are brought
    side by side, without padding, and back by slicing alone, so that the host need not wait for the device.

    Args:
        num_scenes, num_views (`int`): B and V of the padded batch.
        view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): As in [`VggtModel.forward`]; read if there are no counts.
        view_counts (`Sequence[int]`, *optional*): Real views of each scene; all V without either.

    Raises:
        ValueError: as [`VggtModel.forward`].
    """

    def __init__(
        self,
        num_scenes: int,
        num_views: int,
        view_mask: torch.Tensor | None = None,
        view_counts: Sequence[int] | None = None,
    ):
        if view_counts is None:
            view_counts = [num_views] * num_scenes if view_mask is None else count_views(view_mask)
        if len(view_counts) != num_scenes or not all(1 <= count <= num_views for count in view_counts):
            raise ValueError(
                f"view_counts {list(view_counts)} must be one number of 1 to {num_views} views for each of {num_scenes} "
                "scenes."
            )
        self.num_views, self.counts = num_views, list(view_counts)
        # Scenes by number of views, in their order otherwise.
        self.order = sorted(range(num_scenes), key=lambda scene: self.counts[scene])
        by_count = Counter(self.counts)
        self.groups = [(by_count[count], count) for count in sorted(by_count)]  # (scenes, views of each)

    @property
    def is_padded(self) -> bool:
        return self.groups != [(len(self.counts), self.num_views)]

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """`[B, V, ...]` becomes `[N, ...]`: the real views, by group."""
        if not self.is_padded:
            return states.flatten(0, 1)
        return torch.cat([states[scene, : self.counts[scene]] for scene in self.order])

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """The opposite of `pack`, with zeros for padding."""
        if not self.is_padded:
            return states.unflatten(0, (-1, self.num_views))
        scenes = dict(zip(self.order, states.split([self.counts[scene] for scene in self.order]), strict=True))
        padded = []
        for scene, count in enumerate(self.counts):
            padded += [scenes[scene], states.new_zeros(self.num_views - count, *states.shape[1:])]
        return torch.cat(padded).unflatten(0, (-1, self.num_views))


def count_views(view_mask: torch.Tensor) -> list[int]:
    """
    The number of real views of each scene of `view_mask [B, V]`; the host waits for the device.

    Raises:
        ValueError: if a scene's real views do not come first.
    """
    mask = view_mask.long()
    counts, leading = torch.stack([mask.sum(dim=1), mask.cumprod(dim=1).sum(dim=1)]).tolist()
    if counts != leading:
        raise ValueError(f"A scene's real views must come first in view_mask, got {view_mask.tolist()}.")
    return counts


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
    # Half precision costs centimetres and degrees.
    _keep_in_fp32_modules_strict = ["camera_head", "depth_head"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VggtLayerScale):
            init.constant_(module.gamma, self.config.layer_scale_init_value)
        elif isinstance(module, VggtCameraHead):
            init.zeros_(module.empty_pose_tokens)
        elif isinstance(module, VggtModel):
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_token, std=1e-6)
            # Loading happens on the meta device, where non-persistent buffers lose their values.
            init.copy_(module.image_mean, torch.tensor(self.config.image_mean).view(3, 1, 1))
            init.copy_(module.image_std, torch.tensor(self.config.image_std).view(3, 1, 1))


class VggtModel(VggtPreTrainedModel):
    """
    The VGGT aggregator: a DINOv2 backbone per view, then alternating frame and global attention over all views; and
    the heads that [`~VggtModel.predict_geometry`] runs, if `config` has them.

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
        self.camera_head = VggtCameraHead(config) if config.camera_head_num_layers else None
        self.depth_head = VggtDepthHead(config) if config.depth_head_layers else None
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
        view_counts: Sequence[int] | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        r"""
        Views that are padding are not encoded. Layers run once for the views of all scenes; only the attention between
        views runs once per number of views, for the scenes that have so many, without a mask.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, V, 3, H, W]`): RGB in [0, 1], H and W multiples of the patch
                size. Normalisation happens inside.
            view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): True for real views, False for padding in
                batches whose scenes have different numbers of views. A scene's real views come first, at least one.
            output_hidden_states (`bool`): Return the output of every alternating pair.
            hidden_state_layers (`Sequence[int]`, *optional*): Return the outputs of these pairs only, in this order;
                no other is kept in memory.
            view_counts (`Sequence[int]`, *optional*): The number of real views of each scene. With it `view_mask` is not
                read; without it the host waits for the device to learn it from the mask.

        Returns:
            `BaseModelOutput` with `last_hidden_state [B, V, 1 + R + P, 2C]` (frame output, then global output, on
            the channel axis; zeros for padding) and, on request, `hidden_states`, a tuple of tensors of that shape.

        Raises:
            ValueError: if `pixel_values` is not five-dimensional, has no views, or H or W is not a multiple of the
                patch size; if `view_counts` is not one number of at most V views per scene, or no such number tells
                which views `view_mask` means.
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

        layout = SceneLayout(batch_size, num_views, view_mask, view_counts)
        pixel_values = layout.pack(pixel_values)  # [N, 3, H, W], N real views
        pixel_values = (pixel_values - self.image_mean) / self.image_std
        patches = self.backbone(pixel_values).last_hidden_state
        patches = patches[:, 1 + self.config.num_register_tokens :]  # [N, P, C]
        special = torch.cat([self.camera_token, self.register_token], dim=2)  # [1, 2, 1 + R, C]
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, num_views - 1, -1, -1)], dim=1)
        special = layout.pack(special.expand(batch_size, -1, -1, -1)).to(patches.dtype)  # [N, 1 + R, C]
        hidden_states = torch.cat([special, patches], dim=1)  # [N, T, C]
        num_tokens, channels = hidden_states.shape[1:]

        grid = height // patch_size, width // patch_size
        cos, sin = self.rotary_emb(*grid, self.num_special_tokens, hidden_states.device)
        frame_positions = (cos, sin)
        # Scenes of one number of views are a batch; of several, one long entry whose attention is told where they are.
        if len(layout.groups) == 1:
            scenes, scene_groups = layout.groups[0][0], None
        else:
            scenes, scene_groups = 1, [(count, views * num_tokens) for count, views in layout.groups]
        views_together = len(hidden_states) // scenes
        global_positions = (cos.repeat(views_together, 1), sin.repeat(views_together, 1))

        kept = {}
        pairs = zip(self.frame_blocks, self.global_blocks, strict=True)
        for layer, (frame_block, global_block) in enumerate(pairs):
            frame_output = frame_block(hidden_states, frame_positions)
            global_output = global_block(
                frame_output.view(scenes, views_together * num_tokens, channels), global_positions, None, scene_groups
            )
            hidden_states = global_output.view(-1, num_tokens, channels)
            if layer in wanted or layer == num_layers - 1:
                output = layout.unpack(torch.cat([frame_output, hidden_states], dim=-1))  # [B, V, T, 2C]
                if layer in wanted:
                    kept[layer] = output
        return BaseModelOutput(
            last_hidden_state=output, hidden_states=tuple(kept[layer] for layer in wanted) if wanted else None
        )

    def predict_geometry(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        view_counts: Sequence[int] | None = None,
    ) -> VggtGeometry:
        r"""
        Encodes scenes and runs the heads. Only the layers that the heads read are kept.

        Args:
            pixel_values (`torch.Tensor` of shape `[B, V, 3, H, W]`): As in [`~VggtModel.forward`].
            view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): True for real views; what is returned for
                padding means nothing.
            view_counts (`Sequence[int]`, *optional*): As in [`~VggtModel.forward`].

        Returns:
            [`VggtGeometry`], float32. Without a camera head only depth and confidence, without a depth head only the
            cameras.

        Raises:
            ValueError: if the model has neither head, or as [`~VggtModel.forward`].
        """
        self._check_heads()
        if view_mask is not None and view_counts is None:
            view_counts = count_views(view_mask)
        outputs = self(
            pixel_values,
            hidden_state_layers=self.config.depth_head_layers,
            view_counts=view_counts,
            return_dict=True,
        )
        return self.decode_geometry(
            outputs.last_hidden_state, outputs.hidden_states, tuple(pixel_values.shape[-2:]), view_mask, view_counts
        )

    def decode_geometry(
        self,
        last_hidden_state: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] | None,
        image_size: tuple[int, int],
        view_mask: torch.Tensor | None = None,
        view_counts: Sequence[int] | None = None,
    ) -> VggtGeometry:
        r"""
        Runs the heads on what [`~VggtModel.forward`] returned; see [`~VggtModel.predict_geometry`].

        Args:
            last_hidden_state (`torch.Tensor` of shape `[B, V, 1 + R + P, 2C]`): Output of the last pair.
            hidden_states (sequence of such tensors, or None without a depth head): Outputs of the pairs
                `config.depth_head_layers`.
            image_size (`(int, int)`): Height and width of the views in pixels.
            view_mask (`torch.Tensor` of shape `[B, V]`, *optional*): True for real views.
            view_counts (`Sequence[int]`, *optional*): The number of each scene's real views, beside `view_mask`.
        """
        self._check_heads()
        geometry = VggtGeometry()
        layout = SceneLayout(*last_hidden_state.shape[:2], view_mask, view_counts)
        with torch.autocast(last_hidden_state.device.type, enabled=False):
            if self.camera_head is not None:
                camera_tokens = last_hidden_state[:, :, 0].to(self.camera_head.token_norm.weight.dtype)
                encodings = tuple(encoding.float() for encoding in self.camera_head(camera_tokens, view_mask))
                geometry.pose_encodings, geometry.pose_encoding = encodings, encodings[-1]
                geometry.extrinsics, geometry.intrinsics = pose_encoding_to_camera(encodings[-1], *image_size)
            if self.depth_head is not None:
                views = [layout.pack(layer)[None] for layer in hidden_states]  # [1, N, 1 + R + P, 2C]
                depth, confidence = (layout.unpack(maps[0]).float() for maps in self.depth_head(views, image_size))
                geometry.depth, geometry.depth_confidence = depth, confidence
            if self.camera_head is not None and self.depth_head is not None:
                geometry.world_points = unproject_depth(geometry.depth, geometry.extrinsics, geometry.intrinsics)
        return geometry

    def _check_heads(self):
        if self.camera_head is None and self.depth_head is None:
            raise ValueError(
                "This model has neither a camera head nor a depth head (camera_head_num_layers is 0, depth_head_layers "
                "is empty): it cannot predict geometry."
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
_UPSTREAM_HEAD_NAMES = [
    (r"^camera_head\.poseLN_modulation\.1\.", "camera_head.pose_modulation."),
    (r"^depth_head\.projects\.", "depth_head.projections."),
    (r"^depth_head\.scratch\.output_conv", "depth_head.output_conv"),
    (r"^depth_head\.scratch\.layer([1-4])_rn\.", lambda match: f"depth_head.neck_convs.{int(match[1]) - 1}."),
    (r"^depth_head\.scratch\.refinenet([1-4])\.", lambda match: f"depth_head.fusion_blocks.{int(match[1]) - 1}."),
    (r"\.resConfUnit([12])\.", r".residual_unit\1."),
]


def convert_vggt_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Maps the released VGGT's parameter names to those of [`VggtModel`]; the backbone's fused `qkv` is split in three.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Tensors under upstream names: all of them, or any part.

    Returns:
        `dict[str, torch.Tensor]`: the same tensors under this project's names.

    Raises:
        ValueError: if a key belongs to none of `aggregator`, `camera_head` and `depth_head` (the point and the track
            head have no counterpart here), naming up to five such keys.
    """
    foreign = [key for key in state_dict if not key.startswith(("aggregator.", "camera_head.", "depth_head."))]
    if foreign:
        raise ValueError(
            f"{len(foreign)} keys are not part of VGGT's aggregator, camera head or depth head: "
            f"{', '.join(sorted(foreign)[:5])}."
        )
    converted = {}
    for key, tensor in state_dict.items():
        if not key.startswith("aggregator."):
            name = key
            for pattern, replacement in _UPSTREAM_HEAD_NAMES:
                name = re.sub(pattern, replacement, name)
            converted[name] = tensor
            continue
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


__all__ = ["VggtGeometry", "VggtModel", "VggtPreTrainedModel", "convert_vggt_state_dict", "count_views"]
