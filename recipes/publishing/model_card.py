# SPDX-License-Identifier: Apache-2.0
"""The model card: a pure function of what a run, its evaluations and its validation left."""

import shlex
from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from data_scripts.licences import describe_licences
from recipes.evaluation.report import BLIND
from recipes.metrics.three_d_qa.protocols import EM
from recipes.runs.arguments import trains_at_learning_rate

from .citation import bibtex
from .evaluations import Evaluation, eval_results
from .licences import find_base_models, find_parts, licence_of
from .validation import Usage


TEMPLATE = """\
---
{metadata}
---

# {title}

VGGT-Qwen3 answers questions about a room from a handful of photos: [VGGT](https://arxiv.org/abs/2503.11651) turns the
views into geometry-aware tokens, a projector resamples them into the space of [Qwen3](https://arxiv.org/abs/2505.09388), which
answers. {what}

## Use

{usage}

## Intended use and limits

For research on questions about indoor rooms from photos. {limits} Answers are guesses of a language model and can be wrong
while they sound sure; do not use them where a mistake can harm somebody.

## Evaluation

{evaluation}

## Training data

{data}

## Training

{training}

## Licence

{licences}
- The code in this repo: Apache-2.0.

{whole}

## Citation

```bibtex
{citation}
```
"""
# Of a run's settings, those that a reader looks for; run_config.yaml has all.
HYPERPARAMETERS = {
    "model": ("freeze_vision", "freeze_text", "lora_r", "lora_alpha", "lora_dropout"),
    "data": (
        "num_views", "view_dropout", "questions_per_scene", "geometry_source", "image_size", "image_mode", "blind",
        "dataset_weights",
    ),
    "training": (
        "num_train_epochs", "max_steps", "learning_rate", "projector_learning_rate", "vision_learning_rate",
        "muon_learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "bf16",
        "fp16", "seed",
    ),
    "batch": ("global_batch_size",),
}  # fmt: skip


@dataclass(frozen=True)
class CardInputs:
    """
    What a card is written from.

    Attributes:
        title: the repo's name.
        record: `recipes.runs.record.read_record` of the checkpoint.
        evaluations: of these weights; none if it has not been evaluated.
        usage: code that was run; None if it was not.
        last_metrics: Trainer's own of the last evaluation while training, with their names.
        emissions: kg of CO2 equivalents by CodeCarbon, or None.
    """

    title: str
    record: dict
    evaluations: list[Evaluation]
    usage: Usage | None
    last_metrics: dict[str, float]
    emissions: float | None


def model_card(inputs: CardInputs) -> str:
    """
    The README.md of a published checkpoint.

    Raises:
        LicenceConflictError: the licences of what it was made from do not allow publishing it.
    """
    record = inputs.record
    parts = find_parts(record)
    licence, whole = licence_of(parts)
    results = eval_results(inputs.evaluations)
    repos = [dataset["repo_id"] for run in runs(record) for dataset in run["datasets"] if dataset["repo_id"]]
    metadata = ModelCardData(
        **licence,
        language="en",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=find_base_models(record) or None,
        datasets=list(dict.fromkeys(repos)) or None,
        tags=["vggt", "3d", "visual-question-answering"],
        model_name=inputs.title.split("/")[-1],
        eval_results=results or None,
        **({} if inputs.emissions is None else {"co2_eq_emissions": emissions_metadata(inputs)}),
    ).to_yaml()
    from_random = any(run["base"]["conversion"] and not run["base"]["conversion"]["vggt"] for run in runs(record))
    counts = record["parameters"]
    text = TEMPLATE.format(
        metadata=metadata,
        title=inputs.title,
        what=f"This one has {counts['total']:,} parameters."
        + from_random * " All of them were trained from random ones on the data below, and nothing else.",
        limits="It knows only what the data below hold: elsewhere it cannot be expected to work." * from_random
        or "It was tested on no other data than those below.",
        usage=usage_section(inputs.usage),
        evaluation=evaluation_section(inputs.evaluations, inputs.last_metrics),
        data=data_section(record),
        training=training_section(inputs),
        licences="\n".join(
            f"- {part.name}{' (training data)' if part.kind == 'data' else ''}: {licence_text(part.licence)}"
            for part in parts
        )
        or "- Nobody else's weights or data are in this model.",
        whole=whole,
        citation=bibtex(),
    )
    ModelCard(text)  # its metadata must be readable
    return text


