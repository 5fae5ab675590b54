# SPDX-License-Identifier: Apache-2.0
"""`demo.json` in the folder of `recipes.demo`: on which machine and with which code it was made, and how long each step took."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from data_scripts.files import write_atomically
from recipes import top_file
from recipes.common.device import has_fast_bfloat16
from recipes.runs.record import LIBRARIES, ROOT, describe_machine, now, read_json


RECORD = "demo.json"


def start_session(demo: Path, settings: dict, device_type: str):
    """Adds to the record of the folder `demo` that `recipes.demo` is called with `settings` (and goes on, if it was before)."""
    path = demo / RECORD
    record = read_json(path) if path.is_file() else {"sessions": []}
    record["sessions"].append(
        {
            "started": now(),
            "settings": settings,
            "commit": find_commit(),
            "machine": describe_machine() | {"bfloat16": has_fast_bfloat16(device_type), "threads": count_threads()},
            "versions": {name: version(name) for name in LIBRARIES},
            "steps": [],
        }
    )
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def count_threads() -> int:
    """Threads that the steps of the demo compute with: all cores, unless `OMP_NUM_THREADS` says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())


@contextmanager
def timed_step(demo: Path, name: str):
    """Records the step `name` and the seconds it takes; one that fails, or is killed, stays without them."""
    path = demo / RECORD
    record = read_json(path)
    step = {"name": name, "seconds": None}
    record["sessions"][-1]["steps"].append(step)
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    started = time.monotonic()
    yield
    step["seconds"] = round(time.monotonic() - started, 1)
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def find_commit() -> str | None:
    """The commit of this repository, with "+" if tracked files differ from it; None where git does not know, or if installed."""
    if not top_file("setup.py").is_file():
        return None  # an environment may lie in a repository of something else
    outputs = []
    for command in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            outputs.append(
                subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            )
        except (OSError, subprocess.CalledProcessError):
            return None
    return outputs[0].strip() + "+" * bool(outputs[1])


__all__ = ["RECORD", "find_commit", "start_session", "timed_step"]
