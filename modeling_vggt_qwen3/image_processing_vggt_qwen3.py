# SPDX-License-Identifier: Apache-2.0
"""Image processor of VGGT-Qwen3: VGGT's official preprocessing, on PIL (no torchvision needed)."""

import os
from typing import Literal

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs

from .pictures_vggt_qwen3 import FORMATS, to_rgb


class VggtQwen3ImageProcessorKwargs(ImagesKwargs, total=False):
    """
    image_size (`int`): Width of the output in pixels; a multiple of `patch_size`.
    patch_size (`int`): The encoder's patch size in pixels.
    mode (`"crop"` or `"pad"`): `crop` scales the width to `image_size` and the height along, rounded to a multiple
        of `patch_size`, and cuts a height above `image_size` around its centre. `pad` scales the longest side to
        `image_size` and pads to a square with white, so that images of all shapes fit in one batch.
    """

    image_size: int
    patch_size: int
    mode: Literal["crop", "pad"]


class VggtQwen3ImageProcessorPil(PilBackend):
    """RGB views in [0, 1], upright; normalisation happens inside the encoder. See [`to_rgb`] for what becomes of other images."""

    valid_kwargs = VggtQwen3ImageProcessorKwargs
    model_input_names = ["pixel_values"]
    image_size = 518
    patch_size = 14
    mode = "crop"

    def get_resize(self, height: int, width: int, **kwargs) -> tuple[int, int, int, int, int, int]:
        """
        How an image of `height` × `width` pixels is brought to the encoder's size.

        Returns:
            `(resized height, resized width, top, left, output height, output width)`: the image is resized, then
            shifted by `(top, left)` pixels (negative: cropped, positive: padded) into the output.
        """
        image_size = kwargs.get("image_size") or self.image_size
        patch_size = kwargs.get("patch_size") or self.patch_size
        mode = kwargs.get("mode") or self.mode
        if image_size % patch_size:
            raise ValueError(f"image_size ({image_size}) must be a multiple of patch_size ({patch_size}).")
        if mode not in ("crop", "pad"):
            raise ValueError(f"mode must be 'crop' or 'pad', got {mode!r}.")

        def round_to_patches(size: float) -> int:
            return max(patch_size, round(size / patch_size) * patch_size)

        if mode == "crop":
            resized = round_to_patches(height * image_size / width)
            output = min(resized, image_size)
            return resized, image_size, -((resized - output) // 2), 0, output, image_size
        if width >= height:
            new_height, new_width = min(round_to_patches(height * image_size / width), image_size), image_size
        else:
            new_height, new_width = image_size, min(round_to_patches(width * image_size / height), image_size)
        return new_height, new_width, (image_size - new_height) // 2, (image_size - new_width) // 2, *[image_size] * 2

    def fetch_images(self, image_url_or_urls):
        """As in the base class; but files are only opened here, for `process_image` to see their transparency and depth."""
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            return Image.open(image_url_or_urls, formats=FORMATS)
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: ImageInput, **kwargs) -> Image.Image:
        """One PIL image of any mode, or an array or tensor of uint8 or [0, 1] values in either channel order, as RGB."""
        if not isinstance(image, Image.Image):
            array = super().process_image(image, do_convert_rgb=False)  # channels first
            if np.issubdtype(array.dtype, np.floating):
                array = (array * 255).round().clip(0, 255)
            elif array.dtype != np.uint8 and not 0 <= array.min() <= array.max() <= 255:
                raise ValueError(f"Arrays of images hold uint8, or floats in [0, 1]; got {array.dtype} beyond 255.")
            array = np.moveaxis(array.astype(np.uint8), 0, -1)
            image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return to_rgb(image)

    def _preprocess(self, images: list[Image.Image], return_tensors=None, **kwargs) -> BatchFeature:
        pixel_values = []
        for image in images:
            new_height, new_width, top, left, height, width = self.get_resize(image.height, image.width, **kwargs)
            if image.size != (new_width, new_height):
                image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
            if (new_height, new_width) != (height, width):
                canvas = Image.new("RGB", (width, height), "white")
                canvas.paste(image, (left, top))
                image = canvas
            pixel_values.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))
        sizes = {array.shape[1:] for array in pixel_values}
        if len(sizes) > 1:
            shapes = " and ".join(f"{height}×{width}" for height, width in sorted(sizes)[:2])
            raise ValueError(
                f"The views have different sizes after preprocessing ({shapes} pixels), which one batch cannot hold. "
                "Use mode='pad', which brings every image to a square."
            )
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


__all__ = ["VggtQwen3ImageProcessorPil"]
