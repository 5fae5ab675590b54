# SPDX-License-Identifier: Apache-2.0
"""Hostile pictures: small valid ones of every kind with bytes flipped, cut, put in or taken out, sizes that they do not have,
and those that unpack to far more than they are."""

import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import picture_kinds
from picture_kinds import chunk, png, save
from PIL import Image


PER_KIND = 38
HUGE = (2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1)


def cases(seed: int = 0, per_kind: int = PER_KIND) -> Iterator[tuple[str, bytes]]:
    """(file name, encoded picture)."""
    rng = random.Random(seed)
    for name, content, _ in picture_kinds.kinds():
        for number in range(per_kind):
            how = HOW[number % len(HOW)]
            yield f"{how.__name__}-{number}-{name}", how(rng, content)
    yield from bombs().items()
    yield from picture_kinds.refused()


def flip(rng: random.Random, content: bytes) -> bytes:
    """Some bytes are others; more often near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        place = min(rng.randrange(len(content)), rng.randrange(len(content)))
        changed[place] = rng.choice((0, 255, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def put_in(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.choice((1, 2, 4, 100, 5000))) + content[place:]


def take_out(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice((1, 2, 4, 20)) :]


def number(rng: random.Random, content: bytes) -> bytes:
    """Two or four bytes, in either order, become a number at the edge of what they can be."""
    packed = (
        struct.pack(rng.choice("<>") + rng.choice("HI"), rng.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF)))
        if rng.random() < 0.5
        else struct.pack(rng.choice("<>") + "I", rng.choice((*HUGE, 0x10000, 0x80000000)))
    )
    place = min(rng.randrange(len(content)), rng.randrange(len(content)))
    return content[:place] + packed + content[place + len(packed) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A part comes many times."""
    place = rng.randrange(len(content))
    end = place + rng.randrange(1, 200)
    return content[:place] + content[place:end] * rng.choice((2, 50)) + content[end:]


HOW = (flip, cut, put_in, take_out, number, repeat)


@cache
def bombs() -> dict[str, bytes]:
    """By file name, what states, or unpacks to, far more than it is. Each is below 3 MB."""
    return dict(_bombs())


def _bombs() -> Iterator[tuple[str, bytes]]:
    dot = Image.new("RGB", (8, 8))
    valid = {format: save(dot, format) for format in ("PNG", "BMP", "JPEG", "GIF", "TIFF", "WEBP")}
    for width in (9000, *HUGE):
        size = width & 0xFFFFFFFF
        pair = struct.pack(">II", size, size)
        yield f"size-{width}.png", valid["PNG"][:8] + chunk(b"IHDR", pair + b"\x08\6\0\0\0") + valid["PNG"][33:]
        yield f"size-{width}.bmp", valid["BMP"][:18] + struct.pack("<II", size, size) + valid["BMP"][26:]
    start = valid["JPEG"].index(b"\xff\xc0") + 5
    yield "size.jpg", valid["JPEG"][:start] + b"\xff\xff\xff\xff" + valid["JPEG"][start + 4 :]
    yield "size.gif", valid["GIF"][:6] + b"\xff\xff\xff\xff" + valid["GIF"][10:]
    lossless = save(dot, "WEBP", lossless=True)
    start = lossless.index(b"VP8L") + 9
    yield "size.webp", lossless[:start] + b"\xff\xff\xff\x0f" + lossless[start + 4 :]
    for tag in (256, 257):  # width, height
        yield f"size-{tag}.tiff", _with_tag(valid["TIFF"], tag, 60_000_000)
    for tag in (278, 279, 273):  # rows and bytes of a strip, and where it is
        yield f"strip-{tag}.tiff", _with_tag(valid["TIFF"], tag, 2**32 - 1)

    zeros = zlib.compress(bytes(100_000_000))  # 0.1 MB
    pixel = np.zeros((1, 1, 1), np.uint8)
    yield "pixels.png", png(pixel, 8, 0)[:33] + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")
    yield "profile.png", png(pixel, 8, 0, before=[chunk(b"iCCP", b"name\0\0" + zeros)])
    yield "text.png", png(pixel, 8, 0, before=[chunk(b"zTXt", b"key\0\0" + zeros)])
    yield "texts.png", png(pixel, 8, 0, before=[chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(900_000)))] * 300)
    yield "text_long.png", png(pixel, 8, 0, before=[chunk(b"iTXt", b"key\0\0\0\0\0" + b"a" * 2_000_000)])
    yield "xmp_late.png", png(pixel, 8, 0, after=[chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros)])
    yield "chunks.png", png(pixel, 8, 0, before=[chunk(b"tEXt", b"key\0a")] * 30_000)
    for name, entry in (
        ("count", (0x112, 3, 2**32 - 1, 8)),
        ("loop", (0x8769, 4, 1, 8)),
        ("far", (0x112, 3, 9, 2**31)),
    ):
        tags = b"MM\0*\0\0\0\x08" + b"\0\1" + struct.pack(">HHII", *entry) + b"\0\0\0\0"
        yield f"exif_{name}.jpg", save(dot, "JPEG", exif=b"Exif\0\0" + tags)
        yield f"exif_{name}.png", png(pixel, 8, 0, before=[chunk(b"eXIf", tags)])
    many = b"MM\0*\0\0\0\x08" + b"\x14\0" + struct.pack(">HHII", 0x112, 3, 1, 6 << 16) * 0x1400
    yield "exif_many.jpg", save(dot, "JPEG", exif=b"Exif\0\0" + many)
    frames = [Image.new("L", (8, 8), level % 256) for level in range(1000)]
    yield "frames.gif", save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "frames.webp", save(frames[0], "WEBP", save_all=True, append_images=frames[1:500], lossless=True)
    yield "extensions.gif", valid["GIF"][:13] + b"\x21\xfe\1a\0" * 50_000 + valid["GIF"][13:]
    yield "scans.jpg", _scans(save(dot, "JPEG", progressive=True), 20_000)
    yield "markers.jpg", valid["JPEG"][:2] + b"\xff\xe1\0\2" * 50_000 + valid["JPEG"][2:]


def _with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF one of whose tags is a long of that value."""
    (place,) = struct.unpack("<I", tiff[4:8])
    (count,) = struct.unpack("<H", tiff[place : place + 2])
    changed = bytearray(tiff)
    for start in range(place + 2, place + 2 + 12 * count, 12):
        if struct.unpack("<H", tiff[start : start + 2])[0] == tag:
            changed[start : start + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(changed)


def _scans(progressive: bytes, number: int) -> bytes:
    """A progressive JPEG whose last scan comes many times; each goes through all pixels."""
    start = progressive.rindex(b"\xff\xda")
    return progressive[:start] + progressive[start:-2] * number + progressive[-2:]


__all__ = ["bombs", "cases"]
