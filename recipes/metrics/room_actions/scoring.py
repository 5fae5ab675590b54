# SPDX-License-Identifier: Apache-2.0
"""Scores of systems that answered the same instructions, with bootstrap intervals and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from recipes.metrics.bootstrap import resample

from .boxes import iou_matrix, match
from .reading import KINDS


ACTIONS = ("place_anchor", "list_objects", "describe_room")
VALID, ACTION, LABEL = "valid", "action", "label"
CENTER, NORMAL = "center error (m)", "normal error (deg)"
IOUS = (0.25, 0.5)
WITHIN = (0.25, 0.5, 1.0)  # metres
WITHIN_DEGREES = 30
ALL = "all"
LEVEL_UP = (0.0, -1.0, 0.0)  # the vertical in the frame of a view that is held level


@dataclass
class Comparison:
    """
    One predicted action beside its reference.

    Attributes:
        valid, action, label: Whether it parses and validates; is the action asked for; and has the label asked for.
        center_error, normal_error, iou: Of place_anchor: metres, degrees, [0, 1]; infinity, 180 and 0 without a box.
        matches: Of the others, `{(kind, IoU): (matched, predicted, true)}` counts of boxes.
        pairs: Of the others, `{kind: [(predicted, true, IoU)]}` of boxes matched at the lowest IoU.
    """

    valid: bool
    action: bool = False
    label: bool = False
    center_error: float = np.inf
    normal_error: float = 180.0
    iou: float = 0.0
    matches: dict[tuple[str, float], tuple[int, int, int]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)


def compare(predicted: dict | None, reference: dict, up: Sequence[float] = LEVEL_UP) -> Comparison:
    """
    Compares an action with its reference. Both are in one frame, metres.

    What does not parse or is another action is wrong in everything: of lists it counts as as many wrong boxes as there
    are true ones. Boxes of a list match only under the label asked for, objects of a room only under equal labels.

    Args:
        predicted: None if it did not parse.
        up: `[3]` the world's vertical in the frame of the boxes.
    """
    name = reference["action"]
    result = Comparison(valid=predicted is not None)
    result.action = result.valid and predicted["action"] == name
    if name == "place_anchor":
        if result.action:
            result.label = predicted["label"] == reference["label"]
            result.center_error = float(np.linalg.norm(np.subtract(predicted["center"], reference["center"])))
            result.normal_error = angle(predicted["normal"], reference["normal"])
            if any(predicted["normal"]):  # a box without a direction has no axes
                result.iou = float(iou_matrix([predicted], [reference], up)[0, 0])
        return result
    kinds = ("objects",) if name == "list_objects" else KINDS
    if name == "list_objects":
        result.label = result.action and predicted["label"] == reference["label"]
    for kind in kinds:
        true = reference[kind]
        boxes = predicted[kind] if result.action else true
        ious = np.zeros((len(boxes), len(true)))
        directed = [number for number, box in enumerate(boxes) if any(box["normal"])] if result.action else []
        ious[directed] = iou_matrix([boxes[number] for number in directed], true, up)
        if name == "list_objects" and not result.label:
            ious[:] = 0
        if name == "describe_room" and kind == "objects":
            ious *= np.array([[box["label"] == other["label"] for other in true] for box in boxes]).reshape(ious.shape)
        result.pairs[kind] = [(row, column, float(ious[row, column])) for row, column in match(ious, IOUS[0])]
        for threshold in IOUS:
            result.matches[kind, threshold] = len(match(ious, threshold)), len(boxes), len(true)
    return result


def angle(first: Sequence[float], second: Sequence[float]) -> float:
    """Degrees between two directions; 180 if one has no length."""
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.degrees(np.arccos(np.clip(np.dot(first, second) / lengths, -1, 1)))) if lengths else 180.0


@dataclass
class ActionScores:
    """
    One system's predictions of one action.

    Attributes:
        shares: What is right or wrong of each instruction, bool `[N]`.
        errors: Of each instruction, float `[N]`; summed up by their median.
        ratios: What is summed over instructions and divided, two float `[N]` each.
        labels: The label of each reference, or "" where it has none, str `[N]`.
    """

    shares: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    ratios: dict[str, tuple[np.ndarray, np.ndarray]]
    labels: np.ndarray

    def _values(self, weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Every metric by (label or "all", metric), where instruction n counts `weights[b, n]` times; nan of none."""
        values = {}
        for group in [ALL, *sorted(set(self.labels.tolist()) - {""})]:
            members = np.ones(len(self.labels)) if group == ALL else (self.labels == group).astype(float)
            counts = weights * members
            with np.errstate(invalid="ignore"):
                for name, right in self.shares.items():
                    values[group, name] = 100 * (counts @ right) / counts.sum(axis=1)
                for name, (parts, wholes) in self.ratios.items():
                    values[group, name] = 100 * (counts @ parts) / (counts @ wholes)
            for name, errors in self.errors.items():
                values[group, name] = _medians(errors, counts)
        return {(group, name): values[group, name] for group, name in sorted(values, key=lambda key: self._order(key))}

    def _order(self, key: tuple[str, str]) -> tuple:
        group, name = key
        order = [VALID, ACTION, LABEL, CENTER, *(f"center @{limit:g} m" for limit in WITHIN)]
        order += [f"IoU @{threshold:g}" for threshold in IOUS] + [NORMAL, f"normal @{WITHIN_DEGREES} deg"]
        return group != ALL, group, order.index(name) if name in order else len(order)

    @cached_property
    def value(self) -> dict[tuple[str, str], float]:
        return {key: float(value[0]) for key, value in self._values(np.ones((1, len(self.labels)))).items()}

    @cached_property
    def resampled(self) -> dict[tuple[str, str], np.ndarray]:
        """The same on bootstrap draws of the instructions: the same draws for every system."""
        return resample(self._values, len(self.labels))

    def summary(self) -> dict:
        """
        `{"n", "not valid", metric: value, ..., "intervals": {metric: [low, high]}, "labels": {label: the same}}`.

        Shares, precision and recall are in percent; intervals hold 95 % of the bootstrap resamples. None stands for what
        is not finite: a median over mostly invalid actions, a precision of no boxes.
        """
        groups = {}
        for (group, metric), value in self.value.items():
            if group not in groups:
                members = (self.labels == group) | (group == ALL)
                invalid = int((members & ~self.shares[VALID]).sum())
                groups[group] = {"n": int(members.sum()), "not valid": invalid, "intervals": {}}
            groups[group][metric] = _finite(value)
            groups[group]["intervals"][metric] = _interval(self.resampled[group, metric])
        return groups.pop(ALL) | {"labels": groups}

    def difference(self, other: "ActionScores") -> dict[str, dict]:
        """Per metric `{"difference", "interval"}` of this system minus `other` on the same instructions, paired."""
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            return {
                metric: {
                    "difference": _finite(value - other.value[group, metric]),
                    "interval": _interval(self.resampled[group, metric] - other.resampled[group, metric]),
                }
                for (group, metric), value in self.value.items()
                if group == ALL
            }


