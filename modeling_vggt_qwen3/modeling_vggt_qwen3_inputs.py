# SPDX-License-Identifier: Apache-2.0
"""What VGGT-Qwen3's models read beside text: listed here once, with shapes. S scenes of up to V views, B rows of L tokens."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers.utils.generic import TransformersKwargs


class VggtQwen3SceneInputs(TransformersKwargs, total=False):
    """
    Scenes, as [`~VggtQwen3Model.get_image_features`] encodes them.

    Args:
        pixel_values (`[S, V, 3, H, W]`): RGB in [0, 1] of the S scenes in the order of their placeholders.
        view_mask (`[S, V]`): True for real views, False for padding; None if all are real.
        extrinsics (`[S, V, 3, 4]`): World-to-camera, OpenCV axes, metres.
        intrinsics (`[S, V, 3, 3]`): Pixels of `pixel_values`.
        depth_histogram (`[S, V, bins]`): Share of a view's valid depth pixels per bin of 8 m / bins.
        geometry_mask (`[S, V]`): False where a view has no geometry and gets the learned null token. Without
            `extrinsics` all views do. None of these four is read unless `config.geometry_source` is `dataset`.
        vision_features (`[S, V, rows, columns, 2C * layers]`): The frozen encoder's patch tokens, as a feature store
            holds them, instead of `pixel_values`.
        camera_encodings (`[S, V, 12 + 9 + bins]`): With `vision_features` and `config.geometry_source` `predicted`, the
            extrinsics, intrinsics and depth histograms that the encoder's heads predicted.
        view_counts (`list[int]`): The number of real views of each scene, beside `view_mask`. Looked up there if it is not
            given, for which the host waits for the device.
    """

    pixel_values: torch.Tensor | None
    view_mask: torch.Tensor | None
    extrinsics: torch.Tensor | None
    intrinsics: torch.Tensor | None
    depth_histogram: torch.Tensor | None
    geometry_mask: torch.Tensor | None
    vision_features: torch.Tensor | None
    camera_encodings: torch.Tensor | None
    view_counts: Sequence[int] | None


class VggtQwen3Inputs(VggtQwen3SceneInputs, total=False):
    """
    What the models take beside scenes and what transformers' own do; see [`VggtQwen3SceneInputs`] for those.

    Args:
        segment_ids (`[B, L]`): Of packed scenes: 0 for the prefix that all questions of a scene share, n for its n-th
            question and answer. A segment sees the prefix and itself.
        mm_encoder_outputs (`dict`): `{"image": features}` of [`~VggtQwen3Model.get_image_features`] instead of
            `pixel_values`.
        image_indices, geometry_indices (`[number of placeholders]`): Where the placeholders stand, row by row, in the
            flattened `input_ids`. Looked up there if they are not given, for which the host waits for the device.
        use_cache (`bool`): Whether keys and values are kept; not while training, unless it is given.
    """

    segment_ids: torch.LongTensor | None
    mm_encoder_outputs: dict | None
    image_indices: torch.Tensor | None
    geometry_indices: torch.Tensor | None
    use_cache: bool | None


OF_TRANSFORMERS = TransformersKwargs.__optional_keys__
OF_SCENES = VggtQwen3SceneInputs.__optional_keys__ - OF_TRANSFORMERS


def takes(inputs: type) -> Callable[[Callable], Callable]:
    """
    Says in a method's signature what its `**` stands for: the names of `inputs`, a TypedDict. `generate` and Trainer look
    there for what a model takes. The method calls `check_names` itself.
    """

    def with_names(method: Callable) -> Callable:
        signature = inspect.signature(method)
        *named, rest = signature.parameters.values()
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in inputs.__annotations__.items()
            if name not in signature.parameters and name not in OF_TRANSFORMERS
        ]
        method.__signature__ = signature.replace(parameters=[*named, *more, rest])
        return method

    return with_names


def check_names(given: Mapping, inputs: type):
    """Raises TypeError for a keyword that `inputs` does not have: passed on, a mistyped name would be left out silently."""
    unknown = [name for name in given if name not in inputs.__optional_keys__]
    if unknown:
        known = ", ".join(sorted(inputs.__optional_keys__ - OF_TRANSFORMERS))
        raise TypeError(
            f"VGGT-Qwen3 has no input {', '.join(map(repr, unknown))}. Beside those of any model it has {known}."
        )


__all__ = ["OF_SCENES", "VggtQwen3Inputs", "VggtQwen3SceneInputs", "check_names", "takes"]
