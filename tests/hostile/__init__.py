# SPDX-License-Identifier: Apache-2.0
"""What strangers' files may hold: generators of hostile inputs, and the count of what they come to.

One module per kind of input makes the cases, on the fly, from a seed; nothing binary is kept in the repository. The tests
`tests/test_hostile_*.py` try them all and print one line of counts each (`pytest -s`).
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar


Case = TypeVar("Case")


@dataclass
class Counts:
    """Of the inputs `tried`: how many were `refused` by name, `accepted`, and what went wrong with each of the others."""

    kind: str
    refused: int = 0
    accepted: int = 0
    tracebacks: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.refused + self.accepted + len(self.tracebacks)

    def __str__(self) -> str:
        return (
            f"hostile {self.kind}: {self.tried} tried, {self.refused} refused by name, {self.accepted} accepted, "
            f"{len(self.tracebacks)} tracebacks"
        )


def count(
    kind: str,
    cases: Iterable[tuple[str, Case]],
    attempt: Callable[[Case], object],
    refusals: tuple[type[Exception], ...],
    names: Callable[[str, Case], str],
) -> Counts:
    """
    Tries each case, prints the counts, and returns them.

    Args:
        kind: of the inputs, a word for the printed line.
        cases: what each is, in a few words, and the input.
        attempt: takes the input; raises if it refuses it.
        refusals: the errors that are an answer. Any other error is a traceback that a user would see.
        names: what the message of a refusal has to name (a file, a field), of a case; a refusal without it counts as a
            traceback.
    """
    counts = Counts(kind)
    for what, case in cases:
        try:
            attempt(case)
        except refusals as error:
            if names(what, case) in str(error):
                counts.refused += 1
            else:
                counts.tracebacks.append(f"{what}: the message does not name {names(what, case)!r}: {error}")
        except Exception:
            counts.tracebacks.append(f"{what}: {traceback.format_exc()}")
        else:
            counts.accepted += 1
    print(counts)
    return counts


__all__ = ["Counts", "count"]
