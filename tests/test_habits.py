# SPDX-License-Identifier: Apache-2.0
"""What contributors are told, asked and checked for: CONTRIBUTING, glossary, hooks, jobs and forms name what is there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_vggt_qwen3", "data_scripts", "recipes")
pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="what is in a clone of the repository only")


def script(name: str):
    """A script of `.ci` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(page: str) -> list[str]:
    """What stands between backticks in a page, without its blocks."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [code.replace("\\|", "|") for code in re.findall(r"`([^`\n]+)`", text)]


def make_targets() -> dict[str, str]:
    """Targets of the Makefile and their commands."""
    text = (ROOT / "Makefile").read_text()
    return {name: body for name, body in re.findall(r"^([\w-]+):.*\n((?:\t.*\n)*)", text, re.MULTILINE)}


def test_contributing_names_what_is_there():
    """Catches a file that was moved and a make target that was renamed, which CONTRIBUTING still sends people to."""
    tracked = {path.name for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")}
    wrong = []
    for page in (".github/CONTRIBUTING.md", ".github/pull_request_template.md"):
        for code in code_of(page):
            words = code.split()
            if words[0] == "make" and words[1:]:
                wrong += [code] * (words[1] not in make_targets())
            elif words[:2] == ["python", "-m"]:
                wrong += [code] * (not (ROOT / (words[2].replace(".", "/") + ".py")).is_file())
            elif words[0].startswith(".venv"):
                wrong += [word for word in words if word.startswith("tests/") and not (ROOT / word).is_file()]
            elif "/" in code and " " not in code:
                wrong += [code] * (not any(ROOT.glob(code)))
            elif code.endswith(".py"):
                wrong += [code] * (code not in tracked and not (ROOT / code).is_file())
    layout = re.search(r"## Layout\n\n```\n(.*?)```", (ROOT / ".github" / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    assert len(layout.splitlines()) == 10
    places = [place.strip() for line in layout.splitlines() for place in line.partition("  ")[0].split(",")]
    wrong += [place for place in places if not (ROOT / place).exists()]
    for page in (".github/CONTRIBUTING.md", ".github/SECURITY.md"):
        links = re.findall(r"\]\(([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8"))
        wrong += [link for link in links if "://" not in link and not (ROOT / ".github" / link).exists()]
    assert wrong == []


def test_contributing_names_what_the_code_has():
    """Catches a class, function or table that was renamed, to which CONTRIBUTING tells people to add theirs."""
    source = "\n".join(path.read_text() for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    names = [code for code in code_of(".github/CONTRIBUTING.md") if re.fullmatch(r"_?[A-Z]\w+(\.\w+)?|_\w+", code)]
    assert len(names) > 8
    assert [name for name in names if not re.search(rf"\b{name.rpartition('.')[2]}\b", source)] == []


def test_glossary_names_what_the_code_has():
    """Catches a key, column or class that was renamed and that the glossary still explains under its old name."""
    files = (path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml"))
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    codes = code_of("docs/glossary.md")
    assert len(codes) > 80
    missing = [code for code in codes if not re.search(rf"(?<!\w){re.escape(code)}(?!\w)", source)]
    assert [code for code in missing if not ("/" in code and (ROOT / code).exists())] == []


def test_hooks_run_what_make_quality_runs():
    """Catches a check that commits pass and CI does not, or another version of a tool in a hook than in constraints.txt."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    # Of .venv, which has the versions of constraints.txt: no version stands here that could be another.
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks.values())
    assert set(config["default_install_hook_types"]) == {"pre-commit", "commit-msg"}
    quality = make_targets()["quality"]
    for command in ("ruff check", "ruff format --check", "bin/typos", "/check_files.py"):
        assert command in quality or command.removeprefix("/") in quality, command
        assert any(command in hook["entry"] for hook in hooks.values()), command
    assert hooks["subject"]["stages"] == ["commit-msg"] and "check_subjects.py" in make_targets()["subjects"]
    pinned = (ROOT / "constraints.txt").read_text()
    assert all(re.search(rf"(?m)^{name}==\S+$", pinned) for name in ("ruff", "typos", "pre-commit"))


def test_jobs_run_what_ci_runs():
    """Catches a job that calls a target which the Makefile has not, and a check that only one of the two CIs makes."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(workflow["jobs"]) == {"lint", "fast", "slow"}
    called = {}
    for name, job in workflow["jobs"].items():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert job["timeout-minutes"] <= 60 and all(command.startswith("make ") for command in commands), name
        called[name] = [command.split()[1] for command in commands]
    targets = [target for targets in called.values() for target in targets]
    assert set(targets) <= set(make_targets())
    here = re.findall(r"(?m)^make (\S+)$", (ROOT / ".ci" / "run").read_text())
    assert sorted(here) == sorted(set(targets) - {"subjects"})  # of pull requests
    assert called["slow"] == ["test-slow", "smoke"] and "--smoke" in make_targets()["smoke"]


def test_issue_forms_are_as_github_takes_them():
    """Catches a form that GitHub refuses: it then shows none, and says so only on the page that nobody looks at."""
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.stem for path in forms] == ["bug", "config", "data", "feature"]
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            assert form == {"blank_issues_enabled": False}
            continue
        assert form["name"] and form["description"] and any(part["type"] != "markdown" for part in form["body"])
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids)
        for part in form["body"]:
            assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
            assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
    for command in re.findall(r'python -c "(.+)"', (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()):
        printed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
        assert re.search(r"(?m)^torch \d", printed)


def test_files_that_are_never_committed(tmp_path, monkeypatch):
    """Catches weights, a photo or a large file in a commit, which every clone would then have for ever."""
    fault = script("check_files").fault
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name, size in {
        "docs/plan.png": 600_000,
        "docs/large.png": 1_100_000,
        "a.py": 400_000,
        "b.py": 600_000,
    }.items():
        with open(name, "wb") as file:
            file.truncate(size)
    assert [fault(name) for name in ("docs/plan.png", "a.py", "tests/fixtures/vggt/x.safetensors")] == [None] * 3
    refused = ("docs/large.png", "b.py", "photo.JPG", "recipes/x.png", "model.safetensors", "a/b.bin", "data.parquet")
    assert all(fault(name) and name in fault(name) for name in refused)


def test_subjects_of_commits(tmp_path, capsys):
    """Catches a subject that every list of commits cuts off; it is characters that are counted, and the subject alone."""
    main = script("check_subjects").main
    message = tmp_path / "COMMIT_EDITMSG"
    for text, code in (("é" * 72 + "\n\n" + "b" * 100, 0), ("a" * 73, 1), ("", 0)):
        message.write_text(text, encoding="utf-8")
        assert main(str(message)) == code, text
    assert "73 characters, more than 72: aaa" in capsys.readouterr().out
