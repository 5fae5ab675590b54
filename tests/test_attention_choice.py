# SPDX-License-Identifier: Apache-2.0
"""Which attention implementation each part runs: what cannot express a mask that is needed is refused by name."""

from collections import Counter

import pytest
import torch
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from modeling_vggt_qwen3 import VggtQwen3Processor
from recipes.launching.settings import read_settings
from recipes.runs.arguments import CONFIGS, ModelArguments, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.sft import load_for_training


FLASH = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "another_kernel"]


@pytest.fixture
def maskless(monkeypatch):
    """An attention implementation that, like flash kernels, is given no mask; it counts the modules that call it."""
    calls = Counter()

    def attention(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None
        calls[type(module).__name__] += 1
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "maskless", attention)
    return calls


@pytest.mark.parametrize("name", FLASH)
def test_the_model_refuses_packing_without_a_mask(name):
    """Catches the packing mask dropped by implementations that have none: questions saw each other's answers."""
    model = toy_model()
    model.config.text_config._attn_implementation = name
    batch = PackCollator(toy_processor(model.config))(
        [{"images": toy_views(2), "geometry": None, "questions": [("What?", "red"), ("Where?", "there")]}]
    )
    with pytest.raises(ValueError, match=rf"'{name}' .* cannot express the mask .* sdpa, eager, flex_attention"):
        model(**batch)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--attn_implementation", "flash_attention_2"], "flash_attention_2 cannot express the mask of packed scenes"),
        (["--attn_implementation", "flash_attention_3"], "set vision_attn_implementation: flash_attention_3"),
        (["--attn_implementation", "kernels-community/flash-attn2"], "Set one of sdpa, eager, flex_attention"),
        (["--attn_implementation", "spda"], "there is no attention implementation 'spda'. Did you mean 'sdpa'?"),
        (["--vision_attn_implementation", "flash_attention"], "vision_attn_implementation: there is no attention"),
    ],
)
def test_recipes_and_launcher_refuse_before_anything_is_loaded(argv, message, capsys):
    """Catches a run that starts with an implementation that does not exist or drops the mask."""
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(CONFIGS / "stage2_3d.yaml", argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError) as error:
        read_settings("stage2", argv)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn2", "eager", "flex_attention"])
def test_the_encoder_may_have_its_own(name):
    """Catches a check that refuses what the encoder can do."""
    model_arguments, _, _ = parse_arguments(CONFIGS / "stage2_3d.yaml", ["--vision_attn_implementation", name])
    assert model_arguments.attn_implementation == "sdpa" and model_arguments.vision_attn_implementation == name


@pytest.mark.parametrize("text", ["sdpa", "eager"])
@pytest.mark.parametrize("projector", ["mlp", "perceiver"])
def test_the_recipe_key_reaches_the_encoder_alone(text, projector, maskless, tmp_path):
    """Catches a key that is parsed and not passed on, a backbone that keeps the default, and masks given to the encoder."""
    checkpoint = write_toy_checkpoint(tmp_path, projector, heads=True)
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    arguments = ModelArguments(str(checkpoint), attn_implementation=text, vision_attn_implementation="maskless")
    model = load_for_training(str(checkpoint), processor, arguments, None).train()
    assert model.config.text_config._attn_implementation == model.config._attn_implementation == text
    encoder = model.model.vision_model
    assert encoder.config._attn_implementation == encoder.backbone.config._attn_implementation == "maskless"
    examples = [
        {
            "images": toy_views(count),
            "geometry": toy_geometry(count),
            "questions": [("What?", "red"), ("Is it?", "no")],
        }
        for count in (3, 1)
    ]
    batch = PackCollator(processor)(examples)
    loss = model(**batch).loss
    pairs, layers = encoder.config.num_hidden_layers, encoder.config.backbone_num_hidden_layers
    # A frame block for all views, a global block for each number of views. The camera head keeps sdpa.
    assert maskless == {"VggtAttention": pairs * (1 + 2), "Dinov2WithRegistersAttention": layers}
    encoder.predict_geometry(batch["pixel_values"], batch["view_mask"])
    assert maskless == {"VggtAttention": pairs * (1 + 2) * 2, "Dinov2WithRegistersAttention": layers * 2}
    model.set_attn_implementation("sdpa")
    assert encoder.backbone.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(**batch).loss, loss, atol=1e-5, rtol=1e-5)
    model.set_attn_implementation({"vision_config": "maskless"})
    assert encoder.config._attn_implementation == encoder.backbone.config._attn_implementation == "maskless"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_flex_attention_of_the_text_leaves_the_rest_its_own(tmp_path):
    """Catches the encoder's implementation overwritten by the text's, and the projector in what needs a block mask."""
    checkpoint = write_toy_checkpoint(tmp_path, "perceiver")
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    arguments = ModelArguments(
        str(checkpoint), attn_implementation="flex_attention", vision_attn_implementation="eager"
    )
    model = load_for_training(str(checkpoint), processor, arguments, None)
    assert model.config.text_config._attn_implementation == "flex_attention"
    assert model.config.vision_config._attn_implementation == "eager"
    pixel_values, view_mask = torch.rand(2, 2, 3, 28, 28), torch.tensor([[True, True], [True, False]])
    features = [model.get_image_features(pixel_values, view_mask=view_mask).pooler_output]
    model.set_attn_implementation("sdpa")
    features.append(model.get_image_features(pixel_values, view_mask=view_mask).pooler_output)
    for flex, sdpa in zip(*features, strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash_attn is installed")
def test_what_is_not_installed_is_named(tmp_path):
    """Catches a traceback where a setting is to be changed."""
    checkpoint = write_toy_checkpoint(tmp_path)
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    arguments = ModelArguments(str(checkpoint), vision_attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="vision_attn_implementation: .*"):
        load_for_training(str(checkpoint), processor, arguments, None)
