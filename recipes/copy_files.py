# SPDX-License-Identifier: Apache-2.0
"""Copies the settings of the stages, accelerate's templates, the Slurm files and the tested versions, to be adapted.

vggt-qwen3 files [--output DIR]

They keep their paths (recipes/configs, recipes/accelerate_configs, recipes/slurm, constraints.txt), so that in DIR the
commands of the documentation work as they do in a clone of the repository. A file that is there and differs stays.
"""

import argparse
import shutil
import sys
from pathlib import Path

from recipes import top_file
from recipes.common.files import check_writable


RECIPES = Path(__file__).parent
FOLDERS = ("configs", "accelerate_configs", "slurm")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("."), metavar="DIR", help="default: the current folder")
    arguments = parser.parse_args()
    try:
        check_writable(arguments.output, "--output")
        copied, differ = copy_files(arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.copy_files: {error}")
    print(f"{copied} files are new in {arguments.output}.")
    for path in differ:
        print(f"{path} is there and differs: it stays as it is.")


def copy_files(output: Path) -> tuple[int, list[Path]]:
    """How many files were copied, and those that were there with another content."""
    sources = {Path("constraints.txt"): top_file("constraints.txt")}
    for folder in FOLDERS:
        files = (path for path in sorted((RECIPES / folder).rglob("*")) if path.is_file())
        sources |= {Path("recipes") / path.relative_to(RECIPES): path for path in files}
    copied, differ = 0, []
    for name, source in sources.items():
        target = output / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += 1
        elif target.read_bytes() != source.read_bytes():
            differ.append(target)
    return copied, differ


if __name__ == "__main__":
    main()


__all__ = ["copy_files"]
