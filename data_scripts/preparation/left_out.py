# SPDX-License-Identifier: Apache-2.0
"""The one guard of what strangers' files hold: one bad record, or scene, is left out and named, and the others are used.

Whatever reading a record or a scene raises becomes a reason (`reason_of`). What is foreseen says what is wrong with the file;
anything else is a mistake of this project, is left out as well, and says so with the place in the code.
"""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import UnreadableFileError
from ..json_text import JSONError
from ..paths import UnsafePathError
from ..plain import plain
from ..schema import SchemaError
from .annotations import InputError, describe


NAMED = 5  # records that a line about them names
MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # errors that no file is to blame for
REASONS = 20  # lines about one file: a reason may quote the record, and be another one for each


class BadRecordError(ValueError):
    """Why one record cannot be used."""


def reason_of(error: Exception) -> str:
    """One line that says why a record or scene is left out, of what reading it raised.

    Raises:
        the error itself, if it is not about one record or scene: memory or disk are full, or a whole file cannot be used.
    """
    if isinstance(error, MemoryError | InputError) or (isinstance(error, OSError) and error.errno in MACHINE):
        raise error
    if isinstance(error, UnreadableFileError):
        return plain(error.reason)
    if isinstance(error, BadRecordError | SchemaError | UnsafePathError | JSONError):
        return plain(str(error))
    if isinstance(error, OSError):  # of the input: what is written is written outside of every guard
        # Without its folders: what was left out may be published.
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        return plain(f"{name}cannot be read ({error.strerror or error})")
    if isinstance(error, RecursionError):
        return "nested too deeply"
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error}"
    return f"unexpected {plain(what)} ({Path(place.filename).name}, line {place.lineno}); please report this mistake"


@dataclass
class LeftOut:
    """The records of one file that are left out.

    Attributes:
        path: the file.
        unit: what its records are called.
        skipped: what they have that is not used, to their numbers: nothing is wrong with them.
        faults: what is wrong with them, to their numbers.
    """

    path: Path
    unit: str = "row"
    skipped: dict[str, list[int]] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def guard(self, number: int) -> Iterator[None]:
        """Within it, a record is read; whatever is wrong with it becomes a fault."""
        try:
            yield
        except Exception as error:
            self.fault(reason_of(error), number)

    def skip(self, what: str, number: int) -> None:
        self.skipped.setdefault(what, []).append(number)

    def fault(self, what: str, number: int) -> None:
        self.faults.setdefault(what, []).append(number)

    def first_fault(self) -> str | None:
        """The first record with a fault, and the fault."""
        if not self.faults:
            return None
        number, what = min((numbers[0], what) for what, numbers in self.faults.items())
        return f"{self.path}: {self.unit} {number}: {what}"

    def notes(self) -> list[str]:
        """One line per reason: how many records, and the first of them."""
        lines = [
            f"{len(rows)} records with {what} skipped ({self._named(rows)})" for what, rows in self.skipped.items()
        ]
        by_number = sorted(self.faults.items(), key=lambda entry: -len(entry[1]))
        lines += [f"{len(rows)} records left out ({self._named(rows)}): {what}" for what, rows in by_number[:REASONS]]
        lines = sorted(lines)
        others = [number for _, some in by_number[REASONS:] for number in some]
        if others:
            lines.append(f"{len(others)} records left out for other reasons ({self._named(sorted(others))})")
        return [f"{self.path.name}: {line}" for line in lines]

    def _named(self, numbers: list[int]) -> str:
        named = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
        return f"{self.unit} {named}" if len(numbers) == 1 else f"{self.unit}s {named}"


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


def check_items(record: dict, key: str, kind: type) -> list:
    """The list `record[key]` (empty if absent), after checking the type of its items; raises `BadRecordError`."""
    items = record.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise BadRecordError(f"'{key}' is not a list of {kind.__name__}")
    return items


def check_texts(record: dict, key: str) -> list[str]:
    """The texts of the list `record[key]` that are not blank; none if it is absent or null."""
    texts = record.get(key)
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError(f"'{key}' is not a list of str")
    return [text for text in texts if text.strip()]


def check_new(key: str, value: Any, seen: dict[Any, int], number: int) -> None:
    """Notes in `seen` that record `number` is the one named `value`; raises `BadRecordError` if another one is."""
    if seen.setdefault(value, number) != number:
        raise BadRecordError(f"{key} {value} occurs twice, first in row {seen[value]}")


__all__ = [
    "BadRecordError",
    "LeftOut",
    "check_items",
    "check_new",
    "check_record",
    "check_texts",
    "reason_of",
]
