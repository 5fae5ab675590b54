# SPDX-License-Identifier: Apache-2.0
"""Runs what strangers will run, as strangers: a new process, this package hidden, nothing but the files to be published.

The files are laid out as the Hub's cache would hold them, so that the card's code runs letter for letter, repo name included.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_scripts.hub import Files
from data_scripts.synthetic.pipeline import Settings, build_scene
from data_scripts.synthetic.questions import scanqa_candidates
from data_scripts.synthetic.scannet_writer import jpeg


REVISION = "0" * 40
NUM_VIEWS = 4
USAGE = """\
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

repo = {repo}
model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)

views = [Image.open(hf_hub_download(repo, f"examples/view{{number}}.jpg")) for number in range({num_views})]
content = [{{"type": "image", "image": view}} for view in views]
content.append({{"type": "text", "text": {question}}})
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
# What the new process runs: the usage from its standard input, then one forward pass and a strict load.
DRIVER = """\
import importlib.abc, json, platform, sys
import torch, transformers

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_vggt_qwen3", "recipes", "data_scripts"):
            raise ModuleNotFoundError(f"{name} is hidden: a stranger does not have it")

sys.meta_path.insert(0, Hidden())
usage = {}
exec(compile(sys.stdin.read(), "usage.py", "exec"), usage)
with torch.no_grad():
    finite = bool(torch.isfinite(usage["model"](**usage["inputs"]).logits).all())
del usage["model"]
model, info = transformers.AutoModelForImageTextToText.from_pretrained(
    usage["repo"], trust_remote_code=True, output_loading_info=True
)
keys = {kind: sorted(map(str, info[kind]))[:5] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
print("\\n" + json.dumps({"finite": finite, "keys": keys, "versions": versions}))
"""


@dataclass(frozen=True)
class Usage:
    """
    Code that was run, and what it printed.

    Attributes:
        question, references: what it asks about the example pictures, and the true answers.
        versions: of python, torch and transformers.
    """

    code: str
    printed: str
    question: str
    references: list[str]
    versions: dict[str, str]


def example_files(image_size: int) -> tuple[Files, str, list[str]]:
    """Pictures of a procedural room, which belong to nobody else, with a question about it and its true answers."""
    settings = Settings(scenes=3, views=NUM_VIEWS, image_size=image_size, seed=0, instruct_images=0)
    scene = build_scene(settings, 0)
    candidate = scanqa_candidates(np.random.default_rng(0), scene)[0]
    return (
        {f"examples/view{number}.jpg": jpeg(pixels) for number, pixels in enumerate(scene.rgb)},
        candidate.question,
        list(candidate.answers),
    )


def validate(files: Files, repo_id: str, question: str, references: list[str]) -> Usage:
    """
    Runs the card's code on `files`, as strangers would after downloading them.

    Args:
        files: all that is published, by path in the repo.
        repo_id: the repo's name.
        question, references: of [`example_files`], which are among `files`.

    Raises:
        ValueError: if it does not run, tensors are missing or too many, or logits are not finite.
    """
    code = USAGE.format(repo=json.dumps(repo_id), num_views=NUM_VIEWS, question=json.dumps(question))
    with tempfile.TemporaryDirectory(prefix="publishing-") as temporary:
        home = Path(temporary)
        repo = home / "hub" / f"models--{repo_id.replace('/', '--')}"
        for path, content in files.items():
            target = repo / "snapshots" / REVISION / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.symlink_to(content.resolve())
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(REVISION)
        dropped = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS|PYTHON)_.*|PYTHONPATH|RANK|WORLD_SIZE|LOCAL_.*|MASTER_.*")
        environment = {key: value for key, value in os.environ.items() if not dropped.fullmatch(key)}
        environment |= {"HF_HOME": temporary, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        process = subprocess.run(
            [sys.executable, "-I", "-c", DRIVER],
            input=code,
            capture_output=True,
            text=True,
            cwd=temporary,
            env=environment,
            check=False,
        )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ValueError(f"The checkpoint does not run in a new process: {lines[-1]}")
    *printed, last = process.stdout.rstrip("\n").split("\n")
    report = json.loads(last)
    wrong = {kind: keys for kind, keys in report["keys"].items() if keys}
    if wrong:
        details = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in wrong.items())
        raise ValueError(f"The checkpoint does not fit its own config. {details}")
    if not report["finite"]:
        raise ValueError("The checkpoint's logits are not finite.")
    return Usage(code, "\n".join(printed).strip("\n"), question, references, report["versions"])


__all__ = ["Usage", "example_files", "validate"]
