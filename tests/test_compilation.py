# SPDX-License-Identifier: Apache-2.0
"""compile_layers: without graph breaks, with the results of eager layers, and off on CPUs."""

import copy
import logging

import pytest
import torch
from test_loss import make_model
from test_modeling import make_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from toys import toy_geometry, toy_model, toy_processor, toy_views

from recipes.training import compilation
from recipes.training.collator import PackCollator
from recipes.training.compilation import check_compile_layers, compile_in_place, compile_layers


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """What was compiled elsewhere counts against the limit of recompilations."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def packs(processor):
    """Batches of other lengths, numbers of views (a padded one too) and of questions."""
    questions = [
        ("Where is it?", "next to the bed"),
        ("Is it red?", "yes"),
        ("What is there?", "a lamp"),
        ("Why?", "so"),
    ]
    for views in ((3, 2), (2, 2), (4, 1), (3, 3)):
        yield PackCollator(processor)(
            [{"images": toy_views(n), "geometry": toy_geometry(n), "questions": questions[:n]} for n in views]
        )


def step(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "frozen_layers"), [(None, []), ("stage2_3d.yaml", [0])])
def test_compiled_layers_break_no_graph_and_train_the_same(recipe, frozen_layers):
    """
    Catches a layer whose graph breaks (`fullgraph=True` raises), one that is compiled anew for each of its kind or each
    length until torch gives up, and gradients that differ: packed, frozen or with LoRA, recomputed. aot_eager
    traces what inductor would, backward too, and needs no C++ compiler.
    """
    model, _ = make_model(recipe, frozen_layers)
    model.activation_checkpointing_enable()
    model.train()
    whole = getattr(model, "get_base_model", lambda: model)()
    batches = list(packs(toy_processor(whole.config)))
    expected = [step(model, batch) for batch in batches]
    names = list(model.state_dict())
    backend = CompileCounterWithBackend("aot_eager")
    assert compile_in_place(model, backend=backend, fullgraph=True) == 2 + 2 * 2 + 2
    graphs = []
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        compiled_loss, compiled_gradients = step(model, batch)
        torch.testing.assert_close(compiled_loss, loss, atol=1e-6, rtol=1e-6)
        assert compiled_gradients.keys() == gradients.keys()
        for name, gradient in compiled_gradients.items():
            assert (gradient - gradients[name]).abs().max() <= 1e-4 * gradients[name].abs().max().clamp(min=1e-4), name
        graphs.append(backend.frame_count)
    print(f"{recipe}: graphs after each batch {graphs}")
    assert 3 <= graphs[0] <= 6 and graphs[-1] <= 20
    assert list(model.state_dict()) == names and copy.deepcopy(model).state_dict().keys() == set(names)


@pytest.mark.slow
def test_generation_compiles_no_language_model_layer():
    """Catches a compilation for every layer and every length of the key-value cache; the encoder's blocks are compiled."""
    model = toy_model()
    inputs = make_inputs(model)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    backend = CompileCounterWithBackend("aot_eager")
    compile_in_place(model, backend=backend, fullgraph=True)
    graphs = []
    for tokens in (1, 4):
        generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        graphs.append(backend.frame_count)
    assert torch.equal(generated, expected)
    assert 0 < graphs[0] == graphs[1]


def test_nothing_is_compiled_on_a_cpu(caplog):
    """Catches minutes of compiling, and a compiler that is missing, where `compile_layers` is in a YAML file for GPUs."""
    model = toy_model()
    with caplog.at_level(logging.WARNING):
        assert compile_layers(model, torch.device("cpu")) == 0
    assert "compile_layers: nothing is compiled on a CPU" in caplog.text
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_every_block_is_compiled_elsewhere():
    """Catches a kind of block that is left out."""
    model = toy_model()
    assert compile_layers(model, torch.device("cuda")) == 8
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    kinds = ("backbone.encoder.layer", "frame_blocks", "global_blocks", "language_model.layers")
    assert [sum(kind in name for name in compiled) for kind in kinds] == [2, 2, 2, 2] and len(compiled) == 8


def test_zero_3_is_refused(monkeypatch):
    """Catches layers whose parameters are gathered by hooks inside them, in the middle of a compiled graph."""
    check_compile_layers(True)
    monkeypatch.setattr(compilation, "is_deepspeed_zero3_enabled", lambda: True)
    check_compile_layers(False)
    with pytest.raises(ValueError, match="Set compile_layers: false, or use ZeRO-2"):
        check_compile_layers(True)
