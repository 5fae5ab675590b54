# SPDX-License-Identifier: Apache-2.0
"""From the arguments of `recipes.launch` to a run: the dry run, or all checks and then the child process."""

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from data_scripts.credentials import HUB_TOKEN_VARIABLE, without_credentials
from recipes.runs.preemption import PREEMPTED, REQUEUE_EXIT_CODE

from . import process
from .accelerate_config import Choice, choose, describe_choice, write_config
from .checks import check_data, check_precision, check_versions, check_weights
from .dry_run import report
from .estimate import Run, describe_run
from .output import MAX_CLOCK_DIFFERENCE, check_checkpoints, check_output, clock_difference, lock_output
from .resources import (
    Gpu,
    check_disk,
    check_gpus,
    check_memory,
    check_rendezvous,
    check_writable,
    find_gpus,
)
from .roofline import GPUS
from .settings import plan_batch, read_settings, recipe_argv
from .shapes import local_config, read_shapes


RECIPES = Path(__file__).parent.parent


def dry_run(arguments: Namespace, argv: list[str]) -> str:
    """The text of the dry run. Raises ValueError for settings that no run can have."""
    argv = recipe_argv(arguments.stage, arguments.mode, arguments.safe, argv)
    settings = read_settings(arguments.stage, argv)
    num_processes = 8 * arguments.num_machines if arguments.num_processes == "auto" else arguments.num_processes
    plan_batch(settings, num_processes, 1)  # before the model is built
    config, origin = read_shapes(settings.model_name_or_path)
    run = describe_run(config, settings)
    memory = int(GPUS[arguments.gpu].memory)
    gpus = [Gpu(arguments.gpu, memory, memory)]
    settings.use_cpu = False
    choice, too_large = choose(run, settings, gpus, num_processes, arguments.safe, argv)
    chosen = "\n".join([describe_choice(choice, gpus), *too_large])
    return report(run, choice, chosen, origin, arguments.gpu, arguments.utilisation)


def prepare(
    arguments: Namespace, argv: list[str]
) -> tuple[Namespace, Choice, list[Gpu], Run | None, list[str], list[str], list[str]]:
    """
    All checks. Nothing is written but temporary files.

    Returns:
        Settings, template and batch, GPUs, what the run is made of, the recipe's command line, problems, warnings.

    Raises:
        ValueError: for settings that no run can have; the checks could not go on.
    """
    machines, rank = arguments.num_machines, arguments.machine_rank
    argv = recipe_argv(arguments.stage, arguments.mode, arguments.safe, argv)
    settings = read_settings(arguments.stage, argv)
    problems, warnings = check_versions()
    if any(argument.partition("=")[0] == "--gradient_accumulation_steps" for argument in argv):
        problems.append(
            "Batch: gradient_accumulation_steps follows from the global batch here. Give --global_batch_size instead."
        )
    gpus = []
    if not settings.use_cpu:
        gpus, found = find_gpus()
        problems += found
    num_processes = arguments.num_processes
    if num_processes == "auto":
        num_processes = max(1, len(gpus)) * machines

    problems += check_weights(settings.model_name_or_path) + check_precision(settings)
    data_problems = check_data(settings)
    problems += data_problems
    run = describe(settings, bool(data_problems))
    problems += check_gpus(gpus, settings, num_processes, machines, run)
    problems += check_rendezvous(machines, rank, arguments.main_process_ip, arguments.main_process_port)
    output = Path(settings.output_dir)
    problems += check_writable(output, os.environ)
    try:
        choice, too_large = choose(run, settings, gpus, num_processes, arguments.safe, argv)
    except ValueError as error:
        problems.append(f"Batch: {error}")
        # The output directory is another run's or not, however many processes there are.
        choice = Choice("cpu.yaml", plan_batch(settings, 1, 1), None, False)
    else:
        problems += too_large
    for check in (check_output(settings, choice.plan), check_checkpoints(settings)):
        problems += check[0]
        warnings += check[1]
    if run is not None:
        problems += check_disk(run, output, choice.zero)
        if choice.memory is not None and num_processes % machines == 0:
            problems += check_memory(run, choice.memory, choice.plan, machines, bool(gpus))
    return settings, choice, gpus, run, argv + choice.plan.argv(), problems, warnings


def describe(settings: Namespace, without_data: bool) -> Run | None:
    """The model and the work of a run; None where the checkpoint is not on this machine, or the data cannot be read."""
    if local_config(settings.model_name_or_path) is None or without_data:
        return None
    config, _ = read_shapes(settings.model_name_or_path)
    return describe_run(config, settings)


def launch(arguments: Namespace, argv: list[str]) -> int:
    """
    Checks everything, starts the recipe and waits for it.

    Returns:
        The exit code: the recipe's; `REQUEUE_EXIT_CODE` if it was preempted and will go on when it is launched again.

    Raises:
        ValueError: with all problems, if there are any.
    """
    settings, choice, gpus, run, argv, problems, warnings = prepare(arguments, argv)
    if problems:
        lines = [f"{number}. {problem}" for number, problem in enumerate(problems, start=1)]
        raise ValueError(
            f"{len(problems)} problem{'s' * (len(problems) > 1)}, nothing was started:\n" + "\n".join(lines)
        )
    output = Path(settings.output_dir)
    lock = lock_output(output, arguments.machine_rank)
    difference = clock_difference(output)
    if abs(difference) > MAX_CLOCK_DIFFERENCE:
        ahead = "ahead of" if difference > 0 else "behind"
        warnings.append(
            f"The clock of {output} is {abs(difference):.0f} s {ahead} this machine's. Have the clocks set (NTP): times in "
            "logs cannot be compared, and connections may time out."
        )
    path = write_config(
        choice,
        settings,
        arguments.num_machines,
        arguments.machine_rank,
        arguments.main_process_ip,
        arguments.main_process_port,
        bool(gpus),
        None if run is None else run.bucket,
    )
    script = str(RECIPES / f"{arguments.stage}.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), script, *argv]
    # accelerate prints the command line of a run that fails, and ps shows it to every user of the machine.
    command, environment = without_credentials(command), dict(os.environ)
    if settings.hub_token is not None:
        environment[HUB_TOKEN_VARIABLE] = settings.hub_token
    for warning in warnings:
        print(f"Warning: {warning}")
    print(f"{describe_choice(choice, gpus)}\n$ {shlex.join(command)}", flush=True)
    marker = output / PREEMPTED
    if arguments.machine_rank == 0:
        marker.unlink(missing_ok=True)  # an earlier launch's
    outcome = process.run(command, script, environment)
    lock.close()
    if outcome.code == 0:
        return 0
    # A launcher sends SIGTERM itself to the processes that are left when one has failed: that is no preemption. On
    # several machines the signal may have come to another one.
    if outcome.stopped_early or (marker.is_file() and (outcome.asked_to_stop or arguments.num_machines > 1)):
        print("recipes.launch: preempted; the same command goes on.", file=sys.stderr, flush=True)
        return REQUEUE_EXIT_CODE
    others = " (connection reset or closed: another machine died)" * (arguments.num_machines > 1)
    print(
        f"recipes.launch: the run failed with exit code {outcome.code}; the log above has the cause{others}. What "
        f"{output} holds stays: the same command goes on from its last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    return outcome.code


__all__ = ["dry_run", "launch", "prepare"]
