# SPDX-License-Identifier: Apache-2.0
"""The model as a whole: every view counts, packing is exact, checkpoints come back bit for bit."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import toy_config, toy_geometry, toy_model, toy_processor, toy_views, write_toy_checkpoint
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, LlamaConfig, Trainer, TrainingArguments
from transformers.utils.generic import TransformersKwargs

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Model
from modeling_vggt_qwen3.modeling_vggt_qwen3_inputs import VggtQwen3Inputs, VggtQwen3SceneInputs
from modeling_vggt_qwen3.packing_vggt_qwen3 import create_packed_mask
from recipes.common.loading import load_model
from recipes.training.collator import PackCollator, chat_prompt


PROJECTORS = ["mlp", "perceiver"]
QUESTION = "What color is the chair?"


def make_inputs(model, num_views=3, geometry=True, question=QUESTION, seed=0, **kwargs):
    processor = toy_processor(model.config)
    return processor(
        images=toy_views(num_views, seed),
        text=chat_prompt(processor, question, with_images=True),
        geometry=toy_geometry(num_views, seed) if geometry else None,
        return_tensors="pt",
        **kwargs,
    )


def last_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_every_view_changes_the_answer(projector_type):
    """Catches a projector that reads only the first view, or a few of the tokens."""
    model = toy_model(projector_type)
    inputs = make_inputs(model)
    reference = last_logits(model, inputs)
    for view in range(3):
        for row, column in ((0, 0), (14, 14)):  # two of the four patches
            changed = {key: value.clone() for key, value in inputs.items()}
            changed["pixel_values"][:, view, :, row : row + 14, column : column + 14] = 0.5
            assert not torch.equal(last_logits(model, changed), reference), (view, row, column)


@pytest.mark.parametrize("name", ["extrinsics", "intrinsics", "depth_histogram", "geometry_mask"])
def test_every_geometry_input_changes_the_answer(name):
    """Catches a geometry input that is accepted and then dropped."""
    model = toy_model()
    inputs = make_inputs(model)
    reference = last_logits(model, inputs)
    changed = {key: value.clone() for key, value in inputs.items()}
    changed[name][:, 1] = False if name == "geometry_mask" else changed[name][:, 1] + 0.1
    assert not torch.equal(last_logits(model, changed), reference)


def test_geometry_does_not_depend_on_the_world_frame():
    """Catches poses that are not taken relative to view 0: moving the whole room must change nothing."""
    model = toy_model()
    inputs = make_inputs(model)
    moved = {key: value.clone() for key, value in inputs.items()}
    world = torch.eye(4)
    world[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    world[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    moved["extrinsics"] = moved["extrinsics"] @ world
    torch.testing.assert_close(last_logits(model, moved), last_logits(model, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_batched_and_single_logits_agree(projector_type):
    """Catches padding (of tokens, of views, of absent geometry) that leaks into the answer."""
    model = toy_model(projector_type)
    processor = toy_processor(model.config)
    samples = [
        (toy_views(3, 1), QUESTION, toy_geometry(3, 1)),
        (toy_views(1, 2), "How many chairs are there? What is next to the red table?", None),
        ([], "Is there a lamp in the room?", None),
        (toy_views(2, 3), "Where is it?", toy_geometry(2, 3)),
    ]
    prompts = [chat_prompt(processor, question, bool(views)) for views, question, _ in samples]
    batch = processor(
        images=[views for views, _, _ in samples],
        text=prompts,
        geometry=[geometry for _, _, geometry in samples],
        padding=True,
        return_tensors="pt",
    )
    batched = last_logits(model, batch)
    for row, (prompt, (views, _, geometry)) in enumerate(zip(prompts, samples, strict=True)):
        single = processor(images=views or None, text=prompt, geometry=geometry, return_tensors="pt")
        torch.testing.assert_close(batched[row], last_logits(model, single)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("blind", [False, True])
def test_packed_loss_and_gradients_equal_unpacked(attn_implementation, blind):
    """Catches segments that see each other, positions that do not restart, labels that cross a segment's border."""
    model = toy_model()
    model.set_attn_implementation(attn_implementation)
    collate = PackCollator(toy_processor(model.config))
    scenes = [
        {
            "images": [] if blind else toy_views(views, views),
            "geometry": None if blind else toy_geometry(views, views),
            "questions": [(QUESTION, "red"), ("Where is it?", "next to the bed"), ("Is it red?", "yes")][:questions],
        }
        for views, questions in ((3, 3), (2, 1))
    ]
    unpacked = [scene | {"questions": [question]} for scene in scenes for question in scene["questions"]]
    results = []
    for batches in ([scenes], [[example] for example in unpacked]):
        model.zero_grad()
        losses = [model(**collate(examples), num_items_in_batch=torch.tensor(12)).loss for examples in batches]
        sum(losses).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((sum(losses).detach(), gradients))
    (packed_loss, packed), (single_loss, single) = results
    torch.testing.assert_close(packed_loss, single_loss, atol=1e-6, rtol=1e-6)
    assert packed and packed.keys() == single.keys()
    for name, gradient in packed.items():
        assert (gradient - single[name]).abs().max() <= 1e-4 * single[name].abs().max().clamp(min=1e-3), name


