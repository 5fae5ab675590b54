# SPDX-License-Identifier: Apache-2.0
"""Single pictures, as files under an image root or as bytes of a Parquet file, and as they are stored."""

import io
from pathlib import Path

import PIL.Image
import PIL.ImageOps

from ..frames import decode_picture
from ..paths import path_fault
from ..views import picture_size, read_bytes
from .left_out import BadRecordError
from .scans import encode, shrink


def read_stored(path: Path, image_size: int | None) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """As `stored`, of a file; raises `UnreadableFileError` also if it is missing."""
    return stored(read_bytes(path), path, image_size)


def stored(
    content: bytes, where: str | Path, image_size: int | None
) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """An encoded picture as it is stored: its own bytes unless it has to be made smaller.

    Returns:
        the encoded picture, and (width, height) in pixels of the picture as it was and as it is stored.

    Raises:
        UnreadableFileError: it is no picture, or cut short; the error names `where`.
    """
    size = picture_size(content, where)
    if image_size is None or max(size) <= image_size:
        return content, size, size
    decode_picture(content, where)  # raises if its pixels do not decode
    with PIL.Image.open(io.BytesIO(content)) as picture:
        upright = PIL.ImageOps.exif_transpose(picture)  # the tag that says how to turn it is not stored
    image = shrink(upright, image_size)
    return encode(image), upright.size, image.size


def check_picture(image: object) -> str:
    """`image`, if it is a path under the image root; raises `BadRecordError`."""
    fault = path_fault(image)
    if fault is not None:
        raise BadRecordError(f"the picture {image!r} is not a path under the image root: {fault}")
    return image


__all__ = ["check_picture", "read_stored", "stored"]
