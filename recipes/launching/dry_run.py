# SPDX-License-Identifier: Apache-2.0
"""The text of `recipes.launch --dry-run`: parameters, memory, steps, tokens, operations and hours of a run."""

from recipes.common.tables import format_table

from .accelerate_config import Choice
from .estimate import (
    ASSUMPTIONS,
    Run,
    checkpoint_bytes,
    count_steps,
    mean_row,
    plain_memory,
    step_flops,
    zero_memory,
)
from .resources import USABLE
from .roofline import ATTENTION_SHARE, BANDWIDTH_SHARE, GPUS, HOST_SECONDS, KERNEL_SECONDS, MATRIX_SHARE
from .settings import BatchPlan


def gigabytes(number: float | None) -> str:
    return "unknown" if number is None else f"{number / 1e9:,.1f}"


def report(run: Run, choice: Choice, chosen: str, origin: str, gpu: str, utilisation: float | None) -> str:
    """
    All that can be said of a run before it starts.

    Args:
        chosen: `choice` in words.
        origin: Where the shapes of the model are from.
        gpu: A key of `GPUS`.
        utilisation: Share of the GPU's peak to reckon with, instead of the one that follows from the kernels.
    """
    sections = [
        f"Shapes: {origin}\n\n{parameter_table(run)}",
        f"{chosen}\n{memory_table(run, choice.plan, gpu)}",
        data_text(run, choice.plan),
        cost_text(run, choice, gpu, utilisation),
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
    variants = [("no ZeRO", plain_memory(run, plan))]
    for stage in (2, 3):
        for offload in (False, True):
            variants.append((f"ZeRO-{stage}{', CPU offload' * offload}", zero_memory(run, plan, stage, offload)))
    rows = []
    for name, memory in variants:
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
        total = memory.total if memory.activations is not None else None
        if memory.total > USABLE * GPUS[gpu].memory:
            fits = "no"  # whatever activations take
        else:
            fits = "yes" if total is not None else "unknown"
        rows.append([name, *map(gigabytes, (*parts, total, memory.host)), fits])
    header = ["GB per GPU", "weights", "gradients", "optimizer", "activations", "all", "host", f"fits {gpu}"]
    lines = [format_table(header, rows), ASSUMPTIONS]
    unknown = [path for path in run.settings.dataset_paths if path not in {size.path for size in run.sizes}]
    if not run.peaks:
        lines.append("Activations are unknown: nothing is known of the data.")
    elif unknown:
        lines.append(f"Activations are of the other data: nothing is known of {', '.join(unknown)}.")
    one, final = checkpoint_bytes(run, zero=True)
    lines.append(f"Disk: {gigabytes(one)} GB per checkpoint under ZeRO, {gigabytes(final)} GB for the finished model.")
    return "\n".join(lines)


def data_text(run: Run, plan: BatchPlan) -> str:
    rows = [
        [
            size.path,
            *(
                "unknown" if number is None else f"{number:,.0f}"
                for number in (size.questions, size.scenes, size.packs)
            ),
            f"{size.tokens[0]:.1f}",
            f"{size.labels[0]:.1f}",
        ]
        for size in run.sizes
    ]
    known = {size.path for size in run.sizes}
    rows += [[path, *["unknown"] * 5] for path in run.settings.dataset_paths if path not in known]
    header = ["data", "questions", "scenes", "sequences per epoch", "tokens per question", "of its answer"]
    lines = [format_table(header, rows)]
    lines += [f"{size.path}: {size.origin}" for size in run.sizes]
    lines += [
        f"{path}: not on this machine, and there are no official counts for it"
        for path in run.settings.dataset_paths
        if path not in known
    ]
    steps, per_epoch = count_steps(run, plan)
    if steps is None:
        lines.append("Steps: unknown without all datasets; prepare them, or set --max_steps.")
    else:
        epochs = f", {per_epoch:,} per epoch" if per_epoch else ""
        lines.append(f"Steps: {steps:,}{epochs}")
    if run.row is not None:
        row = run.row
        lines.append(
            f"Sequence: {row.length:,} tokens ({row.visual_tokens} visual, {row.text_tokens} text, {row.labels} of them answers) of "
            f"{row.num_views} views of {row.width}×{row.height} pixels, {row.patch_tokens:,} patches"
        )
    if run.row is not None and steps is not None:
        sequences = steps * plan.global_batch
        questions = sequences * mean_row(run.sizes, run.settings.dataset_weights)[0]
        lines.append(
            f"Tokens: {sequences * row.visual_tokens / 1e6:,.1f} million visual and "
            f"{sequences * row.text_tokens / 1e6:,.1f} million text read by the language model, "
            f"{sequences * row.patch_tokens / 1e6:,.1f} million patches by the encoder; {questions:,.0f} questions"
        )
    return "\n".join(lines)


def cost_text(run: Run, choice: Choice, gpu: str, utilisation: float | None) -> str:
    if run.work is None:
        return "Operations and hours: unknown without data."
    plan, card, time = choice.plan, GPUS[gpu], choice.step
    total, parts = step_flops(run, plan)
    steps, _ = count_steps(run, plan)
    rows = [[name, f"{flops / 1e12:,.1f}", f"{flops / total:.1%}"] for name, flops in parts.items()]
    lines = [format_table(["TFLOP per step", "all GPUs", "share"], rows + [["all", f"{total / 1e12:,.1f}", "100.0%"]])]
    derived = time.flops / (time.seconds * card.peak)
    bound = "the host, which launches kernels" if time.host >= time.seconds else "the GPU"
    rows = [
        ["matrix products", f"{1000 * time.products:,.0f}"],
        ["attention", f"{1000 * time.attention:,.0f}"],
        ["other kernels and optimizer", f"{1000 * time.other:,.0f}"],
        [f"host, meanwhile: {time.kernels:,} kernels", f"{1000 * time.host:,.0f}"],
    ]
    lines += [
        "",
        format_table([f"a step on one {gpu}", "milliseconds"], rows),
        f"A kernel takes as long as its operations at {MATRIX_SHARE:.0%} (matrix products that fill the GPU's "
        f"{card.multiprocessors} multiprocessors) or {ATTENTION_SHARE:.0%} (fused attention) of {card.peak / 1e12:,.0f} "
        f"TFLOP/s (dense bfloat16), its bytes at {BANDWIDTH_SHARE:.0%} of {card.bandwidth / 1e12:.2f} TB/s, or "
        f"{1e6 * KERNEL_SECONDS:.0f} µs, whichever is longest; the host launches one in "
        f"{1e6 * HOST_SECONDS['forward']:.0f} µs, of the backward pass in {1e6 * HOST_SECONDS['backward']:.0f} µs. These "
        "shares and times are typical of PyTorch without torch.compile; the counts are this run's.",
        f"Utilisation: {derived:.0%} of the peak, bounded by {bound}",
    ]
    seconds = time.seconds
    if utilisation is not None:
        seconds = total / (plan.num_processes * card.peak * utilisation)
        lines[-1] += f"; {utilisation:.0%} as given is reckoned with"
    lines.append(f"{plan.num_processes} × {gpu}: {seconds:.2f} seconds per step")
    if steps is not None:
        lines[-1] += f", {steps * total:.3g} FLOP and {steps * seconds / 3600:.2f} hours in all"
    lines.append(
        "Not counted: evaluations, checkpoints, waiting for data, and what GPUs wait for each other (under ZeRO-3 for "
        "weights, too)."
    )
    return "\n".join(lines)


__all__ = ["report"]
