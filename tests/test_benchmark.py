# SPDX-License-Identifier: Apache-2.0
"""The benchmark measures what it says, on work that is shared out as at full size."""

import json
import sys

import pytest

from modeling_vggt_qwen3 import VggtConfig
from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_tiny_tokenizer
from recipes import benchmark
from recipes.benchmarking.toy_model import FULL_IMAGE_SIZE, QWEN3_4B, forward_flops, scaled_config


def test_work_is_shared_out_as_at_full_size():
    """Catches a scaled model whose encoder costs too much: packing would look better than it is."""
    config = scaled_config(create_tiny_tokenizer())
    here = forward_flops(config.vision_config, config.text_config, config.vision_config.image_size, 170)
    full_config = VggtConfig(camera_head_num_layers=0, depth_head_layers=[])
    full = forward_flops(full_config, QWEN3_4B, FULL_IMAGE_SIZE, 170)
    # By hand: a token costs two operations per weight; attention two products of tokens² × width in each layer.
    tokens = 8 * (1 + 4 + 32 * 32)
    linear = 72 * tokens * 24 * 1024**2
    attention = (48 * 8 * (tokens // 8) ** 2 + 24 * tokens**2) * 4 * 1024
    assert full["encoder"] == pytest.approx(linear + attention, rel=0.02)
    weights = 36 * (2560 * 128 * (32 + 2 * 8 + 32) + 3 * 2560 * 9728) + 2560 * 151936
    assert full["language_model"] == pytest.approx(2 * 170 * weights, rel=0.02)
    ratios = [flops["encoder"] / flops["language_model"] for flops in (here, full)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1), ratios


@pytest.mark.slow
def test_a_short_run_writes_all_figures(tmp_path, monkeypatch, capsys):
    for name in ("VIEW_COUNTS", "QUESTION_COUNTS", "SCENE_COUNTS"):
        monkeypatch.setattr(benchmark, name, (2,))
    monkeypatch.setattr(benchmark, "SCENES", 2)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--json", str(tmp_path / "figures.json")])
    benchmark.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("speedup_packed", "speedup_packed_store", "speedup_shared_prefix"):
        assert figures[name] > 1, name
    assert 0 < figures["share_of_matmul_peak"] < 1
    assert "one question per row" in capsys.readouterr().out
