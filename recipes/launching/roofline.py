# SPDX-License-Identifier: Apache-2.0
"""How long a step takes on a GPU: each kernel as long as its operations or its bytes take, or its launch by the host."""

from dataclasses import dataclass

from .meta_ops import Kernel


@dataclass
class Card:
    """A GPU by its data sheet: dense bfloat16 operations and bytes of memory moved per second, bytes of memory."""

    peak: float
    bandwidth: float
    memory: float
    multiprocessors: int


# From NVIDIA's data sheets (SXM modules).
GPUS = {
    "B200": Card(2.25e15, 8.0e12, 180e9, 148),
    "H200": Card(989e12, 4.8e12, 141e9, 132),
    "H100": Card(989e12, 3.35e12, 80e9, 132),
    "A100": Card(312e12, 2.04e12, 80e9, 108),
}
# What kernels reach of the data sheet: large matrix products, fused attention, and kernels that only move data.
MATRIX_SHARE, ATTENTION_SHARE, BANDWIDTH_SHARE = 0.75, 0.35, 0.8
KERNEL_SECONDS = 3e-6  # that the shortest kernel takes on the GPU
# Until the host has launched a kernel: in Python, and from autograd's graph.
HOST_SECONDS = {"forward": 18e-6, "recomputed": 18e-6, "backward": 8e-6}
OPTIMIZER_BYTES = 32  # AdamW and clipping move per parameter


@dataclass
class StepTime:
    """
    Seconds of an optimizer step of one process.

    Args:
        products, attention, other: On the GPU, of matrix products, of attention, and of what is bounded by memory.
        host: To launch all `kernels`, while the GPU works.
        flops: Operations in it.
    """

    products: float
    attention: float
    other: float
    host: float
    kernels: int
    flops: float

    @property
    def seconds(self) -> float:
        return max(self.products + self.attention + self.other, self.host)


def kernel_seconds(kernel: Kernel, rows: int, card: Card) -> float:
    """Of one kernel on the GPU, for a micro-batch of `rows`."""
    seconds = (rows * kernel.row_bytes + kernel.other_bytes) / (BANDWIDTH_SHARE * card.bandwidth)
    if kernel.flops:
        share = ATTENTION_SHARE
        if kernel.output:
            # A product smaller than the GPU leaves multiprocessors idle, and so does the last wave of a larger one.
            tiles = kernel.tiles(rows)
            waves = -(-tiles // card.multiprocessors)
            share = MATRIX_SHARE * tiles / (waves * card.multiprocessors)
        seconds = max(seconds, rows * kernel.flops / (share * card.peak))
    return max(seconds, KERNEL_SECONDS)


def step_time(
    kernels: list[Kernel], rows: int, accumulation: int, checkpointing: bool, trained: float, card: Card
) -> StepTime:
    """
    Of `accumulation` micro-batches of `rows`.

    Args:
        kernels: Of a micro-step with activation checkpointing; without it those that are run again are left out.
        trained: Parameters that this process updates.
    """
    sums, host, number, flops = {}, 0.0, 0, 0.0
    for kernel in kernels:
        if kernel.phase == "recomputed" and not checkpointing:
            continue
        sums[kernel.kind] = sums.get(kernel.kind, 0.0) + kernel_seconds(kernel, rows, card)
        host += HOST_SECONDS[kernel.phase]
        number += 1
        flops += rows * kernel.flops
    optimizer = OPTIMIZER_BYTES * trained / (BANDWIDTH_SHARE * card.bandwidth)
    return StepTime(
        accumulation * sums.get("matrix products", 0.0),
        accumulation * sums.get("attention", 0.0),
        accumulation * sums.get("other", 0.0) + optimizer,
        accumulation * host,
        accumulation * number,
        accumulation * flops,
    )


__all__ = ["GPUS", "Card", "StepTime", "step_time"]
