# SPDX-License-Identifier: Apache-2.0
"""Which part of the house may import which: only what is on a lower floor, or on its own in the same package."""

import ast
import importlib
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# From the ground up; docs/architecture.md draws them. A name stands for its modules that are not named apart.
FLOORS = [
    {"modeling_vggt_qwen3", "data_scripts"},
    {"data_scripts.readers"},
    {"data_scripts.preparation"},
    {"data_scripts.actions"},
    {"data_scripts.builders", "data_scripts.synthetic"},
    {"data_scripts.instruct_sources"},
    {
        # For one version: the old places of three readers that the docs named.
        "data_scripts.scannet",
        "data_scripts.arkitscenes",
        "data_scripts.roomplan",
        "data_scripts.prepare",
        "data_scripts.rooms",
        "data_scripts.view",
        "data_scripts.download_arkitscenes",
    },
    {"recipes.metrics"},
    {"recipes.common"},
    {"recipes.runs"},
    {"recipes.training", "recipes.evaluation"},
    {"recipes.publishing", "recipes.launching"},
    {"recipes", "push_to_hub"},  # the commands, and what belongs to one of them
]


def modules() -> dict[str, Path]:
    paths = [
        path
        for package in ("modeling_vggt_qwen3", "data_scripts", "recipes")
        for path in (ROOT / package).rglob("*.py")
    ]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: path for path, name in names.items()} | {"push_to_hub": ROOT / "push_to_hub.py"}


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of this project that `name` imports, also inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return found & set(known)


def part_of(name: str) -> tuple[int, str]:
    """The floor of a module, and by which of its names it is there."""
    part = ".".join(name.split(".")[:2])
    for known in (part, name.split(".")[0]):
        for number, parts in enumerate(FLOORS):
            if known in parts:
                return number, known
    raise AssertionError(f"{name} is on no floor")


def test_nothing_imports_upwards_or_across():
    """Catches the first import that ties two floors into a knot again: training that publishes, evaluation that launches."""
    known = modules()
    wrong = []
    for name, path in known.items():
        floor, part = part_of(name)
        for other in imports_of(name, path, known) - {"recipes"}:  # which every import of a part of it runs first
            other_floor, other_part = part_of(other)
            if not (other_floor < floor or other_part == part):
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_every_floor_is_there():
    """Catches a part that was renamed and is on no floor from then on, so that anything may import it."""
    parts = {part_of(name)[1] for name in modules()}
    assert parts == {part for floor in FLOORS for part in floor}


@pytest.mark.parametrize("name", ["scannet.open_scan", "arkitscenes.open_scan", "roomplan.read_captured_room"])
def test_old_places_of_readers_warn(name):
    """Catches code that was written by the docs of the version before ending in an ImportError."""
    module, function = name.split(".")
    sys.modules.pop(f"data_scripts.{module}", None)
    with pytest.warns(FutureWarning, match=f"data_scripts.readers.{module}"):
        old = importlib.import_module(f"data_scripts.{module}")
    assert getattr(old, function) is getattr(importlib.import_module(f"data_scripts.readers.{module}"), function)


def test_no_two_modules_of_a_folder_import_each_other():
    """Catches the circle of two files, neither of which can be read, tested or moved alone."""
    known = modules()
    found = {name: imports_of(name, path, known) for name, path in known.items()}
    mutual = sorted(
        f"{one} and {two}"
        for one, others in found.items()
        for two in others
        if one < two and one in found[two] and "__init__.py" not in (known[one].name, known[two].name)
    )
    assert not mutual, mutual
