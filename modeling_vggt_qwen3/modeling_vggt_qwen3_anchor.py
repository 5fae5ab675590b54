# SPDX-License-Identifier: Apache-2.0
"""Anchor head of VGGT-Qwen3: from the hidden state of an `<|anchor|>` token to a box in the frame of view 0."""

import torch
from torch import nn

from .configuration_vggt_qwen3 import VggtQwen3Config
from .geometry_vggt_qwen3 import Cameras, invert_extrinsics


# Distances below this are as good as on the camera's plane, where a projection means nothing. Metres.
MINIMUM_DEPTH = 0.1
# Where the smooth L1 losses turn from quadratic to linear: metres, and widths of the picture.
SMOOTH_L1_BETA = 0.1
# Where patches are before training. Metres.
INITIAL_DEPTH = 2.5


class VggtQwen3AnchorLayer(nn.Module):
    """An anchor's query reads the patch tokens of its scene."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        size = config.anchor_hidden_size
        self.attention_norm = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, config.anchor_num_attention_heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, queries: torch.Tensor, context: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        attended, _ = self.attention(
            self.attention_norm(queries), context, context, key_padding_mask=hidden, need_weights=False
        )
        queries = queries + attended
        return queries + self.mlp(self.mlp_norm(queries))


class VggtQwen3AnchorHead(nn.Module):
    """
    Points rather than guesses: an anchor attends over the patch tokens of all views, each of which stands for the point
    that its camera's ray reaches at a predicted depth. Centre and normal are the attention's mean of points and of
    normals (predicted in each view's camera, turned into view 0's frame), plus a regressed correction. Scenes without
    cameras, and text without images, have the regression alone.

    Its numbers are metres in the frame of view 0 (OpenCV axes): centre, extent (width, height, depth) and unit normal.
    """

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        self.config = config
        size, text_size = config.anchor_hidden_size, config.text_config.hidden_size
        in_features = 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
        # What the language model reads in place of `<|anchor|>`: a new token needs no new row of its embeddings.
        self.token_embedding = nn.Parameter(torch.zeros(text_size))
        self.query_norm = nn.LayerNorm(text_size)
        self.query_proj = nn.Linear(text_size, size)
        self.feature_norm = nn.LayerNorm(in_features)
        self.feature_proj = nn.Linear(in_features, size)
        # Ray and camera centre in view 0's frame, depth histogram of the view.
        self.camera_proj = nn.Linear(3 + 3 + config.geometry_num_depth_bins, size)
        self.no_camera_embedding = nn.Parameter(torch.zeros(size))
        self.layers = nn.ModuleList([VggtQwen3AnchorLayer(config) for _ in range(config.anchor_num_hidden_layers)])
        self.output_norm = nn.LayerNorm(size)
        self.context_norm = nn.LayerNorm(size)
        self.pointer_query = nn.Linear(size, size)
        self.pointer_key = nn.Linear(size, size)
        # Of each patch: log depth (over INITIAL_DEPTH) and a normal in its camera.
        self.patch_mlp = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 4))
        # Of each anchor: corrections of centre and normal, log extent.
        self.box_mlp = nn.Sequential(nn.Linear(2 * size, size), nn.GELU(), nn.Linear(size, 9))

    def forward(
        self,
        hidden_states: torch.Tensor,  # [A, hidden_size] of the `<|anchor|>` tokens
        scenes: torch.Tensor,  # [A] index of each one's scene in image_features, -1 for a text without images
        image_features=None,  # VggtQwen3ImageFeatures; None if no text has images
        numbers: torch.Tensor | None = None,  # [A] which of its scene's anchors each one is
        anchors_per_scene: int | None = None,  # the largest of `numbers`, plus 1
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Boxes `[A, 9]`, float32: centre, extent, normal. And where each anchor points: the logarithm of its attention over
        its scene's patches, `[A, V * P]` (of an anchor without a scene it means nothing); None without `image_features`.
        Without `numbers` they are counted, for which the host waits for the device.
        """
        queries = self.query_proj(self.query_norm(hidden_states))
        points = torch.zeros(len(queries), 6, device=queries.device)
        pointed, log_attention = torch.zeros_like(queries), None
        if image_features is not None and len(queries):
            if numbers is None:
                numbers, anchors_per_scene = number_anchors(scenes)
            # Anchors of one scene side by side: its tokens are not repeated for each of them. Those without a scene get a
            # place that is not read.
            context, hidden, places = self._context(image_features)
            seen, num_places = scenes >= 0, len(context) * anchors_per_scene
            place = scenes * anchors_per_scene + numbers
            padded = queries.new_zeros(num_places + 1, queries.shape[-1])
            padded = padded.index_copy(0, torch.where(seen, place, num_places), queries)
            padded = padded[:num_places].unflatten(0, (-1, anchors_per_scene))  # [S, anchors_per_scene, size]
            for layer in self.layers:
                padded = layer(padded, context, hidden)
            keys = self.pointer_key(self.context_norm(context))
            scores = self.pointer_query(self.output_norm(padded)) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
            if hidden is not None:
                scores = scores.masked_fill(hidden[:, None], torch.finfo(scores.dtype).min)
            log_weights = scores.float().log_softmax(dim=-1)  # [S, anchors_per_scene, V * P]
            weights = log_weights.exp()
            with torch.autocast(weights.device.type, enabled=False):
                places = weights @ places
            attended = weights.to(context.dtype) @ context
            place = torch.where(seen, place, 0)
            log_attention, attended, places, padded = (
                states.flatten(0, 1).index_select(0, place) for states in (log_weights, attended, places, padded)
            )
            queries, pointed, points = (
                torch.where(seen[:, None], states, unseen)
                for states, unseen in ((padded, queries), (attended, pointed), (places, points))
            )
        box = self.box_mlp(torch.cat([self.output_norm(queries), pointed], dim=-1)).float()
        center, log_extent, normal = box.split(3, dim=-1)
        normal = nn.functional.normalize(points[:, 3:] + normal, dim=-1)
        return torch.cat([points[:, :3] + center, log_extent.exp(), normal], dim=-1), log_attention

    def _context(self, image_features) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Of the scenes' patches: tokens `[S, V * P, size]`, which of them are padding, and their point and normal in view
        0's frame `[S, V * P, 6]` (zeros without a camera).
        """
        cameras = image_features.cameras
        features = image_features.last_hidden_state  # [S, V, P, F]
        tokens = self.feature_proj(self.feature_norm(features))
        with torch.autocast(features.device.type, enabled=False):
            origins, rays, rotations = patch_rays(cameras, self.config.vision_config.patch_size)
            has_camera = cameras.mask[:, :, None, None]
            num_patches = features.shape[2]
            histogram = cameras.depth_histogram.float()[:, :, None].expand(-1, -1, num_patches, -1)
            described = torch.cat([rays, origins.expand_as(rays), histogram], dim=-1)
        described = self.camera_proj(described.to(tokens.dtype))
        tokens = tokens + torch.where(has_camera, described, self.no_camera_embedding.to(tokens.dtype))
        log_depth, normals = self.patch_mlp(tokens).float().split([1, 3], dim=-1)
        with torch.autocast(features.device.type, enabled=False):
            places = torch.cat([origins + rays * (INITIAL_DEPTH * log_depth.exp()), normals @ rotations], dim=-1)
            places = torch.where(has_camera, places, 0.0).flatten(1, 2)
        hidden = None
        if cameras.view_mask is not None:
            hidden = ~cameras.view_mask.bool().repeat_interleave(num_patches, dim=1)
        return tokens.flatten(1, 2), hidden, places


def number_anchors(scenes: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    Which of its scene's anchors each one is, of the scenes `[A]` of anchors (-1 for none), and the largest such number
    plus 1. The host waits for the device.
    """
    same = scenes[:, None] == scenes
    numbers = same.tril(diagonal=-1).sum(dim=1)
    return numbers, int(numbers.max()) + 1 if len(numbers) else 0


