# SPDX-License-Identifier: Apache-2.0
"""The licences of everything a checkpoint was made from, and the one that follows for the whole."""

import re
from dataclasses import dataclass

from data_scripts.licences import NAMED_TERMS, UNKNOWN, is_non_commercial, read_licences
from modeling_vggt_qwen3.conversion.card import Licence, whole_licence


PERMISSIVE = re.compile(r"apache-2\.0|mit|isc|cc0-1\.0|cc-by-\d\.\d|bsd(-.*)?|unlicense|odc-by")
SHARE_ALIKE = re.compile(r"cc-by-(nc-)?sa-.*|a?gpl-?.*")
NO_DERIVATIVES = re.compile(r"cc-by-(nc-)?nd-.*")


class LicenceConflictError(ValueError):
    """The parts' licences do not allow publishing the whole, or one of them is not known."""


@dataclass(frozen=True)
class Part:
    """Something a checkpoint was made from: weights (`kind` "model") or training data ("data")."""

    name: str
    kind: str
    licence: Licence


def find_parts(record: dict) -> list[Part]:
    """The weights and data of a run (`run.json`), and of those that its base model comes from; each once."""
    parts: list[Part] = []
    base = record["base"]
    if base["run"]:
        parts += find_parts(base["run"])
    elif base["conversion"]:
        for part in ("vggt", "text"):
            source = base["conversion"][part]
            if source is not None:  # random weights
                parts.append(Part(source["name"], "model", Licence(**source["licence"])))
    else:
        parts += [Part(base["name"], "model", _licence(name, base)) for name in read_licences(base["card"])]
    for dataset in record["datasets"]:
        parts += [
            Part(dataset["title"] or dataset["name"], "data", _licence(name, dataset)) for name in dataset["licences"]
        ]
    return list(dict.fromkeys(parts))


def find_base_models(record: dict) -> list[str]:
    """The repos of the Hub that the run starts from, for the card's metadata."""
    base = record["base"]
    if base["repo_id"]:
        return [base["repo_id"]]
    if base["run"]:
        return find_base_models(base["run"])
    sources = [(base["conversion"] or {}).get(part) for part in ("vggt", "text")]
    return [source["repo_id"] for source in sources if source and source["repo_id"]]


def licence_of(parts: list[Part]) -> tuple[dict[str, str], str]:
    """
    What follows for a model made of `parts`: a non-commercial one makes the whole non-commercial.

    Whether a model is bound by the licence of its training data is an open question; of the two mistakes, to call it
    non-commercial is the harmless one. Conditions other than that are taken from the weights alone.

    Returns:
        The card's metadata, and a sentence.

    Raises:
        LicenceConflictError: weights without a known licence, whose licence allows no adaptations, or two licences each
            of which asks for the whole.
    """
    weights = [part for part in parts if part.kind == "model"]
    for part in weights:
        if part.licence.identifier == UNKNOWN:
            raise LicenceConflictError(
                f"The licence of {part.name} is not known ({part.licence.origin}), so none can be given to what was made of "
                "it: put its card (README.md) beside its weights and convert or train from there again."
            )
        if NO_DERIVATIVES.fullmatch(part.licence.identifier):
            raise LicenceConflictError(
                f"{part.name} is {part.licence.identifier}, which does not allow publishing adaptations."
            )
    for part in weights:
        for other in weights:
            ours, theirs = part.licence.identifier, other.licence.identifier
            if SHARE_ALIKE.fullmatch(ours) and ours != theirs and not PERMISSIVE.fullmatch(theirs):
                raise LicenceConflictError(
                    f"{part.name} is {ours}, which asks for the whole to be so, and {other.name} is {theirs}."
                )
    if weights:
        metadata, sentence = whole_licence([(part.name, part.licence) for part in weights])
    else:
        metadata = {"license": "apache-2.0"}
        sentence = "The weights were trained from random ones; they are under the licence of the code."
    data = dict.fromkeys(part.name for part in parts if part.kind == "data" and part.licence.non_commercial)
    if data and not any(part.licence.non_commercial for part in weights):
        name = "non-commercial-see-licence-section"
        metadata = {"license": "other", "license_name": name, "license_link": "README.md"}
        are = "is" if len(data) == 1 else "are"
        sentence = (
            f"**The whole is for non-commercial use only**, because its training data {' and '.join(data)} {are}."
        )
    return metadata, sentence


def _licence(name: str, source: dict) -> Licence:
    terms = NAMED_TERMS.get(name)
    origin = f"the card of {source['name']}" if name != UNKNOWN else "no licence in its card"
    return Licence(name, terms and terms.link, is_non_commercial(name), origin)


__all__ = ["LicenceConflictError", "Part", "find_base_models", "find_parts", "licence_of"]
