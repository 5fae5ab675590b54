# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` module: `evaluate.load(recipes.metrics.ROOM_ACTIONS)`, which works offline."""

import datasets
import evaluate

from .boxes import MIN_DEPTH
from .reading import read_action
from .scoring import score


DESCRIPTION = f"""
Scores of RoomPlan-style actions (place_anchor, list_objects, describe_room) against the true ones: whether they parse, have
the right label, and how near, how parallel and how overlapping their boxes are. Flat boxes overlap as if {MIN_DEPTH} m deep.
"""

INPUTS = """
Args:
    predictions (list of str): One action per instruction, as JSON text. What does not parse is wrong in everything.
    references (list of str): The true actions, in the same frame, metres.
    ups (list of [x, y, z], optional): The world's vertical in the frame of each action's boxes; by default [0, -1, 0], that
        of a view held level in OpenCV's axes.

Returns:
    {action: {"n", "not valid", metric: value, ..., "intervals": {metric: [low, high]}, "labels": {label: the same}}}.
    Shares, precision and recall are in percent; an error is the median, infinite (None) where most do not parse.
    place_anchor: valid, action, label, "center error (m)", "center @0.25 m", "center @0.5 m", "center @1 m", "IoU @0.25",
    "IoU @0.5", "normal error (deg)", "normal @30 deg". list_objects: valid, action, label, "objects precision @0.25", "objects
    recall @0.25" and @0.5. describe_room: the same for walls, doors, windows and objects.

Examples:
    >>> metric = evaluate.load(recipes.metrics.ROOM_ACTIONS)
    >>> text = '{"action": "place_anchor", "label": "bed", "center": [0, 0, 2], "extent": [1, 1, 2], "normal": [0, 0, -1]}'
    >>> metric.compute(predictions=[text], references=[text])["place_anchor"]["IoU @0.5"]
    100.0
"""

CITATION = """
@inproceedings{baruch2021arkitscenes, title={ARKitScenes: A Diverse Real-World Dataset For 3D Indoor Scene Understanding
  Using Mobile RGB-D Data}, author={Baruch, Gilad and Chen, Zhuoyuan and Dehghan, Afshin and Dimry, Tal and Feigin, Yuri and
  Fu, Peter and Gebauer, Thomas and Joffe, Brandon and Kurz, Daniel and Schwartz, Arik and Shulman, Elad},
  booktitle={NeurIPS Datasets and Benchmarks}, year={2021}}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class RoomActions(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://developer.apple.com/documentation/roomplan/capturedroom"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], ups: list[list[float]] | None = None
    ) -> dict[str, dict]:
        true = [read_action(text) for text in references]
        wrong = [number for number, action in enumerate(true) if action is None]
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(true)} references are not actions, e.g. number {wrong[:5]}.")
        scored = score({"system": [read_action(text) for text in predictions]}, true, ups)
        return {name: scores.summary() for name, scores in scored["system"].items()}
