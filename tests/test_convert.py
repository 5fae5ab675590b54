# SPDX-License-Identifier: Apache-2.0
"""The converter: a VGGT under upstream's names and a Qwen3, both of toy width, become one checkpoint."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from chat_templates import DIRECT
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from toys import toy_views
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM, Qwen3Model, set_seed

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Processor, convert_vggt_state_dict
from modeling_vggt_qwen3 import convert_vggt_qwen3_to_hf as converter
from modeling_vggt_qwen3.conversion import weights as convert_weights
from modeling_vggt_qwen3.conversion.card import find_licence
from modeling_vggt_qwen3.conversion.sources import find_source
from recipes.publishing.checkpoint import CODE


FIXTURES = Path(__file__).parent / "fixtures" / "vggt"
OPTIONS = {
    "projector_type": "mlp",
    "vision_feature_layers": [1, 3],
    "depth_head_layers": [0, 1, 2, 3],
    "vggt_licence": "cc-by-nc-4.0",
}


@pytest.fixture(scope="module")
def upstream():
    """The golden network's weights, and what a release has that is not used here."""
    weights = load_file(FIXTURES / "tiny_weights.safetensors")
    return weights | {"point_head.norm.weight": torch.ones(64), "track_head.tracker.query_ref_token": torch.ones(1, 2)}


def write_text_model(folder: Path, tie: bool = True, vocab_size: int | None = None) -> Path:
    set_seed(1)
    tokenizer = converter.create_tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=vocab_size or len(tokenizer) + 5,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        layer_types=["full_attention"] * 2,
        dtype="bfloat16",
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, top_k=7, do_sample=True)
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer.chat_template = DIRECT
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("text") / "qwen3")


@pytest.fixture(scope="module")
def vggt(upstream, tmp_path_factory):
    file = tmp_path_factory.mktemp("vggt") / "model.safetensors"
    save_file(upstream, file)
    return file


