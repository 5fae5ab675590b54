# SPDX-License-Identifier: Apache-2.0
"""The commands and Python blocks of README.md and docs/: found, and for each how it is run in a small world, or why it is not."""

import re
import shlex
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Appended to what trains at full size: two steps, an evaluation and a checkpoint, on pictures of 56 pixels.
SMALL = (
    "--image_size 56 --bf16 false --activation_checkpointing false --max_steps 2 --logging_steps 1 --global_batch_size 1 "
    "--dataloader_num_workers 0 --eval_strategy steps --eval_steps 2 --eval_questions 4 --max_new_tokens 4 "
    "--save_strategy steps --save_steps 2"
).split()
# recipes.launch finds out what follows from the global batch, and that there is no GPU.
ACCELERATED = [*SMALL, *"--per_device_train_batch_size 1".split()]
TINY = "--model_name_or_path demo/tiny --freeze_text_layers 0".split()  # of few layers
STORED = [*TINY, *"--dataset_paths demo/data/scanqa --dataset_weights 1 --num_views 2".split()]
CPU = [*SMALL, "--use_cpu", "true"]  # under Slurm, whose GPUs are only names here
# Placeholders of the docs, and the address of what stands in for Apple's server.
WORDS = {"DIR": "demo/tiny", "DATA": "demo/data/scanqa", "STORE": "store"}
MIRROR = "MIRROR"


def into(folder: str) -> list[str]:
    """Of runs that would otherwise go on with another one's; these train alone."""
    return f"--eval_strategy no --load_best_model_at_end false --output_dir outputs/{folder}".split()


# In this order: how a command starts, and what is appended to it.
RUN = {
    "make demo": ["DEMO_DIR=demo --smoke"],
    "python -m recipes.demo": ["--output", "demo"],  # which is there
    "make docs-figures": ["DEMO_DIR=finished --root ."],
    "python -m recipes.docs_figures --check": ["--root", "."],
    "hf auth login": [],
    "pip wheel": ["--no-index", "--no-build-isolation"],
    "pip install": ["--dry-run", "--no-index", "--no-build-isolation"],
    "python -m data_scripts.rooms": ["--scenes", "3", "--views", "2", "--image-size", "28"],
    "python -m data_scripts.download_arkitscenes": ["--base-url", MIRROR, "--list-url", MIRROR],
    "python -m data_scripts.prepare instruct": ["--workers", "1"],
    "python -m data_scripts.prepare scanqa": ["--workers", "1"],
    "python -m data_scripts.prepare sqa3d": ["--workers", "1"],
    "python -m data_scripts.prepare arkit_actions": ["--workers", "1"],
    "python -m data_scripts.prepare records": [],
    "python -m data_scripts.view": [],
    "python -m modeling_vggt_qwen3.convert_vggt_qwen3_to_hf convert": ["--projector-type", "mlp"],
    "python -m recipes.ask --model checkpoints/": [],
    "python -m recipes.launch stage2 --dry-run": [],
    "python -m recipes.launch stage1 --mode debug": SMALL,
    "python -m recipes.launch stage1": SMALL,
    "python -m recipes.launch stage2 --mode debug --safe": SMALL,
    "python -m recipes.launch stage2": SMALL,
    "python -m recipes.launch stage3": SMALL,
    "python -m recipes.launch stage2 --dry-run --num_processes": [],
    "python -m recipes.launch stage2 --num_processes auto": [*SMALL, *into("auto")],
    "accelerate launch recipes/stage2.py": [*ACCELERATED, *into("accelerated")],
    "accelerate launch recipes/stage2.py --model_name_or_path demo/stage1": [
        *ACCELERATED, "--num_views", "2", *into("lora-2e-4"),
    ],
    "accelerate launch recipes/stage2.py --view_dropout": [*ACCELERATED, *into("views")],
    "accelerate launch recipes/stage2.py --config": [*ACCELERATED, *into("rooms")],
    "accelerate launch --config_file recipes/accelerate_configs/zero3.yaml": [
        *ACCELERATED, *TINY, "--global_batch_size", "2", *into("zero3"),
    ],
    "vggt-qwen3 --help": [],
    "vggt-qwen3 files": [],
    "vggt-qwen3 launch stage2 --dry-run": [],
    "python -m recipes.feature_store": "--split train val --num-views 2 --image-size 56".split(),
    "accelerate launch recipes/stage2.py --feature_store": [*ACCELERATED, *STORED, *into("stored")],
    "python -m recipes.monitor": [],
    "tensorboard": ["--port", "0"],
    "python -m recipes.export": ["--checkpoint", "outputs/stage2/checkpoint-2"],
    "python -m recipes.eval --model outputs/": ["--em-only"],
    "python push_to_hub.py": [],
    "accelerate launch recipes/stage2.py --push_to_hub": [*ACCELERATED, "--output_dir", "outputs/published"],
    "python -m recipes.ask --model demo/stage2": [],
    "python -m recipes.ask --model demo/stage3": [],
    "python -m recipes.score": ["--em-only"],
    "python -m recipes.eval --model demo/blind": ["--em-only"],
    "python -m recipes.eval --model demo/stage2": ["--em-only"],
    "python -m recipes.eval --model demo/stage3": [],
    "python -m recipes.eval --model DIR": "--num-views 2 --em-only".split(),
    "sbatch recipes/slurm/": [*CPU, *into("slurm")],
    "sbatch recipes/slurm/stage1.sbatch": [*CPU, *into("slurm1")],
    "sbatch recipes/slurm/stage2.sbatch": [*CPU, *into("slurm2")],
    "sbatch recipes/slurm/stage3.sbatch": [*CPU, *into("slurm3")],
    "sbatch --nodes=4": [*CPU, "--global_batch_size", "4", *into("slurm4")],
}  # fmt: skip
# What has to stand before the script: its num_processes are the GPUs of a machine.
BEFORE_SCRIPT = {
    "accelerate launch --config_file recipes/accelerate_configs/zero3.yaml": "--num_processes 2 --main_process_port 0".split(),
}
SYSTEM = "made the environment that runs this"
NOT_RUN = {
    "make test": "is what runs this",
    "make setup": SYSTEM,
    "source .venv/bin/activate": SYSTEM,
    "uv ": "downloads what make setup does",
    "docker ": "needs Docker; tests/test_install.py builds the wheel of what the Dockerfile copies",
    "vggt-qwen3 train": "is run from a wheel by tests/test_install.py",
    "torchrun": "takes as many processes as a node has GPUs; tests/test_fault_tolerance.py runs two on the CPU",
    "make test-gpu": "needs a GPU; make test runs the same bodies on the CPU",
    "python -m recipes.benchmark": "takes many minutes; tests/test_benchmark.py runs it on fewer sizes",
    "python -m recipes.benchmark --full-size": "needs a GPU; tests/test_full_size_benchmark.py runs it at toy size",
}


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
                found.setdefault(shell_text(words), where)
    return found


def shell_text(words: list[str]) -> str:
    """Words as one line for a shell, which expands what has a `*`."""
    return " ".join(word if re.fullmatch(r"[\w./=:*-]+", word) else shlex.quote(word) for word in words)


def entry_of(command: str) -> str | None:
    """The key of `RUN` or `NOT_RUN` that a command begins with, the longest; None if there is none."""
    words = " ".join(shlex.split(command))
    return max((key for key in (*RUN, *NOT_RUN) if words.startswith(key)), key=len, default=None)
