# SPDX-License-Identifier: Apache-2.0
"""What the readers of questions about single pictures give, and how they say which records are left out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotations import describe


NAMED = 5  # records that a line about them names


class BadRecordError(ValueError):
    """Why one record cannot be used."""


@dataclass
class LeftOut:
    """The records of one file that are left out.

    Attributes:
        path: the file.
        skipped: what they have that is not used, to the rows: nothing is wrong with them.
        faults: what is wrong with them, to the rows.
    """

    path: Path
    skipped: dict[str, list[int]] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)

    def skip(self, what: str, row: int) -> None:
        self.skipped.setdefault(what, []).append(row)

    def fault(self, what: str, row: int) -> None:
        self.faults.setdefault(what, []).append(row)

    def first_fault(self) -> str | None:
        """The first record with a fault, and the fault."""
        if not self.faults:
            return None
        row, what = min((rows[0], what) for what, rows in self.faults.items())
        return f"{self.path}: row {row}: {what}"

    def notes(self) -> list[str]:
        """One line per reason: how many records, and the first of them."""
        lines = [f"{len(rows)} records with {what} skipped ({_rows(rows)})" for what, rows in self.skipped.items()]
        lines += [f"{len(rows)} records left out ({_rows(rows)}): {what}" for what, rows in self.faults.items()]
        return [f"{self.path.name}: {line}" for line in sorted(lines)]


@dataclass
class PictureQuestion:
    """A question about one picture.

    Attributes:
        row: of `qa`; its `scene_id` is the picture's.
        table_row: where the picture is a row of a Parquet file, its number; otherwise it is a file under the image root.
    """

    row: dict[str, Any]
    table_row: int | None = None


def check_record(record: Any, keys: dict[str, type | tuple[type, ...]]) -> None:
    """Raises `BadRecordError` unless `record` is an object that has `keys`, each of the type given."""
    if not isinstance(record, dict):
        raise BadRecordError(f"it is {describe(record)}, expected an object")
    for key, kind in keys.items():
        if key not in record:
            raise BadRecordError(f"it has no '{key}'")
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise BadRecordError(f"'{key}' is {describe(record[key])}, expected {expected}")


def check_texts(record: dict, key: str) -> list[str]:
    """The texts of the list `record[key]` that are not blank; none if it is absent or null."""
    texts = record.get(key)
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError(f"'{key}' is not a list of str")
    return [text for text in texts if text.strip()]


def _rows(rows: list[int]) -> str:
    named = ", ".join(map(str, rows[:NAMED])) + (", ..." if len(rows) > NAMED else "")
    return f"row {named}" if len(rows) == 1 else f"rows {named}"


__all__ = ["BadRecordError", "LeftOut", "PictureQuestion", "check_record", "check_texts"]
