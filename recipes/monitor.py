# SPDX-License-Identifier: Apache-2.0
"""A training run so far, also while it goes on: where it stands, what it logged, its checkpoints.

python -m recipes.monitor OUTPUT_DIR [--png FILE]
"""

import argparse
import sys
from pathlib import Path

from recipes.monitoring.figure import describe, draw_run
from recipes.monitoring.history import read_history


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="the run's output folder")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the run as a picture")
    arguments = parser.parse_args()
    try:
        history = read_history(arguments.output)
        print(describe(history))
        if arguments.png is not None:
            draw_run(history, arguments.png)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.monitor: {error}")


if __name__ == "__main__":
    main()
