# SPDX-License-Identifier: Apache-2.0
"""`CITATION.cff` as BibTeX."""

from pathlib import Path

import yaml

from recipes import top_file


CITATION = top_file("CITATION.cff")
ENTRY_TYPES = {"conference-paper": "inproceedings", "report": "techreport", "software": "misc", "article": "article"}


def bibtex(path: Path = CITATION) -> str:
    """
    The work that a `CITATION.cff` describes and its references, an entry each.

    Raises:
        OSError: if the file cannot be read.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return "\n\n".join(_entry(work) for work in [content, *content.get("references", [])])


def _entry(work: dict) -> str:
    authors = [
        f"{author['family-names']}, {author['given-names']}" if "family-names" in author else f"{{{author['name']}}}"
        for author in work["authors"]
    ]
    first = work["authors"][0]
    name = first.get("family-names", first.get("name")).split()[-1].lower() if len(authors) > 1 else work["title"].split()[0].lower()  # fmt: skip
    fields = {"title": f"{{{work['title']}}}", "author": " and ".join(authors)}
    fields |= {key: str(work[field]) for key, field in (("booktitle", "collection-title"), ("version", "version"), ("year", "year")) if field in work}  # fmt: skip
    for identifier in work.get("identifiers", []):
        fields["note"] = identifier["value"]
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@{ENTRY_TYPES[work['type']]}{{{name}{work.get('year', '')},\n{lines}\n}}"


__all__ = ["bibtex"]
