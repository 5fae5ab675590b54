# SPDX-License-Identifier: Apache-2.0
"""Memory per GPU and host, size of checkpoints, steps and operations of a run, before it starts."""

import math
from argparse import Namespace
from dataclasses import dataclass

from modeling_vggt_qwen3 import VggtQwen3Config

from .data_size import DataSize, measure
from .roofline import GPUS, Card, StepTime, step_time
from .settings import BatchPlan, data_arguments
from .shapes import Parameters, build_on_meta, count_parameters, frozen_bytes, weight_bytes
from .work import Row, Work, measure_work, plan_row


MOMENT_BYTES = 8  # AdamW's two moments
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's reduce_bucket_size unless less trains
CONTEXT_BYTES = 2e9  # CUDA, NCCL and cuBLAS workspaces
FRAGMENTATION = 1.1
WORKER_BYTES = 1e9  # of a data loader process
LONGEST = 3  # standard deviations that the longest sequence is above the mean
ASSUMPTIONS = f"""\
Assumed: frozen weights as in the checkpoint, VGGT's heads float32; what trains in float32 with its gradients (4 + 4 bytes) \
and AdamW's moments ({MOMENT_BYTES}), and 2 bytes for autocast's copies; between processes DDP's buckets (4). ZeRO-2 divides \
gradients and, with one more float32 copy, states (4 + 12) among the GPUs, and has a bucket; ZeRO-3 has bfloat16 weights and \
gradients (2 + 2), float32 copies and moments (12), all divided, and up to {LIVE_PARAMETERS / 1e9:.0f}e9 gathered weights. \
Activations are the most that is in memory at a time in a step on the meta device, of the longest sequences (mean + \
{LONGEST} standard deviations), × {FRAGMENTATION}; {CONTEXT_BYTES / 1e9:.0f} GB for CUDA and NCCL. Evaluation is not counted."""


@dataclass
class Memory:
    """Bytes per GPU, and per process in host memory. `activations` is None where nothing is known of the data."""

    weights: float
    gradients: float
    optimizer: float
    activations: float | None
    host: float

    @property
    def total(self) -> float:
        """Of what is known."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0.0) + CONTEXT_BYTES


@dataclass
class Run:
    """
    What a run is made of; the basis of all estimates.

    Args:
        sizes: Of the datasets that something is known of.
        row, largest_row: An average sequence and the longest one.
        work: Of the average sequence, with activation checkpointing.
        peaks: Bytes that the longest sequence takes without and with activation checkpointing.
    """

    settings: Namespace
    config: VggtQwen3Config
    parts: dict[str, Parameters]
    weight_bytes: int
    frozen_bytes: int
    sizes: list[DataSize]
    row: Row | None
    largest_row: Row | None
    work: Work | None
    peaks: dict[bool, float]

    @property
    def total(self) -> Parameters:
        return sum(self.parts.values(), Parameters())

    @property
    def num_parameters(self) -> int:
        """Parameters in memory."""
        return self.total.trainable + self.total.frozen + self.total.copies

    @property
    def mixed_precision(self) -> bool:
        return bool(self.settings.bf16 or self.settings.fp16)

    @property
    def bucket(self) -> int:
        """Elements of DeepSpeed's bucket: not more than trains; even, as its collectives ask."""
        return min(BUCKET_ELEMENTS, self.total.trainable + self.total.trainable % 2)

    def activations(self, plan: BatchPlan) -> float | None:
        """The most bytes that a micro-batch of the longest sequences takes at a time."""
        if not self.peaks:
            return None
        kept = plan.micro_batch * self.peaks[plan.activation_checkpointing]
        if chunk := getattr(self.settings, "loss_chunk_size", None):
            # Logits, their logarithmic softmax in float32, and their gradient.
            tokens = min(chunk, plan.micro_batch * self.largest_row.labels)
            kept += tokens * self.config.text_config.vocab_size * (8 if self.mixed_precision else 12)
        return kept * FRAGMENTATION

    def step_time(self, plan: BatchPlan, card: Card, zero: bool = False) -> StepTime | None:
        """Of an optimizer step; `zero` shares the update among the processes. None where nothing is known of the data."""
        if self.work is None:
            return None
        trained = self.total.trainable / (plan.num_processes if zero else 1)
        batch = (plan.micro_batch, plan.accumulation, plan.activation_checkpointing)
        return step_time(self.work.kernels, *batch, trained, card)


def describe_run(config: VggtQwen3Config, settings: Namespace) -> Run:
    """Builds the model on the meta device and measures rows. Raises ValueError for impossible settings."""
    model = build_on_meta(config, settings)
    sizes = [size for path in settings.dataset_paths if (size := measure(path, settings)) is not None]
    row = largest = work = None
    peaks = {}
    if sizes:
        questions, tokens, labels = mean_row(sizes, data_arguments(settings).dataset_weights)
        row = plan_row(config, settings, sizes[0], questions, tokens, labels, full=False)
        largest = plan_row(config, settings, sizes[0], *longest_row(sizes), full=True)
        work = measure_work(model, config, settings, row, True)
        peaks = {
            checkpointing: measure_work(model, config, settings, largest, checkpointing).peak
            for checkpointing in (False, True)
        }
    parts, memory = count_parameters(model), (weight_bytes(model), frozen_bytes(model))
    return Run(settings, config, parts, *memory, sizes, row, largest, work, peaks)


