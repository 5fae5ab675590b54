# SPDX-License-Identifier: Apache-2.0
"""Scores of whole systems under the protocols, with bootstrap intervals and paired differences."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recipes.metrics.bootstrap import resample

from . import captions as caption_metrics
from .protocols import EM, EM_R, PROTOCOLS, protocols_for


CAPTION_METRICS = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
METRICS = [EM, EM_R, *CAPTION_METRICS]
ALL = "all"


@dataclass
class ProtocolScores:
    """
    What one protocol makes of one system's predictions.

    Attributes:
        verdicts: EM@1 and, where the protocol has it, EM-R@1 of each question, bool `[N]`.
        statistics: What caption metrics sum, float `[N, k]` each.
        types: The type of each question, str `[N]`.
    """

    verdicts: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    types: np.ndarray

    def _values(self, weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Every metric in percent, by (question type or "all", metric), where question n counts `weights[b, n]` times."""
        values = {}
        for group in [ALL, *dict.fromkeys(self.types.tolist())]:
            members = np.ones(len(self.types)) if group == ALL else (self.types == group).astype(float)
            with np.errstate(invalid="ignore"):  # a resample may hold no question of a rare type
                for metric, correct in self.verdicts.items():
                    values[group, metric] = 100 * (weights @ (members * correct)) / (weights @ members)
        for name, statistics in self.statistics.items():
            sums = weights @ statistics
            if name == "BLEU":
                for order, bleu in enumerate(np.moveaxis(caption_metrics.bleu(sums), -1, 0), start=1):
                    values[ALL, f"BLEU-{order}"] = 100 * bleu
            elif name == "METEOR":
                values[ALL, name] = 100 * caption_metrics.meteor(sums)
            else:
                values[ALL, name] = 100 * sums[..., 0] / weights.sum(axis=-1)
        return values

    @cached_property
    def percent(self) -> dict[tuple[str, str], float]:
        return {key: float(value[0]) for key, value in self._values(np.ones((1, len(self.types)))).items()}

    @cached_property
    def resampled(self) -> dict[tuple[str, str], np.ndarray]:
        """The same on bootstrap draws of the questions: the same draws for every system."""
        return resample(self._values, len(self.types))

    def summary(self) -> dict:
        """
        `{metric: percent, ..., "n", "intervals": {metric: [low, high]}, "types": {type: the same}}`; intervals hold
        95 % of the bootstrap resamples.
        """
        groups = {}
        for (group, metric), value in self.percent.items():
            entry = groups.setdefault(
                group, {"n": int(np.sum((self.types == group) | (group == ALL))), "intervals": {}}
            )
            entry[metric] = value
            entry["intervals"][metric] = _interval(self.resampled[group, metric])
        return groups.pop(ALL) | {"types": groups}

    def difference(self, other: "ProtocolScores") -> dict[str, dict]:
        """Per metric `{"difference", "interval"}` of this system minus `other` on the same questions, paired."""
        return {
            metric: {
                "difference": value - other.percent[group, metric],
                "interval": _interval(self.resampled[group, metric] - other.resampled[group, metric]),
            }
            for (group, metric), value in self.percent.items()
            if group == ALL and (group, metric) in other.percent
        }


def _interval(resampled: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.nanpercentile(resampled, [2.5, 97.5])]


def score(
    systems: dict[str, Sequence[str | None]],
    references: Sequence[Sequence[str]],
    types: Sequence[str],
    dataset: str,
    protocol: str = "all",
    captions: bool = True,
) -> dict[str, dict[str, ProtocolScores]]:
    """
    Scores systems that answered the same questions.

    Args:
        systems: Name to predictions, one per question; None (no answer) is wrong under every protocol.
        references: The answers of each question, at least one.
        types: The type of each question.
        dataset ("scanqa" or "sqa3d"): Whose rules apply; protocols that do not define it are left out.
        protocol: A key of `PROTOCOLS`, or "all".
        captions (`bool`): Also BLEU, METEOR, ROUGE-L and CIDEr, as far as [`captions.left_out`] has nothing to say.

    Returns:
        `{system: {protocol: ProtocolScores}}`

    Raises:
        ValueError: if the protocol does not define the dataset, lengths differ or a question has no reference.
        RuntimeError: if a Java program fails.
    """
    for name, predictions in systems.items():
        if not len(predictions) == len(references) == len(types):
            raise ValueError(
                f"{name}: {len(predictions)} predictions, {len(references)} questions, {len(types)} types."
            )
    empty = [number for number, answers in enumerate(references) if not answers]
    if empty or not references:
        raise ValueError(f"{len(empty)} of {len(references)} questions have no reference, e.g. number {empty[:5]}.")
    protocols = protocols_for(dataset, protocol)
    types = np.array(types, dtype=object)
    scored = {
        name: {
            protocol: ProtocolScores(_verdicts(protocol, dataset, predictions, references), {}, types)
            for protocol in protocols
        }
        for name, predictions in systems.items()
    }
    with_captions = [name for name in protocols if PROTOCOLS[name].rules[dataset].caption_prediction]
    if captions and with_captions and caption_metrics.has_package():
        _add_captions(scored, systems, references, dataset, with_captions)
    return scored


