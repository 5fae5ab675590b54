# SPDX-License-Identifier: Apache-2.0
"""
A small world in which a shell runs the docs' commands: rooms under the names of the real downloads, a Hub and a mirror of
ARKitScenes on this machine. What `make demo` and the commands themselves make is there for those after them.
"""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import psutil
from docs_commands import BEFORE_SCRIPT, MIRROR, ROOT, RUN, WORDS, entry_of, shell_text
from docs_releases import put_qwen3, put_vggt, write_arkitscenes_mirror
from hub_server import HubServer
from stage1_releases import (
    write_chartqa,
    write_chartqa_tables,
    write_docvqa,
    write_docvqa_tables,
    write_llava,
    write_sharegpt4v,
)
from test_docs_figures import write_demo


LINKED = ("modeling_vggt_qwen3", "data_scripts", "recipes", "push_to_hub.py", "setup.py", "pyproject.toml", "Makefile")
LINKED += ("constraints.txt", "CITATION.cff")
COPIED = ("README.md", "docs")  # make docs-figures writes to them
CONSOLE_SCRIPTS = ("accelerate", "hf")
PYTHON = """#!/bin/sh
exec {python} -IS {program} run {socket} "$@"
"""
CONSOLE_SCRIPT = """#!/bin/sh
exec {python} {script} "$@"
"""
TIMEOUT = 600  # seconds, of one command; DeepSpeed compiles for minutes when it is first used


