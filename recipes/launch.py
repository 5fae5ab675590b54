# SPDX-License-Identifier: Apache-2.0
"""Checks all that can go wrong, then runs a stage on this machine's GPUs, or as one of several machines.

python -m recipes.launch stage2 --num_processes auto [-- --any_key value ...]
python -m recipes.launch stage2 --mode debug --safe
python -m recipes.launch stage2 --dry-run --num_processes 8 --gpu H100

What follows `--` is for the recipe. The exit code is the recipe's, or 75 if the run was preempted and goes on when it is
launched again.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from data_scripts.credentials import DiscreetParser, hide_credentials
from recipes.launching.caches import move_caches, read_mounts


STAGES = sorted(path.stem for path in Path(__file__).parent.glob("stage[0-9].py"))


def processes(text: str) -> int | str:
    if text == "auto":
        return text
    return positive(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return number


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of this command, and those of the recipe."""
    parser = DiscreetParser(
        prog="recipes.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--mode",
        choices=("full", "debug"),
        default="full",
        help="debug: 100 steps, in a folder debug/ of the output's",
    )
    parser.add_argument(
        "--num_processes",
        type=processes,
        default="auto",
        help="on all machines together; auto: one per visible GPU, or one on a CPU (8 per machine in a dry run)",
    )
    parser.add_argument("--safe", action="store_true", help="micro-batch 1, no data loader processes, CPU offload")
    parser.add_argument("--num_machines", type=positive, default=1)
    parser.add_argument("--machine_rank", type=int, default=0)
    parser.add_argument("--main_process_ip", help="address of the machine of rank 0")
    parser.add_argument("--main_process_port", type=positive)
    parser.add_argument("--dry-run", action="store_true", help="estimate memory and hours; touches no GPU, no network")
    parser.add_argument("--gpu", choices=("B200", "H200", "H100", "A100"), default="B200", help="of the dry run")
    parser.add_argument(
        "--utilisation",
        type=share,
        help="share of the GPU's peak that the dry run reckons with, instead of the one that it derives",
    )
    position = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:position]), argv[position + 1 :]


def main():
    arguments, recipe_argv = parse(sys.argv[1:])
    # A preemption that comes before there is a run to save.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(os.EX_TEMPFAIL))
    # Libraries read these when they are imported, so they are imported afterwards.
    if arguments.dry_run:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    else:
        moved, lines = move_caches(dict(os.environ), read_mounts())
        os.environ |= moved
        for line in lines:
            print(f"Cache: {line}")
        for folder in moved.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
    from recipes.launching import preflight

    try:
        if arguments.dry_run:
            print(preflight.dry_run(arguments, recipe_argv))
        else:
            sys.exit(preflight.launch(arguments, recipe_argv))
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.launch: {hide_credentials(str(error))}")


if __name__ == "__main__":
    main()
