# SPDX-License-Identifier: Apache-2.0
"""Kinds of picture: encoded in every format that is read, and the pixels that each must come to, worked out without Pillow."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


WIDTH, HEIGHT = 24, 16
# What it looks like turned, by EXIF orientation: the array that is stored, upright.
UPRIGHT = {
    1: lambda array: array,
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: lambda array: np.rot90(array, 1),
}


def smooth(channels: int, top: int = 255, dtype=np.uint8) -> np.ndarray:
    """`[H, W, channels]` of values that survive JPEG somewhat, and differ in every corner."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin((channel + 1) * rows / 9 + columns / (5 + channel)) for channel in range(channels)]
    return ((np.stack(waves, -1) + 1) / 2 * top).astype(dtype)


def save(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(array: np.ndarray, bits: int, colour: int, before: list[bytes] = (), after: list[bytes] = ()) -> bytes:
    """A PNG of `[H, W, channels]` samples as they are, with chunks before and after the pixels."""
    rows = array.astype(">u2" if bits == 16 else np.uint8).reshape(len(array), -1)
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(packed)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` of 8-bit colour and alpha, to within the rounding of a level."""
    alpha = alpha[..., None] / 255
    return np.round(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)


def decoded(content: bytes) -> np.ndarray:
    """The pixels of a JPEG or lossy WebP without tags, by the decoder itself."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def kinds() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """(name ending in a suffix, encoded picture, `[H, W, 3]` uint8)."""
    colour, grey, alpha = smooth(3), smooth(1)[..., 0], smooth(4)[..., 3]
    rgb, grey3 = Image.fromarray(colour), np.repeat(grey[..., None], 3, -1)
    see_through, grey_alpha = np.concatenate([colour, alpha[..., None]], -1), np.stack([grey, alpha], -1)
    rgba, la = Image.fromarray(see_through), Image.fromarray(grey_alpha)
    wide = smooth(1, 65535, np.uint16)[..., 0]
    wide3 = np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, -1)
    bits = grey > 127
    black_white = np.repeat((bits * 255).astype(np.uint8)[..., None], 3, -1)
    palette = rgb.quantize(16)
    indices, table = np.asarray(palette), np.array(palette.getpalette()[:48], np.uint8).reshape(-1, 3)
    table_alpha = np.arange(16, dtype=np.uint8) * 17

    def but(array, mask):
        """`array`, white where `mask`."""
        return np.where(mask[..., None], np.uint8(255), array)

    # JPEG
    jpeg = save(rgb, "JPEG", quality=90)
    profile = b"a colour profile that nobody applies"
    yield "plain.jpg", jpeg, decoded(jpeg)
    yield "progressive.jpg", (content := save(rgb, "JPEG", progressive=True)), decoded(content)
    yield "grey.jpg", (content := save(Image.fromarray(grey), "JPEG")), decoded(content)
    yield "profile.jpg", save(rgb, "JPEG", quality=90, icc_profile=profile), decoded(jpeg)
    for orientation, upright in UPRIGHT.items():
        content = save(rgb, "JPEG", quality=90, exif=exif(orientation))
        yield f"exif{orientation}.jpg", content, upright(decoded(jpeg))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    yield "xmp6.jpg", save(rgb, "JPEG", quality=90, xmp=xmp), UPRIGHT[6](decoded(jpeg))
    cmyk = Image.fromarray(smooth(4), "CMYK")
    inks = np.asarray(
        Image.open(io.BytesIO(save(cmyk, "JPEG"))), dtype=int
    )  # Pillow stores it inverted, as Adobe does
    paper = 255 - np.minimum(inks[..., :3] * (255 - inks[..., 3:]) / 255 + inks[..., 3:], 255)
    yield "cmyk.jpg", save(cmyk, "JPEG"), np.round(paper).astype(np.uint8)
    turned = save(cmyk, "JPEG", exif=exif(8), icc_profile=profile)
    yield "cmyk_exif8.jpg", turned, UPRIGHT[8](np.round(paper).astype(np.uint8))
    yield "several.mpo", save(rgb, "MPO", quality=90, save_all=True, append_images=[rgb]), decoded(jpeg)
    broken = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 12) + b"Exif\0\0junk" + jpeg[2:]
    yield "exif_damaged.jpg", broken, decoded(jpeg)

    # PNG
    yield "plain.png", save(rgb, "PNG"), colour
    yield "grey.png", save(Image.fromarray(grey), "PNG"), grey3
    yield "bits.png", save(Image.fromarray(bits), "PNG"), black_white
    yield "bits_key.png", save(Image.fromarray(bits), "PNG", transparency=0), but(black_white, ~bits)
    yield "grey_alpha.png", save(la, "PNG"), on_white(grey3, alpha)
    yield "alpha.png", save(rgba, "PNG"), on_white(colour, alpha)
    yield "opaque.png", save(rgb.convert("RGBA"), "PNG"), colour
    yield "palette.png", save(palette, "PNG"), table[indices]
    yield "palette_key.png", save(palette, "PNG", transparency=3), but(table[indices], indices == 3)
    content = save(palette, "PNG", transparency=table_alpha.tobytes())
    yield "palette_alpha.png", content, on_white(table[indices], table_alpha[indices])
    key = int(grey[0, 0])
    yield "grey_key.png", save(Image.fromarray(grey), "PNG", transparency=key), but(grey3, grey == key)
    key = tuple(int(value) for value in colour[0, 0])
    yield "colour_key.png", save(rgb, "PNG", transparency=key), but(colour, (colour == key).all(-1))
    yield "grey16.png", save(Image.fromarray(wide), "PNG"), wide3
    key = int(wide[3, 3])
    yield "grey16_key.png", save(Image.fromarray(wide), "PNG", transparency=key), but(wide3, wide == key)
    wide_colour = smooth(3, 65535, np.uint16)
    yield "colour16.png", png(wide_colour, 16, 2), (wide_colour >> 8).astype(np.uint8)
    wide_alpha = smooth(4, 65535, np.uint16)
    eight = (wide_alpha >> 8).astype(np.uint8)
    yield "alpha16.png", png(wide_alpha, 16, 6), on_white(eight[..., :3], eight[..., 3])
    yield (
        "grey_alpha16.png",
        png(wide_alpha[..., 2:], 16, 4),
        on_white(np.repeat(eight[..., 2:3], 3, -1), eight[..., 3]),
    )
    yield "alpha_exif6.png", save(rgba, "PNG", exif=exif(6)), UPRIGHT[6](on_white(colour, alpha))
    yield "grey16_exif3.png", save(Image.fromarray(wide), "PNG", exif=exif(3)), UPRIGHT[3](wide3)
    content = save(palette, "PNG", transparency=3, exif=exif(7))
    yield "palette_key_exif7.png", content, UPRIGHT[7](but(table[indices], indices == 3))
    late = chunk(b"eXIf", exif(5).removeprefix(b"Exif\0\0"))
    yield "exif_after_pixels.png", png(colour, 8, 2, after=[late]), UPRIGHT[5](colour)
    other = Image.fromarray(255 - colour)
    yield "animated.png", save(rgb, "PNG", save_all=True, append_images=[other]), colour

    # WebP
    yield "plain.webp", save(rgb, "WEBP", lossless=True), colour
    yield "lossy.webp", (content := save(rgb, "WEBP", quality=80)), decoded(content)
    yield "alpha.webp", save(rgba, "WEBP", lossless=True, exact=True), on_white(colour, alpha)
    yield "exif8.webp", save(rgb, "WEBP", lossless=True, exif=exif(8)), UPRIGHT[8](colour)
    yield "animated.webp", save(rgb, "WEBP", lossless=True, save_all=True, append_images=[other]), colour

    # GIF
    yield "palette.gif", save(palette, "GIF"), table[indices]
    yield "palette_key.gif", save(palette, "GIF", transparency=3), but(table[indices], indices == 3)
    yield "grey.gif", save(Image.fromarray(grey), "GIF"), grey3
    frames = [Image.fromarray(255 - grey), Image.fromarray(grey // 2)]
    yield "animated.gif", save(Image.fromarray(grey), "GIF", save_all=True, append_images=frames), grey3

    # BMP
    yield "plain.bmp", save(rgb, "BMP"), colour
    yield "grey.bmp", save(Image.fromarray(grey), "BMP"), grey3
    yield "bits.bmp", save(Image.fromarray(bits), "BMP"), black_white
    yield "palette.bmp", save(palette, "BMP"), table[indices]

    # TIFF
    yield "plain.tiff", save(rgb, "TIFF"), colour
    yield "lzw.tiff", save(rgb, "TIFF", compression="tiff_lzw"), colour
    yield "grey.tiff", save(Image.fromarray(grey), "TIFF"), grey3
    yield "bits.tiff", save(Image.fromarray(bits), "TIFF", compression="group4"), black_white
    yield "alpha.tiff", save(rgba, "TIFF"), on_white(colour, alpha)
    yield "palette.tiff", save(palette, "TIFF"), table[indices]
    yield "grey16.tiff", save(Image.fromarray(wide), "TIFF"), wide3
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), wide.astype(">u2").tobytes())
    yield "grey16_big_endian.tiff", save(big_endian, "TIFF"), wide3
    yield "grey32.tiff", save(Image.fromarray(wide.astype(np.int32)), "TIFF"), wide3
    inks = np.asarray(cmyk, dtype=int)
    paper = 255 - np.minimum(inks[..., :3] * (255 - inks[..., 3:]) / 255 + inks[..., 3:], 255)
    yield "cmyk.tiff", save(cmyk, "TIFF"), np.round(paper).astype(np.uint8)
    for orientation in (3, 6):
        content = save(rgb, "TIFF", tiffinfo={0x0112: orientation})
        yield f"turned{orientation}.tiff", content, UPRIGHT[orientation](colour)
    yield "pages.tiff", save(rgb, "TIFF", save_all=True, append_images=[other]), colour


def refused() -> Iterator[tuple[str, bytes]]:
    """(name, encoded picture) of what Pillow might read, and the project does not."""
    rgb = Image.fromarray(smooth(3))
    for suffix, format in (("eps", "EPS"), ("pdf", "PDF"), ("ppm", "PPM"), ("ico", "ICO"), ("tga", "TGA")):
        yield f"other.{suffix}", save(rgb, format)
    yield "postscript.jpg", save(rgb, "EPS")  # whatever its name says
    yield "script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) file\n"
    yield "vector.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "float.tiff", save(Image.fromarray(smooth(1, 1, np.float32)[..., 0]), "TIFF")
    yield "beyond.tiff", save(Image.fromarray(smooth(1, 10**6, np.int32)[..., 0]), "TIFF")
    yield "empty.png", b""


__all__ = ["HEIGHT", "WIDTH", "chunk", "exif", "kinds", "png", "refused", "save", "smooth"]
