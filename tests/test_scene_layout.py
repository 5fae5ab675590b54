# SPDX-License-Identifier: Apache-2.0
"""Scenes of different numbers of views in one batch: each is encoded as if it were alone, without a mask."""

from collections import Counter

import pytest
import torch
from accelerate.utils import send_to_device
from torch.distributed.utils import _to_kwargs
from torch.utils.data._utils.pin_memory import pin_memory
from toys import toy_geometry, toy_model, toy_processor, toy_views
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_vggt_qwen3.modeling_vggt import SceneLayout
from modeling_vggt_qwen3.modeling_vggt_layers import VggtAttention, eager_attention_forward
from recipes.training.collator import PackCollator


COUNTS = [2, 3, 1, 3, 2, 4]
LAYERS = [0, 1]


def padded_batch(counts=COUNTS):
    """Random views, and what padding must not matter: numbers that are not finite."""
    torch.manual_seed(1)
    view_mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    pixel_values = torch.rand(len(counts), max(counts), 3, 28, 28)
    return torch.where(view_mask[..., None, None, None], pixel_values, torch.nan), view_mask


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return toy_model(heads=True).model.vision_model


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_scenes_together_are_as_alone(attn_implementation, encoder):
    """Catches views of other scenes or padding in a scene's attention, and scenes that come back in another order."""
    encoder.set_attn_implementation(attn_implementation)
    pixel_values, view_mask = padded_batch()
    with torch.no_grad():
        by_counts = encoder(pixel_values, view_counts=COUNTS, hidden_state_layers=LAYERS)
        by_mask = encoder(pixel_values, view_mask, hidden_state_layers=LAYERS)
        for scene, count in enumerate(COUNTS):
            alone = encoder(pixel_values[scene : scene + 1, :count], hidden_state_layers=LAYERS)
            for together in (by_counts, by_mask):
                for layer in LAYERS:
                    states = together.hidden_states[layer][scene]
                    # Only products of other sizes may round otherwise.
                    torch.testing.assert_close(states[:count], alone.hidden_states[layer][0], atol=1e-6, rtol=1e-5)
                    assert not states[count:].any()


def test_attention_of_groups_is_bit_equal(encoder):
    """Catches a group that attends with a mask or to other tokens: what a scene alone gives comes out, bit for bit."""
    groups = [(2, 3), (1, 5), (3, 7)]
    attention: VggtAttention = encoder.global_blocks[0].attn
    attention.qkv, attention.proj = torch.nn.Identity(), torch.nn.Identity()  # products of other sizes round otherwise
    torch.manual_seed(0)
    states = torch.randn(1, sum(scenes * tokens for scenes, tokens in groups), 3 * 32)
    positions = [torch.randn(states.shape[1], 16) for _ in range(2)]
    with torch.no_grad():
        together = attention(states, positions, None, groups)
        start = 0
        for scenes, tokens in groups:
            for _ in range(scenes):
                part = slice(start, start + tokens)
                alone = attention(states[:, part], [angles[part] for angles in positions])
                assert torch.equal(together[:, part], alone)
                start += tokens


