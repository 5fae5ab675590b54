# SPDX-License-Identifier: Apache-2.0
"""Which numbers are bfloat16, and where that pays.

Under mixed precision (`bf16: true`) products of matrices are bfloat16, and so are frozen weights, as their checkpoint has
them. What trains is float32 under every launcher: a step of a usual learning rate is smaller than the distance of two
neighbouring bfloat16 numbers, and would be lost. Under ZeRO-3 DeepSpeed keeps float32 copies of its own instead.
"""

import torch
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled


def load_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """What weights are loaded in: None, their checkpoint's type, under mixed precision; float32 without."""
    return None if arguments.bf16 or arguments.fp16 else torch.float32


def keep_trained_in_float32(model: torch.nn.Module):
    """Makes all that trains float32, frozen weights staying as they are. Under ZeRO-3 DeepSpeed sees to it."""
    if not is_deepspeed_zero3_enabled():
        cast_trained(model, torch.float32)


def cast_trained(model: torch.nn.Module, dtype: torch.dtype):
    """Brings all that trains to `dtype`, in place: optimizers and ties keep their parameters."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def autocast(arguments: TrainingArguments) -> torch.autocast:
    """What a forward pass outside of training runs in, to be the one that training has."""
    # Under ZeRO-3 all weights are of one type, and nothing is cast.
    enabled = (arguments.bf16 or arguments.fp16) and not is_deepspeed_zero3_enabled()
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    return torch.autocast(arguments.device.type, dtype, enabled=enabled)


def use_autocast_under_zero(arguments: TrainingArguments, config: dict):
    """
    Has DeepSpeed run the forward pass under autocast rather than cast all weights to bfloat16, VGGT's heads among them.

    Args:
        config (`dict`): DeepSpeed's, after accelerate has filled it in; changed in place. Of ZeRO-3, which creates
            weights in their type, it stays as it is.
    """
    if arguments.bf16 and config["zero_optimization"]["stage"] < 3:
        config["bf16"] = {"enabled": False}
        # No gradient is rounded to bfloat16 on its way between the processes either.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


__all__ = ["autocast", "cast_trained", "keep_trained_in_float32", "load_dtype", "use_autocast_under_zero"]
