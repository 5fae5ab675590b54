# SPDX-License-Identifier: Apache-2.0
"""Evaluation of questions with answers in text, under five protocols, beside their baselines."""

from copy import copy
from pathlib import Path

import datasets

from recipes.common.generation import generate_answers
from recipes.common.scenes import SceneDataset
from recipes.metrics.three_d_qa.captions import left_out
from recipes.metrics.three_d_qa.protocols import PROTOCOLS, exact_match
from recipes.metrics.three_d_qa.question_types import question_type
from recipes.metrics.three_d_qa.scoring import most_frequent_answers, score

from .page import report_page
from .reading import dataset_of, listed
from .report import (
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
from .task import EvaluationTask


class QuestionTask(EvaluationTask):
    """Of any dataset that does not ask for actions."""

    ABOUT = "text answers"
    OPTIONS = {
        "prompt_style": {
            "default": "official",
            "choices": PROTOCOLS,
            "help": "append the protocol's suffix to the question (docs/evaluation.md); official (the default) and leo have "
            "none, and neither has training",
        },
        "em_only": {"action": "store_true", "help": "leave out BLEU, METEOR, ROUGE-L and CIDEr"},
        "max_new_tokens": {"type": int, "default": 32, "help": "longest answer"},
        "num_beams": {"type": int, "default": 1, "help": "beam search; 1 is greedy"},
    }

    def __init__(self, arguments, processor, source):
        super().__init__(arguments, processor, source)
        self.dataset = dataset_of(source.qa["task"], arguments.dataset)
        self.blind_answers = read_blind_run(arguments.blind_run, source) if arguments.blind_run else None
        self.scored: Scored = {}
        self.captions_left_out: list[str] = []

    @classmethod
    def fits(cls, task):
        return True

    def generate(self, model):
        arguments, source = self.arguments, self.source
        prompts = copy(source)
        suffix = PROTOCOLS[arguments.prompt_style].suffix[self.dataset]
        prompts.qa = source.qa.map(lambda row: {"question": row["question"] + suffix}) if suffix else source.qa
        answers = generate_answers(
            model,
            self.processor,
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
                    "question_type": question_type(row["question"], self.dataset),
                    "prediction": answer,
                    "references": row["answers"],
                    "correct": exact_match(answer, row["answers"]) if row["answers"] else None,
                }
            )
        return rows

    def score(self, rows):
        with_references = [row for row in rows if row["references"]]
        metrics = {
            "prompt_style": self.arguments.prompt_style,
            "num_questions": len(with_references),
            "num_without_references": len(rows) - len(with_references),
        }
        if not with_references:
            return metrics | {"exact_match": None, "types": {}}
        ids, texts, types, predictions, references = (
            [row[key] for row in with_references]
            for key in ("question_id", "question", "question_type", "prediction", "references")
        )
        systems = {MODEL: predictions}
        if self.blind_answers is not None:
            systems[BLIND] = [self.blind_answers[question_id] for question_id in ids]
        splits = datasets.load_dataset(self.arguments.dataset, "qa")
        if "train" in splits:
            training = splits["train"].select_columns(["question", "answers"])
            training = [(question_type(row["question"], self.dataset), row["answers"]) for row in training]
            systems[TRIVIAL] = most_frequent_answers(training, types)
        self.scored = score(systems, references, types, self.dataset, captions=not self.arguments.em_only)
        self.captions_left_out = [] if self.arguments.em_only else left_out()
        write_scores(self.arguments.output, self.scored, ids, texts, predictions, references, self.captions_left_out)
        return metrics | {
            **accuracy(self.scored[MODEL]),
            "protocols": percentages(self.scored[MODEL]),
            "baselines": {name: accuracy(scores) for name, scores in self.scored.items() if name != MODEL},
        }

    def show(self, rows):
        arguments = self.arguments
        if not self.scored:
            print(f"{arguments.dataset}, split {arguments.split}, has no references: the predictions are not scored.")
            if set(self.source.qa["task"]) == {"scanqa"}:
                print("The server that scored ScanQA's test splits closed in February 2026: report --split val.")
            return
        style = f"prompt style {arguments.prompt_style}" + ", blind" * arguments.blind
        print(f"\nPercent, {self.dataset}, {style}\n")
        print(scores_table(self.scored[MODEL]), "\n\n", types_table(self.scored[MODEL]), sep="")
        if len(self.scored) > 1:
            print("\n", differences_table(self.scored), sep="")
        if self.blind_answers is None and not arguments.blind:
            print(
                "\nA score says little without its blind baseline: evaluate one with --blind and give it as --blind-run."
            )
        if TRIVIAL not in self.scored:
            print(f"\n{arguments.dataset} has no train split: no baseline of the most frequent training answer.")
        print("".join(f"\n{line}\n" for line in self.captions_left_out), end="")

    def page(self, title, rows):
        if not self.scored:
            return None
        source, blind_answers = self.source, self.blind_answers
        scenes = [source.scene_ids[scene] for scene in source.questions_of_scene]
        return report_page(
            title,
            f"{len(rows)} questions about {len(scenes)} scenes; prompt style {self.arguments.prompt_style}",
            self.scored,
            [row | ({"blind": blind_answers[row["question_id"]]} if blind_answers else {}) for row in rows],
            # One scene at a time: decoded views of all scenes are more than a machine has memory for.
            ((source.scene_ids[scene], source.views(scene)[0]) for scene in source.questions_of_scene),
        )


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


__all__ = ["QuestionTask", "read_blind_run"]
