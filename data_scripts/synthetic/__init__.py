# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms: simple furniture, exact pictures, depth and poses, and questions whose answers are computed.

For trying the whole pipeline out without a licence, a download or a GPU; the raw formats are the official ones.
"""

from .furniture import CATEGORIES, COLORS
from .pipeline import FORMATS, Settings, build_picture, build_scene, generate, scene_name, split_of_scenes


__all__ = [
    "CATEGORIES",
    "COLORS",
    "FORMATS",
    "Settings",
    "build_picture",
    "build_scene",
    "generate",
    "scene_name",
    "split_of_scenes",
]
