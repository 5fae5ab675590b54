# SPDX-License-Identifier: Apache-2.0
"""VGGT's heads as a library: cameras, depth and points that fit together, precision, memory, many views."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import toy_config, toy_model

from data_scripts.synthetic import Settings, build_scene
from modeling_vggt_qwen3 import VggtConfig, VggtModel, modeling_vggt_depth_head
from modeling_vggt_qwen3.geometry_vggt_qwen3 import pose_encoding_to_camera, project_points, unproject_depth


@pytest.fixture
def model():
    torch.manual_seed(0)
    return toy_model(heads=True).model.vision_model


def toy_vggt_config(**kwargs) -> VggtConfig:
    return VggtConfig(**(toy_config(heads=True).vision_config.to_dict() | kwargs))


################
# What the heads return
################


@torch.no_grad()
def test_points_reproject_to_their_pixels(model):
    """Catches rows and columns swapped, a transposed rotation, and intrinsics of another image size (it is not square)."""
    model.camera_head.pose_branch.fc2.bias.data[:7] = torch.tensor([0.1, -0.2, 0.3, 0.1, 0.05, -0.1, 0.25])
    pixel_values = torch.rand(2, 3, 3, 28, 42)
    geometry = model.predict_geometry(pixel_values)
    assert geometry.pose_encoding.shape == (2, 3, 9) and geometry.world_points.shape == (2, 3, 28, 42, 3)
    assert geometry.extrinsics.shape == (2, 3, 3, 4) and geometry.intrinsics.shape == (2, 3, 3, 3)
    assert geometry.depth.shape == geometry.depth_confidence.shape == (2, 3, 28, 42)
    assert (geometry.depth > 0).all() and (geometry.depth_confidence > 1).all()
    pixels, depth = project_points(geometry.world_points.flatten(2, 3), geometry.extrinsics, geometry.intrinsics)
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(42.0), indexing="ij")
    expected = torch.stack([column, row], dim=-1).flatten(0, 1).expand_as(pixels)
    torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, geometry.depth.flatten(2), atol=1e-5, rtol=0)


def test_pose_encoding_of_a_known_camera():
    """Catches swapped fields of view, a quaternion read as (w, x, y, z) or not normalised."""
    half = 0.5**0.5
    encoding = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 5 * half, 5 * half, torch.pi / 2, 2 * torch.pi / 3])
    extrinsics, intrinsics = pose_encoding_to_camera(encoding, 100, 200)
    turn = [[0.0, -1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0]]  # a quarter turn about z
    torch.testing.assert_close(extrinsics, torch.tensor(turn))
    expected = torch.tensor([[100 / 3**0.5, 0, 100], [0, 50, 50], [0, 0, 1]])
    torch.testing.assert_close(intrinsics, expected)


@torch.no_grad()
def test_rooms_reproject_within_a_pixel():
    """
    Catches camera maths that does not fit the data's convention (poses, pixel centres). A point that one view of a room
    sees and another sees too must have there the depth, and from there back the pixel, that it came from.
    """
    checked = 0
    for index in range(4):
        scene = build_scene(Settings(4, 3, 84, 7, 0, (4, 5)), index)
        size = scene.depth.shape[-1]
        extrinsics = torch.from_numpy(scene.poses[:, :3]).double()
        intrinsics = torch.from_numpy(scene.camera).double().expand(3, 3, 3)
        depth = torch.from_numpy(scene.depth.astype("float64") / 1000)  # [V, S, S] metres, 0 for none
        ids = torch.from_numpy(scene.ids)
        points = unproject_depth(depth, extrinsics, intrinsics)
        for view in range(3):
            for other in {0, 1, 2} - {view}:
                row, column = torch.nonzero(depth[view] > 0, as_tuple=True)
                pixels, distance = project_points(points[view, row, column], extrinsics[other], intrinsics[other])
                inside = (distance > 0) & (pixels > 0).all(dim=-1) & (pixels < size - 1).all(dim=-1)
                row, column, pixels, distance = (tensor[inside] for tensor in (row, column, pixels, distance))
                # The other view's surface at that place: inverse depth is affine on a plane, so interpolate that.
                grid = (2 * pixels / (size - 1) - 1)[None, None]
                surfaces = torch.stack([1 / depth[other].clamp(min=1e-3), *(ids[other] == n for n in range(-1, 6))])
                sampled = torch.nn.functional.grid_sample(surfaces[None].double(), grid, align_corners=True)[0, :, 0]
                # Only where all four neighbours show the same object is there one surface to compare with.
                same = (sampled[1:] > 0.999).any(dim=0)
                found = sampled[1:].argmax(dim=0) - 1 == ids[view, row, column]
                visible = same & found & ((1 / sampled[0] - distance).abs() < 0.005)
                behind = same & (distance > 1 / sampled[0] + 0.1)
                in_front = same & (distance < 1 / sampled[0] - 0.1)
                # Nothing can lie in front of what a view sees (but where interpolation blurs an edge).
                assert in_front.sum() <= 0.05 * inside.sum()
                assert visible.sum() + behind.sum() >= 0.8 * same.sum()
                back = torch.zeros(int(visible.sum()), 3, dtype=torch.float64)
                back[:, 2] = 1 / sampled[0, visible]
                back[:, :2] = (pixels[visible] - intrinsics[other, :2, 2]) / intrinsics[other, 0, 0] * back[:, 2:]
                world = (back - extrinsics[other, :, 3]) @ extrinsics[other, :, :3]
                returned, _ = project_points(world, extrinsics[view], intrinsics[view])
                start = torch.stack([column, row], dim=-1)[visible]
                assert (returned - start).norm(dim=-1).max() < 1
                checked += int(visible.sum())
    assert checked > 20_000


@torch.no_grad()
def test_either_head_can_be_left_out(model):
    """Catches a head that is built or read though the config has none."""
    pixel_values = torch.rand(1, 2, 3, 28, 28)
    camera_only = VggtModel(toy_vggt_config(depth_head_layers=[])).eval()
    assert camera_only.depth_head is None
    geometry = camera_only.predict_geometry(pixel_values)
    assert geometry.extrinsics is not None and geometry.depth is None and geometry.world_points is None
    depth_only = VggtModel(toy_vggt_config(camera_head_num_layers=0)).eval()
    assert depth_only.camera_head is None
    geometry = depth_only.predict_geometry(pixel_values)
    assert geometry.depth is not None and geometry.pose_encoding is None and geometry.world_points is None
    neither = VggtModel(toy_vggt_config(camera_head_num_layers=0, depth_head_layers=[]))
    with pytest.raises(ValueError, match="neither a camera head nor a depth head"):
        neither.predict_geometry(pixel_values)


@torch.no_grad()
def test_padding_views_do_not_change_cameras_and_depth(model):
    """Catches a camera head whose views attend to padding."""
    pixel_values = torch.rand(2, 2, 3, 28, 28)
    padded = torch.cat([pixel_values, torch.rand(2, 1, 3, 28, 28)], dim=1)
    view_mask = torch.tensor([[True, True, False]] * 2)
    expected = model.predict_geometry(pixel_values)
    geometry = model.predict_geometry(padded, view_mask)
    for name in ("pose_encoding", "depth", "depth_confidence"):
        torch.testing.assert_close(geometry[name][:, :2], expected[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("num_views", [1, 100])
def test_one_view_and_a_hundred(model, num_views, monkeypatch):
    """Catches a depth head that decodes all views at once (VGGT-1B: 0.1 GB each), or that mixes up its chunks."""
    decoded = []
    decode = model.depth_head.decode
    monkeypatch.setattr(
        model.depth_head, "decode", lambda layers, *args: decoded.append(len(layers[0])) or decode(layers, *args)
    )
    pixel_values = torch.rand(1, num_views, 3, 28, 28)
    geometry = model.predict_geometry(pixel_values)
    assert sum(decoded) == num_views and max(decoded) <= 4
    assert geometry.world_points.shape == (1, num_views, 28, 28, 3) and geometry.world_points.isfinite().all()
    monkeypatch.setattr(modeling_vggt_depth_head, "VIEWS_PER_CHUNK", 1000)
    torch.testing.assert_close(geometry.depth, model.predict_geometry(pixel_values).depth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_head_num_layers": -1}, "must not be negative"),
        ({"depth_head_layers": [0, 1]}, "must name four of the encoder's 2"),
        ({"depth_head_layers": [0, 0, 1, 2]}, "must name four of the encoder's 2"),
        ({"depth_head_neck_hidden_sizes": [8, 8, 8]}, "four multiples of 4"),
        ({"depth_head_fusion_hidden_size": 12}, "multiple of 8"),
    ],
)
def test_bad_heads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_vggt_config(**changes)


################
# Precision
################


@torch.no_grad()
def test_heads_and_angles_stay_in_float32(model, tmp_path):
    """Catches heads rounded to bfloat16, on loading or by autocast, and rotary angles rounded with the weights."""
    model.save_pretrained(tmp_path)
    loaded = VggtModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    dtypes = {name.split(".")[0]: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert dtypes.pop("camera_head") == dtypes.pop("depth_head") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    pixel_values = torch.rand(1, 3, 3, 28, 42)
    seen = []
    for block in (*loaded.frame_blocks, *loaded.global_blocks):
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1][0]))
    reference = model.predict_geometry(pixel_values)
    half = loaded.predict_geometry(pixel_values)
    cos, _ = model.rotary_emb(2, 3, 3, torch.device("cpu"))
    assert len(seen) == 4 and torch.equal(seen[0], cos)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model.predict_geometry(pixel_values)
    for geometry in (half, autocast):
        for name in ("pose_encoding", "extrinsics", "depth", "world_points"):
            assert geometry[name].dtype == torch.float32
            error = (geometry[name] - reference[name]).abs().max() / reference[name].abs().max()
            assert error < 0.05, name
    # Whoever casts the whole model gets what it says, not an error.
    assert loaded.to(torch.bfloat16).predict_geometry(pixel_values).world_points.isfinite().all()
    # The heads add nothing to the encoder's rounding: given equal tokens they give equal cameras.
    tokens = torch.randn(1, 3, 9, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.decode_geometry(tokens, [tokens] * 4, (28, 42))
    outside = model.decode_geometry(tokens, [tokens] * 4, (28, 42))
    assert torch.equal(inside.pose_encoding, outside.pose_encoding) and torch.equal(inside.depth, outside.depth)


################
# Memory
################


def test_activation_checkpointing_recomputes_the_encoder(model):
    """Catches an encoder that accepts activation checkpointing and keeps all activations; the gradients are the same."""
    pixel_values = torch.rand(1, 2, 3, 28, 28)
    gradients, calls = [], []
    model.requires_grad_(True).train()
    model.global_blocks[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    for enabled in (False, True):
        if enabled:
            model.activation_checkpointing_enable()
        model.zero_grad()
        calls.clear()
        model(pixel_values).last_hidden_state.square().mean().backward()
        assert len(calls) == 1 + enabled
        gradients.append(model.frame_blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


ENCODE = """
import json, sys, time
from pathlib import Path
import torch
from modeling_vggt_qwen3 import VggtConfig, VggtModel