def runs(record: dict) -> list[dict]:
    """The records of all stages, first to last."""
    earlier = record["base"]["run"]
    return [*(runs(earlier) if earlier else []), record]


def licence_text(licence) -> str:
    known = describe_licences([licence.identifier])
    name = f"[{licence.identifier}]({licence.link})" if licence.link and known == licence.identifier else known
    return f"{name}{', non-commercial' if licence.non_commercial else ''} ({licence.origin})."


def usage_section(usage: Usage | None) -> str:
    if usage is None:
        return "The code that loads it comes with it: `AutoModelForImageTextToText` and `AutoProcessor`, `trust_remote_code=True`."
    versions = ", ".join(f"{name} {version}" for name, version in usage.versions.items())
    answers = " or ".join(usage.references)
    return (
        f"```python\n{usage.code}```\n\nprints\n\n```\n{usage.printed}\n```\n\n(on a CPU, {versions}). The pictures in "
        f"`examples/` are of a procedural room, and the true answer is: {answers}."
    )


def evaluation_section(evaluations: list[Evaluation], last_metrics: dict[str, float]) -> str:
    if not evaluations:
        lines = [f"`{name}`: {value}" for name, value in last_metrics.items()]
        return "Not evaluated by `recipes.eval` yet. While training, on validation questions: " + (
            ", ".join(lines) + "." if lines else "nothing was measured."
        )
    return "\n\n".join(evaluation_table(evaluation) for evaluation in evaluations)


def evaluation_table(evaluation: Evaluation) -> str:
    """Every metric under every protocol (or of every kind of action), beside the baselines and the paired difference."""
    metrics, baselines = evaluation.metrics, evaluation.baselines
    about = f"{metrics['num_questions']} questions, with bootstrap 95 % intervals."
    if "prompt_style" in metrics:
        # EM@1 differs between papers by how they clean and match answers: docs/evaluation.md.
        about += (
            f" Prompt style `{metrics['prompt_style']}`. Percent; protocols are the ways in use of matching answers, and `{EM}` "
            "is exact match."
        )
    if evaluation.title.startswith("ScanQA") and metrics["split"] == "val":
        about += (
            " The server that scored ScanQA's test splits closed in February 2026, so this is `val`, on which the recipes also "
            "pick the best checkpoint."
        )
    if BLIND in baselines:
        about += " The blind model never saw an image: only what is above its score comes from the pictures."
    else:
        about += " **There is no blind baseline**: how much the questions alone give away is not known."
    lines = []
    for group, metric, value in evaluation.values():
        interval = evaluation.scores[group]["intervals"].get(metric)
        others = [baseline.get(group, {}).get(metric) for baseline in baselines.values()]
        cells = [number_text(value), bounds_text(interval), *map(number_text, others)]
        if BLIND in baselines:
            paired = baselines[BLIND].get(group, {}).get("model minus this", {}).get(metric)
            cells.append(f"{number_text(paired['difference'])} ({bounds_text(paired['interval'])})" if paired else "-")
        lines.append(f"| {group} | {metric} | " + " | ".join(cells) + " |")
    header = ["scored by", "metric", "model", "interval", *baselines]
    header += ["model - blind, paired"] * (BLIND in baselines)
    rule = "|---|---|" + "---:|" * (len(header) - 2)
    title = f"### {evaluation.title}, split `{metrics['split']}`"
    return "\n".join([title, "", about, "", f"| {' | '.join(header)} |", rule, *lines])


def number_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def bounds_text(bounds: list[float | None] | None) -> str:
    return "-" if bounds is None else " .. ".join(map(number_text, bounds))