def find_anchors(input_ids: torch.Tensor, anchor_token_id: int, image_token_id: int) -> tuple[torch.Tensor, int]:
    """
    The `anchor_positions` and `anchors_per_scene` of `input_ids [B, L]`, as
    [`~modeling_vggt_qwen3.VggtQwen3ForConditionalGeneration.forward`] takes them. The host waits for the device, if that is
    where the tokens are.
    """
    indices = (input_ids == anchor_token_id).flatten().nonzero()[:, 0]
    with_images = (input_ids == image_token_id).any(dim=1)
    scenes = torch.where(with_images, with_images.cumsum(0) - 1, -1)[indices // input_ids.shape[1]]
    numbers, anchors_per_scene = number_anchors(scenes)
    return torch.stack([indices, scenes, numbers], dim=1), anchors_per_scene


def patch_rays(cameras: Cameras, patch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Where the centre of each patch looks, in view 0's frame.

    Args:
        cameras (`Cameras`): Of S scenes of V views.
        patch_size (`int`): Side of a patch in pixels.

    Returns:
        Camera centres `[S, V, 1, 3]` (metres), rays `[S, V, P, 3]` that advance 1 m along the optical axis, and the
        rotations `[S, V, 3, 3]` from view 0's frame into each camera. Of views without a camera they mean nothing, but
        are finite.
    """
    height, width = cameras.image_size
    extrinsics, intrinsics = cameras.relative()
    row, column = torch.meshgrid(
        torch.arange(height // patch_size, device=extrinsics.device, dtype=torch.float32),
        torch.arange(width // patch_size, device=extrinsics.device, dtype=torch.float32),
        indexing="ij",
    )
    # A patch of 14 pixels spans 0 to 13: its centre is at 6.5.
    column, row = (patch_size * index.flatten() + (patch_size - 1) / 2 for index in (column, row))
    focal_x, focal_y, center_x, center_y = (intrinsics[..., i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    rays = torch.stack(
        [(column - center_x) / focal_x, (row - center_y) / focal_y, torch.ones_like(column + focal_x)], dim=-1
    )
    to_view_0 = invert_extrinsics(extrinsics)
    rotations = extrinsics[..., :3]
    return to_view_0[..., None, :, 3], rays @ rotations, rotations


def anchor_losses(
    boxes: torch.Tensor,
    targets: torch.Tensor,
    scenes: torch.Tensor,
    log_attention: torch.Tensor,
    cameras: Cameras,
    patch_size: int,
    num_anchors: torch.Tensor | int | None = None,
) -> dict[str, torch.Tensor]:
    """
    The losses of predicted boxes against true ones.

    `action_json` is the smooth L1 distance of the nine numbers. The other two need cameras, and are zero without. Both
    count only the views that see the true centre. `geometry_consistency` is the smooth L1 distance of the predicted
    centre's projections from the true one's, in widths and heights of the picture. `pointing` is the cross entropy of the
    attention against the patches whose rays pass the true centre: a normal distribution of their distance from it,
    a quarter of the box's mean size wide.

    Args:
        boxes, targets (`torch.Tensor` of shape `[A, 9]`): Centre, extent and normal in view 0's frame, metres. Targets that
            are not finite are none: their boxes count nowhere.
        scenes (`torch.Tensor` of shape `[A]`): Scene of each box, -1 for none.
        log_attention (`torch.Tensor` of shape `[A, V * P]`): Where each points, as the head returns it.
        cameras (`Cameras`): Of the scenes.
        patch_size (`int`): Side of a patch in pixels.
        num_anchors (*optional*): Boxes to average over: those of all processes and accumulated batches; by default those
            that have targets.
    """
    # Nothing here depends on values that the host would have to wait for: what does not count is multiplied by zero.
    given = targets.isfinite().all(dim=-1)  # [A]
    boxes, targets = (torch.where(given[:, None], numbers, 0.0) for numbers in (boxes, targets))
    count = given.sum() if num_anchors is None else num_anchors
    count = count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)
    action = nn.functional.smooth_l1_loss(boxes, targets, reduction="sum", beta=SMOOTH_L1_BETA)
    scene_of_box = scenes.clamp(min=0)
    extrinsics, intrinsics = (tensor[scene_of_box] for tensor in cameras.relative())
    height, width = cameras.image_size

    def project(centers):
        points = (extrinsics[..., :3] @ centers[:, None, :, None])[..., 0] + extrinsics[..., 3]  # [A, V, 3]
        pixels = points[..., :2] / points[..., 2:].clamp(min=MINIMUM_DEPTH)
        focal_lengths = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
        column, row = (pixels * focal_lengths + intrinsics[..., :2, 2]).unbind(dim=-1)
        # In pictures. Sizes as a tensor would be a copy to the device, for which the host waits.
        return torch.stack([column / width, row / height], dim=-1), points[..., 2]

    true_place, true_depth = project(targets[:, :3])
    column, row = true_place.unbind(dim=-1)
    inside = (column > -0.5 / width) & (column < 1 - 0.5 / width) & (row > -0.5 / height) & (row < 1 - 0.5 / height)
    sees = inside & (true_depth > MINIMUM_DEPTH) & cameras.mask[scene_of_box]  # [A, V]
    sees = sees & (given & (scenes >= 0))[:, None]
    place, _ = project(boxes[:, :3])
    distance = nn.functional.smooth_l1_loss(place, true_place, reduction="none", beta=SMOOTH_L1_BETA)
    of_anchor = (distance.mean(dim=-1) * sees).sum(dim=1) / sees.sum(dim=1).clamp(min=1)

    origins, rays, _ = (tensor[scene_of_box] for tensor in patch_rays(cameras, patch_size))
    to_center = targets[:, None, None, :3] - origins  # [A, V, 1, 3]
    distance = torch.linalg.cross(nn.functional.normalize(rays, dim=-1), to_center.expand_as(rays)).norm(dim=-1)
    radius = targets[:, None, None, 3:6].mean(dim=-1).clamp(min=MINIMUM_DEPTH) / 4
    near = -0.5 * (distance / radius).square().masked_fill(~sees[..., None], torch.inf).flatten(1)  # [A, V * P]
    seen = sees.any(dim=1, keepdim=True)
    near = torch.where(seen, near, 0.0).softmax(dim=-1)
    # Attention to padded views is exactly zero, and so is what they count.
    log_attention = torch.where(seen, log_attention, 0.0).clamp(min=torch.finfo(torch.float32).min)
    pointing = -(near * log_attention).sum()
    return {
        "action_json": action / 9 / count,
        "geometry_consistency": of_anchor.sum() / count,
        "pointing": pointing / count,
    }


__all__ = ["VggtQwen3AnchorHead", "anchor_losses", "find_anchors", "patch_rays"]
