# SPDX-License-Identifier: Apache-2.0
"""Prepares a repo that `load_dataset` reads from raw annotation files and scans or pictures.

    python -m data_scripts.prepare scanqa --scannet-root scans --output prepared/scanqa \\
        --annotations ScanQA_v1.0_train.json ScanQA_v1.0_val.json --num-views 8 --view-selection coverage --workers 8
    python -m data_scripts.prepare sqa3d --scannet-root scans --output prepared/sqa3d \\
        --annotations v1_balanced_questions_train_scannetv2.json v1_balanced_sqa_annotations_train_scannetv2.json
    python -m data_scripts.prepare arkit_actions --arkitscenes-root ARKitScenes --roomplan-root exports \\
        --output prepared/actions
    python -m data_scripts.prepare instruct --output prepared/instruct --val-share 0.01 --image-size 672 \\
        --source llava=llava_v1_5_mix665k.json,images --source chartqa=ChartQA/data
    python -m data_scripts.prepare records --records train.jsonl val.jsonl --image-root images --output prepared/records

Exit status: 0 prepared (or prepared before), 1 writing or uploading failed, 2 the input (or where to upload to) cannot be used, 130 interrupted: the
same command goes on from there.
"""

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import disable_progress_bars
from huggingface_hub import HfApi

from .builders import BUILDERS
from .builders.instruct import Instruct
from .card import THIS_REPO
from .credentials import DiscreetParser, without_credentials
from .files import UnreadableFileError
from .hub import UploadError, check_names, check_repo, check_token, own_file, upload
from .instruct_sources import check_sources, parse_sources
from .licences import Origin
from .machine_paths import without_folders
from .plain import plain
from .preparation.annotations import Annotations, InputError
from .preparation.base import ACTIONS, Options, PreparationBuilder, Sources
from .preparation.repo import MANIFEST, Preparation, PreparationError, origin_of, prepare_repo, read_annotations
from .preparation.view_selection import VIEW_SELECTIONS
from .readers.scannet import scan_roots


