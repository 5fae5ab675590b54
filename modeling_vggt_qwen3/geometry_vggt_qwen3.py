# SPDX-License-Identifier: Apache-2.0
"""Camera maths. Frames and units everywhere: OpenCV camera axes (x right, y down, z forward), metres, pixels.

Extrinsics are world-to-camera, `x_camera = R @ x_world + t`, stored as `[R | t]` of shape `[..., 3, 4]`.
Intrinsics are `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]` in pixels of the image they belong to. The pixel in column i and
row j has the image coordinates (i, j).
"""

from dataclasses import dataclass

import torch


def invert_extrinsics(extrinsics: torch.Tensor) -> torch.Tensor:
    """Inverse of rigid transforms `[..., 3, 4]`: world-to-camera becomes camera-to-world and the reverse."""
    rotation, translation = extrinsics[..., :3], extrinsics[..., 3:]
    inverse_rotation = rotation.transpose(-1, -2)
    return torch.cat([inverse_rotation, -inverse_rotation @ translation], dim=-1)


def relative_extrinsics(extrinsics: torch.Tensor) -> torch.Tensor:
    """
    Poses of the views relative to view 0.

    Args:
        extrinsics (`torch.Tensor` of shape `[..., V, 3, 4]`): World-to-camera of each view, metres.

    Returns:
        `torch.Tensor` of shape `[..., V, 3, 4]`: from view 0's camera frame to each view's camera frame; the
        identity for view 0. It does not depend on the world frame.
    """
    from_view_0 = invert_extrinsics(extrinsics[..., :1, :, :])
    rotation = extrinsics[..., :3] @ from_view_0[..., :3]
    translation = extrinsics[..., :3] @ from_view_0[..., 3:] + extrinsics[..., 3:]
    return torch.cat([rotation, translation], dim=-1)


