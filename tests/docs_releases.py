# SPDX-License-Identifier: Apache-2.0
"""What the docs' commands download, at toy size under the real names: released weights, and scans of ARKitScenes."""

import shutil
from io import BytesIO
from pathlib import Path

import torch
from chat_templates import DIRECT
from hub_server import HubServer
from safetensors.torch import load_file
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM, set_seed

from modeling_vggt_qwen3.convert_vggt_qwen3_to_hf import create_tiny_tokenizer


VGGT_WEIGHTS = Path(__file__).parent / "fixtures" / "vggt" / "tiny_weights.safetensors"
VIDEO = "47333462"  # of docs/data.md


def put_vggt(hub: HubServer, copy: Path):
    """
    facebook/VGGT-1B-Commercial: as many alternating pairs as released, which are the four of a network of toy width in turn;
    and its file alone, as `copy`.
    """
    weights = load_file(VGGT_WEIGHTS)
    for name, tensor in list(weights.items()):
        parts = name.split(".")
        if parts[1] in ("frame_blocks", "global_blocks"):
            for number in range(int(parts[2]), 24, 4):
                weights[".".join([*parts[:2], str(number), *parts[3:]])] = tensor.clone()
    file = BytesIO()
    torch.save(weights, file)
    copy.write_bytes(file.getvalue())
    card = b"---\nlicense: other\nlicense_name: vggt-aup-license\nlicense_link: LICENSE\n---\n"
    files = {"vggt_1B_commercial.pt": file.getvalue(), "README.md": card, "LICENSE": b"VGGT License\n"}
    hub.put("model", "facebook/VGGT-1B-Commercial", files)


def put_qwen3(hub: HubServer, folder: Path):
    """Qwen/Qwen3-4B-Instruct-2507: random, with layers beyond those that stage 2 freezes."""
    set_seed(1)
    tokenizer = create_tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model = Qwen3ForCausalLM(config).bfloat16()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.chat_template = DIRECT
    tokenizer.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    card = b"---\nlicense: apache-2.0\n---\n"
    hub.put("model", "Qwen/Qwen3-4B-Instruct-2507", files | {"README.md": card, "LICENSE": b"Apache License\n"})


def write_arkitscenes_mirror(rooms: Path, mirror: Path):
    """
    The validation scans of `rooms` (of data_scripts.rooms, in both layouts) as 3dod, and a training scan as raw, as Apple's
    server has them.
    """
    shutil.copytree(rooms / "3dod" / "Validation", mirror / "threedod" / "Validation")
    for scan in list((mirror / "threedod" / "Validation").iterdir()):
        shutil.make_archive(str(scan), "zip", scan.parent, scan.name)
        shutil.rmtree(scan)
    metadata = (rooms / "metadata.csv").read_text()
    (mirror / "threedod" / "metadata.csv").write_text(metadata)

    source = min((rooms / "raw" / "Training").iterdir())
    scan = mirror / "raw" / "Training" / VIDEO
    shutil.copytree(source, scan)
    for path in sorted(scan.rglob(f"{source.name}_*")):
        path.rename(path.with_name(path.name.replace(source.name, VIDEO)))
    for folder in [path for path in scan.iterdir() if path.is_dir()]:
        shutil.make_archive(str(folder), "zip", scan, folder.name)
        shutil.rmtree(folder)
    header, *rows = metadata.splitlines()
    (row,) = (row for row in rows if row.startswith(source.name))
    (mirror / "raw" / "metadata.csv").write_text(f"{header}\n{row.replace(source.name, VIDEO)}\n")
