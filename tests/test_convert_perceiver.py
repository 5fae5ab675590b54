# SPDX-License-Identifier: Apache-2.0
"""The converter's sizes of the perceiver, and another number of its latents between two stages."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_convert import FIXTURES, OPTIONS, refuse, write_text_model

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from modeling_vggt_qwen3 import convert_vggt_qwen3_to_hf as converter


VGGT = str(FIXTURES / "tiny_weights.safetensors")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(write_text_model(tmp_path_factory.mktemp("text") / "qwen3"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("projector_hidden_size", 48),
        ("projector_num_latents", 64),
        ("projector_num_hidden_layers", 3),
        ("projector_num_attention_heads", 4),
        ("projector_mlp_ratio", 2),
    ],
)
def test_sizes_of_the_perceiver_are_options(option, value, text, tmp_path, monkeypatch):
    """Catches an option of the command line that changes nothing, or the config and not the tensors or the processor."""
    sizes = {"projector_hidden_size": 32, "projector_num_latents": 5, "projector_num_hidden_layers": 1}
    sizes |= {"projector_num_attention_heads": 2, "projector_mlp_ratio": 1}
    shapes = []
    for name, changes in (("before", {}), ("after", {option: value})):
        options = OPTIONS | {"projector_type": "perceiver"} | sizes | changes
        words = [f"--vggt={VGGT}", f"--text={text}", f"--output={tmp_path / name}"]
        for key, given in options.items():
            words += [f"--{key.replace('_', '-')}", *map(str, given if isinstance(given, list) else [given])]
        monkeypatch.setattr(sys, "argv", ["convert", "convert", *words])
        converter.main()
        model, report = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {key: getattr(model.config, key) for key in sizes} == sizes | changes
        processor = VggtQwen3Processor.from_pretrained(tmp_path / name)
        assert processor.projector_num_latents == model.config.projector_num_latents
        projector = model.model.projector
        assert projector.layers[0].self_attention.head_dim * (sizes | changes)["projector_num_attention_heads"] == (
            model.config.projector_hidden_size
        )
        shapes.append({key: tuple(tensor.shape) for key, tensor in projector.state_dict().items()})
    assert (shapes[0] == shapes[1]) == (option == "projector_num_attention_heads")  # heads share the width


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["one file", "shards"])
def test_number_of_latents_between_two_stages(shard_size, text, tmp_path, monkeypatch):
    """
    Catches latents that are drawn anew or from the wrong end, another tensor that changes, and a config, a processor or an
    index that does not fit.
    """
    options = OPTIONS | {"projector_type": "perceiver", "projector_hidden_size": 32, "projector_num_latents": 6}
    converter.convert_released(VGGT, text, tmp_path / "6", **options)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / "6")
    for file in (tmp_path / "6").glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(tmp_path / "6", max_shard_size=shard_size)
    (tmp_path / "6" / "run.json").write_text("{}")
    (tmp_path / "6" / "checkpoint-1").mkdir()
    key = "model.projector.latents"
    for before, after in (("6", "9"), ("9", "4")):
        words = ["--checkpoint", tmp_path / before, "--projector-num-latents", after, "--output", tmp_path / after]
        monkeypatch.setattr(sys, "argv", ["convert", "resize", *map(str, words)])
        converter.main()
        resized, report = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / after, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        processor = VggtQwen3Processor.from_pretrained(tmp_path / after)
        assert processor.projector_num_latents == resized.config.projector_num_latents == int(after)
        old, new = model.state_dict(), resized.state_dict()
        assert {name for name in old if not torch.equal(old[name], new[name])} == {key}
        shared = min(len(old[key]), len(new[key]))
        assert torch.equal(old[key][:shared], new[key][:shared]) and len(new[key]) == int(after)
        assert len(new[key].unique(dim=0)) == int(after) and new[key].float().std() < 0.04
        # What follows a run goes along; what it resumes from, which has other latents, does not.
        assert (tmp_path / after / "run.json").exists() and not (tmp_path / after / "checkpoint-1").exists()
        for index in (tmp_path / after).glob("*.index.json"):
            size = sum(
                tensor.nbytes for file in index.parent.glob("*.safetensors") for tensor in load_file(file).values()
            )
            assert json.loads(index.read_text())["metadata"]["total_size"] == size
        model = resized


# Bad input


def test_a_checkpoint_without_latents_is_not_resized(text, tmp_path):
    """Catches a copy that claims another size, and a traceback."""
    converter.convert_released(VGGT, text, tmp_path / "mlp", **OPTIONS)
    with pytest.raises(ValueError, match="size of the perceiver, which --projector-type mlp does not read"):
        converter.resize_perceiver(tmp_path / "mlp", tmp_path / "model", 64)
    with pytest.raises(FileNotFoundError):
        converter.resize_perceiver(tmp_path / "none", tmp_path / "model", 64)
    assert not (tmp_path / "model").exists()


def test_sizes_that_no_perceiver_has_are_refused(text, tmp_path):
    """Catches a projector without latents, and a size that is accepted and not read."""
    refuse(tmp_path, VGGT, text, "--projector-num-latents is a size of the perceiver", projector_num_latents=64)
    perceiver = {"projector_type": "perceiver"}
    for name in ("num_latents", "num_hidden_layers"):
        words = f"--projector-{name.replace('_', '-')} must be at least 1, got 0"
        refuse(tmp_path, VGGT, text, words, **perceiver, **{f"projector_{name}": 0})
    refuse(
        tmp_path, VGGT, text, r"projector_hidden_size \(40\) must be a multiple", **perceiver, projector_hidden_size=40
    )
