# SPDX-License-Identifier: Apache-2.0
"""Measures what scene packing, the feature store and shared-prefix decoding save on this machine, in some minutes.

python -m recipes.benchmark [--json FILE]
python -m recipes.benchmark --full-size [--minutes 8] [--json FILE]

The recipes' own trainer and evaluation run on noise, with a model whose encoder and language model share the work as
VGGT-1B on 8 views of 448 pixels and Qwen3-4B do. One question per row with the encoder run for each is the baseline.

With --full-size the model has the released shapes, with random weights, on one NVIDIA GPU of about 80 GB: steps of every
stage at micro-batches of 1, 2 and 4, with and without the store, checkpointing and compiled layers, and evaluations; the
share of the GPU's bfloat16 peak, and memory against the prediction of recipes.launch --dry-run. The most important figures
come first, each is in the JSON file as soon as it is there; what the time did not allow is listed.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from data_scripts.files import write_atomically
from modeling_vggt_qwen3 import VggtConfig, VggtQwen3Processor
from recipes import feature_store
from recipes.benchmarking.full_size import FullSizeBenchmark, failures
from recipes.benchmarking.full_size import report as full_size_report
from recipes.benchmarking.full_size_plan import Size
from recipes.benchmarking.measuring import StepTimes, matmul_peak, peak_memory, reset_peak_memory, ways_of_answering
from recipes.benchmarking.toy_model import (
    FULL_IMAGE_SIZE,
    QUESTIONS,
    QWEN3_4B,
    VIEWS,
    count_flops,
    forward_flops,
    write_checkpoint,
    write_dataset,
)
from recipes.common.loading import load_model
from recipes.common.scenes import SceneDataset
from recipes.common.tables import format_table
from recipes.runs.arguments import parse_arguments
from recipes.training.packing import Pack, PackDataset
from recipes.training.sft import make_trainer


SCENES = 4  # of a packed training step and of an evaluation
NEW_TOKENS = 4  # of every answer
FULL_SIZE_JSON = Path("benchmark-full-size.json")
VIEW_COUNTS, QUESTION_COUNTS, SCENE_COUNTS = (2, 4, 8, 16), (1, 4, 16), (1, 2, 4, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help=f"also write the figures to this file; with --full-size by default {FULL_SIZE_JSON}",
    )  # fmt: skip
    parser.add_argument("--full-size", action="store_true", help="the released models' shapes, on one GPU")
    parser.add_argument("--minutes", type=float, default=8, help="with --full-size: begin nothing after so long")
    parser.add_argument("--size", type=Path, help=argparse.SUPPRESS)  # another `Size` than the full one, for tests
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if arguments.full_size:
        sys.exit(run_full_size(arguments))
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = Benchmark(Path(folder)).run()
        figures["minutes"] = (time.monotonic() - started) / 60
        print(report(figures))
        if arguments.json is not None:
            write_atomically(arguments.json, json.dumps(figures, indent=2) + "\n")
    except (OSError, ValueError) as error:
        sys.exit(f"recipes.benchmark: {error}")


def run_full_size(arguments: argparse.Namespace) -> int:
    """The benchmark of the released models' shapes; 1 if any of its parts failed for another reason than memory."""
    size = Size() if arguments.size is None else Size.from_json(arguments.size.read_text(encoding="utf-8"))
    if arguments.size is None and not torch.cuda.is_available():
        sys.exit(
            "recipes.benchmark: --full-size needs an NVIDIA GPU with about 80 GB of memory, and torch "
            f"{torch.__version__} finds none. Without --full-size a scaled-down model is measured on any machine."
        )
    try:
        figures = FullSizeBenchmark(size, arguments.minutes, arguments.json or FULL_SIZE_JSON).run()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"recipes.benchmark: {error}")
    print(full_size_report(figures))
    failed = failures(figures)
    if failed:
        print(f"recipes.benchmark: failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


class Benchmark:
    """Writes model, data and stores to `folder` and measures; `run` returns all figures."""

    def __init__(self, folder: Path):
        self.folder, self.checkpoint, self.dataset = folder, folder / "checkpoint", folder / "dataset"
        self.config = write_checkpoint(self.checkpoint)
        self.image_size = self.config.vision_config.image_size
        write_dataset(
            self.dataset,
            {"train": max(SCENES, *SCENE_COUNTS), "val": SCENES},
            max(VIEWS, *VIEW_COUNTS),
            self.image_size,
        )
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.peaks = {
            name: matmul_peak(dtype, self.device)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
        self.dtype = max(self.peaks, key=self.peaks.get)
        self.stores = {}

    def store(self, num_views: int) -> Path:
        if num_views not in self.stores:
            self.stores[num_views] = self.folder / f"store{num_views}"
            arguments = {"model": str(self.checkpoint), "dataset": [str(self.dataset)], "split": ["train", "val"]}
            arguments |= {"output": self.stores[num_views], "dtype": self.dtype, "num_views": num_views}
            arguments |= {"image_size": None, "image_mode": None, "view_subsets": 0, "view_dropout": None}
            feature_store.fill_store(argparse.Namespace(**arguments))
        return self.stores[num_views]

    def trainer(self, rows: int, questions: int, num_views: int, store: bool, steps: int):
        """Stage 2 as at full size: frozen encoder, LoRA, projector; `rows` rows of `questions` questions per step."""
        settings = {
            "model_name_or_path": str(self.checkpoint),
            "output_dir": str(self.folder / "out"),
            "dataset_paths": [str(self.dataset)],
            "num_views": num_views,
            "questions_per_scene": questions,
            "lora_r": 16,
            "per_device_train_batch_size": rows,
            "max_steps": steps,
            "bf16": self.dtype == "bfloat16",
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        if store:
            settings["feature_store"] = str(self.store(num_views))
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return make_trainer(*parse_arguments(config, []))

    def train(self, rows: int, questions: int, num_views: int = VIEWS, store: bool = False, steps: int = 4) -> dict:
        """Seconds per question, questions per second and memory of training steps, without the first."""
        trainer = self.trainer(rows, questions, num_views, store, steps)
        times = StepTimes()
        trainer.add_callback(times)
        reset_peak_memory()
        trainer.train()
        seconds = float(np.median(np.diff(times.ends)))
        return {
            "questions_per_second": rows * questions / seconds,
            "seconds_per_question": seconds / (rows * questions),
            "seconds_per_step": seconds,
            "peak_memory_gb": peak_memory(),
        }

    def step_flops(self, rows: int, questions: int) -> int:
        """Operations of the forward and backward pass of a packed step."""
        trainer = self.trainer(rows, questions, VIEWS, False, 1)
        trainer.model.base_model.model.set_attn_implementation("eager")  # its products are counted on every device
        batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
        batch = trainer._prepare_inputs(batches[0])
        trainer.model.train()
        return count_flops(lambda: trainer.model(**batch).loss.backward())

    def evaluate(self) -> dict[str, dict]:
        """Answers per second and memory: one by one, batched with a scene per row, with shared prefixes."""
        processor = VggtQwen3Processor.from_pretrained(self.checkpoint, trust_remote_code=False)
        model = load_model(str(self.checkpoint), "sdpa").to(self.device).eval()
        source = SceneDataset(str(self.dataset), "val", VIEWS)
        ways = ways_of_answering(model, processor, source, NEW_TOKENS, self.device)
        figures = {}
        all_rows = list(range(SCENES * QUESTIONS))
        for name, answer, batches in (
            ("one_by_one", ways["separately"], [[row] for row in all_rows[:8]]),
            ("batched", ways["separately"], [all_rows[:8], all_rows[8:16]]),
            ("shared_prefix", ways["shared"], [all_rows]),
        ):
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                answer(batches[0])
                reset_peak_memory()
                start = time.perf_counter()
                for batch in batches:
                    answer(batch)
            count = sum(map(len, batches))
            figures[name] = {"answers_per_second": count / (time.perf_counter() - start)}
            figures[name]["peak_memory_gb"] = peak_memory()
        return figures

    def flops(self) -> dict:
        """Operations of a forward pass over a scene and over a row of one question, here and at full size."""
        source = SceneDataset(str(self.dataset), "train", VIEWS)
        example = PackDataset([source], 1)[Pack(0, 0, (0,), 0)]
        collator = self.trainer(1, 1, VIEWS, False, 1).data_collator
        num_tokens = collator([example])["input_ids"].shape[1]
        sizes = {
            "here": (self.config.vision_config, self.config.text_config, self.image_size),
            "full_size": (VggtConfig(camera_head_num_layers=0, depth_head_layers=[]), QWEN3_4B, FULL_IMAGE_SIZE),
        }
        counts = {name: forward_flops(*configs, num_tokens) for name, configs in sizes.items()}
        for count in counts.values():
            count["ratio"] = count["encoder"] / count["language_model"]
        return {"tokens_of_a_row": num_tokens} | counts

    def run(self) -> dict:
        flops = self.flops()
        training = {
            "one_per_row": self.train(QUESTIONS, 1, steps=3),
            "packed": self.train(SCENES, QUESTIONS),
            "packed_store": self.train(SCENES, QUESTIONS, store=True),
        }
        evaluation = self.evaluate()
        step_flops = self.step_flops(SCENES, QUESTIONS)
        sweeps = {"views": {}, "questions_per_scene": {}, "scenes_per_step": {}}
        for name, counts in (("views", VIEW_COUNTS), ("questions_per_scene", QUESTION_COUNTS),
                             ("scenes_per_step", SCENE_COUNTS)):  # fmt: skip
            for count in counts:
                rows, questions, views = {
                    "views": (1, QUESTIONS, count),
                    "questions_per_scene": (SCENES, count, VIEWS),
                    "scenes_per_step": (count, QUESTIONS, VIEWS),
                }[name]
                sweeps[name][count] = {
                    kind: self.train(rows, questions, views, store, steps=3)
                    for kind, store in (("packed", False), ("packed_store", True))
                }
        rate = {name: figures["questions_per_second"] for name, figures in training.items()}
        answers = {name: figures["answers_per_second"] for name, figures in evaluation.items()}
        reached = step_flops / training["packed"]["seconds_per_step"]
        return {
            "speedup_packed": rate["packed"] / rate["one_per_row"],
            "speedup_packed_store": rate["packed_store"] / rate["one_per_row"],
            "speedup_shared_prefix": answers["shared_prefix"] / answers["one_by_one"],
            "share_of_matmul_peak": reached / self.peaks[self.dtype],
            "dtype": self.dtype,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "matmul_peak_flops": self.peaks,
            "step_flops": step_flops,
            "step_flops_per_second": reached,
            "forward_flops": flops,
            "training": training,
            "evaluation": evaluation,
            "cost": sweeps,
        }


def report(figures: dict) -> str:
    """The figures as tables."""
    flops, training, evaluation = figures["forward_flops"], figures["training"], figures["evaluation"]
    peak = figures["matmul_peak_flops"][figures["dtype"]]
    lines = [
        f"{figures['device']}, {figures['threads']} threads, {figures['dtype']}; "
        f"{flops['tokens_of_a_row']} tokens per question with its prefix; {figures['minutes']:.1f} minutes",
        "",
        format_table(
            ["forward pass", "encoder GFLOP", "language model GFLOP", "ratio"],
            [
                [name, flops[key]["encoder"] / 1e9, flops[key]["language_model"] / 1e9, flops[key]["ratio"]]
                for name, key in (("VGGT-1B, 8 views at 448; Qwen3-4B", "full_size"), ("here", "here"))
            ],
        ),
        "",
        format_table(
            ["training", "questions/s", "speed-up", "memory GB"],
            [
                [label, training[name]["questions_per_second"], factor, training[name]["peak_memory_gb"]]
                for label, name, factor in (
                    ("one question per row", "one_per_row", 1.0),
                    ("packed", "packed", figures["speedup_packed"]),
                    ("packed + store", "packed_store", figures["speedup_packed_store"]),
                )
            ],
        ),
        f"A packed step: {figures['step_flops'] / 1e9:.0f} GFLOP at {figures['step_flops_per_second'] / 1e9:.0f} "
        f"GFLOP/s, {figures['share_of_matmul_peak']:.0%} of the {peak / 1e9:.0f} "
        "GFLOP/s that a matrix product reaches here.",
        "",
        format_table(
            ["evaluation", "answers/s", "speed-up", "memory GB"],
            [
                [
                    name.replace("_", " "),
                    entry["answers_per_second"],
                    entry["answers_per_second"] / evaluation["one_by_one"]["answers_per_second"],
                    entry["peak_memory_gb"],
                ]
                for name, entry in evaluation.items()
            ],
        ),
    ]
    for name, counts in figures["cost"].items():
        header = [name.replace("_", " "), "packed: s/question", "memory GB", "packed + store: s/question", "memory GB"]
        rows = [
            [str(count)] + [entry[kind][key] for kind in ("packed", "packed_store")
                            for key in ("seconds_per_question", "peak_memory_gb")]
            for count, entry in counts.items()
        ]  # fmt: skip
        lines += ["", format_table(header, rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
