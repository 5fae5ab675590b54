# SPDX-License-Identifier: Apache-2.0
"""A validation part for data that have none."""

import hashlib
from dataclasses import replace
from pathlib import PurePosixPath

from .annotations import Annotations


def split_validation(annotations: Annotations, share: float) -> Annotations:
    """Moves about `share` of the scenes of `train`, with all their questions, to a split `val`; at least one.

    Which ones depends on nothing but their names, and of these on the file's name without folder and ending: a picture of
    COCO is on the same side in LLaVA-Instruct (`000000000009.jpg`) and in ShareGPT4V (`coco/train2017/000000000009.jpg`).
    Data with a split `val`, without `train`, or with a single scene stay as they are; a note says so.
    """
    scenes = annotations.scenes.get("train", [])
    places = {scene.scene_id: place_of(scene.scene_id) for scene in scenes}
    distinct = sorted(set(places.values()))
    if "val" in annotations.scenes or len(distinct) < 2:
        why = "there is a split val" if "val" in annotations.scenes else "there are no two scenes to train on"
        return replace(annotations, notes=[*annotations.notes, f"--val-share not used: {why}"])
    limit = min(max(share, distinct[0]), distinct[-2])  # at least one on either side
    held_out = {scene_id for scene_id, place in places.items() if place <= limit}
    train = [scene for scene in scenes if scene.scene_id not in held_out]
    val = [scene for scene in scenes if scene.scene_id in held_out]
    note = f"--val-share {share:g}: {len(val)} of {len(scenes)} scenes of train are the split val"
    return replace(
        annotations, scenes={**annotations.scenes, "train": train, "val": val}, notes=[*annotations.notes, note]
    )


def place_of(scene_id: str) -> float:
    """A number from 0 to 1 that a scene's name decides; evenly spread over names."""
    name = PurePosixPath(scene_id).stem
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


__all__ = ["place_of", "split_validation"]
