# SPDX-License-Identifier: Apache-2.0
"""What comes from others is named to the byte: hashed distributions, actions by commit, no code out of checkpoints."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

import data_scripts
import modeling_vggt_qwen3
import recipes


ROOT = Path(__file__).parents[1]
PACKAGES = (modeling_vggt_qwen3, data_scripts, recipes)
IN_CLONE = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="what is in a clone of the repository only")
# Classes that would run code of the files they are given, if they were allowed to, and functions that pass that on.
LOADERS = {"from_pretrained", "from_config"}
RUNS_CODE = {"AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoModel", "VggtQwen3Processor"}


def plain(name: str) -> str:
    """The name of a distribution as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@IN_CLONE
def test_lock_and_constraints_agree():
    """Catches a version that was raised in one of the two files, and a line without a hash, which pip would refuse."""
    lock = (ROOT / ".ci" / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z])", re.sub(r"(?m)^#.*\n", "", lock).strip())
    locked = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)==([^\s;\\]+)", entry).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
        locked[plain(name)] = version.partition("+")[0]  # torch's CPU build is 2.x.y+cpu
    pinned = dict(
        (plain(name), version)
        for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text())
    )
    assert pinned and pinned.items() <= locked.items()
    print(f"{len(locked)} distributions, {len(re.findall('--hash', lock))} hashes")
    assert len(locked) == len(entries) > 90


@IN_CLONE
def test_lock_holds_all_that_is_asked_for():
    """Catches a dependency that setup.py has and the lock has not: `pip install --no-deps` would leave it out."""
    setup = ast.parse((ROOT / "setup.py").read_text())
    texts = [node.value for node in ast.walk(setup) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    asked = {plain(re.match(r"[\w.-]+", text)[0]) for text in texts if re.fullmatch(r"[\w.-]+>=[\d.,<]+", text)}
    locked = {
        plain(name) for name in re.findall(r"(?m)^([\w.-]+)==", (ROOT / ".ci" / "requirements.lock").read_text())
    }
    assert len(asked) > 20 and asked <= locked


@IN_CLONE
def test_actions_are_named_by_commit():
    """Catches an action that is named by a tag, which its owner, or who took the account, can move to other code."""
    found = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            found += [step["uses"] for step in job["steps"] if "uses" in step] + [job[key] for key in ("uses",) if key in job]  # fmt: skip
        lines = re.findall(r"uses: (.*)", path.read_text())
        assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in lines), lines
    assert len(found) >= 2


def test_no_code_of_a_checkpoint_is_run_without_being_asked():
    """Catches a loader that asks on the terminal, or one day trusts, because nothing was said."""
    silent = []
    for package in PACKAGES:
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if node.func.attr in LOADERS and (owner in RUNS_CODE or owner.startswith("AutoModel")):
                    said = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("trust_remote_code")
                    if said != "False":
                        silent.append(f"{path.name}:{node.lineno}")
    assert silent == []


def test_import_star_of_every_module():
    """Catches a name in `__all__` that the module does not have, and a module that cannot be imported by itself."""
    names = [package.__name__ for package in PACKAGES] + ["push_to_hub"]
    for package in PACKAGES:
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    assert len(names) > 150
    for name in names:
        exec(f"from {name} import *", {})
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [])
        assert len(set(exported)) == len(exported), name
