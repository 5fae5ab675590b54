# SPDX-License-Identifier: Apache-2.0
"""A validation part for data that have none."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from .annotations import Annotations, SceneInput


def split_validation(
    annotations: Annotations, share: float, is_there: Callable[[SceneInput], bool] = lambda scene: True
) -> Annotations:
    """Moves about `share` of the scenes of `train` that are there, with all their questions, to a split `val`.

    Which ones depends on nothing but their names, and of these on the file's name without folder and ending: a picture of
    COCO is on the same side in LLaVA-Instruct (`000000000009.jpg`) and in ShareGPT4V (`coco/train2017/000000000009.jpg`).
    Data with a split `val`, or with so few scenes that none is held out or none is left, stay as they are; a note says so.
    """
    scenes = annotations.scenes.get("train", [])
    there = [scene for scene in scenes if is_there(scene)]
    held_out = {scene.scene_id for scene in there if place_of(scene.scene_id) < share}
    reason = None
    if "val" in annotations.scenes:
        reason = "there is a split val"
    elif not held_out or len(held_out) == len(there):
        reason = f"of {len(there)} scenes to train on it would take {'all' if held_out else 'none'}"
    if reason is not None:
        return replace(annotations, notes=[*annotations.notes, f"--val-share {share:g} not used: {reason}"])
    train = [scene for scene in scenes if scene.scene_id not in held_out]
    val = [scene for scene in scenes if scene.scene_id in held_out]
    note = f"--val-share {share:g}: {len(val)} of {len(there)} scenes of train are the split val"
    return replace(
        annotations, scenes={**annotations.scenes, "train": train, "val": val}, notes=[*annotations.notes, note]
    )


def place_of(scene_id: str) -> float:
    """A number from 0 to 1 that a scene's name decides; evenly spread over names."""
    name = PurePosixPath(scene_id).stem
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


__all__ = ["place_of", "split_validation"]
