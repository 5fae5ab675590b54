# SPDX-License-Identifier: Apache-2.0
"""What `recipes.eval` needs of a kind of dataset. One subclass is one file; `recipes.eval` lists them."""

import argparse
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from recipes.common.scenes import SceneDataset


class EvaluationTask(ABC):
    """
    One evaluation. It is made before the model is loaded and checks by then what can be checked; afterwards `recipes.eval`
    calls `generate`, `score`, `show` and `page`, in this order.

    Class attributes:
        ABOUT: what its datasets ask for, in a word or two for messages.
        OPTIONS: options of `recipes.eval` that no other task has, by their names in the namespace, with the arguments of
            `add_argument`.

    Args:
        arguments (`argparse.Namespace`): Of `recipes.eval`.
        processor (`VggtQwen3Processor`): The model's.
        source (`SceneDataset`): What is evaluated.

    Raises:
        ValueError: if something of what is asked for does not fit, before anything is generated.
    """

    ABOUT: ClassVar[str]
    OPTIONS: ClassVar[dict[str, dict[str, Any]]]

    def __init__(self, arguments: argparse.Namespace, processor: VggtQwen3Processor, source: SceneDataset):
        self.arguments, self.processor, self.source = arguments, processor, source

    @classmethod
    @abstractmethod
    def fits(cls, task: str) -> bool:
        """Whether it evaluates rows with this value of the column `task`."""

    @abstractmethod
    def generate(self, model: VggtQwen3ForConditionalGeneration) -> list[dict]:
        """Asks the model; returns the rows of predictions.jsonl."""

    @abstractmethod
    def score(self, rows: list[dict]) -> dict:
        """What metrics.json says of the rows; other files of scores are written into the output folder."""

    @abstractmethod
    def show(self, rows: list[dict]):
        """Prints the tables, and draws what was asked for."""

    @abstractmethod
    def page(self, title: str, rows: list[dict]) -> str | None:
        """The page of `--report`; None if there is nothing to show."""


def options_given(task: type[EvaluationTask], arguments: argparse.Namespace) -> list[str]:
    """The options of `task` that were given, as they are written."""
    given = []
    for name, settings in task.OPTIONS.items():
        default = settings.get("default", False if settings.get("action") == "store_true" else None)
        if getattr(arguments, name) != default:
            given.append("--" + name.replace("_", "-"))
    return given


__all__ = ["EvaluationTask", "options_given"]
