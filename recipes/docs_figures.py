# SPDX-License-Identifier: Apache-2.0
"""Writes the tables, numbers and pictures of the demo in README.md and docs/ from a run of recipes.demo.

python -m recipes.docs_figures --demo demo
python -m recipes.docs_figures --check

What the text says of the run is kept in docs/demo.json. --check writes nothing: it fails where README.md, docs/*.md or the pictures
are not what that record says.
"""

import argparse
import difflib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from data_scripts.files import write_atomically
from recipes.demonstration.record import RECORD
from recipes.demonstration.text import PICTURES, demo_texts, fill, read_demo
from recipes.runs.record import read_json


ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--demo", type=Path, help="the folder that recipes.demo filled")
    action.add_argument("--check", action="store_true", help="compare text and pictures with docs/demo.json")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="folder of README.md and docs/ (default: this repository's)"
    )
    arguments = parser.parse_args()
    try:
        if arguments.check:
            check(arguments.root)
        else:
            write(arguments.demo, arguments.root)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.docs_figures: {error}")


def pages(root: Path) -> dict[Path, str]:
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(demo: Path, root: Path):
    """Everything is made before anything is written: a run that is not complete changes nothing."""
    record = read_demo(demo) | {"pictures": {name: digest(demo / name) for name in PICTURES}}
    texts = demo_texts(record)
    filled = {path: fill(text, texts, str(path)) for path, text in pages(root).items()}
    for name in PICTURES:
        partial = root / "docs" / f".{name}"
        shutil.copyfile(demo / name, partial)
        os.replace(partial, root / "docs" / name)
    write_atomically(root / "docs" / RECORD, json.dumps(record, indent=2) + "\n")
    for path, text in filled.items():
        write_atomically(path, text)
    print(f"Written from {demo}: {', '.join(str(path) for path, text in filled.items() if '<!-- demo:' in text)}")


def check(root: Path):
    """Raises ValueError, naming file and lines, for what is not of the run that docs/demo.json records."""
    record = read_json(root / "docs" / RECORD)
    texts, wrong = demo_texts(record), []
    for path, text in pages(root).items():
        names = str(path), f"{path} by docs/{RECORD}"
        wrong += difflib.unified_diff(
            text.splitlines(), fill(text, texts, str(path)).splitlines(), *names, "", "", 0, ""
        )
    for name, known in record["pictures"].items():
        if digest(root / "docs" / name) != known:
            wrong.append(f"docs/{name} is not the picture of that run")
    if wrong:
        raise ValueError("the docs are not what the run says; make docs-figures writes them:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