def _verdicts(protocol: str, dataset: str, predictions, references) -> dict[str, np.ndarray]:
    rules = PROTOCOLS[protocol].rules[dataset]
    matches = [
        (False, False)
        if prediction is None
        else rules.match(rules.prediction(prediction), [rules.reference(answer) for answer in answers])
        for prediction, answers in zip(predictions, references, strict=True)
    ]
    exact, related = np.array(matches, dtype=bool).T
    return {EM: exact, EM_R: related} if rules.refined else {EM: exact}


def _add_captions(scored, systems, references, dataset: str, protocols: list[str]):
    """Fills in the statistics of caption metrics; each Java program runs once for all systems and protocols."""
    with_java, texts = caption_metrics.has_java(), {}
    for protocol in protocols:
        rules = PROTOCOLS[protocol].rules[dataset]
        if rules.ptb and not with_java:
            continue
        answers = [[rules.caption_reference(answer) for answer in row] for row in references]
        for name, predictions in systems.items():
            texts[name, protocol] = [rules.caption_prediction(text or "") for text in predictions], answers
    if with_java:
        tokenized = {key: pair for key, pair in texts.items() if PROTOCOLS[key[1]].rules[dataset].ptb}
        raw = (text for predictions, rows in tokenized.values() for row in (predictions, *rows) for text in row)
        tokens = caption_metrics.ptb_tokenize(raw)
        for key, (predictions, rows) in tokenized.items():
            texts[key] = [tokens[text] for text in predictions], [[tokens[text] for text in row] for row in rows]
        lines = {}
        for key, pair in texts.items():
            collapse = PROTOCOLS[key[1]].rules[dataset].collapse_whitespace
            lines[key] = [caption_metrics.meteor_line(*question, collapse) for question in zip(*pair, strict=True)]
    with ThreadPoolExecutor(1) as pool:
        if with_java:
            # Half of METEOR's time goes into reading its paraphrases; the other metrics are made meanwhile.
            meteor = pool.submit(caption_metrics.meteor_statistics, [line for each in lines.values() for line in each])
        for (name, protocol), pair in texts.items():
            statistics = scored[name][protocol].statistics
            statistics["BLEU"] = caption_metrics.bleu_statistics(*pair)
            if with_java:
                statistics["METEOR"] = None  # its place in the order
            statistics["ROUGE-L"] = caption_metrics.rouge_l(*pair)[:, None]
            statistics["CIDEr"] = caption_metrics.cider(*pair)[:, None]
        if with_java:
            for (name, protocol), each in lines.items():
                statistics = meteor.result()
                scored[name][protocol].statistics["METEOR"] = np.stack([statistics[line] for line in each])


def most_frequent_answers(training: Sequence[tuple[str, Sequence[str]]], types: Sequence[str]) -> list[str]:
    """
    The trivial baseline: for each of `types`, the most frequent answer to training questions of that type, or to all
    of them if there are none (ties: the first in the alphabet).

    Args:
        training: `(type, answers)` of every training question.
        types: The types of the questions to answer.
    """
    counts = defaultdict(Counter)
    for kind, answers in training:
        counts[kind].update(answers)
        counts[ALL].update(answers)
    best = {kind: min(counter, key=lambda answer: (-counter[answer], answer)) for kind, counter in counts.items()}
    return [best.get(kind, best[ALL]) for kind in types]


__all__ = ["ALL", "CAPTION_METRICS", "METRICS", "ProtocolScores", "most_frequent_answers", "score"]
