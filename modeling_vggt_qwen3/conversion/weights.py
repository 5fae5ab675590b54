# SPDX-License-Identifier: Apache-2.0
"""From released weights to the weights of VGGT-Qwen3: sizes inferred, names matched, tensors streamed."""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from modeling_vggt_qwen3 import VggtConfig, VggtQwen3ForConditionalGeneration, convert_vggt_state_dict
from modeling_vggt_qwen3.conversion.sources import WeightFiles


VGGT_PARTS = ("aggregator.", "camera_head.", "depth_head.")
# Heads of the released VGGT that this project has no use for.
UNUSED_HEADS = ("point_head.", "track_head.")
# In bytes. A shard, and the pages of the inputs it was read from, are in memory at once.
MAX_SHARD_SIZE = 1_000_000_000
# Tokenizer, code and configuration.
OTHER_FILES_SIZE = 100_000_000


def infer_vggt_config(
    state_dict: Mapping[str, torch.Tensor],
    depth_head_layers: Sequence[int] = (4, 11, 17, 23),
    rope_theta: float = 100.0,
) -> VggtConfig:
    """
    The configuration of the VGGT whose tensors these are (upstream names; only the shapes are read).

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): The checkpoint's tensors; meta tensors will do.
        depth_head_layers (`Sequence[int]`): The alternating pairs whose outputs the depth head reads, which no shape
            tells; the released model's by default. Not read where the checkpoint has no depth head.
        rope_theta (`float`): Base of the rotary embedding's frequencies, which no shape tells either.

    Raises:
        ValueError: if a tensor that tells a size is missing, or two sizes contradict each other.
    """

    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in state_dict:
            raise ValueError(f"The checkpoint has no {key}: it is not a VGGT.")
        if state_dict[key].dim() != dimensions:
            raise ValueError(f"{key} must have {dimensions} dimensions, has shape {list(state_dict[key].shape)}.")
        return state_dict[key].shape

    def count(pattern: str) -> int:
        numbers = {int(match[1]) for key in state_dict if (match := re.match(pattern, key))}
        missing = next((number for number in range(len(numbers)) if number not in numbers), None)
        if missing is not None:
            raise ValueError(f"Of the modules {pattern} there are {len(numbers)}, and number {missing} is missing.")
        return len(numbers)

    def divide(key: str, size: int, divisor: int) -> int:
        if not divisor or size % divisor:
            raise ValueError(f"{key} has size {size}, which is no multiple of {divisor}.")
        return size // divisor

    hidden_size = shape("aggregator.camera_token", 4)[-1]
    patch_size = shape("aggregator.patch_embed.patch_embed.proj.weight", 4)[-1]
    num_patches = shape("aggregator.patch_embed.pos_embed", 3)[1] - 1  # without the class token
    if math.isqrt(num_patches) ** 2 != num_patches:
        raise ValueError(f"aggregator.patch_embed.pos_embed has {num_patches} patches, which make no square image.")
    norm, mlp = "aggregator.frame_blocks.0.attn.q_norm.weight", "aggregator.frame_blocks.0.mlp.fc1.weight"
    depth_head = {}
    if count(r"depth_head\.projects\.(\d+)\."):
        levels = range(count(r"depth_head\.projects\.(\d+)\."))
        depth_head = {
            "depth_head_layers": list(depth_head_layers),
            "depth_head_neck_hidden_sizes": [shape(f"depth_head.projects.{n}.weight", 4)[0] for n in levels],
            "depth_head_fusion_hidden_size": shape("depth_head.scratch.layer1_rn.weight", 4)[0],
        }
    return VggtConfig(
        image_size=math.isqrt(num_patches) * patch_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_attention_heads=divide(norm, hidden_size, shape(norm, 1)[0]),
        num_hidden_layers=count(r"aggregator\.(?:frame|global)_blocks\.(\d+)\."),
        backbone_num_hidden_layers=count(r"aggregator\.patch_embed\.blocks\.(\d+)\."),
        mlp_ratio=divide(mlp, shape(mlp, 2)[0], hidden_size),
        num_register_tokens=shape("aggregator.register_token", 4)[2],
        rope_theta=rope_theta,
        camera_head_num_layers=count(r"camera_head\.trunk\.(\d+)\."),
        **(depth_head or {"depth_head_layers": []}),
    )


