# SPDX-License-Identifier: Apache-2.0
"""Camera maths. Frames and units everywhere: OpenCV camera axes (x right, y down, z forward), metres, pixels.

Extrinsics are world-to-camera, `x_camera = R @ x_world + t`, stored as `[R | t]` of shape `[..., 3, 4]`.
Intrinsics are `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]` in pixels of the image they belong to.
"""

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


__all__ = ["invert_extrinsics", "relative_extrinsics", "normalized_intrinsics"]
