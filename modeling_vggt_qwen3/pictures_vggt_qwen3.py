# SPDX-License-Identifier: Apache-2.0
"""
Which pictures are read, and what each of them becomes: 8-bit RGB, upright. The image processor brings every PIL image to it,
and `data_scripts.pictures` every file.

Needs PIL and numpy alone: the processes of a preparation run this file without its package, which loads torch.
"""

import numpy as np
from PIL import ExifTags, Image


# What photos, scans and the data sets come in. Pillow would read some forty formats, one of them (EPS) by running
# Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int | None:
    """The orientation, 1 to 8, that an image's EXIF or XMP data state; 1 if they state none, None if they are damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever reading a damaged TIFF structure may raise
        return None
    return orientation if orientation in TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels of an image once it is upright. A JPEG's pixels are not decoded for it."""
    if image.format not in ("JPEG", "MPO"):
        image.load()  # a tag may come after the pixels, and a TIFF turns itself when it is loaded
    width, height = image.size
    return (height, width) if (orientation_of(image) or 1) >= 5 else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """
    An image as RGB: turned upright as its EXIF or XMP data say, on white where it is transparent, 16-bit grey by its upper
    byte (as Pillow reads 16-bit colour), all else (1-bit, grey, palettes, CMYK, YCbCr) as Pillow converts it. Of an
    animation it is the frame at hand, of a file the first. Colour profiles are not applied.

    Returns:
        `Image.Image`: `image` itself, not a copy, if it is upright RGB already. Its info states no orientation.

    Raises:
        ValueError: of pixels that have no level that is white: floating point, and integers beyond 16 bits.
    """
    image.load()
    turn = TURNS.get(orientation_of(image))
    if turn is not None:
        transparency = {key: value for key, value in image.info.items() if key == "transparency"}
        image = image.transpose(turn)
        image.info = transparency  # without the tag, by which it would be turned once more
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are 32-bit floating point, which has no white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Of the modes I;16, I;16B and so on, and of I, which holds what older versions of Pillow read from 16-bit files."""
    pixels = np.asarray(image)
    if image.mode == "I" and not 0 <= pixels.min() <= pixels.max() <= 0xFFFF:
        raise ValueError("its pixels are integers beyond 16 bits: save it with 8 or 16 bits")
    grey = (pixels >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


__all__ = ["FORMATS", "orientation_of", "to_rgb", "upright_size"]
