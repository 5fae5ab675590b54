# SPDX-License-Identifier: Apache-2.0
"""What every optimizer step is watched for: losses and gradients that are not finite, and scenes that cannot be read."""

import json
import logging
import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import TrainerCallback

from data_scripts.files import write_atomically

from ..common.scenes import SceneDataset
from ..runs.checkpoints import checkpoints_of
from ..runs.record import record_unreadable
from ..runs.run_config import STOPPED
from .packing import Pack


logger = logging.getLogger(__name__)

NAMED = 8  # sequences in a message; stopped.json has all
UNREADABLE = "unreadable_sequences"


class NonFiniteError(ArithmeticError):
    """
    Ends a training at a step whose loss or gradient is not finite.

    Args:
        step (`int`): The step whose loss or gradient it is.
        made (`bool`): Whether the optimizer has made it; else the weights are those after the one before.
        reason (`str`): What is not finite.
        sequences (`list[dict]`): `repository`, `scene_id` and `question_ids` of the step's sequences on all processes; where
            losses tell, of the micro-batches whose loss is not finite.
    """

    def __init__(self, step: int, made: bool, reason: str, sequences: list[dict]):
        self.step, self.reason, self.sequences = step, reason, sequences
        named = [
            f"{sequence['repository']}, scene {sequence['scene_id']} (questions {', '.join(sequence['question_ids'])})"
            for sequence in sequences[:NAMED]
        ]
        more = f"; {len(sequences) - NAMED} more in {STOPPED}" if len(sequences) > NAMED else ""
        super().__init__(
            f"step {step}: {reason}. The weights are those after step {step if made else step - 1}. It was computed of: "
            f"{'; '.join(named)}{more}"
        )


class StepWatch(TrainerCallback):
    """
    Collects what a step's micro-batches are made of and their losses, and looks at them once, before the optimizer's step,
    on all processes together: that is the one time in a step that the host waits for the device.

    Args:
        sources (`list[SceneDataset]`): What the packs of a batch point into.
        output_dir (`str`): Where the run's record is.
    """

    def __init__(self, sources: list[SceneDataset], output_dir: str):
        self.sources, self.output_dir = sources, output_dir
        self.packs: list[list[Pack]] = []
        self.losses: list[torch.Tensor] = []
        self.left_out: list[tuple[str, str, str]] = []
        # Sequences left out since the run began, on all processes; how many of them a log has; and their scenes.
        self.total, self.logged = 0, 0
        self.scenes: set[tuple[str, str]] = set()

    def begin(self, batches: list[dict]):
        """Takes out of the micro-batches of a step what `collate_named` has put in for this."""
        self.losses = []
        self.packs = [batch.pop("packs", []) for batch in batches]
        self.left_out = [scene for batch in batches for scene in batch.pop("unreadable", [])]

    def check(self, accelerator: Accelerator, grad_norm: torch.Tensor | float | None, step: int):
        """
        Looks at the step `step`, whose losses are in `losses`; every process must call it.

        Args:
            grad_norm: Of all gradients, the same on all processes; None where it tells nothing.

        Raises:
            NonFiniteError: on all processes, if a loss of any, or the norm, is not finite.
        """
        finite = torch.stack(self.losses).isfinite()
        if not torch.is_tensor(grad_norm):
            norm_is_finite = grad_norm is None or math.isfinite(grad_norm)
            bad_norm = torch.full_like(finite[0], not norm_is_finite)
        else:
            bad_norm = ~grad_norm.isfinite()
        left_out = torch.full_like(bad_norm, len(self.left_out), dtype=torch.float32)
        counts = torch.stack([(~finite).sum().float(), bad_norm.float(), left_out])
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts, "sum")
        bad_losses, bad_norms, left_out = counts.tolist()
        if left_out:
            self._count_left_out(accelerator, int(left_out))
        if not bad_losses and not bad_norms:
            return
        micro_batches = [
            packs
            for packs, is_finite in zip(self.packs, finite.tolist(), strict=True)
            if not bad_losses or not is_finite
        ]
        sequences = gather_object([self._describe(pack) for packs in micro_batches for pack in packs])
        reason = "the loss" if bad_losses else "the norm of the gradient"
        # DeepSpeed's step comes with the backward pass; of a norm that is not finite ZeRO makes none.
        made = accelerator.distributed_type == DistributedType.DEEPSPEED and not bad_norms
        raise NonFiniteError(step, made, f"{reason} is not finite", sequences)

    def _describe(self, pack: Pack) -> dict:
        source = self.sources[pack.dataset]
        ids = [row["question_id"] for row in source.questions(pack.questions)] if pack.questions else []
        return {"repository": source.path, "scene_id": source.scene_ids[pack.scene], "question_ids": ids}

    def _count_left_out(self, accelerator: Accelerator, count: int):
        self.total += count
        new = {}
        for path, scene_id, message in gather_object(self.left_out):
            if (path, scene_id) not in self.scenes:
                self.scenes.add((path, scene_id))
                new[path, scene_id] = message
        if new and accelerator.is_main_process:
            for message in new.values():
                logger.warning("Left out, as on_unreadable: skip has it: %s", message)
            record_unreadable(self.output_dir, self.total, list(new.values()))

    def on_train_begin(self, args, state, control, **kwargs):
        # A run that goes on counts from where its checkpoint was.
        self.total = self.logged = max((entry.get(UNREADABLE, 0) for entry in state.log_history), default=0)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and self.total > self.logged:
            control.should_log = True  # so that the checkpoint has it

    on_epoch_end = on_step_end


def exit_stopped(error: NonFiniteError, output_dir: str, program: str):
    """Leaves the word of it in `output_dir` (from the first process), says it in one line and exits with 1."""
    if int(os.environ.get("RANK", 0)) == 0:
        word = {"step": error.step, "reason": error.reason, "sequences": error.sequences}
        word["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(Path(output_dir) / STOPPED, json.dumps(word, indent=2) + "\n")
        last = next(iter(checkpoints_of(Path(output_dir))), None)
        saved = f"{last} is of before" if last else "nothing was saved before"
        print(f"{program}: {error}. {saved}.", file=sys.stderr)
    if dist.is_initialized():
        dist.barrier()  # a launcher ends the others as soon as one has gone
    sys.exit(1)


__all__ = ["UNREADABLE", "NonFiniteError", "StepWatch", "exit_stopped"]