@dataclass
class Cameras:
    """
    The cameras of S scenes of up to V views.

    Args:
        extrinsics (`torch.Tensor` of shape `[S, V, 3, 4]`): World-to-camera, metres.
        intrinsics (`torch.Tensor` of shape `[S, V, 3, 3]`): Pixels of the encoded picture.
        depth_histogram (`torch.Tensor` of shape `[S, V, bins]`): As the geometry encoder reads it.
        mask (`torch.Tensor` of shape `[S, V]`): False where a view has no camera; its matrices are not read.
        view_mask (`torch.Tensor` of shape `[S, V]`, *optional*): False for padding.
        image_size (`tuple[int, int]`): Height and width of the encoded pictures.
    """

    extrinsics: torch.Tensor
    intrinsics: torch.Tensor
    depth_histogram: torch.Tensor
    mask: torch.Tensor
    view_mask: torch.Tensor | None
    image_size: tuple[int, int]

    @staticmethod
    def packed_size(num_bins: int) -> int:
        """Numbers of a packed view: extrinsics, intrinsics, depth histogram."""
        return 12 + 9 + num_bins

    def pack(self) -> torch.Tensor:
        """The cameras as one array `[S, V, 12 + 9 + bins]`, float32, as a feature store holds them."""
        parts = (self.extrinsics.flatten(-2), self.intrinsics.flatten(-2), self.depth_histogram)
        return torch.cat([part.float() for part in parts], dim=-1)

    @classmethod
    def unpack(cls, packed: torch.Tensor, view_mask: torch.Tensor | None, image_size: tuple[int, int]) -> "Cameras":
        """What `pack` made of predicted cameras. Where the prediction is no camera all is zero; the mask comes of that."""
        num_bins = packed.shape[-1] - cls.packed_size(0)
        extrinsics, intrinsics, depth_histogram = packed.split([12, 9, num_bins], dim=-1)
        extrinsics, intrinsics = extrinsics.unflatten(-1, (3, 4)), intrinsics.unflatten(-1, (3, 3))
        return cls(extrinsics, intrinsics, depth_histogram, intrinsics[..., 2, 2] > 0, view_mask, image_size)

    def relative(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Extrinsics `[S, V, 3, 4]` from view 0's frame and intrinsics `[S, V, 3, 3]`, float32. Views without a camera get
        the identity, with which any computation is finite.
        """
        identity = torch.eye(3, 4, device=self.extrinsics.device)
        has_camera = self.mask[..., None, None]
        extrinsics = torch.where(has_camera, self.extrinsics.float(), identity)
        return relative_extrinsics(extrinsics), torch.where(has_camera, self.intrinsics.float(), identity[:, :3])


def normalized_intrinsics(intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[fx / W, fy / H, cx / W, cy / H]` of shape `[..., 4]` from intrinsics `[..., 3, 3]` in pixels."""
    return torch.stack(
        [
            intrinsics[..., 0, 0] / width,
            intrinsics[..., 1, 1] / height,
            intrinsics[..., 0, 2] / width,
            intrinsics[..., 1, 2] / height,
        ],
        dim=-1,
    )


def quaternion_to_rotation(quaternion: torch.Tensor) -> torch.Tensor:
    """Rotation matrices `[..., 3, 3]` of quaternions `[..., 4]` (x, y, z, w) of any length but zero."""
    x, y, z, w = quaternion.unbind(dim=-1)
    scale = 2 / quaternion.square().sum(dim=-1)
    matrix = [
        1 - scale * (y * y + z * z),
        scale * (x * y - z * w),
        scale * (x * z + y * w),
        scale * (x * y + z * w),
        1 - scale * (x * x + z * z),
        scale * (y * z - x * w),
        scale * (x * z - y * w),
        scale * (y * z + x * w),
        1 - scale * (x * x + y * y),
    ]
    return torch.stack(matrix, dim=-1).unflatten(-1, (3, 3))


def pose_encoding_to_camera(pose_encoding: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cameras from VGGT's pose encoding (Wang et al., arXiv 2503.11651).

    Args:
        pose_encoding (`torch.Tensor` of shape `[..., 9]`): Translation, quaternion (x, y, z, w; not normalised),
            vertical and horizontal field of view in radians.
        height, width (`int`): Size of the image in pixels.

    Returns:
        Extrinsics `[..., 3, 4]` (world-to-camera) and intrinsics `[..., 3, 3]`, the principal point at the centre of
        the image. A field of view of zero has an infinite focal length.
    """
    translation, quaternion, field_of_view = pose_encoding.split([3, 4, 2], dim=-1)
    extrinsics = torch.cat([quaternion_to_rotation(quaternion), translation[..., None]], dim=-1)
    tangent_y, tangent_x = torch.tan(field_of_view / 2).unbind(dim=-1)
    focal_y, focal_x = height / 2 / tangent_y, width / 2 / tangent_x
    zero, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    matrix = [focal_x, zero, one * width / 2, zero, focal_y, one * height / 2, zero, zero, one]
    return extrinsics, torch.stack(matrix, dim=-1).unflatten(-1, (3, 3))


def unproject_depth(depth: torch.Tensor, extrinsics: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """
    The point of the world that each pixel sees.

    Args:
        depth (`torch.Tensor` of shape `[..., H, W]`): Distance along the optical axis.
        extrinsics (`torch.Tensor` of shape `[..., 3, 4]`): World-to-camera, in the unit of `depth`.
        intrinsics (`torch.Tensor` of shape `[..., 3, 3]`): Pixels of the depth map.

    Returns:
        `torch.Tensor` of shape `[..., H, W, 3]`: world coordinates.
    """
    height, width = depth.shape[-2:]
    row, column = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype),
        torch.arange(width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    camera = intrinsics[..., None, None, :, :]  # [..., 1, 1, 3, 3]
    x = (column - camera[..., 0, 2]) / camera[..., 0, 0] * depth
    y = (row - camera[..., 1, 2]) / camera[..., 1, 1] * depth
    points = torch.stack([x, y, depth], dim=-1).flatten(-3, -2)  # [..., H * W, 3]
    to_world = invert_extrinsics(extrinsics)
    points = points @ to_world[..., :3].transpose(-1, -2) + to_world[..., 3].unsqueeze(-2)
    return points.unflatten(-2, (height, width))


def project_points(
    points: torch.Tensor, extrinsics: torch.Tensor, intrinsics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where points of the world are seen.

    Args:
        points (`torch.Tensor` of shape `[..., N, 3]`): World coordinates.
        extrinsics (`torch.Tensor` of shape `[..., 3, 4]`): World-to-camera.
        intrinsics (`torch.Tensor` of shape `[..., 3, 3]`): Pixels.

    Returns:
        Image coordinates (column, row) `[..., N, 2]` and distances along the optical axis `[..., N]`. The coordinates
        of a point that is not in front of the camera (distance at most 0) mean nothing.
    """
    points = points @ extrinsics[..., :3].transpose(-1, -2) + extrinsics[..., 3].unsqueeze(-2)
    depth = points[..., 2]
    pixels = points @ intrinsics.transpose(-1, -2)
    return pixels[..., :2] / depth[..., None], depth


def depth_histograms(depth: torch.Tensor, num_bins: int, max_depth: float = 8.0) -> torch.Tensor:
    """
    Share `[..., num_bins]` of the pixels of depth maps `[..., H, W]` in equal bins over 0 to `max_depth`. What is further
    away counts in the last bin.
    """
    depth = depth.flatten(-2)
    bins = (depth.nan_to_num() * (num_bins / max_depth)).clamp(0, num_bins - 1).long()
    counts = depth.new_zeros(*depth.shape[:-1], num_bins).scatter_add(-1, bins, torch.ones_like(depth))
    return counts / depth.shape[-1]


def prediction_to_geometry_inputs(
    extrinsics: torch.Tensor,
    intrinsics: torch.Tensor,
    depth: torch.Tensor | None,
    view_mask: torch.Tensor | None,
    num_bins: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Predicted cameras and depth as what the geometry encoder reads. Photos alone do not determine a scene's scale:
    lengths become multiples of the mean depth of the scene's views.

    Args:
        extrinsics (`torch.Tensor` of shape `[S, V, 3, 4]`): World-to-camera, in VGGT's unit.
        intrinsics (`torch.Tensor` of shape `[S, V, 3, 3]`): Pixels.
        depth (`torch.Tensor` of shape `[S, V, H, W]`, *optional*): In VGGT's unit. Without it lengths stay in that unit
            (of which a scene's points are, in training, 1 away from view 0 in the mean) and the histograms are zero.
        view_mask (`torch.Tensor` of shape `[S, V]`, *optional*): True for real views.
        num_bins (`int`): Bins of the depth histograms, over 0 to 8 times the mean depth.

    Returns:
        Extrinsics, intrinsics, depth histograms `[S, V, num_bins]` and a mask `[S, V]`, False for padding and for views
        whose prediction is no camera (a number that is not finite, no positive focal length) or whose scene has none
        for view 0. Nothing of what is returned for these is used; it is zero.
    """
    usable = torch.ones_like(extrinsics[..., 0, 0], dtype=torch.bool) if view_mask is None else view_mask.bool()
    histogram = extrinsics.new_zeros(*usable.shape, num_bins)
    if depth is not None:
        share = usable / usable.sum(dim=1, keepdim=True)  # [S, V]
        mean_depth = (share * torch.where(usable, depth.mean(dim=(-2, -1)), 0)).sum(dim=1)[:, None, None, None]
        extrinsics = torch.cat([extrinsics[..., :3], extrinsics[..., 3:] / mean_depth], dim=-1)
        histogram = depth_histograms(depth / mean_depth, num_bins)
    focal_lengths = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
    usable = usable & extrinsics.isfinite().all(dim=(-2, -1)) & intrinsics.isfinite().all(dim=(-2, -1))
    usable = usable & (focal_lengths > 0).all(dim=-1)
    usable = usable & usable[:, :1]
    # Zero rather than masked alone: the gradient of a masked infinity is not a number.
    matrices = [torch.where(usable[..., None, None], matrix, 0) for matrix in (extrinsics, intrinsics)]
    return *matrices, torch.where(usable[..., None], histogram, 0), usable


__all__ = [
    "Cameras",
    "depth_histograms",
    "invert_extrinsics",
    "normalized_intrinsics",
    "pose_encoding_to_camera",
    "prediction_to_geometry_inputs",
    "project_points",
    "quaternion_to_rotation",
    "relative_extrinsics",
    "unproject_depth",
]
