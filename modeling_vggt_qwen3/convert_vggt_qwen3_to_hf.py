# SPDX-License-Identifier: Apache-2.0
"""Makes VGGT-Qwen3 checkpoints.

python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf convert \\
    --vggt facebook/VGGT-1B-Commercial --text Qwen/Qwen3-4B-Instruct-2507 --output DIR
python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf tiny --output DIR
python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf resize --checkpoint DIR --projector-num-latents 64 --output DIR

`convert` makes one checkpoint of the released VGGT and a Qwen3: a file or folder of this machine, or a repo of the Hub.
The projector and the geometry encoder are new and random; stage 1 trains them.
`tiny` writes a random model of about two million parameters with a tokenizer of its own, small enough to learn the
procedural rooms on a CPU.
`resize` gives a checkpoint's perceiver another number of tokens, between two stages say.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, Qwen2Tokenizer, Qwen3Config, set_seed
from transformers.dynamic_module_utils import custom_object_save

from modeling_vggt_qwen3 import (
    VggtConfig,
    VggtQwen3Config,
    VggtQwen3ForConditionalGeneration,
    VggtQwen3ImageProcessorPil,
    VggtQwen3Processor,
)
from modeling_vggt_qwen3.chat_template_vggt_qwen3 import CHAT_TEMPLATE
from modeling_vggt_qwen3.conversion.card import VGGT_LICENCES, describe_left_out, find_licence, write_documents
from modeling_vggt_qwen3.conversion.chat_template import choose_chat_template
from modeling_vggt_qwen3.conversion.sources import (
    WeightFiles,
    find_source,
    find_weight_files,
    load_generation_config,
    load_text_config,
    load_tokenizer,
    naming,
    open_safetensors,
    read_json,
)
from modeling_vggt_qwen3.conversion.weights import (
    check_disk,
    infer_vggt_config,
    initialize_new_modules,
    match_text,
    match_vggt,
    plan_dtypes,
    write_weights,
)


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
shelf monitor tv wall walls furniture anchor Anchor Place Put Set Mark Find List Give Tell Show all every box boxes plan layout need
with place from first picture closest farthest largest smallest tallest lowest longest shortest leftmost rightmost second third
fourth action label center extent normal place_anchor list_objects describe_room doors windows tv_monitor
""".split()
ROOMS_TEXT = [f"{word} {word}?" for word in ROOMS_WORDS] + [
    "What is on my left, behind me. 1 2 3 4 5\n",
    # The form of an action, whose marks between words are tokens as well.
    '{"action": "describe_room", "walls": [], "doors": [], "objects": [{"label": "tv_monitor", "center": [-1.20, -0.34, '
    '5.67], "extent": [8.90, 1.23, 4.56], "normal": [0.00, -0.60, 0.80]}, {"label": "bed", "center": [1.20, 0.34, 5.67]}]}',
]


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


