# SPDX-License-Identifier: Apache-2.0
"""Frozen modules: they checkpoint activations where gradients pass, never drop out, and `train()` costs little."""

import pytest
import torch
from test_modeling import make_inputs
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from toys import toy_config, toy_geometry, toy_model, toy_processor, toy_views
from transformers import DogeConfig

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration
from modeling_vggt_qwen3.module_modes_vggt_qwen3 import modes_to_set
from recipes.launching.shapes import RELEASED
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.trainer import freeze_and_adapt


STAGES = {"stage1": "stage1_sft.yaml", "stage2": "stage2_3d.yaml"}


def model_arguments(stage):
    return parse_arguments(CONFIGS / STAGES[stage], ["--output_dir", "unused"])[0]


def released_model(stage):
    """The model of a shipped recipe, full size, on the meta device."""
    config = VggtQwen3Config.from_json_file(RELEASED)
    with torch.device("meta"):
        model = VggtQwen3ForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
        return freeze_and_adapt(model, model_arguments(stage))


def kept_per_token(model, length=64):
    """Bytes per token that the language model keeps for the backward pass; attention weights, which kernels do not keep, aside."""
    language_model = getattr(model, "get_base_model", lambda: model)().model.language_model
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters and tuple(tensor.shape[-2:]) != (length, length):
            storages[storage._cdata] = storage
        return tensor

    with torch.device("meta"), saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = torch.empty(1, length, language_model.config.hidden_size, dtype=torch.bfloat16).requires_grad_()
        output = language_model(
            inputs_embeds=embeddings,
            attention_mask={"full_attention": torch.empty(1, 1, length, length, dtype=torch.bfloat16)},
            position_ids=torch.arange(length)[None],
            use_cache=False,
        ).last_hidden_state
    del output
    return sum(storage.nbytes() for storage in storages.values()) / length


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_layers_checkpoint_at_full_size(stage):
    """
    Catches activation checkpointing that eval mode switches off: in stage 1 all of the language model is frozen, and none of
    its 36 layers recomputed anything. With it a layer keeps its input alone: 2,560 numbers of two bytes a token.
    """
    model = released_model(stage).train()
    without = kept_per_token(model)
    model.activation_checkpointing_enable()  # after train(), and the next train() must not undo it
    kept = [kept_per_token(model), kept_per_token(model.train())]
    print(f"{stage}: {without / 1e6:.2f} MB kept per token without activation checkpointing, {kept[1] / 1e6:.3f} with")
    assert without > 4e6
    assert kept[0] == kept[1] and kept[1] < 37 * 2560 * 2 + 20_000, kept


@pytest.mark.parametrize("stage", STAGES)
def test_checkpointing_of_frozen_layers_changes_nothing(stage):
    """Catches dropout in frozen layers whose flag is on for checkpointing, and gradients that recomputation changes."""
    config = toy_config("perceiver")
    config.text_config.attention_dropout = 0.5 if stage == "stage1" else 0.0
    arguments = model_arguments(stage)
    arguments.freeze_text_layers, arguments.lora_dropout = [0] * (stage == "stage2"), 0.0
    torch.manual_seed(0)
    model = freeze_and_adapt(VggtQwen3ForConditionalGeneration(config), arguments)
    examples = [
        {
            "images": toy_views(views),
            "geometry": toy_geometry(views),
            "questions": [("Where is it?", "next to the bed")],
        }
        for views in (3, 2)
    ]
    batch = PackCollator(toy_processor(config))(examples)
    layers, calls = getattr(model, "get_base_model", lambda: model)().model.language_model.layers, []
    layers[0].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    results = []
    for enabled in (False, True):
        if enabled:
            model.activation_checkpointing_enable()
        for _ in range(2):  # an evaluation in between
            model.train()
            assert not any(module.training for module in list(layers[0].modules())[1:])
            model.zero_grad()
            calls.clear()
            loss = model(**batch).loss
            loss.backward()
            assert len(calls) == 1 + enabled
            results.append(
                (loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
            )
            assert not any(module.training for module in model.eval().modules())
    for loss, gradients in results[1:]:
        torch.testing.assert_close((loss, gradients), results[0], atol=1e-6, rtol=1e-5)


def test_frozen_encoder_does_not_checkpoint():
    """Catches a frozen encoder that saves the random state for every block, though it runs without gradients."""
    model = toy_model(heads=True, geometry_source="predicted")
    model.model.vision_model.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.model.vision_model.modules())
    # One that trains in part checkpoints its frozen blocks, whose inputs have gradients; its heads have none.
    model.model.vision_model.frame_blocks[0].requires_grad_(True)
    model.train()
    trained, frozen = model.model.vision_model.frame_blocks[0], model.model.vision_model.frame_blocks[1]
    assert all(module.training for module in trained.modules())
    assert [module.training for module in frozen.modules()] == [True] + [False] * (len(list(frozen.modules())) - 1)
    assert not any(module.training for module in model.model.vision_model.camera_head.modules())


