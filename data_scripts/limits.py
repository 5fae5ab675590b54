# SPDX-License-Identifier: Apache-2.0
"""How much is believed of a file that somebody else made. Nothing here needs more than the standard library.

A few bytes can stand for gigabytes of pixels, and a number can be anything: what reads a file compares what the file states
with these bounds before it takes memory for it.
"""

# No camera that is sold has more; 64 MP are 192 MB of RGB, or 128 MB of 16-bit depth.
MAX_PICTURE_PIXELS = 64_000_000
MAX_FILE_BYTES = 512 << 20  # of a file that is read whole, a picture or a mesh; a sparse one can state a terabyte
# Of files that become Python's objects, which take twenty times as much.
MAX_JSON_BYTES = 64 << 20  # a room's, which has hundreds of KB; of a table of scans, too
MAX_TRAJECTORY_BYTES = 16 << 20  # four hours
MAX_CAMERA_BYTES = 1 << 20  # a pose's, intrinsics', a scan's description: a few hundred bytes
MAX_FRAMES = 1_000_000  # of a stream: nine hours at 30 per second
MAX_BOXES = 1_000  # of a room, which has dozens: what tells n boxes apart compares each with each
# Metres, and pixels of a camera: float32, in which both are stored, tells decimetres apart up to here. Its squares stay finite.
LARGEST_NUMBER = 1e6
SMALLEST_FOCAL_LENGTH = 1e-3  # pixels; below it the inverse has numbers that mean nothing
FARTHEST_CAMERA = 1e3  # metres from that of view 0: further away the model's exponentials of distances leave float32
LONGEST_NAME = 200  # characters of a label or identifier


def describe_size_fault(width: int, height: int) -> str | None:
    """What is wrong with the size of a picture or depth map, in a few words, or None if nothing is."""
    if not (width >= 1 and height >= 1):  # also what is not a number
        return f"{width} x {height} pixels, not positive"
    if width * height > MAX_PICTURE_PIXELS:
        return f"{width} x {height} pixels, more than {MAX_PICTURE_PIXELS // 1_000_000} MP"
    return None


__all__ = [
    "FARTHEST_CAMERA",
    "LARGEST_NUMBER",
    "LONGEST_NAME",
    "MAX_BOXES",
    "MAX_CAMERA_BYTES",
    "MAX_FILE_BYTES",
    "MAX_FRAMES",
    "MAX_JSON_BYTES",
    "MAX_PICTURE_PIXELS",
    "MAX_TRAJECTORY_BYTES",
    "SMALLEST_FOCAL_LENGTH",
    "describe_size_fault",
]
