# SPDX-License-Identifier: Apache-2.0
"""The anchor head: where it points, its losses, and stage 3 as a user launches it."""

import copy
import math

import pytest
import torch
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_repo

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from modeling_vggt_qwen3.geometry_vggt_qwen3 import Cameras, project_points, relative_extrinsics
from modeling_vggt_qwen3.modeling_vggt_qwen3_anchor import anchor_losses, patch_rays
from recipes.common.scenes import SceneDataset
from recipes.training.collator import PackCollator
from recipes.training.packing import Pack, PackDataset


BOX = [0.5, -0.2, 2.0, 0.6, 1.0, 0.4, 0.0, 0.6, -0.8]
INSTRUCTION = "Place an anchor on the lamp."


@pytest.fixture(scope="module")
def model_and_processor():
    torch.manual_seed(0)
    model = toy_model(anchor_hidden_size=32, numbers_from="head")
    processor = toy_processor(model.config)
    model.config.anchor_token_id = processor.tokenizer.convert_tokens_to_ids("<|anchor|>")
    return model, processor


def make_batch(processor, scenes):
    """A packed batch of scenes `(number of views, whether they have cameras, boxes)`; a box of None asks a question."""
    examples = [
        {
            "images": toy_views(views, views),
            "geometry": toy_geometry(views, views) if has_cameras else None,
            "questions": [(f"{INSTRUCTION} {number}", "red") for number in range(len(boxes))],
            "anchors": boxes,
        }
        for views, has_cameras, boxes in scenes
    ]
    return PackCollator(processor)(examples)


def toy_cameras(num_views=3, side=28):
    geometry = {key: torch.as_tensor(value)[None] for key, value in toy_geometry(num_views, 5, side).items()}
    extrinsics = torch.cat([geometry["R"], geometry["t"][..., None]], dim=-1)
    mask = torch.ones(1, num_views, dtype=torch.bool)
    return Cameras(extrinsics, geometry["K"], geometry["depth_hist"], mask, None, (side, side))


def test_rays_come_back_to_their_patches():
    """Catches rays of transposed patches, of the patches' corners, or in the world's frame instead of view 0's."""
    cameras = toy_cameras()
    origins, rays, _ = patch_rays(cameras, 14)
    points = origins + 1.7 * rays  # [1, V, P, 3] in view 0's frame
    pixels, depth = project_points(points, relative_extrinsics(cameras.extrinsics), cameras.intrinsics)
    centers = torch.tensor([[6.5, 6.5], [20.5, 6.5], [6.5, 20.5], [20.5, 20.5]])
    torch.testing.assert_close(pixels, centers.expand_as(pixels), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, torch.full_like(depth, 1.7), atol=1e-5, rtol=0)
    torch.testing.assert_close(origins[0, 0, 0], torch.zeros(3))


def losses_of(box, target, cameras, scene=0):
    attention = torch.full((1, cameras.mask.shape[1] * 4), -math.log(4 * cameras.mask.shape[1]))
    return anchor_losses(torch.tensor([box]), torch.tensor([target]), torch.tensor([scene]), attention, cameras, 14)


def test_losses_measure_what_they_say():
    """Catches a reprojection in pixels instead of pictures, in views that do not see the target, or of the target itself."""
    cameras = toy_cameras(1)
    right = losses_of(BOX, BOX, cameras)
    assert right["action_json"] == 0 and right["geometry_consistency"] == 0 and right["pointing"] > 0
    # One camera with a focal length of one picture: 0.4 m at a distance of 2 m are 0.2 widths, and 0 heights.
    moved = losses_of([BOX[0] + 0.4, *BOX[1:]], BOX, cameras)
    assert moved["geometry_consistency"].item() == pytest.approx((0.2 - 0.05) / 2, abs=1e-6)
    assert moved["action_json"].item() == pytest.approx((0.4 - 0.05) / 9, abs=1e-6)
    behind = [0.5, -0.2, -2.0, *BOX[3:]]
    for box, scene in ((behind, 0), (BOX, -1)):
        unseen = losses_of([9.0, *box[1:]], box, cameras, scene)
        assert unseen["geometry_consistency"] == 0 and unseen["pointing"] == 0 and unseen["action_json"] > 0


