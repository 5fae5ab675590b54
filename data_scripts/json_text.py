# SPDX-License-Identifier: Apache-2.0
"""JSON that strangers wrote: whatever it holds, it is parsed or refused by one kind of error."""

import codecs
import json
from pathlib import Path
from typing import Any


DIGITS = 300  # of a whole number; float64 holds no number of more than 309
_OTHER_TEXTS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class JSONError(ValueError):
    """It is no JSON, or none that can be read; the message is one line."""


def read_json_text(path: Path) -> str:
    """The text of a file, with or without byte order mark. Bytes that are not UTF-8 become halves of surrogate pairs: they spoil the
    record they stand in, which cannot be stored, and not all the others.

    Raises:
        JSONError: the file is in UTF-16 or UTF-32.
        OSError: it cannot be read.
    """
    check_encoding(path)
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")


def check_encoding(path: Path) -> None:
    """Raises `JSONError` if a file's byte order mark says that it is in UTF-16 or UTF-32, as Windows' tools write, and `OSError`."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    for mark, name in _OTHER_TEXTS.items():
        if head.startswith(mark):
            raise JSONError(f"text in {name}, expected UTF-8")


def parse_json(text: str | bytes) -> Any:
    """Parses JSON. A whole number of more than 300 digits becomes infinite, as 1e999 does, and is refused where numbers have to be
    finite.

    Raises:
        JSONError: it is no JSON, no UTF-8, or nested deeper than can be read.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except ValueError as error:  # also of bytes that are no text
        raise JSONError(str(error)) from None
    except RecursionError:
        raise JSONError("nested too deeply") from None


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= DIGITS else float(digits)


__all__ = ["JSONError", "check_encoding", "parse_json", "read_json_text"]
