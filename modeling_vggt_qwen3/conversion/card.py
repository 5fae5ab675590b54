# SPDX-License-Identifier: Apache-2.0
"""The card of a converted checkpoint, with the licences of what it was made from."""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from modeling_vggt_qwen3.conversion.sources import Source, describe_file, find_weight_files


@dataclass(frozen=True)
class Licence:
    """
    A source's licence.

    Args:
        identifier (`str`): The Hub's identifier (`apache-2.0`), or the licence's own name.
        link (`str`, *optional*): Where its text is.
        non_commercial (`bool`): Whether it forbids commercial use.
        origin (`str`): Where all this is known from.
    """

    identifier: str
    link: str | None
    non_commercial: bool
    origin: str


# What the two releases' pages on the Hub say; for files that come without their card. Both have the same tensors: of a file
# that has neither its card nor its own name nobody can tell which it is.
VGGT_1B = ("cc-by-nc-4.0", "https://huggingface.co/facebook/VGGT-1B")
VGGT_1B_COMMERCIAL = ("vggt-aup-license", "https://huggingface.co/facebook/VGGT-1B-Commercial")
VGGT_1B_COMMERCIAL_FILE = "vggt_1B_commercial.pt"
VGGT_LICENCES = {
    VGGT_1B_COMMERCIAL[0]: Licence(*VGGT_1B_COMMERCIAL, False, "as stated when converting"),
    VGGT_1B[0]: Licence(*VGGT_1B, True, "as stated when converting"),
}
# The name of a whole without one licence; the Hub knows neither it nor those that end with it.
SEE_SECTION = "see-licence-section"

TEMPLATE = """\
---
{metadata}
---

# {title}

VGGT-Qwen3 answers questions about a room from a handful of photos: [VGGT](https://arxiv.org/abs/2503.11651) turns the
views into geometry-aware tokens, a projector resamples them into the language model's space, the language model answers.

**This checkpoint is a starting point for training.** Encoder and language model are the released ones; the projector
and the geometry encoder are new and random (seed {seed}), so that answers about images mean nothing before stage 1.

| part | parameters | from |
|---|---:|---|
{parts}

Weights are {dtype}{in_float32}. {left_out}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("<this repo>", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("<this repo>", trust_remote_code=True)
```

## Licences

{licences}

{whole}
{copies}
## Inputs

`conversion_manifest.json` lists every file this was made from, with its size and SHA-256.
"""


def find_licence(source: Source, part: str, stated: str | None = None) -> Licence:
    """
    The licence of a source: from the card beside it, else from the name of the release, else as it is stated. A VGGT of
    which none of them tells is refused: its two releases differ in nothing but their licences.

    Args:
        source (`Source`): The files.
        part (`str`): `vggt` or `text`.
        stated (`str`, *optional*): Of a VGGT whose files do not tell; one of `VGGT_LICENCES`.

    Raises:
        ValueError: if the card's metadata cannot be read, nothing tells the licence of a VGGT, or the files tell another one
            than is stated.
    """
    licence = _licence_of_card(source) or (_licence_of_release(source) if part == "vggt" else None)
    if stated is not None and licence is not None and licence.identifier != stated:
        raise ValueError(
            f"--vggt-licence {stated}: {licence.origin} says {licence.identifier}. Leave the option out, or correct the card "
            f"({source.folder / 'README.md'})."
        )
    if licence is None and stated is not None:
        return VGGT_LICENCES[stated]
    if licence is None and part == "vggt":
        raise ValueError(
            f"Nothing tells the licence of {source.name}: there is no card ({source.folder / 'README.md'}) that has one, and "
            f"the file is not named {VGGT_1B_COMMERCIAL_FILE}. Set --vggt-licence {VGGT_1B_COMMERCIAL[0]} if it is "
            f"VGGT-1B-Commercial, or --vggt-licence {VGGT_1B[0]} if it is VGGT-1B, which is for non-commercial use."
        )
    return licence or Licence("unknown", None, False, "no card beside the files")


def _licence_of_card(source: Source) -> Licence | None:
    """What README.md beside the files says; None if there is none, or it names no licence."""
    card = source.folder / "README.md"
    if not card.is_file():
        return None
    try:
        data = ModelCard.load(card).data.to_dict()
    except Exception as error:  # the YAML parser has a dozen errors
        raise ValueError(f"The metadata of {card} cannot be read: {error}") from error
    identifier = data.get("license_name") or data.get("license")
    if not isinstance(identifier, str):
        return None
    non_commercial = (
        re.search(r"(?i)(^|[-_ ])nc([-_ ]|$)|non-?commercial", f"{identifier} {data.get('license')}") is not None
    )
    link = data.get("license_link")
    if not str(link).startswith("https://"):  # relative to a repo that this is not
        link = VGGT_1B_COMMERCIAL[1] if identifier == VGGT_1B_COMMERCIAL[0] else None
    return Licence(identifier, link, non_commercial, f"the card of {source.name}")


def _licence_of_release(source: Source) -> Licence | None:
    """By the name of a release: its repo, or the file that one of them alone has, also in a folder."""
    if source.repo_id == "facebook/VGGT-1B":
        return Licence(*VGGT_1B, True, f"the name {source.repo_id}")
    if source.repo_id == "facebook/VGGT-1B-Commercial":
        return Licence(*VGGT_1B_COMMERCIAL, False, f"the name {source.repo_id}")
    files, _ = find_weight_files(source.path)
    if [file.name for file in files] == [VGGT_1B_COMMERCIAL_FILE]:
        return Licence(*VGGT_1B_COMMERCIAL, False, f"the name {VGGT_1B_COMMERCIAL_FILE}")
    return None


