# SPDX-License-Identifier: Apache-2.0
"""Which frames of a scan become views, and the reading of one view's picture."""

import io
from pathlib import Path

import PIL.Image


class UnreadableFileError(ValueError):
    """A raw file that cannot be used; `file` is its path and `reason` says why in a few words."""

    def __init__(self, file: str | Path, reason: str):
        super().__init__(str(file), reason)  # both arguments, so that the error survives pickling between processes
        self.file = str(file)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def read_bytes(path: Path) -> bytes:
    """The content of `path`; raises `UnreadableFileError` if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableFileError(path, "missing") from None
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be read ({error.strerror})") from None


def read_picture(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Reads a picture as it is stored, after making sure that all of it decodes.

    Args:
        path: a file in any format Pillow reads.

    Returns:
        The file's bytes, unchanged, and the picture's (width, height) in pixels.

    Raises:
        UnreadableFileError: the file is missing, is no picture, or is cut short.
    """
    content = read_bytes(path)
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            size = picture.size
            # A JPEG is decoded at an eighth of its size: the entropy-coded data, where a cut shows, is still read to
            # its end, but the costly inverse transform is not computed for every pixel.
            picture.draft(picture.mode, (size[0] // 8, size[1] // 8))
            picture.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for a broken file
        raise UnreadableFileError(path, f"not a readable picture ({describe_decoding_error(error)})") from None
    return content, size


def describe_decoding_error(error: Exception) -> str:
    """One line that says what Pillow found wrong, without the address of the buffer it was reading from."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "unknown or damaged format"
    return " ".join(str(error).split()) or type(error).__name__


def select_uniform(frame_ids: list[str], num_views: int) -> list[str]:
    """Picks evenly spaced frames: the middle ones of `num_views` equally long stretches of the scan.

    The middle rather than the ends, because a hand-held scan tends to start and stop with the camera lowered.

    Args:
        frame_ids: names of the candidate frames (those with a valid pose); each is a frame number in decimal digits.
        num_views: how many are wanted.

    Returns:
        min(num_views, len(frame_ids)) names in the order of their frame numbers, the same at every call.
    """
    ordered = sorted(frame_ids, key=int)
    if len(ordered) <= num_views:
        return ordered
    return [ordered[(2 * view + 1) * len(ordered) // (2 * num_views)] for view in range(num_views)]


VIEW_SELECTIONS = {"uniform": select_uniform}


__all__ = [
    "VIEW_SELECTIONS",
    "UnreadableFileError",
    "describe_decoding_error",
    "read_bytes",
    "read_picture",
    "select_uniform",
]
