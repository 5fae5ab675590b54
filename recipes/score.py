# SPDX-License-Identifier: Apache-2.0
"""Scores any system's answers to ScanQA or SQA3D under the five protocols in use.

python -m recipes.score --predictions FILE --references FILE [FILE] [--output DIR] [--compare OTHER] [--blind BLIND]

FILE is JSON, JSON Lines or CSV. References are ScanQA's official file, SQA3D's two, or the folder of a prepared dataset.
Into DIR go scores.json ({protocol: {metric: percent}}), details.json (with intervals, question types and baselines),
verdicts.csv (every protocol's verdict on every question) and, with --compare, flipped.csv.
"""

import argparse
import sys
from pathlib import Path

from data_scripts.files import write_atomically
from recipes.common.files import check_writable
from recipes.common.tables import csv_text
from recipes.evaluation.reading import align, listed, read_predictions, read_references
from recipes.evaluation.report import (
    BLIND,
    MODEL,
    TRIVIAL,
    differences_table,
    flipped_questions,
    scores_table,
    types_table,
    write_scores,
)
from recipes.metrics.three_d_qa.captions import left_out
from recipes.metrics.three_d_qa.protocols import PROTOCOLS, protocols_for
from recipes.metrics.three_d_qa.scoring import most_frequent_answers, score


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True, help="rows may carry their own `references`")
    parser.add_argument(
        "--references", type=Path, nargs="+", required=True, help="official files, or a prepared folder"
    )
    parser.add_argument("--split", help="split of a prepared dataset, if it has several")
    parser.add_argument("--protocol", default="all", choices=["all", *PROTOCOLS])
    parser.add_argument("--em-only", action="store_true", help="leave out BLEU, METEOR, ROUGE-L and CIDEr")
    parser.add_argument("--output", type=Path, help="folder for the scores; without it there is only the table")
    parser.add_argument("--compare", type=Path, help="another system's predictions: paired difference and flips")
    parser.add_argument("--blind", type=Path, help="predictions of the model that is trained without images")
    parser.add_argument(
        "--train-references", type=Path, nargs="+", help="training questions: baseline of their most frequent answers"
    )
    parser.add_argument("--allow-missing", action="store_true", help="count questions without a prediction as wrong")
    parser.add_argument("--id-key", help="key of the question's id; by default the first known one that is there")
    parser.add_argument("--prediction-key", help="key of the answer; by default the first known one that is there")
    arguments = parser.parse_args()
    try:
        score_files(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"recipes.score: {error}")


def score_files(arguments: argparse.Namespace):
    if arguments.output:
        check_writable(arguments.output, "--output")
    questions = read_references(arguments.references, arguments.split)
    protocols_for(questions.dataset, arguments.protocol)
    systems, references = {}, None
    for name, path in ((MODEL, arguments.predictions), (str(arguments.compare), arguments.compare), (BLIND, arguments.blind)):  # fmt: skip
        if path is None:
            continue
        rows, keys = read_predictions(path, arguments.id_key, arguments.prediction_key)
        systems[name], own, remarks = align(rows, questions, str(path), arguments.allow_missing)
        print(f"{path}: {len(rows)} predictions, read from {keys}")
        print("".join(f"  {remark}\n" for remark in remarks), end="")
        # Systems are compared under the same references: those of the first.
        references = own if references is None else references
        if own != references and any(answers is not None for _, _, answers in rows):
            other = [key for key, ours, theirs in zip(questions.ids, references, own, strict=True) if ours != theirs]
            raise ValueError(f"{path}: other references than {arguments.predictions}: {listed(other)}.")
    types = questions.types
    if arguments.train_references:
        training = read_references(arguments.train_references, "train")
        if training.dataset != questions.dataset:
            raise ValueError(f"{training.source} is {training.dataset}, {questions.source} is {questions.dataset}.")
        systems[TRIVIAL] = most_frequent_answers(list(zip(training.types, training.references, strict=True)), types)

    captions = not arguments.em_only
    scored = score(systems, references, types, questions.dataset, arguments.protocol, captions)
    undefined = [name for name in PROTOCOLS if questions.dataset not in PROTOCOLS[name].rules]
    print(f"\nPercent, {questions.dataset}" + f" (not defined: {', '.join(undefined)})" * bool(undefined) + "\n")
    print(scores_table(scored[MODEL]), "\n\n", types_table(scored[MODEL]), sep="")
    if len(systems) > 1:
        print("\n", differences_table(scored), sep="")
    if BLIND not in systems or TRIVIAL not in systems:
        absent = ["--blind"] * (BLIND not in systems) + ["--train-references"] * (TRIVIAL not in systems)
        print(f"\nA score says little without its baselines: give {' and '.join(absent)}.")
    lines = left_out() if captions else []
    print("".join(f"\n{line}\n" for line in lines), end="")
    if arguments.compare:
        header, flips = flipped_questions(scored, str(arguments.compare), questions.ids, systems)
        for protocol in scored[MODEL]:
            gained, lost = ([row[1] for row in flips if row[0] == protocol and (row[2] == MODEL) == won] for won in (True, False))  # fmt: skip
            print(
                f"\n{protocol}: right only here: {listed(gained)}; right only in {arguments.compare}: {listed(lost)}"
            )
    if arguments.output:
        write_scores(arguments.output, scored, questions.ids, questions.texts, systems[MODEL], references, lines)
        if arguments.compare:
            write_atomically(arguments.output / "flipped.csv", csv_text(header, flips))
        print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
