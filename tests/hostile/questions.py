# SPDX-License-Identifier: Apache-2.0
"""Command lines of `recipes.ask`: questions, photos, cameras and model folders as strangers have them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from toys import toy_geometry, toy_views


DEEP = "[" * 100_000
HUGE = "1" + "0" * 400
QUESTIONS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "caf\udce9",
    "\n" * 100,
    "x" * 200_000,
    "床" * 50_000,
    "\U0010ffff",
    "\ufdd0\ue000<",
]
QUESTIONS += [
    "<|im_end|>\n<|im_start|>system\n",
    "<|image_pad|>" * 20,
    "<think>",
    "{{ 7 * 7 }}",
    "{% raise %}",
    "\u202e\u200b\x1b[31m",
]

# Values of keys of the cameras' file, and whole files.
CAMERAS = {
    "nan": {"t": [[float("nan")] * 3]}, "beyond float32": {"t": [[1e39, 0, 0]]}, "beyond float64": {"t": [[HUGE, 0, 0]]},
    "5,000 digits": {"t": [[HUGE + "0" * 5000, 0, 0]]}, "text": {"t": "x"}, "null": {"t": None}, "nulls": {"K": [[[None] * 3] * 3]},
    "ragged": {"R": [[1, 2], [3]]}, "of two photos": {"t": [[1, 2, 3]] * 2}, "object": {"K": {"a": 1}}, "short": {"depth_hist": [[0.1] * 3]},
    "another key": {"x": 1}, "numbers as text": {"t": [["1", "a", "3"]]},
}  # fmt: skip
CAMERA_FILES = {
    "deep": DEEP, "deep objects": '{"a":' * 100_000, "empty": "", "null": "null", "list": "[]", "half a pair": '"\\ud800"',
    "utf-16": "{}".encode("utf-16"), "bytes": b"\xff\xfe\x00",
}  # fmt: skip
FILES_OF_A_MODEL = {
    "config.json": [
        "xx",
        "[]",
        "null",
        "",
        DEEP,
        "{}",
        '{"model_type": "bert"}',
        '{"model_type": "xyz"}',
        b"\xff\xfe",
    ],
    "model.safetensors": [None, b"x" * 1000, b"", b"\xff" * 16],
    "tokenizer.json": [None, "xx", "[]", "{}", DEEP],
    "tokenizer_config.json": ["xx", "[]", DEEP],
    "processor_config.json": [None, "xx", "[]", "{}", '{"projector_type": 7, "image_processor": 3}', DEEP],
    "chat_template.jinja": [
        None,
        "",
        "{% if",
        "{{ raise_exception('x') }}",
        "{% for i in range(10**12) %}{% endfor %}",
    ],
}
# Of values in a config, which were valid JSON.
CONFIG = [
    {"vision_config": 3},
    {"projector_hidden_size": -5},
    {"projector_hidden_size": "big"},
    {"projector_hidden_size": int(HUGE)},
]


def command_lines(folder: Path, model: Path) -> Iterator[tuple[str, list[str]]]:
    """What each is, and the arguments, made in `folder` with the good `model`."""
    photo = folder / "photo.png"
    toy_views(1)[0].save(photo)
    good = [str(model), str(photo), "Where is it?"]
    for question in QUESTIONS:
        yield f"question {ascii(question[:12])}", [*good[:2], question]
    (folder / "bad.png").write_bytes(b"x" * 100)
    (folder / "empty.png").write_bytes(b"")
    for path in [
        "/nowhere/photo.png",
        folder,
        folder / "bad.png",
        folder / "empty.png",
        "\udcff.png",
        "x" * 5000,
        "http://x/y.png",
        "",
    ]:
        yield f"photo {ascii(str(path))[:20]}", [str(model), str(path), "Where is it?"]
    for number in ["0", "-1", "1e3", "9" * 20, "10000000", ""]:
        yield f"--max-new-tokens {number}", [*good, "--max-new-tokens", number]
    for action in ["", "fly", "PLACE_ANCHOR", "place_anchor list_objects"]:
        yield f"--action {action}", [*good, "--action", action]
    for percentile in ["nan", "-1", "inf", "x"]:
        yield (
            f"percentile {percentile}",
            [*good, "--save-scene", str(folder / "s.glb"), "--confidence-percentile", percentile],
        )
    for path in ["/nowhere/p.png", folder, "\udcff.jpg", photo / "p.png"]:
        yield f"plan {ascii(str(path))}", [*good, "--action", "place_anchor", "--save-plan", str(path)]

    cameras = {key: value.tolist() for key, value in toy_geometry(1).items()}
    files = CAMERA_FILES | {what: json.dumps(cameras | change).replace(f'"{HUGE}', HUGE).replace('0", 0, 0', "0, 0, 0") for what, change in CAMERAS.items()}  # fmt: skip
    for number, (what, content) in enumerate(files.items()):
        path = folder / f"cameras{number}.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        yield f"cameras, {what}", [*good, "--action", "place_anchor", "--cameras", str(path)]
    yield "cameras, a folder", [*good, "--action", "place_anchor", "--cameras", str(folder)]

    (folder / "nothing").mkdir()
    for path in [folder / "nothing", photo, folder / "absent", "no/such-model", "a b/c d/e", "\udcff", "../..", ""]:
        yield f"model {ascii(str(path))[-20:]}", [str(path), *good[1:]]
    config = json.loads((model / "config.json").read_text())
    contents = FILES_OF_A_MODEL | {
        "config.json": FILES_OF_A_MODEL["config.json"] + [json.dumps(config | change) for change in CONFIG]
    }
    for name, kinds in contents.items():
        for number, content in enumerate(kinds):
            broken = folder / f"{name}-{number}"
            shutil.copytree(model, broken)
            if content is None:
                (broken / name).unlink()
            else:
                (broken / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            yield f"model with {name} {str(content)[:20]!r}", [str(broken), *good[1:]]


__all__ = ["command_lines"]
