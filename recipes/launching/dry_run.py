# SPDX-License-Identifier: Apache-2.0
"""The text of `recipes.launch --dry-run`: parameters, memory, steps, tokens, operations and hours of a run."""

from recipes.evaluation.report import format_table

from .estimate import (
    ASSUMPTIONS,
    GPUS,
    Run,
    checkpoint_bytes,
    count_steps,
    mean_row,
    plain_memory,
    step_flops,
    zero_memory,
)
from .settings import BatchPlan


def gigabytes(number: float) -> str:
    return f"{number / 1e9:,.1f}"


def report(run: Run, plan: BatchPlan, origin: str, gpu: str, utilisation: float) -> str:
    """
    All that can be said of a run before it starts.

    Args:
        origin: Where the shapes of the model are from.
        gpu: A key of `GPUS`.
        utilisation: Share of the GPU's peak that is reached.
    """
    sections = [
        f"Shapes: {origin}\n\n{parameter_table(run)}",
        memory_table(run, plan, gpu),
        data_text(run, plan),
        cost_text(run, plan, gpu, utilisation),
    ]
    return "\n\n".join(sections)


def parameter_table(run: Run) -> str:
    rows = [
        [name, f"{part.trainable:,}", f"{part.frozen:,}"]
        for name, part in run.parts.items()
        if part.trainable + part.frozen
    ]
    rows.append(["all", f"{run.total.trainable:,}", f"{run.total.frozen:,}"])
    text = format_table(["parameters", "trainable", "frozen"], rows)
    if run.total.copies:
        text += f"\nPEFT keeps {run.total.copies:,} more: the frozen originals of the modules that train whole."
    return text


def memory_table(run: Run, plan: BatchPlan, gpu: str) -> str:
    checkpointing = run.settings.activation_checkpointing or run.settings.gradient_checkpointing
    variants = [("no ZeRO", plain_memory(run, plan))]
    for stage in (2, 3):
        for offload in (False, True):
            variants.append((f"ZeRO-{stage}{', CPU offload' * offload}", zero_memory(run, plan, stage, offload)))
    rows = []
    for name, memory in variants:
        columns = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total, memory.host)
        fits = "yes" if memory.total < GPUS[gpu][1] else "no"
        rows.append([name, *map(gigabytes, columns), fits])
    header = ["GB per GPU", "weights", "gradients", "optimizer", "activations", "all", "host", f"fits {gpu}"]
    lines = [
        f"{plan.num_processes} GPUs × micro-batch {plan.micro_batch} × accumulation {plan.accumulation} = "
        f"{plan.global_batch} sequences per step; activation checkpointing {'on' if checkpointing else 'off'}",
        format_table(header, rows),
        ASSUMPTIONS,
    ]
    if run.largest_work is None:
        lines.append("Activations are left out: nothing is known of the data.")
    one, final = checkpoint_bytes(run, zero=True)
    lines.append(f"Disk: {gigabytes(one)} GB per checkpoint under ZeRO, {gigabytes(final)} GB for the finished model.")
    return "\n".join(lines)


def data_text(run: Run, plan: BatchPlan) -> str:
    rows = [
        [size.path, f"{size.questions:,}", f"{size.scenes:,}", f"{size.packs:,.0f}", f"{size.tokens_per_question:.1f}"]
        for size in run.sizes
    ]
    known = {size.path for size in run.sizes}
    rows += [[path, None, None, None, None] for path in run.settings.dataset_paths if path not in known]
    lines = [format_table(["data", "questions", "scenes", "sequences per epoch", "tokens per question"], rows)]
    lines += [f"{size.path}: {size.origin}" for size in run.sizes]
    lines += [
        f"{path}: not on this machine, and there are no official counts for it"
        for path in run.settings.dataset_paths
        if path not in known
    ]
    steps, per_epoch = count_steps(run, plan)
    if steps is None:
        lines.append("Steps: not known without all datasets; prepare them, or set --max_steps.")
        return "\n".join(lines)
    epochs = f", {per_epoch:,} per epoch" if per_epoch else ""
    lines.append(f"Steps: {steps:,}{epochs}")
    if run.row is not None:
        row, sequences = run.row, steps * plan.global_batch
        questions = sequences * mean_row(run.sizes, run.settings.dataset_weights)[0]
        lines.append(
            f"Sequence: {row.length:,} tokens ({row.visual_tokens} visual, {row.text_tokens} text) of "
            f"{row.num_views} views of {row.width}×{row.height} pixels, {row.patch_tokens:,} patches"
        )
        lines.append(
            f"Tokens: {sequences * row.visual_tokens / 1e6:,.1f} million visual and "
            f"{sequences * row.text_tokens / 1e6:,.1f} million text read by the language model, "
            f"{sequences * row.patch_tokens / 1e6:,.1f} million patches by the encoder; {questions:,.0f} questions"
        )
    return "\n".join(lines)


def cost_text(run: Run, plan: BatchPlan, gpu: str, utilisation: float) -> str:
    if run.work is None:
        return "Operations and hours: not known without data."
    total, parts = step_flops(run, plan)
    steps, _ = count_steps(run, plan)
    peak = GPUS[gpu][0]
    rate = plan.num_processes * peak * utilisation
    rows = [[name, f"{flops / 1e12:,.1f}", f"{flops / total:.1%}"] for name, flops in parts.items()]
    lines = [
        format_table(["TFLOP per step", "all GPUs", "share"], rows + [["all", f"{total / 1e12:,.1f}", "100.0%"]]),
        f"{plan.num_processes} × {gpu} at {utilisation:.0%} of {peak / 1e12:,.0f} TFLOP/s (dense bfloat16): "
        f"{total / rate:.2f} seconds per step",
    ]
    if steps is not None:
        lines[-1] += f", {steps * total:.3g} FLOP and {steps * total / rate / 3600:.2f} hours in all"
    lines.append("Not counted: evaluations, checkpoints, waiting for data, and the anchor head where there is one.")
    return "\n".join(lines)


__all__ = ["report"]
