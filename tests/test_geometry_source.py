# SPDX-License-Identifier: Apache-2.0
"""Where the geometry tokens come from: the dataset's cameras, VGGT's camera head, or nowhere."""

import pytest
import torch
from toys import toy_config, toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint, write_toy_repo

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration
from modeling_vggt_qwen3.geometry_vggt_qwen3 import Cameras, prediction_to_geometry_inputs
from recipes.common.loading import load_model
from recipes.runs.arguments import ModelArguments, parse_arguments
from recipes.training.collator import PackCollator, chat_prompt
from recipes.training.sft import make_trainer, save
from recipes.training.trainer import freeze_and_adapt


QUESTION = "What color is the chair?"
GEOMETRY_INPUTS = ("extrinsics", "intrinsics", "depth_histogram", "geometry_mask")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return toy_model(heads=True)


def make_inputs(model, views=(3,), geometry=(True,)):
    """A left-padded batch of scenes with `views[i]` views, with or without cameras of their own."""
    processor = toy_processor(model.config)
    return dict(
        processor(
            images=[toy_views(num_views, seed) for seed, num_views in enumerate(views)],
            text=[chat_prompt(processor, QUESTION, with_images=True)] * len(views),
            geometry=[
                toy_geometry(num_views, seed) if given else None
                for seed, (num_views, given) in enumerate(zip(views, geometry, strict=True))
            ],
            padding=True,
            return_tensors="pt",
        )
    )


@torch.no_grad()
def last_logits(model, inputs, source):
    model.config.geometry_source = source
    return model(**inputs).logits[:, -1]


def test_each_source_is_what_it_says(model):
    """Catches a source that is stored and never read, or that leaks the dataset's cameras."""
    with_cameras, without = make_inputs(model), make_inputs(model, geometry=(False,))
    logits = {source: last_logits(model, with_cameras, source) for source in ("dataset", "predicted", "none")}
    assert len({tuple(values[0].tolist()) for values in logits.values()}) == 3
    for source in ("predicted", "none"):
        assert torch.equal(logits[source], last_logits(model, without, source))
    # Without cameras, `dataset` has nothing but the null token.
    assert torch.equal(logits["none"], last_logits(model, without, "dataset"))


