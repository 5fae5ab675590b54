# SPDX-License-Identifier: Apache-2.0
"""Every size and constant of the configurations is one that the modules read."""

import pytest
import torch
from toys import toy_model

from modeling_vggt_qwen3 import VggtConfig, VggtModel


SMALL = {
    "image_size": 28,
    "patch_size": 14,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "backbone_num_hidden_layers": 1,
    "mlp_ratio": 2,
    "num_register_tokens": 1,
    "camera_head_num_layers": 0,
    "depth_head_layers": [],
}
CHANGES = {
    "image_size": 56,  # the grid of the positional embeddings
    "patch_size": 7,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "backbone_num_hidden_layers": 2,
    "mlp_ratio": 4,
    "num_register_tokens": 2,
    "rope_theta": 1.5,
    "layer_norm_eps": 1.0,
    "backbone_layer_norm_eps": 1.0,
    "layer_scale_init_value": 0.5,
    "backbone_layer_scale_init_value": 0.5,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.3, 0.2, 0.1],
    "initializer_range": 0.2,
}


def encode(config: dict) -> torch.Tensor:
    torch.manual_seed(0)
    model = VggtModel(VggtConfig(**config)).eval()
    views = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(views).last_hidden_state


def test_every_field_of_the_encoder_changes_its_output():
    """Catches a field of VggtConfig that nothing reads; those of the heads have their tests in test_vggt_heads.py."""
    fields = {name for name in VggtConfig.__annotations__ if not name.startswith(("camera_head_", "depth_head_"))}
    assert fields - {"model_type"} == set(CHANGES)
    before = encode(SMALL)
    unread = [name for name, value in CHANGES.items() if torch.equal(before, encode(SMALL | {name: value}))]
    assert not unread


@pytest.mark.parametrize("heads, layers", [(4, 1), (8, 3)])
def test_anchor_head_has_the_layers_and_heads_of_the_config(heads, layers):
    """Catches sizes of the anchor head that are written down twice."""
    fields = {"anchor_num_attention_heads": heads, "anchor_num_hidden_layers": layers}
    head = toy_model(anchor_hidden_size=32, numbers_from="head", **fields).model.anchor_head
    assert [layer.attention.num_heads for layer in head.layers] == [heads] * layers


def test_new_modules_are_drawn_with_initializer_range():
    """Catches a projector that keeps torch's own initialisation."""
    for deviation in (0.02, 0.2):
        torch.manual_seed(0)
        projector = toy_model(initializer_range=deviation).model.projector
        matrices = [parameter for parameter in projector.parameters() if parameter.ndim == 2]
        assert matrices
        for matrix in matrices:
            assert matrix.std().item() == pytest.approx(deviation, rel=0.15)
