# SPDX-License-Identifier: Apache-2.0
"""The process of the full-size benchmark that uses the GPU: draws models, trains some steps, answers, and counts.

It writes what it has after every variant. Where it dies, `full_size_benchmark` starts another one, which goes on.
"""

import argparse
import gc
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PrinterCallback, set_seed

from data_scripts.files import write_atomically
from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_processor, create_tiny_tokenizer
from recipes import feature_store
from recipes.common.loading import load_model
from recipes.common.scenes import SceneDataset
from recipes.launching.settings import default_config, read_settings
from recipes.runs.arguments import parse_arguments
from recipes.training.sft import make_trainer

from .full_size_plan import SPLITS, Size, Variant, plan, recipe_arguments
from .measuring import (
    StepTimes,
    matmul_peak,
    peak_memory,
    reset_peak_memory,
    synchronize,
    ways_of_answering,
)
from .toy_model import count_flops


ONE_BY_ONE = 8  # questions that are answered one by one, and in a batch: the others would take as long each
UNUSABLE = 3  # exit code: after this error the device answers nothing any more


def write_model(size: Size, folder: Path):
    """Writes what belongs to a checkpoint of `size` but its weights: those are drawn, see [`random_weights`]."""
    tokenizer = create_tiny_tokenizer()
    config = VggtQwen3Config.from_json_file(size.config)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config.geometry_token_id = tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    config.text_config.bos_token_id = None
    config.save_pretrained(folder)
    create_processor(config, tokenizer).save_pretrained(folder)
    # A feature store is tied to the files of the encoder that filled it: this one stands for them.
    save_file({"model.vision_model.random": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """Inside, `from_pretrained` draws a model's weights on `device`, of the same seed each time, instead of reading gigabytes."""

    def draw(path, *, config=None, attn_implementation=None, output_loading_info=False, **kwargs):
        set_seed(0)
        config = VggtQwen3Config.from_pretrained(path) if config is None else config
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        with torch.device(device):
            model = VggtQwen3ForConditionalGeneration._from_config(config, **options)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in (model._keep_in_fp32_modules_strict or ()):
                module.float()
        model.name_or_path = str(path)
        info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (model.eval(), info) if output_loading_info else model.eval()

    own = VggtQwen3ForConditionalGeneration.__dict__.get("from_pretrained")
    VggtQwen3ForConditionalGeneration.from_pretrained = draw
    try:
        yield
    finally:
        del VggtQwen3ForConditionalGeneration.from_pretrained
        if own is not None:
            VggtQwen3ForConditionalGeneration.from_pretrained = own


class Worker:
    """Measures variants on the data and the model in `folder`; `costs` are the operations of rows that are counted."""

    def __init__(self, size: Size, folder: Path):
        self.size, self.folder, self.costs = size, folder, {}
        self.checkpoint = folder / "checkpoint"
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = self.device or torch.device("cpu")

    def peaks(self) -> dict[str, float]:
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        return {name: matmul_peak(dtype, self.device) for name, dtype in types.items()}

    def measure(self, variant: Variant) -> dict:
        """The figures of a variant."""
        return self.train(variant) if variant.way is None else self.evaluate(variant)

    def fill_store(self, stage: str):
        """Stores the features of all scenes of a stage, as the recipe reads them."""
        settings = read_settings(stage, [])
        arguments = {"model": str(self.checkpoint), "dataset": [str(self.folder / stage)], "split": list(SPLITS)}
        arguments |= {"output": self.folder / f"{stage}-store", "dtype": "bfloat16", "num_views": settings.num_views}
        arguments |= {"image_size": self.size.image_size, "image_mode": settings.image_mode}
        feature_store.fill_store(argparse.Namespace(**arguments, view_subsets=0, view_dropout=None))
        release_memory()

    def train(self, variant: Variant) -> dict:
        if variant.store and not (self.folder / f"{variant.stage}-store" / "store.json").is_file():
            self.fill_store(variant.stage)
        argv = recipe_arguments(variant, self.size, self.folder)
        trainer = make_trainer(*parse_arguments(default_config(variant.stage), argv))
        times = StepTimes()
        trainer.add_callback(times)
        trainer.remove_callback(PrinterCallback)  # of the Trainer's own summary
        reset_peak_memory()
        trainer.train()
        seconds = float(np.median(np.diff(times.ends)))
        figures = {"questions_per_second": variant.rows * variant.questions / seconds, "seconds": seconds}
        figures["peak_memory_gb"] = peak_memory()
        # Compiled code is not seen by the counter, and has the same products; with view dropout no row is as the next.
        if not variant.compiled and "--view_dropout" not in variant.arguments:
            self.count(variant, lambda: self.training_row(trainer))
        return figures | self.costs_of(variant, variant.rows)

    def training_row(self, trainer):
        """Runs a micro-batch of one row, forward and backward."""
        model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
        model.set_attn_implementation("eager")  # its products are counted on every device and for every shape
        row = trainer.data_collator([trainer.train_dataset[next(iter(trainer._get_train_sampler()))]])
        batches, num_items = trainer.get_batch_samples(iter([row]), 1, self.device)
        return count_flops(lambda: trainer.training_step(trainer.model, batches[0], num_items))

    def count(self, variant: Variant, function):
        """Fills `costs`. That nothing is left of a row's cost is no reason to lose what was measured."""
        if variant.row_key not in self.costs:
            try:
                self.costs[variant.row_key] = function()
            except Exception as error:
                self.costs[variant.row_key] = describe_error(error)

    def costs_of(self, variant: Variant, rows: int) -> dict:
        cost = self.costs.get(variant.row_key)
        if isinstance(cost, str):
            return {"note": f"operations not counted: {cost}"}
        return {} if cost is None else {"flops": cost * rows}

    def evaluate(self, variant: Variant) -> dict:
        size = self.size
        # Nothing trains; the counter of operations would look for gradients of what does.
        model = load_model(str(self.checkpoint), "sdpa").to(self.device).eval().requires_grad_(False)
        processor = VggtQwen3Processor.from_pretrained(self.checkpoint, trust_remote_code=False)
        processor.image_processor.image_size = size.image_size
        source = SceneDataset(str(self.folder / variant.stage), "val", read_settings(variant.stage, []).num_views)
        shared = variant.way == "shared_prefix"
        answer = ways_of_answering(model, processor, source, size.new_tokens, self.device)["shared" if shared else "separately"]  # fmt: skip
        rows = list(range(variant.rows * variant.questions))
        some = rows[:ONE_BY_ONE]
        batches = {"one_by_one": [[row] for row in some], "batched": [some], "shared_prefix": [rows]}[variant.way]
        answer(batches[0])
        synchronize()
        reset_peak_memory()
        start = time.perf_counter()
        for batch in batches:
            answer(batch)
        synchronize()
        seconds, memory = time.perf_counter() - start, peak_memory()
        questions = sum(map(len, batches))
        model.set_attn_implementation("eager")
        part = rows[: variant.questions] if shared else rows[:1]
        self.count(variant, lambda: count_flops(lambda: answer(part)))
        figures = {"questions_per_second": questions / seconds, "seconds": seconds, "peak_memory_gb": memory}
        return figures | self.costs_of(variant, questions // len(part))


def describe_error(error: BaseException) -> str:
    if isinstance(error, SystemExit) and error.__context__ is not None:  # as parsers end, after they have printed why
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def release_memory():
    torch.compiler.reset()  # a model that is gone must not count against the next one's recompilations
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_all(size: Size, folder: Path, deadline: float, variants: list[Variant] | None = None):
    """
    Measures what `folder/figures.json` does not hold yet, until `deadline` (as `time.time`), and writes it there: `peaks`,
    `running` (name and start of what is measured just now) and `variants`, by name.

    Exits with `UNUSABLE` if the device cannot be used any more.
    """
    path = folder / "figures.json"
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"variants": {}, "costs": []}

    def write(running: str | None):
        state["running"] = None if running is None else [running, time.time()]
        write_atomically(path, json.dumps(state))

    write("preparation")
    worker = Worker(size, folder)
    for cost in state["costs"]:
        worker.costs[(*cost["key"][:-1], tuple(cost["key"][-1]))] = cost["flops"]
    if "peaks" not in state:
        state["peaks"] = worker.peaks()
        state["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else str(worker.device)
        state["threads"] = torch.get_num_threads()
    for variant in plan(size) if variants is None else variants:
        if variant.name in state["variants"]:
            continue
        if time.time() >= deadline:
            break
        write(variant.name)
        started = time.time()
        try:
            with random_weights(worker.device):
                figures = {"status": "measured"} | worker.measure(variant)
        except (Exception, SystemExit) as error:
            figures = {"status": "out of memory" if is_out_of_memory(error) else "failed"}
            figures["error"] = describe_error(error)
            if figures["status"] == "failed":
                traceback.print_exc()
            traceback.clear_frames(error.__traceback__)  # they hold the model
        figures["wall_seconds"] = time.time() - started
        state["variants"][variant.name] = figures
        state["costs"] = [{"key": key, "flops": flops} for key, flops in worker.costs.items()]
        write(None)
        try:
            release_memory()
            synchronize()
        except Exception as error:
            print(f"The device is lost after {variant.name}: {describe_error(error)}", file=sys.stderr)
            sys.exit(UNUSABLE)
    write(None)


def main():
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    measure_all(Size.from_json(task["size"]), folder, task["deadline"])


if __name__ == "__main__":
    main()


__all__ = ["Worker", "measure_all", "random_weights", "write_model"]
