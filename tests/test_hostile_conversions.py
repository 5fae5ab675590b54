# SPDX-License-Identifier: Apache-2.0
"""A conversion of strangers' files ends in a checkpoint or in one line that names the file, and runs nothing of them."""

import shutil

import pytest
from hostile import count
from hostile.conversions import MARKER, conversions, resizes
from safetensors.torch import load_file, save_file
from test_convert import FIXTURES, OPTIONS, write_text_model
from toys import write_toy_checkpoint

from modeling_vggt_qwen3 import convert_vggt_qwen3_to_hf as converter


@pytest.mark.slow
def test_hostile_checkpoints(tmp_path):
    """Catches a traceback, or a message that leaves open which of the many files it is about."""
    text = write_text_model(tmp_path / "good")
    save_file(load_file(FIXTURES / "tiny_weights.safetensors"), tmp_path / "good.safetensors")

    def attempt(case):
        vggt, folder, _ = case
        output = tmp_path / "output"
        shutil.rmtree(output, ignore_errors=True)
        converter.convert_released(str(vggt), str(folder), output, **OPTIONS)

    cases = conversions(tmp_path / "good.safetensors", text, tmp_path / "work", seed=0, values=20)
    # Of the language model its folder, of which most files are read by transformers and tokenizers.
    counts = count(
        "conversions", cases, attempt, (OSError, ValueError),
        lambda what, case: "stranger" if case[2].parent.name == "stranger" else case[2].name,
    )  # fmt: skip
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)
    assert counts.refused > 150 and not (tmp_path / MARKER).exists()


def test_hostile_checkpoints_to_resize(tmp_path):
    """Catches a traceback where another number of latents is asked for."""
    good = write_toy_checkpoint(tmp_path / "good", "perceiver")

    def attempt(checkpoint):
        output = tmp_path / "output"
        shutil.rmtree(output, ignore_errors=True)
        converter.resize_perceiver(checkpoint, output, 9)

    cases = resizes(good, tmp_path / "stranger", seed=0)
    counts = count("resizes", cases, attempt, (OSError, ValueError), lambda what, case: "stranger")
    assert counts.tracebacks == [], "\n".join(counts.tracebacks)
    attempt(good)
