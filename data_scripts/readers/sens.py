# SPDX-License-Identifier: Apache-2.0
"""Reads `.sens` streams, the format in which ScanNet distributes its RGB-D recordings, without unpacking them.

Opening a stream reads its header and 96 bytes per frame: pictures and depth maps are seeked over, and only those asked for are
ever read. Layout, little-endian: uint32 version (4); uint64 length and name of the sensor; 4x4 float32 intrinsics and
extrinsics of the colour camera, then of the depth camera; int32 colour compression (0 raw, 1 png, 2 jpeg); int32 depth
compression (0 raw, 1 zlib, 2 occi); uint32 width and height of colour, then of depth; float32 depth units per metre; uint64
number of frames; per frame 4x4 float32 camera-to-world, uint64 timestamps of colour and depth (microseconds), uint64 sizes of
the two in bytes, colour, depth. What follows the last frame (motion sensors) is not read, and the extrinsics are not applied:
neither does ScanNet's own reader.

Source: https://github.com/ScanNet/ScanNet/tree/master/SensReader
"""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import UnreadableFileError
from ..limits import LARGEST_NUMBER, MAX_FRAMES, describe_size_fault
from ..pictures import open_picture
from .frames import check_intrinsics, decode_picture


VERSION = 4
LONGEST_NAME = 4096  # bytes; more is no name but a file of another kind
# Bytes of an encoded picture or depth map, per pixel and beside them: more than any encoder makes of that size.
BYTES_PER_PIXEL, BYTES_BESIDE = 8, 1 << 20
RAW, PNG, JPEG = range(3)  # colour compressions
DEPTH_RAW, DEPTH_ZLIB = range(2)

_AFTER_NAME = np.dtype(
    [
        ("color_intrinsics", "<f4", (4, 4)),
        ("color_extrinsics", "<f4", (4, 4)),
        ("depth_intrinsics", "<f4", (4, 4)),
        ("depth_extrinsics", "<f4", (4, 4)),
        ("color_compression", "<i4"),
        ("depth_compression", "<i4"),
        ("color_size", "<u4", 2),
        ("depth_size", "<u4", 2),
        ("depth_shift", "<f4"),
        ("frames", "<u8"),
    ]
)
_FRAME = np.dtype(
    [
        ("camera_to_world", "<f4", (4, 4)),
        ("color_timestamp", "<u8"),
        ("depth_timestamp", "<u8"),
        ("color_bytes", "<u8"),
        ("depth_bytes", "<u8"),
    ]
)


