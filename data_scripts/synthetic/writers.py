# SPDX-License-Identifier: Apache-2.0
"""Writes questions in the raw formats of ScanQA, SQA3D and LLaVA-style instruction data, and a contact sheet."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .layout import HEIGHT
from .questions import Candidate
from .situations import Situation


FIRST_SQA3D_ID = 220602000000  # SQA3D numbers its questions from here


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def scanqa_items(scene_id: str, split: str, names: list[str], chosen: list[Candidate]) -> list[dict]:
    """ScanQA v1.0 items of one scene; `names[i]` is the category of object i.

    Ids of test items begin with "val-", as the official ones do: the file says which split it is, not the id.
    """
    prefix = "train" if split == "train" else "val"
    return [
        {
            "answers": candidate.answers[:1] if split == "train" else candidate.answers,
            "object_ids": candidate.objects,
            "object_names": [names[i] for i in candidate.objects],
            "question": candidate.question,
            "question_id": f"{prefix}-{scene_id.split('_')[0]}-{number}",
            "scene_id": scene_id,
        }
        for number, candidate in enumerate(chosen)
    ]


def sqa3d_items(
    scene_id: str, first_id: int, size: np.ndarray, alignment: np.ndarray, chosen: list[Candidate]
) -> tuple[list[dict], list[dict]]:
    """SQA3D questions and annotations of one scene.

    Args:
        size: `[2]` extent of the room, metres.
        alignment: `[4, 4]` raw frame to aligned frame.
    """
    questions, annotations = [], []
    for question_id, candidate in enumerate(chosen, start=first_id):
        situation = candidate.situation
        questions.append(
            {
                "scene_id": scene_id,
                "situation": situation.text,
                "alternative_situation": [situation.paraphrase],
                "question": candidate.question,
                "question_id": question_id,
            }
        )
        position, rotation = raw_pose(situation, size, alignment)
        annotations.append(
            {
                "scene_id": scene_id,
                "question_type": "N/A",
                "answer_type": "other",
                "question_id": question_id,
                "answers": [{"answer": candidate.answers[0], "answer_confidence": "yes", "answer_id": 1}],
                "rotation": rotation,
                "position": position,
            }
        )
    return questions, annotations


def raw_pose(situation: Situation, size: np.ndarray, alignment: np.ndarray) -> tuple[dict, dict]:
    """Position and rotation of the asker as SQA3D states them.

    Metres from the centre of the bounding box of the raw mesh (here: of the room's walls), always at its middle height;
    the rotation turns the direction (-1, 0, 0) to the one faced, which is how SQA3D's own visualisation draws its arrow.
    """
    to_raw = np.linalg.inv(alignment)
    corners = np.array([[x, y, z, 1] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, HEIGHT)])
    corners[:, :2] *= size
    raw = corners @ to_raw.T
    centre = (raw.min(axis=0) + raw.max(axis=0)) / 2
    position = to_raw @ [*situation.position, 0, 1] - centre
    faced = to_raw[:2, :2] @ [np.cos(situation.heading), np.sin(situation.heading)]
    half = (np.arctan2(faced[1], faced[0]) + np.pi) / 2
    return (
        {"x": round(float(position[0]), 6), "y": round(float(position[1]), 6), "z": 0},
        {"_x": 0, "_y": 0, "_z": round(float(np.sin(half)), 6), "_w": round(float(np.cos(half)), 6)},
    )


def instruct_item(name: str, turns: list[tuple[str, str]]) -> dict:
    """A LLaVA-style item; the picture is `images/<name>.jpg`."""
    conversations = []
    for number, (question, answer) in enumerate(turns):
        prefix = "" if number else "<image>\n"
        conversations.append({"from": "human", "value": prefix + question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": name, "image": f"images/{name}.jpg", "conversations": conversations}


def write_preview(path: Path, scenes: dict[str, np.ndarray], questions: dict[str, list[tuple[str, str]]]) -> None:
    """A contact sheet: a row of views per scene, with some of its questions and answers below.

    Args:
        path: the PNG file.
        scenes: scene id to its pictures, `[V, H, W, 3]` uint8.
        questions: scene id to (question, answer) pairs.
    """
    font = PIL.ImageFont.load_default(size=13)
    line = 18
    rows = []
    for scene_id, pairs in questions.items():
        pictures = [PIL.Image.fromarray(rgb) for rgb in scenes[scene_id][:6]]
        side = pictures[0].width * max(1, round(168 / pictures[0].width))
        row = PIL.Image.new("RGB", (max(side * len(pictures), 420), side + line * len(pairs) + 8), "white")
        for column, picture in enumerate(pictures):
            row.paste(picture.resize((side, side), PIL.Image.Resampling.NEAREST), (column * side, 0))
        draw = PIL.ImageDraw.Draw(row)
        for number, (question, answer) in enumerate(pairs):
            draw.text((4, side + 2 + line * number), f"{question}  {answer}", fill="black", font=font)
        rows.append(row)
    sheet = PIL.Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


__all__ = [
    "FIRST_SQA3D_ID",
    "instruct_item",
    "raw_pose",
    "scanqa_items",
    "sqa3d_items",
    "write_json",
    "write_preview",
]