def create_processor(
    config: VggtQwen3Config, tokenizer: Qwen2Tokenizer, chat_template: str = CHAT_TEMPLATE
) -> VggtQwen3Processor:
    """The processor that belongs to `config`."""
    return VggtQwen3Processor(
        image_processor=VggtQwen3ImageProcessorPil(
            image_size=config.vision_config.image_size, patch_size=config.vision_config.patch_size
        ),
        tokenizer=tokenizer,
        chat_template=chat_template,
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
        # Nothing trains the heads here, and random ones predict nothing.
        camera_head_num_layers=0,
        depth_head_layers=[],
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
        max_position_embeddings=40960,  # as Qwen3: the longest plan of a room fits
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


def create_sine_embeddings(patches_per_side: int, hidden_size: int) -> torch.Tensor:
    """
    `[patches, hidden_size]` sines and cosines of each patch's row and column, row by row, for the position embeddings to
    start from ("Attention Is All You Need", section 3.5, in two dimensions; a quarter of the width each;
    `hidden_size` is a multiple of 4).
    """
    frequencies = math.pi * 100 ** (-torch.arange(hidden_size // 4) / (hidden_size // 4))
    place = torch.linspace(0, 2, patches_per_side)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def check_output(output: Path):
    """Raises FileExistsError if `output` is a file, or a folder with something in it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not empty.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling of `output` to write to, moved there at the end; nothing is left if the block fails."""
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield temporary
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
    # Beside a random patch embedding random positions of the same range are faint, and shapes are learned late.
    positions = model.model.vision_model.backbone.embeddings.position_embeddings
    vision_config = config.vision_config
    sines = create_sine_embeddings(vision_config.image_size // vision_config.patch_size, vision_config.hidden_size)
    with torch.no_grad():
        positions[0, 1:] = sines  # the first is the class token's
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32
    )
    with new_folder(output) as temporary:
        model.save_pretrained(temporary)
        create_processor(config, tokenizer).save_pretrained(temporary)
        # As of a conversion, but of nothing: whoever publishes what becomes of it can tell.
        manifest = json.dumps({"vggt": None, "text": None, "seed": seed}, indent=2)
        (temporary / "conversion_manifest.json").write_text(manifest + "\n", encoding="utf-8")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"Wrote a random model of {num_parameters:,} parameters to {output}.")


def check_projector_sizes(projector_type: str, sizes: dict[str, int | None]) -> dict[str, int]:
    """Those of the projector's `sizes` that are set; raises ValueError for one that is not positive or that nothing reads."""
    given = {name: size for name, size in sizes.items() if size is not None}
    for name, size in given.items():
        option = f"--{name.replace('_', '-')}"
        if size < 1:
            raise ValueError(f"{option} must be at least 1, got {size}.")
        if projector_type == "mlp" and name != "projector_hidden_size":
            raise ValueError(f"{option} is a size of the perceiver, which --projector-type mlp does not read.")
    return given


def convert_released(
    vggt: str,
    text: str,
    output: Path,
    dtype: str = "bfloat16",
    projector_type: str = "perceiver",
    vision_feature_layers: Sequence[int] = (4, 11, 17, 23),
    depth_head_layers: Sequence[int] = (4, 11, 17, 23),
    rope_theta: float = 100.0,
    seed: int = 0,
    vggt_licence: str | None = None,
    projector_hidden_size: int | None = None,
    projector_num_latents: int | None = None,
    projector_num_hidden_layers: int | None = None,
    projector_num_attention_heads: int | None = None,
    projector_mlp_ratio: int | None = None,
):
    """
    Writes the checkpoint made of the VGGT and the causal language model at two paths or repos to `output`.

    Everything is checked before anything is written: keys, shapes, vocabulary, checksums, disk. Tensors are streamed:
    never more than one shard is in memory.

    Args:
        vggt_licence (`str`, *optional*): Of a VGGT without a card and without the name of its release: `vggt-aup-license`
            (VGGT-1B-Commercial) or `cc-by-nc-4.0` (VGGT-1B); see [`find_licence`].
        projector_hidden_size, projector_num_latents, projector_num_hidden_layers, projector_num_attention_heads,
            projector_mlp_ratio (`int`, *optional*): Sizes of the projector; by default those of [`VggtQwen3Config`].

    Raises:
        OSError: if an input does not exist, `output` does, or the disk is too small.
        ValueError: if an input is damaged, holds code, or is not what it should be; if nothing tells the licence of the VGGT;
            or if the projector cannot have such a size.
    """
    check_output(output)
    sizes = {
        "projector_hidden_size": projector_hidden_size,
        "projector_num_latents": projector_num_latents,
        "projector_num_hidden_layers": projector_num_hidden_layers,
        "projector_num_attention_heads": projector_num_attention_heads,
        "projector_mlp_ratio": projector_mlp_ratio,
    }
    sizes = check_projector_sizes(projector_type, sizes)
    sources = {"vggt": find_source(vggt), "text": find_source(text)}
    licences = {
        "vggt": find_licence(sources["vggt"], "vggt", vggt_licence),
        "text": find_licence(sources["text"], "text"),
    }
    text_config = load_text_config(sources["text"])
    text_config._name_or_path = sources["text"].repo_id or ""  # no path of this machine travels with the checkpoint
    tokenizer = load_tokenizer(sources["text"], text_config.vocab_size)
    chat_template, meaning = choose_chat_template(tokenizer, sources["text"].name)
    tokenizer.chat_template = None  # the processor's takes the place of one for text alone
    generation_config = load_generation_config(sources["text"], text_config)
    weights = {part: WeightFiles(source.path) for part, source in sources.items()}
    with naming(sources["vggt"].path):
        vision_config = infer_vggt_config(weights["vggt"].tensors, depth_head_layers, rope_theta)
    config = VggtQwen3Config(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        geometry_token_id=tokenizer.convert_tokens_to_ids("<|vision_pad|>"),
        vision_feature_layers=list(vision_feature_layers),
        projector_type=projector_type,
        **sizes,
    )
    processor = create_processor(config, tokenizer, chat_template)
    with naming(sources["text"].folder / "config.json"), torch.device("meta"):
        model = VggtQwen3ForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype))
    vggt_part, left_out = match_vggt(weights["vggt"], model)
    text_part = match_text(weights["text"], model)
    dtypes = plan_dtypes(model, getattr(torch, dtype))
    shapes = model.state_dict()
    num_bytes = sum(shapes[name].numel() * dtype.itemsize for name, dtype in dtypes.items())
    check_disk(next(parent for parent in output.absolute().parents if parent.exists()), num_bytes)
    for files in weights.values():
        files.verify_checksums()

    print(
        f"VGGT: {vision_config.num_hidden_layers} pairs of width {vision_config.hidden_size}, "
        f"{vision_config.num_attention_heads} heads, {vision_config.image_size} px, "
        f"{'a' if vision_config.camera_head_num_layers else 'no'} camera head, "
        f"{'a' if vision_config.depth_head_layers else 'no'} depth head."
    )
    print(describe_left_out(left_out))
    print(f"Chat template of {sources['text'].name}: {meaning}.")
    num_parameters = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.model.named_children()
    }
    new_tensors = initialize_new_modules(model, seed)
    new = [
        f"{name} ({count:,})"
        for name, count in num_parameters.items()
        if name not in ("vision_model", "language_model")
    ]
    print(f"New, with random parameters (seed {seed}): {', '.join(new)}.")

    with new_folder(output) as folder:
        write_weights(folder, shapes, dtypes, [vggt_part, text_part], new_tensors)
        config.architectures = [type(model).__name__]
        custom_object_save(model, folder, config=config)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        # A base model's may not name the end of a turn, with which the answers end that are trained.
        ends = generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if tokenizer.eos_token_id not in ends:
            generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
        generation_config.save_pretrained(folder)

        text_folder = sources["text"].folder
        companions = ("config.json", "generation_config.json", *tokenizer.vocab_files_names.values())
        read = {part: files.files for part, files in weights.items()}
        read["text"] += [text_folder / name for name in dict.fromkeys(companions) if (text_folder / name).is_file()]
        write_documents(
            folder,
            title=output.resolve().name,
            sources=sources,
            licences=licences,
            files=read,
            num_parameters=num_parameters,
            left_out=left_out,
            dtype=dtype,
            in_float32=[
                module
                for module in sorted(model._keep_in_fp32_modules_strict)
                if dtype != "float32" and any(module in name.split(".") for name in dtypes)
            ],
            seed=seed,
        )
    for part, licence in licences.items():
        print(f"Licence of {sources[part].name}: {licence.identifier} ({licence.origin}).")
    print(f"Wrote a model of {sum(num_parameters.values()):,} parameters ({num_bytes / 1e9:.2f} GB) to {output}.")


