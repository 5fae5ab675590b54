# SPDX-License-Identifier: Apache-2.0
"""The language loss in chunks: as exact as in one piece, and no larger in memory than a chunk."""

import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import toy_config, toy_geometry, toy_processor, toy_views
from transformers.dynamic_module_utils import get_imports
from transformers.loss.loss_utils import ForCausalLMLoss

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, loss_vggt_qwen3
from modeling_vggt_qwen3.loss_vggt_qwen3 import VggtQwen3LMHead, chunked_causal_lm_loss
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.trainer import freeze_and_adapt


def head_and_tokens(tokens=50, hidden_size=16, vocab_size=300, dtype=torch.float32):
    torch.manual_seed(0)
    head = VggtQwen3LMHead(hidden_size, vocab_size, bias=False, dtype=dtype)
    labels = torch.randint(vocab_size, (tokens,))
    labels[::7] = -100  # as in a batch whose indices are padded
    return head, torch.randn(tokens, hidden_size, dtype=dtype), labels


def loss_and_gradients(loss_function, head, hidden_states, scale=1.0):
    hidden_states = hidden_states.detach().requires_grad_()
    head.zero_grad()
    loss = loss_function(hidden_states)
    (loss * scale).backward()
    return loss.detach(), hidden_states.grad, head.weight.grad


@pytest.mark.parametrize("num_items", [None, 13, torch.tensor(13)])
@pytest.mark.parametrize("chunk_size", [1, 16, 50, 1000])
def test_chunked_loss_and_gradients_equal_the_whole(chunk_size, num_items):
    """Catches a last chunk left out, ignored labels that count, and a gradient that does not follow the loss's weight."""
    head, hidden_states, labels = head_and_tokens()

    def whole(hidden_states):
        return ForCausalLMLoss(head(hidden_states), None, 300, num_items, shift_labels=labels)

    def chunked(hidden_states):
        return chunked_causal_lm_loss(head, hidden_states, labels, chunk_size, num_items)

    expected = loss_and_gradients(whole, head, hidden_states, scale=0.3)
    torch.testing.assert_close(loss_and_gradients(chunked, head, hidden_states, scale=0.3), expected)
    head.requires_grad_(False)
    torch.testing.assert_close(loss_and_gradients(chunked, head, hidden_states, scale=0.3), (*expected[:2], None))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_chunked_loss_in_bfloat16_is_that_of_float32_softmax(weight_dtype):
    """Catches a softmax in bfloat16, or gradients of chunks summed in it; float32 weights run under autocast."""
    head, hidden_states, labels = head_and_tokens(tokens=400, dtype=weight_dtype)
    labels = labels.abs()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=weight_dtype == torch.float32)

    def whole(hidden_states):
        with autocast:
            return ForCausalLMLoss(head(hidden_states), None, 300, 400, shift_labels=labels)

    def chunked(hidden_states):
        with autocast:
            return chunked_causal_lm_loss(head, hidden_states, labels, 8, 400)

    expected = loss_and_gradients(whole, head, hidden_states)
    results = loss_and_gradients(chunked, head, hidden_states)
    assert [result.dtype for result in results] == [expectation.dtype for expectation in expected]
    torch.testing.assert_close(results[0], expected[0])
    for result, expectation in zip(results[1:], expected[1:], strict=True):
        assert (result - expectation).abs().max() < 0.01 * expectation.abs().max()


