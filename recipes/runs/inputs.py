# SPDX-License-Identifier: Apache-2.0
"""
Whether what a run reads is on this machine. The recipes ask before torch is imported, which takes seconds, and before
anything is written; `recipes.launch` asks the same. This file and what it imports need nothing but PyYAML.
"""

import os
import re
import sys
from pathlib import Path

from data_scripts.manifest import MANIFEST, DamagedRepoError, check_repo_files
from data_scripts.yaml_files import read_yaml


CONFIGS = Path(__file__).parent.parent / "configs"
# The commands of data_scripts.prepare; a repository, or the folder of several, is named after the one that makes it.
DATASETS = ("scanqa", "sqa3d", "arkit_actions", "instruct", "records")
# Where the shipped configurations and the docs put what they make: no owners of repositories on the Hub.
OWN_FOLDERS = {"outputs", "checkpoints", "data", "demo"}
CONVERT = "python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf convert"


def is_local_name(name: str) -> bool:
    """Whether `name` can only be meant as a folder: it has not the form `owner/name`, or the owner is one of `OWN_FOLDERS`."""
    owner = re.fullmatch(r"([\w-][\w.-]*)/[\w-][\w.-]*", name)
    return owner is None or owner[1] in OWN_FOLDERS


def missing_checkpoint(name: str) -> str | None:
    """What to do about a checkpoint that has to be a folder and is none; None if it is one, or can be on the Hub."""
    if Path(name).is_dir() or not is_local_name(name):
        return None
    advice = f"make a checkpoint first ({CONVERT} --vggt ... --text ... --output {name}; docs/weights.md)"
    if Path(name).parts[:1] == ("demo",):
        advice = "make it first (python -m recipes.demo)"
    for config in sorted(CONFIGS.glob("stage*.yaml")):
        stage = config.stem.partition("_")[0]
        if Path(read_yaml(config)["output_dir"]) == Path(name):
            advice = f"train stage {stage.removeprefix('stage')} first (python -m recipes.launch {stage})"
    return f"{name} is not here: {advice}, or give --model_name_or_path."


def missing_dataset(path: str) -> str | None:
    """As `missing_checkpoint`, of a prepared repository."""
    if Path(path).is_dir() or not is_local_name(path):
        return None
    command = next((part for part in reversed(Path(path).parts) if part in DATASETS), "DATASET")
    advice = f"python -m data_scripts.prepare {command} ... --output {path}; docs/data.md"
    if Path(path).parts[:1] == ("demo",):
        advice = "python -m recipes.demo"
    return f"{path} is not here: prepare it first ({advice}), or give --dataset_paths."


def check_data(paths: list[str], contents: bool):
    """
    Compares what prepared repositories hold with what was written into them: sizes, and with `contents` every byte. Those of
    the Hub, and folders that `data_scripts.prepare` did not make, are taken as they are.

    Raises:
        ValueError: naming the file that is missing or damaged.
        OSError: if a file cannot be read.
    """
    for path in paths:
        if (Path(path) / MANIFEST).is_file():
            try:
                check_repo_files(Path(path), contents)
            except DamagedRepoError as error:
                raise ValueError(f"{error}. Copy {path} here again, or remove and prepare it again.") from None


def check_inputs(default_config: Path, argv: list[str] | None = None):
    """
    Exits with status 2 and a line for each folder that is not here, of the checkpoint and the datasets that
    `--config FILE` (or `default_config`) and the command line over it name. What else is wrong with them is for
    `parse_arguments` to say.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & {*argv}:
        return
    config = Path((values_of(argv, "config") or [default_config])[-1])
    try:
        settings = read_yaml(config)
    except ValueError:
        return
    if not isinstance(settings, dict):
        return
    found = {}
    for name in ("model_name_or_path", "dataset_paths"):
        of_file = settings.get(name)
        of_file = of_file if isinstance(of_file, list) else [of_file]
        given = values_of(argv, name)
        found[name] = [str(value) for value in (of_file if given is None else given) if value is not None]
    problems = [missing_checkpoint(name) for name in found["model_name_or_path"]]
    problems += [missing_dataset(path) for path in dict.fromkeys(found["dataset_paths"])]
    problems = [problem for problem in problems if problem is not None]
    if problems:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one is enough to say so
            print(*(f"{Path(sys.argv[0]).name}: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        sys.exit(2)


def values_of(argv: list[str], name: str) -> list[str] | None:
    """The last values that `argv` gives to `--name`, as argparse reads them; None if it does not."""
    values = None
    for position, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag.removeprefix("--").replace("-", "_") == name:
            rest = argv[position + 1 :]
            end = next((index for index, other in enumerate(rest) if other.startswith("--")), len(rest))
            values = [value] if equals else rest[:end]
    return values


__all__ = [
    "CONFIGS",
    "DATASETS",
    "check_data",
    "check_inputs",
    "is_local_name",
    "missing_checkpoint",
    "missing_dataset",
    "values_of",
]