def build_parser() -> argparse.ArgumentParser:
    parser = DiscreetParser(prog="python -m data_scripts.prepare", description=__doc__.split("\n")[0])
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="{" + ",".join(BUILDERS) + "}")
    sources = {
        "annotations": {"nargs": "+", "help": "the dataset's own files"},
        "records": {"nargs": "+", "help": "JSON arrays or JSONL files of records"},
        "scannet_root": {
            "nargs": "+",
            "help": "folders of ScanNet scans, <scene>/color, ... or <scene>/<scene>.sens; scans_test beside scans is found",
        },
        "arkitscenes_root": {"help": "folder of the ARKitScenes downloads, with 3dod or raw in it"},
        "roomplan_root": {"help": "folder of RoomPlan exports <video>.json"},
        "image_root": {"help": "folder from which the pictures' paths start"},
    }
    options = {
        "num_views": {"type": _positive, "help": "at most so many views per scene"},
        "view_selection": {"choices": VIEW_SELECTIONS, "help": "how they are chosen"},
        "max_frames": {"type": _positive, "help": "consider at most so many frames of a scan, evenly spaced"},
        "seed": {"type": int, "help": "of the random choices"},
        "geometry": {
            "choices": ("required", "optional", "none"),
            "help": "a scene without poses, intrinsics or depth is left out, is prepared without, or nothing of it is read",
        },
        "image_size": {
            "type": _positive,
            "help": "make larger pictures so long, in pixels (default: store the files)",
        },
        "actions": {"nargs": "+", "choices": ACTIONS, "help": "which actions to ask for"},
        "val_share": {
            "type": _share,
            "help": "of data without a split val: make one of such a share of the pictures, with all their questions",
        },
    }
    for name, builder_class in BUILDERS.items():
        command = datasets.add_parser(name, help=builder_class.TITLE)
        for source in (*builder_class.SOURCES, *builder_class.OPTIONAL_SOURCES):
            required = source in builder_class.SOURCES
            command.add_argument(_flag(source), type=Path, required=required, **sources[source])
        if builder_class is Instruct:
            command.add_argument(
                "--source",
                action="append",
                default=[],
                metavar="NAME=FILE,...,ROOT",
                help="files and the folder from which their pictures' paths start (none for Parquet files); may come again: "
                "each becomes the repo NAME in --output",
            )
            command.add_argument("--sources", type=Path, metavar="YAML", help="the same, as a file")
        for option in builder_class.OPTIONS:
            default = (asdict(Options()) | builder_class.DEFAULTS)[option]
            shown = " ".join(default) if isinstance(default, tuple) else default
            known = f" (default: {shown})" if default is not None else ""
            arguments = options[option] | {"help": options[option]["help"] + known}
            command.add_argument(_flag(option), default=default, **arguments)
        command.add_argument("--output", type=Path, required=True, help="the repo to make")
        command.add_argument("--workers", type=_positive, default=1, help="processes that read scenes")
        command.add_argument(
            "--strict", action="store_true", help="stop at the first scene or record that cannot be used"
        )
        command.add_argument(
            "--allow-missing",
            action="store_true",
            help="leave out scenes or pictures that are not there, and name them",
        )
        command.add_argument("--push-to-hub", metavar="REPO", help="also upload it to this dataset repo on the Hub")
        command.add_argument(
            "--private",
            action=argparse.BooleanOptionalAction,
            help="make that repo private; by default if a licence asks for it, or none is known",
        )
        command.add_argument("--tag", default="v1.0", help="name of this version on the Hub (default: v1.0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    builder_class = BUILDERS[args.dataset]
    given = {name: getattr(args, name) for name in (*builder_class.SOURCES, *builder_class.OPTIONAL_SOURCES)}
    sources = Sources(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value}
    )
    sources = replace(sources, scannet_root=scan_roots(sources.scannet_root))
    options = Options(
        **{
            name: tuple(value) if isinstance(value := getattr(args, name), list) else value
            for name in builder_class.OPTIONS
        }
    )
    api = HfApi()
    try:
        jobs = _jobs(args, builder_class, sources, options)
        private = _check_push(api, args, origin_of(builder_class, jobs[0].sources)) if args.push_to_hub else None
    except (InputError, UploadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    disable_progress_bars()  # of the writing, which is short; the reading has its own
    for job in jobs:
        status = _run(job, args, builder_class, options)
        if status:
            return status
    if args.push_to_hub:
        output = jobs[0].output
        try:
            url, changed = _push(api, args.push_to_hub, output, private, args.tag)
        except UploadError as error:
            print(f"error: {output} is prepared but was not uploaded. {error}", file=sys.stderr)
            return 1
        print(f"{'uploaded' if changed else 'already uploaded'}: {url} (tag {args.tag})")
    return 0


@dataclass
class _Job:
    """A repo to make. `annotations`: where they were read before."""

    sources: Sources
    output: Path
    command: str
    annotations: Annotations | None = None


def _jobs(
    args: argparse.Namespace, builder_class: type[PreparationBuilder], sources: Sources, options: Options
) -> list[_Job]:
    """What the command asks for: one repo in --output, or of `instruct` one per --source; raises `InputError`."""
    if builder_class is not Instruct or not (args.source or args.sources):
        if builder_class is Instruct and not sources.annotations:
            raise InputError("say what to read: --source NAME=FILE,ROOT, or --annotations and --image-root")
        return [_Job(sources, args.output, _published_command(args, builder_class, sources, options))]
    if sources.annotations or sources.image_root:
        raise InputError("--annotations and --image-root do not go with --source, which has both")
    named = parse_sources(args.source, args.sources)
    if args.push_to_hub and len(named) > 1:
        raise InputError(
            f"--push-to-hub {args.push_to_hub} is one repo, and {', '.join(named)} become several: upload one at a time"
        )
    if (args.output / MANIFEST).is_file():
        raise InputError(
            f"{args.output}: is a prepared repo, and --source makes folders in it; choose another --output"
        )
    annotations = {
        name: read_annotations(builder_class, some, options, args.strict, args.allow_missing)
        for name, some in named.items()
    }
    for note in check_sources(named, annotations):
        print(f"note: {note}")
    return [
        _Job(
            some,
            args.output / name,
            _published_command(args, builder_class, some, options, name),
            annotations[name],
        )
        for name, some in named.items()
    ]


def _run(job: _Job, args: argparse.Namespace, builder_class: type[PreparationBuilder], options: Options) -> int:
    """Makes a repo and says what came out; returns the exit status."""
    try:
        preparation = prepare_repo(
            builder_class,
            job.sources,
            options,
            output=Path(os.path.abspath(job.output)),
            command=job.command,
            workers=args.workers,
            strict=args.strict,
            allow_missing=args.allow_missing,
            annotations=job.annotations,
        )
    except (InputError, UnreadableFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {job.output} was not written; the same command goes on from here", file=sys.stderr)
        return 130
    _report(preparation, job.output)
    return 0


def _published_command(
    args: argparse.Namespace,
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    source: str | None = None,
) -> str:
    """The command without the folders: the card is published, and they say nothing to others. Of several sources, `source`."""
    words = [f"python -m data_scripts.prepare {args.dataset}"]
    given = {name: getattr(sources, name) for name in (*builder_class.SOURCES, *builder_class.OPTIONAL_SOURCES)}
    paths = {
        name: [path.name for path in value] if isinstance(value, tuple) else [value.resolve().name]
        for name, value in given.items()
        if value
    }
    if source is not None:
        words += ["--source", f"{source}={','.join(name for names in paths.values() for name in names)}"]
    else:
        for name, names in paths.items():
            words += [_flag(name), *names]
    words += ["--output", args.output.resolve().name]
    for name in builder_class.OPTIONS:
        value = getattr(options, name)
        if value is not None:
            words += [_flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return " ".join(f"'{word}'" if " " in word and not word.startswith("python") else word for word in words)


def _check_push(api: HfApi, args: argparse.Namespace, origin: Origin) -> bool:
    """Whether the repo is to be private; raises UploadError for what would make the upload fail in the end."""
    if args.private is False and origin.private:
        raise UploadError(
            f"--no-private: {origin.licence} A card (README.md) beside the raw files whose `license` allows it says otherwise."
        )
    check_names(args.push_to_hub, args.tag)
    check_token(api)
    return origin.private if args.private is None else args.private


def _push(api: HfApi, repo: str, output: Path, private: bool, tag: str) -> tuple[str, bool]:
    """
    Uploads card, manifest and Parquet files, card and manifest without paths of this machine; returns the address, and
    whether there was anything to upload.
    """
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    card = (output / "README.md").read_text(encoding="utf-8").replace(THIS_REPO, repo)
    files = {name: own_file(output, name) for name in manifest["files"]}
    manifest = without_folders(without_credentials(manifest))
    files |= {"README.md": without_folders(card).encode(), MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}
    remote = check_repo(api, repo, "dataset", files, private=private, tag=tag, marker=MANIFEST)
    message = f"Upload prepared data, {tag}"
    return upload(api, repo, "dataset", files, remote, private=private, tag=tag, message=message)


def _report(preparation: Preparation, output: Path) -> None:
    for note in preparation.notes:
        print(f"note: {note}")
    for failure in preparation.left_out:
        print(f"left out: scene {plain(failure['scene_id'])}: {plain(failure['file'])}: {failure['reason']}")
    if preparation.found:
        print(f"{preparation.found} scenes had been read by an interrupted run")
    if preparation.repaired:
        print(f"repaired: {preparation.repaired} scenes of an interrupted run had damaged files and were read again")
    for split, counts in preparation.counts.items():
        views = f"{counts['views']} views ({counts['views'] / counts['scenes']:.1f} a scene)"
        print(f"{split}: {counts['scenes']} scenes, {views}, {counts['questions']} questions")
    good = sum(counts["scenes"] for counts in preparation.counts.values())
    state = "already prepared" if preparation.already_there else "prepared"
    absent = f", {len(preparation.absent)} absent" if preparation.absent else ""
    print(f"{state}: {output} ({good} scenes good, {len(preparation.left_out)} left out{absent})")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's time limit: clean up as Ctrl-C does
    sys.exit(main())