def test_frozen_layers_that_drop_out_by_their_own_flag_stay_off():
    """Catches dropout in frozen layers of a language model that has it in the layer itself, as Doge's."""
    config = toy_config()
    text = config.text_config
    config.text_config = DogeConfig(
        vocab_size=text.vocab_size,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        hidden_dropout=0.5,
        pad_token_id=None,
    )
    model = VggtQwen3ForConditionalGeneration(config)
    model.model.language_model.requires_grad_(False)
    assert not any(module.training for module in model.train().model.language_model.modules())


@pytest.mark.parametrize("stage", STAGES)
def test_train_touches_nothing_when_nothing_has_changed(stage, monkeypatch):
    """
    Catches what took up to 50 ms of every micro-step: Trainer calls `train()` each time, which set the flag of every module
    of VGGT-1B and Qwen3-4B, and went through all parameters once per level. With LoRA the call comes through PEFT's two wrappers.
    """
    model = released_model(stage).train()
    trained, flags, train, setattr_ = [], [], nn.Module.train, nn.Module.__setattr__

    def count_setattr(module, name, value):
        flags.append(module)
        setattr_(module, name, value)

    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: trained.append(self) or train(self, mode))
    monkeypatch.setattr(nn.Module, "__setattr__", count_setattr)
    monkeypatch.setattr(nn.Module, "named_parameters", None)
    assert model.train() is model
    wrappers = {"stage1": 0, "stage2": 2}[stage]
    assert len(trained) == wrappers and len(flags) == wrappers


def test_train_notices_what_has_changed():
    """Catches modes remembered from an earlier call: parameters frozen or freed, flags set by hand, modules replaced."""
    model = toy_model().train()
    layers = model.model.language_model.layers
    assert all(module.training for module in layers[0].modules())
    layers[0].requires_grad_(False)
    model.train()
    assert layers[0].training and not any(module.training for module in list(layers[0].modules())[1:])
    layers[0].requires_grad_(True)
    model.train()
    assert all(module.training for module in layers[0].modules())
    model.model.projector.act.eval()  # of no parameters
    layers[1].mlp.eval()
    model.train()
    assert model.model.projector.act.training and layers[1].mlp.up_proj.training
    layers[1].mlp = nn.Sequential(nn.Linear(32, 32), nn.Dropout()).requires_grad_(False).train()
    model.train()
    assert not any(module.training for module in layers[1].mlp.modules())
    arguments = model_arguments("stage2")
    arguments.freeze_text_layers, arguments.lora_target_modules = [0], ["q_proj"]
    adapted = freeze_and_adapt(model, arguments).train()
    query = layers[1].self_attn.q_proj
    assert query.lora_dropout["default"].training and query.lora_A["default"].training
    assert not query.base_layer.training and not layers[1].self_attn.k_proj.training
    projector = model.model.projector
    assert projector.modules_to_save["default"].input_proj.training and not projector.original_module.act.training
    assert modes_to_set(model, True) == {}
    assert not any(module.training for module in adapted.eval().modules())
    model.model.vision_model.train()  # by hand: the next eval() must see it
    assert not any(module.training for module in adapted.eval().modules())


def test_frozen_model_generates_as_before():
    """Catches a layer's flag left on after training: with checkpointing it would drop the key-value cache."""
    model = toy_model()
    inputs = make_inputs(model)
    reference = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model.model.language_model.requires_grad_(False)
    model.activation_checkpointing_enable()
    model.train().eval()
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), reference)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_keeps_no_key_value_cache(frozen):
    """
    Catches keys and values copied into a cache in every step, 4 KB per token and layer: Trainer switches `use_cache` off in the
    whole model's config, of which the language model reads only its own part.
    """
    model = toy_model()
    model.model.language_model.requires_grad_(not frozen)
    inputs = make_inputs(model)
    model.config.use_cache = False
    assert model.train()(**inputs).past_key_values is None
    assert model.eval()(**inputs, use_cache=True).past_key_values is not None
