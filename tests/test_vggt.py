# SPDX-License-Identifier: Apache-2.0
"""VGGT, encoder and heads, against the numbers of the original network (tests/fixtures/vggt, toy width, float32)."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_vggt_qwen3 import VggtConfig, VggtModel, convert_vggt_state_dict


FIXTURES = Path(__file__).parent / "fixtures" / "vggt"


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURES / "tiny_io.safetensors")


@pytest.fixture(scope="module")
def upstream_weights():
    return load_file(FIXTURES / "tiny_weights.safetensors")


@pytest.fixture(scope="module")
def model(upstream_weights):
    upstream = json.loads((FIXTURES / "tiny_config.json").read_text())
    config = VggtConfig(
        image_size=upstream["image_size"],
        patch_size=upstream["patch_size"],
        hidden_size=upstream["hidden_size"],
        num_attention_heads=upstream["num_attention_heads"],
        num_hidden_layers=upstream["depth"],
        backbone_num_hidden_layers=upstream["backbone_depth"],
        mlp_ratio=upstream["mlp_ratio"],
        num_register_tokens=upstream["num_register_tokens"],
        rope_theta=upstream["rope_frequency"],
        camera_head_num_layers=upstream["camera_head_trunk_depth"],
        depth_head_layers=upstream["depth_head_layers"],
        depth_head_neck_hidden_sizes=upstream["depth_head_out_channels"],
        depth_head_fusion_hidden_size=upstream["depth_head_features"],
    )
    model = VggtModel(config).eval()
    model.load_state_dict(convert_vggt_state_dict(upstream_weights), strict=True)
    return model


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_backbone_matches_the_original(model, golden):
    """Catches a wrong positional-embedding interpolation (the images are not square) or a mixed-up fused qkv."""
    images = (golden["images"] - model.image_mean) / model.image_std
    with torch.no_grad():
        tokens = model.backbone(images.flatten(0, 1)).last_hidden_state[:, 1 + model.config.num_register_tokens :]
    expected = golden["backbone_patch_tokens"].reshape(tokens.shape)
    assert relative_error(tokens, expected) <= 1e-4


# torch's flex_attention kernel for CPUs gives NaN now and then for inputs it gets right otherwise.
ON_ACCELERATOR = pytest.mark.skipif(not torch.accelerator.is_available(), reason="flex_attention needs a GPU")


@pytest.mark.parametrize(
    "attn_implementation", ["sdpa", "eager", pytest.param("flex_attention", marks=ON_ACCELERATOR)]
)
def test_every_alternating_layer_matches_the_original(model, golden, attn_implementation):
    """Catches swapped rows and columns in RoPE, a special token with a position, a wrong order of frame and global."""
    model.set_attn_implementation(attn_implementation)
    with torch.no_grad():
        outputs = model(golden["images"], output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    assert len(outputs.hidden_states) == model.config.num_hidden_layers
    for layer, hidden_states in enumerate(outputs.hidden_states):
        assert relative_error(hidden_states, golden[f"aggregated_tokens.{layer}"]) <= 1e-4
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_heads_match_the_original(model, golden, attn_implementation):
    """
    Catches a pose that is activated before it is refined further, a view that its camera head cannot see, mixed-up
    fields of view, a residual unit whose skip is not activated, a positional embedding of the wrong aspect.
    """
    model.set_attn_implementation(attn_implementation)
    with torch.no_grad():
        geometry = model.predict_geometry(golden["images"])
    model.set_attn_implementation("sdpa")
    assert len(geometry.pose_encodings) == 4
    for iteration, encoding in enumerate(geometry.pose_encodings):
        assert relative_error(encoding, golden[f"pose_enc.{iteration}"]) <= 1e-4
    assert torch.equal(geometry.pose_encoding, geometry.pose_encodings[-1])
    for name in ("extrinsics", "intrinsics"):
        assert relative_error(geometry[name], golden[name]) <= 1e-4
    assert relative_error(geometry.depth, golden["depth"].squeeze(-1)) <= 1e-4
    assert relative_error(geometry.depth_confidence, golden["depth_conf"]) <= 1e-4


def test_padding_views_change_nothing(model, golden):
    """Catches global attention that reads the padding of scenes with fewer views."""
    images = golden["images"]
    batch_size, num_views = images.shape[:2]
    padded = torch.cat([images, torch.rand_like(images)], dim=1)
    view_mask = torch.arange(2 * num_views).expand(batch_size, -1) < num_views
    with torch.no_grad():
        hidden_states = model(padded, view_mask=view_mask).last_hidden_state[:, :num_views]
    assert relative_error(hidden_states, golden[f"aggregated_tokens.{model.config.num_hidden_layers - 1}"]) <= 1e-4


def test_keeps_only_the_layers_asked_for(model, golden):
    """Catches upstream's habit of holding the outputs of all pairs in memory."""
    outputs_of_pairs = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: outputs_of_pairs.append(weakref.ref(output)))
        for block in [*model.frame_blocks, *model.global_blocks]
    ]
    with torch.no_grad():
        outputs = model(golden["images"], hidden_state_layers=[2, -4])
    for hook in hooks:
        hook.remove()
    gc.collect()
    assert [reference() for reference in outputs_of_pairs] == [None] * len(outputs_of_pairs)
    assert len(outputs.hidden_states) == 2
    assert relative_error(outputs.hidden_states[0], golden["aggregated_tokens.2"]) <= 1e-4
    assert relative_error(outputs.hidden_states[1], golden["aggregated_tokens.0"]) <= 1e-4


def test_default_config_is_the_released_size():
    """
    Catches a default that would not load the released checkpoint. Of VGGT-1B's 1,256,537,516 parameters the aggregator
    has 909,112,320; the point and the track head (98,596,024) have no counterpart here.
    """
    with torch.device("meta"):
        model = VggtModel(VggtConfig())
    heads = [model.camera_head, model.depth_head]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (model, *heads)]
    assert counts == [1_157_941_492, 216_174_610, 32_654_562]
    assert counts[0] - sum(counts[1:]) == 909_112_320


def test_buffers_survive_loading(model, golden, tmp_path):
    """Catches non-persistent buffers (the image mean) left uninitialised by loading on the meta device."""
    model.save_pretrained(tmp_path)
    loaded = VggtModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(golden["images"]).last_hidden_state, model(golden["images"]).last_hidden_state)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 0, 3, 56, 56), "views >= 1"), ((2, 3, 56, 56), "views >= 1"), ((1, 1, 3, 57, 56), "57×56.*patch size 14")],
)
def test_bad_shapes_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))


def test_converter_refuses_foreign_keys():
    with pytest.raises(ValueError, match="point_head.x"):
        convert_vggt_state_dict({"point_head.x": torch.zeros(1)})


def test_config_refuses_a_head_that_rope_cannot_halve():
    with pytest.raises(ValueError, match="multiple of 4"):
        VggtConfig(hidden_size=12, num_attention_heads=2)
