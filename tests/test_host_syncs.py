# SPDX-License-Identifier: Apache-2.0
"""A micro-step hands its work to the GPU without waiting for it; see `host_syncs` for how that is counted on a CPU."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from host_syncs import HostSyncs
from torch.utils._python_dispatch import _disable_current_modes
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint, write_toy_repo

from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.sft import make_trainer


BOX = [0.5, -0.2, 2.0, 0.6, 1.0, 0.4, 0.0, 0.6, -0.8]


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    return {
        stage: write_toy_repo(folder / stage, {"train": 8, "val": 2}, num_views=4, task=task)
        for stage, task in (("stage2", "scanqa"), ("stage3", "arkit_actions"))
    }


def trainer_of(config, argv, **options):
    """A trainer of a YAML's settings, on the toy model, that neither evaluates nor saves."""
    options = {
        "max_steps": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false", "logging_strategy": "no",
        "report_to": "none", "bf16": "false", "dataloader_num_workers": 0, "disable_tqdm": "true",
        "questions_per_scene": 2, "view_dropout": 0.5, "anchor_hidden_size": 32,
        "freeze_text_layers": 0, **options,
    }  # fmt: skip
    options["global_batch_size"] = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    argv = [str(word) for word in argv]
    for key, value in options.items():
        argv += [f"--{key}", str(value)]
    return make_trainer(*parse_arguments(config, argv))


def syncs_of_training(config, argv, accumulation):
    """What waits in one optimizer step of so many micro-steps, all of transformers' and ours but making the batches."""
    trainer = trainer_of(config, argv, gradient_accumulation_steps=accumulation)
    collate, masks = trainer.data_collator, []

    class Collator:
        processor = collate.processor

        def __call__(self, examples):
            with _disable_current_modes():  # in a process of its own, or at least on the host
                batch = collate(examples)
            masks.append(batch.get("view_mask"))
            return batch

    trainer.data_collator = Collator()
    with HostSyncs() as syncs:
        trainer.train()
    assert len(masks) >= accumulation and any(mask is not None for mask in masks)  # of different numbers of views
    return syncs.counts


def per_micro_step(config, argv, few=2, many=6):
    """What waits once more for each more micro-step."""
    fewer, more = (syncs_of_training(config, argv, number) for number in (few, many))
    more.subtract(fewer)
    return Counter({name: count / (many - few) for name, count in more.items() if count})


@pytest.mark.parametrize(
    ("stage", "projector", "extra"),
    [
        ("stage2", "perceiver", []),
        ("stage2", "mlp", ["--attn_implementation", "eager"]),
        ("stage2", "mlp", ["--geometry_source", "predicted", "--freeze_vision", "false"]),
        ("stage3", "mlp", []),
    ],
)
def test_a_micro_step_waits_at_most_once(stage, projector, extra, repos, tmp_path):
    """
    Catches a model or trainer that reads numbers back: 13 to 18 times per micro-step of stage 2 and 45 of stage 3, when
    this was written. Steps and logs have their own, which their micro-steps share.
    """
    checkpoint = write_toy_checkpoint(tmp_path / "checkpoint", projector, heads="predicted" in extra)
    config = next(CONFIGS.glob(f"{stage}_*.yaml"))
    argv = ["--model_name_or_path", checkpoint, "--dataset_paths", repos[stage], "--output_dir", tmp_path / "run"]
    waits = per_micro_step(config, [*argv, "--dataset_weights", "1", *extra])
    print(f"{stage} {projector} {' '.join(extra)}: {sum(waits.values())} per micro-step: {dict(waits)}")
    assert sum(waits.values()) <= 1, waits


def test_losses_are_looked_at_once_per_step(repos, tmp_path, monkeypatch):
    """Catches a look for losses that are not finite at every micro-step, each of which would wait for the GPU."""
    checkpoint = write_toy_checkpoint(tmp_path / "checkpoint")
    argv = ["--model_name_or_path", checkpoint, "--dataset_paths", repos["stage2"], "--output_dir", tmp_path / "run"]
    trainer = trainer_of(
        CONFIGS / "stage2_3d.yaml", argv, max_steps=2, gradient_accumulation_steps=3, dataset_weights=1
    )
    check, read, checked = trainer.watch.check, torch.Tensor.tolist, []

    def counted(*arguments):
        reads = []
        with monkeypatch.context() as patch, HostSyncs() as syncs:
            patch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor) or read(tensor))
            check(*arguments)
        checked.append((len(trainer.watch.losses), len(reads), syncs.total))

    monkeypatch.setattr(trainer.watch, "check", counted)
    trainer.train()
    assert checked == [(3, 1, 0)] * 2  # of 3 micro-steps one reading, of one small tensor


