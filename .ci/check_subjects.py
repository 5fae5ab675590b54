#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Refuses subjects of commits that are longer than 72 characters, which `git log --oneline` and GitHub cut off.

.ci/check_subjects.py FILE                # the message in it, as git gives it to the commit-msg hook
.ci/check_subjects.py origin/main..HEAD   # the commits between them
"""

import subprocess
import sys
from pathlib import Path


LIMIT = 72


def subjects(source: str) -> list[str]:
    """The subject of the message in a file, or those of a range of commits."""
    if Path(source).is_file():
        return Path(source).read_text(encoding="utf-8").splitlines()[:1]
    command = ["git", "log", "--no-merges", "--format=%s", source]
    result = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if result.returncode:
        sys.exit(f"{source} is neither a file nor a range of commits")
    return result.stdout.splitlines()


def main(source: str) -> int:
    long = [subject for subject in subjects(source) if len(subject) > LIMIT]
    for subject in long:
        print(f"{len(subject)} characters, more than {LIMIT}: {subject}")
    return int(bool(long))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
