# SPDX-License-Identifier: Apache-2.0
"""Packed scenes train exactly as one question per row does, and every question is trained on."""

import copy
from collections import Counter
from functools import lru_cache

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from peft import LoraConfig, get_peft_model
from torch.utils.data import BatchSampler
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_repo

from recipes.common.scenes import SceneDataset
from recipes.training.collator import PackCollator
from recipes.training.packing import Pack, PackDataset, PackSampler


QUESTIONS = [("What color is the chair?", "red"), ("Where is it?", "next to the bed"), ("Is it red?", "yes")]
LORA = LoraConfig(
    r=2,
    target_modules=r"model\.language_model\.layers\..*(q_proj|v_proj|up_proj)",
    modules_to_save=["projector", "geometry_encoder"],
)


def no_rounding(monkeypatch):
    """Keeps float64 where transformers goes through float32: norms, softmax and loss."""
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def double(value):
        return torch.float64 if value is torch.float32 else value

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *args, **kwargs: to(self, *map(double, args), **{k: double(v) for k, v in kwargs.items()}),
    )
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))


@lru_cache
def random_model(projector_type):
    """A toy model and its processor; copied where it is changed."""
    torch.manual_seed(0)
    model = toy_model(projector_type)
    return model, toy_processor(model.config)


def packed_and_unpacked(model, geometry, questions=QUESTIONS, dtype=torch.float32, rows=1):
    """Loss and gradients of two scenes, packed in one batch and as one question per row, `rows` in a batch."""
    collate = PackCollator(random_model(model.config.projector_type)[1])
    scenes = [
        {
            "images": toy_views(views, views),
            "geometry": toy_geometry(views, views) if geometry else None,
            "questions": questions[:count],
        }
        for views, count in ((3, len(questions)), (2, 1))
    ]
    unpacked = [scene | {"questions": [question]} for scene in scenes for question in scene["questions"]]
    results = []
    for batches in ([scenes], [unpacked[start : start + rows] for start in range(0, len(unpacked), rows)]):
        model.zero_grad()
        total = 0
        for examples in batches:
            batch = collate(examples)
            batch["pixel_values"] = batch["pixel_values"].to(dtype)
            loss = model(**batch, num_items_in_batch=torch.tensor(12)).loss
            loss.backward()
            total += loss.item()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((total, gradients))
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("geometry", "activation_checkpointing"), [(True, False), (False, True)])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("projector_type", ["mlp", "perceiver"])
def test_packed_loss_and_gradients_are_exact(
    projector_type, geometry, lora, activation_checkpointing, attn_implementation, dtype, monkeypatch
):
    """Catches segments that see each other, positions that do not restart, labels across a segment's border."""
    model = copy.deepcopy(random_model(projector_type)[0])
    model.set_attn_implementation(attn_implementation)
    if lora:
        model = get_peft_model(model, LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model = model.to(dtype).train()
    if activation_checkpointing:
        model.gradient_checkpointing_enable()
    if dtype == torch.float64:
        no_rounding(monkeypatch)
    (packed_loss, packed), (single_loss, single) = packed_and_unpacked(model, geometry, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert abs(packed_loss - single_loss) <= tolerance * single_loss
    assert packed.keys() == single.keys() and any(("lora_" in name) for name in packed) == lora
    assert any("projector" in name for name in packed)
    largest = max(gradient.norm() for gradient in single.values())
    for name, gradient in packed.items():
        # Gradients that are zero but for rounding (a bias of keys) are measured by the others.
        scale = single[name].norm().clamp(min=1e-3 * largest)
        assert (gradient - single[name]).norm() <= tolerance * scale, name


def test_400_questions_about_one_scene_and_one_about_another():
    """Catches a limit on segments, and positions that grow with them beyond the context."""
    torch.manual_seed(0)
    model = toy_model().train()
    model.config.text_config.max_position_embeddings = 256
    many = [(f"How many chairs are on my left? {number}", "two") for number in range(400)]
    batch = PackCollator(toy_processor(model.config), context=256)(
        [{"images": toy_views(2), "geometry": None, "questions": many}]
    )
    assert batch["position_ids"].max() < 256 < batch["input_ids"].shape[1]
    (packed_loss, packed), (single_loss, single) = packed_and_unpacked(model, True, many, rows=200)
    assert packed_loss == pytest.approx(single_loss, rel=1e-5)
    name = "model.projector.output_proj.weight"
    torch.testing.assert_close(packed[name], single[name], rtol=1e-3, atol=1e-5 * single[name].abs().max().item())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    repo = write_toy_repo(tmp_path_factory.mktemp("repos") / "toy_scanqa", {"train": 7})
    return SceneDataset(str(repo), "train")


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("questions_per_scene", [1, 3, 16])
def test_every_question_once_per_epoch_on_any_number_of_processes(num_processes, questions_per_scene, source):
    """Catches the repeats with which accelerate completes the last batch of an epoch."""
    dataset = PackDataset([source], questions_per_scene)
    sampler = PackSampler(dataset, batch_size=2 * num_processes)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), num_processes, rank))
        for rank in range(num_processes)
    ]
    assert len({len(shard) for shard in shards}) == 1  # else a process waits for the others for ever
    packs = [pack for shard in shards for batch in shard for pack in batch]
    assert len(packs) == len(sampler)
    assert Counter(question for pack in packs for question in pack.questions) == dict.fromkeys(range(28), 1)


def test_packs_without_questions_change_nothing(source):
    """What completes the last batch runs the model and adds nothing to the loss."""
    torch.manual_seed(0)
    model = toy_model().train()
    collate = PackCollator(toy_processor(model.config))
    dataset = PackDataset([source], 4)
    example, empty = dataset[Pack(0, 0, (0, 1), 0)], dataset[Pack(0, 1, (), 0)]
    losses = []
    for examples in ([example], [example, empty], [empty]):
        losses.append(model(**collate(examples), num_items_in_batch=torch.tensor(5)).loss)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)
    assert losses[2] == 0
    losses[2].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    blind = PackDataset([source], 4, blind=True)
    assert model(**collate([blind[Pack(0, 1, (), 0)]]), num_items_in_batch=torch.tensor(5)).loss == 0


def test_texts_that_exceed_the_context_are_refused(source):
    """An answer longer than the context, and a question alone: before training where their text alone is too long."""
    collate = PackCollator(toy_processor(toy_model().config), context=64)
    collate.check_context(source)
    example = {"images": toy_views(2), "geometry": None}
    for question, answer in (("chair " * 60, "red"), ("What?", "red " * 60)):
        with pytest.raises(ValueError, match=r"A prefix of \d+, a question of .* context of 64: '"):
            collate([example | {"questions": [QUESTIONS[0], (question, answer)]}])
    source = SceneDataset(source.path, "train")
    source.qa = source.qa.map(
        lambda row, index: row | {"answers": [" ".join(["red"] * 100) if index == 9 else "red"]}, with_indices=True
    )
    with pytest.raises(
        ValueError, match=r"split train, row 9 \(question train-scene0002_00-1\): a question of .* of 101 tokens"
    ):
        collate.check_context(source)
