# SPDX-License-Identifier: Apache-2.0
"""What came of `recipes.demo`: a table against the blind model, three questions with their views, the loss curves.

python -m recipes.summary --demo DIR
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.evaluation.figures import draw_examples, draw_loss
from recipes.evaluation.report import BLIND, TRIVIAL, format_table, read_run
from recipes.training.data import SceneDataset


SPLITS = {"scanqa": "test_w_obj", "sqa3d": "test"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder that recipes.demo filled")
    arguments = parser.parse_args()
    try:
        summarize(arguments.demo)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.summary: {error}")


def summarize(demo: Path):
    table = []
    for dataset in SPLITS:
        _, model = read_run(demo / "scores" / "stage2" / dataset)
        blind, trivial = model["baselines"][BLIND], model["baselines"][TRIVIAL]
        rows = [
            (name, entry["num_questions"], entry, blind["types"][name], trivial["types"][name])
            for name, entry in model["types"].items()
        ]
        for name, number, *entries in [*rows, ("all", model["num_questions"], model, blind, trivial)]:
            score, blind_score, trivial_score = (entry["exact_match"] for entry in entries)
            cells = [score, blind_score, score - blind_score, trivial_score]
            table.append([f"{dataset} {name}", number, *cells])
    print("\nExact match on scenes never seen in training:\n")
    header = ["questions", "number", "model", "blind", "difference", "most frequent answer"]
    print(format_table(header, table))

    source = SceneDataset(str(demo / "data" / "scanqa"), SPLITS["scanqa"])
    # The first question of each of three types, each about a room of its own.
    examples, types, scenes = [], set(), set()
    for row in read_run(demo / "scores" / "stage2" / "scanqa")[0]:
        if row["question_type"] not in types and row["scene_id"] not in scenes and len(examples) < 3:
            types.add(row["question_type"])
            scenes.add(row["scene_id"])
            examples.append((source.views(source.scene_ids.index(row["scene_id"]))[0], row))
            print(f"\n{row['question']}\n  model: {row['prediction']}    reference: {row['references'][0]}")
    draw_examples(examples, demo / "examples.png")
    histories = {
        name: json.loads((demo / name / "trainer_state.json").read_text())["log_history"]
        for name in ("stage1", "stage2", "blind")
    }
    draw_loss(histories, demo / "loss.png")
    print(f"\nPictures: {demo / 'examples.png'}, {demo / 'loss.png'}, {demo / 'rooms' / 'preview.png'}")
    print("Every question with its views: " + ", ".join(str(demo / f"{dataset}.html") for dataset in SPLITS))


if __name__ == "__main__":
    main()
