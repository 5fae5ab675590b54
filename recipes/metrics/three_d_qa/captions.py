# SPDX-License-Identifier: Apache-2.0
"""
Caption metrics from pycocoevalcap, the field's own package, as statistics per question.

A metric of a set of questions is a function of the statistics summed over them, so that a bootstrap resample costs a
weighted sum and not another run. The PTB tokenizer and METEOR are the package's Java programs.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np


# Everything that PTBTokenizer -preserveLines, METEOR or Python's reader of their output takes for the end of a line.
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# What pycocoevalcap drops from the tokenizer's output.
PUNCTUATION = set("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# METEOR 1.5's parameters for English (Denkowski and Lavie, WMT 2014, table 1), and the weights of its four matchers.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
METEOR_STATISTICS = 23


@cache
def has_package() -> bool:
    return find_spec("pycocoevalcap") is not None


@cache
def has_java() -> bool:
    # macOS has a `java` that only says that there is none: it has to be run.
    return (
        shutil.which("java") is not None and not subprocess.run(["java", "-version"], capture_output=True).returncode
    )


def left_out() -> list[str]:
    """What this machine cannot compute, one line that says how to get it; empty if everything is there."""
    if not has_package():
        return [
            "BLEU, METEOR, ROUGE-L and CIDEr are left out: pycocoevalcap is not installed. "
            "Get it with: pip install 'vggt-qwen3[metrics]'"
        ]
    if not has_java():
        return [
            "METEOR, and all caption metrics of the protocols with the PTB tokenizer (official, llava3d, chatscene), are "
            "left out: Java is not installed. Get it with: apt-get install default-jre-headless, or conda install openjdk"
        ]
    return []


def _run_java(arguments: list[str], jar: str, lines: list[str]) -> list[str]:
    """
    What a Java program of pycocoevalcap answers to `lines`, one line each.

    Raises:
        RuntimeError: if it fails or answers another number of lines.
    """
    folder = Path(find_spec("pycocoevalcap").submodule_search_locations[0])
    # UTF-8 whatever the locale: on a cluster node it is often C, and Java would read question marks.
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", *arguments]
    command[command.index(jar)] = str(folder / jar)
    result = subprocess.run(command, input="".join(line + "\n" for line in lines).encode(), capture_output=True)
    answers = result.stdout.decode().split("\n")[:-1]
    if result.returncode != 0 or len(answers) != len(lines):
        reason = result.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(
            f"{Path(jar).name} answered {len(answers)} of {len(lines)} lines (exit code {result.returncode}): "
            + " ".join(reason)
        )
    return answers


def ptb_tokenize(captions: Iterable[str]) -> dict[str, str]:
    """Each caption's tokens without punctuation, joined by single spaces (Stanford CoreNLP 3.4.1's PTBTokenizer)."""
    captions = list(dict.fromkeys(captions))
    jar = "tokenizer/stanford-corenlp-3.4.1.jar"
    program = ["-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _run_java(program, jar, [LINE_BREAKS.sub(" ", caption) for caption in captions])
    return {
        caption: " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for caption, line in zip(captions, lines, strict=True)
    }


def meteor_line(prediction: str, references: Sequence[str], collapse_whitespace: bool) -> str:
    """A question as METEOR's -stdio mode reads it."""
    prediction = prediction.replace("|||", "").replace("  ", " ")
    line = LINE_BREAKS.sub(" ", " ||| ".join(("SCORE", *references, prediction)))
    return re.sub(r"\s+", " ", line) if collapse_whitespace else line


def meteor_statistics(lines: Iterable[str]) -> dict[str, np.ndarray]:
    """The 23 statistics (see [`meteor`]) of each line of [`meteor_line`] under its best reference."""
    lines = list(dict.fromkeys(lines))
    jar = "meteor/meteor-1.5.jar"
    answers = _run_java(["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"], jar, lines)
    statistics = {line: np.array(answer.split(), dtype=float) for line, answer in zip(lines, answers, strict=True)}
    odd = [line for line, values in statistics.items() if len(values) != METEOR_STATISTICS]
    if odd:
        raise RuntimeError(f"METEOR did not understand {len(odd)} lines, for example {odd[0]!r}.")
    for values in statistics.values():
        lengths, chunks, matched_words = values[0:2], values[20], values[21:23]
        if chunks == 1 and (lengths == matched_words).all():
            values[20] = 0  # METEOR takes a prediction that is its reference for unfragmented, in sums too
    return statistics


def meteor(sums: np.ndarray) -> np.ndarray:
    """
    METEOR 1.5 of summed statistics `[..., 23]`: what its EVAL command computes, for many sums at once.

    The statistics are the lengths of prediction and reference, the function words of both; per matcher the matched
    content words of both and the matched function words of both; the number of chunks, and the matched words of both.
    """
    lengths, function_words = sums[..., 0:2], sums[..., 2:4]
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # [..., matcher, content or function, side]
    chunks, matched_words = sums[..., 20], sums[..., 21:23]
    weighted_matches = np.einsum("m,c,...mcs->...s", MATCHER_WEIGHTS, [DELTA, 1 - DELTA], matches)
    weighted_lengths = DELTA * (lengths - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where nothing was said or nothing matched
        precision, recall = np.moveaxis(weighted_matches / weighted_lengths, -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        fragmentation = chunks / matched_words.mean(axis=-1)
        return np.nan_to_num(mean * (1 - GAMMA * fragmentation**BETA))


def bleu_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """`[N, 10]`: per question the n-grams guessed and the correct ones of orders 1-4, length, closest reference's."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for prediction, answers in zip(predictions, references, strict=True):
        scorer += (prediction, list(answers))
    return np.array(
        [
            [*test["guess"], *test["correct"], test["testlen"], scorer._single_reflen(test["reflen"], "closest", test["testlen"])]
            for test in scorer.ctest
        ],
        dtype=float,
    )  # fmt: skip


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4 `[..., 4]` of summed statistics `[..., 10]`, with pycocoevalcap's guards against zero."""
    precisions = (sums[..., 4:8] + 1e-15) / (sums[..., 0:4] + 1e-9)
    ratio = (sums[..., 8:9] + 1e-15) / (sums[..., 9:10] + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, 5)) * brevity


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each question."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    pairs = zip(predictions, references, strict=True)
    return np.array([scorer.calc_score([prediction], list(answers)) for prediction, answers in pairs])


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr(-D) of each question, with document frequencies from the references of all of them."""
    from pycocoevalcap.cider.cider import Cider

    by_question = {index: list(answers) for index, answers in enumerate(references)}
    return Cider().compute_score(by_question, {index: [text] for index, text in enumerate(predictions)})[1]


__all__ = [
    "bleu",
    "bleu_statistics",
    "cider",
    "has_java",
    "has_package",
    "left_out",
    "meteor",
    "meteor_line",
    "meteor_statistics",
    "ptb_tokenize",
    "rouge_l",
]
