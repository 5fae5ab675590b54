# SPDX-License-Identifier: Apache-2.0
"""The text of an action: one line of JSON, its schema, and what is wrong with a text that is not of it.

The text has ", " and ": " as separators, keys in the order of the schema and exactly two decimals in every number. It is
what is trained and decoded. Any JSON of the schema is read, however it is written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


MAX_LABEL_LENGTH = 32
MAX_COORDINATE = 99.99
MIN_EXTENT = (0.01, 0.01, 0.0)  # a wall, door or window has no depth
# How many boxes a list may hold.
MAX_LISTED = 32
LISTS_OF_ROOM = {"walls": 24, "doors": 12, "windows": 12}
MAX_OBJECTS_OF_ROOM = 48

# Printable, no space at the start: no control characters, line separators or halves of surrogate pairs.
_UNPRINTABLE = r"\u0000-\u001f\u007f-\u00a0\u2028\u2029\ud800-\udfff"
_LABEL = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_LABEL_LENGTH,
    "pattern": rf"^[^ {_UNPRINTABLE}][^{_UNPRINTABLE}]*(?![\s\S])",  # to Python, $ is also before a last line feed
    "description": "category",
}


def _vector(description: str, *items: dict, **more) -> dict:
    lengths = {"minItems": 3, "maxItems": 3}
    return {"type": "array", "prefixItems": list(items), **lengths, **more, "description": description}


def _number(low: float, high: float = MAX_COORDINATE) -> dict:
    return {"type": "number", "minimum": low, "maximum": high}


_BOX = {
    "center": _vector("metres, frame of view 0 (x right, y down, z forward)", *[_number(-MAX_COORDINATE)] * 3),
    "extent": _vector("full width, height (vertical) and depth (along the normal), metres", *map(_number, MIN_EXTENT)),
    "normal": _vector("direction, read as unit length", *[_number(-1, 1)] * 3, **{"not": {"const": [0, 0, 0]}}),
}


def _object(properties: dict, **more) -> dict:
    return {
        **more,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(properties: dict, most: int) -> dict:
    return {"type": "array", "items": _object(properties), "maxItems": most}


def _schema(name: str, description: str, properties: dict) -> dict:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, "description": description}
    return _object({"action": {"const": name}, **properties}, **head)


ACTION_SCHEMAS: dict[str, dict] = {
    schema["title"]: schema
    for schema in (
        _schema("place_anchor", "An anchor on one thing.", {"label": _LABEL, **_BOX}),
        _schema(
            "list_objects",
            "All boxes of a category that some view shows, the nearest to view 0's camera first.",
            {"label": _LABEL, "objects": _list(_BOX, MAX_LISTED)},
        ),
        _schema(
            "describe_room",
            "What the views show of a room, the nearest to view 0's camera first in each list.",
            {
                **{key: _list(_BOX, most) for key, most in LISTS_OF_ROOM.items()},
                "objects": _list({"label": _LABEL, **_BOX}, MAX_OBJECTS_OF_ROOM),
            },
        ),
    )
}


class ActionError(ValueError):
    """A text that is no action, or a box that cannot be."""


def check_action_name(name: str):
    """Raises ActionError, which lists the actions there are, if `name` is none of them."""
    if name not in ACTION_SCHEMAS:
        raise ActionError(f"There is no action {name!r}; there are {', '.join(ACTION_SCHEMAS)}.")


def write_text(name: str, fields: Mapping[str, Any]) -> str:
    """
    The text of an action.

    Args:
        name (`str`): One of `ACTION_SCHEMAS`.
        fields (`Mapping`): What follows the action's name, in order: strings, vectors `[3]` and lists of such mappings.
            An extent is at least a centimetre wide and high, as the schema has it.

    Raises:
        ActionError: if the schema does not allow it.
    """
    text = _write({"action": name, **fields})
    read_text(text)
    return text


def _write(value: Any, key: str = "") -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{name}": {_write(item, name)}' for name, item in value.items()) + "}"
    if key == "extent":
        value = np.maximum(value, MIN_EXTENT)
    if key in _BOX:
        # Adding zero turns -0.0 into 0.0.
        return "[" + ", ".join(f"{round(float(number), 2) + 0.0:.2f}" for number in value) + "]"
    return "[" + ", ".join(map(_write, value)) + "]"


def read_text(text: str) -> dict[str, Any]:
    """
    The JSON of an action's text, checked against its schema.

    Raises:
        ActionError: if the text is cut off, is no JSON or is not of the schema of the action it names; says what is
            wrong and at which character or under which key.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if _is_cut_off(text, error):
            raise ActionError(
                f"The text of an action is cut off after {len(text)} characters ({_excerpt(text, len(text))}): it "
                "needs more new tokens."
            ) from None
        raise ActionError(
            f"The text is no JSON: {error.msg} at character {error.pos} ({_excerpt(text, error.pos)})."
        ) from None
    except (ActionError, RecursionError, ValueError) as error:  # nested without end, an integer of thousands of digits
        raise ActionError(f"The text is no action: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("action"), str):
        raise ActionError(f'The text is no action: an object with the string "action" is expected, not {text[:60]!r}.')
    check_action_name(content["action"])
    fault = next(_faults(content, ACTION_SCHEMAS[content["action"]], ""), None)
    if fault is not None:
        raise ActionError(f"The text is no {content['action']}: {fault}.")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ActionError(f"the key {twice!r} occurs twice.")
    return dict(pairs)


def _refuse_constant(name: str):
    raise ActionError(f"{name} is no number of JSON.")


def _excerpt(text: str, position: int) -> str:
    """What stands before a position, or after one at the very start."""
    return f"after {text[max(position - 24, 0) : position]!r}" if position else f"before {text[:24]!r}"


# Whole tokens of JSON, and the start of one: of a string, or what has to follow within a number.
_TOKENS = re.compile(
    r'(?:\s*(?:[{}\[\],:]|"(?:[^"\\]|\\.)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null))*', re.DOTALL
)
_START_OF_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*\\?|-|\.|[eE][-+]?|', re.DOTALL)


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Whether a text that is no JSON could become some if more followed."""
    end = _TOKENS.match(text).end()
    rest = text[end:].strip()
    return error.msg != "Extra data" and error.pos >= end and _START_OF_TOKEN.fullmatch(rest) is not None


def _faults(value: Any, schema: Mapping, where: str) -> Iterable[str]:
    """What is wrong with a value, by the keywords that `ACTION_SCHEMAS` has."""
    name = where or "it"
    if "const" in schema:
        if value != schema["const"]:
            yield f"{name} is {value!r}, not {schema['const']!r}"
    elif schema["type"] == "number":
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name} is {_describe(value)}, not a number"
        elif not schema["minimum"] <= value <= schema["maximum"]:  # nor if it is not a number
            yield f"{name} is {value}, not within {schema['minimum']} to {schema['maximum']}"
    elif schema["type"] == "string":
        if not isinstance(value, str):
            yield f"{name} is {_describe(value)}, not a string"
        elif not schema["minLength"] <= len(value) <= schema["maxLength"]:
            yield f"{name} has {len(value)} characters, not {schema['minLength']} to {schema['maxLength']}"
        elif re.search(schema["pattern"], value) is None:
            yield f"{name} is {value!r}, which starts with a space or has a character that cannot be printed"
    elif schema["type"] == "array":
        yield from _faults_of_array(value, schema, where)
    elif not isinstance(value, dict):
        yield f"{name} is {_describe(value)}, not an object"
    else:
        for key in schema["required"]:
            if key not in value:
                yield f"{name} has no {key!r}"
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{name} has {key!r}, which the schema does not know"
            else:
                yield from _faults(item, schema["properties"][key], f"{where}.{key}".lstrip("."))


def _faults_of_array(value: Any, schema: Mapping, name: str) -> Iterable[str]:
    least, most = schema.get("minItems", 0), schema["maxItems"]
    if not isinstance(value, list):
        yield f"{name} is {_describe(value)}, not an array"
    elif not least <= len(value) <= most:
        yield f"{name} has {len(value)} items, not {f'{least} to {most}' if least < most else most}"
    else:
        for index, item in enumerate(value):
            items = schema["prefixItems"][index] if "prefixItems" in schema else schema["items"]
            yield from _faults(item, items, f"{name}[{index}]")
        if "not" in schema and value == schema["not"]["const"]:
            yield f"{name} is zero: it has no direction"


def _describe(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


__all__ = ["ACTION_SCHEMAS", "ActionError", "check_action_name", "read_text", "write_text"]
