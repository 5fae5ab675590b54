# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks measure with: seconds of steps, peak memory, the peak of matrix products, ways of answering."""

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.generation import generate_answers
from recipes.common.scenes import SceneDataset, question_text
from recipes.training.collator import chat_prompt


class StepTimes(TrainerCallback):
    """The time at the end of every optimizer step, when the device is done with it."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())


def synchronize():
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def reset_peak_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float | None:
    """Gigabytes since `reset_peak_memory`: of the GPU, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def matmul_peak(dtype: torch.dtype, device) -> float:
    """Operations per second of the fastest of some matrix products, in about a second."""
    best = 0.0
    for size in (512, 1024, 2048, 4096, 8192):
        left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        synchronize()
        started = time.perf_counter()
        for _ in range(8):
            start = time.perf_counter()
            left @ right
            synchronize()
            end = time.perf_counter()
            best = max(best, 2 * size**3 / (end - start))
            if end - started > 0.5:
                return best
    return best


def ways_of_answering(
    model, processor: VggtQwen3Processor, source: SceneDataset, new_tokens: int, device
) -> dict[str, Callable[[list[int]], None]]:
    """Functions that answer rows of `source.qa` with `new_tokens` tokens: as so many prompts of their own, or with shared prefixes."""
    options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    @torch.no_grad()
    def separately(rows: list[int]):
        scenes = [source.scene_inputs(source.scene_ids.index(source.qa[row]["scene_id"])) for row in rows]
        inputs = processor(
            images=[scene["images"] for scene in scenes],
            text=[chat_prompt(processor, question_text(source.qa[row]), True) for row in rows],
            geometry=[scene["geometry"] for scene in scenes],
            padding=True,
            return_tensors="pt",
        ).to(device)
        output = model.generate(**inputs, **options)
        processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def shared(rows: list[int]):
        list(generate_answers(model, processor, source, rows, max_new_tokens=new_tokens, progress=False,
                              min_new_tokens=new_tokens))  # fmt: skip

    return {"separately": separately, "shared": shared}


__all__ = [
    "StepTimes",
    "matmul_peak",
    "peak_memory",
    "reset_peak_memory",
    "synchronize",
    "ways_of_answering",
]
