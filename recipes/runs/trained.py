# SPDX-License-Identifier: Apache-2.0
"""What trains of a model, apart from what is frozen: all that a checkpoint holds beside the base model it belongs to.

At full size stage 1 trains a hundredth of the weights. A checkpoint with LoRA holds the adapter (PEFT's files), one of
DeepSpeed its own pieces, any other `trained.safetensors`: the parameters that train, under their names in the model and in
the type that they train in. All need the base model, which the manifest names, with the hash of its weights.
"""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file

from .record import hash_weights


TRAINED = "trained.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, is not whole or does not fit the run."""


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: torch.nn.Module, folder: Path):
    """Writes the parameters of `model` that train to `folder`."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained_parameters(model).items()}
    save_file(tensors, Path(folder) / TRAINED, metadata={"format": "pt"})


@torch.no_grad()
def load_trained(model: torch.nn.Module, folder: Path):
    """
    Puts what `save_trained` wrote into `model`, whose other parameters stay as they are.

    Raises:
        CheckpointError: if other parameters train, or of other shapes, naming them.
    """
    with safe_open(Path(folder) / TRAINED, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        parameters = trained_parameters(model)
        here = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if here != shapes:
            different = sorted(name for name in {*here, *shapes} if here.get(name) != shapes.get(name))
            raise CheckpointError(
                f"{Path(folder) / TRAINED} and this run train different parameters: "
                + ", ".join(f"{name} {shapes.get(name)} there, {here.get(name)} here" for name in different[:5])
                + (f", and {len(different) - 5} more" if len(different) > 5 else "")
            )
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))


def describe_weights(folder_or_repo: str) -> dict[str, str]:
    """`path` as given and `weights_sha256` of a base model: a folder, or a repo of the Hub that has been downloaded."""
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        folder = Path(snapshot_download(folder_or_repo, allow_patterns=["*.safetensors"], local_files_only=True))
    return {"path": folder_or_repo, "weights_sha256": hash_weights(folder)}


__all__ = ["TRAINED", "CheckpointError", "describe_weights", "load_trained", "save_trained", "trained_parameters"]