def test_pointing_prefers_the_patch_that_sees_the_target():
    """Catches an attention that is taught other patches, or those of views that do not see the target."""
    cameras = toy_cameras(1)
    losses = []
    for patch in range(4):
        attention = torch.full((1, 4), -10.0)
        attention[0, patch] = 0.0
        target = [[0.5, -0.5, 2.0, 0.1, 0.1, 0.1, 0, 0, -1.0]]  # in the upper right quarter
        boxes = torch.tensor(target)
        losses.append(anchor_losses(boxes, boxes, torch.tensor([0]), attention, cameras, 14)["pointing"].item())
    assert min(range(4), key=losses.__getitem__) == 1


def test_packed_losses_equal_unpacked_and_reach_every_parameter(model_and_processor):
    """Catches anchors given to other scenes' views or other questions' boxes, and parts of the head that never train."""
    model, processor = model_and_processor
    model.train()
    boxes = [[value + 0.1 * number for value in BOX] for number in range(4)]
    # A dataset's questions come between its anchors; one scene has no cameras.
    scenes = [(3, True, [boxes[0], None, boxes[1]]), (2, False, [boxes[2]]), (1, True, [None, boxes[3]])]
    model.zero_grad()
    batch = make_batch(processor, scenes)
    packed = model(**batch, num_items_in_batch=torch.tensor(12))
    packed.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.model.anchor_head.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values()), gradients.keys()
    assert packed.anchors.shape == (4, 9) and packed.losses.keys() == {
        "language",
        "action_json",
        "geometry_consistency",
        "pointing",
    }
    torch.testing.assert_close(packed.anchors[:, 6:].norm(dim=-1), torch.ones(4))
    assert (packed.anchors[:, 3:6] > 0).all()

    singles, anchors = {}, []
    for views, has_cameras, wanted in scenes:
        for number, box in enumerate(wanted):
            examples = [
                {
                    "images": toy_views(views, views),
                    "geometry": toy_geometry(views, views) if has_cameras else None,
                    "questions": [(f"{INSTRUCTION} {number}", "red")],
                    "anchors": [box],
                }
            ]
            outputs = model(
                **PackCollator(processor)(examples), num_items_in_batch=torch.tensor(12), num_anchors_in_batch=4
            )
            anchors.append(outputs.anchors)
            for name, value in outputs.losses.items():
                singles[name] = singles.get(name, 0) + value
    torch.testing.assert_close(torch.cat(anchors), packed.anchors, atol=1e-5, rtol=1e-5)
    for name, value in packed.losses.items():
        torch.testing.assert_close(value, singles[name], atol=1e-5, rtol=1e-5)
    model.eval()


def test_bfloat16_trains_as_float32(model_and_processor):
    """Catches losses that autocast computes in bfloat16, and tensors of both types that meet in one product."""
    model, processor = model_and_processor
    model.train()
    batch = make_batch(processor, [(3, True, [BOX, None]), (2, False, [BOX])])
    expected = model(**batch).losses
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    outputs.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.model.anchor_head.parameters())
    half = copy.deepcopy(model).bfloat16()
    for losses in (outputs.losses, half(**batch).losses):
        for name, value in losses.items():
            assert name == "language" or value.dtype == torch.float32
            torch.testing.assert_close(value.float(), expected[name], atol=2e-2, rtol=2e-2, msg=name)
    model.eval()


@pytest.mark.parametrize("name", ["action_json", "geometry_consistency", "pointing"])
def test_each_weight_of_a_loss_is_read(model_and_processor, name):
    """Catches `loss_heads` that change nothing."""
    model, processor = model_and_processor
    model.train()
    batch = make_batch(processor, [(3, True, [BOX])])
    weights = {"language": 0.0, "action_json": 0.0, "geometry_consistency": 0.0, "pointing": 0.0}
    outputs = model(**batch, loss_weights=weights)
    assert outputs.loss == 0 and outputs.losses[name] > 0
    outputs = model(**batch, loss_weights=weights | {name: 3.0})
    torch.testing.assert_close(outputs.loss, 3 * outputs.losses[name])
    model.eval()


def test_a_share_of_the_anchors_keeps_its_text(model_and_processor, tmp_path):
    """Catches a share that drops the anchors with their texts, the texts of questions, or whole sequences."""
    _, processor = model_and_processor
    repos = [write_toy_repo(tmp_path / task, {"train": 3}, task=task) for task in ("arkit_actions", "scanqa")]
    sources = [SceneDataset(str(path), "train") for path in repos]
    dataset = PackDataset(sources, questions_per_scene=4, anchor_text_share=0.25)
    texts = [dataset[Pack(0, 0, (0, 1, 2, 3), seed)] for seed in range(200)]
    kept = [[answer is not None for _, answer in example["questions"]] for example in texts]
    assert all(row[0] for row in kept) and 0.2 < sum(sum(row[1:]) for row in kept) / 600 < 0.3
    assert all(answer for _, answer in dataset[Pack(1, 0, (0, 1, 2, 3), 0)]["questions"])
    batch = PackCollator(processor)([texts[0]])
    assert len(batch["anchor_targets"]) == 4
    segments = batch["segment_ids"][batch["labels"] != -100].unique().tolist()
    assert segments == [number for number, has_text in enumerate(kept[0], start=1) if has_text]


