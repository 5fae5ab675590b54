# SPDX-License-Identifier: Apache-2.0
"""Single pictures, as files under an image root or as bytes of a Parquet file, and as they are stored."""

from pathlib import Path

from ..files import read_bytes
from ..paths import path_fault
from ..pictures import decode_picture, open_picture, plain_picture
from .left_out import BadRecordError
from .scans import encode, shrink


def read_stored(path: Path, image_size: int | None) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """As `stored`, of a file; raises `UnreadableFileError` also if it is missing."""
    return stored(read_bytes(path), path, image_size)


def stored(
    content: bytes, where: str | Path, image_size: int | None
) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """An encoded picture as it is stored: its own bytes unless it has to be made smaller or is not plain, see `plain_picture`.

    Returns:
        the encoded picture, and (width, height) in pixels of the picture as it was, upright, and as it is stored.

    Raises:
        UnreadableFileError: it is no picture, or cut short; the error names `where`.
    """
    with open_picture(content, where) as picture:
        longest = max(picture.size)
    if image_size is not None and longest > image_size:
        whole = decode_picture(content, where)
        image = shrink(whole, image_size)
        return encode(image), whole.size, image.size
    content, size = plain_picture(content, where)
    return content, size, size


def check_picture(image: object) -> str:
    """`image`, if it is a path under the image root; raises `BadRecordError`."""
    fault = path_fault(image)
    if fault is not None:
        raise BadRecordError(f"the picture {image!r} is not a path under the image root: {fault}")
    return image


__all__ = ["check_picture", "read_stored", "stored"]
