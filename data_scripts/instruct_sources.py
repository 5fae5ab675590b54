# SPDX-License-Identifier: Apache-2.0
"""Several releases of picture questions, each with its own image root, in one call: `--source NAME=FILE,...,ROOT` or a YAML.

llava:
  files: [llava_v1_5_mix665k.json]
  image_root: images
docvqa:
  files: [DocVQA/DocVQA]  # a folder of Parquet files, which hold the pictures
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .builders.instruct import is_table
from .preparation.annotations import Annotations, InputError
from .preparation.base import Sources
from .yaml_files import read_yaml


# The task of the questions of a release; sources of other names may hold any.
TASKS = {"llava": "instruct", "sharegpt4v": "instruct", "docvqa": "docvqa", "chartqa": "chartqa"}
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def parse_sources(texts: Iterable[str], config: Path | None) -> dict[str, Sources]:
    """The sources of `--source` and of the YAML `--sources`, by name.

    Args:
        texts: `NAME=FILE,...,ROOT`, where ROOT is the folder from which the pictures' paths start; of Parquet files, or folders of
            them, there is none.
        config: a YAML of names, each with `files` (a list) and, if these name pictures, `image_root`.

    Raises:
        InputError: a name is given twice or is no name of a folder, a file is not there, or an image root is missing.
    """
    found: dict[str, Sources] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        paths = [Path(part) for part in rest.split(",") if part]
        if not equals or not paths:
            raise InputError(f"--source {text}: expected NAME=FILE,ROOT, or NAME=FILE for Parquet files")
        root = None
        if any(not is_table(path) and not path.is_dir() for path in paths[:-1]):  # a file that names pictures
            root = paths.pop()
        _add(found, f"--source {text}", name, paths, root)
    if config is not None:
        for name, entry in _read_config(config).items():
            where = f"{config}: {name}"
            if not isinstance(entry, dict) or not set(entry) <= {"files", "image_root"} or not entry.get("files"):
                raise InputError(f"{where}: expected 'files' (a list) and, where these name pictures, 'image_root'")
            files = [entry["files"]] if isinstance(entry["files"], str) else entry["files"]
            root = entry.get("image_root")
            is_list = isinstance(files, list) and all(isinstance(path, str) for path in files)
            if not is_list or not isinstance(root, str | None):
                raise InputError(f"{where}: 'files' is a list of paths, and 'image_root' a path")
            try:
                _add(found, where, str(name), [Path(path) for path in files], None if root is None else Path(root))
            except OSError as error:  # a name of thousands of characters
                raise InputError(f"{where}: {error.filename}: cannot be read ({error.strerror})") from None
    return found


def check_sources(sources: dict[str, Sources], annotations: dict[str, Annotations]) -> list[str]:
    """Checks that each source holds what its name says, and that pictures which two sources name do not get into training
    by the one and into an evaluation by the other.

    Returns:
        a note for each two sources that name the same pictures: COCO's are in LLaVA-Instruct and in ShareGPT4V.

    Raises:
        InputError: names the picture and the sources.
    """
    taken: dict[str, tuple[str, str]] = {}  # picture to source and split
    shared: dict[tuple[str, str], list[str]] = {}  # two sources to the pictures of both
    for name, some in annotations.items():
        first = next(scene for scenes in some.scenes.values() for scene in scenes)
        task = first.questions[0]["task"]
        if TASKS.get(name, task) != task:
            raise InputError(
                f"{sources[name].annotations[0]}: given as the source {name}, but its records are those of {task}"
            )
        root = os.path.abspath(sources[name].image_root) if sources[name].image_root else None
        for split, scenes in some.scenes.items():
            for scene in scenes:
                # The same file by two roots, and the same name under two roots: training compares names.
                keys = {scene.scene_id} | (
                    {os.path.join(root, scene.scene_id)} if root and not scene.details else set()
                )
                others = {taken[key] for key in keys if key in taken and taken[key][0] != name}
                for other, other_split in others:
                    if split != other_split and "train" in (split, other_split):
                        raise InputError(
                            f"the picture {scene.scene_id} is named in two sources, {other} (split {other_split}) and {name} (split "
                            f"{split}): an evaluation would ask about a picture trained on; leave it out of one of them"
                        )
                    shared.setdefault((other, name), []).append(scene.scene_id)
                taken |= {key: (name, split) for key in keys if key not in taken}
    return [
        f"{len(pictures)} pictures are named in {first} and in {second}, for example {pictures[0]}: each keeps its questions"
        for (first, second), pictures in shared.items()
    ]


def _add(found: dict[str, Sources], where: str, name: str, paths: list[Path], root: Path | None) -> None:
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r} is no name; it becomes that of a folder")
    if name in found:
        raise InputError(f"{where}: there are two sources {name}; give all its files in one")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            tables = _tables_in(path)
            if not tables:
                raise InputError(f"{where}: the folder {path} holds no Parquet files (an image root comes last)")
            files += tables
        elif path.is_file():
            files.append(path)
        else:
            hint = "" if path.suffix else f"; of the Hub: hf download {path} --repo-type dataset --local-dir DIR"
            raise InputError(f"{where}: there is no {path}{hint}")
    names_pictures = [path for path in files if not is_table(path)]
    if names_pictures and root is None:
        raise InputError(f"{where}: {names_pictures[0]} names its pictures; say last in which folder they are")
    if root is not None and not root.is_dir():
        raise InputError(f"{where}: there is no folder {root}")
    found[name] = Sources(annotations=tuple(files), image_root=root)


def _tables_in(path: Path) -> list[Path]:
    return sorted(path.rglob("*.parquet")) if path.is_dir() else []


def _read_config(path: Path) -> dict:
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected a mapping of names to 'files' and 'image_root'")
    return content


__all__ = ["check_sources", "parse_sources"]