@dataclass
class Part:
    """
    One part of the model and the files its tensors come from.

    Args:
        weights (`WeightFiles`): The files.
        rename (`Callable`): From one tensor of the files, under its name there, to the model's tensors.
        keys (`dict[str, str]`): Each of the model's names to the key of the files that holds it.
    """

    weights: WeightFiles
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    keys: dict[str, str]


def match_part(
    weights: WeightFiles,
    keys: Sequence[str],
    expected: Mapping[str, torch.Tensor],
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Part:
    """
    Pairs the tensors `keys` of `weights` with those of `expected`, a part of the model's state dict.

    Raises:
        ValueError: naming every unexpected key, every missing name and every wrong shape.
    """
    sources, unexpected, mismatched = {}, [], []
    for key in keys:
        for name, tensor in rename({key: weights.tensors[key]}).items():
            if name not in expected:
                unexpected.append(key)
            elif tensor.shape != expected[name].shape:
                mismatched.append(f"{key} ({list(tensor.shape)} instead of {list(expected[name].shape)})")
            sources[name] = key
    missing = [name for name in expected if name not in sources]
    problems = [
        f"{len(names)} {problem}: {', '.join(names[:100])}{', ...' if len(names) > 100 else ''}"
        for problem, names in (
            ("unexpected", sorted(set(unexpected))),
            ("missing (under this project's names)", missing),
            ("of another shape", sorted(set(mismatched))),
        )
        if names
    ]
    if problems:
        raise ValueError(f"The tensors of {weights.path} do not make the model. {'; '.join(problems)}.")
    return Part(weights, rename, sources)


def match_vggt(weights: WeightFiles, model: VggtQwen3ForConditionalGeneration) -> tuple[Part, dict[str, int]]:
    """
    Pairs the released VGGT's tensors with the encoder's.

    Returns:
        The part, and the heads that are left out with their numbers of tensors.

    Raises:
        ValueError: as [`match_part`].
    """
    left_out = {head.removesuffix("."): sum(key.startswith(head) for key in weights.tensors) for head in UNUSED_HEADS}
    keys = [key for key in weights.tensors if not key.startswith(UNUSED_HEADS)]
    expected = {name: value for name, value in model.state_dict().items() if name.startswith("model.vision_model.")}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ours = {key: value for key, value in tensors.items() if key.startswith(VGGT_PARTS)}
        renamed = {f"model.vision_model.{name}": value for name, value in convert_vggt_state_dict(ours).items()}
        # What has no place in the model keeps its name, under which it is unexpected.
        return renamed | {key: value for key, value in tensors.items() if key not in ours}

    return match_part(weights, keys, expected, rename), {head: count for head, count in left_out.items() if count}


def match_text(weights: WeightFiles, model: VggtQwen3ForConditionalGeneration) -> Part:
    """
    Pairs a causal language model's tensors with those of the language model and its head.

    Raises:
        ValueError: as [`match_part`]; if the model ties its head to the embedding, but the file's head differs.
    """
    causal_lm = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config.text_config)]
    embedding, head = f"{causal_lm.base_model_prefix}.embed_tokens.weight", "lm_head.weight"
    keys = list(weights.tensors)
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith("model.language_model.") or name == head
    }
    if head in model.all_tied_weights_keys:
        del expected[head]
        if head in weights.tensors and embedding in weights.tensors:
            # Qwen3's files hold the tied head too.
            with weights.open() as read:
                if not torch.equal(read(head), read(embedding)):
                    raise ValueError(f"{head} of {weights.path} differs from {embedding}, but the config ties them.")
            keys.remove(head)

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        base = f"{causal_lm.base_model_prefix}."
        return {
            f"model.language_model.{key.removeprefix(base)}" if key.startswith(base) else key: value
            for key, value in tensors.items()
        }

    return match_part(weights, keys, expected, rename)