def test_flex_attention_gets_the_mask_of_sdpa():
    """
    Catches a mask that only some attention implementations understand. The mask is compared, not the attention: torch's
    flex_attention kernel for CPUs has no backward pass, and gives NaN now and then for inputs it gets right otherwise.
    """
    model = toy_model()
    segment_ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 0, 1, 1, 1, 1, 4, 4, 4]])
    masks = {}
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        masks[implementation] = create_packed_mask(model.config.text_config, torch.zeros(2, 9, 64), None, segment_ids)
    flex = torch.nn.attention.flex_attention.create_mask(masks["flex_attention"].mask_mod, 2, 1, 9, 9, device="cpu")
    assert torch.equal(flex, masks["sdpa"])
    assert flex[0, 0, 4].tolist() == [True, True, True, True, True, False, False, False, False]


def test_packing_refuses_windowed_attention():
    """A sliding window counts tokens, which are not adjacent in a packed row."""
    config = toy_config()
    config.text_config.layer_types = ["full_attention", "sliding_attention"]
    model = VggtQwen3ForConditionalGeneration(config)
    batch = PackCollator(toy_processor(config))([{"images": [], "geometry": None, "questions": [("a?", "b")]}])
    with pytest.raises(ValueError, match="full attention"):
        model(**batch)


@pytest.mark.parametrize("projector_type", PROJECTORS)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_every_trainable_parameter_gets_a_gradient(projector_type, activation_checkpointing):
    """Catches a projector outside the graph: the failure of the code this project replaces."""
    model = toy_model(projector_type).train()
    if activation_checkpointing:
        model.activation_checkpointing_enable()
    batch = PackCollator(toy_processor(model.config))(
        [
            {"images": toy_views(3), "geometry": toy_geometry(3), "questions": [(QUESTION, "red")]},
            {"images": toy_views(2), "geometry": None, "questions": [(QUESTION, "blue")]},
        ]
    )
    model(**batch).loss.backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_text_only_batch_in_training_touches_every_module():
    """Catches ranks that run different modules (ZeRO-3 hangs); the dummy view must not change the loss."""
    model = toy_model()
    batch = PackCollator(toy_processor(model.config))(
        [{"images": [], "geometry": None, "questions": [(QUESTION, "red")]}]
    )
    evaluated = model(**batch).loss
    trained = model.train()(**batch).loss
    torch.testing.assert_close(trained, evaluated, atol=1e-6, rtol=1e-6)
    trained.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_frozen_modules_stay_in_eval_mode_and_keep_no_graph():
    """Catches dropout in frozen modules, and activations kept for an encoder that does not train."""
    model = toy_model()
    model.model.vision_model.requires_grad_(False)
    model.model.language_model.layers[0].requires_grad_(False)
    model.train()
    assert not model.model.vision_model.training and not model.model.vision_model.frame_blocks[0].training
    # The layer's own flag is what transformers checkpoints activations by.
    frozen_layer = list(model.model.language_model.layers[0].modules())
    assert frozen_layer[0].training and not any(module.training for module in frozen_layer[1:])
    assert model.model.language_model.layers[1].training and model.model.projector.training
    features = model.get_image_features(torch.rand(1, 2, 3, 28, 28))
    assert not features.last_hidden_state.requires_grad and features.pooler_output[0].requires_grad


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_generate_encodes_once_and_equals_step_by_step(projector_type, monkeypatch):
    """Catches views encoded again for every token, or lost after the first."""
    model = toy_model(projector_type)
    inputs = make_inputs(model)
    calls = []
    forward = model.model.vision_model.forward
    monkeypatch.setattr(
        model.model.vision_model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    generated = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert len(calls) == 1
    current = dict(inputs)
    for _ in range(6):
        logits = last_logits(model, current)
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        current["input_ids"] = torch.cat([current["input_ids"], token], dim=1)
        current["attention_mask"] = torch.ones_like(current["input_ids"])
    assert torch.equal(generated, current["input_ids"])


def test_beam_search_expands_the_views():
    """Catches pixel values that are not repeated with their prompts."""
    model = toy_model()
    inputs = make_inputs(model)
    assert model.generate(**inputs, max_new_tokens=3, num_beams=3, do_sample=False).shape[0] == 1


def test_placeholder_mismatch_names_both_numbers():
    model = toy_model()
    inputs = make_inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"][:, :2]
    del inputs["extrinsics"], inputs["intrinsics"], inputs["depth_histogram"], inputs["geometry_mask"]
    with pytest.raises(ValueError, match="3 image placeholders.*2 image features"):
        model(**inputs)


def test_mistyped_inputs_are_refused_by_name():
    """Catches an input that is swallowed by `**`: the model would answer without it, and nobody would know."""
    model = toy_model()
    inputs = make_inputs(model)
    for call in (model, model.model):
        with pytest.raises(TypeError, match="no input 'view_masks'.*view_mask"):
            call(**inputs, view_masks=None)
    with pytest.raises(TypeError, match="no input 'intrinsic'"):
        model.get_image_features(inputs["pixel_values"], intrinsic=inputs["intrinsics"])
    with pytest.raises(ValueError, match="not used by the model: .'view_masks'"):
        model.generate(**inputs, view_masks=torch.ones(1, 3), max_new_tokens=1)


def test_signatures_have_all_inputs():
    """Catches inputs that Trainer drops as unused columns, and `generate` as typos, since `**` alone does not name them."""
    scenes = set(VggtQwen3SceneInputs.__annotations__) - set(TransformersKwargs.__annotations__)
    others = set(VggtQwen3Inputs.__annotations__) - set(TransformersKwargs.__annotations__)
    model = toy_model()
    assert scenes <= set(inspect.signature(model.model.get_image_features).parameters)
    for forward in (model.forward, model.model.forward):
        parameters = inspect.signature(forward).parameters
        assert scenes | others <= set(parameters)
        assert any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())  # num_items_in_batch
    trainer = Trainer(model, TrainingArguments(report_to="none", use_cpu=True))
    trainer._set_signature_columns_if_needed()
    assert set(make_inputs(model)) | {"labels", "segment_ids", "label_indices"} <= set(trainer._signature_columns)