class LargestTensors(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation returned, and of the most that were alive at a time."""

    def __init__(self, at_least):
        super().__init__()
        self.at_least, self.references, self.largest, self.alive = at_least, [], 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *(tensor.numel() for tensor in tensors)])
        self.references += [weakref.ref(tensor) for tensor in tensors if tensor.numel() >= self.at_least]
        tensors = [tensor for reference in self.references if (tensor := reference()) is not None]
        self.alive = max(self.alive, sum({tensor.data_ptr(): tensor.numel() for tensor in tensors}.values()))
        return result


@pytest.mark.parametrize("trains", [False, True])
def test_memory_of_the_loss_is_bounded_by_the_chunk(trains):
    """
    Catches logits of all tokens at once: 1,440 answer tokens of a scene in stage 3 are 0.4 GB of them in bfloat16, and three
    times as much twice in float32. And chunks that autograd keeps until the backward pass, which bounds nothing.
    """
    tokens, hidden_size, vocab_size, chunk_size = 64, 8, 4096, 16
    head, hidden_states, labels = head_and_tokens(tokens, hidden_size, vocab_size)
    head.requires_grad_(trains)
    hidden_states.requires_grad_()
    largest, alive, kept = {}, {}, {}
    for name, chunks in (("whole", None), ("chunked", chunk_size)):
        saved = {}
        with LargestTensors(chunk_size * vocab_size) as mode:
            with saved_tensors_hooks(
                lambda t, saved=saved: saved.update({t.data_ptr(): t}) or t, lambda tensor: tensor
            ):
                if chunks is None:
                    loss = ForCausalLMLoss(head(hidden_states), None, vocab_size, shift_labels=labels)
                else:
                    loss = chunked_causal_lm_loss(head, hidden_states, labels, chunks)
            loss.backward()
        largest[name], alive[name] = mode.largest, mode.alive
        kept[name] = sum(tensor.numel() for tensor in saved.values())
    print(f"largest tensor {largest}, alive {alive}, kept for the backward pass {kept}")
    assert largest["whole"] == tokens * vocab_size and kept["whole"] > tokens * vocab_size
    assert largest["chunked"] == max(chunk_size * vocab_size, trains * hidden_size * vocab_size)
    # Logits and log-probabilities, of one chunk: the last one's are gone.
    assert alive["chunked"] <= 3 * chunk_size * vocab_size < alive["whole"] / 3
    # The hidden states' gradient, and the weight's if it trains; two scalars.
    assert kept["chunked"] <= tokens * hidden_size + trains * hidden_size * vocab_size + 2


def make_model(recipe, frozen_layers=()):
    """A toy model as the recipe trains it, with other frozen layers, and a batch of two scenes with several questions."""
    torch.manual_seed(0)
    config = toy_config("perceiver", tie_word_embeddings=True)
    model = VggtQwen3ForConditionalGeneration(config)
    if recipe is not None:
        arguments = parse_arguments(CONFIGS / recipe, ["--output_dir", "unused", "--lora_dropout", "0"])[0]
        arguments.freeze_text_layers = list(frozen_layers)
        model = freeze_and_adapt(model, arguments)
    questions = [
        ("Where is it?", "next to the bed"),
        ("Is it red?", "yes"),
        ("What is there?", "a lamp and two chairs"),
    ]
    examples = [
        {"images": toy_views(views), "geometry": toy_geometry(views), "questions": questions[:views]}
        for views in (3, 2)
    ]
    return model, PackCollator(toy_processor(config))(examples)


@pytest.mark.parametrize("recipe", [None, "stage1_sft.yaml", "stage2_3d.yaml"])
@pytest.mark.parametrize("num_items", [None, torch.tensor(17)])
def test_model_trains_the_same_with_chunks(recipe, num_items):
    """Catches tied embeddings that miss the head's gradient, a frozen head that gets one, and a mean over chunks."""
    model, batch = make_model(recipe)
    whole = getattr(model, "get_base_model", lambda: model)()
    results = []
    for chunk_size in (None, 3):
        whole.loss_chunk_size = chunk_size
        model.train().zero_grad()
        outputs = model(**batch, num_items_in_batch=num_items)
        outputs.loss.backward()
        assert (outputs.logits is None) == (chunk_size is not None)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((outputs.loss.detach(), gradients))
    (whole_loss, expected), (loss, gradients) = results
    torch.testing.assert_close(loss, whole_loss, atol=1e-6, rtol=1e-6)
    assert gradients and gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max().clamp(min=1e-4), name
    assert whole.lm_head.weight is whole.get_input_embeddings().weight
    # An evaluation has its logits as ever.
    assert model.eval()(**batch).logits is not None


def test_batch_without_labels_runs_the_head():
    """Catches a rank whose batch has no answers and skips the head, or a loss of it that is not 0: the others would wait."""
    model, batch = make_model(None)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    model.loss_chunk_size, calls = 3, []
    model.lm_head.register_forward_hook(lambda *args: calls.append(1))
    loss = model.train()(**batch, num_items_in_batch=torch.tensor(20)).loss
    loss.backward()
    assert loss == 0 and calls == [1]
    assert model.lm_head.weight.grad is not None and not model.lm_head.weight.grad.any()


def test_one_call_of_the_head_whatever_the_number_of_chunks():
    """Catches a head that is called per chunk: under ZeRO-3 ranks of different numbers of answers would wait forever."""
    for chunk_size in (1, 3, 1000):
        model, batch = make_model(None)
        model.loss_chunk_size, calls = chunk_size, []
        model.lm_head.register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        model.train()(**batch).loss.backward()
        assert calls == [1]


def test_liger_computes_the_loss_where_it_is_installed(monkeypatch):
    """Catches arguments in another order than Liger's, a mean in place of the sum, a weight gradient summed in bfloat16."""
    calls = []

    class FusedLoss:
        def __init__(self, **kwargs):
            calls.append(kwargs)

        def __call__(self, lin_weight, _input, target, bias=None):  # as liger-kernel 0.6.2 to 0.8.5 name them
            return nn.functional.cross_entropy(nn.functional.linear(_input, lin_weight), target, reduction="sum")

    liger = ModuleType("liger_kernel.transformers")
    liger.LigerFusedLinearCrossEntropyLoss = FusedLoss
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
    head, hidden_states, labels = head_and_tokens()
    own = chunked_causal_lm_loss(head, hidden_states, labels, 16)
    assert not calls  # not on a CPU, whatever is installed
    monkeypatch.setattr(loss_vggt_qwen3, "use_liger", lambda hidden_states: True)
    torch.testing.assert_close(chunked_causal_lm_loss(head, hidden_states, labels, 16), own)
    assert calls == [{"ignore_index": -100, "reduction": "sum", "accum_dtype": torch.float32}]


def test_a_checkpoint_wants_no_optional_library():
    """Catches an import that transformers takes for a requirement of every checkpoint whose code it loads."""
    files = [
        path for path in Path(loss_vggt_qwen3.__file__).parent.glob("*.py") if not path.name.startswith("convert_")
    ]
    wanted = {library for path in files for library in get_imports(path)} - sys.stdlib_module_names
    assert wanted == {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}


def test_chunk_size_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(CONFIGS / "stage2_3d.yaml", ["--output_dir", "unused", "--loss_chunk_size", "0"])
    assert "loss_chunk_size must be at least 1, got 0" in capsys.readouterr().err
