# SPDX-License-Identifier: Apache-2.0
"""The model of a run on the meta device: real modules, with LoRA and freezing as they will be, and no storage."""

import re
from argparse import Namespace
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration
from recipes.runs.arguments import CONFIGS
from recipes.training.precision import cast_trained
from recipes.training.trainer import freeze_and_adapt

from .settings import model_arguments


# VGGT-1B (arXiv 2503.11651) and Qwen3-4B (arXiv 2505.09388, its config.json), with this project's own modules.
RELEASED = CONFIGS / "released" / "vggt-qwen3-4b.json"
HEADS = re.compile(r"\.(camera_head|depth_head)\.")  # float32 whatever the rest is


@dataclass
class Parameters:
    """Numbers of parameters of a part. `copies` are PEFT's frozen originals of modules that train whole."""

    trainable: int = 0
    frozen: int = 0
    copies: int = 0

    def __add__(self, other: "Parameters") -> "Parameters":
        return Parameters(self.trainable + other.trainable, self.frozen + other.frozen, self.copies + other.copies)


def local_config(name: str) -> Path | None:
    """`config.json` of a checkpoint in a folder or in the Hub's cache; None if it is in neither."""
    if (Path(name) / "config.json").is_file():
        return Path(name) / "config.json"
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # not a possible name of a repository
        return None
    return Path(cached) if isinstance(cached, str) else None


def read_shapes(name: str) -> tuple[VggtQwen3Config, str]:
    """
    The configuration to estimate with, and where it is from: the checkpoint `name`, or the released models' shapes.

    Raises:
        ValueError: if the checkpoint's config.json is not one of VGGT-Qwen3.
    """
    path = local_config(name)
    origin = str(path)
    if path is None:
        path, origin = RELEASED, f"the released VGGT-1B and Qwen3-4B, since {name} is not here"
    try:
        return VggtQwen3Config.from_json_file(path), origin
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the configuration of a VGGT-Qwen3 model: {error}") from error


def build_on_meta(config: VggtQwen3Config, settings: Namespace) -> torch.nn.Module:
    """The model that the recipe would train, on the meta device and in its types. Raises ValueError as `freeze_and_adapt`."""
    dtype = config.dtype if config.dtype is not None and (settings.bf16 or settings.fp16) else torch.float32
    arguments = model_arguments(settings)
    if arguments.numbers_from == "head" and not config.anchor_hidden_size:
        config.anchor_hidden_size = arguments.anchor_hidden_size
    if settings.geometry_source is not None:
        config.geometry_source = settings.geometry_source
    # Of those that keep no attention weights one stands for all.
    attention = "eager" if arguments.attn_implementation == "eager" else "sdpa"
    with torch.device("meta"):
        model = VggtQwen3ForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
        model = freeze_and_adapt(model, arguments)
        cast_trained(model, torch.float32)
        for name, parameter in model.named_parameters():
            if HEADS.search(name):
                parameter.data = parameter.data.float()
    return model.train()


def part_of(name: str) -> str:
    """The part of the model that the parameter `name` belongs to, as the table calls it."""
    if "lora_" in name:
        return "language_model: LoRA"
    name = re.sub(r"^(base_model\.model\.)?", "", name).replace("modules_to_save.default.", "")
    name = name.replace("original_module.", "").removeprefix("model.")
    first, _, rest = name.partition(".")
    if first == "vision_model":
        second = rest.partition(".")[0]
        groups = {"frame_blocks": "alternating blocks", "global_blocks": "alternating blocks"}
        groups |= {"camera_token": "alternating blocks", "register_token": "alternating blocks"}
        return f"vision_model: {groups.get(second, second).replace('_', ' ')}"
    if first == "language_model":
        return "language_model: embeddings" if rest.startswith("embed_tokens") else "language_model: layers"
    return first


def count_parameters(model: torch.nn.Module) -> dict[str, Parameters]:
    """Parameters per part. Weights that are tied count once."""
    parts: dict[str, Parameters] = defaultdict(Parameters)
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        if "original_module." in name:
            parts[part_of(name)] += Parameters(copies=count)
        elif parameter.requires_grad:
            parts[part_of(name)] += Parameters(trainable=count)
        else:
            parts[part_of(name)] += Parameters(frozen=count)
    return dict(parts)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def frozen_bytes(model: torch.nn.Module) -> int:
    """Bytes of the parameters that do not train."""
    return sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)


__all__ = [
    "RELEASED",
    "Parameters",
    "build_on_meta",
    "count_parameters",
    "frozen_bytes",
    "local_config",
    "read_shapes",
    "weight_bytes",
]