def toy_batch(processor, scenes):
    """A packed batch of scenes `(views, boxes)`; a box of None asks a question."""
    examples = [
        {
            "images": toy_views(views, seed),
            "geometry": toy_geometry(views, seed) if seed and views else None,
            "questions": [(f"Place an anchor on the lamp. {number}", "red") for number in range(len(boxes))],
            "anchors": boxes,
        }
        for seed, (views, boxes) in enumerate(scenes)
    ]
    return PackCollator(processor)(examples)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize(
    ("projector", "options"),
    [
        ("perceiver", {}),
        ("mlp", {"heads": True, "geometry_source": "predicted"}),
        ("mlp", {"anchor_hidden_size": 32, "numbers_from": "head"}),
    ],
)
def test_no_value_leaves_the_device(projector, options, activation_checkpointing, monkeypatch):
    """
    Catches tensors made on the host in a forward or backward pass, and values read back to it: tensors of the meta device
    have none, so whatever reads one fails.
    """
    # Here it is switched off wherever it is named, and it does not know the meta device.
    monkeypatch.setattr(torch, "autocast", lambda *args, enabled: nullcontext())
    model = toy_model(projector, **options)
    processor = toy_processor(model.config)
    boxes = [BOX if options.get("anchor_hidden_size") else None] * 2
    batch = toy_batch(processor, [(3, [*boxes, None]), (1, [None]), (2, boxes), (0, [None])])
    model = model.to("meta").train()
    if activation_checkpointing:
        model.activation_checkpointing_enable()
    batch = {key: value.to("meta") if torch.is_tensor(value) else value for key, value in batch.items()}
    batch |= {"num_items_in_batch": torch.tensor(9, device="meta"), "use_cache": False}
    for _ in range(2):
        with HostSyncs() as syncs:  # counted when constants have been made
            outputs = model(**batch)
            outputs.loss.backward()
    assert not syncs.counts
    assert outputs.loss.device.type == "meta"


def test_the_counter_counts():
    """Catches a counter that would let everything pass."""
    values = torch.tensor([1.0, 2.0, 2.0])
    with HostSyncs() as syncs:
        bool(values.sum() > 1), values.max().item()
        values[values > 1], values.nonzero(), values.unique(), values.masked_select(values > 1)
        values.to("meta"), torch.tensor([1.0]), values.new_tensor([1.0])
        values.index_put_([values > 1], torch.zeros(()))
        values[torch.arange(2)], values.clone(), values.to(torch.float64), torch.where(values > 1, values, 0.0)
    assert syncs.counts == {
        "aten._local_scalar_dense": 2,
        "aten.index by a mask": 1,
        "aten.nonzero": 1,
        "aten._unique2": 1,
        "aten.masked_select": 1,
        "copy from cpu to meta": 1,
        "aten.lift_fresh": 2,
        "aten.index_put_ by a mask": 1,
    }


@pytest.mark.parametrize("options", [{}, {"anchor_hidden_size": 32, "numbers_from": "head"}])
def test_what_comes_with_a_batch_is_what_the_model_finds(options):
    """Catches indices of other tokens: without them the model looks them up."""
    torch.manual_seed(0)
    model = toy_model(**options).train()
    processor = toy_processor(model.config)
    boxes = [BOX if options else None] * 2
    # Anchors of two scenes and of a text without images, which has a scene before it and one after it.
    batch = toy_batch(processor, [(3, [*boxes, None]), (0, [boxes[0], None]), (1, [None]), (2, boxes)])
    brought = {"label_indices", "view_counts", "image_indices", "geometry_indices"}
    brought |= {"anchor_positions", "anchors_per_scene"} if options else set()
    assert brought <= batch.keys()
    results = []
    for inputs in (batch, {key: value for key, value in batch.items() if key not in brought}):
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        results.append([outputs.loss, outputs.logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for with_indices, without in zip(*results, strict=True):
        assert torch.equal(with_indices, without)
