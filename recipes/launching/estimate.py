# SPDX-License-Identifier: Apache-2.0
"""Memory per GPU and host, size of checkpoints, steps, operations and hours of a run, before it starts."""

from argparse import Namespace
from dataclasses import dataclass

import torch

from modeling_vggt_qwen3 import VggtQwen3Config

from .data_size import DataSize, measure
from .settings import BatchPlan, data_arguments
from .shapes import Parameters, build_on_meta, count_parameters, weight_bytes
from .work import Row, Work, measure_work, plan_row


# Dense bfloat16 peak in operations per second and memory in bytes, from NVIDIA's data sheets (SXM modules).
GPUS = {"B200": (2.25e15, 180e9), "H200": (989e12, 141e9), "H100": (989e12, 80e9), "A100": (312e12, 80e9)}
MASTER_BYTES = 12  # float32 weight, and AdamW's two moments
GRADIENT_BYTES = 2
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's reduce_bucket_size, at most
CONTEXT_BYTES = 2e9  # CUDA, NCCL and cuBLAS workspaces
FRAGMENTATION = 1.1
WORKER_BYTES = 1e9  # of a data loader process
ASSUMPTIONS = f"""\
Assumed: ZeRO with bfloat16 weights and gradients ({GRADIENT_BYTES} bytes each) and float32 AdamW states ({MASTER_BYTES} \
bytes per trainable parameter); under ZeRO-3 up to {LIVE_PARAMETERS / 1e9:.0f}e9 gathered weights; activations as autograd \
keeps them on the meta device, attention weights left out, × {FRAGMENTATION}; {CONTEXT_BYTES / 1e9:.0f} GB for CUDA and \
NCCL. Evaluation and the camera and depth heads' activations are not counted."""


