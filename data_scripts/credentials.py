# SPDX-License-Identifier: Apache-2.0
"""Tokens, passwords and private keys: dropped from what is stored or shown, and never published.

They are known by the name of a setting or argument (`hub_token`, `--api-key`), and by the form of a value wherever it
stands (`FORMS`). Nothing here needs more than the standard library, but Parquet files to be read.
"""

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path


REMOVED = "<removed>"
HUB_TOKEN_VARIABLE = "VGGT_QWEN3_HUB_TOKEN"  # from recipes.launch to the recipe
# In bytes: files of any kind have them.
FORMS = (
    rb"hf_(?:oauth_[\w.-]{30,}|[A-Za-z0-9]{30,})",
    rb"api_org_[A-Za-z0-9]{30,}",
    rb"gh[pousr]_[A-Za-z0-9]{36,}",
    rb"github_pat_\w{22,}",
    rb"glpat-[\w-]{20,}",
    rb"(?<![\w-])sk-(?=[\w-]{0,60}\d)[\w-]{20,}",
    rb"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])",
    rb"AIza[\w-]{35}",
    rb"xox[abeprs]-[\w-]{10,}",
    rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY",
    # Weights and Biases: 40 hexadecimal digits after the name of a key, or in a netrc of its hosts.
    rb"[Aa][Pp][Ii][_ -]?[Kk][Ee][Yy][\s\"'\\:=>]{1,8}[0-9a-f]{40}(?![0-9a-f])",
    rb"wandb\.ai\s+login\s+\w+\s+password\s+[0-9a-f]{40}(?![0-9a-f])",
    # The password of an address: scheme://user:password@host
    rb"(?<=[A-Za-z0-9])://[\w.~%!$&*+,;=-]{0,64}:[\w.~%!$&*+,;=-]{3,200}@(?=[A-Za-z0-9\[])",
)
ANY_FORM = re.compile(b"|".join(FORMS))
MAX_HEADER = 100_000_000  # bytes; what the format allows

# The name of an argument or setting, in words with _ between them.
SECRET_NAME = re.compile(r"(.*_)?(token|key|auth|pat)|.*(secret|passw|passphrase|credential|api_?key|access_key).*")
# Its value in a text: after an argument, a variable of the environment, or a key of JSON or YAML.
ARGUMENT = re.compile(r"(?<![\w-])(--?[A-Za-z][\w-]*)([=\s'\",]+)([^\s'\",-][^\s'\",]*)")
VARIABLE = re.compile(r"\b([A-Z][A-Z0-9_]*)(=)([^\s'\"]+)")
ENTRY = re.compile(r"([\w-]+)(\\*[\"']\s*:\s*\\*[\"'])([^\"'\\]+)")


def is_secret_name(name: str) -> bool:
    """Whether an argument or setting of that name holds what nobody else may read."""
    return SECRET_NAME.fullmatch(name.lower().replace("-", "_")) is not None


def without_credentials(value):
    """
    `value`, of plain lists, dicts and strings, without what is secret in it: entries of a secret name, arguments of a
    command line (a list of words) with their values, and in any string what has a token's form. Other types stay as they
    are.
    """
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, str) for item in value):
            value = _without_arguments(value)
        return [without_credentials(item) for item in value]
    if isinstance(value, dict):
        return {
            key: without_credentials(item)
            for key, item in value.items()
            if not (isinstance(key, str) and isinstance(item, str | None) and is_secret_name(key))
        }
    return value


def hide_credentials(text: str) -> str:
    """`text` with `<removed>` in the place of each token, and of the value of each argument or entry of a secret name."""

    def hide(match: re.Match) -> str:
        return match[1] + match[2] + REMOVED if is_secret_name(match[1].lstrip("-")) else match[0]

    for pattern in (ARGUMENT, VARIABLE, ENTRY):
        text = pattern.sub(hide, text)
    return ANY_FORM.sub(REMOVED.encode(), text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


def _without_arguments(words: list[str]) -> list[str]:
    """A command line without the arguments that are secret by their name, and what follows them up to the next one."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("-"):
            dropping = is_secret_name(word.lstrip("-").partition("=")[0])
        if not dropping:
            kept.append(word)
    return kept


def find_credential(content: Path | bytes) -> str | None:
    """
    Where in a file, or its content, something has a token's form, as "line 3", or None if nothing has.

    Every byte is looked at, but for two kinds of files: of safetensors the header (the rest are numbers), of Parquet files
    the texts (the rest are numbers and pictures).
    """
    if isinstance(content, bytes):
        return _place(content)
    if content.suffix == ".parquet":
        return _find_in_parquet(content)
    if content.suffix != ".safetensors":
        return _place(content.read_bytes())
    with content.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return "the header" if ANY_FORM.search(stream.read(min(size, MAX_HEADER))) else None


def _place(content: bytes) -> str | None:
    match = ANY_FORM.search(content)
    if match is None:
        return None
    return f"byte {match.start()}" if b"\0" in content[:8192] else f"line {content.count(10, 0, match.start()) + 1}"


def _find_in_parquet(path: Path) -> str | None:
    parquet = import_module("pyarrow.parquet").ParquetFile(path)
    if any(ANY_FORM.search(key + b" " + value) for key, value in (parquet.schema_arrow.metadata or {}).items()):
        return "the metadata"
    columns = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    texts = [column.path for column in columns if column.logical_type.type == "STRING"]
    for group in range(parquet.num_row_groups if texts else 0):
        table = parquet.read_row_group(group, columns=texts)
        for name in table.column_names:
            if ANY_FORM.search("\n".join(_texts(table[name].to_pylist())).encode("utf-8", "surrogatepass")):
                return f"column {name}"
    return None


def _texts(value) -> Iterator[str]:
    """All strings in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


class DiscreetParser(argparse.ArgumentParser):
    """An `ArgumentParser` that does not repeat a token in what it says about a command line."""

    def exit(self, status: int = 0, message: str | None = None):
        super().exit(status, message and hide_credentials(message))


__all__ = [
    "HUB_TOKEN_VARIABLE",
    "DiscreetParser",
    "find_credential",
    "hide_credentials",
    "is_secret_name",
    "without_credentials",
]
