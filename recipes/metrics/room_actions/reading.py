# SPDX-License-Identifier: Apache-2.0
"""Actions as text, and their boxes."""

from modeling_vggt_qwen3.action_text_vggt_qwen3 import ActionError, read_text


VECTORS = ("center", "extent", "normal")
KINDS = ("walls", "doors", "windows", "objects")  # of describe_room


def read_action(text: str | None) -> dict | None:
    """The action that `text` is, or None if it does not parse or does not fit the schema of the action it names."""
    try:
        return None if text is None else read_text(text)
    except ActionError:
        return None


def boxes_of(action: dict) -> list[dict]:
    """All boxes of an action, each with its `label`; a wall's, door's or window's is its kind."""
    if action["action"] == "place_anchor":
        return [{key: action[key] for key in ("label", *VECTORS)}]
    if action["action"] == "list_objects":
        return [{"label": action["label"], **box} for box in action["objects"]]
    return [{"label": kind.removesuffix("s"), **box} for kind in KINDS for box in action[kind]]


__all__ = ["KINDS", "VECTORS", "boxes_of", "read_action"]
