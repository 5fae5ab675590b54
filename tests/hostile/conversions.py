# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a conversion may be given: weights, configurations, tokenizers, cards and indices that are no good."""

import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save


# In the place of any value of a JSON file.
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**70, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", "../" * 30, [], [[]],
    {}, {"a": {}}, [None], ["x"] * 3, [1, -1], "1" * 5000,
)  # fmt: skip
# In the place of a whole JSON file.
BROKEN = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "a list": b"[]",
    "a number": b"12",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "nested deeply, in an object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "NULs": b"\0" * 100,
    "a byte order mark": "\ufeff{}".encode(),
    "an integer of 10,000 digits": b'{"vocab_size": ' + b"9" * 10_000 + b"}",
}
MARKER = "was-run"  # beside the folder of the cases, if code in one of them was run
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


class Code:
    """An object whose pickle makes the file `marker` when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def conversions(
    vggt: Path, text: Path, work: Path, seed: int, values: int
) -> Iterator[tuple[str, tuple[Path, Path, Path]]]:
    """
    Pairs of a VGGT's file and a language model's folder, of which one file is hostile; `work` is made anew for each.

    Args:
        vggt, text: good ones.
        seed: of the random choices.
        values: how many values of each JSON file are replaced.

    Yields:
        What it is, and the VGGT, the folder and the hostile file.
    """
    rng = random.Random(seed)

    def fresh() -> tuple[Path, Path]:
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(text, work / "stranger")), Path(shutil.copy(vggt, work / "vggt.safetensors"))

    for name in JSON_FILES:
        for what, content in BROKEN.items():
            folder, weights = fresh()
            (folder / name).write_bytes(content)
            yield f"{name}: {what}", (weights, folder, folder / name)
        content = json.loads((text / name).read_text())
        places = list(_places(content))
        for _ in range(values):
            path, odd = rng.choice(places), rng.choice(ODD)
            folder, weights = fresh()
            (folder / name).write_text(json.dumps(_replaced(content, path, odd)))
            yield f"{name}: {path} = {str(odd)[:30]!r}", (weights, folder, folder / name)
    for name in ("README.md", "chat_template.jinja", "config.json", "model.safetensors.index.json"):
        for what, content in _texts(name).items():
            folder, weights = fresh()
            (folder / name).unlink(missing_ok=True)
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
            yield f"{name}: {what}", (weights, folder, folder / name)
    shard = sorted(text.glob("*.safetensors"))[0]
    for what, content in _safetensors(shard.read_bytes(), rng):
        folder, weights = fresh()
        (folder / shard.name).write_bytes(content)
        yield f"{shard.name}: {what}", (weights, folder, folder / shard.name)
    for what, content in _safetensors(vggt.read_bytes(), rng):
        folder, weights = fresh()
        weights.write_bytes(content)
        yield f"VGGT: {what}", (weights, folder, weights)
    for what, content in _torch_files(load_file(vggt), work.parent / MARKER, rng):
        folder, weights = fresh()
        weights.unlink()
        weights = weights.with_suffix(".pt")
        weights.write_bytes(content)
        yield f"VGGT: {what}", (weights, folder, weights)


def resizes(checkpoint: Path, work: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Checkpoints like `checkpoint`, whose perceiver is to be resized, with one hostile file each."""
    rng = random.Random(seed)
    weights = (checkpoint / "model.safetensors").read_bytes()
    files = [
        (name, what, content) for name in ("config.json", "processor_config.json") for what, content in BROKEN.items()
    ]
    files += [("model.safetensors.index.json", what, content) for what, content in BROKEN.items()]
    files += [("model.safetensors", what, content) for what, content in _safetensors(weights, rng)]
    config = json.loads((checkpoint / "config.json").read_text())
    places = [place for place in _places(config) if "projector" in place[0] or len(place) == 1]
    for _ in range(40):
        place, odd = rng.choice(places), rng.choice(ODD)
        files.append(
            ("config.json", f"{place} = {str(odd)[:30]!r}", json.dumps(_replaced(config, place, odd)).encode())
        )
    for name, what, content in files:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(checkpoint, work)
        (work / name).write_bytes(content)
        yield f"{name}: {what}", work


