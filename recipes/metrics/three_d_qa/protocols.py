# SPDX-License-Identifier: Apache-2.0
"""How five projects clean answers, decide whether one is right, and prompt. Each is described, with its source, in
[`PROTOCOLS`]; the functions here reproduce their published evaluation code."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


EM, EM_R = "EM@1", "EM-R@1"

MISSPELLINGS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",  # capitals, although everything else is lower case
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
NUMBERS += "sixteen seventeen eighteen nineteen twenty".split()
NUMBER_WORDS = {str(number): word for number, word in enumerate(NUMBERS)} | {"none": "zero", "23": "twenty-three"}


def _any_word(words) -> re.Pattern:
    return re.compile(rf"\b({'|'.join(words)})\b")


_MISSPELLED, _NUMBER = _any_word(MISSPELLINGS), _any_word(sorted(NUMBER_WORDS, key=len, reverse=True))
_FORBIDDEN = re.compile(r"[^a-zA-Z0-9,'\s:-]")
_SPACES, _CLOCK = re.compile(" {2,}"), re.compile(r"\bo' +clock\b")
_FINAL_DIGIT, _BACKWARDS = re.compile(r"\b([a-zA-Z]+)[0-9]\b"), re.compile(r"\bbackwards\b")
_ARTICLES = [re.compile(rf"\b{article} ([a-zA-Z]+)") for article in ("a", "an", "the")]


def clean_answer(answer: str) -> str:
    """
    The cleaning that LEO, LLaVA-3D, Chat-Scene and (for SQA3D) Video-3D-LLM share; LEO `data/data_utils.py:319-376`.

    Its oddities are part of it: deleted characters leave their spaces, "tv" becomes "TV", 21 stays a number, and of
    two articles in a row the second stays.
    """
    answer = _SPACES.sub(" ", answer.lower().strip(" "))
    answer = _FORBIDDEN.sub("", answer)
    answer = _CLOCK.sub("o'clock", _MISSPELLED.sub(lambda match: MISSPELLINGS[match[0]], answer))
    answer = _FINAL_DIGIT.sub(r"\1", _NUMBER.sub(lambda match: NUMBER_WORDS[match[0]], answer))
    for article in _ARTICLES:
        answer = article.sub(r"\1", answer)
    return _BACKWARDS.sub("backward", answer)


def _clean_stripped(answer: str) -> str:
    return clean_answer(answer.strip())


def _clean_chatscene(prediction: str) -> str:
    if len(prediction) > 1:
        prediction = prediction[:-1] if prediction.endswith(".") else prediction
        prediction = prediction[:1].lower() + prediction[1:]
    return clean_answer(prediction)


def _as_it_is(answer: str) -> str:
    return answer


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").strip()


def _without_final_periods(prediction: str) -> str:
    return prediction.rstrip(".")


def _related(first: str, second: str) -> bool:
    first, second = "".join(first.split()), "".join(second.split())
    return first in second or second in first


def match_ordered(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """(EM, EM-R) of LEO: the first reference that is equal or related decides, so an equal one after it is lost."""
    for reference in references:
        if prediction == reference:
            return True, True
        if _related(prediction, reference):
            return False, True
    return False, False


def match_any(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """(EM, EM-R) of LLaVA-3D: equal, or related, to any reference. An empty prediction is related to everything."""
    if prediction in references:
        return True, True
    return False, any(_related(prediction, reference) for reference in references)


def match_any_non_empty(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """(EM, EM-R) of Chat-Scene: as [`match_any`], but an empty prediction is wrong."""
    return match_any(prediction, references) if prediction else (False, False)


@dataclass(frozen=True)
class Rules:
    """
    How one protocol scores one dataset.

    Attributes:
        prediction, reference: Make the strings that are matched.
        match: `(prediction, references) -> (EM, EM-R)`.
        refined: Whether the protocol has EM-R.
        caption_prediction, caption_reference: Make the strings that caption metrics compare; None if it has none.
        ptb: Whether those go through the PTB tokenizer.
        collapse_whitespace: Whether METEOR gets them with every run of white space as one space.
    """

    prediction: Callable[[str], str]
    reference: Callable[[str], str]
    match: Callable[[str, Sequence[str]], tuple[bool, bool]]
    refined: bool = True
    caption_prediction: Callable[[str], str] | None = None
    caption_reference: Callable[[str], str] | None = None
    ptb: bool = False
    collapse_whitespace: bool = False


@dataclass(frozen=True)
class Protocol:
    """
    Attributes:
        source: Project and evaluation code, at the commit that was compared with.
        rules: Rules per dataset; a dataset that is not there is not defined by the protocol.
        suffix: What the project appends to a question, per dataset.
    """

    source: str
    rules: dict[str, Rules]
    suffix: dict[str, str]


def _leo(reference: Callable[[str], str]) -> Rules:
    return Rules(_clean_stripped, reference, match_ordered, True, _clean_stripped, reference, collapse_whitespace=True)


def _clean_one_line(answer: str) -> str:
    return _one_line(clean_answer(answer))


PROTOCOLS = {
    "official": Protocol(
        source="ATR-DBI/ScanQA 0a9f162 scripts/score.py",
        rules={"scanqa": Rules(_as_it_is, _as_it_is, match_any, False, _as_it_is, _as_it_is, ptb=True)},
        suffix={"scanqa": "", "sqa3d": ""},
    ),
    "leo": Protocol(
        source="embodied-generalist/embodied-generalist 567f2d8 evaluator/{scanqa,sqa3d}_eval.py",
        rules={"scanqa": _leo(_clean_stripped), "sqa3d": _leo(clean_answer)},
        suffix={"scanqa": "", "sqa3d": ""},
    ),
    "llava3d": Protocol(
        source="ZCMax/LLaVA-3D 91d979d llava/eval/{scanqa,sqa3d}_evaluator.py",
        rules={
            "scanqa": Rules(clean_answer, clean_answer, match_any, True, clean_answer, _clean_one_line, ptb=True),
            "sqa3d": Rules(clean_answer, clean_answer, match_any),
        },
        suffix=dict.fromkeys(("scanqa", "sqa3d"), " Answer the question using one word or one phrase."),
    ),
    "chatscene": Protocol(
        source="ZzZZCHS/Chat-Scene 475e106 utils/eval.py",
        rules={
            # ScanQA's references stay as they are: an answer with an article, a digit or "tv" cannot match exactly.
            "scanqa": Rules(
                _clean_chatscene, _as_it_is, match_any_non_empty, True, _clean_chatscene, _one_line, ptb=True
            ),
            "sqa3d": Rules(
                _clean_chatscene, clean_answer, match_any_non_empty, True, _clean_chatscene, _clean_one_line, ptb=True
            ),
        },
        suffix=dict.fromkeys(("scanqa", "sqa3d"), " Answer the question using a single word or phrase."),
    ),
    "video3dllm": Protocol(
        source="LaVi-Lab/Video-3D-LLM 3ff70e8 llava/eval/eval_{scanqa,sqa3d}.py",
        rules={
            "scanqa": Rules(_as_it_is, _as_it_is, match_any, False, _without_final_periods, _as_it_is),
            "sqa3d": Rules(clean_answer, clean_answer, match_any, False),
        },
        suffix={
            "scanqa": " Answer the question simply.",
            "sqa3d": " Answer the question using a single word or phrase.",
        },
    ),
}


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether `prediction` equals one of `references` after [`clean_answer`]: EM@1 of LLaVA-3D, which training uses
    to choose checkpoints because both datasets have it and no form of an answer is punished."""
    return clean_answer(prediction) in map(clean_answer, references)


def protocols_for(dataset: str, wanted: str = "all") -> list[str]:
    """
    The protocols that score `dataset` ("scanqa" or "sqa3d"): all of them, or `wanted`.

    Raises:
        ValueError: if `wanted` does not exist, or does not define scores for the dataset.
    """
    defined = [name for name, protocol in PROTOCOLS.items() if dataset in protocol.rules]
    if wanted == "all":
        return defined
    if wanted not in defined:
        raise ValueError(f"Protocol {wanted!r} does not score {dataset}; these do: all, {', '.join(defined)}.")
    return [wanted]


__all__ = ["EM", "EM_R", "PROTOCOLS", "Protocol", "Rules", "clean_answer", "exact_match", "protocols_for"]