def memory(key):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1024

keep, side = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = VggtModel(VggtConfig(hidden_size=384, num_attention_heads=6, image_size=side, camera_head_num_layers=0,
                             depth_head_layers=[])).eval()
pixel_values = torch.rand(1, 16, 3, side, side)
with torch.inference_mode():
    model(pixel_values[:, :1, :, :56, :56])
    before, start = memory("VmRSS"), time.perf_counter()
    if keep == "all":
        outputs = model(pixel_values, output_hidden_states=True)
    else:
        outputs = model(pixel_values, hidden_state_layers=[4, 11, 17, 23])
print(json.dumps({"seconds": time.perf_counter() - start, "megabytes": memory("VmHWM") - before,
                  "process_megabytes": memory("VmHWM")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_requested_layers_take_half_the_memory_of_all():
    """Catches outputs that are kept though nobody asked for them. Each way has a process of its own."""
    # Freed memory goes back to the system at once: else what the allocator keeps (it varies by 100 MB) counts as used.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    used = {}
    for keep in ("all", "requested"):
        result = subprocess.run(
            [sys.executable, "-c", ENCODE, keep, "224"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **malloc},
        )
        assert result.returncode == 0, result.stderr[-2000:]
        used[keep] = json.loads(result.stdout)
    print(used)
    assert used["requested"]["megabytes"] <= 0.5 * used["all"]["megabytes"], used