def _places(value, path: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value there are values, at most ten of each list."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:10]) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _replaced(value, path: tuple, odd):
    if not path:
        return odd
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _replaced(copied[path[0]], path[1:], odd)
    return copied


def _texts(name: str) -> dict[str, bytes | None]:
    if name == "README.md":
        return {
            "front matter that is a list": b"---\n- a\n---\n",
            "front matter with a tab": b"---\nlicense:\tx\n\ty\n---\n",
            "not UTF-8": b"---\nlicense: \xff\n---\n",
            "a licence that is a mapping": b"---\nlicense: {a: b}\n---\n",
            "a licence that is a number": b"---\nlicense: 12\n---\n",
            "aliases of aliases": b"---\n" + _aliases() + b"license: *h\n---\n",
            "an object of Python": b"---\nlicense: !!python/object/apply:os.getpid []\n---\n",
            "nested deeply": b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
            "a folder": None,
        }
    if name == "chat_template.jinja":
        return {
            "another language": b"{% for %}",
            "not UTF-8": b"\xff\xfe",
            "attributes of Python": b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "endless": b"{% for a in range(10**12) %}x{% endfor %}",
            "a folder": None,
        }
    if name == "config.json":
        return {
            "code of its own": b'{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}',
            "another model": b'{"model_type": "clip"}',
            "no model": b'{"architectures": ["Qwen3ForCausalLM"]}',
            "2^31 layers": b'{"model_type": "qwen3", "num_hidden_layers": 2147483648}',
            "2^70 layers": b'{"model_type": "qwen3", "num_hidden_layers": 1180591620717411303424}',
            "a folder": None,
        }
    return {
        "files elsewhere": b'{"weight_map": {"a": "../../etc/passwd"}}',
        "no map": b'{"metadata": {}}',
        "a map of lists": b'{"weight_map": {"a": ["x"]}}',
        "a map of numbers": b'{"weight_map": {"a": 1}}',
        "a list": b"[1]",
        "nested deeply": b"[" * 100_000,
        "not UTF-8": b"\xff",
        "a NUL in a name": b'{"weight_map": {"a": "a\\u0000.safetensors"}}',
        "a long name": json.dumps({"weight_map": {"a": "a" * 5000 + ".safetensors"}}).encode(),
        "a folder": None,
    }


def _aliases() -> bytes:
    """YAML that is ten to the eighth as large when it is read as a tree."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
    return ("\n".join(lines) + "\n").encode()


def _safetensors(good: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    size = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]

    def file(header, data: bytes = data) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    yield "empty", b""
    yield "seven bytes", good[:7]
    yield "cut", good[: len(good) // 2]
    yield "longer than it says", good + b"x" * 100
    yield "a header of 2^63 bytes", struct.pack("<Q", 2**63) + good[8:]
    yield "a header nested deeply", file(b"[" * 50_000)
    yield "a header that is a list", file([])
    yield "no tensors", file({}, b"")
    names = [name for name in header if name != "__metadata__"]
    for odd in ("shape", "dtype", "data_offsets"):
        for value in (None, [], [-1], [2**63, 2], [2**31, 2**31], "x", "I64", "BOOL", [0, 0], [10**18, 1], {}):
            name = rng.choice(names)
            yield f"{name}: {odd} {value}", file(header | {name: header[name] | {odd: value}})
    name = rng.choice(names)
    yield "a tensor less", file({key: value for key, value in header.items() if key != name})
    yield "a name of 5,000 letters", file({"a" * 5000 if key == name else key: value for key, value in header.items()})
    for _ in range(8):
        damaged = bytearray(good)
        damaged[rng.randrange(8, 8 + size)] = rng.randrange(256)
        yield "a byte of the header changed", bytes(damaged)
    tensors = {
        "aggregator.camera_token": torch.zeros(0, 0, 0, 0),
        "aggregator.patch_embed.pos_embed": torch.zeros(1, 0, 2),
    }
    yield "tensors of size 0", save(tensors)


def _torch_files(good: dict[str, torch.Tensor], marker: Path, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    def saved(value) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    whole = saved(good)
    yield "code", saved(good | {"a": Code(marker)})
    yield "a plain pickle with code", pickle.dumps(Code(marker))
    yield "a number", saved(1)
    yield "a list", saved([torch.zeros(1)])
    yield "numbers for names", saved({1: torch.zeros(1)})
    yield "integers", saved({key: value.long() for key, value in good.items()})
    yield "complex numbers", saved({key: value.to(torch.complex64) for key, value in good.items()})
    yield "sparse tensors", saved({key: value.to_sparse() for key, value in good.items()})
    yield "a tensor of no memory", saved({key: value.to("meta") for key, value in good.items()})
    yield "a nested dict", saved({"model": {"model": {"model": good}}})
    yield "empty", b""
    yield "cut", whole[: len(whole) // 2]
    yield "another archive", _archive({"a/b": b"x"})
    yield "an archive without its pickle", _archive({"archive/version": b"3\n"})
    yield "an archive of a broken pickle", _archive({"archive/data.pkl": b"\x80\x02.", "archive/version": b"3\n"})
    yield (
        "an archive of another pickle",
        _archive({"archive/data.pkl": b"cos\nsystem\n(S'x'\ntR.", "archive/version": b"3\n"}),
    )
    for _ in range(12):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(min(len(whole), 3000))] = rng.randrange(256)
        yield "three bytes changed", bytes(damaged)
    for _ in range(4):
        damaged = bytearray(whole)
        damaged[-rng.randrange(1, 200)] ^= 0xFF
        yield "the archive's directory changed", bytes(damaged)


def _archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


__all__ = ["MARKER", "conversions", "resizes"]
