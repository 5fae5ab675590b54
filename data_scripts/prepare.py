# SPDX-License-Identifier: Apache-2.0
"""Prepares a repo that `load_dataset` reads from raw annotation files and scans or pictures.

    python -m data_scripts.prepare scanqa --scannet-root scans --output prepared/scanqa \\
        --annotations ScanQA_v1.0_train.json ScanQA_v1.0_val.json
    python -m data_scripts.prepare sqa3d --scannet-root scans --output prepared/sqa3d \\
        --annotations v1_balanced_questions_train_scannetv2.json v1_balanced_sqa_annotations_train_scannetv2.json
    python -m data_scripts.prepare instruct --image-root images --output prepared/instruct \\
        --annotations llava_instruct_150k.json

Exit status: 0 prepared (or prepared before), 1 writing failed, 2 the input cannot be used, 130 interrupted.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from .builders import BUILDERS
from .builders.base import InputError, ScanNetBuilder
from .builders.repo import Preparation, PreparationError, prepare_repo
from .views import VIEW_SELECTIONS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_scripts.prepare", description=__doc__.split("\n")[0])
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="{" + ",".join(BUILDERS) + "}")
    for name, builder_class in BUILDERS.items():
        command = datasets.add_parser(name, help=builder_class.TITLE)
        command.add_argument("--annotations", type=Path, nargs="+", required=True, help="the dataset's own files")
        command.add_argument(
            builder_class.ROOT_OPTION, dest="root", type=Path, required=True, help="folder of the scenes"
        )
        command.add_argument("--output", type=Path, required=True, help="the repo to make")
        if issubclass(builder_class, ScanNetBuilder):
            command.add_argument("--num-views", type=_positive, default=8, help="at most so many views per scene")
            command.add_argument("--view-selection", choices=VIEW_SELECTIONS, default="uniform")
        command.add_argument("--workers", type=_positive, default=1, help="processes that read scenes")
        command.add_argument("--strict", action="store_true", help="stop at the first scene that cannot be used")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    builder_class = BUILDERS[args.dataset]
    options = {name: getattr(args, name) for name in ("num_views", "view_selection") if name in args}
    # Without the folders: the card is published, and they say nothing to others.
    command = (
        [f"python -m data_scripts.prepare {args.dataset} --annotations"]
        + [path.name for path in args.annotations]
        + [f"{builder_class.ROOT_OPTION} {args.root.resolve().name} --output {args.output.resolve().name}"]
        + [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    )
    try:
        preparation = prepare_repo(
            builder_class,
            annotation_files=args.annotations,
            root=args.root,
            output=Path(os.path.abspath(args.output)),
            options=options,
            command=" ".join(command),
            workers=args.workers,
            strict=args.strict,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {args.output} was not written", file=sys.stderr)
        return 130
    _report(preparation, args.output)
    return 0


def _report(preparation: Preparation, output: Path) -> None:
    for note in preparation.notes:
        print(f"note: {note}")
    for failure in preparation.left_out:
        print(f"left out: scene {failure['scene_id']}: {failure['file']}: {failure['reason']}")
    for split, counts in preparation.counts.items():
        print(f"{split}: {counts['scenes']} scenes, {counts['views']} views, {counts['questions']} questions")
    good = sum(counts["scenes"] for counts in preparation.counts.values())
    state = "already prepared" if preparation.already_there else "prepared"
    print(f"{state}: {output} ({good} scenes good, {len(preparation.left_out)} left out)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _interrupt_on_signals() -> None:
    """Makes a termination (a batch system's time limit) clean up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=_reset_signals)


def _reset_signals() -> None:
    # A worker dies of SIGTERM at once, which is how its pool ends it: a Python handler would wait for a lock the
    # worker may never get. Ctrl-C reaches the whole process group, but only the main process acts on it (and ends the
    # pool).
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    _interrupt_on_signals()
    sys.exit(main())
