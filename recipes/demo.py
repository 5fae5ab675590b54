# SPDX-License-Identifier: Apache-2.0
"""The whole recipe on procedural rooms: rooms, preparation, stages 1 to 3, a blind baseline, scores.

python -m recipes.demo --output DIR [--smoke]

Every step is one of the project's commands and is printed before it runs. A second call goes on where the first stopped.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from recipes.common.device import has_fast_bfloat16
from recipes.common.files import check_writable
from recipes.demonstration.record import start_session, timed_step


RECIPES = Path(__file__).parent

# Without these glibc returns every large tensor to the system and takes it back, page by page, in the next step.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2 << 30)}
# Scenes, single pictures, views per scene and their size in pixels; what a smoke run overrides in every recipe, and
# its options of recipes.eval.
FULL = {"scenes": 3000, "pictures": 8000, "views": 4, "image_size": 84, "overrides": [], "scoring": []}
SMOKE_OVERRIDES = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"]
SMOKE_OVERRIDES += ["--save_steps", "2", "--logging_steps", "1", "--eval_questions", "8"]
SMOKE = {
    "scenes": 12,
    "pictures": 24,
    "views": 2,
    "image_size": 56,
    "overrides": SMOKE_OVERRIDES,
    "scoring": ["--em-only"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything the demo makes")
    parser.add_argument("--smoke", action="store_true", help="a minute of the same on a dozen scenes; learns nothing")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        check_writable(arguments.output, "--output")
        run_demo(arguments.output, SMOKE if arguments.smoke else FULL)
    except ValueError as error:
        sys.exit(f"recipes.demo: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"recipes.demo: a step failed with exit code {error.returncode}; the same command goes on from there."
        )
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes. Everything is in {arguments.output}.")


def run_demo(output: Path, size: dict):
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    start_session(output, size, device.type)
    step = partial(run_step, output)
    rooms, data = output / "rooms", output / "data"
    workers = str(os.cpu_count())
    python = [sys.executable, "-m"]
    step(
        rooms,
        python + ["data_scripts.rooms", "--output", rooms, "--scenes", size["scenes"], "--views", size["views"]]
        + ["--image-size", size["image_size"], "--seed", 0, "--instruct-images", size["pictures"]]
        + ["--objects", 3, 4, "--formats", "scannet", "arkitscenes", "--workers", workers, "--preview"],
    )  # fmt: skip
    for name, annotations, root in (
        ("instruct", "instruct/*.json", ["--image-root", rooms / "instruct"]),
        ("scanqa", "scanqa/*.json", ["--scannet-root", rooms / "scannet", "--num-views", size["views"]]),
        ("sqa3d", "sqa3d/*.json", ["--scannet-root", rooms / "scannet", "--num-views", size["views"]]),
    ):
        files = sorted(rooms.glob(annotations))
        step(
            data / name,
            python
            + ["data_scripts.prepare", name, "--annotations", *files, *root, "--output", data / name]
            + ["--workers", workers],
        )
    step(
        data / "arkit_actions",
        python + ["data_scripts.prepare", "arkit_actions", "--arkitscenes-root", rooms / "arkitscenes"]
        + ["--num-views", size["views"], "--actions", "place_anchor"]
        + ["--output", data / "arkit_actions", "--workers", workers],
    )  # fmt: skip
    convert = python + ["modeling_vggt_qwen3.convert_vggt_qwen3_to_hf", "tiny"]
    step(output / "tiny", convert + ["--output", output / "tiny", "--image-size", size["image_size"]])

    instruct, questions, actions = [data / "instruct"], [data / "scanqa", data / "sqa3d"], [data / "arkit_actions"]
    precision = ["--bf16", "true"] if has_fast_bfloat16(device.type) else []
    # Pictures are all that stage 1 could teach, so the blind model starts where the other one did.
    for stage, name, model, datasets, blind in (
        ("stage1", "stage1", "tiny", instruct, []),
        ("stage2", "stage2", "stage1", questions, []),
        ("stage2", "blind", "tiny", questions, ["--blind", "true"]),
        ("stage3", "stage3", "stage2", actions, []),
        ("stage3", "stage3_blind", "blind", actions, ["--blind", "true"]),
    ):
        target = output / name
        step(
            target / "train_results.json",  # the last thing a stage writes
            launcher() + [RECIPES / f"{stage}.py", "--config", RECIPES / "configs" / "rooms" / f"{stage}.yaml"]
            + ["--model_name_or_path", output / model, "--output_dir", target, "--dataset_paths", *datasets]
            + blind + precision + size["overrides"],
        )  # fmt: skip
    for dataset, split, seeing, blind, blind_options, options in (
        # The blind model's scores are shown beside the other's, which are of every metric.
        ("scanqa", "test_w_obj", "stage2", "blind", ["--em-only"], size["scoring"]),
        ("sqa3d", "test", "stage2", "blind", ["--em-only"], size["scoring"]),
        ("arkit_actions", "val", "stage3", "stage3_blind", [], ["--save-plan", output / "plan.png"]),
    ):
        seeing_scores, blind_scores = (output / "scores" / name / dataset for name in (seeing, blind))
        report = ["--blind-run", blind_scores, "--report", output / f"{dataset}.html"]
        for name, scores, asked in (
            (blind, blind_scores, ["--blind", *blind_options]),
            (seeing, seeing_scores, [*report, *options]),
        ):
            step(
                scores / "metrics.json",
                python + ["recipes.eval", "--model", output / name, "--dataset", data / dataset, "--split", split]
                + ["--output", scores, *asked],
            )  # fmt: skip
    run(python + ["recipes.summary", "--demo", output])


def launcher() -> list:
    """`accelerate launch` on one GPU if there is one, else on the CPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1]
    if torch.accelerator.is_available():
        return launch + ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    return launch + ["--config_file", RECIPES / "accelerate_configs" / "cpu.yaml"]


def run_step(output: Path, product: Path, command: list):
    """Runs `command` unless `product`, which it moves into place when it is whole, is there."""
    if product.exists():
        print(f"# {product} is there", flush=True)
    else:
        with timed_step(output, str(product.relative_to(output))):
            run(command)


def run(command: list):
    command = list(map(str, command))
    print(f"\n$ {shlex.join(command)}", flush=True)
    # `accelerate launch` would give a process a single thread.
    defaults = {"OMP_NUM_THREADS": str(os.cpu_count()), **MALLOC}
    subprocess.run(command, check=True, env=defaults | os.environ)


if __name__ == "__main__":
    main()