@dataclass
class Memory:
    """Bytes per GPU, and per process in host memory."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    host: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + CONTEXT_BYTES


@dataclass
class Run:
    """What a run is made of; the basis of all estimates."""

    settings: Namespace
    config: VggtQwen3Config
    parts: dict[str, Parameters]
    weight_bytes: int
    sizes: list[DataSize]  # of the datasets that are known
    row: Row | None  # an average one
    largest_row: Row | None
    work: Work | None
    largest_work: Work | None

    @property
    def total(self) -> Parameters:
        return sum(self.parts.values(), Parameters())

    @property
    def num_parameters(self) -> int:
        """Parameters in memory."""
        return self.total.trainable + self.total.frozen + self.total.copies

    def activations(self, micro_batch: int) -> float:
        """Bytes at the end of a forward pass of `micro_batch` of the largest rows."""
        if self.largest_work is None:
            return 0.0
        checkpointed = self.settings.activation_checkpointing or self.settings.gradient_checkpointing
        kept = self.largest_work.kept_checkpointed if checkpointed else self.largest_work.kept
        return micro_batch * kept * FRAGMENTATION


def describe_run(config: VggtQwen3Config, settings: Namespace) -> Run:
    """Builds the model on the meta device and measures a row of every size. Raises ValueError for impossible settings."""
    model = build_on_meta(config, settings)
    sizes = [size for path in settings.dataset_paths if (size := measure(path, settings)) is not None]
    rows, works = [None, None], [None, None]
    if sizes:
        questions, tokens = mean_row(sizes, data_arguments(settings).dataset_weights)
        most, longest = settings.questions_per_scene, max(size.tokens_per_question for size in sizes)
        rows = [
            plan_row(config, settings, sizes[0], questions, tokens, full=False),
            plan_row(config, settings, sizes[0], most, most * longest, full=True),
        ]
        works = [measure_work(model, config, settings, row) for row in rows]
    return Run(
        settings, config, count_parameters(model), weight_bytes(model), sizes, rows[0], rows[1], works[0], works[1]
    )


def mean_row(sizes: list[DataSize], weights: list[float]) -> tuple[float, float]:
    """Questions, and their tokens, of an average packed sequence under the mixing weights."""
    if len(weights) != len(sizes):
        weights = [size.packs for size in sizes]
    shares = [weight / sum(weights) for weight in weights]
    questions = [share * size.questions / size.packs for share, size in zip(shares, sizes, strict=True)]
    tokens = [number * size.tokens_per_question for number, size in zip(questions, sizes, strict=True)]
    return sum(questions), sum(tokens)


def zero_memory(run: Run, plan: BatchPlan, stage: int, offload: bool) -> Memory:
    """Per GPU under ZeRO-2 or ZeRO-3 with `plan`; `offload` keeps optimizer states (and under ZeRO-3 weights) on the host."""
    shards, trainable = plan.num_processes, run.total.trainable
    weights = GRADIENT_BYTES * run.num_parameters
    optimizer = MASTER_BYTES * trainable / shards
    gradients = GRADIENT_BYTES * trainable / shards
    buckets = GRADIENT_BYTES * min(BUCKET_ELEMENTS, trainable)
    host = 0.0
    if offload:
        # Gradients are accumulated beside the states, in float32.
        host += optimizer + 4 * trainable / shards
        optimizer = gradients = 0.0
    if stage == 3:
        live = GRADIENT_BYTES * min(LIVE_PARAMETERS, run.num_parameters)
        host += weights / shards * offload
        weights = live + (0 if offload else weights / shards)
    return Memory(weights, gradients + buckets, optimizer, run.activations(plan.micro_batch), host)


def plain_memory(run: Run, plan: BatchPlan) -> Memory:
    """Per process without ZeRO: weights as loaded, gradients and AdamW's two moments in the weights' type."""
    itemsize = torch.empty(0, dtype=run.config.dtype or torch.float32).itemsize
    gradients = itemsize * run.total.trainable
    return Memory(run.weight_bytes, gradients, 2 * gradients, run.activations(plan.micro_batch), 0.0)


def checkpoint_bytes(run: Run, zero: bool) -> tuple[float, float]:
    """Bytes of a checkpoint to resume from, and of the finished model."""
    # What trains, in float32, and AdamW's two moments of it. DeepSpeed adds its 16-bit weights, and with LoRA there is the
    # adapter beside them.
    states = MASTER_BYTES + (GRADIENT_BYTES * (2 if run.settings.lora_r > 0 else 1) if zero else 0)
    return states * run.total.trainable, run.weight_bytes * (1 - run.total.copies / run.num_parameters)


def count_steps(run: Run, plan: BatchPlan) -> tuple[int | None, int | None]:
    """Optimizer steps of the run, and of an epoch; None where the size of a dataset is not known."""
    per_epoch = None
    if len(run.sizes) == len(run.settings.dataset_paths):
        batches = -(-round(sum(size.packs for size in run.sizes)) // (plan.micro_batch * plan.num_processes))
        per_epoch = -(-batches // plan.accumulation)
    if run.settings.max_steps > 0:
        return run.settings.max_steps, per_epoch
    return None if per_epoch is None else round(per_epoch * run.settings.num_train_epochs), per_epoch


def step_flops(run: Run, plan: BatchPlan) -> tuple[float, dict[str, float]]:
    """Operations of an optimizer step on all GPUs together, and of each part."""
    parts = {
        name: float(plan.global_batch * (run.work.forward[name] + run.work.backward[name]))
        for name in run.work.forward
    }
    if run.settings.activation_checkpointing or run.settings.gradient_checkpointing:
        parts["recomputed by checkpointing"] = float(plan.global_batch * run.work.recomputed_forward)
    return sum(parts.values()), parts


__all__ = [
    "ASSUMPTIONS",
    "GPUS",
    "WORKER_BYTES",
    "Memory",
    "Run",
    "checkpoint_bytes",
    "count_steps",
    "describe_run",
    "mean_row",
    "plain_memory",
    "step_flops",
    "zero_memory",
]