def describe_left_out(left_out: dict[str, int]) -> str:
    """One line about the heads of VGGT that were not taken over, given their numbers of tensors."""
    heads = " and ".join(f"{head} ({count} tensors)" for head, count in left_out.items())
    return f"Left out of VGGT, because nothing here uses them: {heads}." if heads else "No head of VGGT was left out."


def whole_licence(parts: list[tuple[str, Licence]]) -> tuple[dict[str, str], str]:
    """
    What follows for a whole that is made of named parts: a non-commercial one makes it non-commercial.

    Returns:
        The card's metadata `license` (with `license_name` and `license_link` if it is "other"), and a sentence.
    """
    non_commercial = [(name, licence) for name, licence in parts if licence.non_commercial]
    identifiers = {licence.identifier for _, licence in parts}
    identifier = None
    if non_commercial:
        identifier = non_commercial[0][1].identifier
        names = " and ".join(name for name, _ in non_commercial)
        whole = f"**The whole is for non-commercial use only**, because {names} is."
    elif len(identifiers) == 1:
        identifier = identifiers.pop()
        whole = "This is the licence of the whole."
    else:
        whole = "Both licences apply to the whole: each part's conditions must be met."
    # An identifier the Hub does not know has to be given as a name.
    named = identifier in (None, "unknown", VGGT_1B_COMMERCIAL[0]) or identifier.endswith(SEE_SECTION)
    if named or not re.fullmatch(r"[a-z0-9.+-]+", identifier):
        return {"license": "other", "license_name": SEE_SECTION, "license_link": "README.md"}, whole
    return {"license": identifier}, whole


def model_card(
    *,
    title: str,
    sources: dict[str, Source],
    licences: dict[str, Licence],
    licence_files: list[str],
    num_parameters: dict[str, int],
    left_out: dict[str, int],
    dtype: str,
    in_float32: list[str],
    seed: int,
) -> str:
    """
    Writes the README.md of a converted checkpoint.

    Args:
        title: the checkpoint's name.
        sources, licences: of the parts `vggt` and `text`.
        licence_files: names of the licence texts that lie beside the card.
        num_parameters: of each part of the model, by name.
        left_out: heads of VGGT that were not taken over, with their numbers of tensors.
        dtype: of the weights.
        in_float32: the modules that are float32 all the same.
        seed: of the random modules.

    Returns:
        The card's text. A non-commercial part makes the whole non-commercial, in the metadata too.
    """
    metadata, whole = whole_licence([(source.name, licences[part]) for part, source in sources.items()])
    base_models = [source.repo_id for source in sources.values() if source.repo_id]
    return TEMPLATE.format(
        metadata=ModelCardData(
            **metadata,
            library_name="transformers",
            pipeline_tag="image-text-to-text",
            base_model=base_models or None,
            tags=["vggt", "3d"],
        ).to_yaml(),
        title=title,
        seed=seed,
        parts="\n".join(
            f"| {part.replace('_', ' ')} | {count:,} | "
            f"{ {'vision_model': sources['vggt'].name, 'language_model': sources['text'].name}.get(part, 'random') } |"
            for part, count in num_parameters.items()
        ),
        dtype=dtype,
        in_float32=f", but float32 in {' and '.join(in_float32)}" if in_float32 else "",
        left_out=describe_left_out(left_out),
        licences="\n".join(
            f"- {sources[part].name}: {f'[{licence.identifier}]({licence.link})' if licence.link else licence.identifier}"
            f"{', non-commercial' if licence.non_commercial else ''} ({licence.origin})."
            for part, licence in licences.items()
        )
        + "\n- The code in this repo: Apache-2.0.",
        whole=whole,
        copies=f"\nTheir texts are here: {', '.join(f'`{name}`' for name in licence_files)}.\n"
        if licence_files
        else "",
    )


def write_documents(
    folder: Path,
    *,
    title: str,
    sources: dict[str, Source],
    licences: dict[str, Licence],
    files: dict[str, list[Path]],
    num_parameters: dict[str, int],
    left_out: dict[str, int],
    dtype: str,
    in_float32: list[str],
    seed: int,
):
    """
    Writes the card, the licence texts that lie beside the sources, and the manifest with every input's SHA-256.

    Args:
        folder (`Path`): The new checkpoint.
        files (`dict[str, list[Path]]`): Every file that was read, of the parts `vggt` and `text`.

    The others are those of [`model_card`].
    """
    licence_files = []
    for part, source in sources.items():
        for file in sorted(source.folder.glob("LICENSE*")):
            licence_files.append(f"LICENSE-{part}{file.suffix}")
            shutil.copyfile(file, folder / licence_files[-1])
    manifest = {
        part: {
            "name": source.name,
            "repo_id": source.repo_id,
            "revision": source.revision,
            "licence": asdict(licences[part]),
            "files": [describe_file(file) for file in files[part]],
        }
        for part, source in sources.items()
    }
    manifest |= {"dtype": dtype, "seed": seed, "left_out": left_out}
    (folder / "conversion_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    card = model_card(
        title=title,
        sources=sources,
        licences=licences,
        licence_files=licence_files,
        num_parameters=num_parameters,
        left_out=left_out,
        dtype=dtype,
        in_float32=in_float32,
        seed=seed,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


__all__ = [
    "VGGT_LICENCES",
    "Licence",
    "describe_left_out",
    "find_licence",
    "model_card",
    "whole_licence",
    "write_documents",
]
