# SPDX-License-Identifier: Apache-2.0
"""Stores what the frozen encoder gives for every scene, so that training and evaluation read it instead of pictures.

python -m recipes.feature_store --model DIR --dataset DIR --split SPLIT [SPLIT ...] --output DIR [--dtype bfloat16]

The same command goes on where an earlier one stopped, replaces what is damaged, and may run several times at once; one
store can hold several datasets and splits. Then: --feature_store DIR for stage1, stage2 and recipes.eval.

View dropout: VGGT mixes the views, so tokens depend on which views it saw. --view-subsets N stores, beside all views,
N random subsets of each scene's views as the encoder sees them: exact, but only N of the subsets that dropout could
draw. Without them the recipes can drop the tokens of whole views (--feature_store_drop_tokens true): any subset, but
not exact, since the tokens that remain have seen the views that are left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.feature_store import DTYPES, StoreEntry, hash_views, store_key
from recipes.common.feature_store_writer import FeatureStoreWriter
from recipes.common.loading import load_model, set_preprocessing
from recipes.common.scenes import SceneDataset
from recipes.runs.disk import saving


# About a gigabyte of 8 views at 448 pixels: an interrupt costs little, and the files are few.
ENTRIES_PER_SHARD = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("--dataset", required=True, nargs="+", help="prepared datasets: folders or Hub repositories")
    parser.add_argument("--split", required=True, nargs="+", help="splits of every dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder of the store")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the stored features")
    parser.add_argument("--num-views", type=int, help="as in the recipe that will read the store")
    parser.add_argument("--image-size", type=int, help="as in the recipe")
    parser.add_argument("--image-mode", choices=("crop", "pad"), help="as in the recipe")
    parser.add_argument("--view-subsets", type=int, default=0, help="random subsets of each scene's views (exact)")
    parser.add_argument(
        "--view-dropout", type=float, help="probability that a subset leaves out a view, as in the recipe"
    )
    arguments = parser.parse_args()
    if (arguments.view_subsets > 0) != (arguments.view_dropout is not None):
        parser.error("--view-subsets and --view-dropout go together")
    if arguments.view_subsets < 0 or not 0 < (arguments.view_dropout or 0.5) < 1:
        parser.error("--view-subsets must not be negative, --view-dropout above 0 and below 1")
    try:
        with saving(arguments.output, lambda: "When there is room, the same command goes on."):
            fill_store(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.feature_store: {error}")


def fill_store(arguments: argparse.Namespace):
    """Writes what is missing of the features of all scenes of `arguments.dataset` and `arguments.split`."""
    state = PartialState()
    processor = VggtQwen3Processor.from_pretrained(arguments.model, trust_remote_code=False)
    set_preprocessing(processor, arguments.image_size, arguments.image_mode)
    sources = [
        SceneDataset(path, split, arguments.num_views, image_processor=processor.image_processor)
        for path in arguments.dataset
        for split in arguments.split
    ]
    model = load_model(arguments.model, "sdpa").model.eval()
    model.vision_model.to(state.device)
    key = store_key(arguments.model, model.config, processor.image_processor)
    writer = FeatureStoreWriter(arguments.output, key, arguments.dtype)

    scene_of, entries = {}, []
    for source in sources:
        for number in range(len(source.scene_ids)):
            for entry in scene_entries(source, number, arguments.view_subsets, arguments.view_dropout):
                if entry.name not in scene_of:  # datasets may share scenes
                    scene_of[entry.name] = (source, number)
                    entries.append(entry)
    groups = [entries[start : start + ENTRIES_PER_SHARD] for start in range(0, len(entries), ENTRIES_PER_SHARD)]
    # Under `accelerate launch` each process begins elsewhere.
    first = len(groups) * state.process_index // state.num_processes

    @torch.inference_mode()
    def encode(entry: StoreEntry) -> dict[str, torch.Tensor]:
        source, number = scene_of[entry.name]
        images = source.scene_inputs(number, keep=list(entry.views))["images"]
        pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"][None]
        rows = pixel_values.shape[-2] // processor.image_processor.patch_size
        pixel_values = pixel_values.to(state.device)  # uncast, as in training and inference
        # Whatever the config's source is: a run may take another with the same store.
        predicted = model.config.vision_config.camera_head_num_layers > 0
        features, cameras = model.encode_scenes(pixel_values, "predicted" if predicted else "none")
        encoded = {"vision_features": features[0].unflatten(1, (rows, -1))}
        return encoded | {"camera_encodings": cameras.pack()[0]} if predicted else encoded

    computed = 0
    written = writer.write(groups[first:] + groups[:first], encode)
    for count in tqdm(written, total=len(groups), desc="shards", disable=not state.is_main_process):
        computed += count
    print(f"{arguments.output}: {len(entries)} entries, of which this process computed {computed}.")


def scene_entries(source: SceneDataset, number: int, num_subsets: int, view_dropout: float | None) -> list[StoreEntry]:
    """All views of a scene, then random subsets of them; the same in every process."""
    pictures = source.pictures(number)
    scene, sizes = hash_views(pictures), source.picture_sizes(number)
    rng = np.random.default_rng(int(scene, 16))
    subsets = [(None, 0, tuple(range(len(pictures))))]
    for draw in range(num_subsets):
        views = tuple(view for view in range(len(pictures)) if view == 0 or rng.random() >= view_dropout)
        subsets.append((view_dropout, draw, views))
    return [
        StoreEntry(
            scene=scene,
            views=views,
            scene_id=source.scene_ids[number],
            source=f"{source.path} split {source.split}",
            view_dropout=dropout,
            draw=draw,
            image_sizes=tuple(sizes[view] for view in views),
            checksums={},
            shard="",
        )
        for dropout, draw, views in subsets
    ]


if __name__ == "__main__":
    main()