def resize_perceiver(checkpoint: Path, output: Path, projector_num_latents: int, seed: int = 0):
    """
    Writes the checkpoint in the folder `checkpoint` to `output` with another number of latents: the first ones are kept, and
    those that there were not are new and random. Every other tensor and file is copied, folders (`checkpoint-N`) are not.

    Raises:
        OSError: if there is no such checkpoint, or `output` exists.
        ValueError: if it has no perceiver, that many latents already, or the number is not positive.
    """
    check_output(output)
    contents = {name: read_json(checkpoint / name) for name in ("config.json", "processor_config.json")}
    with naming(checkpoint / "config.json"):
        config = VggtQwen3Config.from_dict(contents["config.json"])
    sizes = check_projector_sizes(config.projector_type, {"projector_num_latents": projector_num_latents})
    if config.projector_num_latents == projector_num_latents:
        raise ValueError(f"{checkpoint} has {projector_num_latents} latents already.")
    key = "model.projector.latents"
    files, index = find_weight_files(checkpoint)
    for file in files:
        with open_safetensors(file) as tensors:
            if key in tensors.keys():
                break
    else:
        raise ValueError(f"{checkpoint} has no tensor {key}.")
    tensors = load_file(file)
    before = tensors[key]
    if list(before.shape) != [config.projector_num_latents, config.projector_hidden_size]:
        raise ValueError(
            f"{key} in {file} has shape {list(before.shape)}, which is not what {checkpoint / 'config.json'} says."
        )
    kept = before[:projector_num_latents]
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(projector_num_latents - len(kept), before.shape[1], generator=generator)
    tensors[key] = torch.cat([kept, (new * config.initializer_range).to(before.dtype)])
    with new_folder(output) as folder:
        for path in checkpoint.iterdir():
            if path.is_file() and path != file:
                shutil.copyfile(path, folder / path.name)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content | sizes, indent=2) + "\n", encoding="utf-8")
        if index is not None:
            content = read_json(index)
            added = tensors[key].numel() - before.numel()
            for total, size in (("total_size", before.element_size()), ("total_parameters", 1)):
                if total in content.get("metadata", {}):
                    content["metadata"][total] += added * size
            (folder / index.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(
        f"Wrote {checkpoint} with {projector_num_latents} latents, {len(new)} of them new (seed {seed}), to {output}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="the released VGGT and a Qwen3 as one checkpoint")
    convert.add_argument("--vggt", required=True, help="file, folder or repo of the VGGT")
    convert.add_argument("--text", required=True, help="folder or repo of the language model")
    convert.add_argument("--output", type=Path, required=True)
    convert.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    convert.add_argument("--projector-type", choices=("perceiver", "mlp"), default="perceiver")
    defaults = VggtQwen3Config()
    for name, of in (
        ("hidden-size", "width inside the projector"),
        ("num-latents", "tokens into which the perceiver resamples a scene's views, as the language model sees them"),
        ("num-hidden-layers", "layers of the perceiver"),
        ("num-attention-heads", "attention heads of the perceiver, of which the width is a multiple"),
        ("mlp-ratio", "width of the perceiver's MLPs over its own"),
    ):
        default = getattr(defaults, f"projector_{name.replace('-', '_')}")
        convert.add_argument(f"--projector-{name}", type=int, help=f"{of} (default: {default})")
    convert.add_argument(
        "--vggt-licence",
        choices=VGGT_LICENCES,
        help="of a VGGT whose files do not tell (neither card nor name): that of VGGT-1B-Commercial, or that of VGGT-1B",
    )
    convert.add_argument(
        "--vision-feature-layers",
        type=int,
        nargs="+",
        default=[4, 11, 17, 23],
        help="alternating pairs that the projector reads",
    )
    convert.add_argument(
        "--depth-head-layers",
        type=int,
        nargs="+",
        default=[4, 11, 17, 23],
        help="alternating pairs that the depth head reads; the tensors do not tell",
    )
    convert.add_argument(
        "--rope-theta",
        type=float,
        default=100.0,
        help="base of the rotary embedding's frequencies; the tensors do not tell",
    )
    convert.add_argument("--seed", type=int, default=0, help="of the new modules' random parameters")
    tiny = commands.add_parser("tiny", help="a random tiny checkpoint for the procedural rooms")
    tiny.add_argument("--output", type=Path, required=True)
    tiny.add_argument("--image-size", type=int, default=84, help="side of a view in pixels, a multiple of 14")
    tiny.add_argument("--projector-type", choices=("mlp", "perceiver"), default="mlp")
    tiny.add_argument("--seed", type=int, default=0)
    resize = commands.add_parser("resize", help="another number of the perceiver's tokens for a checkpoint")
    resize.add_argument("--checkpoint", type=Path, required=True, help="folder of a checkpoint with a perceiver")
    resize.add_argument("--projector-num-latents", type=int, required=True)
    resize.add_argument("--output", type=Path, required=True)
    resize.add_argument("--seed", type=int, default=0, help="of the latents that there were not")
    arguments = vars(parser.parse_args())
    command = {"convert": convert_released, "tiny": convert_tiny, "resize": resize_perceiver}[arguments.pop("command")]
    try:
        command(**arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