def _medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[B]` medians of `values [N]`, each taken `counts[b, n]` times."""
    order = np.argsort(values)
    cumulated = counts[:, order].cumsum(axis=1)
    half = cumulated[:, -1:] / 2
    # The middle value, or the two in the middle of an even number.
    low, high = (values[order][side.argmax(axis=1)] for side in (cumulated >= half, cumulated > half))
    return np.where(half[:, 0] > 0, (low + high) / 2, np.nan)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(resampled: np.ndarray) -> list[float | None]:
    known = np.sort(resampled[~np.isnan(resampled)])
    if not len(known):
        return [None, None]
    # By rank: between a number and infinity there is nothing to interpolate.
    return [_finite(known[round(share * (len(known) - 1))]) for share in (0.025, 0.975)]


def score(
    systems: dict[str, Sequence[dict | None]],
    references: Sequence[dict],
    ups: Sequence[Sequence[float]] | None = None,
) -> dict[str, dict[str, ActionScores]]:
    """
    Scores systems that answered the same instructions.

    Args:
        systems: Name to actions, one per instruction; None is one that does not parse, and wrong in everything.
        references: The true actions.
        ups: `[N][3]` the world's vertical in the frame of each action's boxes; by default that of a level view.

    Returns:
        `{system: {action: ActionScores}}`, of the actions that there are references of.

    Raises:
        ValueError: if lengths differ, or there is no reference.
    """
    ups = [LEVEL_UP] * len(references) if ups is None else ups
    if not references:
        raise ValueError("There is no reference action to score against.")
    for name, actions in systems.items():
        if not len(actions) == len(references) == len(ups):
            raise ValueError(f"{name}: {len(actions)} actions, {len(references)} references, {len(ups)} verticals.")
    names = [reference["action"] for reference in references]
    scored = {}
    for system, actions in systems.items():
        compared = [compare(*each) for each in zip(actions, references, ups, strict=True)]
        scored[system] = {
            name: gather(
                [each for each, own in zip(compared, names, strict=True) if own == name],
                [each.get("label", "") for each in references if each["action"] == name],
            )
            for name in ACTIONS
            if name in names
        }
    return scored


def gather(compared: Sequence[Comparison], labels: Sequence[str]) -> ActionScores:
    """The scores of comparisons with references of one action, whose labels are `labels`."""
    shares = {
        VALID: np.array([each.valid for each in compared]),
        ACTION: np.array([each.action for each in compared]),
    }
    errors, ratios = {}, {}
    if any(labels):
        shares[LABEL] = np.array([each.label for each in compared])
    if compared[0].matches:
        for kind, threshold in compared[0].matches:
            matched, predicted, true = np.array([each.matches[kind, threshold] for each in compared], dtype=float).T
            ratios[f"{kind} precision @{threshold:g}"] = matched, predicted
            ratios[f"{kind} recall @{threshold:g}"] = matched, true
    else:
        centers, normals, ious = (
            np.array([getattr(each, name) for each in compared]) for name in ("center_error", "normal_error", "iou")
        )
        errors = {CENTER: centers, NORMAL: normals}
        shares |= {f"center @{limit:g} m": centers <= limit for limit in WITHIN}
        shares |= {f"IoU @{threshold:g}": ious >= threshold for threshold in IOUS}
        shares[f"normal @{WITHIN_DEGREES} deg"] = normals <= WITHIN_DEGREES
    return ActionScores(shares, errors, ratios, np.array(labels, dtype=object))


__all__ = ["ACTIONS", "ALL", "CENTER", "LEVEL_UP", "VALID", "ActionScores", "Comparison", "angle", "compare", "score"]
