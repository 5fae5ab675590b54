# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed ZeRO: its settings checked against the recipe's, its checkpoints read by parameter.

A ZeRO checkpoint is cut by the number of processes that wrote it; DeepSpeed itself loads it on as many, and with
pickle. Here each parameter and its optimizer state is put together from the pieces (with `weights_only`), for
`recipes.export`, and to be cut anew for any number of processes and either stage when a run is resumed. The layout of
the files is that of DeepSpeed 0.19 (`runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`):
- stage 1 and 2: the parameters of an optimizer group laid end to end, that line cut in equal parts, one per process,
  the last one padded;
- stage 3: each parameter cut in equal parts, the last one padded; a process holds its parts of a group end to end.
"""

import copy
import math
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig


def known_classes() -> list[type]:
    """What DeepSpeed's files hold beside tensors and plain values."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def check_deepspeed_config(arguments: TrainingArguments):
    """
    Compares DeepSpeed's settings with the recipe's.

    Raises:
        ValueError: naming both values of each setting that the two give differently.
    """
    if arguments.deepspeed_plugin is None:
        return
    config = HfTrainerDeepSpeedConfig(copy.deepcopy(arguments.deepspeed_plugin.deepspeed_config))
    config.trainer_config_process(arguments)
    arguments.deepspeed_plugin.set_deepspeed_weakref()  # making a config made it the one in force
    if config.mismatches:
        raise ValueError(
            "The DeepSpeed config (ds) and the recipe's arguments (hf) disagree: "
            + "; ".join(mismatch.removeprefix("- ") for mismatch in config.mismatches)
            + '. Write "auto" in the DeepSpeed config: the recipe decides.'
        )


class ZeroCheckpoint:
    """
    The trained parameters of a checkpoint of ZeRO stage 1, 2 or 3, and their optimizer states, read when asked for.

    Args:
        folder (`Path`): `checkpoint-N`.

    Raises:
        ValueError: if files are missing or not of a layout that can be put together.
    """

    def __init__(self, folder: Path):
        tag = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        optimizer_files = sorted(tag.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=rank_of)
        model_file = next(iter(sorted(tag.glob("*mp_rank_00_model_states.pt"), key=rank_of)), None)
        if model_file is None or not optimizer_files:
            raise ValueError(f"{tag} holds no ZeRO checkpoint.")
        self.model = _load(model_file)
        self.world_size = self.model["dp_world_size"]
        if [rank_of(file) for file in optimizer_files] != list(range(self.world_size)):
            raise ValueError(f"{tag} holds {len(optimizer_files)} optimizer files of {self.world_size} processes.")
        ranks = [_load(file)["optimizer_state_dict"] for file in optimizer_files]
        self.stage = int(ranks[0]["zero_stage"])
        if any(any(padding) for padding in ranks[0].get("param_alignment_paddings") or []):
            raise ValueError(f"{tag} was written with zero_optimization.parameter_alignment, which is not supported.")
        master, optimizer = (
            ("fp32_flat_groups", "optimizer_state_dict")
            if self.stage == 3
            else ("single_partition_of_fp32_groups", "base_optimizer_state")
        )
        self.param_groups = ranks[0][optimizer]["param_groups"]
        self.step = ranks[0][optimizer]["state"][0]["step"]
        first = ranks[0][optimizer]["state"][0]
        self.state_keys = [key for key, value in first.items() if torch.is_tensor(value) and value.ndim == 1]
        # Per group: the flat parts of the ranks, by what they hold.
        self.groups = []
        for group in range(len(self.model["param_shapes"])):
            states = [rank[optimizer]["state"][group] for rank in ranks]
            parts = {"fp32": [rank[master][group] for rank in ranks]}
            self.groups.append(parts | {key: [state[key] for state in states] for key in self.state_keys})
        # name -> (group, where it begins in its group: among whole parameters, or among one rank's parts, shape)
        self.places = {}
        for group, shapes in enumerate(self.model["param_shapes"]):
            begin = 0
            for name, shape in shapes.items():
                self.places[name] = (group, begin, shape)
                numel = math.prod(shape)
                begin += math.ceil(numel / self.world_size) if self.stage == 3 else numel

    def tensor(self, name: str, key: str = "fp32") -> torch.Tensor:
        """The parameter `name` in float32, or its optimizer state `key`, whole and in the parameter's shape."""
        group, begin, shape = self.places[name]
        parts, numel = self.groups[group][key], math.prod(shape)
        if self.stage == 3:
            length = math.ceil(numel / self.world_size)
            pieces = [part[begin : begin + length] for part in parts]
        else:
            pieces, offset = [], 0
            for part in parts:
                start, end = max(begin - offset, 0), min(begin + numel - offset, len(part))
                if start < end:
                    pieces.append(part[start:end])
                offset += len(part)
        flat = torch.cat(pieces)
        if len(flat) < numel:
            raise ValueError(f"The ZeRO checkpoint has {len(flat)} of {numel} numbers of {name} ({key}).")
        return flat[:numel].view(shape)


