# SPDX-License-Identifier: Apache-2.0
"""What came of `recipes.demo`: tables against the blind models, three questions with their views, the loss curves.

python -m recipes.summary --demo DIR
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.common.scenes import SceneDataset
from recipes.demonstration.results import SPLITS, read_results, results_text
from recipes.evaluation.figures import draw_examples, draw_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder that recipes.demo filled")
    arguments = parser.parse_args()
    try:
        summarize(arguments.demo)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.summary: {error}")


def summarize(demo: Path):
    results = read_results(demo)
    print("", results_text(results), sep="\n")
    source = SceneDataset(str(demo / "data" / "scanqa"), SPLITS["scanqa"])
    views = [source.views(source.scene_ids.index(example["scene_id"]))[0] for example in results["examples"]]
    draw_examples(list(zip(views, results["examples"], strict=True)), demo / "examples.png")
    histories = {
        name: json.loads((demo / name / "trainer_state.json").read_text())["log_history"]
        for name in ("stage1", "stage2", "blind")
    }
    draw_loss(histories, demo / "loss.png")
    print(f"\nPictures: {demo / 'examples.png'}, {demo / 'loss.png'}, {demo / 'rooms' / 'preview.png'}")
    pages = [str(demo / f"{dataset}.html") for dataset in (*SPLITS, "arkit_actions")]
    print(f"Every question with its views: {', '.join(pages)}; a plan of a room: {demo / 'plan.png'}")


if __name__ == "__main__":
    main()
