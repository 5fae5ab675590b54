# SPDX-License-Identifier: Apache-2.0
"""Small things that many tests need: a model of toy width, and prepared repositories of random views."""

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from data_scripts.schema import EMPTY_QUESTION, QA_FEATURES, SCENES_FEATURES
from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_processor, create_tiny_config, create_tiny_tokenizer


QUESTIONS = ["What color is the chair?", "Is there a lamp in the room?", "How many chairs are there?", "Where is it?"]
ANSWERS = ["red", "yes", "two", "next to the bed"]
INSTRUCTIONS = [f"Place an anchor on the {name}." for name in ("lamp", "bed", "table", "largest chair")]


def toy_config(projector_type: str = "mlp", heads: bool = False, **kwargs):
    """A config of 32-wide modules on 28-pixel views; with `heads`, its encoder predicts cameras and depth."""
    config = create_tiny_config(create_tiny_tokenizer(), image_size=28, projector_type=projector_type)
    vision, text = config.vision_config, config.text_config
    vision.hidden_size, vision.num_attention_heads = 32, 2
    if heads:
        vision.camera_head_num_layers, vision.depth_head_layers = 1, [0, 0, 1, 1]
        vision.depth_head_neck_hidden_sizes, vision.depth_head_fusion_hidden_size = [8, 8, 8, 8], 8
    text.hidden_size, text.intermediate_size, text.head_dim, text.num_hidden_layers = 32, 64, 8, 2
    text.layer_types = ["full_attention"] * 2
    config.projector_hidden_size, config.projector_num_latents, config.geometry_hidden_size = 32, 6, 16
    for key, value in kwargs.items():
        setattr(config, key, value)
    return config


def toy_model(projector_type: str = "mlp", **kwargs) -> VggtQwen3ForConditionalGeneration:
    """A random model of `toy_config` in eval mode."""
    model = VggtQwen3ForConditionalGeneration(toy_config(projector_type, **kwargs)).eval()
    if (camera_head := model.model.vision_model.camera_head) is not None:
        # Random weights give cameras without a field of view; these have about 60 degrees.
        camera_head.pose_branch.fc2.bias.data[6:] = 0.25
    return model


def toy_processor(config):
    processor = create_processor(config, create_tiny_tokenizer())
    if config.anchor_hidden_size:
        config.anchor_token_id = processor.add_anchor_token()
    return processor


def write_toy_checkpoint(folder: Path, projector_type: str = "mlp", seed: int = 0, **kwargs) -> Path:
    """Writes a `toy_model` of weights drawn from `seed`, with its processor."""
    torch.manual_seed(seed)
    model = toy_model(projector_type, **kwargs)
    for part in (model, toy_processor(model.config)):
        part.save_pretrained(folder)
    return folder


def toy_views(num_views: int, seed: int = 0, side: int = 28) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(num_views)]


def toy_geometry(num_views: int, seed: int = 0, side: int = 28) -> dict:
    """Cameras that turn about the world's z axis, in the layout of a prepared repository."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, num_views)
    rotations = np.stack(
        [[[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]] for angle in angles]
    )
    intrinsics = np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]])
    return {
        "R": rotations.astype(np.float32),
        "t": rng.normal(size=(num_views, 3)).astype(np.float32),
        "K": np.tile(intrinsics, (num_views, 1, 1)).astype(np.float32),
        "depth_hist": rng.dirichlet(np.ones(16), num_views).astype(np.float32),
    }


def toy_action(seed: int) -> str:
    """A random place_anchor action."""
    rng = np.random.default_rng(seed)
    numbers = {"center": rng.normal(size=3) + [0, 0, 2], "extent": rng.uniform(0.2, 1.5, 3), "normal": [0, 0.6, -0.8]}
    fields = [f'"{key}": [{", ".join(f"{value:.2f}" for value in values)}]' for key, values in numbers.items()]
    return f'{{"action": "place_anchor", "label": "lamp", {", ".join(fields)}}}'


def write_toy_repo(
    root: Path, scenes: dict[str, int], num_views: int = 3, side: int = 28, task: str = "scanqa"
) -> Path:
    """A prepared repository of random views: `scenes` per split, four questions each; of "arkit_actions" four anchors."""
    number = 0
    for split, count in scenes.items():
        scene_rows, qa_rows = [], []
        for _ in range(count):
            scene_id = f"scene{number:04d}_00"
            images = []
            for view in toy_views(num_views, seed=number, side=side):
                buffer = BytesIO()
                view.save(buffer, "PNG")
                images.append({"bytes": buffer.getvalue(), "path": None})
            scene_rows.append(
                {
                    "scene_id": scene_id,
                    "images": images,
                    "frame_ids": [str(20 * view) for view in range(num_views)],
                    "geometry": {k: v.tolist() for k, v in toy_geometry(num_views, number, side).items()},
                }
            )
            for index, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
                action = None
                if task == "arkit_actions":
                    question, action = INSTRUCTIONS[index], toy_action(number + index)
                    answer = action
                qa_rows.append(
                    EMPTY_QUESTION
                    | {
                        "scene_id": scene_id,
                        "question_id": f"{split}-{scene_id}-{index}",
                        "question": question,
                        "situation": "I am standing next to the bed." if task == "sqa3d" else None,
                        "answers": [answer],
                        "task": task,
                        "action": action,
                    }
                )
            number += 1
        for name, rows, features in (("scenes", scene_rows, SCENES_FEATURES), ("qa", qa_rows, QA_FEATURES)):
            (root / name).mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows, features=features).to_parquet(root / name / f"{split}-00000-of-00001.parquet")
    # datasets caches a local repository by folder name, config and version: the version must tell them apart.
    version = f"1.0.{zlib.crc32(f'{root} {scenes} {num_views} {side} {task}'.encode())}"
    lines = ["---", "configs:"]
    for name in ("qa", "scenes"):
        lines += [f"- config_name: {name}", f"  version: {version}"] + ["  default: true"] * (name == "qa")
        lines += ["  data_files:"]
        for split in scenes:
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*.parquet"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root
