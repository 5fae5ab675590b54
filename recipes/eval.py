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
from copy import copy
from pathlib import Path

import datasets
import torch

from data_scripts.files import write_atomically
from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.common.files import check_writable
from recipes.common.generation import generate_answers
from recipes.common.loading import load_model, loading, open_store
from recipes.common.scenes import SceneDataset
from recipes.evaluation.actions import TASK as ACTIONS
from recipes.evaluation.actions import evaluate_actions
from recipes.evaluation.page import report_page
from recipes.evaluation.reading import dataset_of, listed
from recipes.evaluation.report import (
    BLIND,
    MODEL,
    TRIVIAL,
    Scored,
    accuracy,
    differences_table,
    percentages,
    read_baseline,
    scores_table,
    types_table,
    write_scores,
)
from recipes.metrics.three_d_qa.captions import left_out
from recipes.metrics.three_d_qa.protocols import PROTOCOLS, exact_match
from recipes.metrics.three_d_qa.question_types import question_type
from recipes.metrics.three_d_qa.scoring import most_frequent_answers, score
from recipes.runs.record import describe_dataset, hash_weights


# Options of one kind of dataset, which the other kind refuses, and what they are if not given.
OF_QUESTIONS = {"prompt_style": "official", "em_only": False, "max_new_tokens": 32, "num_beams": 1}
OF_ACTIONS = {"numbers_from": None, "save_plan": None, "plan_scene": None}


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
    parser.add_argument(
        "--prompt-style",
        default="official",
        choices=PROTOCOLS,
        help="append the protocol's suffix to the question (docs/evaluation.md); official (the default) and leo have none, "
        "and neither has training",
    )
    parser.add_argument("--em-only", action="store_true", help="leave out BLEU, METEOR, ROUGE-L and CIDEr")
    parser.add_argument("--num-views", type=int, help="views per scene, evenly spaced; by default all prepared ones")
    parser.add_argument("--batch-size", type=int, help="most questions per batch; by default as many as memory allows")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--num-beams", type=int, default=1, help="beam search; 1 is greedy")
    parser.add_argument(
        "--feature-store", "--feature_store", metavar="DIR", help="read features made by recipes.feature_store"
    )
    actions = parser.add_argument_group("actions")
    actions.add_argument(
        "--numbers-from",
        choices=("head", "text"),
        help="whose box of place_anchor is scored first: the anchor head's or the text's; by default the checkpoint's numbers_from",
    )
    actions.add_argument(
        "--save-plan", type=Path, metavar="PLAN.png", help="draw a scene from above: cameras, true and predicted boxes"
    )
    actions.add_argument("--plan-scene", metavar="SCENE", help="which scene --save-plan draws; by default the first")
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
    tasks = set(source.qa["task"])
    if ACTIONS in tasks and len(tasks) > 1:
        raise ValueError(f"{arguments.dataset} mixes {', '.join(sorted(tasks))}: evaluate actions alone.")
    others, kind = (OF_QUESTIONS, "text answers") if ACTIONS in tasks else (OF_ACTIONS, "actions")
    given = [name for name, default in others.items() if getattr(arguments, name) != default]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{names}: for {kind} only, and {arguments.dataset} has none.")
    if ACTIONS in tasks:
        evaluate_actions(arguments, processor, source)
        return
    dataset = dataset_of(source.qa["task"], arguments.dataset)
    blind_answers = read_blind_run(arguments.blind_run, source) if arguments.blind_run else None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with loading(arguments.model):
        model = load_model(arguments.model, "sdpa").to(device).eval()
    prompts = copy(source)
    suffix = PROTOCOLS[arguments.prompt_style].suffix[dataset]
    prompts.qa = source.qa.map(lambda row: {"question": row["question"] + suffix}) if suffix else source.qa
    answers = generate_answers(
        model,
        processor,
        prompts,
        list(range(len(source.qa))),
        blind=arguments.blind,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        num_beams=arguments.num_beams,
    )
    rows = []
    for index, answer in sorted(answers):
        row = source.qa[index]
        rows.append(
            {
                "question_id": row["question_id"],
                "scene_id": row["scene_id"],
                "situation": row["situation"],
                "question": row["question"],
                "question_type": question_type(row["question"], dataset),
                "prediction": answer,
                "references": row["answers"],
                "correct": exact_match(answer, row["answers"]) if row["answers"] else None,
            }
        )
    write_atomically(arguments.output / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    rows_with_references = [row for row in rows if row["references"]]
    metrics = {
        "model": str(arguments.model),
        "dataset": str(arguments.dataset),
        "split": arguments.split,
        "blind": arguments.blind,
        "prompt_style": arguments.prompt_style,
        # What was scored, for a model card: the path may hold another model by then.
        "weights_sha256": hash_weights(Path(arguments.model)) if Path(arguments.model).is_dir() else None,
        "prepared": describe_dataset(arguments.dataset),
        "num_questions": len(rows_with_references),
        "num_without_references": len(rows) - len(rows_with_references),
    }
    if rows_with_references:
        scored = score_rows(rows_with_references, dataset, blind_answers, arguments)
        metrics |= accuracy(scored[MODEL])
        metrics["protocols"] = percentages(scored[MODEL])
        metrics["baselines"] = {name: accuracy(scores) for name, scores in scored.items() if name != MODEL}
    else:
        metrics |= {"exact_match": None, "types": {}}
        print(f"{arguments.dataset}, split {arguments.split}, has no references: the predictions are not scored.")
        if tasks == {"scanqa"}:
            print("The server that scored ScanQA's test splits closed in February 2026: report --split val.")
    write_atomically(arguments.output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    if arguments.report and rows_with_references:
        scenes = [source.scene_ids[scene] for scene in source.questions_of_scene]
        page = report_page(
            f"{arguments.model} on {arguments.dataset}, {arguments.split}" + " (blind)" * arguments.blind,
            f"{len(rows)} questions about {len(scenes)} scenes; prompt style {arguments.prompt_style}",
            scored,
            [row | ({"blind": blind_answers[row["question_id"]]} if blind_answers else {}) for row in rows],
            # One scene at a time: decoded views of all scenes are more than a machine has memory for.
            ((source.scene_ids[scene], source.views(scene)[0]) for scene in source.questions_of_scene),
        )
        write_atomically(arguments.report, page)
        print(f"\nReport: {arguments.report}")


def read_blind_run(folder: Path, source: SceneDataset) -> dict[str, str]:
    """The blind model's answers by question id. Raises ValueError if it saw images or answered other questions."""
    rows, metrics = read_baseline(folder)
    if not metrics["blind"]:
        raise ValueError(f"{folder} is not of an evaluation with --blind.")
    answers = {row["question_id"]: row["prediction"] for row in rows}
    missing = [question_id for question_id in source.qa["question_id"] if question_id not in answers]
    if missing:
        raise ValueError(f"{folder} has no answers to questions of {source.path}, {source.split}: {listed(missing)}.")
    return answers


def score_rows(rows: list[dict], dataset: str, blind_answers: dict | None, arguments: argparse.Namespace) -> Scored:
    """Scores predictions and baselines, prints the tables and writes them into the output folder."""
    ids, texts, types, predictions, references = (
        [row[key] for row in rows] for key in ("question_id", "question", "question_type", "prediction", "references")
    )
    systems = {MODEL: predictions}
    if blind_answers is not None:
        systems[BLIND] = [blind_answers[question_id] for question_id in ids]
    splits = datasets.load_dataset(arguments.dataset, "qa")
    if "train" in splits:
        training = splits["train"].select_columns(["question", "answers"])
        training = [(question_type(row["question"], dataset), row["answers"]) for row in training]
        systems[TRIVIAL] = most_frequent_answers(training, types)
    scored = score(systems, references, types, dataset, captions=not arguments.em_only)
    lines = [] if arguments.em_only else left_out()
    write_scores(arguments.output, scored, ids, texts, predictions, references, lines)
    print(f"\nPercent, {dataset}, prompt style {arguments.prompt_style}" + ", blind" * arguments.blind + "\n")
    print(scores_table(scored[MODEL]), "\n\n", types_table(scored[MODEL]), sep="")
    if len(systems) > 1:
        print("\n", differences_table(scored), sep="")
    if blind_answers is None and not arguments.blind:
        print(
            "\nA score says little without its blind baseline: evaluate one with --blind and give it as --blind-run."
        )
    if TRIVIAL not in systems:
        print(f"\n{arguments.dataset} has no train split: no baseline of the most frequent training answer.")
    print("".join(f"\n{line}\n" for line in lines), end="")
    return scored


if __name__ == "__main__":
    main()
