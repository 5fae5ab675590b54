# SPDX-License-Identifier: Apache-2.0
"""What the readers of questions about single pictures give."""

from dataclasses import dataclass
from typing import Any


@dataclass
class PictureQuestion:
    """A question about one picture.

    Attributes:
        row: of `qa`; its `scene_id` is the picture's.
        table_row: where the picture is a row of a Parquet file, its number; otherwise it is a file under the image root.
    """

    row: dict[str, Any]
    table_row: int | None = None


__all__ = ["PictureQuestion"]
