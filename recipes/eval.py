# SPDX-License-Identifier: Apache-2.0
"""Answers the questions of a prepared dataset greedily and scores the answers.

python -m recipes.eval --model DIR --dataset DIR --split SPLIT --output DIR [--blind]
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.evaluation.generation import exact_match, generate_answers
from recipes.evaluation.question_types import question_type
from recipes.evaluation.report import metrics_table, score, write_atomically
from recipes.training.data import SceneDataset
from recipes.training.sft import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("--dataset", required=True, help="prepared dataset: folder or Hub repository")
    parser.add_argument("--split", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions.jsonl and metrics.json")
    parser.add_argument("--blind", action="store_true", help="withhold the images")
    parser.add_argument("--num-views", type=int, help="views per scene, evenly spaced; by default all prepared ones")
    parser.add_argument("--batch-size", type=int, default=64, help="questions per batch")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    try:
        evaluate(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.eval: {error}")


def evaluate(arguments: argparse.Namespace):
    source = SceneDataset(arguments.dataset, arguments.split, arguments.num_views)
    processor = VggtQwen3Processor.from_pretrained(arguments.model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = load_model(arguments.model, "sdpa").to(device).eval()
    answers = generate_answers(
        model,
        processor,
        source,
        list(range(len(source.qa))),
        blind=arguments.blind,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
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
                "question_type": question_type(row["question"], row["task"]),
                "prediction": answer,
                "references": row["answers"],
                "correct": exact_match(answer, row["answers"]) if row["answers"] else None,
            }
        )
    metrics = {
        "model": str(arguments.model),
        "dataset": str(arguments.dataset),
        "split": arguments.split,
        "blind": arguments.blind,
        **score(rows),
    }
    write_atomically(arguments.output / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(arguments.output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(metrics_table(metrics))


if __name__ == "__main__":
    main()
