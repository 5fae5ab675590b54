# SPDX-License-Identifier: Apache-2.0
"""Feature stores: what a frozen encoder gives for the views of scenes, computed once and read instead of pixels.

A store is a folder of
- `store.json`: what its features depend on beside the views (`store_key`), so that a stale store is found out;
- `NAME.safetensors`: shards of memory-mapped features `[V, rows, columns, F]`, and of encoders with a camera
  head the cameras that it predicts;
- `NAME.json`: a shard's index, written after the shard: its size, and per entry the scene, its views and a checksum;
- `verified.json`: which files were found to match their checksums, as they were then (`signature`).

Whoever opens a store reads all of it once, unless `verified.json` says that these very files have been read: neither a
process of a run, nor a data loader's worker, nor the next run reads them again to check them.

Entries are found by the hash of their views' files: a dataset whose pictures, or choice of pictures, have changed does
not find them, and datasets that share scenes share entries.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from .feature_store_shards import StoreEntry, hash_tensor, read_shard, signature, verify


# What of the encoder's configuration its features and the cameras it predicts depend on.
ENCODER_FIELDS = (
    "image_size patch_size hidden_size num_attention_heads num_hidden_layers backbone_num_hidden_layers mlp_ratio "
    "num_register_tokens rope_theta layer_norm_eps backbone_layer_norm_eps image_mean image_std "
    "camera_head_num_layers depth_head_layers"
).split()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def hash_views(views: list[bytes]) -> str:
    """A name for the encoded pictures `views`, in this order."""
    return hashlib.sha256(b"".join(hashlib.sha256(view).digest() for view in views)).hexdigest()[:32]


def hash_encoder(checkpoint: str) -> str:
    """
    A hash of the encoder's weights in the files of `checkpoint` (a folder or a Hub repository).

    From files rather than from a model: under ZeRO-3 no process holds all weights.

    Raises:
        ValueError: if the files hold no encoder.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        folder = Path(snapshot_download(checkpoint, allow_patterns=["*.safetensors"]))
    prefix = "model.vision_model."
    hashes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name.startswith(prefix):
                    tensor = file.get_tensor(name)
                    hashes[name] = f"{tensor.dtype} {list(tensor.shape)} {hash_tensor(tensor)}"
    if not hashes:
        raise ValueError(f"{checkpoint} has no safetensors files with {prefix}* weights.")
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def store_key(checkpoint: str, config, image_processor) -> dict:
    """What the features of given views depend on: the encoder of `checkpoint`, and how pictures are brought to it."""
    vision = config.vision_config
    return {
        "encoder_weights": hash_encoder(checkpoint),
        "encoder_config": json.loads(json.dumps({field: getattr(vision, field) for field in ENCODER_FIELDS})),
        "depth_bins": config.geometry_num_depth_bins,
        "feature_layers": [layer % vision.num_hidden_layers for layer in config.vision_feature_layers],
        # JPEGs are decoded no larger than they are needed; stores of before, made of whole pictures, do not fit.
        "preprocessing": {field: getattr(image_processor, field) for field in ("image_size", "patch_size", "mode")}
        | {"jpegs": "reduced"},
    }


class FeatureStore:
    """
    A store opened for reading.

    Args:
        path (`str`): Its folder.
        key (`dict`): `store_key` of the checkpoint and the preprocessing that its features are read for.

    Raises:
        ValueError: if it is no store, it was made with another encoder or preprocessing, or a shard is missing or is not
            what was written.
    """

    def __init__(self, path: str, key: dict):
        self.path = Path(path)
        made_with = read_store_json(self.path)
        check_key(self.path, made_with, key)
        self.dtype = DTYPES[made_with["dtype"]]
        self.entries: dict[str, StoreEntry] = {}
        self.subsets: dict[tuple[str, float], list[StoreEntry]] = defaultdict(list)
        shards = [read_shard(index) for index in sorted(self.path.glob("shard-*.json"))]
        # Of the files that were verified: what is opened later, in whatever process, has to be one of them.
        self.signatures = verify(self.path, shards)
        for shard in shards:
            for entry in shard["entries"]:
                if entry.view_dropout is None:
                    self.entries[entry.scene] = entry
                else:
                    self.subsets[entry.scene, entry.view_dropout].append(entry)
        for subsets in self.subsets.values():
            subsets.sort(key=lambda entry: entry.draw)
        self.files = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"files": {}}  # open files do not travel to another process

    def find(self, pictures: list[bytes], scene_id: str, source: str) -> StoreEntry:
        """
        The entry of all views of a scene, whose encoded pictures are `pictures`.

        Raises:
            ValueError: if it is not in the store, with what is.
        """
        entry = self.entries.get(hash_views(pictures))
        if entry is not None:
            return entry
        if any(entry.scene_id == scene_id for entry in self.entries.values()):
            reason = f"its entry of this scene was made of other views than these {len(pictures)} pictures"
        else:
            reason = (
                f"it was made of {', '.join(sorted({entry.source for entry in self.entries.values()})) or 'nothing'}"
            )
        raise ValueError(f"The feature store {self.path} does not hold scene {scene_id} of {source}: {reason}.")

    def find_subsets(self, entry: StoreEntry, view_dropout: float) -> list[StoreEntry]:
        """
        The stored subsets of a scene's views that were drawn with `view_dropout`.

        Raises:
            ValueError: if there are none.
        """
        if (entry.scene, view_dropout) not in self.subsets:
            others = sorted({dropout for scene, dropout in self.subsets if scene == entry.scene})
            raise ValueError(
                f"The feature store {self.path} has no subsets of the views of scene {entry.scene_id} that were drawn "
                f"with view_dropout {view_dropout}"
                + (f" (but with {', '.join(map(str, others))})" if others else "")
                + ". Make them with recipes.feature_store --view-subsets, set view_dropout to 0, or accept with "
                "feature_store_drop_tokens that views are dropped after the encoder has mixed them."
            )
        return self.subsets[entry.scene, view_dropout]

    def read(self, entry: StoreEntry) -> dict[str, torch.Tensor]:
        """
        `vision_features [V, rows, columns, F]` of an entry and, of encoders with a camera head, `camera_encodings
        [V, 12 + 9 + bins]`, memory-mapped.

        Raises:
            ValueError: if the shard has been replaced since the store was opened.
        """
        if entry.shard not in self.files:
            if signature(self.path, entry.shard) != self.signatures[entry.shard]:
                raise ValueError(
                    f"{entry.shard}.safetensors of the feature store {self.path} has changed since the store was "
                    "opened. Start again: it is verified anew."
                )
            self.files[entry.shard] = safe_open(self.path / f"{entry.shard}.safetensors", framework="pt")
        return {name: self.files[entry.shard].get_tensor(f"{entry.name}.{name}") for name in entry.checksums}


def read_store_json(path: Path) -> dict:
    try:
        made_with = json.loads((path / "store.json").read_text(encoding="utf-8"))
        return made_with if made_with["dtype"] in DTYPES else {}["dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a feature store (made by recipes.feature_store): {error!r}") from error


def check_key(path: Path, made_with: dict, key: dict):
    """Raises ValueError naming what differs."""
    for name, expected in key.items():
        if made_with.get(name) != expected:
            raise ValueError(
                f"The feature store {path} is stale: it was made with {name} {made_with.get(name)}, not {expected}."
            )


__all__ = ["DTYPES", "FeatureStore", "StoreEntry", "hash_views", "store_key"]
