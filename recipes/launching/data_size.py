# SPDX-License-Identifier: Apache-2.0
"""How much there is to train on: counted in prepared repositories without decoding a picture, else the official counts."""

import io
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.parquet
from PIL import Image
from transformers import AutoTokenizer

from data_scripts.builders import scanqa, sqa3d


# Assumed where data or tokenizer are not here. Words times 1.3, and the chat template's 4 with the answer's end.
ASSUMED_TOKENS = {"scanqa": 22, "sqa3d": 46}
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 6  # <|im_end|>\n<|im_start|>assistant\n before the answer, <|im_end|> after it
SAMPLE = 2000  # questions whose tokens are counted
# SQA3D states 20.4 thousand descriptions of 6.8 thousand situations: in train each question comes with three of them.
SQA3D_TRAIN_SCENES, SQA3D_DESCRIPTIONS = 518, 3
SCANNET_PICTURE = (1296, 968)


@dataclass
class DataSize:
    """
    One dataset's training split.

    Args:
        packs: Packed sequences that hold every question once.
        tokens_per_question: Of question, template and answer, on average.
        num_views: Views of a scene, as stored; None where not known.
        picture: Width and height in pixels of a stored picture.
        origin: Where the numbers are from, in words.
    """

    path: str
    questions: int
    scenes: int
    packs: float
    tokens_per_question: float
    num_views: int | None
    picture: tuple[int, int]
    origin: str


def parquet_files(path: str, config: str, split: str) -> list[str]:
    """
    The Parquet files of a split of a prepared repository. No table is made, nothing but the card is read.

    Raises:
        ValueError: if `path` is no prepared repository, or has no such config or split.
    """
    try:
        builder = datasets.load_dataset_builder(path, config)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"{path} is not a prepared repository with a config {config!r} (made by data_scripts.prepare): {error}"
        ) from error
    files = {str(name): found for name, found in (builder.config.data_files or {}).items()}
    if split not in files:
        raise ValueError(f"{path} has no split {split!r} of {config!r}; it has {', '.join(files) or 'none'}.")
    return [str(file) for file in files[split]]


def measure(path: str, settings: Namespace) -> DataSize | None:
    """
    The training split of the prepared repository `path`, by its official counts if it is not on this machine; None if
    there are none for it.

    Raises:
        ValueError: if it is here, but the split is not.
    """
    if Path(path).is_dir():
        return measure_repository(path, settings)
    name, per_pack = Path(path).name.lower(), settings.questions_per_scene
    if name not in ASSUMED_TOKENS or settings.train_split != "train":
        return None
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
    return DataSize(path, questions, scenes, packs, ASSUMED_TOKENS[name], None, SCANNET_PICTURE, origin)


def measure_repository(path: str, settings: Namespace) -> DataSize:
    """As `measure`, of a folder."""
    per_scene, characters, texts = Counter(), 0, []
    for file in parquet_files(path, "qa", settings.train_split):
        table = pyarrow.parquet.read_table(file, columns=["scene_id", "situation", "question", "answers"])
        columns = table.to_pydict()
        per_scene.update(columns["scene_id"])
        for situation, question, answers in zip(
            columns["situation"], columns["question"], columns["answers"], strict=True
        ):
            text = " ".join(filter(None, (situation, question, (answers or [""])[0])))
            characters += len(text)
            texts.append(text)
    if not texts:
        raise ValueError(f"{path} has no questions in the split {settings.train_split!r}.")
    step = max(1, len(texts) // SAMPLE)
    tokens, how = count_tokens(texts[::step], settings.model_name_or_path)
    num_views, picture = first_scene(path, settings.train_split)
    packs = sum(-(-count // settings.questions_per_scene) for count in per_scene.values())
    origin = f"counted, tokens {how}"
    return DataSize(path, len(texts), len(per_scene), packs, tokens, num_views, picture, origin)


def count_tokens(texts: list[str], model: str) -> tuple[float, str]:
    """Mean tokens of a question with its template and answer, and how they were found."""
    if Path(model).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        total = sum(map(len, tokenizer(texts, add_special_tokens=False).input_ids))
        return total / len(texts) + TEMPLATE_TOKENS, f"with the tokenizer of {model}"
    mean = sum(map(len, texts)) / len(texts) / CHARACTERS_PER_TOKEN
    return mean + TEMPLATE_TOKENS, f"as a quarter of the characters: {model} is not here"


def first_scene(path: str, split: str) -> tuple[int, tuple[int, int]]:
    """Number of stored views of a split's first scene, and (width, height) of its first picture."""
    for file in parquet_files(path, "scenes", split):
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1, columns=["images"]):
                images = batch.column("images")[0].as_py()
                return len(images), Image.open(io.BytesIO(images[0]["bytes"])).size
    raise ValueError(f"{path} has no scenes in the split {split!r}.")


__all__ = ["DataSize", "measure", "parquet_files"]
