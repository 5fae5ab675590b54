# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run reads: prepared data, weights, versions. Each returns what is wrong and what to do about it."""

import ast
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from huggingface_hub import file_exists, is_offline_mode
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, OfflineModeIsEnabled
from packaging.requirements import Requirement
from packaging.version import Version

from data_scripts.schema import missing_columns
from modeling_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.conversion.sources import WeightFiles
from recipes import top_file
from recipes.runs.arguments import check_checkpoint_for, no_eval_split, no_exact_match
from recipes.runs.inputs import CONVERT, missing_checkpoint, missing_dataset

from .data_size import NotPreparedError, files_of_splits, lacks_split, parquet_files
from .settings import data_arguments
from .shapes import local_config, read_shapes


CONSTRAINTS, SETUP = top_file("constraints.txt"), top_file("setup.py")
DISTRIBUTION = "vggt-qwen3"
UNREACHABLE = "the Hub cannot be asked"


def check_data(settings: Namespace) -> list[str]:
    """
    Every file of every split of every dataset: there, whole, with the columns that training reads and with rows; questions of
    scenes that are there, in training with answers; no scene in two splits. Some may have no split to evaluate on, not all.
    """
    paths, problems = find_datasets(settings.dataset_paths)
    scenes: dict[str, dict[str, str]] = {}  # split: {scene: dataset}
    without = [path for path in paths if lacks_split(path, settings.eval_split)]
    if len(without) == len(settings.dataset_paths) and settings.eval_strategy != "no":
        problems.append(f"Data: {no_eval_split(without, settings.eval_split)}")
    for path in paths:
        for split in dict.fromkeys((settings.train_split, settings.eval_split)):
            if path in without and split != settings.train_split:
                continue  # it trains, and is left out of evaluations
            known = None
            for config in ("scenes", "qa"):
                try:
                    found = read_scene_ids(path, config, split, answered=split == settings.train_split)
                except ValueError as error:
                    if f"Data: {error}" not in problems:  # some are of all splits
                        problems.append(f"Data: {error}")
                    if isinstance(error, NotPreparedError):
                        break
                    continue
                if config == "scenes":
                    known = set(found)
                    scenes.setdefault(split, {}).update(dict.fromkeys(found, path))
                elif known is not None and (strange := set(found) - known):
                    problems.append(
                        f"Data: {path} asks in the split {split} of 'qa' about {len(strange)} scenes that 'scenes' does not "
                        f"have ({min(strange)}). Prepare it again."
                    )
    train, other = scenes.get(settings.train_split, {}), scenes.get(settings.eval_split, {})
    shared = sorted(train.keys() & other.keys())
    if shared:
        problems.append(
            f"Data: {len(shared)} scenes are in the split {settings.train_split} and in {settings.eval_split} "
            f"({shared[0]} in {train[shared[0]]} and {other[shared[0]]}). Use splits that share none."
        )
    evaluated = [path for path in paths if path not in without]
    needed = settings.load_best_model_at_end or settings.save_strategy == "best"
    if evaluated and needed and settings.eval_strategy != "no" and not problems:
        if not any(has_exact_match(path, settings.eval_split) for path in evaluated):
            problems.append(f"Data: {no_exact_match(evaluated, settings.eval_split)}")
    if settings.feature_store is not None and not Path(settings.feature_store).is_dir():
        problems.append(
            f"Data: there is no feature store {settings.feature_store}. Make it with recipes.feature_store."
        )
    return problems


def find_datasets(paths: list[str]) -> tuple[list[str], list[str]]:
    """Those of `paths` that are folders or may be on the Hub (offline: in its cache), and what is wrong with the others."""
    found, problems, reason = [], [], None
    for path in paths:
        if missing := missing_dataset(path):
            problems.append(f"Data: {missing}")
            continue
        # Asked before `datasets` asks, which goes on for minutes without a network. Offline it looks into its cache at once.
        if not Path(path).is_dir() and not is_offline_mode():
            if not (reason or "").startswith(UNREACHABLE):
                reason = why_not_on_hub(path, "dataset")
            if reason is not None:
                problems.append(f"Data: there is no folder {path}, and {reason}. Give other --dataset_paths.")
                continue
        found.append(path)
    return found, problems


