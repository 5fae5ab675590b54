# SPDX-License-Identifier: Apache-2.0
"""Asks a model about photos of one room. The first photo is the reference view.

python -m recipes.ask --model DIR photo1.jpg photo2.jpg ... "question" [--save-scene scene.glb] [--save-views views.png]
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.evaluation.scene_export import check_heads, check_outputs, photo_masks, save_scene, save_views
from recipes.training.sft import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("photos", nargs="+", help="photos of the room")
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--image-mode", choices=("crop", "pad"), help="pad takes photos of different shapes; default the checkpoint's"
    )
    parser.add_argument("--save-scene", type=Path, metavar="FILE.glb", help="write the predicted points and cameras")
    parser.add_argument("--save-views", type=Path, metavar="FILE.png", help="write the predicted depth of each photo")
    parser.add_argument(
        "--confidence-percentile", type=float, default=50.0, help="percent of the points, the least sure, to leave out"
    )
    arguments = parser.parse_args()
    try:
        print(ask(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.ask: {error}")


def read_photo(path: str) -> Image.Image:
    """A photo, upright. Raises ValueError naming a file that is missing or is no picture."""
    try:
        with Image.open(path) as photo:
            return ImageOps.exif_transpose(photo)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"Cannot read the photo {path}: {error}") from error


@torch.no_grad()
def ask(arguments: argparse.Namespace) -> str:
    """The greedy answer; writes the files that were asked for."""
    check_outputs(arguments.save_scene, arguments.save_views, arguments.confidence_percentile)
    views = [read_photo(path) for path in arguments.photos]
    processor = VggtQwen3Processor.from_pretrained(arguments.model)
    if arguments.image_mode is not None:
        processor.image_processor.mode = arguments.image_mode
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = load_model(arguments.model, "sdpa").to(device).eval()
    encoder = model.model.vision_model
    check_heads(encoder, arguments.save_scene, arguments.save_views)
    content = [*({"type": "image", "image": view} for view in views), {"type": "text", "text": arguments.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=arguments.max_new_tokens)
    if arguments.save_scene is not None or arguments.save_views is not None:
        geometry = encoder.predict_geometry(inputs["pixel_values"])
        photo_mask = photo_masks(processor.image_processor, views)
        if arguments.save_scene is not None:
            save_scene(
                arguments.save_scene, inputs["pixel_values"], geometry, photo_mask, arguments.confidence_percentile
            )
        if arguments.save_views is not None:
            save_views(arguments.save_views, inputs["pixel_values"], geometry, photo_mask)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
