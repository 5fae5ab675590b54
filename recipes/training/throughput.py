# SPDX-License-Identifier: Apache-2.0
"""What a run reports beside its losses: questions and tokens per second, memory, share of padding."""

import time

import psutil
import torch
from accelerate import Accelerator
from transformers import TrainerCallback


class Throughput(TrainerCallback):
    """
    Counts what is trained on between two logs, over all processes.

    Counting is a few sums on the batch's device that nobody waits for; the host reads them when a loss is logged, which
    it waits for anyway. Time spent in evaluations and with saving is not training time.

    Args:
        pad_token_id (`int`): The token that fills rows up; no text has it.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id
        self.counts = None
        self.start = self.mark = time.perf_counter()
        self.paused = 0.0

    def count(self, batches: list[dict[str, torch.Tensor]]):
        """Adds packed batches that are about to be trained on."""
        for batch in batches:
            tokens, segments = batch["input_ids"], batch["segment_ids"]
            filled = tokens != self.pad_token_id
            # A question begins where the segment changes to one that is neither prefix nor padding.
            begins = torch.nn.functional.pad(segments, (1, 0))[:, :-1] != segments
            questions = (begins & filled & (segments > 0)).sum()
            counts = torch.stack([questions, filled.sum(), torch.full_like(questions, tokens.numel())])
            self.counts = counts if self.counts is None else self.counts + counts

    def measure(self, accelerator: Accelerator) -> dict[str, float]:
        """
        The rates since the last call, of all processes together; every process must call it.

        Returns:
            `questions_per_second`, `tokens_per_second` (without padding), `padding` (share of all tokens) and `memory_gb`
            (peak of the fullest GPU, or resident memory of the largest process); empty if nothing was counted.
        """
        now = time.perf_counter()
        seconds = now - self.start - self.paused
        self.start, self.mark, self.paused = now, now, 0.0
        if self.counts is None:
            return {}
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = psutil.Process().memory_info().rss
        row = torch.cat([self.counts, self.counts.new_tensor([memory])])[None].to(accelerator.device)
        self.counts = None
        rows = accelerator.gather(row).cpu().double()
        questions, filled, tokens = rows[:, :3].sum(dim=0).tolist()
        return {
            "questions_per_second": questions / seconds,
            "tokens_per_second": filled / seconds,
            "padding": 1 - filled / tokens,
            "memory_gb": rows[:, 3].max().item() / 1e9,
        }

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.mark = time.perf_counter()
        self.paused, self.counts = 0.0, None

    def on_step_end(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    def pause_ends(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.paused += now - self.mark
        self.mark = now

    on_evaluate = on_save = pause_ends


__all__ = ["Throughput"]
