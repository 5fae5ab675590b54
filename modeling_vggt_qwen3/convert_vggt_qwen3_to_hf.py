# SPDX-License-Identifier: Apache-2.0
"""Makes VGGT-Qwen3 checkpoints.

python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf tiny --output DIR

`tiny` writes a random model of about two million parameters with a tokenizer of its own, small enough to learn the
procedural rooms on a CPU.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import GenerationConfig, Qwen2Tokenizer, Qwen3Config, set_seed

from modeling_vggt_qwen3 import (
    VggtConfig,
    VggtQwen3Config,
    VggtQwen3ForConditionalGeneration,
    VggtQwen3ImageProcessorPil,
    VggtQwen3Processor,
)
from modeling_vggt_qwen3.processing_vggt_qwen3 import CHAT_TEMPLATE


# In the order of Qwen3's vocabulary.
QWEN3_SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()

# What the procedural rooms say. A tokenizer trained on it knows each of their words as one token, with and without
# a space before it.
ROOMS_WORDS = """
bathtub bed bookshelf cabinet chair ladder lamp plant refrigerator sofa table television
bathtubs beds bookshelves cabinets chairs ladders lamps plants refrigerators sofas tables televisions
red orange yellow green cyan blue purple white color object objects image picture room
zero one two three four five many no yes a an and am at are behind beside facing front I in is left look me middle my
next of on right see side sit sitting stand standing the there to
Can Describe How Is What Where Which
assistant system user
""".split()
ROOMS_TEXT = [f"{word} {word}?" for word in ROOMS_WORDS] + ["What is on my left, behind me. 1 2 3 4 5\n"]


def create_tiny_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of Qwen2's class, trained on `ROOMS_TEXT`, with Qwen3's special tokens."""
    trained = Qwen2Tokenizer().train_new_from_iterator(
        ROOMS_TEXT, vocab_size=4096, min_frequency=1, show_progress=False
    )
    bpe = json.loads(trained.backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=QWEN3_SPECIAL_TOKENS,
        padding_side="left",
    )


def create_processor(config: VggtQwen3Config, tokenizer: Qwen2Tokenizer) -> VggtQwen3Processor:
    """The processor that belongs to `config`."""
    return VggtQwen3Processor(
        image_processor=VggtQwen3ImageProcessorPil(
            image_size=config.vision_config.image_size, patch_size=config.vision_config.patch_size
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        projector_type=config.projector_type,
        projector_num_latents=config.projector_num_latents,
        num_depth_bins=config.geometry_num_depth_bins,
    )


def create_tiny_config(
    tokenizer: Qwen2Tokenizer, image_size: int = 84, projector_type: str = "mlp"
) -> VggtQwen3Config:
    """A VGGT-Qwen3 of toy width, with the initial weights that so narrow a network learns fastest from."""
    vision_config = VggtConfig(
        image_size=image_size,
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=2,
        backbone_num_hidden_layers=2,
        num_register_tokens=2,
        layer_scale_init_value=1.0,
        initializer_range=0.06,
    )
    text_config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return VggtQwen3Config(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        geometry_token_id=tokenizer.convert_tokens_to_ids("<|vision_pad|>"),
        vision_feature_layers=[0, 1],
        projector_type=projector_type,
        projector_hidden_size=256,
        projector_num_latents=32,
        projector_num_attention_heads=4,
        projector_mlp_ratio=2,
        geometry_hidden_size=64,
        initializer_range=0.06,
    )


def save_checkpoint(model: VggtQwen3ForConditionalGeneration, processor: VggtQwen3Processor, output: Path):
    """Writes model, processor and remote code to a temporary sibling of `output`, then moves it there."""
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} exists and is not empty.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        temporary.chmod(0o755)
        if output.exists():
            output.rmdir()
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def convert_tiny(output: Path, image_size: int, projector_type: str, seed: int):
    """Writes the random tiny checkpoint to `output`."""
    set_seed(seed)
    tokenizer = create_tiny_tokenizer()
    config = create_tiny_config(tokenizer, image_size, projector_type)
    model = VggtQwen3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32
    )
    save_checkpoint(model, create_processor(config, tokenizer), output)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"Wrote a random model of {num_parameters:,} parameters to {output}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = commands.add_parser("tiny", help="a random tiny checkpoint for the procedural rooms")
    tiny.add_argument("--output", type=Path, required=True)
    tiny.add_argument("--image-size", type=int, default=84, help="side of a view in pixels, a multiple of 14")
    tiny.add_argument("--projector-type", choices=("mlp", "perceiver"), default="mlp")
    tiny.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        convert_tiny(arguments.output, arguments.image_size, arguments.projector_type, arguments.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
