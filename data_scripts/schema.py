# SPDX-License-Identifier: Apache-2.0
"""The schema of a prepared repository: two configurations, `scenes` with each scene's views once, and `qa` with the questions,
which name scenes by `scene_id`.

Builders write it, training reads it, and what checks data before a run asks for no more and no less than training.
"""

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
    "missing_columns",
]
