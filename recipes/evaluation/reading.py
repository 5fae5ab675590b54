# SPDX-License-Identifier: Apache-2.0
"""References and predictions as others publish them, checked and put in one order."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.common.tables import unescape_formula
from recipes.metrics.three_d_qa.question_types import question_type


QUESTION_ID_KEYS = ("question_id", "questionId", "qid", "id")
# A key further left is preferred: what the others hold beside it is often the gold answer or the prompt.
PREDICTION_KEYS = ("prediction", "pred", "pred_answer", "predicted_answer", "pred_response", "response_pred")
PREDICTION_KEYS += ("response", "output", "generated_text", "answer", "text")
EXAMPLES, LONGEST = 5, 80  # ids that a message names, and their characters
# Of text that is no JSON, or nested without end, or holds an integer of thousands of digits.
BAD_JSON = (ValueError, RecursionError)


@dataclass(frozen=True)
class Questions:
    """
    Questions with references, all lists in one order.

    Attributes:
        dataset: "scanqa" or "sqa3d", whose rules apply.
        source: Where they come from, for messages.
        ids, texts: Id and text of each question.
        references: The answers of each question.
    """

    dataset: str
    source: str
    ids: list[str]
    texts: list[str]
    references: list[list[str]]

    @property
    def types(self) -> list[str]:
        return [question_type(text, self.dataset) for text in self.texts]


def listed(ids: Sequence) -> str:
    """ "3 (a, b, c)": how messages name many questions."""
    return f"{len(ids)} ({', '.join(map(shown, ids[:EXAMPLES]))}{', ...' * (len(ids) > EXAMPLES)})"


def shown(value) -> str:
    """A value in a line of a message: control characters as escapes, no more than `LONGEST` characters."""
    text = str(value)[: LONGEST + 1]
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def read_json(path: Path):
    """The content of a JSON, JSON Lines or CSV file. Raises ValueError naming file (and line)."""
    try:
        text = path.read_bytes().decode(
            "utf-8-sig"
        )  # as text a carriage return within a cell would become a line feed
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
        uneven = [number for number, row in enumerate(rows, start=2) if None in row or None in row.values()]
        if uneven:
            raise ValueError(f"{path}: {listed(uneven)} rows have another number of columns than the header.")
        return [{key: unescape_formula(cell) for key, cell in row.items()} for row in rows]
    if path.suffix != ".jsonl":
        try:
            return json.loads(text)
        except BAD_JSON as error:
            if "Extra data" not in str(error):
                raise ValueError(f"{path} is not JSON: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except BAD_JSON as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return rows


def read_references(paths: Sequence[Path], split: str | None = None) -> Questions:
    """
    Official files of ScanQA (one) or SQA3D (questions and annotations, in any order), or one prepared dataset.

    Args:
        split: The split of a prepared dataset; needed if it has several.

    Raises:
        ValueError: naming the file and what was expected, and every kind of bad question with count and ids.
    """
    if len(paths) == 1 and paths[0].is_dir():
        questions = _read_prepared(paths[0], split)
    else:
        contents = [(path, read_json(path)) for path in paths]
        questions = _read_official(contents)
    problems = []
    repeated = [key for key, count in Counter(questions.ids).items() if count > 1]
    unanswered = [key for key, answers in zip(questions.ids, questions.references, strict=True) if not answers]
    if repeated:
        problems.append(f"question ids that occur more than once: {listed(repeated)}")
    if unanswered:
        problems.append(f"questions without references, which cannot be scored: {listed(unanswered)}")
    odd = [key for key, answers in zip(questions.ids, questions.references) if not are_texts(answers)]
    if odd:
        problems.append(f"questions whose references are not all text: {listed(odd)}")
    unwritable = [key for key, text in zip(questions.ids, questions.texts, strict=True) if not are_texts([key, text])]
    if unwritable:
        problems.append(f"questions whose id or text cannot be written: {listed(unwritable)}")
    if not questions.ids:
        problems.append("no questions")
    if problems:
        raise ValueError(f"{questions.source}: " + "; ".join(problems) + ".")
    return questions


def _read_official(contents: list[tuple[Path, object]]) -> Questions:
    source = ", ".join(str(path) for path, _ in contents)
    expected = (
        f"{source}: expected ScanQA's list of {{question_id, question, answers}}, SQA3D's questions and annotations "
        "files (both), or the folder of a prepared dataset"
    )
    if len(contents) == 1 and isinstance(contents[0][1], list):
        rows = _rows(contents[0][0], contents[0][1], ("question_id", "question"))
        return Questions(
            "scanqa",
            source,
            [str(row["question_id"]) for row in rows],
            [row["question"] for row in rows],
            [_answers(row, source) for row in rows],
        )
    parts = {}
    for path, content in contents:
        # Both official files, or one file that holds both under their names.
        for value in content.values() if isinstance(content, dict) and {"questions", "annotations"} <= set(content) else [content]:  # fmt: skip
            name = next(
                (key for key in ("questions", "annotations") if isinstance(value, dict) and key in value), None
            )
            if name is None or name in parts:
                raise ValueError(f"{expected}.")
            parts[name] = _rows(path, value[name], ("question_id", "question" if name == "questions" else "answers"))
    if set(parts) != {"questions", "annotations"}:
        raise ValueError(f"{expected}; the SQA3D file of {' and '.join(parts)} is alone.")
    ids = [str(row["question_id"]) for row in parts["questions"]]
    answers = {str(row["question_id"]): _answers(row, source) for row in parts["annotations"]}
    alone = sorted(set(ids) ^ set(answers))
    if alone:
        raise ValueError(f"{source}: question ids in only one of the two files: {listed(alone)}.")
    if len(parts["annotations"]) != len(answers):
        raise ValueError(f"{source}: {len(parts['annotations']) - len(answers)} annotations repeat a question id.")
    return Questions(
        "sqa3d", source, ids, [row["question"] for row in parts["questions"]], [answers[key] for key in ids]
    )


def _rows(path: Path, rows, keys: tuple[str, ...]) -> list[dict]:
    """`rows`, if it is a list of objects with `keys`."""
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, got {type(rows).__name__}.")
    for number, row in enumerate(rows):
        absent = [key for key in keys if not isinstance(row, dict) or key not in row]
        if absent:
            raise ValueError(f"{path}, row {number}: no {' or '.join(map(repr, absent))}.")
        if "question" in keys and not isinstance(row["question"], str):
            raise ValueError(f"{path}, row {number}: 'question' is {type(row['question']).__name__}, not text.")
    return rows


def _answers(row: dict, source: str) -> list:
    """ScanQA's list of strings or SQA3D's list of {"answer"}; ScanQA's test files have none."""
    answers = row.get("answers") or []
    if not isinstance(answers, list):
        raise ValueError(
            f"{source}: question {row['question_id']}: 'answers' is {type(answers).__name__}, not a list."
        )
    return [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]


