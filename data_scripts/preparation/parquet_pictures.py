# SPDX-License-Identifier: Apache-2.0
"""Datasets of the Hub whose Parquet files hold one question and its picture per row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ..files import UnreadableFileError
from .annotations import InputError


ROWS_PER_BATCH = 64  # with their pictures in memory
ROWS_PER_READ = 8  # of pictures, until their size is looked at
# Pictures are compressed already: what unpacks to more than so many times its file, or to more than a small group, is a bomb.
MAX_EXPANSION = 10
SMALL_GROUP = 64 << 20  # bytes


@dataclass(frozen=True)
class HubTable:
    """What a dataset of the Hub looks like.

    Attributes:
        name: its repository.
        columns: the columns that are read, and their kinds: "string", "strings" (a list of them) or "image" (a struct that
            holds the encoded picture as `bytes`).
    """

    name: str
    columns: dict[str, str]

    def describe(self) -> str:
        return f"{self.name}: " + ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())


def find_table(path: Path, known: tuple[HubTable, ...]) -> HubTable:
    """Which of the `known` datasets a Parquet file is of.

    Raises:
        InputError: it is none of them any more; names the columns that are there and those expected.
    """
    schema = _open(*_key(path)).schema_arrow
    found = {field.name: kind_of(field.type) for field in schema}
    for table in known:
        if all(found.get(name) == kind for name, kind in table.columns.items()):
            return table
    has = ", ".join(f"{name} ({kind})" for name, kind in found.items())
    expected = "; or of ".join(table.describe() for table in known)
    raise InputError(f"{path}: its columns are {has}; expected those of {expected}")


def kind_of(column: pyarrow.DataType) -> str:
    """The kind of a column, see `HubTable`; of others their Arrow type."""
    types = pyarrow.types
    if types.is_string(column) or types.is_large_string(column):
        return "string"
    if (types.is_list(column) or types.is_large_list(column)) and kind_of(column.value_type) == "string":
        return "strings"
    if types.is_struct(column) and column.get_field_index("bytes") >= 0:
        content = column.field("bytes").type
        if types.is_binary(content) or types.is_large_binary(content):
            return "image"
    return str(column)


def read_rows(path: Path, table: HubTable, pictures: bool) -> Iterator[dict]:
    """The rows of a Parquet file, in order; without `pictures` those stay unread, and the column "image" is left out. Bytes of a
    text that are not UTF-8 become halves of surrogate pairs, which cannot be stored: they spoil one row, not all.

    Raises:
        InputError: the file is cut short or damaged.
    """
    kinds = {name: kind for name, kind in table.columns.items() if kind != "image" or pictures}
    columns = [f"{name}.bytes" if kind == "image" else name for name, kind in kinds.items()]
    try:
        for batch in _open(*_key(path)).iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
            values = (_values(batch.column(name), kind) for name, kind in kinds.items())
            yield from (dict(zip(kinds, row)) for row in zip(*values))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cut short or damaged ({' '.join(str(error).split())})") from None


def _values(column: pyarrow.Array, kind: str) -> list:
    """A column as Python has it, whatever bytes its texts hold."""
    if kind == "image":
        return column.to_pylist()
    if kind == "string":
        return [_text(content) for content in column.cast(pyarrow.large_binary()).to_pylist()]
    lists = column.cast(pyarrow.large_list(pyarrow.large_binary())).to_pylist()
    return [None if contents is None else [_text(content) for content in contents] for contents in lists]


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", errors="surrogateescape")


def read_picture_of_row(path: Path, row: int) -> bytes | None:
    """The encoded picture of a row; None if it has none.

    Raises:
        UnreadableFileError: the file is cut short or damaged.
    """
    file = _open(*_key(path))
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if row < size:
            return _pictures_of_group(*_key(path), group)[row].as_py()
        row -= size
    return None


def _key(path: Path) -> tuple[str, int]:
    """What an opened file is kept by: a file that was replaced is another one."""
    return str(path), path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=2)
def _open(path: str, time: int) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a Parquet file ({' '.join(str(error).split())})") from None


@lru_cache(maxsize=1)  # scenes are read in the order of the rows
def _pictures_of_group(path: str, time: int, group: int) -> pyarrow.ChunkedArray:
    """`[rows of the group]` encoded pictures.

    Raises:
        UnreadableFileError: the file is cut short or damaged, or the group unpacks to more than pictures can.
    """
    limit = max(SMALL_GROUP, MAX_EXPANSION * Path(path).stat().st_size)
    too_large = UnreadableFileError(path, f"the pictures of row group {group} unpack to more than {limit >> 20} MiB")
    chunks, size = [], 0
    try:
        file = _open(path, time)
        columns = map(file.metadata.row_group(group).column, range(file.metadata.num_columns))
        if sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "image.bytes") > limit:
            raise too_large
        # Pages that repeat one picture for many rows come to more than the file states.
        for batch in file.iter_batches(ROWS_PER_READ, row_groups=[group], columns=["image.bytes"]):
            size += batch.nbytes
            if size > limit:
                raise too_large
            chunks.append(batch.column("image").field("bytes"))
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableFileError(path, f"cut short or damaged ({' '.join(str(error).split())})") from None
    return pyarrow.chunked_array(chunks)


__all__ = ["HubTable", "find_table", "kind_of", "read_picture_of_row", "read_rows"]
