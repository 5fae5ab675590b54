# SPDX-License-Identifier: Apache-2.0
"""How much there is to train on: counted in prepared repositories without decoding a picture, else the official counts."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
from transformers import AutoTokenizer

from data_scripts.builders import scanqa, sqa3d
from data_scripts.pictures import picture_size


# Assumed where data or tokenizer are not here: tokens of a question (words times 1.3) and of its answer with its end, and
# the questions of a scene or picture where no official counts give them. Answers of LLaVA are paragraphs; an action is JSON
# whose numbers are single digits.
ASSUMED_TOKENS = {"scanqa": (13, 4), "sqa3d": (38, 3), "instruct": (20, 90), "arkit_actions": (22, 90)}
ASSUMED_TOKENS |= {"llava": (20, 90), "sharegpt4v": (12, 200), "docvqa": (11, 5), "chartqa": (15, 3)}
ASSUMED_QUESTIONS = {"instruct": 3, "arkit_actions": 16, "llava": 3, "sharegpt4v": 1, "docvqa": 4, "chartqa": 2}
ASSUMED_SPREAD = 0.5  # standard deviation of a length over its mean
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 5  # <|im_end|>\n<|im_start|>assistant\n before the answer
SAMPLE = 2000  # questions whose tokens are counted
# SQA3D states 20.4 thousand descriptions of 6.8 thousand situations: in train each question comes with three of them.
SQA3D_TRAIN_SCENES, SQA3D_DESCRIPTIONS = 518, 3
SCANNET_PICTURE = (1296, 968)
PICTURES = {"instruct": (640, 480), "arkit_actions": (1920, 1440)}
PICTURES |= {"llava": (640, 480), "sharegpt4v": (640, 480), "docvqa": (1700, 2200), "chartqa": (800, 600)}


@dataclass
class DataSize:
    """
    One dataset's training split. `questions`, `scenes` and `packs` are None if only the kind of data is known.

    Args:
        packs: Packed sequences that hold every question once.
        questions_per_pack, most_questions: Of an average packed sequence, and of the fullest.
        tokens: Of question, template and answer: mean and standard deviation.
        labels: Of an answer with its end: mean and standard deviation.
        num_views: Views of a scene, as stored; None where not known.
        picture: Width and height in pixels of a stored picture.
        origin: Where the numbers are from, in words.
    """

    path: str
    questions: int | None
    scenes: int | None
    packs: float | None
    questions_per_pack: float
    most_questions: int
    tokens: tuple[float, float]
    labels: tuple[float, float]
    num_views: int | None
    picture: tuple[int, int]
    origin: str


class NotPreparedError(ValueError):
    """A folder or a dataset of the Hub that data_scripts.prepare has not made."""


def files_of_splits(path: str, config: str) -> dict[str, list[str]]:
    """
    The Parquet files of each split of a prepared repository. No table is made, nothing but the card is read.

    Raises:
        NotPreparedError: if `path` is no prepared repository, or has no such config.
    """
    try:
        builder = datasets.load_dataset_builder(path, config)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise NotPreparedError(
            f"{path} is not a prepared repository with a config {config!r} (made by data_scripts.prepare): {error}"
        ) from error
    return {str(name): list(map(str, found)) for name, found in (builder.config.data_files or {}).items()}


def parquet_files(path: str, config: str, split: str) -> list[str]:
    """The files of one split; raises as `files_of_splits`, and ValueError if there is no such split."""
    files = files_of_splits(path, config)
    if split not in files:
        raise ValueError(f"{path} has no split {split!r} of {config!r}; it has {', '.join(files) or 'none'}.")
    return files[split]


def lacks_split(path: str, split: str) -> bool:
    """Whether a prepared repository has splits, but not this one. Not of one that cannot be read: `parquet_files` says why."""
    try:
        files = files_of_splits(path, "qa")
    except NotPreparedError:
        return False
    return bool(files) and split not in files


def measure(path: str, settings: Namespace) -> DataSize | None:
    """
    The training split of the prepared repository `path`, by official counts or assumed lengths if it is not on this
    machine; None if nothing is known of it.

    Raises:
        ValueError: if it is here, but the split is not.
    """
    if Path(path).is_dir():
        return measure_repository(path, settings)
    name, per_pack = Path(path).name.lower(), settings.questions_per_scene
    if name not in ASSUMED_TOKENS or settings.train_split != "train":
        return None
    question, answer = ASSUMED_TOKENS[name]
    lengths = f"{question} tokens of a question and {answer} of an answer assumed"
    tokens = question + TEMPLATE_TOKENS + answer
    tokens, labels = (tokens, ASSUMED_SPREAD * tokens), (answer, ASSUMED_SPREAD * answer)
    if name in ASSUMED_QUESTIONS:
        number = min(ASSUMED_QUESTIONS[name], per_pack)
        origin = f"not on this machine, its size is unknown; {lengths}, and {number} questions in a sequence"
        return DataSize(path, None, None, None, number, per_pack, tokens, labels, None, PICTURES[name], origin)
    if name == "scanqa":
        questions, scenes = scanqa.QUESTIONS["train"], scanqa.SCENES["train"]
        origin = "official counts"
    else:
        questions, scenes = sqa3d.QUESTIONS["train"] * SQA3D_DESCRIPTIONS, SQA3D_TRAIN_SCENES
        origin = (
            f"official counts, each of {sqa3d.QUESTIONS['train']:,} questions with {SQA3D_DESCRIPTIONS} situations"
        )
    # The last pack of a scene is half full on average.
    packs = questions / per_pack + scenes / 2
    origin = f"{origin}; {lengths}"
    number = questions / packs
    return DataSize(path, questions, scenes, packs, number, per_pack, tokens, labels, None, SCANNET_PICTURE, origin)


def measure_repository(path: str, settings: Namespace) -> DataSize:
    """As `measure`, of a folder."""
    per_scene, texts, answers = Counter(), [], []
    for file in parquet_files(path, "qa", settings.train_split):
        table = pyarrow.parquet.read_table(file, columns=["scene_id", "situation", "question", "answers"])
        columns = table.to_pydict()
        per_scene.update(columns["scene_id"])
        texts += [" ".join(filter(None, pair)) for pair in zip(columns["situation"], columns["question"], strict=True)]
        answers += columns["answers"]
    if not texts:
        raise ValueError(f"{path} has no questions in the split {settings.train_split!r}.")
    step = max(1, len(texts) // SAMPLE)
    texts, answers, number = texts[::step], answers[::step], len(texts)
    # Which of a question's references is learned is drawn anew in every epoch: the longest is what memory must hold.
    count, how = token_counter(settings.model_name_or_path)
    labels = 1 + np.asarray(count([max(references or [""], key=len) for references in answers]))
    tokens = np.asarray(count(texts)) + TEMPLATE_TOKENS + labels
    num_views, picture = first_scene(path, settings.train_split)
    packs = sum(-(-count // settings.questions_per_scene) for count in per_scene.values())
    return DataSize(
        path,
        number,
        len(per_scene),
        packs,
        number / packs,
        min(settings.questions_per_scene, max(per_scene.values())),
        (float(tokens.mean()), float(tokens.std())),
        (float(labels.mean()), float(labels.std())),
        num_views,
        picture,
        f"counted, tokens {how}",
    )


def token_counter(model: str) -> tuple[Callable[[list[str]], list[float]], str]:
    """A function that counts the tokens of texts, and how it does."""
    if Path(model).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        return (
            lambda texts: list(map(len, tokenizer(texts, add_special_tokens=False).input_ids)),
            f"with the tokenizer of {model}",
        )
    return (
        lambda texts: [len(text) / CHARACTERS_PER_TOKEN for text in texts],
        f"as a quarter of the characters: {model} is not here",
    )


def first_scene(path: str, split: str) -> tuple[int, tuple[int, int]]:
    """Number of stored views of a split's first scene, and (width, height) of its first picture."""
    for file in parquet_files(path, "scenes", split):
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1, columns=["images"]):
                images = batch.column("images")[0].as_py()
                return len(images), picture_size(images[0]["bytes"], f"{file}: the first picture")
    raise ValueError(f"{path} has no scenes in the split {split!r}.")


__all__ = ["DataSize", "NotPreparedError", "files_of_splits", "lacks_split", "measure", "parquet_files"]
