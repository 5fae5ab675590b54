# SPDX-License-Identifier: Apache-2.0
"""
The parts of README.md and docs/ that come from a run of `recipes.demo`: text between `<!-- demo:NAME -->` and `<!-- /demo -->`.

Each is a pure function of the record beside the docs (docs/demo.json), so that it can be written again, and checked, without
the run.
"""

import re
from difflib import get_close_matches
from pathlib import Path

from recipes.runs.record import read_json

from .record import RECORD
from .results import ACTIONS_HEADER, QUESTIONS_HEADER, read_results, results_text


PICTURES = ("examples.png", "loss.png", "plan.png")
MARKED = re.compile(r"(<!-- demo:([^>]+?) -->)(.*?)(<!-- /demo -->)", re.DOTALL)
OPENED = re.compile(r"<!-- /?demo\b")
VERSIONS = ("torch", "transformers")


def read_demo(demo: Path) -> dict:
    """
    What the docs say of the run in the folder `demo`.

    Raises:
        ValueError: naming all that is missing, if the run is not complete, was a smoke run, or not all of it was made on one
            machine, by one commit, without an interrupted step.
    """
    needed = [demo / RECORD, demo / "stage2" / "run.json", *(demo / name for name in PICTURES)]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        raise ValueError(f"{demo} is not a complete run of recipes.demo: {', '.join(missing)} is missing.")
    sessions = [session for session in read_json(demo / RECORD)["sessions"] if session["steps"]]
    if not sessions:
        raise ValueError(f"{demo / RECORD} records no step: the run was made before there was a record.")
    first = sessions[0]
    if first["settings"]["overrides"]:
        raise ValueError(f"{demo} is a smoke run, which learns nothing: run it without --smoke.")
    if first["commit"] is None:
        raise ValueError(f"{demo / RECORD} has no commit: run recipes.demo in a git checkout.")
    for key in ("commit", "machine", "versions", "settings"):
        if any(session[key] != first[key] for session in sessions):
            raise ValueError(f"{demo / RECORD}: the run was interrupted and went on with another {key}.")
    steps = [step for session in sessions for step in session["steps"]]
    unknown = [step["name"] for step in steps if step["seconds"] is None]
    if unknown:
        raise ValueError(
            f"{demo / RECORD}: {', '.join(unknown)} was interrupted, so the time it takes is not known: run it again from an "
            "empty folder."
        )
    run = read_json(demo / "stage2" / "run.json")
    keys = ("started", "commit", "machine", "versions", "settings")
    return {
        **{key: first[key] for key in keys},
        "steps": steps,
        "parameters": run["parameters"]["total"],
        **read_results(demo),
    }


def demo_texts(record: dict) -> dict[str, str]:
    """The text of every name that `<!-- demo:NAME -->` may have."""
    machine, seconds = record["machine"], sum(step["seconds"] for step in record["steps"])
    if machine["accelerators"]:
        hardware = f"one {machine['accelerators'][0]}"
    else:
        has = "with" if machine["bfloat16"] else "without"
        cores = f"{machine['cores']} CPU cores"
        if machine.get("threads", machine["cores"]) < machine["cores"]:
            cores = f"{machine['threads']} of {cores}"
        hardware = f"{cores} ({machine['processor']}, {has} bfloat16 instructions)"
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in VERSIONS)
    texts = {
        "minutes": f"{seconds / 60:.0f}",
        "machine": hardware,
        "precision": "bfloat16" if machine["bfloat16"] else "float32",
        "commit": f"commit {record['commit']} of {record['started'][:10]}, {versions}",
        "parameters": f"{record['parameters'] / 1e6:.1f} million",
        "scenes": str(record["settings"]["scenes"]),
        "test_scenes": str(record["test_scenes"]),
        "scores": f"\n```\n{results_text(record)}\n```\n",
        "steps": "\n"
        + "\n".join(
            ["| step | seconds |", "|---|---:|"]
            + [
                f"| {step['name'].removesuffix('/train_results.json')} | {step['seconds']:.0f} |"
                for step in record["steps"]
            ]
        )
        + "\n",
    }
    for table, header in (("questions", QUESTIONS_HEADER), ("actions", ACTIONS_HEADER)):
        for row in record[table]:
            for name, value in zip(header[2:], row[2:], strict=True):
                texts[f"{row[0]}, {name}"] = "none" if value is None else f"{value:.2f}"
    return texts


def fill(text: str, texts: dict[str, str], source: str) -> str:
    """`text` with everything between markers replaced. Raises ValueError, naming `source`, for markers that do not fit."""

    def replace(match: re.Match) -> str:
        opening, name, _, closing = match.groups()
        if name not in texts:
            close = get_close_matches(name, texts, n=1)
            raise ValueError(
                f"{source}: there is no {name!r} of a demo." + (f" Did you mean {close[0]!r}?" if close else "")
            )
        return opening + texts[name] + closing

    if len(OPENED.findall(text)) != 2 * len(MARKED.findall(text)):
        raise ValueError(f"{source}: a <!-- demo:... --> has no <!-- /demo -->, or the other way round.")
    return MARKED.sub(replace, text)


__all__ = ["PICTURES", "demo_texts", "fill", "read_demo"]