def test_anchors_do_not_depend_on_the_world_frame(model_and_processor):
    """Catches boxes in the dataset's frame: nothing in photos tells it."""
    model, processor = model_and_processor
    batch = make_batch(processor, [(3, True, [BOX])])
    world = torch.eye(4)
    world[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    world[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        reference = model(**batch).anchors
        moved = model(**batch | {"extrinsics": batch["extrinsics"] @ world}).anchors
    torch.testing.assert_close(moved, reference, atol=1e-4, rtol=0)


def test_text_only_batches_run_the_head(model_and_processor):
    """Catches ranks that run other modules than the rest (ZeRO-3 would hang), and blind anchors that crash."""
    model, processor = model_and_processor
    model.train()
    model.zero_grad()
    for anchors in ([BOX], [None]):
        example = {"images": [], "geometry": None, "questions": [(INSTRUCTION, "red")], "anchors": anchors}
        outputs = model(**PackCollator(processor)([example]))
        outputs.loss.backward()
        assert outputs.loss.isfinite() and len(outputs.anchors) == (anchors != [None])
        assert all(parameter.grad is not None for parameter in model.model.anchor_head.parameters())
    model.eval()


@pytest.mark.parametrize("blind", [False, True])
def test_shared_prefix_anchors_equal_single_ones(model_and_processor, blind):
    """Catches a prefix of another scene, or padding between prefix and question that shifts positions."""
    model, processor = model_and_processor
    scenes = [(3, True), (1, True), (2, False)]
    questions = [[INSTRUCTION, "What color is the chair?"], ["Put an anchor on the middle cabinet."], [INSTRUCTION]]
    flags = [[True, False], [True], [True]]
    views = [toy_views(count, count) for count, _ in scenes]
    geometry = [toy_geometry(count, count) if has else None for count, has in scenes]
    arguments = {} if blind else {"images": views, "geometry": geometry}
    inputs, ids = processor.prepare_questions(questions, **arguments, anchors=flags)
    answers, anchors = model.answer_questions(inputs, ids, return_anchors=True, max_new_tokens=3, do_sample=False)
    assert [[box is not None for box in boxes] for boxes in anchors] == flags
    assert [[len(tokens) > 0 for tokens in row] for row in answers] == [[True, True], [True], [True]]
    for scene, asked in enumerate(questions):
        for number, question in enumerate(asked):
            if not flags[scene][number]:
                continue
            content = [{"type": "image"}] * (not blind) + [{"type": "text", "text": question}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            single = processor(
                images=None if blind else views[scene],
                text=prompt + processor.anchor_token,
                geometry=None if blind else geometry[scene],
                return_tensors="pt",
            )
            with torch.no_grad():
                expected = model(**single).anchors[0]
            torch.testing.assert_close(anchors[scene][number], expected, atol=1e-5, rtol=1e-5)


def test_saved_head_gives_the_same_anchors(model_and_processor, tmp_path):
    """Catches a head that is not saved, or a token whose id is beyond the vocabulary of the language model."""
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    again = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = make_batch(processor, [(2, True, [BOX])])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).anchors, model(**batch).anchors, atol=1e-5, rtol=1e-5)
    # As of a text model whose table has no spare row: the head's own embedding stands for the token.
    last = model.config.text_config.vocab_size
    batch["input_ids"][batch["input_ids"] == model.config.anchor_token_id] = last
    again.config.anchor_token_id = last
    with torch.no_grad():
        expected = model(**make_batch(processor, [(2, True, [BOX])])).anchors
        torch.testing.assert_close(again(**batch).anchors, expected, atol=1e-5, rtol=1e-5)


def test_numbers_from_head_needs_a_head():
    """Catches a checkpoint that claims numbers it cannot predict."""
    with pytest.raises(ValueError, match="anchor_hidden_size is 0"):
        toy_model(numbers_from="head").config.check_anchor_head()