def read_scene_ids(path: str, config: str, split: str, answered: bool = False) -> list[str]:
    """
    The column `scene_id` of a split of a prepared repository; on the Hub only the card is read, and nothing returned.

    Raises:
        ValueError: naming the file, if one is missing, cut short, empty or without a column, or one split has columns that the first has not;
            with `answered`, if a question has no answer.
    """
    files, scene_ids, columns = parquet_files(path, config, split), [], None
    if not Path(path).is_dir():
        return scene_ids
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                if missing := missing_columns(config, opened.schema_arrow.names):
                    raise ValueError(f"{file} has no column {', '.join(missing)}. Prepare it again.")
                if config == "qa" and answered:
                    check_answers(file, opened)
                scene_ids += opened.read(columns=["scene_id"])["scene_id"].to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file} is cut short or damaged ({error}). Prepare it again.") from error
    # `datasets` reads all splits when one is asked for, and takes the columns of the first file for those of all.
    all_files = [file for others in files_of_splits(path, config).values() for file in others]
    for file in all_files:
        try:
            names = pyarrow.parquet.read_schema(file).names
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file} is cut short or damaged ({error}). Prepare it again.") from error
        columns = names if columns is None else columns
        if more := sorted({*names} - {*columns}):
            raise ValueError(f"{file} has columns that {all_files[0]} has not ({', '.join(more)}). Prepare it again.")
    if not scene_ids:
        raise ValueError(f"{path} has no rows in the split {split!r} of {config!r}.")
    return scene_ids


def has_exact_match(path: str, split: str) -> bool:
    """Whether some question of a split is for an anchor or an answer in words; of a repository of the Hub that is not known: True."""
    if not Path(path).is_dir():
        return True
    for file in parquet_files(path, "qa", split):
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(columns=["action"]):  # most datasets tell by their first row
                if any(text is None or '"place_anchor"' in text for text in batch["action"].to_pylist()):
                    return True
    return False


def check_answers(file: str, opened: pyarrow.parquet.ParquetFile):
    """Raises ValueError if a question has no answer to train on, naming it."""
    table = opened.read(columns=["question_id", "answers"])
    counts = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(table["answers"]), 0)
    empty = table["question_id"].filter(pyarrow.compute.equal(counts, 0))
    if len(empty):
        raise ValueError(
            f"{file} has {len(empty)} questions without an answer to train on (the first is {empty[0].as_py()}). Take "
            "another --train_split."
        )


def check_weights(name: str) -> list[str]:
    """A checkpoint's files: there, whole, and agreeing with their index. Of a repository of the Hub, that it exists."""
    folder = Path(name)
    if not folder.is_dir():
        if missing := missing_checkpoint(name):
            return [f"Weights: {missing}"]
        if local_config(name) is not None or (reason := why_not_on_hub(name, "model")) is None:
            return []
        return [
            f"Weights: there is no folder {name}, and {reason}. Give another --model_name_or_path, or make a checkpoint "
            f"with {CONVERT}."
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


def why_not_on_hub(name: str, repo_type: str) -> str | None:
    """Why a repository of the Hub cannot be used, in words; None if it is there. Asks once, and waits ten seconds at most."""
    try:
        if file_exists(name, "README.md" if repo_type == "dataset" else "config.json", repo_type=repo_type):
            return None
        return f"the Hub has no such {repo_type} (a private one needs hf auth login)"
    except HFValidationError:
        return "it is no name of a repository of the Hub either"
    except OfflineModeIsEnabled:
        return "the Hub is not asked (HF_HUB_OFFLINE is set), and its cache does not have it"
    except GatedRepoError:
        return "on the Hub it is gated: accept its terms on its page, and hf auth login"
    except (OSError, HTTPError) as error:  # those of httpx are no OSError
        words = (str(error).strip() or "no answer").splitlines()[0]
        return f"{UNREACHABLE} ({type(error).__name__}: {words}); with HF_HUB_OFFLINE=1 its cache alone is looked at"


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