def test_no_mask_reaches_the_encoders_attention(encoder, monkeypatch):
    """Catches a mask that a flash kernel would drop, and attention that is padded to the largest scene."""
    calls, num_tokens = Counter(), encoder.num_special_tokens + 4

    def spy(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None
        calls[query.shape[0], query.shape[2] // num_tokens] += 1
        return eager_attention_forward(module, query, key, value, None, kwargs["scaling"])

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "spy", spy)
    encoder.set_attn_implementation("spy")
    pixel_values, view_mask = padded_batch()
    encoder(pixel_values, view_mask)
    pairs, layers = encoder.config.num_hidden_layers, encoder.config.backbone_num_hidden_layers
    # (scenes, views of each): one of 1, two of 2, two of 3, one of 4. Frame blocks and backbone see 15 views.
    expected = {(1, 1): pairs, (2, 2): pairs, (2, 3): pairs, (1, 4): pairs, (15, 1): pairs + layers}
    assert calls == expected


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("projector", ["mlp", "perceiver"])
def test_gradients_of_scenes_together_are_the_sum_of_those_alone(projector, activation_checkpointing):
    """Catches an encoder whose gradients stop where scenes are put side by side, or count padding."""
    torch.manual_seed(0)
    model = toy_model(projector).train()
    if activation_checkpointing:
        model.activation_checkpointing_enable()
    collate = PackCollator(toy_processor(model.config))
    examples = [
        {"images": toy_views(count, seed), "geometry": toy_geometry(count, seed), "questions": [("What?", "red")]}
        for seed, count in enumerate(COUNTS)
    ]
    results = []
    for batches in ([examples], [[example] for example in examples]):
        model.zero_grad()
        losses = [model(**collate(batch), num_items_in_batch=torch.tensor(9)).loss for batch in batches]
        sum(losses).backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    together, alone = results
    assert together.keys() == alone.keys() and any("vision_model.global_blocks" in name for name in together)
    largest = max(gradient.norm() for gradient in alone.values())
    for name, gradient in together.items():
        assert (gradient - alone[name]).norm() <= 1e-4 * alone[name].norm().clamp(min=1e-3 * largest), name


def test_python_numbers_pass_through_ddp_and_accelerate(tmp_path):
    """Catches counts that become tensors (the host would wait for them) or are cut up, and a pass that DDP does not know."""
    torch.manual_seed(0)
    model = toy_model().train()
    collate = PackCollator(toy_processor(model.config))
    batch = collate(
        [{"images": toy_views(n), "geometry": None, "questions": [("What?", "red")]} for n in (3, 1, 3)] * 2
    )
    sent = send_to_device(pin_memory(batch) if torch.cuda.is_available() else batch, torch.device("cpu"))
    _, (moved,) = _to_kwargs((), sent, torch.device("cpu", 0), False)
    assert moved["view_counts"] == [3, 1, 3, 3, 1, 3] and type(moved["view_counts"][0]) is int
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(2):
            model.zero_grad()
            wrapped(**moved).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)


def test_modules_run_as_often_for_any_numbers_of_views(encoder):
    """Catches one pass per number of views: ranks that see other views would run other modules, and ZeRO-3 hangs."""
    runs = []
    for module in encoder.modules():
        module.register_forward_hook(lambda module, *_: runs[-1].append(id(module)))
    for counts in (COUNTS, [4, 4], [1], [1, 2]):
        runs.append([])
        encoder(*padded_batch(counts))
    assert runs[0] and all(run == runs[0] for run in runs)


def test_predicted_cameras_of_scenes_together_are_as_alone(encoder):
    """Catches heads that read padding."""
    pixel_values, view_mask = padded_batch()
    with torch.no_grad():
        together = encoder.predict_geometry(pixel_values, view_mask)
        for scene, count in enumerate(COUNTS):
            alone = encoder.predict_geometry(pixel_values[scene : scene + 1, :count])
            for name in ("extrinsics", "intrinsics", "depth", "depth_confidence"):
                value, expected = getattr(together, name)[scene], getattr(alone, name)[0]
                torch.testing.assert_close(value[:count], expected, atol=1e-5, rtol=1e-5)


def test_packing_and_unpacking():
    """Catches a layout that mixes views up."""
    views = torch.arange(24).view(6, 4)
    layout = SceneLayout(6, 4, view_counts=COUNTS)
    assert layout.groups == [(1, 1), (2, 2), (2, 3), (1, 4)]
    packed = layout.pack(views)
    assert packed.tolist() == [8, 0, 1, 16, 17, 4, 5, 6, 12, 13, 14, 20, 21, 22, 23]
    view_mask = torch.arange(4) < torch.tensor(COUNTS)[:, None]
    assert torch.equal(layout.unpack(packed), views * view_mask)
    full = SceneLayout(6, 4)
    assert torch.equal(full.unpack(full.pack(views)), views) and not full.is_padded


def test_masks_and_counts_that_make_no_sense_are_refused(encoder):
    """Catches a hole in the mask, for which other views would be read, and counts of other scenes."""
    pixel_values, view_mask = padded_batch([2, 3])
    holes = view_mask.clone()
    holes[1, 1] = False
    with pytest.raises(ValueError, match="must come first in view_mask"):
        encoder(pixel_values, holes)
    with pytest.raises(ValueError, match="one number of 1 to 3 views"):
        encoder(pixel_values, torch.zeros_like(view_mask))
    for counts in ([2], [2, 4], [0, 3]):
        with pytest.raises(ValueError, match="one number of 1 to 3 views for each of 2 scenes"):
            encoder(pixel_values, view_counts=counts)
    with pytest.raises(ValueError, match="give both"):
        toy_model().get_image_features(pixel_values, view_counts=[2, 3])
