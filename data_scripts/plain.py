# SPDX-License-Identifier: Apache-2.0
"""What a message quotes from files: a line that every terminal, log and card can hold, whatever the files held."""

import re


SHOWN = 300  # characters of what a file holds
_STRANGE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str, shown: int | None = SHOWN) -> str:
    """`text` on one line, with escapes for what no terminal should be sent (control characters, halves of surrogate pairs, marks
    that turn the direction of writing), and cut in the middle where it is longer than `shown` characters.
    """
    if shown is not None and len(text) > shown:
        text = f"{text[: shown - 40]} … {text[-37:]}"
    text = text.replace("\n", " ")
    return _STRANGE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


__all__ = ["plain"]
