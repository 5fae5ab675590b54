# SPDX-License-Identifier: Apache-2.0
"""Licences of data: what a card's metadata says of them, and what follows."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CardData, DatasetCard

from .plain import plain


@dataclass(frozen=True)
class Terms:
    """Terms that the Hub has no identifier for, but that this project knows.

    Attributes:
        name: what they are called.
        link: their text.
        non_commercial: whether they forbid commercial use.
        redistribution: whether they allow passing the data on.
    """

    name: str
    link: str
    non_commercial: bool
    redistribution: bool


NAMED_TERMS = {
    "scannet-terms-of-use": Terms(
        "ScanNet terms of use", "https://kaldir.vc.in.tum.de/scannet/ScanNet_TOS.pdf", True, False
    ),
    "arkitscenes-terms-of-use": Terms(
        "ARKitScenes terms of use", "https://github.com/apple/ARKitScenes/blob/main/LICENSE", True, False
    ),
}
UNKNOWN = "unknown"
# "-nc-", "noncommercial", ...
NON_COMMERCIAL = re.compile(r"(?i)(^|[-_ ])nc([-_ ]|$)|non-?commercial")


@dataclass(frozen=True)
class Origin:
    """Where prepared data come from, for their card.

    Attributes:
        title, source, licence: texts.
        licences: identifiers of the Hub, keys of `NAMED_TERMS`, or `UNKNOWN`.
    """

    title: str
    source: str
    licence: str
    licences: tuple[str, ...]

    @property
    def private(self) -> bool:
        """Whether a licence, or its absence, asks to keep the repo private."""
        return not all(may_be_passed_on(licence) for licence in self.licences)


def find_origin(default: Origin, folders: Sequence[Path]) -> Origin:
    """What the cards (README.md) in the folders of the raw files say; `default` unless each folder has one.

    A card counts if it lies in the folder or in the one above, and its metadata has a `license`.

    Raises:
        ValueError: a card's metadata cannot be read.
    """
    cards = dict(map(_card_beside, folders))
    if None in cards or not cards:
        return default
    licences = tuple(dict.fromkeys(licence for card in cards.values() for licence in read_licences(card)))
    names = " and ".join(dict.fromkeys(card.get("pretty_name") or path.parent.name for path, card in cards.items()))
    return Origin(
        title=f"{names} in the format of {default.title}",
        source=f"{names}: a card beside the files says so. Only their format is that of {default.title}.",
        licence=f"{names}: {describe_licences(licences)}.",
        licences=licences,
    )


def _card_beside(folder: Path) -> tuple[Path | None, CardData | None]:
    for path in (folder / "README.md", folder.parent / "README.md"):
        if path.is_file():
            try:
                data = DatasetCard.load(path).data
            except Exception as error:  # the YAML parser has a dozen errors
                raise ValueError(f"the metadata of {path} cannot be read: {' '.join(str(error).split())}") from error
            if data.get("license"):
                for key in ("license", "license_name", "pretty_name"):
                    value = data.get(key)
                    texts = value if isinstance(value, list) and key == "license" else [value or ""]
                    if not all(isinstance(text, str) and plain(text) == text for text in texts):
                        raise ValueError(
                            f"the metadata of {path} cannot be read: '{key}' is not a short text in one line"
                        )
                return path, data
    return None, None


def card_metadata(licences: Sequence[str]) -> dict:
    """`license`, `license_name` and `license_link` of a card, of which [`read_licences`] makes `licences` again."""
    named = [licence for licence in licences if licence in NAMED_TERMS]
    identifiers = [licence for licence in licences if licence not in NAMED_TERMS] + ["other"] * bool(named)
    metadata: dict = {"license": identifiers[0] if len(identifiers) == 1 else identifiers}
    if named:
        metadata |= {"license_name": "-and-".join(named), "license_link": NAMED_TERMS[named[0]].link}
    return metadata


def read_licences(metadata: CardData | dict) -> tuple[str, ...]:
    """The licences that a card's metadata names; `UNKNOWN` where it names none."""
    identifiers = metadata.get("license") or UNKNOWN
    names = str(metadata.get("license_name") or UNKNOWN)
    found: list[str] = []
    for identifier in [identifiers] if isinstance(identifiers, str) else identifiers:
        found += names.split("-and-") if identifier == "other" else [identifier]
    return tuple(dict.fromkeys(found))


def is_non_commercial(licence: str) -> bool:
    terms = NAMED_TERMS.get(licence)
    return terms.non_commercial if terms else NON_COMMERCIAL.search(licence) is not None


def may_be_passed_on(licence: str) -> bool:
    """Whether data under it may be published; under an unknown licence they may not."""
    terms = NAMED_TERMS.get(licence)
    return terms.redistribution if terms else licence != UNKNOWN


def describe_licences(licences: Iterable[str]) -> str:
    """Names, with links where there are some, as Markdown."""
    terms = [(licence, NAMED_TERMS.get(licence)) for licence in licences]
    return ", ".join(f"[{known.name}]({known.link})" if known else licence for licence, known in terms)


__all__ = [
    "NAMED_TERMS",
    "UNKNOWN",
    "Origin",
    "card_metadata",
    "describe_licences",
    "find_origin",
    "is_non_commercial",
    "may_be_passed_on",
    "read_licences",
]