class SensStream:
    """A `.sens` file: its header and an index of its frames.

    Attributes:
        color_size, depth_size: (width, height) in pixels.
        color_intrinsics, depth_intrinsics: `[3, 3]` float64, pixels of pictures of these sizes.
        camera_to_world: `[N, 4, 4]` float64 metres, not aligned; all `-inf` where the pose was lost.
        timestamps: `[N]` float64 seconds, of the pictures.

    Raises:
        UnreadableFileError: the file is missing, is no `.sens` stream of version 4, ends early, is compressed in a
            way that cannot be read, or states sizes, numbers of frames or of bytes that cannot be true or are beyond
            `data_scripts.limits`.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb", buffering=0) as stream:
                self._read_header(stream)
                self._read_index(stream)
        except FileNotFoundError:
            raise UnreadableFileError(path, "missing") from None
        except OSError as error:
            raise UnreadableFileError(path, f"cannot be read ({error.strerror})") from None

    def __len__(self) -> int:
        return len(self._index)

    def encoded_picture(self, frame: int) -> bytes | None:
        """The JPEG or PNG file of a frame, or None if colour is stored raw."""
        return None if self._color_compression == RAW else self._color(frame)

    def picture(self, frame: int, at_least: int | None = None) -> PIL.Image.Image:
        """Decodes a frame's picture, RGB; for `at_least` see `decode_picture`.

        Raises:
            UnreadableFileError: it is not readable, or has not the size that the header states.
        """
        content = self._color(frame)
        if self._color_compression != RAW:
            self._check_size(content, frame)
            return decode_picture(content, self._where(frame), at_least)
        width, height = self.color_size
        if len(content) != width * height * 3:
            raise UnreadableFileError(
                self._where(frame), f"{len(content)} bytes of raw colour, expected {width * height * 3}"
            )
        return PIL.Image.frombytes("RGB", self.color_size, content)

    def _check_size(self, content: bytes, frame: int) -> None:
        """Raises `UnreadableFileError` if an encoded picture is not of the header's size, before its pixels are unpacked."""
        with open_picture(content, self._where(frame)) as picture:
            size = picture.size
        if size != self.color_size:
            found, stated = (" x ".join(map(str, pair)) for pair in (size, self.color_size))
            raise UnreadableFileError(self._where(frame), f"a picture of {found} pixels, stated are {stated}")

    def has_picture(self, frame: int) -> bool:
        return bool(self._index["color_bytes"][frame] > 0)

    def has_depth(self, frame: int) -> bool:
        return bool(self._index["depth_bytes"][frame] > 0)

    def depth(self, frame: int) -> np.ndarray:
        """`[H, W]` float32 metres, 0 = none.

        Raises:
            UnreadableFileError: it does not unpack to as many bytes as the header's size needs.
        """
        content = self._read(int(self._depth_offset[frame]), int(self._index["depth_bytes"][frame]), frame)
        width, height = self.depth_size
        expected = width * height * 2
        if self._depth_compression == DEPTH_ZLIB:
            stream = zlib.decompressobj()
            try:
                content = stream.decompress(content, expected + 1)  # never more than that, whatever is packed
            except zlib.error as error:
                raise UnreadableFileError(self._where(frame), f"not a readable depth map ({error})") from None
            if len(content) == expected and not stream.eof:  # its end, with the checksum, was cut off
                raise UnreadableFileError(self._where(frame), "not a readable depth map (cut short)")
        if len(content) != expected:
            least = "at least " if len(content) > expected else ""
            raise UnreadableFileError(
                self._where(frame), f"{least}{len(content)} bytes of depth, expected {expected} for {width} x {height}"
            )
        depth = np.frombuffer(content, dtype="<u2").reshape(height, width).astype(np.float32)
        depth /= self._depth_shift  # in place: 64 MP are 256 MB
        return depth

    def _read_header(self, stream) -> None:
        version = self._take(stream, 4, "the header")
        if version != struct.pack("<I", VERSION):
            raise UnreadableFileError(
                self.path,
                f"not a .sens stream of version {VERSION} (it begins with {struct.unpack('<I', version)[0]})",
            )
        (length,) = struct.unpack("<Q", self._take(stream, 8, "the header"))
        if length > LONGEST_NAME:
            raise UnreadableFileError(self.path, f"not a .sens stream (a sensor's name of {length} bytes)")
        self._take(stream, length, "the header")
        header = np.frombuffer(self._take(stream, _AFTER_NAME.itemsize, "the header"), dtype=_AFTER_NAME)[0]
        self._color_compression = int(header["color_compression"])
        self._depth_compression = int(header["depth_compression"])
        if self._color_compression not in (RAW, PNG, JPEG):
            raise UnreadableFileError(self.path, f"colour compression {self._color_compression} is not known")
        if self._depth_compression not in (DEPTH_RAW, DEPTH_ZLIB):
            name = "occi_ushort" if self._depth_compression == 2 else str(self._depth_compression)
            raise UnreadableFileError(self.path, f"depth compression {name} cannot be read, only raw and zlib_ushort")
        self.color_size = tuple(int(number) for number in header["color_size"])
        self.depth_size = tuple(int(number) for number in header["depth_size"])
        for what, size in (("colour", self.color_size), ("depth", self.depth_size)):
            fault = describe_size_fault(*size)
            if fault is not None:
                raise UnreadableFileError(self.path, f"the header's size of {what}: {fault}")
        self._depth_shift = np.float32(header["depth_shift"])
        if not 0xFFFF / LARGEST_NUMBER <= self._depth_shift <= LARGEST_NUMBER:  # the farthest depth is a number, too
            raise UnreadableFileError(self.path, f"{self._depth_shift} depth units per metre")
        self.color_intrinsics = header["color_intrinsics"][:3, :3].astype(np.float64)
        self.depth_intrinsics = header["depth_intrinsics"][:3, :3].astype(np.float64)
        check_intrinsics(self.path, self.color_intrinsics)
        check_intrinsics(self.path, self.depth_intrinsics)
        self._frames = int(header["frames"])

    def _read_index(self, stream) -> None:
        end = os.fstat(stream.fileno()).st_size
        offset = stream.tell()
        if self._frames * _FRAME.itemsize > end - offset:  # before memory is taken for a number that cannot be true
            raise UnreadableFileError(
                self.path, f"cut short: {end} bytes cannot hold the {self._frames} frames it states"
            )
        if self._frames > MAX_FRAMES:
            raise UnreadableFileError(self.path, f"{self._frames} frames, more than {MAX_FRAMES}")
        bounds = [
            BYTES_PER_PIXEL * width * height + BYTES_BESIDE for width, height in (self.color_size, self.depth_size)
        ]
        headers, offsets = [], []
        for frame in range(self._frames):
            what = f"frame {frame} of {self._frames}"
            header = os.pread(stream.fileno(), _FRAME.itemsize, offset)
            if len(header) < _FRAME.itemsize:
                raise UnreadableFileError(self.path, f"cut short in {what}")
            headers.append(header)
            offset += _FRAME.itemsize
            offsets.append(offset)
            sizes = struct.unpack_from("<QQ", header, _FRAME.fields["color_bytes"][1])
            for name, size, most in zip(("colour", "depth"), sizes, bounds):
                if size > most:
                    raise UnreadableFileError(self.path, f"{what}: {size} bytes of {name}, more than {most}")
            offset += sum(sizes)
            if offset > end:
                raise UnreadableFileError(self.path, f"cut short in {what}: {end} bytes, expected at least {offset}")
        self._index = np.frombuffer(b"".join(headers), dtype=_FRAME)
        self._color_offset = np.array(offsets, dtype=np.uint64)
        self._depth_offset = self._color_offset + self._index["color_bytes"]
        self.camera_to_world = self._index["camera_to_world"].astype(np.float64)
        self.timestamps = self._index["color_timestamp"].astype(np.float64) / 1e6

    def _take(self, stream, size: int, what: str) -> bytes:
        content = stream.read(size)
        if len(content) < size:
            raise UnreadableFileError(self.path, f"cut short in {what}")
        return content

    def _color(self, frame: int) -> bytes:
        return self._read(int(self._color_offset[frame]), int(self._index["color_bytes"][frame]), frame)

    def _read(self, offset: int, size: int, frame: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as stream:
                stream.seek(offset)
                return self._take(stream, size, f"frame {frame}")
        except OSError as error:
            raise UnreadableFileError(self.path, f"cannot be read ({error.strerror})") from None

    def _where(self, frame: int) -> str:
        return f"{self.path} (frame {frame})"


__all__ = ["SensStream"]
