# SPDX-License-Identifier: Apache-2.0
"""Asks a model about photos of one room. The first photo is the reference view.

python -m recipes.ask --model DIR photo1.jpg photo2.jpg ... "question"
"""

import argparse
import sys

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.training.sft import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("photos", nargs="+", help="photos of the room")
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    try:
        views = [read_photo(path) for path in arguments.photos]
        print(ask(arguments.model, views, arguments.question, arguments.max_new_tokens))
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
def ask(path: str, views: list[Image.Image], question: str, max_new_tokens: int) -> str:
    """The greedy answer of the model at `path` to `question` about `views`."""
    processor = VggtQwen3Processor.from_pretrained(path)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = load_model(path, "sdpa").to(device).eval()
    messages = [
        {
            "role": "user",
            "content": [*({"type": "image", "image": view} for view in views), {"type": "text", "text": question}],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
