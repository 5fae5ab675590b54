# SPDX-License-Identifier: Apache-2.0
"""
The benchmark at full size: starts the process that measures, watches it, predicts the memory that it needs, and writes
all figures that there are after each of them.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from data_scripts.files import write_atomically
from recipes.common.tables import format_table
from recipes.launching.estimate import CONTEXT_BYTES, GPUS, Run, describe_run, plain_memory
from recipes.launching.settings import plan_batch, read_settings
from recipes.launching.shapes import read_shapes

from .full_size_plan import Size, Variant, plan, recipe_arguments, write_data
from .full_size_worker import describe_error, write_model


LONGEST = 240  # seconds that a variant may take: then it hangs
GRACE = 45  # seconds after the end of the time that the last variant may take


def interrupt(*_):
    raise KeyboardInterrupt


class FullSizeBenchmark:
    """
    Measures everything of `plan(size)` that the time allows.

    Args:
        size (`Size`): How large the model and the data are.
        minutes (`float`): No variant begins later than this.
        output (`Path`): JSON that holds what is known after every variant.
    """

    def __init__(self, size: Size, minutes: float, output: Path):
        self.size, self.output = size, output
        self.started, self.deadline = time.time(), time.time() + 60 * minutes
        self.variants = plan(size)
        self.runs: dict[tuple, Run | str] = {}
        self.command = [sys.executable, "-m", "recipes.benchmarking.full_size_worker"]

    def run(self) -> dict:
        """Returns the figures, as they are in the file. Raises RuntimeError if the measuring process cannot start."""
        with tempfile.TemporaryDirectory(prefix="full-size-") as name:
            folder = Path(name)
            write_model(self.size, folder / "checkpoint")
            write_data(self.size, folder)
            task = {"size": self.size.to_json(), "deadline": self.deadline}
            (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
            previous = signal.signal(signal.SIGTERM, interrupt)
            try:
                while self._run_worker(folder):
                    pass
            finally:
                signal.signal(signal.SIGTERM, previous)
            while time.time() < self.deadline + GRACE and self._predict_next(folder):
                pass
            return self._write(folder)

    def _run_worker(self, folder: Path) -> bool:
        """Starts the measuring process and waits for it. Whether another one has to go on after it."""
        known, path = self._state(folder)["variants"].keys(), folder / "figures.json"
        with subprocess.Popen([*self.command, str(folder)]) as process:
            try:
                reason = self._watch(process, folder)
            finally:
                process.kill()
        state = self._state(folder)
        if process.returncode == 0:
            return False
        running = (state.get("running") or [None])[0]
        if running in {variant.name for variant in self.variants}:
            error = reason or f"the process ended with {process.returncode}"
            status = "not measured" if reason == "time" else "failed"
            state["variants"][running] = {"status": status, "error": error}
            state["running"] = None
            write_atomically(path, json.dumps(state))
        elif state["variants"].keys() == known:
            raise RuntimeError(f"the measuring process ended with {process.returncode} before it measured anything")
        return time.time() < self.deadline and len(state["variants"]) < len(self.variants)

    def _watch(self, process: subprocess.Popen, folder: Path) -> str | None:
        """Until the process ends, or has to: then why."""
        printed = set(self._state(folder)["variants"])
        while True:
            ended = process.poll() is not None
            state = self._state(folder)
            for name, figures in state["variants"].items():
                if name not in printed:
                    printed.add(name)
                    speed = figures.get("questions_per_second")
                    text = figures.get("error") or f"{speed:.2f} questions/s"
                    print(f"{time.time() - self.started:4.0f} s  {name}: {figures['status']}, {text}", flush=True)
                    self._write(folder)
            if ended:
                return None
            running, now = state.get("running"), time.time()
            if now > self.deadline + GRACE:
                return "time"
            if running is not None and now - running[1] > LONGEST:
                return f"took more than {LONGEST} s"
            if not self._predict_next(folder):
                time.sleep(0.5)

    @staticmethod
    def _state(folder: Path) -> dict:
        path = folder / "figures.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"variants": {}, "costs": []}

    def _predict_next(self, folder: Path) -> bool:
        """Describes one kind of row that was measured, as the dry run does; False if there is none left."""
        states = self._state(folder)["variants"]
        for variant in self.variants:
            status = states.get(variant.name, {}).get("status")
            if variant.way is not None or status not in ("measured", "out of memory") or variant.row_key in self.runs:
                continue
            plain = replace(variant, rows=1, compiled=False)
            try:
                settings = read_settings(variant.stage, recipe_arguments(plain, self.size, folder))
                config, _ = read_shapes(str(folder / "checkpoint"))
                self.runs[variant.row_key] = describe_run(config, settings)
            except (
                Exception,
                SystemExit,
            ) as error:  # a prediction that fails is a figure that is missing, and says so
                self.runs[variant.row_key] = describe_error(error)
            return True
        return False

    def _prediction(self, variant: Variant, folder: Path) -> dict:
        run = self.runs.get(variant.row_key)
        if variant.way is not None or run is None:
            return {}
        if isinstance(run, str):
            return {"prediction_error": run}
        settings = read_settings(variant.stage, recipe_arguments(replace(variant, compiled=False), self.size, folder))
        memory = plain_memory(run, plan_batch(settings, 1, variant.rows))
        return {"predicted_memory_gb": (memory.total - CONTEXT_BYTES) / 1e9}

    def _write(self, folder: Path) -> dict:
        """Puts together what is known, and writes it."""
        state = self._state(folder)
        device, peaks = state.get("device", ""), state.get("peaks", {})
        data_sheet = next((card.peak for name, card in GPUS.items() if name in device), None)
        figures = {
            "device": device,
            "threads": state.get("threads"),
            "data_sheet_flops": data_sheet,
            "matmul_peak_flops": peaks,
            "minutes": (time.time() - self.started) / 60,
            "variants": [],
        }
        baselines = {variant.stage: variant.name for variant in self.variants if variant.questions == 1}
        for variant in self.variants:
            entry = {"name": variant.name, "stage": variant.stage, "rows": variant.rows}
            entry |= {"questions": variant.questions, "way": variant.way, "store": variant.store}
            entry |= {"compiled": variant.compiled, "what": variant.what}
            entry |= state["variants"].get(variant.name, {"status": "not measured", "error": "time"})
            entry |= self._prediction(variant, folder)
            if "flops" in entry:
                rate = entry["flops"] / entry["seconds"]
                entry["share_of_matmul_peak"] = rate / max(peaks.values())
                entry["share_of_data_sheet"] = None if data_sheet is None else rate / data_sheet
            baseline = "evaluation, one by one" if variant.way else baselines.get(variant.stage)
            one = state["variants"].get(baseline, {}).get("questions_per_second")
            if one is not None and "questions_per_second" in entry:
                entry["speedup"] = entry["questions_per_second"] / one
            figures["variants"].append(entry)
        write_atomically(self.output, json.dumps(figures, indent=2) + "\n")
        return figures


def report(figures: dict) -> str:
    """The figures as tables."""
    peaks = figures["matmul_peak_flops"]
    sheet = figures["data_sheet_flops"]
    lines = [
        f"{figures['device']}; matrix products reach {max(peaks.values(), default=0) / 1e12:.1f} TFLOP/s"
        + (f" of the data sheet's {sheet / 1e12:.0f}" if sheet else ", not among the GPUs whose data sheet is known")
        + f"; {figures['minutes']:.1f} minutes. Speed-ups are against one question per row, or one by one.",
        "",
    ]
    keys = ("questions_per_second", "speedup", "share_of_data_sheet", "share_of_matmul_peak", "peak_memory_gb")
    keys += ("predicted_memory_gb",)
    header = ["rows × questions", "questions/s", "speed-up", "of data sheet", "of matmul", "GB", "predicted GB"]
    measured = [entry for entry in figures["variants"] if entry["status"] == "measured"]
    lines.append(format_table(header, [[entry["name"], *(entry.get(key) for key in keys)] for entry in measured]))
    lines += [
        f"{entry['name']}: {entry[key]}" for entry in measured for key in ("note", "prediction_error") if key in entry
    ]
    for status in ("out of memory", "failed"):
        lines += [
            f"{status}: {entry['name']}: {entry['error']}"
            for entry in figures["variants"]
            if entry["status"] == status
        ]
    left = [entry["name"] for entry in figures["variants"] if entry["status"] == "not measured"]
    if left:
        lines.append(f"not measured for want of time: {'; '.join(left)}")
    return "\n".join(lines)


def failures(figures: dict) -> list[str]:
    """Names of the variants that failed for another reason than memory, or whose operations could not be counted."""
    return [
        entry["name"]
        for entry in figures["variants"]
        if entry["status"] == "failed" or "note" in entry or "prediction_error" in entry
    ]


__all__ = ["FullSizeBenchmark", "failures", "report"]
