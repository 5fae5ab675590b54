# SPDX-License-Identifier: Apache-2.0
"""What came of `recipes.demo`: its scores and examples as plain values, and as the text that `recipes.summary` prints."""

import json
from pathlib import Path

from ..common.tables import format_table
from ..evaluation.report import BLIND, TRIVIAL, read_run


SPLITS = {"scanqa": "test_w_obj", "sqa3d": "test"}
QUESTIONS_HEADER = ["questions", "number", "model", "blind", "difference", "most frequent answer"]
ACTIONS_HEADER = ["actions", "number", "model", "blind", "constant"]
ACTION_METRICS = {
    "place_anchor": ["valid", "label", "center error (m)", "center @0.5 m", "center @1 m", "IoU @0.25", "normal error (deg)"],
    "list_objects": ["valid", "label", "objects precision @0.25", "objects recall @0.25"],
    "describe_room": ["valid", "objects precision @0.25", "objects recall @0.25"],
}  # fmt: skip


def read_results(demo: Path) -> dict:
    """
    The scores in the folder of `recipes.demo`.

    Returns:
        `questions` and `actions`: rows of the tables; `test_scenes`: rooms that the questions are about; `examples`: three
        questions with their answers; `example_action`: an instruction and what came of it.

    Raises:
        ValueError: if a score is not there, naming the file.
    """
    results = {"questions": [], "actions": []}
    scenes = set()
    for dataset in SPLITS:
        rows, model = read_run(demo / "scores" / "stage2" / dataset)
        scenes |= {row["scene_id"] for row in rows}
        blind, trivial = model["baselines"][BLIND], model["baselines"][TRIVIAL]
        entries = [
            (name, entry["num_questions"], entry, blind["types"][name], trivial["types"][name])
            for name, entry in model["types"].items()
        ]
        for name, number, *of_systems in [*entries, ("all", model["num_questions"], model, blind, trivial)]:
            score, blind_score, trivial_score = (entry["exact_match"] for entry in of_systems)
            cells = [score, blind_score, score - blind_score, trivial_score]
            results["questions"].append([f"{dataset} {name}", number, *cells])
    # The first question of each of three types, each about a room of its own.
    examples, types, shown = [], set(), set()
    for row in read_run(demo / "scores" / "stage2" / "scanqa")[0]:
        if row["question_type"] not in types and row["scene_id"] not in shown and len(examples) < 3:
            types.add(row["question_type"])
            shown.add(row["scene_id"])
            examples.append({key: row[key] for key in ("scene_id", "question", "prediction", "references")})

    rows, metrics = read_run(demo / "scores" / "stage3" / "arkit_actions")
    systems = metrics["scores"], metrics["baselines"][BLIND], metrics["baselines"]["constant"]
    for action, names in ACTION_METRICS.items():
        if action in metrics["scores"]:
            number = metrics["scores"][action]["n"]
            values = ([system[action][name] for system in systems] for name in names)
            results["actions"] += [[f"{action} {name}", number, *row] for name, row in zip(names, values, strict=True)]
    example = next(row for row in rows if row["reference"]["action"] == "place_anchor")
    example = {key: example[key] for key in ("question", "action", "reference")}
    return results | {"test_scenes": len(scenes), "examples": examples, "example_action": example}


def results_text(results: dict) -> str:
    """What `read_results` returns, to print."""
    example = results["example_action"]
    parts = [
        "Exact match on scenes never seen in training:",
        format_table(QUESTIONS_HEADER, results["questions"]),
        *(
            f"{example['question']}\n  model: {example['prediction']}    reference: {example['references'][0]}"
            for example in results["examples"]
        ),
        "Actions in such scenes (shares, precision and recall in percent):",
        format_table(ACTIONS_HEADER, results["actions"]),
        f"{example['question']}\n  model:     {_action_text(example['action'])}\n"
        f"  reference: {_action_text(example['reference'])}",
    ]
    return "\n\n".join(parts)


def _action_text(action: dict | None) -> str:
    def rounded(value):
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return round(value, 2) if isinstance(value, float) else value

    return json.dumps({key: rounded(value) for key, value in (action or {}).items()})


__all__ = ["ACTIONS_HEADER", "QUESTIONS_HEADER", "SPLITS", "read_results", "results_text"]
