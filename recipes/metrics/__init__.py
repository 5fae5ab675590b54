# SPDX-License-Identifier: Apache-2.0
"""Modules of the `evaluate` library: `evaluate.load(THREE_D_QA)`, `evaluate.load(ROOM_ACTIONS)`."""

from pathlib import Path


# Folders, wherever this package is installed.
THREE_D_QA = str(Path(__file__).parent / "three_d_qa")
ROOM_ACTIONS = str(Path(__file__).parent / "room_actions")

__all__ = ["ROOM_ACTIONS", "THREE_D_QA"]