@pytest.fixture(scope="module")
def converted(vggt, text, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "model"
    converter.convert_released(str(vggt), str(text), output, **OPTIONS)
    return output


def text_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_tensor_is_the_released_one(dtype, upstream, vggt, text, converted, tmp_path):
    """
    Catches a mixed-up qkv, a tensor filled with random numbers, heads that lost precision, a part in another dtype, and
    sizes with which the same tensors compute something else than the original network.
    """
    output = converted
    if dtype == "float32":
        output = tmp_path / "model"
        converter.convert_released(str(vggt), str(text), output, dtype="float32", **OPTIONS)
    model, report = VggtQwen3ForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    used = {key: value for key, value in upstream.items() if not key.startswith(("point_head", "track_head"))}
    expected = convert_vggt_state_dict(used)
    actual = model.model.vision_model.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        is_head = name.startswith(("camera_head.", "depth_head."))
        assert torch.equal(actual[name], tensor if is_head else tensor.to(getattr(torch, dtype))), name
    released = text_weights(text)
    for name, tensor in model.model.language_model.state_dict().items():
        assert torch.equal(tensor, released[f"model.{name}"].to(getattr(torch, dtype))), name
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.text_config.dtype == model.config.vision_config.dtype == getattr(torch, dtype)
    if dtype == "float32":
        golden = load_file(FIXTURES / "tiny_io.safetensors")
        with torch.no_grad():
            geometry = model.model.vision_model.eval().predict_geometry(golden["images"])
        for actual, expected in (
            (geometry.extrinsics, golden["extrinsics"]),
            (geometry.depth, golden["depth"].squeeze(-1)),
        ):
            assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_sizes_are_inferred(converted):
    """Catches a size taken from the released model's defaults."""
    golden = json.loads((FIXTURES / "tiny_config.json").read_text())
    config = json.loads((converted / "config.json").read_text())["vision_config"]
    for name, upstream_name in {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_size": "hidden_size",
        "num_attention_heads": "num_attention_heads",
        "num_hidden_layers": "depth",
        "backbone_num_hidden_layers": "backbone_depth",
        "mlp_ratio": "mlp_ratio",
        "num_register_tokens": "num_register_tokens",
        "camera_head_num_layers": "camera_head_trunk_depth",
        "depth_head_neck_hidden_sizes": "depth_head_out_channels",
        "depth_head_fusion_hidden_size": "depth_head_features",
    }.items():
        assert config[name] == golden[upstream_name], name


def shard(weights: dict, folder: Path) -> Path:
    folder.mkdir()
    names = sorted(weights)
    weight_map = {}
    for part in range(3):
        file = f"model-{part + 1:05d}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[part::3]}, folder / file)
        weight_map |= dict.fromkeys(names[part::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("form", ["sharded", "bare .pt", "model", "state_dict"])
def test_every_form_of_input_gives_the_same_weights(form, upstream, text, converted, tmp_path):
    if form == "sharded":
        path = shard(upstream, tmp_path / "sharded")
    else:
        path = tmp_path / ("vggt.bin" if form == "state_dict" else "vggt.pt")
        torch.save(upstream if form == "bare .pt" else {form: upstream, "epoch": 3}, path)
    converter.convert_released(str(path), str(text), tmp_path / "model", **OPTIONS)
    names = sorted(file.name for file in converted.glob("model*"))
    assert sorted(file.name for file in (tmp_path / "model").glob("model*")) == names
    for name in names:
        assert (tmp_path / "model" / name).read_bytes() == (converted / name).read_bytes()


def test_a_vggt_without_heads(upstream, text, tmp_path):
    """Catches heads that are made up where the checkpoint has none."""
    path = tmp_path / "vggt.safetensors"
    save_file({key: value for key, value in upstream.items() if key.startswith("aggregator.")}, path)
    converter.convert_released(str(path), str(text), tmp_path / "model", **OPTIONS)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert not [name for name, _ in model.named_parameters() if "_head." in name and "lm_head" not in name]


def test_a_head_that_is_not_tied_is_kept(vggt, tmp_path):
    """Catches a language modeling head replaced by the embedding, or left random."""
    text = write_text_model(tmp_path / "untied", tie=False)
    converter.convert_released(str(vggt), str(text), tmp_path / "model", **OPTIONS)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(model.lm_head.weight, text_weights(text)["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)


def test_new_modules_start_like_a_model_from_scratch(vggt, text, converted, tmp_path):
    """Catches uninitialised memory, PyTorch's default initialisation, and a seed that does nothing."""
    converter.convert_released(str(vggt), str(text), tmp_path / "model", seed=1, **OPTIONS)
    first, second = (
        VggtQwen3ForConditionalGeneration.from_pretrained(folder).model for folder in (converted, tmp_path / "model")
    )
    for module, other in ((first.projector, second.projector), (first.geometry_encoder, second.geometry_encoder)):
        assert abs(module.output_proj.weight.std().item() - 0.02) < 0.002
        assert not module.output_proj.bias.any()
        assert not torch.equal(module.output_proj.weight, other.output_proj.weight)
    assert (first.projector.input_norm.weight == 1).all()


FRESH_PROCESS = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
content = [{"type": "image", "image": Image.open(path)} for path in sys.argv[2:]]
messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What color is the chair?"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert output.shape[1] > inputs["input_ids"].shape[1]
assert model.generation_config.top_k == 7
assert "modeling_vggt_qwen3" not in sys.modules
"""


def test_generates_in_a_fresh_process(converted, tmp_path):
    """Catches code, template, processor or generation config that did not travel with the checkpoint."""
    views = []
    for number, view in enumerate(toy_views(2, side=56)):
        views.append(str(tmp_path / f"{number}.png"))
        view.save(views[-1])
    result = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(converted), *views],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_processor_belongs_to_the_model(converted):
    """Catches the text model's own chat template, which would drop the images."""
    processor = VggtQwen3Processor.from_pretrained(converted)
    assert processor.chat_template == converter.CHAT_TEMPLATE
    assert AutoTokenizer.from_pretrained(converted).chat_template == converter.CHAT_TEMPLATE
    assert processor.image_processor.image_size == 56
    assert not list(converted.glob("convert_*"))
    assert {str(path.relative_to(converted)) for path in converted.rglob("*.py")} <= set(CODE)


def test_only_one_shard_is_in_memory(vggt, text, converted, tmp_path, monkeypatch):
    """Catches a conversion that holds the whole model, and an index that does not name every tensor."""
    sizes = []

    def save_and_measure(tensors, file, metadata):
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        # Each tensor has memory of its own: no view keeps a whole input file mapped.
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())
        save_file(tensors, file, metadata)

    monkeypatch.setattr(convert_weights, "save_file", save_and_measure)
    monkeypatch.setattr(convert_weights, "MAX_SHARD_SIZE", 300_000)
    converter.convert_released(str(vggt), str(text), tmp_path / "model", **OPTIONS)
    largest = max(tensor.nbytes for tensor in load_file(converted / "model.safetensors").values())
    assert len(sizes) > 5 and max(sizes) <= max(300_000, largest)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path / "model")
    reference = VggtQwen3ForConditionalGeneration.from_pretrained(converted)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_command_says_what_it_left_out_and_made_up(vggt, text, tmp_path, monkeypatch, capsys):
    arguments = ["convert", "--vggt", str(vggt), "--text", str(text), "--output", str(tmp_path / "model")]
    arguments += [
        "--projector-type",
        "mlp",
        "--vision-feature-layers",
        "1",
        "3",
        "--depth-head-layers",
        *"0123",
        "--vggt-licence",
        "cc-by-nc-4.0",
    ]
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    converter.main()
    printed = capsys.readouterr().out
    assert (
        "Left out of VGGT, because nothing here uses them: point_head (1 tensors) and track_head (1 tensors)"
        in printed
    )
    assert "New, with random parameters (seed 0): projector (" in printed and "geometry_encoder (" in printed
    with pytest.raises(SystemExit, match="exists and is not empty"):
        converter.main()


# Licences and the manifest


def test_manifest_names_every_input(vggt, text, converted):
    manifest = json.loads((converted / "conversion_manifest.json").read_text())
    (entry,) = manifest["vggt"]["files"]
    assert entry == {
        "name": "model.safetensors",
        "size": vggt.stat().st_size,
        "sha256": hashlib.sha256(vggt.read_bytes()).hexdigest(),
    }
    names = {entry["name"] for entry in manifest["text"]["files"]}
    assert names >= {file.name for file in text.glob("*.safetensors*")} | {"config.json", "tokenizer.json"}
    for file in [*converted.glob("*.json"), converted / "README.md"]:
        for folder in (vggt.parent, text.parent, converted.parent):
            assert str(folder) not in file.read_text(), f"{file.name} names a path of this machine"


@pytest.mark.parametrize(
    ("file", "card", "stated", "licence", "says"),
    [
        ("model.pt", None, "cc-by-nc-4.0", "cc-by-nc-4.0", "non-commercial use only"),
        (
            "model.pt",
            None,
            "vggt-aup-license",
            "other",
            "(https://huggingface.co/facebook/VGGT-1B-Commercial) (as stated",
        ),
        ("model.pt", "license: cc-by-nc-4.0", None, "cc-by-nc-4.0", "non-commercial use only"),
        ("vggt_1B_commercial.pt", None, None, "other", "vggt-aup-license"),
        ("vggt_1B_commercial.pt", None, "vggt-aup-license", "other", "(the name vggt_1B_commercial.pt)"),
        # As on the release's own card, whose link is relative to its repo.
        (
            "model.pt",
            "license: other\nlicense_name: vggt-aup-license\nlicense_link: LICENSE",
            None,
            "other",
            "[vggt-aup-license](https://huggingface.co/facebook/VGGT-1B-Commercial)",
        ),
        (
            "model.pt",
            "license: other\nlicense_name: my-terms\nlicense_link: https://a.b/c",
            None,
            "other",
            "[my-terms](",
        ),
        ("model.pt", "license: apache-2.0", None, "apache-2.0", "the licence of the whole"),
    ],
)
def test_card_carries_both_licences(file, card, stated, licence, says, upstream, text, tmp_path):
    """Catches a non-commercial VGGT in a checkpoint whose card says that anything goes."""
    (tmp_path / "source").mkdir()
    torch.save(upstream, tmp_path / "source" / file)
    if card is not None:
        (tmp_path / "source" / "README.md").write_text(f"---\n{card}\n---\n")
    options = OPTIONS | {"vggt_licence": stated}
    converter.convert_released(str(tmp_path / "source" / file), str(text), tmp_path / "model", **options)
    written = ModelCard.load(tmp_path / "model" / "README.md")
    assert written.data.license == licence
    assert says in written.text and "qwen3: apache-2.0" in written.text
    assert ("non-commercial use only" in written.text) == ("nc" in licence)
    assert (tmp_path / "model" / "LICENSE-text").read_text() == "Apache License\n"


@pytest.mark.parametrize("card", [None, "# VGGT\n\nCode of the network.\n"], ids=["none", "of the code"])
def test_folder_of_the_commercial_file_is_known_by_it(card, tmp_path):
    """Catches the commercial release taken for the other one because its folder has another name, or a README of code."""
    (tmp_path / "vggt_1B_commercial.pt").touch()
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    licence = find_licence(find_source(str(tmp_path)), "vggt")
    assert licence.identifier == "vggt-aup-license" and not licence.non_commercial


def test_licence_that_nothing_tells_is_asked_for(upstream, text, tmp_path):
    """Catches a guess: the two releases of VGGT have the same tensors, and one of them is for non-commercial use."""
    torch.save(upstream, tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", tmp_path):
        refuse(tmp_path, path, text, "Set --vggt-licence vggt-aup-license if .* cc-by-nc-4.0 if", vggt_licence=None)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    refuse(tmp_path, tmp_path, text, "says cc-by-nc-4.0. Leave the option out", vggt_licence="vggt-aup-license")


def test_repo_of_the_hub_is_named_with_its_revision(vggt, text, tmp_path, monkeypatch):
    """Catches a card that does not name its base models, and a cached repo that is not found without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    revision = "0123456789" * 4
    for name, folder, card in (
        ("VGGT-1B", vggt.parent, "license: cc-by-nc-4.0"),
        ("Text", text, "license: apache-2.0"),
    ):
        repo = tmp_path / "cache" / f"models--facebook--{name}"
        shutil.copytree(folder, repo / "snapshots" / revision)
        (repo / "snapshots" / revision / "README.md").write_text(f"---\n{card}\n---\n")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(revision)
    converter.convert_released("facebook/VGGT-1B", "facebook/Text", tmp_path / "model", **OPTIONS)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.base_model == ["facebook/VGGT-1B", "facebook/Text"]
    assert card.data.license == "cc-by-nc-4.0" and "because facebook/VGGT-1B is" in card.text
    manifest = json.loads((tmp_path / "model" / "conversion_manifest.json").read_text())
    assert [manifest[part]["revision"] for part in ("vggt", "text")] == [revision] * 2


# Bad input


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def refuse(tmp_path, vggt, text, match, error=ValueError, **kwargs):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=match):
        converter.convert_released(str(vggt), str(text), tmp_path / "model", **OPTIONS | kwargs)
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_file_is_refused(suffix, share, upstream, vggt, text, tmp_path):
    path = tmp_path / f"vggt{suffix}"
    if suffix == ".pt":
        torch.save(upstream, path)
    else:
        shutil.copyfile(vggt, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(tmp_path, path, text, f"vggt{suffix} is truncated")


def test_changed_bytes_are_noticed(upstream, text, tmp_path):
    """Catches a file whose weights were changed in place, which loads without complaint."""
    path = tmp_path / "vggt.pt"
    torch.save(upstream, path)
    content = bytearray(path.read_bytes())
    needle = upstream["aggregator.frame_blocks.0.attn.qkv.weight"].numpy().tobytes()
    position = bytes(content).index(needle)
    content[position + 100] ^= 1
    path.write_bytes(content)
    refuse(tmp_path, path, text, "vggt.pt was damaged or changed: the checksum of its entry")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_is_never_run(writer, upstream, text, tmp_path):
    path, marker = tmp_path / "vggt.pt", tmp_path / "ran"
    content = upstream | {"aggregator.extra": Code(str(marker))}
    if writer == "torch":
        torch.save(content, path)
        refuse(tmp_path, path, text, "vggt.pt holds Python objects that could run code")
    else:
        path.write_bytes(pickle.dumps(content))
        refuse(tmp_path, path, text, "not in the zip format of torch.save")
    assert not marker.exists()


KEY = "aggregator.global_blocks.2.attn.proj.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({KEY: None}, r"1 missing .*global_blocks\.2\.attn\.proj\.weight"),
        ({"aggregator.patch_embed.blocks.1.attn.qkv.bias": None}, r"3 missing .*layer\.1.*q_proj.*k_proj.*v_proj"),
        ({"camera_head.trunk.1.norm1.bias": None}, r"1 missing .*camera_head\.trunk\.1\.norm1\.bias"),
        (
            {"segment_head.a": torch.ones(1), "aggregator.frame_blocks.0.other": torch.ones(1)},
            r"2 unexpected: aggregator\.frame_blocks\.0\.other, segment_head\.a",
        ),
        ({KEY: torch.ones(32, 31)}, r"1 of another shape: .*proj\.weight \(\[32, 31\] instead of \[32, 32\]\)"),
        ({KEY: torch.ones(32, 32, dtype=torch.int8)}, "has type .*weights must be one of"),
        ({KEY: torch.full((32, 32), float("nan"))}, r"proj\.weight of .* not finite"),
        ({"aggregator.camera_token": None}, "has no aggregator.camera_token: it is not a VGGT"),
        ({"aggregator.camera_token": torch.ones(1, 2, 1, 40)}, "no multiple of"),
        ({"aggregator.patch_embed.pos_embed": torch.ones(1, 18, 32)}, "17 patches, which make no square"),
        ({"epoch": 3}, "'epoch' is a int, not a tensor"),
    ],
)
def test_wrong_tensors_are_refused_by_name(change, match, upstream, text, tmp_path):
    weights = {key: value for key, value in (upstream | change).items() if value is not None}
    torch.save(weights, tmp_path / "vggt.pt")
    refuse(tmp_path, tmp_path / "vggt.pt", text, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda index: index["weight_map"].update({KEY: "../secret.safetensors"}), "not a .safetensors file of its"),
        (lambda index: index["weight_map"].update({KEY: "model-9.safetensors"}), "names model-9.safetensors, not in"),
        (lambda index: index["weight_map"].pop(KEY), f"does not agree with its files about {KEY}"),
        (lambda index: index["weight_map"].update({"a.b": "model-00001-of-00003.safetensors"}), "about a.b"),
        (lambda index: index.clear(), "no weight_map"),
    ],
)
def test_index_that_lies_is_refused(change, match, upstream, text, tmp_path):
    index = shard(upstream, tmp_path / "sharded") / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    refuse(tmp_path, tmp_path / "sharded", text, match)


def test_paths_that_hold_no_model_are_refused(vggt, text, tmp_path):
    refuse(tmp_path, tmp_path / "none.pt", text, "none.pt does not exist", FileNotFoundError)
    refuse(
        tmp_path, "somebody/some-vggt", text, "somebody/some-vggt does not exist here and could not be read", OSError
    )
    (tmp_path / "two").mkdir()
    refuse(tmp_path, tmp_path / "two", text, "found: none")
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / "two" / name)
    refuse(tmp_path, tmp_path / "two", text, "found: a.pt, b.pt")
    refuse(tmp_path, vggt, tmp_path / "two", "has no config.json", FileNotFoundError)


def test_text_that_is_no_causal_language_model_is_refused(vggt, converted, tmp_path):
    refuse(tmp_path, vggt, converted, "is a vggt_qwen3, which is no causal language model")


def test_language_model_without_head_or_with_another_shape_is_refused(vggt, text, tmp_path):
    folder = shutil.copytree(text, tmp_path / "text")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    refuse(tmp_path, vggt, folder, r"1 missing .*lm_head\.weight")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    refuse(tmp_path, vggt, folder, "1 of another shape: model.embed_tokens.weight")
    config = Qwen3Config.from_pretrained(text)
    shutil.rmtree(folder)
    shutil.copytree(text, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = text_weights(text)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors")
    refuse(tmp_path, vggt, folder, "differs from model.embed_tokens.weight, but the config ties them")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    converter.convert_released(str(vggt), str(folder), tmp_path / "model", **OPTIONS)
    assert Qwen3Model(config).num_parameters() > 0


def test_another_vocabulary_is_refused(vggt, text, tmp_path):
    """Catches placeholders that would be split into several tokens, and ids beyond the embedding."""
    folder = shutil.copytree(text, tmp_path / "text")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = (folder / file).read_text()
        (folder / file).write_text(content.replace("<|image_pad|>", "<|picture|>"))
    refuse(tmp_path, vggt, folder, r"does not know <\|image_pad\|>: it is not of Qwen3's vocabulary")
    small = write_text_model(tmp_path / "small", vocab_size=100)
    refuse(tmp_path, vggt, small, "but the model has 100 embeddings: they do not belong together")


def test_text_without_a_tokenizer_or_with_code_of_its_own_is_refused(vggt, text, tmp_path):
    folder = shutil.copytree(text, tmp_path / "text")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refuse(tmp_path, vggt, folder, "text has no tokenizer", FileNotFoundError)
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    refuse(tmp_path, vggt, folder, "trust_remote_code|unheard_of")


def test_layers_the_vggt_does_not_have_are_refused(vggt, text, tmp_path):
    """Catches the released model's layers taken for granted: this one has four pairs."""
    refuse(tmp_path, vggt, text, "depth_head_layers .* 4 alternating pairs", depth_head_layers=[4, 11, 17, 23])
    refuse(tmp_path, vggt, text, "vision_feature_layers .*4 alternating pairs", vision_feature_layers=[4, 11, 17, 23])


def test_disk_too_small_is_refused_before_writing(vggt, text, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(convert_weights.shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**8, 10**8))
    monkeypatch.setattr(converter, "write_weights", lambda *args: pytest.fail("writing began"))
    refuse(tmp_path, vggt, text, "has 0.10 GB free; the checkpoint needs 0.10", OSError)


def test_nothing_is_left_of_a_conversion_that_fails_half_way(vggt, text, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "write_documents", fail)
    refuse(tmp_path, vggt, text, None, KeyboardInterrupt)


def test_positions_of_the_tiny_model_start_as_sines():
    """Catches rows taken for columns, and positions that coincide."""
    sines = converter.create_sine_embeddings(3, 8).reshape(3, 3, 8)
    assert torch.equal(sines[:, 0, :4], sines[:, 2, :4]) and torch.equal(sines[0, :, 4:], sines[2, :, 4:])
    assert len(torch.unique(sines.reshape(9, 8).round(decimals=4), dim=0)) == 9


def test_the_tiny_checkpoint_holds_them(tmp_path):
    """Catches a start that is lost on the way to the file; a class token's position stays random."""
    converter.convert_tiny(tmp_path / "tiny", image_size=56, projector_type="mlp", seed=0)
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    positions = weights["model.vision_model.backbone.embeddings.position_embeddings"]
    assert torch.equal(positions[0, 1:], converter.create_sine_embeddings(4, 128))
