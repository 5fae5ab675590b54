# SPDX-License-Identifier: Apache-2.0
"""Which modules of a partly frozen model are in training mode, and which in eval mode."""

import inspect
from functools import cache
from typing import Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_vggt import VggtModel
from .modeling_vggt_camera_head import VggtCameraHead


@cache
def _kind_of(module_class: type[nn.Module]) -> Literal["checkpointed", "without gradient"] | None:
    """What being frozen means for modules of a class, beside eval mode."""
    if issubclass(module_class, (VggtModel, VggtCameraHead)):
        return "without gradient"  # see `VggtQwen3Model._run_encoder` and `encode_views_and_geometry`
    if issubclass(module_class, GradientCheckpointingLayer):
        # A few language models drop out by the layer's own flag: frozen, theirs stays off, and they keep activations.
        names = inspect.unwrap(module_class.forward).__code__.co_names
        return None if "training" in names else "checkpointed"
    return None


def modes_to_set(model: nn.Module, mode: bool) -> dict[nn.Module, bool]:
    """
    What `model.train(mode)` has to change where modules whose parameters are all frozen stay in eval mode.

    A frozen layer that gradients pass through has, in training, its own flag on and everything in it off: it is by this
    flag that transformers checkpoints activations, while no dropout happens. An encoder without any trainable parameter
    runs without gradients, keeps nothing, and is off as a whole.

    Trainer calls `train()` in every micro-step. What is looked at is what is there, so that parameters frozen since,
    modules replaced and flags set by hand are found; a model of 3,300 modules takes between one and two milliseconds.

    Args:
        model (`nn.Module`): Itself in training mode even if all its parameters are frozen.
        mode (`bool`): True for training.

    Returns:
        `dict[nn.Module, bool]`: the modules whose `training` is not what it should be, with what it should be.
    """
    if not mode:
        return {module: False for module in model.modules() if module.training}
    # Of each module with children and all that is in it: 1 for trainable parameters, 2 for frozen ones, 3 for both.
    modules, parents, contents = [model], [0], [0]
    childless, to_set = [], {}
    for index, module in enumerate(modules):  # grows: parents come before their children
        for child in module._modules.values():
            if child is None:
                continue
            if child._modules:
                modules.append(child)
                parents.append(index)
                contents.append(_content_of(child))
            elif content := _content_of(child):
                contents[index] |= content
                if child.training is not (content != 2):
                    to_set[child] = content != 2
            else:
                childless.append((child, index))  # of no parameters: as the module that it is in
    for index in range(len(modules) - 1, 0, -1):
        contents[parents[index]] |= contents[index]
    if not model.training:
        to_set[model] = True
    frozen, gradient = [False] * len(modules), [True] * len(modules)
    for index in range(1, len(modules)):
        module, parent, wanted = modules[index], parents[index], True
        if frozen[parent] or contents[index] == 2:
            kind = _kind_of(type(module))
            frozen[index], gradient[index] = True, gradient[parent] and kind != "without gradient"
            wanted = kind == "checkpointed" and gradient[index]
        if module.training is not wanted:
            to_set[module] = wanted
    for module, parent in childless:
        if module.training is frozen[parent]:
            to_set[module] = not frozen[parent]
    return to_set


def _content_of(module: nn.Module) -> int:
    """Of a module's own parameters: 1 if some are trainable, 2 if some are frozen, 3 for both, 0 for none."""
    content = 0
    for parameter in module._parameters.values():
        if parameter is not None:
            content |= 1 if parameter.requires_grad else 2
    return content


__all__ = ["modes_to_set"]