def read_prepared(folder: str, split: str | None) -> list[dict]:
    """
    The questions of a prepared dataset's split: `question_id`, `question`, `answers`, `task`.

    Raises:
        ValueError: if it is not one, or the split is not there or not given although there are several.
    """
    import datasets  # seconds to import, which official files need not wait for

    try:
        splits = datasets.load_dataset(folder, "qa")
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(f"{folder} is not a prepared dataset (made by data_scripts.prepare): {error}") from error
    if split is None and len(splits) > 1:
        raise ValueError(f"{folder} has the splits {', '.join(splits)}: choose one with --split.")
    if split is not None and split not in splits:
        raise ValueError(f"{folder} has no split {split!r}, only {', '.join(splits)}.")
    rows = splits[split or next(iter(splits))]
    return rows.select_columns(["question_id", "question", "answers", "task"]).to_list()


def dataset_of(tasks: Sequence[str], source: str) -> str:
    """Whose scoring rules apply to questions of these tasks: SQA3D's, or ScanQA's for every other. Not both at once."""
    if "sqa3d" in tasks and set(tasks) != {"sqa3d"}:
        raise ValueError(f"{source} mixes sqa3d with {', '.join(sorted(set(tasks) - {'sqa3d'}))}: score each alone.")
    return "sqa3d" if "sqa3d" in tasks else "scanqa"


def _read_prepared(folder: Path, split: str | None) -> Questions:
    rows = read_prepared(str(folder), split)
    dataset = dataset_of([row["task"] for row in rows], str(folder))
    return Questions(
        dataset, str(folder), *([row[key] for row in rows] for key in ("question_id", "question", "answers"))
    )


