# SPDX-License-Identifier: Apache-2.0
"""Repos of a Hub of our own: files, commits, tags, and what the Hub objects to in a card's metadata."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml


# Of https://huggingface.co/docs/hub/repositories-licenses, those that the tests meet.
LICENCES = {"apache-2.0", "mit", "other", "unknown", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}


@dataclass(frozen=True)
class Stored:
    """A file of a commit; `sha256` if it is in the large file storage."""

    content: bytes
    sha256: str | None

    @property
    def oid(self) -> str:
        """The git blob's id, for a large file that of its pointer."""
        return git_oid(self.pointer if self.sha256 else self.content)

    @property
    def pointer(self) -> bytes:
        lines = [
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        ]
        return ("\n".join(lines) + "\n").encode()

    def describe(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Stored]


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        oid = self.head.oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, title: str, files: dict[str, Stored]) -> Commit:
        content = json.dumps([len(self.commits), title, {path: stored.oid for path, stored in files.items()}])
        self.commits.append(Commit(hashlib.sha1(content.encode()).hexdigest(), title, files))
        return self.head


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def parents(path: str) -> Iterator[str]:
    """The folders that `path` is in."""
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def metadata_errors(content: str, kind: str) -> list[str]:
    """What the Hub's check of a card's metadata would object to (https://huggingface.co/docs/hub/model-cards)."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    metadata = yaml.safe_load(match[1]) if match else None
    if not isinstance(metadata, dict):
        return ["no metadata"]
    errors = []
    licences = metadata.get("license")
    for licence in licences if isinstance(licences, list) else [licences]:
        if licence not in LICENCES:
            errors.append(f'"license" must be one of those known, got {licence}')
    if "other" in (licences or ()) and not re.fullmatch(r"[a-z0-9._-]+", str(metadata.get("license_name"))):
        errors.append('"license_name" must be a name in lower case')
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            if not result["task"]["type"] or not result["dataset"]["type"] or not result["dataset"]["name"]:
                errors.append(f'"model-index" lacks task or dataset: {result}')
            if not all(metric["type"] and "value" in metric for metric in result["metrics"]):
                errors.append('"model-index" has a metric without type or value')
    for config in metadata.get("configs", []) if kind == "dataset" else []:
        if not config.get("config_name") or not config.get("data_files"):
            errors.append('"configs" lacks a name or files')
    return errors
