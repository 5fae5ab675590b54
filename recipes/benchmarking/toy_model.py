# SPDX-License-Identifier: Apache-2.0
"""What the benchmark runs on: a model and a dataset of random content whose work is shared out as at full size."""

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3Model, set_seed

from data_scripts.schema import EMPTY_QUESTION, QA_FEATURES, SCENES_FEATURES
from modeling_vggt_qwen3 import VggtConfig, VggtModel, VggtQwen3Config, VggtQwen3ForConditionalGeneration
from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_processor, create_tiny_tokenizer


VIEWS, QUESTIONS = 8, 16
FULL_IMAGE_SIZE = 448
# Qwen3-4B (Qwen3 technical report, arXiv 2505.09388; its config.json).
QWEN3_4B = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
)
# About as long as ScanQA's.
TEXTS = [
    ("What color is the chair that is next to the table in the room?", "green"),
    ("How many lamps are on the right of the bed behind me?", "two"),
    ("What is in front of the refrigerator, next to the white cabinet?", "table"),
    ("Where is the television?", "on the right of the sofa"),
]
# About as long as LLaVA's, with an answer of some 90 tokens.
INSTRUCTIONS = [("What is in the picture?", " ".join(["a white table next to the bed on the left side ,"] * 8))]
ACTIONS = [
    (
        f"Place an anchor on the {label}.",
        f'{{"action": "place_anchor", "label": "{label}", "center": [{x}, -1.20, 2.31], "extent": [0.52, 1.20, 0.87], '
        '"normal": [0.00, 0.60, -0.80]}',
    )
    for label, x in (("lamp", "0.35"), ("bed", "1.54"), ("table", "-0.21"), ("chair", "-1.85"))
]
# Task to what is asked.
TASKS = {"scanqa": TEXTS, "llava": INSTRUCTIONS, "arkit_actions": ACTIONS}


def scaled_config(tokenizer) -> VggtQwen3Config:
    """Widths and depths that take seconds on a CPU; the language model reads as many tokens as at full size."""
    vision_config = VggtConfig(
        image_size=140,
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=4,
        backbone_num_hidden_layers=4,
        camera_head_num_layers=0,
        depth_head_layers=[],
    )
    text_config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return VggtQwen3Config(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        geometry_token_id=tokenizer.convert_tokens_to_ids("<|vision_pad|>"),
        vision_feature_layers=[0, 1, 2, 3],
        projector_type="perceiver",
        projector_hidden_size=192,
        projector_num_attention_heads=3,
        geometry_hidden_size=96,
    )


def write_checkpoint(folder: Path) -> VggtQwen3Config:
    """Writes a random model of `scaled_config`, with its processor."""
    set_seed(0)
    tokenizer = create_tiny_tokenizer()
    config = scaled_config(tokenizer)
    VggtQwen3ForConditionalGeneration(config).save_pretrained(folder)
    create_processor(config, tokenizer).save_pretrained(folder)
    return config


def write_dataset(
    folder: Path,
    num_scenes: dict[str, int],
    num_views: int,
    side: int,
    task: str = "scanqa",
    num_questions: int = QUESTIONS,
):
    """Writes a prepared repository of noise: `num_scenes` per split, `num_questions` of `task` about every scene."""
    rng = np.random.default_rng(0)
    geometry = {
        "R": np.tile(np.eye(3), (num_views, 1, 1)).tolist(),
        "t": rng.normal(size=(num_views, 3)).tolist(),
        "K": np.tile([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]], (num_views, 1, 1)).tolist(),
        "depth_hist": rng.dirichlet(np.ones(16), num_views).tolist(),
    }
    for split, count in num_scenes.items():
        scenes, questions = [], []
        for number in range(count):
            images = []
            for _ in range(num_views):
                buffer = BytesIO()
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG")
                images.append({"bytes": buffer.getvalue(), "path": None})
            frame_ids = [str(view) for view in range(num_views)]
            scenes.append(
                {"scene_id": f"{split}{number}", "images": images, "frame_ids": frame_ids, "geometry": geometry}
            )
            for index in range(num_questions):
                question, answer = TASKS[task][index % len(TASKS[task])]
                row = {"scene_id": f"{split}{number}", "question_id": f"{split}{number}-{index}", "question": question}
                row["action"] = answer if task == "arkit_actions" else None
                questions.append(EMPTY_QUESTION | row | {"task": task, "answers": [answer]})
        for name, rows, features in (("scenes", scenes, SCENES_FEATURES), ("qa", questions, QA_FEATURES)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows, features=features).to_parquet(folder / name / f"{split}.parquet")
    # datasets caches a local repository by folder name, config and version: the version must tell two runs apart.
    version = f"1.0.{zlib.crc32(bytes(folder))}"
    lines = ["---", "configs:"]
    for name in ("qa", "scenes"):
        lines += [f"- config_name: {name}", f"  version: {version}", "  data_files:"]
        for split in num_scenes:
            lines += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def count_flops(function) -> int:
    """Floating-point operations of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def forward_flops(vision_config, text_config, image_size: int, num_tokens: int) -> dict[str, int]:
    """
    Operations of one forward pass: `encoder` for `VIEWS` views of `image_size` pixels, `language_model` for a row of
    `num_tokens` tokens, with its head. Counted without computing: on the meta device.
    """
    with torch.device("meta"), torch.no_grad():
        encoder = VggtModel._from_config(vision_config, attn_implementation="eager")
        language_model = Qwen3Model._from_config(text_config, attn_implementation="eager")
        pixel_values = torch.zeros(1, VIEWS, 3, image_size, image_size)
        embeddings = torch.zeros(1, num_tokens, text_config.hidden_size)
        mask = torch.zeros(1, 1, num_tokens, num_tokens)
        encoder_flops = count_flops(lambda: encoder(pixel_values))
        language_flops = count_flops(
            lambda: language_model(inputs_embeds=embeddings, attention_mask={"full_attention": mask}, use_cache=False)
        )
    head = 2 * num_tokens * text_config.hidden_size * text_config.vocab_size
    return {"encoder": encoder_flops, "language_model": language_flops + head}


__all__ = [
    "FULL_IMAGE_SIZE",
    "QUESTIONS",
    "QWEN3_4B",
    "VIEWS",
    "count_flops",
    "forward_flops",
    "write_checkpoint",
    "write_dataset",
]
