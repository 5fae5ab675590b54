# SPDX-License-Identifier: Apache-2.0
"""From a training checkpoint to a folder that `from_pretrained` loads.

python -m recipes.export --checkpoint outputs/stage2/checkpoint-500 --output exported [--merge-lora] [--dtype bfloat16]
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file

from data_scripts.files import flush_all
from modeling_vggt_qwen3 import VggtQwen3Processor

from .common.loading import load_model
from .runs.arguments import ModelArguments
from .runs.checkpoints import CheckpointError, check_base
from .runs.disk import saving
from .runs.manifest import check_checkpoint
from .runs.run_config import read_run_config
from .runs.trained import TRAINED
from .runs.zero import ZeroCheckpoint
from .training.sft import load_for_training


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(checkpoint: Path, output: Path, merge_lora: bool = False, dtype: torch.dtype | None = None):
    """
    Writes a model folder (or, for a LoRA checkpoint that is not merged, an adapter folder) with its processor and code.

    Args:
        checkpoint (`Path`): `checkpoint-N` of a run, plain, with LoRA, or of DeepSpeed ZeRO on any number of processes:
            of the latter the float32 weights that the optimizer keeps are taken. What did not train is read from the
            model that the run started from.
        output (`Path`): A folder that does not exist or is empty. It appears when it is whole.
        merge_lora (`bool`): Adds the adapter to the weights of the model that it was trained on.
        dtype (`torch.dtype`, *optional*): Of the weights written; by default of the model that the run started from.
            LoRA is merged in this type.

    Raises:
        ValueError: if the checkpoint is not whole, the model that it was trained on is not what it was, `output` holds
            something, there is no LoRA to merge, or the disk is full.
    """
    check_checkpoint(checkpoint)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists; choose another --output.")
    lora = (checkpoint / "adapter_config.json").exists()
    if merge_lora and not lora:
        raise ValueError(f"{checkpoint} has no LoRA to merge.")
    model = load_trained(checkpoint, lora)
    # An adapter stays as it was trained, in float32, beside a model of 16 bits.
    if dtype is not None or merge_lora or not lora:
        model.to(dtype or model.config.dtype)
    if merge_lora:
        model = model.merge_and_unload()
    model.config.use_cache = True  # training switches it off
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with saving(output):
            model.save_pretrained(partial, max_shard_size="5GB")
            VggtQwen3Processor.from_pretrained(checkpoint, trust_remote_code=False).save_pretrained(partial)
            flush_all(partial)
            if output.exists():
                output.rmdir()
            os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_trained(checkpoint: Path, lora: bool) -> torch.nn.Module:
    """The model of a checkpoint, on the CPU; with LoRA, PEFT's around it."""
    config = read_run_config(checkpoint)
    if config is None:
        raise CheckpointError(f"{checkpoint} does not say which run it is of (no run_config.yaml)")
    zero = ZeroCheckpoint(checkpoint) if (checkpoint / "latest").exists() else None
    plain = (checkpoint / TRAINED).exists()
    geometry_source = config["data"]["geometry_source"]
    if lora or plain or zero is not None:
        # The processor gets the tokens of what a run adds to a model: it is thrown away, the checkpoint's is exported.
        arguments = ModelArguments(**config["model"])
        check_base(checkpoint, arguments.model_name_or_path)
        processor = VggtQwen3Processor.from_pretrained(arguments.model_name_or_path, trust_remote_code=False)
        model = load_for_training(arguments.model_name_or_path, processor, arguments, geometry_source)
    else:  # a whole model, as earlier versions saved it
        model = load_model(str(checkpoint), "sdpa")
    if lora:
        model = PeftModel.from_pretrained(model, checkpoint)
    if plain:
        trained = load_file(checkpoint / TRAINED)
    else:
        trained = {} if zero is None else {name: zero.tensor(name) for name in zero.places}
    parameters = dict(model.named_parameters())
    if unknown := sorted(trained.keys() - parameters.keys()):
        raise CheckpointError(f"{checkpoint} trained what its model does not have: {', '.join(unknown[:5])}")
    for name, tensor in trained.items():
        parameters[name].data = tensor
    return model.eval()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="recipes.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint-N in a run's output directory.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to make.")
    parser.add_argument("--merge-lora", action="store_true", help="Write one model instead of an adapter.")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="Of the weights; by default of the model the run started from."
    )
    arguments = parser.parse_args(argv)
    try:
        export(arguments.checkpoint, arguments.output, arguments.merge_lora, DTYPES.get(arguments.dtype))
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.export: {error}")
    print(f"exported: {arguments.output}")


if __name__ == "__main__":
    main()