def read_predictions(
    path: Path, id_key: str | None = None, prediction_key: str | None = None
) -> tuple[list[tuple[str, object, object]], str]:
    """
    `(id, prediction, references or None)` of every row of a JSON, JSON Lines or CSV file, and which keys were read.

    A file is a list of objects, or one object `{id: prediction}`.

    Raises:
        ValueError: if it is something else, or the keys cannot be told.
    """
    rows = read_json(path)
    if isinstance(rows, dict) and rows and all(isinstance(value, str) for value in rows.values()):
        return [(key, value, None) for key, value in rows.items()], "{id: prediction}"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of predictions, each an object, or one object {{id: prediction}}.")
    if not rows:
        raise ValueError(f"{path} holds no predictions.")
    keys = []
    for given, known, option in (
        (id_key, QUESTION_ID_KEYS, "--id-key"),
        (prediction_key, PREDICTION_KEYS, "--prediction-key"),
    ):
        key = given or next((key for key in known if key in rows[0]), None)
        without = [number for number, row in enumerate(rows) if key not in row]
        if without:
            raise ValueError(
                f"{path}: {'no known key' if key is None else repr(key)} for {option} in rows {listed(without)}; "
                f"row {without[0]} has {', '.join(map(shown, rows[without[0]]))}. Known are {', '.join(known)}."
            )
        keys.append(key)
    found = []
    for number, row in enumerate(rows):
        references = row.get("references")
        if path.suffix == ".csv" and references is not None:
            try:
                references = json.loads(references)
            except BAD_JSON as error:
                raise ValueError(f"{path}, row {number}: references are not a JSON list: {error}") from error
        found.append((str(row[keys[0]]), row[keys[1]], references))
    return found, f"{keys[0]} and {keys[1]}"


def are_texts(values) -> bool:
    return isinstance(values, list) and all(_is_text(value) for value in values)


def _is_text(value) -> bool:
    """Whether it is a string that can be written: JSON can hold halves of surrogate pairs."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def align(
    predictions: list[tuple[str, object, object]], questions: Questions, source: str, allow_missing: bool = False
) -> tuple[list[str | None], list[list[str]], list[str]]:
    """
    Predictions in the order of the questions.

    Args:
        predictions: From [`read_predictions`]; a row's own references replace the question's.
        source: The predictions' file, for messages.
        allow_missing: Questions without a prediction are wrong (None) instead of an error.

    Returns:
        Predictions, references and remarks for the user.

    Raises:
        ValueError: with every kind of bad row, counts and ids.
    """
    known, counts = set(questions.ids), Counter(key for key, _, _ in predictions)
    found = {key: (text, references) for key, text, references in predictions}
    missing = [key for key in questions.ids if key not in found]
    extra = [key for key in found if key not in known]
    if len(extra) == len(found):
        raise ValueError(
            f"{source}: none of its question ids is in {questions.source}: {listed(extra)} against "
            f"{listed(questions.ids)}. Another dataset or split?"
        )
    problems = {
        "question ids that occur more than once": [key for key, count in counts.items() if count > 1],
        "question ids that the references do not have": extra,
        "predictions that are not text": [key for key, (text, _) in found.items() if not _is_text(text)],
        "rows with an empty list of references": [key for key, (_, answers) in found.items() if answers == []],
        "rows whose references are not a list of texts": [
            key for key, (_, answers) in found.items() if answers is not None and not are_texts(answers)
        ],
    }
    if not allow_missing:
        problems["questions without a prediction (--allow-missing counts them as wrong)"] = missing
    problems = [f"{kind}: {listed(ids)}" for kind, ids in problems.items() if ids]
    if problems:
        raise ValueError(f"{source}: " + "; ".join(problems) + ".")
    remarks = {
        "questions without a prediction, counted as wrong": missing,
        "empty predictions": [key for key, (text, _) in found.items() if not text.strip()],
        "rows with references of their own, used instead of the official ones": [
            key for key, (_, answers) in found.items() if answers is not None
        ],
    }
    texts = [found[key][0] if key in found else None for key in questions.ids]
    references = [
        (found[key][1] if key in found else None) or answers
        for key, answers in zip(questions.ids, questions.references, strict=True)
    ]
    return texts, references, [f"{source}: {kind}: {listed(ids)}" for kind, ids in remarks.items() if ids]


__all__ = [
    "Questions",
    "align",
    "dataset_of",
    "listed",
    "read_json",
    "read_predictions",
    "read_prepared",
    "read_references",
]
