# SPDX-License-Identifier: Apache-2.0
"""The benchmark at full size, run at toy size on the CPU by the same code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toys import toy_config

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration
from recipes import benchmark
from recipes.benchmarking.full_size import FullSizeBenchmark, failures, report
from recipes.benchmarking.full_size_plan import STAGES, Size, Variant, plan, recipe_arguments, write_data
from recipes.benchmarking.full_size_worker import measure_all, random_weights, write_model
from recipes.benchmarking.toy_model import forward_flops
from recipes.launching.estimate import CONTEXT_BYTES, plain_memory
from recipes.launching.settings import plan_batch, read_settings
from recipes.launching.shapes import RELEASED


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def size(tmp_path_factory):
    """Toy shapes in bfloat16, with VGGT's heads, through the same configuration file as the real ones."""
    folder = tmp_path_factory.mktemp("shapes")
    config = toy_config("perceiver", heads=True)
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    arguments = ("--anchor_hidden_size", "32", "--freeze_text_layers", "0", "--dataloader_num_workers", "0")
    return Size(
        str(folder / "config.json"), image_size=28, questions=4, micro_batches=(1, 2), scenes=6, eval_scenes=2,
        steps=3, new_tokens=2, arguments=arguments,
    )  # fmt: skip


def test_every_variant_that_the_issue_asks_for_is_planned():
    """Catches a figure that is promised and never measured, and one that comes after less important ones."""
    variants = plan(Size())
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    for stage in STAGES:
        of_stage = [variant for variant in variants if variant.stage == stage and variant.way is None]
        assert {variant.rows for variant in of_stage if variant.questions == 16} == {1, 2, 4}
        assert any(variant.compiled for variant in of_stage) and any(variant.store for variant in of_stage)
        assert f"{stage}, 16 × 1, one question per row" in names
    assert {variant.way for variant in variants} == {None, "one_by_one", "batched", "shared_prefix"}
    assert not any(variant.compiled or variant.arguments for variant in variants[:10])
    assert names[:2] == ["stage2, 1 × 16", "stage2, 16 × 1, one question per row"]


def test_random_weights_are_those_of_the_released_shapes(tmp_path):
    """Catches a vocabulary of the made tokenizer's size, heads in bfloat16, and a file of weights that is read after all."""
    write_model(Size(), tmp_path)
    config = VggtQwen3Config.from_pretrained(tmp_path)
    released = json.loads(RELEASED.read_text())
    assert config.text_config.vocab_size == released["text_config"]["vocab_size"] == 151936
    assert max(config.image_token_id, config.geometry_token_id, config.text_config.eos_token_id) < 151936
    own = VggtQwen3ForConditionalGeneration.from_pretrained
    with random_weights(torch.device("meta")):
        model = VggtQwen3ForConditionalGeneration.from_pretrained(str(tmp_path), attn_implementation="sdpa")
    assert VggtQwen3ForConditionalGeneration.from_pretrained == own
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    heads = {dtype for name, dtype in dtypes.items() if "camera_head" in name or "depth_head" in name}
    assert heads == {torch.float32} and dtypes["model.projector.latents"] == torch.bfloat16
    assert 5.0e9 < sum(parameter.numel() for parameter in model.parameters()) < 5.6e9