def rank_of(file: Path) -> int:
    """The data-parallel rank in the name of one of DeepSpeed's files; 0 for those that all ranks share."""
    return int(file.name.partition("pp_rank_")[2].partition("_")[0] or 0)


def _load(file: Path) -> dict:
    with torch.serialization.safe_globals(known_classes()):
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


def save_zero_checkpoint(engine, folder: Path):
    """
    Writes DeepSpeed's files of what trains to `folder`: called by all processes.

    Args:
        engine (`deepspeed.DeepSpeedEngine`): With ZeRO of any stage.
    """
    frozen = {
        name
        for name, parameter in engine.module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    module_state_dict = engine.module_state_dict

    def of_what_trains(*arguments, **kwargs):
        # DeepSpeed leaves a tied parameter under its second name: lm_head.weight, 0.8 GB of Qwen3-4B.
        state = module_state_dict(*arguments, **kwargs)
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    engine.module_state_dict = of_what_trains
    try:
        engine.save_checkpoint(str(folder), exclude_frozen_parameters=True)
    finally:
        del engine.module_state_dict


@torch.no_grad()
def load_zero_checkpoint(engine, folder: Path):
    """
    Puts the trained parameters and the optimizer of a ZeRO checkpoint into a DeepSpeed engine of any number of processes.

    What was frozen is left as it is: it is that of the checkpoint which the run started from.

    Args:
        engine (`deepspeed.DeepSpeedEngine`): With ZeRO of any stage.
        folder (`Path`): `checkpoint-N`.

    Raises:
        ValueError: if the engine trains other parameters than the checkpoint has.
    """
    from deepspeed.utils import (
        lazy_init_hp_params_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    checkpoint = ZeroCheckpoint(folder)
    optimizer = engine.optimizer
    trained = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    if trained.keys() != checkpoint.places.keys():
        different = sorted(trained.keys() ^ checkpoint.places.keys())
        raise ValueError(f"{folder} and this run train different parameters: {', '.join(different[:5])}, ...")
    sharded = engine.zero_optimization_stage() == 3
    # The optimizer makes its states in its first step; here they are needed before.
    inner = optimizer.optimizer
    flats = optimizer.fp32_partitioned_groups_flat if sharded else optimizer.single_partition_of_fp32_groups
    for flat in flats:
        state = inner.state[flat]
        for key in checkpoint.state_keys:
            state.setdefault(key, torch.zeros_like(flat))
        # As torch's AdamW and DeepSpeed's for the CPU keep it.
        if isinstance(inner, torch.optim.AdamW):
            on_device = inner.defaults["fused"] or inner.defaults["capturable"]
            state["step"] = torch.tensor(float(checkpoint.step), device=flat.device if on_device else "cpu")
        else:
            state["step"] = int(checkpoint.step)
    for group, saved in zip(inner.param_groups, checkpoint.param_groups, strict=True):
        group["lr"] = saved["lr"]
    if sharded:
        optimizer.checkpoint_event_prologue()  # partitions what is kept whole
        rank = torch.distributed.get_rank()

        def part(tensor, parameter):
            flat, length = tensor.flatten(), parameter.ds_tensor.numel()
            mine = flat[rank * length : (rank + 1) * length]
            return torch.nn.functional.pad(mine, (0, length - len(mine)))

        for name, parameter in trained.items():
            own = part(checkpoint.tensor(name), parameter)
            parameter.ds_tensor.data.copy_(own)
            safe_set_local_fp32_param(parameter, own)
            for key in checkpoint.state_keys:
                safe_set_local_optimizer_state(parameter, part(checkpoint.tensor(name, key), parameter), key)
        optimizer.checkpoint_event_epilogue()
    else:
        for parameters, flat in zip(optimizer.bit16_groups, flats, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, inner.state)
        for name, parameter in trained.items():
            safe_set_full_fp32_param(parameter, checkpoint.tensor(name))
            for key in checkpoint.state_keys:
                safe_set_full_optimizer_state(parameter, checkpoint.tensor(name, key), key)
        optimizer.update_lp_params()
    for key in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, key, checkpoint.model[key])


__all__ = [
    "ZeroCheckpoint",
    "check_deepspeed_config",
    "known_classes",
    "load_zero_checkpoint",
    "rank_of",
    "save_zero_checkpoint",
]