class Mirror(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class World:
    """The folder that commands run in, with a `.venv` whose python is that of docs_python.py."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.txt"
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        self.hub = HubServer().__enter__()
        handler = partial(Mirror, directory=folder / "mirror")
        self.mirror = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.mirror.serve_forever, args=(0.05,), daemon=True).start()
        self.make_environment()
        self.fill()

    def make_environment(self):
        """`.venv`, the environment variables of commands, and the process that theirs are forked from."""
        bin_folder, real_bin = self.folder / ".venv" / "bin", Path(sys.executable).parent
        bin_folder.mkdir(parents=True)
        python, socket = bin_folder / "python", self.folder / "socket"
        program = ROOT / "tests" / "docs_python.py"
        scripts = {"python": PYTHON.format(python=sys.executable, program=program, socket=socket)}
        for name in CONSOLE_SCRIPTS:
            scripts[name] = CONSOLE_SCRIPT.format(python=python, script=real_bin / name)
        scripts["vggt-qwen3"] = CONSOLE_SCRIPT.format(python=python, script="-m recipes.cli")
        for name, text in scripts.items():
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        (self.folder / ".venv" / ".installed").touch()  # make has nothing to set up
        environment = self.hub.environment(self.folder / "cache", token=None)
        self.environment = {key: value for key, value in environment.items() if not key.startswith(("MAKE", "MFLAGS"))}
        self.environment |= {
            "PATH": os.pathsep.join([str(bin_folder), str(real_bin), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "PYTHONWARNINGS": "ignore",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # which asks PyPI
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        # What a user without a GPU has answered to `accelerate config`.
        (self.folder / "cache" / "accelerate").mkdir(parents=True)
        cpu = ROOT / "recipes" / "accelerate_configs" / "cpu.yaml"
        shutil.copy(cpu, self.folder / "cache" / "accelerate" / "default_config.yaml")
        self.server = subprocess.Popen(
            [sys.executable, program, "serve", socket, python],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "server.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        while not socket.exists():
            assert self.server.poll() is None, (self.folder / "server.txt").read_text()[-3000:]
            time.sleep(0.02)

    def start(self, text: str, environment: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "-c", text],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, text: str, environment: dict[str, str] | None = None) -> str | None:
        """Runs a line of shell; the end of what it printed if it failed."""
        process = self.start(text, environment or {})
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            code = f"none after {TIMEOUT} s"
            self.kill(process)
        return f"exit code {code}:\n{self.printed()[-3000:]}" if code else None

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self, process: subprocess.Popen):
        """Ends a command, and what of it the server has forked."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for child in psutil.Process(self.server.pid).children(recursive=True):
            child.kill()

    def run_command(self, command: str, environment: dict[str, str] | None = None) -> str | None:
        """Runs a command of the docs with what `RUN` appends to it."""
        entry, address = entry_of(command), f"http://127.0.0.1:{self.mirror.server_port}"
        words = [WORDS.get(word, word) for word in shlex.split(command)]
        added = [address if word == MIRROR else word for word in RUN[entry]]
        if added and entry.startswith(("python -m recipes.launch", "sbatch")) and "--" not in words:
            added.insert(0, "--")  # what follows is for the recipe
        words[2:2] = BEFORE_SCRIPT.get(entry, [])
        text = shell_text([*words, *added])
        return self.serve(text) if words[0] == "tensorboard" else self.run(text, environment)

    def serve(self, text: str) -> str | None:
        """Runs TensorBoard until it has found runs."""
        process = self.start(text, {})
        deadline = time.monotonic() + TIMEOUT
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if address := re.search(r"http://\S+:\d+/", self.printed()):
                    with urlopen(f"{address[0]}data/runs") as answer:
                        if json.load(answer):
                            return None
                time.sleep(0.2)
        finally:
            self.kill(process)
        return f"no runs:\n{self.printed()[-3000:]}"

    def fill(self):
        folder, rooms = self.folder, self.folder / "demo" / "rooms"
        failure = self.run(
            "python -m data_scripts.rooms --output demo/rooms --scenes 12 --views 10 --image-size 56 --seed 5 "
            "--objects 3 4 --instruct-images 24 --formats scannet sens arkitscenes arkitscenes_raw roomplan"
        )
        assert failure is None, failure
        # ScanNet as downloaded: streams, those of the test split in a folder of their own.
        tested = {
            row["scene_id"] for row in json.loads((rooms / "scanqa" / "ScanQA_v1.0_test_w_obj.json").read_text())
        }
        for name in ("scans", "scans_test"):
            (folder / name).mkdir()
        for scan in (rooms / "sens").iterdir():
            (folder / ("scans_test" if scan.name in tested else "scans") / scan.name).symlink_to(scan)
        for path in (*(rooms / "scanqa").iterdir(), *(rooms / "sqa3d").iterdir()):
            (folder / path.name).symlink_to(path)
        (folder / "images").symlink_to(rooms / "instruct")
        for split in ("train", "val"):
            shutil.copy(rooms / "instruct" / f"instruct_{split}.json", folder / f"llava_{split}.json")
        write_llava(folder, absent=True)  # beside them in images
        write_sharegpt4v(folder, absent=True)
        write_docvqa(folder)
        write_chartqa(folder)
        write_docvqa_tables(folder)
        write_chartqa_tables(folder)
        self.write_records()
        self.write_answers()
        photos = sorted((rooms / "scannet" / "scene0000_00" / "color").iterdir())
        for name, photo in zip(("photo1", "photo2", "a", "b"), photos):
            shutil.copy(photo, folder / f"{name}.jpg")
        (folder / "finished").mkdir()
        write_demo(folder / "finished")  # the demo here is too small to be shown

        write_arkitscenes_mirror(rooms / "arkitscenes", folder / "mirror")
        (folder / "ARKitScenes" / "3dod").mkdir(parents=True)
        (folder / "ARKitScenes" / "3dod" / "Training").symlink_to(rooms / "arkitscenes" / "3dod" / "Training")
        with (rooms / "arkitscenes" / "metadata.csv").open() as metadata:
            lines = [f"{row['video_id']},{row['visit_id']},{row['fold']}\n" for row in csv.DictReader(metadata)]
        splits = folder / "mirror" / "threedod" / "3dod_train_val_splits.csv"
        splits.write_text("video_id,visit_id,fold\n" + "".join(lines))
        shutil.copy(splits, folder / splits.name)
        put_vggt(self.hub, folder / "model.pt")
        put_qwen3(self.hub, folder / "qwen3")

    def write_records(self):
        pictures = sorted((self.folder / "images" / "images").glob("*.jpg"))
        for split, some in (("train", pictures[:4]), ("val", pictures[4:6])):
            records = [
                {
                    "images": [str(path.relative_to(self.folder))],
                    "question": "What is it?",
                    "answer": "a room",
                }
                for path in some
            ]
            lines = "".join(json.dumps(record | {"task": "instruct", "geom_token": None}) + "\n" for record in records)
            (self.folder / f"{split}.jsonl").write_text(lines)

    def write_answers(self):
        """Answers as other systems would write them: "red" to every question."""
        scanqa = json.loads((self.folder / "ScanQA_v1.0_val.json").read_text())
        rows = [{"question_id": row["question_id"], "answer": "red"} for row in scanqa]
        (self.folder / "answers.json").write_text(json.dumps(rows))
        (self.folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sqa3d = json.loads((self.folder / "v1_balanced_questions_test_scannetv2.json").read_text())["questions"]
        ids = [row["question_id"] for row in sqa3d]
        (self.folder / "answers.csv").write_text("question_id,answer\n" + "".join(f"{number},red\n" for number in ids))
        for name in ("other", "blind"):
            rows = [{"question_id": number, "answer": "yes"} for number in ids]
            (self.folder / f"{name}.json").write_text(json.dumps(rows))

    def close(self):
        for process in (*psutil.Process(self.server.pid).children(recursive=True), self.server):
            process.kill()
        self.server.wait()
        self.mirror.shutdown()
        self.mirror.server_close()
        self.hub.__exit__()
