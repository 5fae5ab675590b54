# SPDX-License-Identifier: Apache-2.0
"""Tables as text: aligned for a terminal, and CSV that a spreadsheet does not run."""

import csv
import io
import re


# What a spreadsheet would run (-3 and +1.5 are numbers), or has our mark before it.
FORMULA = re.compile(r"'*(?![-+]?\d+(\.\d+)?\Z)[=+\-@\t\r]")


def escape_formula(cell):
    """A cell of a CSV with an apostrophe before what a spreadsheet would take for a formula; numbers stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def unescape_formula(cell: str) -> str:
    """The text that `escape_formula` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def csv_text(header: list[str], rows) -> str:
    text = io.StringIO(newline="")
    # Texts are quoted: Python 3.11 leaves a carriage return bare, which ends a row where it is read.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(map(escape_formula, header))
    writer.writerows([escape_formula(cell) for cell in row] for row in rows)
    return text.getvalue()


def format_table(header: list[str], rows: list[list]) -> str:
    """A plain-text table: first column to the left, numbers to the right, floats as 0.123."""

    def text(cell) -> str:
        return "-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)

    lines = [header] + [[text(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    formatted = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([formatted[0], "-" * len(formatted[0]), *formatted[1:]])


__all__ = ["FORMULA", "csv_text", "escape_formula", "format_table", "unescape_formula"]
