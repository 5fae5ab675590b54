# SPDX-License-Identifier: Apache-2.0
"""Scores on disk and as tables. Nothing here imports more than numpy: scoring a file takes a second or two."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_scripts.files import write_atomically
from recipes.common.tables import csv_text, format_table
from recipes.metrics.three_d_qa.protocols import EM
from recipes.metrics.three_d_qa.scoring import ALL, METRICS, ProtocolScores

from .reading import BAD_JSON, are_texts, listed


# The names of the systems that are scored together, and what the tables call them.
MODEL, BLIND, TRIVIAL = "model", "blind", "most frequent training answer"
Scored = dict[str, dict[str, ProtocolScores]]  # {system: {protocol: scores}}


def read_run(output: Path) -> tuple[list[dict], dict]:
    """Predictions and metrics that `recipes.eval` wrote to `output`. Raises ValueError if they are not there."""
    path = output / "predictions.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        path = output / "metrics.json"
        return rows, json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *BAD_JSON) as error:
        raise ValueError(f"{path} is not of a run of recipes.eval: {error}") from error


def read_baseline(output: Path) -> tuple[list[dict], dict]:
    """As `read_run`; also raises ValueError if the rows have not the texts `question_id` and `prediction`, or the metrics `blind`."""
    rows, metrics = read_run(output)
    wrong = [
        number
        for number, row in enumerate(rows)
        if not isinstance(row, dict) or not are_texts([row.get("question_id"), row.get("prediction")])
    ]
    if wrong or not isinstance(metrics, dict) or "blind" not in metrics:
        what = (
            f"rows without the texts question_id and prediction: {listed(wrong)}"
            if wrong
            else "nothing says if it was blind"
        )
        raise ValueError(f"{output} is not of a run of recipes.eval: {what}.")
    return rows, metrics


def baselines(scored: Scored) -> dict:
    """Per system beside the model, its scores and the paired differences of the model to it, by protocol."""
    return {
        name: {
            protocol: {**scores.summary(), "model minus this": scored[MODEL][protocol].difference(scores)}
            for protocol, scores in protocols.items()
        }
        for name, protocols in scored.items()
        if name != MODEL
    }


def percentages(protocols: dict[str, ProtocolScores]) -> dict[str, dict[str, float]]:
    """`{protocol: {metric: percent}}` over all questions."""
    return {
        protocol: {metric: scores.percent[ALL, metric] for metric in METRICS if (ALL, metric) in scores.percent}
        for protocol, scores in protocols.items()
    }


def accuracy(protocols: dict[str, ProtocolScores]) -> dict:
    """`{"exact_match", "types": {type: {"exact_match", "num_questions"}}}` in [0, 1]: EM@1 of llava3d, which
    `exact_match` of the protocols, and so training, uses too."""
    summary = protocols["llava3d"].summary()
    return {
        "exact_match": summary[EM] / 100,
        "types": {
            name: {"exact_match": entry[EM] / 100, "num_questions": entry["n"]}
            for name, entry in sorted(summary["types"].items())
        },
    }


def write_scores(
    output: Path,
    scored: Scored,
    ids: Sequence[str],
    texts: Sequence[str],
    predictions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    left_out: list[str],
):
    """
    Writes into `output`:

    - `scores.json`: `{protocol: {metric: percent}}` of the model;
    - `details.json`: the same with intervals and question types, and for every other system its scores and the paired
      difference;
    - `verdicts.csv`: one line per question with every protocol's verdict.
    """
    write_atomically(output / "scores.json", json.dumps(percentages(scored[MODEL]), indent=2) + "\n")
    details = {
        "protocols": {protocol: scores.summary() for protocol, scores in scored[MODEL].items()},
        "baselines": baselines(scored),
        "left_out": left_out,
    }
    write_atomically(output / "details.json", json.dumps(details, indent=2) + "\n")
    verdicts = {
        f"{protocol} {metric}": correct
        for protocol, scores in scored[MODEL].items()
        for metric, correct in scores.verdicts.items()
    }
    types = next(iter(scored[MODEL].values())).types
    header = ["question_id", "question_type", "question", "prediction", "references", *verdicts]
    columns = [ids, types, texts, ["" if text is None else text for text in predictions]]
    columns += [[json.dumps(answers, ensure_ascii=False) for answers in references]]
    columns += [correct.astype(int).tolist() for correct in verdicts.values()]
    write_atomically(output / "verdicts.csv", csv_text(header, zip(*columns, strict=True)))


def flipped_questions(
    scored: Scored, other: str, ids: Sequence[str], predictions: dict[str, Sequence[str | None]]
) -> tuple[list[str], list[list]]:
    """
    The questions of which exactly one of the model and `other` is right under EM@1 of a protocol.

    Returns:
        Header and rows of a table: protocol, question, who is right, and what both said.
    """
    rows = []
    for protocol, scores in scored[MODEL].items():
        ours, theirs = scores.verdicts[EM], scored[other][protocol].verdicts[EM]
        for number in np.flatnonzero(ours != theirs):
            right = MODEL if ours[number] else other
            rows.append([protocol, ids[number], right, predictions[MODEL][number], predictions[other][number]])
    return ["protocol", "question_id", "right", MODEL, other], rows


def interval_text(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.2f} .. {bounds[1]:.2f}"


def scores_table(protocols: dict[str, ProtocolScores]) -> str:
    """All metrics in percent, a line per protocol, EM@1 with its interval."""
    present = [metric for metric in METRICS if any((ALL, metric) in scores.percent for scores in protocols.values())]
    rows = []
    for name, scores in protocols.items():
        summary = scores.summary()
        values = [summary.get(metric) for metric in present]
        rows.append([name, summary["n"], values[0], interval_text(summary["intervals"][EM]), *values[1:]])
    return format_table(["protocol", "questions", EM, "95 %", *present[1:]], rows)


def types_table(protocols: dict[str, ProtocolScores]) -> str:
    """EM@1 (and EM-R@1) in percent, a line per question type, a column per protocol."""
    summaries = {name: scores.summary()["types"] for name, scores in protocols.items()}
    columns = [(name, metric) for name, scores in protocols.items() for metric in scores.verdicts]
    first = next(iter(summaries.values()))
    rows = [
        [kind, first[kind]["n"], *(summaries[name][kind][metric] for name, metric in columns)]
        for kind in sorted(first)
    ]
    return format_table(["question type", "questions", *(f"{name} {metric}" for name, metric in columns)], rows)


def differences_table(scored: Scored) -> str:
    """The model beside every other system: both scores, the paired difference and its interval."""
    rows = []
    for name, protocols in scored.items():
        for protocol in protocols if name != MODEL else ():
            ours, theirs = scored[MODEL][protocol], protocols[protocol]
            for metric, entry in ours.difference(theirs).items():
                values = [ours.percent[ALL, metric], theirs.percent[ALL, metric], entry["difference"]]
                rows.append([f"{name}: {protocol} {metric}", *values, interval_text(entry["interval"])])
    return format_table(["beside", MODEL, "that", "difference", "95 %"], rows)


__all__ = [
    "BLIND",
    "MODEL",
    "TRIVIAL",
    "Scored",
    "accuracy",
    "baselines",
    "differences_table",
    "flipped_questions",
    "interval_text",
    "percentages",
    "read_run",
    "scores_table",
    "types_table",
    "write_scores",
]