def initialize_new_modules(model: VggtQwen3ForConditionalGeneration, seed: int) -> dict[str, torch.Tensor]:
    """Random initial values, as training from scratch would start from, of all that is neither VGGT nor language model.

    `model` is on the meta device; the new modules are moved to the CPU. Returns their tensors by name.
    """
    torch.manual_seed(seed)
    children = {f"model.{name}": module for name, module in model.model.named_children()}
    children |= {name: module for name, module in model.named_children() if name not in ("model", "lm_head")}
    tensors = {}
    for name, module in children.items():
        if name not in ("model.vision_model", "model.language_model"):
            module.float().to_empty(device="cpu").apply(model._init_weights)
            tensors |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return tensors


def plan_dtypes(model: VggtQwen3ForConditionalGeneration, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """`dtype` for every tensor that is saved, but float32 where the model keeps float32. Tied weights are left out."""
    in_float32 = set(model._keep_in_fp32_modules_strict or ())
    return {
        name: torch.float32 if in_float32.intersection(name.split(".")) else dtype
        for name in model.state_dict()
        if name not in model.all_tied_weights_keys
    }


def check_disk(folder: Path, num_bytes: int):
    """Raises OSError if `folder` has no room for `num_bytes` of weights and the small files beside them."""
    free = shutil.disk_usage(folder).free
    needed = num_bytes + OTHER_FILES_SIZE
    if free < needed:
        raise OSError(f"{folder} has {free / 1e9:.2f} GB free; the checkpoint needs {needed / 1e9:.2f} GB.")


def write_weights(
    folder: Path,
    shapes: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    parts: Sequence[Part],
    new_tensors: Mapping[str, torch.Tensor],
):
    """
    Writes `model*.safetensors` (and the index of several) one shard after the other; only one is in memory at a time.

    Args:
        folder (`Path`): Where to.
        shapes (`Mapping[str, torch.Tensor]`): The model's state dict, of which only the shapes are read.
        dtypes (`Mapping[str, torch.dtype]`): The names to write, and their dtypes.
        parts (`Sequence[Part]`): Where the converted tensors come from.
        new_tensors (`Mapping[str, torch.Tensor]`): The tensors that come from no file.

    Raises:
        OSError: if a shard cannot be written.
        ValueError: if a tensor holds a value that is not finite in its new dtype.
    """
    planned = {name: torch.empty(shapes[name].shape, dtype=dtype, device="meta") for name, dtype in dtypes.items()}
    split = split_torch_state_dict_into_shards(planned, max_shard_size=MAX_SHARD_SIZE)
    part_of = {name: part for part in parts for name in part.keys}
    for filename, names in split.filename_to_tensors.items():
        tensors = {}
        with ExitStack() as stack:
            # Opened anew for each shard: the pages of the last one are given back.
            read = {id(part): stack.enter_context(part.weights.open()) for part in parts}
            for name in names:
                if name in new_tensors:
                    source, label = new_tensors[name], name
                else:
                    part = part_of[name]
                    key = part.keys[name]
                    source = part.rename({key: read[id(part)](key)})[name]
                    label = f"{key} of {part.weights.path}"
                tensors[name] = torch.empty(source.shape, dtype=dtypes[name]).copy_(source.detach())
                del source
                if not all(bound.isfinite() for bound in tensors[name].aminmax()):
                    raise ValueError(f"{label} holds values that are not finite in {dtypes[name]}.")
        try:
            save_file(tensors, folder / filename, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / filename} cannot be written: {error}") from error
        del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


__all__ = [
    "check_disk",
    "infer_vggt_config",
    "initialize_new_modules",
    "match_text",
    "match_vggt",
    "plan_dtypes",
    "write_weights",
]
