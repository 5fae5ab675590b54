# SPDX-License-Identifier: Apache-2.0
"""Answers the questions of a prepared dataset and scores the answers under five protocols, beside its baselines; or asks
for the actions of a prepared `arkit_actions` and scores their boxes.

python -m recipes.eval --model BLIND_MODEL --dataset DIR --split SPLIT --output BLIND --blind
python -m recipes.eval --model MODEL --dataset DIR --split SPLIT --output DIR --blind-run BLIND [--report page.html]

Into DIR go predictions.jsonl, metrics.json, scores.json ({protocol: {metric: percent}}), details.json (with intervals)
and verdicts.csv. `exact_match` in metrics.json is EM@1 of the protocol llava3d, in [0, 1]. --report adds a page to look at.
Of actions it is predictions.jsonl (with references and errors, in the frames of view 0 and of the world) and metrics.json.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from data_scripts.files import write_atomically
from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.files import check_writable
from recipes.common.loading import load_model, loading, open_store
from recipes.common.scenes import SceneDataset
from recipes.evaluation.actions import ActionTask
from recipes.evaluation.questions import QuestionTask
from recipes.evaluation.task import EvaluationTask, options_given
from recipes.runs.record import describe_dataset, hash_weights


# The first that fits a dataset evaluates it.
TASKS: list[type[EvaluationTask]] = [ActionTask, QuestionTask]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("--dataset", required=True, help="prepared dataset: folder or Hub repository")
    parser.add_argument("--split", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and scores")
    parser.add_argument("--blind", action="store_true", help="withhold the images")
    parser.add_argument(
        "--blind-run", type=Path, help="output of the blind model's evaluation, to show beside the score"
    )
    parser.add_argument(
        "--report", type=Path, metavar="PAGE", help="also write scores and all questions as an HTML page"
    )
    parser.add_argument("--num-views", type=int, help="views per scene, evenly spaced; by default all prepared ones")
    parser.add_argument("--batch-size", type=int, help="most questions per batch; by default as many as memory allows")
    parser.add_argument(
        "--feature-store", "--feature_store", metavar="DIR", help="read features made by recipes.feature_store"
    )
    for task in TASKS:
        group = parser.add_argument_group(task.ABOUT)
        for name, settings in task.OPTIONS.items():
            group.add_argument("--" + name.replace("_", "-"), **settings)
    arguments = parser.parse_args()
    if arguments.plan_scene and not arguments.save_plan:
        parser.error("--plan-scene says which scene --save-plan draws: it needs that")
    if arguments.blind and arguments.feature_store:
        parser.error("--feature-store gives a blind evaluation nothing to read: it withholds the images")
    if arguments.blind and arguments.blind_run:
        parser.error("--blind-run is the baseline of a model that sees: without --blind")
    try:
        evaluate(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"recipes.eval: {error}")


def evaluate(arguments: argparse.Namespace):
    check_writable(arguments.output, "--output")
    if arguments.report:
        check_writable(arguments.report.parent, "--report")
    with loading(arguments.model):
        processor = VggtQwen3Processor.from_pretrained(arguments.model, trust_remote_code=False)
    store = arguments.feature_store and open_store(arguments.feature_store, arguments.model, processor)
    source = SceneDataset(arguments.dataset, arguments.split, arguments.num_views, store, processor.image_processor)
    # What does not fit is found before the answers are generated.
    task = find_task(arguments, source)(arguments, processor, source)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with loading(arguments.model):
        model = load_model(arguments.model, "sdpa").to(device).eval()
    rows = task.generate(model)
    write_atomically(arguments.output / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    metrics = {
        "model": str(arguments.model),
        "dataset": str(arguments.dataset),
        "split": arguments.split,
        "blind": arguments.blind,
        # What was scored, for a model card: the path may hold another model by then.
        "weights_sha256": hash_weights(Path(arguments.model)) if Path(arguments.model).is_dir() else None,
        "prepared": describe_dataset(arguments.dataset),
        **task.score(rows),
    }
    write_atomically(arguments.output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    task.show(rows)
    if arguments.report:
        title = f"{arguments.model} on {arguments.dataset}, {arguments.split}" + " (blind)" * arguments.blind
        page = task.page(title, rows)
        if page is not None:
            write_atomically(arguments.report, page)
            print(f"\nReport: {arguments.report}")


def find_task(arguments: argparse.Namespace, source: SceneDataset) -> type[EvaluationTask]:
    """The task of a dataset. Raises ValueError if the dataset mixes several, or options of another one were given."""
    tasks = set(source.qa["task"])
    kinds = [next(kind for kind in TASKS if kind.fits(task)) for task in tasks]
    found = min(kinds, key=TASKS.index)
    if len(set(kinds)) > 1:
        raise ValueError(f"{arguments.dataset} mixes {', '.join(sorted(tasks))}: evaluate {found.ABOUT} alone.")
    for other in TASKS:
        if other is not found and (given := options_given(other, arguments)):
            raise ValueError(f"{', '.join(given)}: for {other.ABOUT} only, and {arguments.dataset} has none.")
    return found


if __name__ == "__main__":
    main()
