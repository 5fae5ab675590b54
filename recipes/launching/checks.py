# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run reads: prepared data, weights, versions. Each returns what is wrong and what to do about it."""

import ast
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pyarrow
import pyarrow.parquet
from huggingface_hub import file_exists
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from packaging.requirements import Requirement
from packaging.version import Version

from modeling_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.convert_inputs import WeightFiles
from recipes import top_file
from recipes.training.arguments import check_checkpoint_for

from .data_size import parquet_files
from .settings import data_arguments
from .shapes import local_config, read_shapes


CONSTRAINTS, SETUP = top_file("constraints.txt"), top_file("setup.py")
DISTRIBUTION = "vggt-qwen3"
COLUMNS = {"scenes": {"scene_id", "images", "geometry"}, "qa": {"scene_id", "question", "answers"}}


def check_data(settings: Namespace) -> list[str]:
    """Every file of every split of every dataset: there, whole, with the columns and with rows; no scene in two splits."""
    problems = []
    scenes: dict[str, dict[str, str]] = {}  # split: {scene: dataset}
    for path in settings.dataset_paths:
        for split in dict.fromkeys((settings.train_split, settings.eval_split)):
            for config in ("scenes", "qa"):
                try:
                    found = read_scene_ids(path, config, split)
                except ValueError as error:
                    problems.append(f"Data: {error}")
                    continue
                if config == "scenes":
                    scenes.setdefault(split, {}).update(dict.fromkeys(found, path))
    train, other = scenes.get(settings.train_split, {}), scenes.get(settings.eval_split, {})
    shared = sorted(train.keys() & other.keys())
    if shared:
        problems.append(
            f"Data: {len(shared)} scenes are in the split {settings.train_split} and in {settings.eval_split} "
            f"({shared[0]} in {train[shared[0]]} and {other[shared[0]]}). Use splits that share none."
        )
    if settings.feature_store is not None and not Path(settings.feature_store).is_dir():
        problems.append(
            f"Data: there is no feature store {settings.feature_store}. Make it with recipes.feature_store."
        )
    return problems


def read_scene_ids(path: str, config: str, split: str) -> list[str]:
    """
    The column `scene_id` of a split of a prepared repository; on the Hub only the card is read, and nothing returned.

    Raises:
        ValueError: naming the file, if one is missing, cut short, empty or without a column.
    """
    files, scene_ids = parquet_files(path, config, split), []
    if not Path(path).is_dir():
        return scene_ids
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                missing = COLUMNS[config] - set(opened.schema_arrow.names)
                if missing:
                    raise ValueError(f"{file} has no column {', '.join(sorted(missing))}. Prepare it again.")
                scene_ids += opened.read(columns=["scene_id"])["scene_id"].to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file} is cut short or damaged ({error}). Prepare it again.") from error
    if not scene_ids:
        raise ValueError(f"{path} has no rows in the split {split!r} of {config!r}.")
    return scene_ids


def check_weights(name: str) -> list[str]:
    """A checkpoint's files: there, whole, and agreeing with their index. Of a repository of the Hub, that it exists."""
    folder = Path(name)
    if not folder.is_dir():
        if local_config(name) is not None:
            return []
        try:
            if file_exists(name, "config.json"):
                return []
            reason = "the Hub has no such model"
        except HFValidationError:
            reason = "it is no name of a repository of the Hub either"
        except (OSError, OfflineModeIsEnabled) as error:
            reason = f"the Hub cannot be asked ({type(error).__name__})"
        return [
            f"Weights: there is no folder {name}, and {reason}. Train the stage before, or make a checkpoint with "
            "python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf."
        ]
    problems = []
    if not (folder / "config.json").is_file():
        return [f"Weights: {folder} has no config.json; it is no checkpoint."]
    try:
        VggtQwen3Config.from_json_file(folder / "config.json")
    except (ValueError, TypeError, AttributeError) as error:
        problems.append(f"Weights: {folder / 'config.json'} is not the configuration of a VGGT-Qwen3 model: {error}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        problems.append(f"Weights: {folder} has no tokenizer (tokenizer.json). Copy or convert the checkpoint again.")
    try:
        files = WeightFiles(folder)
    except (OSError, ValueError) as error:
        return [*problems, f"Weights: {error} Copy or convert the checkpoint again."]
    if not any(key.startswith("model.projector.") for key in files.tensors):
        problems.append(f"Weights: {folder} holds no projector; it is no checkpoint of VGGT-Qwen3.")
    return problems


def requirements(extra: str = "train") -> list[Requirement]:
    """
    What this package needs with an extra, by default that of the recipes. From setup.py where it is here: an editable install
    keeps the metadata of the day it was made, and a checkout that is on the path alone has none.
    """
    if SETUP.is_file():
        tables = {
            ast.unparse(statement.targets[0]): statement.value
            for statement in ast.parse(SETUP.read_text(encoding="utf-8")).body
            if isinstance(statement, ast.Assign)
        }
        texts = ast.literal_eval(tables["INSTALL_REQUIRES"])
        for name, needed in ast.literal_eval(tables["EXTRAS_REQUIRE"]).items():
            texts += [f'{text}; extra == "{name}"' for text in needed]
    else:
        texts = requires(DISTRIBUTION) or []
    found, extras = [], ["", extra]
    for name in extras:  # grows: an extra may have others in it
        for requirement in map(Requirement, texts):
            if requirement.marker.evaluate({"extra": name}) if requirement.marker else name == "":
                if requirement.name == DISTRIBUTION:
                    extras += sorted(requirement.extras - set(extras))
                else:
                    found.append(requirement)
    return found


def check_precision(settings: Namespace) -> list[str]:
    """Whether a checkpoint that is on this machine can be trained in the precision that is asked for."""
    if local_config(settings.model_name_or_path) is None:
        return []
    try:
        config, _ = read_shapes(settings.model_name_or_path)
    except ValueError:
        return []  # `check_weights` says so
    try:
        check_checkpoint_for(config, data_arguments(settings), settings)
    except ValueError as error:
        return [f"Precision: {error}"]
    return []


def check_versions() -> tuple[list[str], list[str]]:
    """
    Installed packages against what setup.py asks for (others are problems), and against the versions that the tests ran
    with in constraints.txt (others are warnings).
    """
    problems, warnings, installed = [], [], {}
    install = f"pip install -c {CONSTRAINTS} '{DISTRIBUTION}[train]'"
    if SETUP.is_file():
        install = "pip install -c constraints.txt -e '.[train]'"
    for requirement in requirements():
        name = requirement.name
        try:
            installed[name] = Version(version(name))
        except PackageNotFoundError:
            problems.append(f"Versions: {name} is not installed. {install}")
            continue
        if not requirement.specifier.contains(installed[name], prereleases=True):
            wanted = f"{name}{requirement.specifier}"
            problems.append(f"Versions: {name} {installed[name]} does not satisfy {wanted}. {install}")
            del installed[name]
    if not CONSTRAINTS.is_file():
        return problems, [*warnings, f"{CONSTRAINTS.name} is not here: tested versions are not known."]
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name, _, tested = line.partition("==")
        if name in installed and installed[name].public != tested:
            age = "newer" if installed[name] > Version(tested) else "older"
            warnings.append(f"{name} {installed[name]} is {age} than the tested {tested}.")
    return problems, warnings


__all__ = ["check_data", "check_precision", "check_versions", "check_weights", "requirements"]