def data_section(record: dict) -> str:
    lines = []
    for number, run in enumerate(runs(record), start=1):
        split = run["settings"]["data"]["train_split"]
        for dataset in run["datasets"]:
            counts = (dataset["counts"] or {}).get(split, {})
            sizes = " | ".join(str(counts.get(name, "?")) for name in ("scenes", "views", "questions"))
            name = f"[{dataset['repo_id']}](https://huggingface.co/datasets/{dataset['repo_id']})" if dataset["repo_id"] else dataset["title"] or dataset["name"]  # fmt: skip
            licences = describe_licences(dataset["licences"])
            fingerprint = f"`{dataset['fingerprint'][:12]}`" if dataset["fingerprint"] else "?"
            lines.append(f"| {number} | {name} | {split} | {sizes} | {licences} | {fingerprint} |")
    head = "| run | data | split | scenes | views | questions | licence, by its card | fingerprint |\n|---|---|---|---:|---:|---:|---|---|\n"
    return head + "\n".join(lines)


def training_section(inputs: CardInputs) -> str:
    """Command, hyperparameters, hardware, time and versions of every run that led here."""
    sections = []
    everything = runs(inputs.record)
    for number, run in enumerate(everything, start=1):
        settings = run["settings"]
        rows = [
            f"| `{key}` | {settings[kind][key]} |"
            for kind, keys in HYPERPARAMETERS.items()
            for key in keys
            if is_in_force(key, settings[kind], {**settings["model"], **settings["training"]})
        ]
        sessions = run["sessions"]
        seconds = sum(session["seconds"] or 0 for session in sessions)
        interrupted = sum(session["seconds"] is None for session in sessions)
        session = sessions[-1]
        machine, versions = session["machine"], run["versions"]
        devices = machine["accelerators"] or [f"{machine['processor']}, {machine['cores']} cores"]
        hardware = ", ".join(f"{devices.count(device)} x {device}" for device in dict.fromkeys(devices))
        base = run["base"]["name"]
        sections.append(
            f"### Run {number} of {len(everything)}, from `{base}`\n\n"
            f"```bash\naccelerate launch --num_processes {session['processes']} {shlex.join(run['command'])}\n```\n\n"
            f"{run['parameters']['trained']:,} of {run['parameters']['total']:,} parameters trained, in {seconds:.0f} seconds"
            + (f" and {interrupted} interrupted sessions whose time is not known" if interrupted else "")
            + f", with {session['processes']} process(es) on a machine with {hardware}. "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + ".\n\n| setting | value |\n|---|---|\n"
            + "\n".join(rows)
        )
    text = (
        "\n\n".join(sections)
        + "\n\n`run_config.yaml` has all settings of the last run, `run.json` where everything came from"
    )
    text += ", `runs/` its TensorBoard logs."
    if inputs.emissions is not None:
        text += f"\n\nCodeCarbon counted {inputs.emissions} kg of CO2 equivalents (`emissions.csv`)."
    return text


def is_in_force(key: str, settings: dict, every: dict) -> bool:
    """Whether one of `settings` was set, and none of `every` of model and training makes it void."""
    if key.startswith("lora_") and not every["lora_r"]:
        return False
    if key == "freeze_text" and every["lora_r"]:  # LoRA leaves the language model's own weights as they are
        return False
    if key == "learning_rate" and not trains_at_learning_rate(every):
        return False
    return settings.get(key) not in (None, []) and not (key == "max_steps" and settings[key] < 1)


def emissions_metadata(inputs: CardInputs) -> dict:
    machine = inputs.record["sessions"][-1]["machine"]
    hardware = ", ".join(dict.fromkeys(machine["accelerators"])) or machine["processor"]
    grams = inputs.emissions * 1000
    return {"emissions": grams, "source": "CodeCarbon", "training_type": "fine-tuning", "hardware_used": hardware}


__all__ = ["CardInputs", "model_card", "runs"]
