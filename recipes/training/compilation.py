# SPDX-License-Identifier: Apache-2.0
"""`compile_layers`: torch.compile of the repeated blocks of encoder and language model, in place."""

import logging

import torch
from peft import PeftModel
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersLayer

from modeling_vggt_qwen3.modeling_vggt_layers import VggtBlock


logger = logging.getLogger(__name__)


def check_compile_layers(compile_layers: bool):
    """Raises ValueError under ZeRO-3, which gathers the parameters by hooks inside the layers."""
    if compile_layers and is_deepspeed_zero3_enabled():
        raise ValueError(
            "compile_layers: a layer whose parameters ZeRO-3 gathers one by one cannot be compiled as a whole. Set "
            "compile_layers: false, or use ZeRO-2 or no DeepSpeed."
        )


def compile_layers(model: nn.Module, device: torch.device, **options) -> int:
    """
    Compiles, on anything but a CPU, every block of VGGT and its backbone and every layer of the language model. Layers
    of one kind share their code: what is compiled is a handful of graphs, when they first run. Parameters, their names,
    saving and activation checkpointing stay as they are.

    Args:
        model (`nn.Module`): As it trains, LoRA and all.
        device (`torch.device`): That it will run on. On a CPU nothing is compiled, and a warning says so: it takes minutes,
            and a C++ compiler, for little.
        options: For `torch.compile`.

    Returns:
        `int`: the number of compiled layers.
    """
    if device.type == "cpu":
        logger.warning("compile_layers: nothing is compiled on a CPU")
        return 0
    return compile_in_place(model, **options)


def compile_in_place(model: nn.Module, **options) -> int:
    """As [`compile_layers`], on any device."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    text_layers = list(whole.model.language_model.layers)
    layers = [module for module in whole.modules() if isinstance(module, (VggtBlock, Dinov2WithRegistersLayer))]
    # One limit for all layers: they differ in kind, in what is frozen and in masks, each with fixed and varying lengths.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in layers + text_layers:
        layer.compile(**options)
    for layer in text_layers:
        layer._compiled_call_impl = without_cache(layer, layer._compiled_call_impl)
    return len(layers) + len(text_layers)


def without_cache(layer: nn.Module, compiled):
    """Generation goes uncompiled: a key-value cache knows its layers by number, so each of them would be compiled anew."""

    def call(*args, **kwargs):
        return (compiled if kwargs.get("past_key_values") is None else layer._call_impl)(*args, **kwargs)

    return call


__all__ = ["check_compile_layers", "compile_in_place", "compile_layers"]
