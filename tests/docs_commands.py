# SPDX-License-Identifier: Apache-2.0
"""The commands and Python blocks of README.md and docs/: found, and for each how it is run in a small world, or why it is not."""

import re
import shlex
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Appended to what trains at full size: two steps of the tiny model on rooms of two pictures.
SMALL = (
    "--model_name_or_path demo/tiny --dataset_paths demo/data/scanqa demo/data/sqa3d --image_size 56 --num_views 2 "
    "--freeze_text_layers 0 --bf16 false --activation_checkpointing false --max_steps 2 --logging_steps 1 "
    "--per_device_train_batch_size 1 --global_batch_size 1 --dataloader_num_workers 0 "
    "--eval_strategy no --save_strategy steps --save_steps 1 --load_best_model_at_end false"
).split()
ACCELERATED = [*SMALL, "--gradient_accumulation_steps", "1"]  # which recipes.launch sets itself
WORDS = {"DIR": "demo/tiny", "DATA": "demo/data/scanqa", "STORE": "store"}  # placeholders of the docs

# In this order: how a command starts, and what is appended to it.
RUN = {
    "python -m data_scripts.prepare instruct": [],
    "python -m data_scripts.prepare scanqa": ["--num-views", "4", "--workers", "1"],
    "python -m data_scripts.prepare sqa3d": ["--num-views", "4", "--workers", "1"],
    "python -m data_scripts.prepare arkit_actions": ["--num-views", "4", "--workers", "1"],
    "python -m data_scripts.prepare records": [],
    "python -m data_scripts.view": [],
    "python -m data_scripts.rooms": ["--scenes", "3", "--views", "2", "--image-size", "28"],
    "python -m recipes.launch stage2 --dry-run": [],
    "python -m recipes.launch stage2 --mode debug --safe": ["--", *SMALL],
    "accelerate launch recipes/stage2.py": ACCELERATED,
    "accelerate launch recipes/stage2.py --view_dropout": [*ACCELERATED, "--output_dir", "outputs/views"],
    "accelerate launch recipes/stage2.py --config": [*ACCELERATED, "--output_dir", "outputs/rooms"],
    "python -m recipes.feature_store": "--split train val --num-views 2 --image-size 56".split(),
    "accelerate launch recipes/stage2.py --feature_store": [
        *ACCELERATED, *"--output_dir outputs/stored --dataset_paths demo/data/scanqa --dataset_weights 1".split(),
    ],
    "python -m recipes.monitor": [],
    "python -m recipes.export": ["--checkpoint", "outputs/stage2/checkpoint-2"],
    "python -m recipes.ask --model demo/stage2": [],
    "python -m recipes.ask --model demo/stage3": [],
    "python -m recipes.score": ["--em-only"],
    "python -m recipes.eval --model demo/blind": ["--em-only"],
    "python -m recipes.eval --model demo/stage2": ["--em-only"],
    "python -m recipes.eval --model demo/stage3": [],
    "python push_to_hub.py --model demo/stage2 --repo-id org/name --dry-run": ["--evaluation", "scores"],
    "python -m recipes.eval --model DIR": "--num-views 2 --em-only".split(),
}  # fmt: skip
TRAINS = "trains at full size; the same command with other settings is run"
TOKEN = "needs a token of the Hub; tests/test_push_to_hub.py and test_model_card.py publish to a Hub of their own"
SYSTEM = "changes the machine, not the project"
NOT_RUN = {
    "make test": "is what runs this",
    "make demo": ".ci/run runs it with --smoke",
    "make setup": SYSTEM,
    "make docs-figures": "needs a whole run of the demo; tests/test_docs_figures.py writes figures from a small one",
    "python -m recipes.docs_figures --check": "tests/test_docs_figures.py checks README.md and docs/ so",
    "source .venv/bin/activate": SYSTEM,
    "pip install": SYSTEM,
    "hf auth login": TOKEN,
    "python push_to_hub.py": TOKEN,
    "python -m data_scripts.prepare records --records train.jsonl val.jsonl --image-root images --output data/records --push": TOKEN,
    "accelerate launch recipes/stage2.py --push_to_hub": TOKEN,
    "python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf convert": "downloads 13 GB; tests/test_convert.py converts small files",
    "python -m recipes.ask --model checkpoints/": "needs released weights; tests/test_scene_export.py asks a small model so",
    "python -m data_scripts.download_arkitscenes": "downloads; tests/test_download_arkitscenes.py has a server of its own",
    "python -m recipes.launch": TRAINS,
    "python -m recipes.launch stage2 --dry-run --num_processes": "is the dry run that is run, for another GPU",
    "accelerate launch --config_file recipes/accelerate_configs/zero3.yaml": "needs GPUs; tests/test_deepspeed.py trains so on CPUs",
    "python -m recipes.eval --model outputs/": "scores what full-size commands train; the demo's models are scored instead",
    "python -m recipes.benchmark": "takes minutes; tests/test_benchmark.py runs it",
    "sbatch": "needs Slurm; tests/test_slurm.py submits these files to one",
    "tensorboard": "serves until it is stopped",
}  # fmt: skip
PYTHON_NOT_RUN = {'"org/': TOKEN}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language:
                found.append((f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[2]))
    return found


def commands() -> dict[str, str]:
    """Every command of a bash block, and where it is first."""
    found = {}
    for where, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.setdefault(shlex.join(words), where)
    return found


def entry_of(command: str) -> str | None:
    """The key of `RUN` or `NOT_RUN` that a command begins with, the longest; None if there is none."""
    words = " ".join(shlex.split(command))
    return max((key for key in (*RUN, *NOT_RUN) if words.startswith(key)), key=len, default=None)
