# SPDX-License-Identifier: Apache-2.0
"""Image processor, processor and tiny tokenizer."""

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_config, toy_geometry, toy_processor, toy_views

from data_scripts.synthetic import CATEGORIES, COLORS
from modeling_vggt_qwen3 import VggtQwen3ImageProcessorPil
from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_tiny_tokenizer
from modeling_vggt_qwen3.geometry_vggt_qwen3 import relative_extrinsics


@pytest.fixture(scope="module", params=["mlp", "perceiver"])
def processor(request):
    return toy_processor(toy_config(request.param))


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("crop", (1296, 968), (392, 518)),  # ScanNet: round(968 * 518 / 1296 / 14) * 14
        ("crop", (968, 1296), (518, 518)),  # portrait: cut to 518 around the centre
        ("crop", (84, 84), (518, 518)),
        ("pad", (1296, 968), (518, 518)),
        ("pad", (968, 1296), (518, 518)),
    ],
)
def test_official_sizes(mode, size, expected):
    """Catches a height that is not rounded as upstream does."""
    pixels = VggtQwen3ImageProcessorPil(mode=mode)(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape[-2:]) == expected


def test_values_padding_and_transparency():
    """Catches normalisation applied twice (the encoder normalises), black padding, transparent pixels read as black."""
    image_processor = VggtQwen3ImageProcessorPil(image_size=28, mode="pad")
    pixels = image_processor(Image.new("RGBA", (28, 14), (0, 0, 255, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.min() == 1.0 and pixels.max() == 1.0
    pixels = image_processor(Image.new("RGB", (28, 14), (51, 0, 255)), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels[:, 14, 14], torch.tensor([0.2, 0.0, 1.0]))
    assert (pixels[:, :7] == 1).all() and (pixels[:, 21:] == 1).all()


def test_arrays_and_tensors_equal_images():
    image = toy_views(1, side=30)[0]
    array = np.asarray(image)
    image_processor = VggtQwen3ImageProcessorPil(image_size=28)
    expected = image_processor(image, return_tensors="pt")["pixel_values"]
    for same in (array, array.transpose(2, 0, 1), torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert torch.equal(image_processor(same, return_tensors="pt")["pixel_values"], expected)


def test_arrays_beyond_a_byte_are_refused():
    """Catches 16-bit arrays of which the lower byte alone is seen."""
    with pytest.raises(ValueError, match="hold uint8, or floats in .0, 1.; got uint16"):
        VggtQwen3ImageProcessorPil(image_size=28)(np.full((28, 28, 3), 300, np.uint16))


def test_mixed_sizes_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match="14×28 and 28×28.*mode='pad'"):
        VggtQwen3ImageProcessorPil(image_size=28)([Image.new("RGB", (28, 28)), Image.new("RGB", (28, 14))])


@pytest.mark.parametrize(
    ("mode", "size"), [("crop", (60, 90)), ("crop", (90, 60)), ("pad", (90, 60)), ("pad", (60, 90))]
)
def test_intrinsics_follow_the_pixels(mode, size):
    """Catches intrinsics left in pixels of the stored image, or off by half a pixel: a marked pixel must project to where it went."""
    processor = toy_processor(toy_config("mlp"))
    processor.image_processor.mode = mode
    image = Image.new("RGB", size)
    x, y = size[0] // 2 + 6, size[1] // 2 - 4
    image.paste((255, 255, 255), (x - 2, y - 2, x + 3, y + 3))
    geometry = toy_geometry(1)
    geometry["K"] = np.array([[[50.0, 0, 30.0], [0, 50.0, 45.0], [0, 0, 1]]])
    ray = np.linalg.inv(geometry["K"][0]) @ [x, y, 1]
    inputs = processor(images=[image], text="a", geometry=geometry, return_tensors="pt", image_size=56)
    projected = inputs["intrinsics"][0, 0].double().numpy() @ ray
    pixels = inputs["pixel_values"][0, 0].sum(0)
    if mode == "pad":
        pixels = torch.where(pixels == 3, 0, pixels)  # the padding is white as well
    rows, columns = torch.meshgrid(*[torch.arange(n) for n in pixels.shape], indexing="ij")
    centre = [(pixels * columns).sum() / pixels.sum(), (pixels * rows).sum() / pixels.sum()]
    np.testing.assert_allclose(projected[:2], centre, atol=0.25)


def test_placeholders_of_a_batch(processor):
    """Catches a count that differs from the projector's, for scenes with different numbers of views."""
    inputs = processor(
        images=[toy_views(3), toy_views(1)], text=["How many?", "Where?"], padding=True, return_tensors="pt"
    )
    image_tokens = (inputs["input_ids"] == processor.image_token_id).sum(1).tolist()
    geometry_tokens = (inputs["input_ids"] == processor.geometry_token_id).sum(1).tolist()
    assert geometry_tokens == [3, 1]
    assert image_tokens == ([6, 6] if processor.projector_type == "perceiver" else [3, 1])
    assert inputs["view_mask"].tolist() == [[True, True, True], [True, False, False]]


def test_placeholders_are_counted_as_they_are_written(processor):
    """Catches a count, for tools that plan with it, of which the processor writes more or fewer."""
    scenes = [toy_views(3), toy_views(1)]
    inputs = processor(images=scenes, text=["How many?", "Where?"], padding=True, return_tensors="pt")
    sizes = [[(view.height, view.width) for view in views] for views in scenes]
    counted = processor._get_num_multimodal_tokens([sizes[0], sizes[1][0]])
    for counts, token_id in (
        (counted.num_image_tokens, processor.image_token_id),
        (counted.num_image_patches, processor.geometry_token_id),
    ):
        assert counts == (inputs["input_ids"] == token_id).sum(1).tolist()
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_odd_grids_round_up():
    """518 pixels are 37 patches: the merged grid has 19 columns, the last of them half."""
    processor = toy_processor(toy_config("mlp"))
    assert processor.expand_views(2, 392, 518).count(processor.image_token) == 2 * 14 * 19


def test_chat_messages(processor):
    views = toy_views(2)
    messages = [
        {
            "role": "user",
            "content": [*({"type": "image", "image": view} for view in views), {"type": "text", "text": "Where?"}],
        },
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = processor.decode(inputs["input_ids"][0])
    num_image_tokens = 6 if processor.projector_type == "perceiver" else 2
    assert text == (
        "<|im_start|>user\n<|vision_start|>"
        + "<|vision_pad|>" * 2
        + "<|image_pad|>" * num_image_tokens
        + "<|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert inputs["pixel_values"].shape == (1, 2, 3, 28, 28)


def test_several_turns_show_the_views_once(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]},
        {"role": "assistant", "content": "here"},
        {"role": "user", "content": "Why?"},
    ]
    text = processor.apply_chat_template(messages)
    assert text.count("<|image_pad|>") == 1
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    assert text.endswith("<|im_start|>assistant\nhere<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": [], "text": "a"}, "empty list of views"),
        ({"images": "views", "text": ["a", "b"]}, "1 scenes for 2 texts"),
        ({"images": None, "text": "a", "geometry": {}}, "there are none"),
        ({"images": "views", "text": "<|image_pad|><|image_pad|>"}, "has 2 .* placeholders and 2 views"),
        ({"images": "views", "text": "a", "geometry": [None, None]}, "2 geometries for 1 scenes"),
        ({"images": "views", "text": "a", "geometry": "three"}, r"shape \(2, 3, 3\).*got \(3, 3, 3\)"),
        ({"images": None, "text": None}, "needs text"),
    ],
)
def test_bad_input_is_refused(processor, kwargs, message):
    kwargs = dict(kwargs)
    if kwargs["images"] == "views":
        kwargs["images"] = toy_views(2)
    if kwargs.get("geometry") == "three":
        kwargs["geometry"] = toy_geometry(3)
    with pytest.raises(ValueError, match=message):
        processor(**kwargs)


def test_relative_extrinsics_of_known_cameras():
    """Catches an inverted pose: view 1 stands 2 m to the right of view 0 and looks the same way."""
    extrinsics = torch.eye(4)[:3].repeat(2, 1, 1)
    extrinsics[0, :, 3] = torch.tensor([0.0, 0.0, 1.0])
    extrinsics[1, :, 3] = torch.tensor([-2.0, 0.0, 1.0])
    relative = relative_extrinsics(extrinsics)
    torch.testing.assert_close(relative[0], torch.eye(4)[:3])
    torch.testing.assert_close(relative[1, :, 3], torch.tensor([-2.0, 0.0, 0.0]))


def test_tiny_tokenizer_knows_the_rooms_words():
    """Catches rooms that say words which the tokenizer has to spell, and special tokens that are split."""
    tokenizer = create_tiny_tokenizer()
    for word in [*CATEGORIES, *COLORS]:
        assert len(tokenizer(word).input_ids) == 1 and len(tokenizer(f"the {word}").input_ids) == 2, word
    assert tokenizer.tokenize("<|im_start|><|image_pad|>é<|im_end|>")[:2] == ["<|im_start|>", "<|image_pad|>"]
    text = "Ünïcode, 3 chairs?\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
