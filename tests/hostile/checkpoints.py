# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that disks, copies and strangers have changed.

Each case is a function that changes a copy of a whole checkpoint. What a disk does leaves the manifest as it was; a stranger
makes it fit, so that formats and loading are all that is left to refuse what was changed.
"""

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


Change = Callable[[Path], None]


class Harmful:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def cases(base: Path, seed: int, marker: Path, rounds: int) -> Iterator[tuple[str, Change]]:
    """
    What is changed, beginning with the name of the file, and the change.

    Args:
        base: A whole checkpoint, of whose files each is changed.
        marker: What must not exist afterwards.
        rounds: Random changes of each kind to each file.
    """
    rng = random.Random(seed)
    files = sorted(path.name for path in base.iterdir() if path.name != "manifest.json")
    for name in files:
        content = (base / name).read_bytes()
        for what, changed in damages(content, rng, rounds):
            yield f"{name} {what}", write(name, changed)
            yield f"{name} {what}, manifest fits", fitting(write(name, changed))
        other = rng.choice([other for other in files if other != name])
        yield f"{name} swapped with {other}", write(name, (base / other).read_bytes())
        yield f"{name} swapped with {other}, manifest fits", fitting(write(name, (base / other).read_bytes()))
        yield f"{name} removed", lambda folder, name=name: (folder / name).unlink()
        yield f"{name} a folder", lambda folder, name=name: ((folder / name).unlink(), (folder / name).mkdir())
    for name in files:
        if name.endswith(".safetensors"):
            for what, changed in safetensors_files():
                yield f"{name} {what}", fitting(write(name, changed))
        if name.endswith((".pt", ".pth")):
            for what, changed in torch_files(marker, rng, rounds):
                yield f"{name} {what}", fitting(write(name, changed))
        if name.endswith(".json"):
            for what, changed in json_files():
                yield f"{name} {what}", fitting(write(name, changed))
    for what, changed in manifests(base):
        yield f"manifest.json {what}", write("manifest.json", changed)


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content) and None


def fitting(change: Change) -> Change:
    """`change`, and a manifest that lists its outcome."""

    def changed(folder: Path):
        change(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name], manifest["sha256"][name] = len(content), hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return changed


def damages(content: bytes, rng: random.Random, rounds: int) -> Iterator[tuple[str, bytes]]:
    """What disks and copies do."""
    yield "emptied", b""
    yield "of zeros", bytes(len(content))
    yield "twice", content * 2
    for _ in range(rounds):
        place = rng.randrange(len(content))
        yield f"with a bit flipped at {place}", flipped(content, place, 1 << rng.randrange(8))
        place = min(int(rng.expovariate(1 / 200)), len(content) - 1)  # in the header
        yield f"with a byte changed at {place}", flipped(content, place, rng.randrange(1, 256))
        length = rng.randrange(len(content))
        yield f"cut to {length}", content[:length]
        yield f"of zeros from {length}", content[:length] + bytes(len(content) - length)
    yield "of random bytes", rng.randbytes(len(content))


def flipped(content: bytes, place: int, bits: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    """Headers that lie."""

    def file(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    tensor = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1):
        yield f"with a header of {length} bytes", file({"a": tensor}, length=length)
    lies = {
        "overlapping": {"a": tensor, "b": tensor},
        "with a gap": {"a": tensor, "b": tensor | {"data_offsets": [16, 24]}},
        "beyond its end": {"a": tensor | {"shape": [1, 2**20], "data_offsets": [0, 2**22]}},
        "backwards": {"a": tensor | {"data_offsets": [8, 0]}},
        "of negative offsets": {"a": tensor | {"data_offsets": [-8, 0]}},
        "of a shape that overflows": {"a": tensor | {"shape": [2**62, 2**62]}},
        "of no known type": {"a": tensor | {"dtype": "F3"}},
        "of another shape": {"linear.weight": tensor | {"shape": [2], "data_offsets": [0, 8]}},
        "of other tensors": {"a": tensor},
        "of no tensors": {},
        "with text in its place": {"a": "tensor"},
        "of a list": [tensor],
    }
    for what, header in lies.items():
        yield what, file(header, bytes(8) if what in ("of another shape", "of other tensors") else bytes(64))
    yield "nested", file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)
    yield "of no text", file(b"\xff\xfe\x00" * 10)


def torch_files(marker: Path, rng: random.Random, rounds: int) -> Iterator[tuple[str, bytes]]:
    """Pickles that run code, and that are none."""

    def saved(value: object, **options) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    def zipped(data: bytes, name: str = "archive/data.pkl") -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(name, data)
            archive.writestr("archive/version", "3\n")
        return buffer.getvalue()

    harmful = Harmful(marker)
    yield "that runs code", saved({"state": harmful})
    yield "that runs code, of the old format", saved({"state": harmful}, _use_new_zipfile_serialization=False)
    yield "that runs code, as a plain pickle", pickle.dumps(harmful)
    yield "that runs code, in its keys", saved({(1, harmful): 1})
    for module, name in (("builtins", "eval"), ("os", "system"), ("subprocess", "Popen"), ("torch", "load")):
        call = f"c{module}\n{name}\n(S'touch {marker}'\ntR.".encode()
        yield f"that calls {module}.{name}", zipped(call)
    yield "that sets an attribute", zipped(b"ctorch\nTensor\n(dS'__init__'\ncos\nsystem\nsb.")
    yield "with a name out of it", zipped(b"N.", "../../data.pkl")
    yield "of nothing", zipped(b"")
    yield "nested", zipped(b"(l" * 20_000 + b"." * 2)
    yield "with a large memo", zipped(b"N" + b"r\xff\xff\xff\x7f" + b".")
    yield "of a long string", zipped(b"\x8d" + b"\xff" * 7 + b"\x7f" + b"a.")
    for value in (None, [], "text", {"state": 1}, {"state": {}, "param_groups": []}, {"python": 1}, torch.ones(3)):
        yield f"of {type(value).__name__} {str(value)[:20]!r}", saved(value)
    pickled = pickle.dumps({"a": [1, 2.5, "text", None, (1, 2)]}, protocol=2)
    for _ in range(rounds):
        place = rng.randrange(len(pickled))
        yield f"of opcodes changed at {place}", zipped(flipped(pickled, place, rng.randrange(1, 256)))


def json_files() -> Iterator[tuple[str, bytes]]:
    for value in (
        [],
        None,
        1,
        "text",
        {"unknown": 1},
        {"global_step": "2"},
        {"global_step": -5},
        {"global_step": 1e300},
    ):
        yield f"of {json.dumps(value)}", json.dumps(value).encode()
    for value in (
        {"log_history": 3},
        {"stateful_callbacks": 3},
        {"epoch": "x"},
        {"epoch": float("nan")},
        {"max_steps": []},
    ):
        yield f"of {json.dumps(value)}", json.dumps(value).encode()
    yield "nested", b'{"log_history":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "of a long number", b'{"global_step":' + b"9" * 10_000 + b"}"
    yield "of a large number", b'{"global_step":' + b"9" * 400 + b"}"
    yield "of no text", b"\xff\xfe\xfa"
    yield "of half a surrogate", b'{"best_model_checkpoint":"\\ud800"}'


def manifests(base: Path) -> Iterator[tuple[str, bytes]]:
    """Manifests that are none, or name what they should not."""
    whole = json.loads((base / "manifest.json").read_text())

    def with_file(name: str, size: object = 1, digest: object = "0" * 64) -> bytes:
        files, hashes = whole["files"] | {name: size}, whole["sha256"] | {name: digest}
        return json.dumps(whole | {"files": files, "sha256": hashes}).encode()

    for value in ([], None, 1, "text", {}, {"files": []}, {"files": [1]}, {"files": "text"}, {"files": {"a": None}}):
        yield f"of {json.dumps(value)}", json.dumps(value).encode()
    for hashes in ([], "text", [1], {"optimizer.pt": None}, {"optimizer.pt": 5}, {"absent.pt": "0" * 64}):
        yield f"with hashes {json.dumps(hashes)}", json.dumps(whole | {"sha256": hashes}).encode()
    for name in ("../outside", "/etc/passwd", "a\0b", "a" * 5000, "a/" * 3000, "", ".", "..", "\ud800", "absent"):
        yield f"with a file {name[:20]!r}", with_file(name)
    for size in (None, "1", -1, 1e300, [1], True, 2**70):
        yield f"with a size {size}", with_file("optimizer.pt", size)
    yield "nested", b'{"files":' * 100_000
    yield "of a long number", b'{"files":{"optimizer.pt":' + b"9" * 10_000 + b"}}"
    yield "of no text", b"\xff\xfe\xfa"
    yield "emptied", b""


__all__ = ["cases"]