def test_figures_of_each_kind_are_there_and_agree(size, tmp_path, capsys):
    """
    Catches a wrong unit or a count of something else: operations against those of the encoder by hand, speed-ups against
    the questions per second, predictions against the dry run's.
    """
    bench = FullSizeBenchmark(size, 10, tmp_path / "figures.json")
    by_name = {variant.name: variant for variant in bench.variants}
    names = ["stage2, 1 × 4", "stage2, 4 × 1, one question per row", "stage2, 2 × 4", "stage2, 2 × 4, store"]
    names += ["stage3, 2 × 4", "stage1, 2 × 4", "evaluation, shared prefix", "evaluation, one by one"]
    bench.variants = [by_name[name] for name in names]
    write_model(size, tmp_path / "checkpoint")
    write_data(size, tmp_path)
    # One that cannot be parsed: the others must not be lost with it.
    broken = Variant("stage2", 1, 4, arguments=("--no_such_key", "1"), what="broken")
    bench.variants.append(broken)
    measure_all(size, tmp_path, time.time() + 600, bench.variants)
    while bench._predict_next(tmp_path):
        pass
    figures = bench._write(tmp_path)
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(figures))
    entries = {entry["name"]: entry for entry in figures["variants"]}
    for name in names:
        entry = entries[name]
        assert entry["status"] == "measured" and "note" not in entry, entry
        assert 0 < entry["share_of_matmul_peak"] < 1 and entry["share_of_data_sheet"] is None
        assert entry["questions_per_second"] > 0 and entry["peak_memory_gb"] > 0
        assert (entry["way"] is None) == ("predicted_memory_gb" in entry)
    packed, single, many, stored = (entries[name] for name in names[:4])
    assert many["flops"] == 2 * packed["flops"] and many["speedup"] == pytest.approx(
        many["questions_per_second"] / single["questions_per_second"]
    )
    # A row of one question costs an encoder run each; the store takes it away.
    encoder = forward_flops(toy_vision(size), toy_config().text_config, 28, 8)["encoder"]
    assert many["flops"] - stored["flops"] == pytest.approx(2 * encoder, rel=0.01)
    assert single["flops"] > 4 * encoder
    run = bench.runs[by_name[names[2]].row_key]
    assert run.largest_row.num_views == 8
    settings = read_settings("stage2", recipe_arguments(by_name[names[2]], size, tmp_path))
    memory = plain_memory(run, plan_batch(settings, 1, 2)).total - CONTEXT_BYTES
    assert many["predicted_memory_gb"] == pytest.approx(memory / 1e9)
    assert many["predicted_memory_gb"] > packed["predicted_memory_gb"] > stored["predicted_memory_gb"] / 2

    failed = entries[broken.name]
    assert failed["status"] == "failed" and "no_such_key" in failed["error"]
    assert failures(figures) == [broken.name]
    text = report(figures)
    assert "one question per row" in text and f"failed: {broken.name}" in text


def toy_vision(size):
    config = VggtQwen3Config.from_json_file(size.config).vision_config
    config.camera_head_num_layers, config.depth_head_layers = 0, []
    return config


WORKER = """
import json, os, signal, sys, time
from pathlib import Path
path = Path(sys.argv[1]) / "figures.json"
state = json.loads(path.read_text()) if path.is_file() else {"variants": {}, "costs": [], "peaks": {"bfloat16": 1e9}}
for name in NAMES:
    if name in state["variants"]:
        continue
    state["running"] = [name, time.time()]
    path.write_text(json.dumps(state))
    if name == NAMES[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    state["variants"][name] = {"status": "measured", "questions_per_second": 1.0, "seconds": 1.0}
    if name == NAMES[2]:
        state["variants"][name] = {"status": "out of memory", "error": "OutOfMemoryError: 80 GB"}
state["running"] = None
path.write_text(json.dumps(state))
"""


def test_a_process_that_dies_costs_one_variant(size, tmp_path, capsys):
    """Catches a crash of the driver, or a want of memory, that takes the figures of all other variants with it."""
    bench = FullSizeBenchmark(size, 1, tmp_path / "figures.json")
    bench.variants = bench.variants[:5]
    names = [variant.name for variant in bench.variants]
    bench.command = [sys.executable, "-c", WORKER.replace("NAMES", repr(names[:4]))]
    bench._predict_next = lambda folder: False
    figures = bench.run()
    found = [(entry["status"], entry.get("error")) for entry in figures["variants"]]
    assert found == [
        ("measured", None),
        ("failed", "the process ended with -9"),
        ("out of memory", "OutOfMemoryError: 80 GB"),
        ("measured", None),
        ("not measured", "time"),
    ]
    assert failures(figures) == [names[1]]
    assert f"not measured for want of time: {names[4]}" in report(figures)
    bench.command = [sys.executable, "-c", "raise SystemExit('no torch')"]
    with pytest.raises(RuntimeError, match="before it measured anything"):
        bench.run()


def test_without_a_gpu_it_says_what_is_needed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--full-size"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU with about 80 GB"):
        benchmark.main()


@pytest.mark.slow
def test_the_whole_command(size, tmp_path):
    """As a user runs it: every variant has figures, and the time that it took is told."""
    (tmp_path / "size.json").write_text(size.to_json())
    command = [sys.executable, "-m", "recipes.benchmark", "--full-size", "--size", tmp_path / "size.json"]
    command += ["--json", tmp_path / "figures.json", "--minutes", "10"]
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {entry["status"] for entry in figures["variants"]} == {"measured"}
    assert all(entry["questions_per_second"] > 0 for entry in figures["variants"])
    assert "Speed-ups are against one question per row" in result.stdout