def mean_row(sizes: list[DataSize], weights: list[float]) -> tuple[float, float, float]:
    """Questions, their tokens and their labels, of an average packed sequence under the mixing weights."""
    if len(weights) != len(sizes):
        weights = [size.packs for size in sizes]
    if None in weights:
        weights = [1.0 for _ in sizes]
    shares = [weight / sum(weights) for weight in weights]
    questions = [share * size.questions_per_pack for share, size in zip(shares, sizes, strict=True)]
    tokens = [number * size.tokens[0] for number, size in zip(questions, sizes, strict=True)]
    labels = [number * size.labels[0] for number, size in zip(questions, sizes, strict=True)]
    return sum(questions), sum(tokens), sum(labels)


def longest_row(sizes: list[DataSize]) -> tuple[float, float, float]:
    """Questions, tokens and labels of the longest packed sequence, as lengths spread about their mean."""
    longest = [
        [size.most_questions * mean + LONGEST * spread * math.sqrt(size.most_questions) for mean, spread in lengths]
        for size in sizes
        for lengths in [(size.tokens, size.labels)]
    ]
    tokens, labels = map(max, zip(*longest, strict=True))
    return max(size.most_questions for size in sizes), tokens, labels


def plain_memory(run: Run, plan: BatchPlan) -> Memory:
    """Per process without ZeRO: what trains in float32, its gradients and AdamW's two moments."""
    trainable = run.total.trainable
    weights = run.frozen_bytes + 4 * trainable + 2 * trainable * run.mixed_precision
    gradients = 4 * trainable * (1 if plan.num_processes == 1 else 2)  # and DDP's buckets
    return Memory(weights, gradients, MOMENT_BYTES * trainable, run.activations(plan), 0.0)


def zero_memory(run: Run, plan: BatchPlan, stage: int, offload: bool) -> Memory:
    """Per GPU under ZeRO-2 or ZeRO-3 with `plan`; `offload` keeps optimizer states (and under ZeRO-3 weights) on the host."""
    shards, trainable = plan.num_processes, run.total.trainable
    # Under ZeRO-3 all weights are of one type; otherwise what trains is float32.
    itemsize = 2 if stage == 3 and run.mixed_precision else 4
    optimizer = (4 + MOMENT_BYTES) * trainable / shards
    gradients, bucket = itemsize * trainable / shards, itemsize * run.bucket
    host = 0.0
    if offload:
        # Gradients are accumulated beside the states, in float32.
        host += optimizer + 4 * trainable / shards
        optimizer = gradients = 0.0
    if stage == 3:
        weights = itemsize * run.num_parameters
        live = itemsize * min(LIVE_PARAMETERS, run.num_parameters)
        host += weights / shards * offload
        weights = live + (0 if offload else weights / shards)
    else:
        weights = run.frozen_bytes + 4 * trainable + 2 * trainable * run.mixed_precision
    return Memory(weights, gradients + bucket, optimizer, run.activations(plan), host)


def checkpoint_bytes(run: Run, zero: bool) -> tuple[float, float]:
    """Bytes of a checkpoint to resume from, and of the finished model."""
    # What trains, in float32, and AdamW's two moments of it. DeepSpeed adds its own copy of the weights, and with LoRA there
    # is the adapter beside them.
    states = 4 + MOMENT_BYTES + (4 * (2 if run.settings.lora_r > 0 else 1) if zero else 0)
    return states * run.total.trainable, run.weight_bytes * (1 - run.total.copies / run.num_parameters)


def count_steps(run: Run, plan: BatchPlan) -> tuple[int | None, int | None]:
    """Optimizer steps of the run, and of an epoch; None where the size of a dataset is not known."""
    per_epoch = None
    packs = [size.packs for size in run.sizes]
    if len(packs) == len(run.settings.dataset_paths) and None not in packs:
        batches = -(-round(sum(packs)) // (plan.micro_batch * plan.num_processes))
        per_epoch = -(-batches // plan.accumulation)
    if run.settings.max_steps > 0:
        return run.settings.max_steps, per_epoch
    return None if per_epoch is None else round(per_epoch * run.settings.num_train_epochs), per_epoch


def step_flops(run: Run, plan: BatchPlan) -> tuple[float, dict[str, float]]:
    """Operations of an optimizer step on all GPUs together, and of each part."""
    parts = {name: plan.global_batch * flops for name, flops in run.work.flops("forward", "backward").items()}
    if plan.activation_checkpointing:
        recomputed = sum(run.work.flops("recomputed").values())
        parts["recomputed by checkpointing"] = plan.global_batch * recomputed
    return sum(parts.values()), parts


__all__ = [
    "ASSUMPTIONS",
    "CONTEXT_BYTES",
    "GPUS",
    "WORKER_BYTES",
    "Memory",
    "Run",
    "checkpoint_bytes",
    "count_steps",
    "describe_run",
    "longest_row",
    "mean_row",
    "plain_memory",
    "step_flops",
    "zero_memory",
]
