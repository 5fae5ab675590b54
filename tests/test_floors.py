# SPDX-License-Identifier: Apache-2.0
"""Which part of the house may import which: only what is on a lower floor, or on its own in the same package."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[1]
# From the ground up; docs/architecture.md draws them. Whatever else is in recipes/ is a command, or belongs to one.
FLOORS = [
    {"modeling_vggt_qwen3", "data_scripts"},
    {"recipes"},
    {"recipes.metrics"},
    {"recipes.common"},
    {"recipes.runs"},
    {"recipes.training", "recipes.evaluation"},
    {"recipes.publishing", "recipes.launching"},
]
COMMANDS = len(FLOORS)


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
    """The floor of a module, and the package that it is in."""
    for part in (".".join(name.split(".")[:2]), name.split(".")[0]):
        for number, parts in enumerate(FLOORS):
            if part in parts and (part != "recipes" or name == "recipes"):
                return number, part
    return COMMANDS, "commands"


def test_nothing_imports_upwards_or_across():
    """Catches the first import that ties two floors into a knot again: training that publishes, evaluation that launches."""
    known = modules()
    wrong = []
    for name, path in known.items():
        floor, part = part_of(name)
        for other in imports_of(name, path, known):
            other_floor, other_part = part_of(other)
            if not (other_floor < floor or other_part == part):
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_every_floor_is_there():
    """Catches a part that was renamed and is on no floor from then on, so that anything may import it."""
    parts = {part_of(name)[1] for name in modules()}
    assert parts == {part for floor in FLOORS for part in floor} | {"commands"}
