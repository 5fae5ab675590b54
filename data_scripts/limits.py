# SPDX-License-Identifier: Apache-2.0
"""How much may be unpacked or believed of a file that somebody else made. Nothing here needs more than the standard library.

A few bytes can stand for gigabytes of pixels, and a number can be anything: what reads a file looks at what it states
against these bounds before it takes memory for it.
"""

# A camera of 61 MP, the most that is sold for photos, is below it; 64 MP are 192 MB of RGB, or 128 MB of 16-bit depth.
MAX_PICTURE_PIXELS = 64_000_000


def describe_size_fault(width: int, height: int) -> str | None:
    """What is wrong with the size of a picture or depth map, in a few words, or None if nothing is."""
    if width < 1 or height < 1:
        return f"{width} x {height} pixels"
    if width * height > MAX_PICTURE_PIXELS:
        return f"{width} x {height} pixels, more than {MAX_PICTURE_PIXELS // 1_000_000} MP"
    return None


__all__ = ["MAX_PICTURE_PIXELS", "describe_size_fault"]
