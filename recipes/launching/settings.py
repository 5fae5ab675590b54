# SPDX-License-Identifier: Apache-2.0
"""What a run is asked to be: the recipe's settings, the overrides of debug and safe runs, and how the batch is shared."""

from argparse import Namespace
from dataclasses import dataclass, fields
from pathlib import Path

from recipes.runs.arguments import (
    CONFIGS,
    DataArguments,
    ModelArguments,
    check_attention,
    check_data_arguments,
    check_effects,
    check_loss_heads,
    make_parser,
    yaml_of,
)


# A debug run: enough steps for the loss to fall, two evaluations and two checkpoints.
DEBUG = "--max_steps 100 --logging_steps 5 --eval_strategy steps --eval_steps 50 --save_strategy steps --save_steps 50"
DEBUG = [*DEBUG.split(), "--eval_questions", "32"]


@dataclass
class BatchPlan:
    """`num_processes × micro_batch × accumulation = global_batch` packed sequences per optimizer step."""

    num_processes: int
    micro_batch: int
    accumulation: int
    activation_checkpointing: bool = False

    @property
    def global_batch(self) -> int:
        return self.num_processes * self.micro_batch * self.accumulation

    def argv(self) -> list[str]:
        return [
            "--per_device_train_batch_size",
            str(self.micro_batch),
            "--gradient_accumulation_steps",
            str(self.accumulation),
            "--activation_checkpointing",
            str(self.activation_checkpointing).lower(),
        ]


def default_config(stage: str) -> Path:
    """The YAML that `recipes/<stage>.py` reads unless told otherwise."""
    (config,) = CONFIGS.glob(f"{stage}_*.yaml")
    return config


def read_settings(stage: str, argv: list[str]) -> Namespace:
    """
    Every setting of a recipe by name, as the recipe itself will read them, without making anything of them.

    Raises:
        ValueError: naming the file and the key, as `parse_arguments`. A bad argument exits with status 2.
    """
    parser = make_parser(default_config(stage))
    parser.prog = f"recipes.launch {stage}"
    yaml_argv = yaml_of(argv, parser)
    settings = parser.parse_args(yaml_argv + argv)
    check_data_arguments(data_arguments(settings))
    check_loss_heads(model_arguments(settings))
    check_attention(model_arguments(settings))
    check_effects(vars(settings), argv, yaml_argv)
    return settings


def model_arguments(settings: Namespace) -> ModelArguments:
    return ModelArguments(**{field.name: getattr(settings, field.name) for field in fields(ModelArguments)})


def data_arguments(settings: Namespace) -> DataArguments:
    return DataArguments(**{field.name: getattr(settings, field.name) for field in fields(DataArguments)})


def recipe_argv(stage: str, mode: str, safe: bool, argv: list[str]) -> list[str]:
    """The recipe's command line: what the mode sets, then `argv` over it, then what is not up to `argv`."""
    if mode == "debug":
        argv = [*DEBUG, *argv]
        argv += ["--output_dir", str(Path(read_settings(stage, argv).output_dir) / "debug")]
    if safe:
        argv = [*argv, "--dataloader_num_workers", "0"]
    return argv


def asked_for(argv: list[str], *names: str) -> bool:
    """Whether one of the settings `names` is on a command line; what stands in a YAML file is a default."""
    given = {
        argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in argv if argument.startswith("--")
    }
    return bool(given & {*names, *(f"no_{name}" for name in names)})


def checkpoints_activations(settings: Namespace) -> bool:
    given = settings.activation_checkpointing
    return bool(settings.gradient_checkpointing if given is None else given)


def micro_batches(settings: Namespace, num_processes: int) -> list[int]:
    """
    The micro-batches with which `num_processes` take the global batch exactly, largest first.

    Raises:
        ValueError: if it cannot be shared evenly, naming the numbers of processes that can share it.
    """
    accumulation = settings.gradient_accumulation_steps or 1
    total = settings.global_batch_size or settings.per_device_train_batch_size * accumulation
    if total % num_processes:
        divisors = [number for number in range(1, total + 1) if total % number == 0]
        raise ValueError(
            f"The global batch of {total} sequences cannot be shared by {num_processes} processes. Take "
            f"{', '.join(map(str, divisors))} processes, or set another one with -- --global_batch_size."
        )
    share = total // num_processes
    return [number for number in range(share, 0, -1) if share % number == 0]


def plan_batch(
    settings: Namespace, num_processes: int, largest: int, activation_checkpointing: bool | None = None
) -> BatchPlan:
    """
    Shares the global batch among `num_processes`, in micro-batches of at most `largest` sequences; with activation
    checkpointing as the settings have it, unless told otherwise. Raises ValueError as `micro_batches`.
    """
    fitting = micro_batches(settings, num_processes)
    micro_batch = next(number for number in fitting if number <= largest)
    if activation_checkpointing is None:
        activation_checkpointing = checkpoints_activations(settings)
    return BatchPlan(num_processes, micro_batch, fitting[0] // micro_batch, activation_checkpointing)


__all__ = [
    "BatchPlan",
    "asked_for",
    "data_arguments",
    "default_config",
    "micro_batches",
    "model_arguments",
    "plan_batch",
    "read_settings",
    "recipe_argv",
]
