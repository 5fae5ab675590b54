# SPDX-License-Identifier: Apache-2.0
"""The one place where encoded pictures are opened: those of a preparation's sources, of prepared repositories, and photos.

What is read, and what becomes of it, is in `modeling_vggt_qwen3/pictures_vggt_qwen3.py`, so that the processor of a
checkpoint, which travels without this package, treats a picture alike. Depth maps are no pictures, see `frames.read_depth`.
"""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image

from .files import UnreadableFileError
from .limits import describe_size_fault


# Each scan of a progressive JPEG goes through all of its pixels, and may be a few bytes. Encoders make about ten.
MAX_SCANS = 100


def _without_its_package(name: str):
    """A file of `modeling_vggt_qwen3`. Importing the package would load torch and transformers in each of a preparation's
    processes: seconds and hundreds of megabytes, for a file that needs neither."""
    folder = Path(importlib.util.find_spec("modeling_vggt_qwen3").origin).parent
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_conversion = _without_its_package("pictures_vggt_qwen3")
FORMATS, orientation_of = _conversion.FORMATS, _conversion.orientation_of
to_rgb, upright_size = _conversion.to_rgb, _conversion.upright_size


@contextmanager
def open_picture(content: bytes, where: str | Path) -> Iterator[PIL.Image.Image]:
    """A picture of which the header is read, and the pixels when they are asked for; not yet upright, see `to_rgb`.

    Args:
        content: the encoded picture, in one of `FORMATS`.
        where: what an error names.

    Raises:
        UnreadableFileError: it is no picture, has more pixels than `limits.MAX_PICTURE_PIXELS`, or turns out, within the
            block, to be damaged or cut short.
    """
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            fault = describe_size_fault(*picture.size)
            if fault is not None:
                raise UnreadableFileError(where, f"not a readable picture ({fault})")
            scans = content.count(b"\xff\xda\0") if "progressive" in picture.info else 1
            if scans > MAX_SCANS:
                raise UnreadableFileError(where, f"not a readable picture ({scans} scans, more than {MAX_SCANS})")
            yield picture
    except UnreadableFileError:
        raise
    except PIL.UnidentifiedImageError:
        reason = f"not a readable picture (damaged, or none of {', '.join(FORMATS)})"
        raise UnreadableFileError(where, reason) from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for a broken file
        raise UnreadableFileError(where, f"not a readable picture ({describe_decoding_error(error)})") from None


def decode_picture(content: bytes, where: str | Path, at_least: int | None = None) -> PIL.Image.Image:
    """Decodes a whole picture.

    Args:
        content, where: as in `open_picture`.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, which is faster, as long as no
            side gets shorter than so many pixels.

    Returns:
        the picture, RGB and upright, see `to_rgb`.

    Raises:
        UnreadableFileError: as `open_picture`.
    """
    with open_picture(content, where) as picture:
        if at_least is not None:
            picture.draft("RGB", (at_least, at_least))
        return to_rgb(picture)


def picture_size(content: bytes, where: str | Path) -> tuple[int, int]:
    """(width, height) in pixels of an upright picture; of a JPEG no more than the header is read.

    Raises:
        UnreadableFileError: as `open_picture`.
    """
    with open_picture(content, where) as picture:
        return upright_size(picture)


def is_plain(picture: PIL.Image.Image) -> bool:
    """Whether every reader takes a picture from `open_picture` for the same upright RGB: 8-bit RGB or grey, not transparent,
    without a tag that turns it or that is damaged, and in a format without palettes."""
    return (
        picture.format in ("JPEG", "MPO", "PNG", "WEBP")  # MPO: JPEGs of phones and of cameras with a preview behind
        and picture.mode in ("RGB", "L")
        and not picture.has_transparency_data
        and orientation_of(picture) == 1
    )


def plain_picture(content: bytes, where: str | Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as it is stored, after making sure that all of it decodes.

    Returns:
        the encoded picture itself, unchanged, if it `is_plain`, else a PNG of what `decode_picture` makes of it; and its
        (width, height) in pixels.

    Raises:
        UnreadableFileError: as `open_picture`.
    """
    with open_picture(content, where) as picture:
        if is_plain(picture):
            size = picture.size
            # A JPEG is decoded at an eighth of its size: the entropy-coded data, where a cut shows, is still read to
            # its end, but the costly inverse transform is not computed for every pixel.
            picture.draft(picture.mode, (size[0] // 8, size[1] // 8))
            picture.load()
            return content, size
    image = decode_picture(content, where)
    return encode_png(image), image.size


def encode_png(image: PIL.Image.Image) -> bytes:
    """A PNG of the pixels alone."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", icc_profile=None)
    return buffer.getvalue()


def describe_decoding_error(error: Exception) -> str:
    """One line that says what Pillow found wrong, without the address of the buffer it was reading from."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "unknown or damaged format"
    return " ".join(str(error).split()) or type(error).__name__


__all__ = [
    "FORMATS",
    "decode_picture",
    "describe_decoding_error",
    "encode_png",
    "is_plain",
    "open_picture",
    "orientation_of",
    "picture_size",
    "plain_picture",
    "to_rgb",
    "upright_size",
]