def test_predicted_geometry_is_that_of_the_heads(model):
    """Catches layers mixed up between projector and depth head, and a token that is not made of the prediction."""
    inputs = make_inputs(model, geometry=(False,))
    predicted = last_logits(model, inputs, "predicted")
    with torch.no_grad():
        geometry = model.model.vision_model.predict_geometry(inputs["pixel_values"])
    cameras = prediction_to_geometry_inputs(geometry.extrinsics, geometry.intrinsics, geometry.depth, None, 16)
    assert cameras[-1].all()
    given = inputs | dict(zip(GEOMETRY_INPUTS, cameras, strict=True))
    torch.testing.assert_close(last_logits(model, given, "dataset"), predicted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", ["dataset", "predicted", "none"])
def test_mixed_batches_equal_single_scenes(model, source):
    """Catches scenes that get each other's cameras, or a mean depth that counts padding or another scene."""
    batch = make_inputs(model, views=(3, 2, 1), geometry=(True, False, True))
    assert "view_mask" in batch
    logits = last_logits(model, batch, source)
    for row, (num_views, given) in enumerate(((3, True), (2, False), (1, True))):
        processor = toy_processor(model.config)
        single = processor(
            images=toy_views(num_views, row),
            text=chat_prompt(processor, QUESTION, with_images=True),
            geometry=toy_geometry(num_views, row) if given else None,
            return_tensors="pt",
        )
        torch.testing.assert_close(logits[row], last_logits(model, single, source)[0], atol=1e-4, rtol=1e-4)


def test_lengths_are_in_units_of_the_mean_depth():
    """Catches tokens that depend on the scale of a prediction, which photos do not determine; and null views."""
    torch.manual_seed(0)
    extrinsics = torch.cat([torch.eye(3).expand(1, 4, 3, 3), torch.randn(1, 4, 3, 1)], dim=-1)
    intrinsics = torch.eye(3).expand(1, 4, 3, 3).clone()
    depth = torch.rand(1, 4, 8, 8) + 0.5
    view_mask = torch.tensor([[True, True, True, False]])
    cameras = prediction_to_geometry_inputs(extrinsics, intrinsics, depth, view_mask, 16)
    expected = extrinsics[0, :3, :, 3] / depth[0, :3].mean()
    torch.testing.assert_close(cameras[0][0, :3, :, 3], expected)
    assert cameras[2][0, :3].sum(-1).allclose(torch.ones(3)) and cameras[3].tolist() == view_mask.tolist()
    larger = torch.cat([extrinsics[..., :3], 7 * extrinsics[..., 3:]], dim=-1)
    for one, other in zip(cameras, prediction_to_geometry_inputs(larger, intrinsics, 7 * depth, view_mask, 16)):
        torch.testing.assert_close(one, other)
    # Without depth: VGGT's own unit, and no histogram.
    plain = prediction_to_geometry_inputs(extrinsics, intrinsics, None, None, 16)
    assert torch.equal(plain[0], extrinsics) and not plain[2].any() and plain[3].all()
    # A view without a field of view is no camera; without view 0 there is nothing to be relative to.
    intrinsics[0, 1, 0, 0] = torch.inf
    assert prediction_to_geometry_inputs(extrinsics, intrinsics, depth, None, 16)[3].tolist() == [
        [True, False, True, True]
    ]
    intrinsics[0, 0, 1, 1] = -1.0
    nothing = prediction_to_geometry_inputs(extrinsics, intrinsics, depth, None, 16)
    assert not any(tensor.any() for tensor in nothing)


def test_packed_cameras_come_back(model):
    """Catches cameras that a feature store holds in another layout than the model reads, or a view that loses its mask."""
    view_mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        features, cameras = model.model.encode_scenes(torch.rand(1, 3, 3, 28, 28), "predicted", view_mask=view_mask)
        packed = cameras.pack()
        stored = features.unflatten(2, (2, 2))
        again, back = model.model.encode_scenes(
            None, "predicted", vision_features=stored, camera_encodings=packed, view_mask=view_mask
        )
    assert packed.shape == (1, 3, Cameras.packed_size(model.config.geometry_num_depth_bins))
    assert torch.equal(again, features) and back.mask.tolist() == cameras.mask.tolist() == view_mask.tolist()
    assert back.image_size == cameras.image_size == (28, 28)
    for name in ("extrinsics", "intrinsics", "depth_histogram"):
        assert torch.equal(getattr(back, name), getattr(cameras, name))


def test_generation_uses_predicted_cameras(model):
    """Catches a decoding path that passes pixels but loses the source."""
    model.config.geometry_source = "predicted"
    inputs = make_inputs(model, geometry=(False,))
    generated = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    current = dict(inputs)
    for _ in range(4):
        logits = last_logits(model, current, "predicted")
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        current["input_ids"] = torch.cat([current["input_ids"], logits.argmax(-1, keepdim=True)], dim=1)
        current["attention_mask"] = torch.ones_like(current["input_ids"])
    assert torch.equal(generated, current["input_ids"])


@pytest.mark.parametrize("lost_view", [False, True])
def test_packed_training_on_predicted_cameras(model, lost_view):
    """
    Catches a head that counts as trained though no loss reaches it (DDP stops there), a gradient through the prediction,
    a prediction without a field of view whose gradient is not a number, and a text-only batch that skips modules.
    """
    model.config.geometry_source = "predicted"
    heads = model.model.vision_model.camera_head, model.model.vision_model.depth_head
    if lost_view:
        heads[0].pose_branch.fc2.bias.data[7:] = -10.0
    model.train()
    collate = PackCollator(toy_processor(model.config))
    questions = [(QUESTION, "red"), ("Where is it?", "bed")]
    scenes = [
        {"images": toy_views(3), "geometry": toy_geometry(3), "questions": questions},
        {"images": toy_views(2, seed=1), "geometry": None, "questions": questions},
    ]
    for batch in (collate(scenes), collate([{"images": [], "geometry": None, "questions": questions}])):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        assert loss.isfinite()
        for name, parameter in model.named_parameters():
            is_head = "camera_head" in name or "depth_head" in name
            assert parameter.requires_grad != (is_head or "mask_token" in name), name
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    packed = model(**collate(scenes)).loss
    singles = [model(**collate([scene | {"questions": [pair]}])).loss for scene in scenes for pair in questions]
    counts = [
        (collate([scene | {"questions": [pair]}])["labels"] != -100).sum() for scene in scenes for pair in questions
    ]
    expected = sum(loss * count for loss, count in zip(singles, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)


def test_lora_on_an_unfrozen_encoder_leaves_the_heads_out():
    model = freeze_and_adapt(
        toy_model(heads=True), ModelArguments(model_name_or_path="", freeze_vision=False, lora_r=2)
    )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("frame_blocks" in name for name in trained)
    assert not any("camera_head" in name or "depth_head" in name for name in trained)


def test_a_source_that_cannot_be_is_refused(tmp_path):
    """Catches a typo, or a camera head that is not there, found out after hours or never."""
    values = toy_config().to_dict()
    with pytest.raises(Exception, match="geometry_source"):
        VggtQwen3Config(**(values | {"geometry_source": "guessed"}))
    with pytest.raises(ValueError, match="needs an encoder with a camera head"):
        VggtQwen3Config(**(values | {"geometry_source": "predicted"}))
    VggtQwen3ForConditionalGeneration(toy_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs an encoder with a camera head"):
        load_model(str(tmp_path), "sdpa", "predicted")


def test_the_recipe_key_reaches_the_model_and_its_checkpoint(tmp_path, capsys):
    """Catches a YAML key that is parsed and dropped, or lost where an adapter is merged into the base."""
    write_toy_checkpoint(tmp_path / "base", heads=True)
    repo = write_toy_repo(tmp_path / "repo", {"train": 2, "val": 1})
    text = (
        f"model_name_or_path: {tmp_path / 'base'}\noutput_dir: {tmp_path / 'output'}\ndataset_paths: [{repo}]\n"
        "geometry_source: predicted\nlora_r: 2\nreport_to: none\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(text)
    arguments = parse_arguments(config, [])
    trainer = make_trainer(*arguments)
    trained = trainer.model.base_model.model
    assert trained.config.geometry_source == trained.model.config.geometry_source == "predicted"
    batch = trainer.data_collator([trainer.train_dataset[pack] for pack in list(trainer._get_train_sampler())[:2]])
    assert trainer.model(**batch).loss.isfinite()
    save(trainer, arguments[0])
    assert load_model(str(tmp_path / "output"), "sdpa").config.geometry_source == "predicted"
    # Unsaid, it is the checkpoint's.
    config.write_text(text.replace("geometry_source: predicted\n", ""))
    assert parse_arguments(config, [])[1].geometry_source is None
    config.write_text(text.replace("predicted", "guessed"))
    with pytest.raises(SystemExit):
        parse_arguments(config, [])
    assert "guessed" in capsys.readouterr().err