def test_another_language_model():
    """Any causal LM that AutoConfig knows can take Qwen3's place."""
    config = toy_config()
    text_config = LlamaConfig(
        vocab_size=config.text_config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=None,
    )
    config = VggtQwen3Config(**(config.to_dict() | {"text_config": text_config.to_dict()}))
    model = VggtQwen3ForConditionalGeneration(config).eval()
    assert type(model.model.language_model).__name__ == "LlamaModel"
    assert last_logits(model, make_inputs(model)).isfinite().all()


# The package is installed for development; a stranger does not have it.
HIDE_PACKAGE = """
import sys
class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "modeling_vggt_qwen3":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide)
"""
FRESH_PROCESS = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
{imports}
folder = sys.argv[1]
kwargs = {{"trust_remote_code": {remote}}}
model = AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()
base = AutoModel.from_pretrained(folder, **kwargs).eval()
processor = AutoProcessor.from_pretrained(folder, **kwargs)
inputs = load_file(folder + "/inputs.safetensors")
with torch.no_grad():
    logits = model(**inputs).logits
    hidden_states = base(**inputs).last_hidden_state
ids = processor(text="<|im_start|>user", return_tensors="pt").input_ids
save_file({{"logits": logits, "hidden_states": hidden_states, "ids": ids}}, folder + "/outputs.safetensors")
print(type(model).__module__)
"""


@pytest.mark.parametrize("remote", [False, True])
def test_saved_checkpoint_gives_the_same_logits_in_a_fresh_process(remote, tmp_path):
    """Catches weights that come back changed; with `remote`, code that does not travel with the checkpoint."""
    torch.manual_seed(0)
    model = toy_model("perceiver", heads=True, geometry_source="predicted")
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    toy_processor(model.config).save_pretrained(folder)
    inputs = dict(make_inputs(model))
    save_file(inputs, folder / "inputs.safetensors")
    script = FRESH_PROCESS.format(imports="" if remote else "import modeling_vggt_qwen3", remote=remote)
    (tmp_path / "empty").mkdir()
    result = subprocess.run(
        [sys.executable, "-P", "-c", (HIDE_PACKAGE if remote else "") + script, str(folder)],
        cwd=tmp_path / "empty",
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert ("transformers_modules" in result.stdout) == remote
    outputs = load_file(folder / "outputs.safetensors")
    with torch.no_grad():
        assert torch.equal(outputs["logits"], model(**inputs).logits)
        assert torch.equal(outputs["hidden_states"], model.model(**inputs).last_hidden_state)


def test_auto_classes_are_registered(tmp_path):
    """Catches a class that has to be imported by name."""
    write_toy_checkpoint(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), VggtQwen3Model)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), VggtQwen3ForConditionalGeneration)
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "VggtQwen3Processor"


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_damaged_checkpoints_are_refused(damage, tmp_path):
    """Catches random weights in place of missing ones."""
    toy_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    key = "model.projector.input_proj.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        key = "model.projector.extra.weight"
        tensors[key] = torch.zeros(2)
    else:
        tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="model.projector"):
        load_model(str(tmp_path), "sdpa")


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = toy_model()
    model.save_pretrained(tmp_path)
    loaded = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layers": [5]}, "alternating pairs"),
        ({"vision_feature_layers": []}, "alternating pairs"),
        ({"projector_hidden_size": 30}, "projector_num_attention_heads"),
        ({"projector_type": "linear"}, "projector_type"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        VggtQwen3Config(**(toy_config().to_dict() | changes))
