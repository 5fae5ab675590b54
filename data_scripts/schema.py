# SPDX-License-Identifier: Apache-2.0
"""The schema of a prepared repository: two configurations, `scenes` with each scene's views once, and `qa` with the questions,
which name scenes by `scene_id`.

Builders write it, training reads it, and what checks data before a run asks for no more and no less than training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value


SCHEMA_VERSION = 2  # part of the fingerprint: a repo of another schema is never taken for this one

SCENES_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "images": List(Image()),
        "frame_ids": List(Value("string")),
        "geometry": {  # or null
            "R": List(List(List(Value("float32")))),  # [V, 3, 3] world-to-camera rotation
            "t": List(List(Value("float32"))),  # [V, 3] world-to-camera translation, metres
            "K": List(List(List(Value("float32")))),  # [V, 3, 3] pixels of the stored image
            "depth_hist": List(List(Value("float32"))),  # [V, 16] shares over 0-8 m
        },
    }
)

QA_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "question_id": Value("string"),
        "question": Value("string"),
        "situation": Value("string"),
        "answers": List(Value("string")),
        "task": Value("string"),
        "object_ids": List(Value("int32")),
        "object_names": List(Value("string")),
        "position": List(Value("float32")),  # [3] or null
        "rotation": List(Value("float32")),  # [4] quaternion x, y, z, w or null
        "position_frame": Value("string"),  # of position and rotation: "aligned" (as R, t), "annotation", or null
        "action": Value("string"),  # JSON, metres in the frame of view 0, or null
        "action_world": Value("string"),  # the same in the frame of R, t, or null
    }
)
EMPTY_QUESTION = {name: None for name in QA_FEATURES} | {"object_ids": [], "object_names": []}

FEATURES = {"scenes": SCENES_FEATURES, "qa": QA_FEATURES}
# What training and evaluation read; the other columns are for people, and for other uses of the data.
REQUIRED_COLUMNS = {
    "scenes": ("scene_id", "images", "geometry"),
    "qa": ("scene_id", "question_id", "question", "situation", "answers", "task", "action"),
}


MAX_FLOAT32 = float(np.finfo(np.float32).max)  # what is larger is stored as infinity, without a word
MAX_INT32 = 2**31
# Field of `qa` to whether it is a list, and the kind of its values.
_KINDS = {
    name: (isinstance(feature, List), (feature.feature if isinstance(feature, List) else feature).dtype)
    for name, feature in QA_FEATURES.items()
}
_NEVER_NULL = ("scene_id", "question_id", "question", "answers", "task")
_EXPECTED = {
    "string": "text that UTF-8 can hold",
    "int32": "a whole number of 32 bits",
    "float32": "a finite number of 32 bits",
}


class SchemaError(ValueError):
    """What was read does not fit the schema; the message names the field."""


def check_question(row: Mapping[str, Any]) -> None:
    """Checks that a row of `qa` can be written, and comes back as it is; optional fields may be absent or null.

    Asked of each row when it is read: `datasets` would find out after hours, when all is written, and name neither the file nor
    the scene. It takes some microseconds.

    Raises:
        SchemaError: names the field and what is expected of it.
    """
    for name, value in row.items():
        is_list, kind = _KINDS[name]
        if value is None and name not in _NEVER_NULL:
            continue
        if is_list and not isinstance(value, list):
            raise SchemaError(f"'{name}' is a {type(value).__name__}, expected a list")
        for item in value if is_list else (value,):
            if not _FITS[kind](item):
                raise SchemaError(f"'{name}' holds {_shown(item)}, expected {_EXPECTED[kind]}")


def check_scene(images: Sequence[bytes], frame_ids: Sequence[str], geometry: Mapping[str, Any] | None) -> None:
    """Checks that a scene can be written, and that no number of its geometry becomes infinite as float32.

    Args:
        images: `[V]` encoded pictures.
        frame_ids: `[V]`.
        geometry: `R` `[V, 3, 3]`, `t` `[V, 3]`, `K` `[V, 3, 3]`, `depth_hist` `[V, 16]` as nested lists, or None.

    Raises:
        SchemaError: names the field and, of geometry, the view.
    """
    if not images or len(frame_ids) != len(images) or not all(isinstance(image, bytes) for image in images):
        raise SchemaError(f"{len(images)} pictures with {len(frame_ids)} frame_ids: expected one or more of each")
    if not all(map(_fits_string, frame_ids)):
        raise SchemaError(f"'frame_ids' is not {_EXPECTED['string']}")
    for name, shape in {"R": (3, 3), "t": (3,), "K": (3, 3), "depth_hist": (16,)}.items() if geometry else ():
        values = np.asarray(geometry[name], dtype=np.float64)
        if values.shape != (len(images), *shape):
            raise SchemaError(f"'{name}' has the shape {values.shape}, expected {(len(images), *shape)}")
        fits = (np.abs(values) <= MAX_FLOAT32).reshape(len(images), -1).all(axis=1)
        if not fits.all():
            view = int(np.argmin(fits))
            raise SchemaError(f"'{name}' of view {view} holds a number that is not {_EXPECTED['float32']}")


def _fits_string(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say it, UTF-8 cannot
        return False


_FITS = {
    "string": _fits_string,
    "int32": lambda value: type(value) is int and -MAX_INT32 <= value < MAX_INT32,
    "float32": lambda value: (  # nan is not smaller than anything
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT32
    ),
}


def _shown(value: Any) -> str:
    return ascii(value)[:60] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def missing_columns(config: str, names: list[str]) -> list[str]:
    """The columns of `config` (`scenes` or `qa`) that training needs and that are not among `names`."""
    return [name for name in REQUIRED_COLUMNS[config] if name not in names]


__all__ = [
    "EMPTY_QUESTION",
    "FEATURES",
    "QA_FEATURES",
    "REQUIRED_COLUMNS",
    "SCENES_FEATURES",
    "SCHEMA_VERSION",
    "SchemaError",
    "check_question",
    "check_scene",
    "missing_columns",
]
