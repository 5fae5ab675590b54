# SPDX-License-Identifier: Apache-2.0
"""
A small world in which the commands of the docs run: rooms under the names of the real downloads, a tiny checkpoint, two-step
runs. Commands run in processes that are forked from one that has imported the libraries: that takes most of their time.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from docs_commands import ACCELERATED, ROOT, RUN, WORDS, entry_of


SERVER = """
import json, os, runpy, sys, traceback
import accelerate.commands.launch, data_scripts.builders, evaluate, peft
import recipes.evaluation.action_page, recipes.publishing.upload, recipes.training.sft, recipes.training.store_writer
for line in sys.stdin:
    job = json.loads(line)
    if os.fork() == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = 0
        try:
            sys.argv = job["argv"]
            if job["kind"] == "module":
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            elif job["kind"] == "script":
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                exec(compile(sys.argv[0], "docs", "exec"), {"__name__": "__main__"})
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class World:
    """The folder that commands run in, and the process that runs them."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.txt"
        for name in (
            "modeling_vggt_qwen3",
            "data_scripts",
            "recipes",
            "push_to_hub.py",
            "CITATION.cff",
            "constraints.txt",
        ):
            (folder / name).symlink_to(ROOT / name)
        environment = os.environ | {
            "HF_HOME": str(folder / "cache"),
            "PYTHONPATH": str(folder),
            "PYTHONWARNINGS": "ignore",
        }
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.fill()

    def run(self, kind: str, argv: list[str]) -> str | None:
        """Runs a module, a script or code; the end of what it printed if it failed."""
        self.server.stdin.write(json.dumps({"kind": kind, "argv": argv, "log": str(self.log)}) + "\n")
        self.server.stdin.flush()
        code = self.server.stdout.readline().strip()
        if not code:
            return f"the server of commands ended:\n{self.server.stderr.read()[-3000:]}"
        return None if code == "0" else f"exit code {code}:\n{self.log.read_text(errors='replace')[-3000:]}"

    def run_command(self, command: str) -> str | None:
        """Runs a command of the docs with what `RUN` appends to it."""
        words = [WORDS.get(word, word) for word in shlex.split(command)]
        words = [path for word in words for path in self.expand(word)] + RUN[entry_of(command)]
        if words[:2] == ["accelerate", "launch"]:
            return self.run("script", words[words.index("recipes/stage2.py") :])
        assert words[0] == "python", command
        return self.run("module", words[2:]) if words[1] == "-m" else self.run("script", words[1:])

    def expand(self, word: str) -> list[str]:
        """What a shell makes of a word."""
        return sorted(glob(word, root_dir=self.folder)) or [word] if "*" in word else [word]

    def made(self, command: str):
        kind, *argv = shlex.split(command)
        failure = self.run(kind, argv)
        assert failure is None, f"{command}\n{failure}"

    def fill(self):
        folder = self.folder
        self.made(
            "module data_scripts.rooms --output demo/rooms --scenes 12 --views 4 --image-size 56 --seed 0 --objects 3 4 "
            "--instruct-images 12 --formats scannet arkitscenes roomplan"
        )
        rooms = folder / "demo" / "rooms"
        for name, target in {"scans": "scannet", "ARKitScenes": "arkitscenes", "exports": "roomplan"}.items():
            (folder / name).symlink_to(rooms / target)
        for path in (*(rooms / "scanqa").iterdir(), *(rooms / "sqa3d").iterdir()):
            (folder / path.name).symlink_to(path)
        (folder / "images").symlink_to(rooms / "instruct")
        for split in ("train", "val"):
            shutil.copy(rooms / "instruct" / f"instruct_{split}.json", folder / f"llava_{split}.json")
        self.write_records()
        self.write_answers()
        for number, name in enumerate(("photo1", "photo2")):
            shutil.copy(
                sorted((rooms / "scannet" / "scene0000_00" / "color").iterdir())[number], folder / f"{name}.jpg"
            )

        scans = "--scannet-root demo/rooms/scannet --num-views 4"
        for name, pattern in (("scanqa", "ScanQA*.json"), ("sqa3d", "v1_*.json")):
            files = " ".join(self.expand(pattern))
            self.made(f"module data_scripts.prepare {name} {scans} --annotations {files} --output demo/data/{name}")
        self.made(
            "module data_scripts.prepare arkit_actions --arkitscenes-root demo/rooms/arkitscenes --num-views 4 --actions "
            "place_anchor --output demo/data/arkit_actions"
        )
        self.made("module modeling_vggt_qwen3.convert_vggt_qwen3_to_hf tiny --output demo/tiny --image-size 56")
        small = shlex.join([*ACCELERATED, "--report_to", "none", "--save_strategy", "no"])
        for stage, model, data in ((2, "tiny", "scanqa demo/data/sqa3d"), (3, "stage2", "arkit_actions")):
            self.made(
                f"script recipes/stage{stage}.py --config recipes/configs/rooms/stage{stage}.yaml {small} --output_dir "
                f"demo/stage{stage} --model_name_or_path demo/{model} --dataset_paths demo/data/{data} --dataset_weights "
                + ("0.9 0.1" if stage == 2 else "1")
            )
        shutil.copytree(folder / "demo" / "stage2", folder / "demo" / "blind")
        shutil.copytree(folder / "demo" / "stage3", folder / "demo" / "stage3_blind")

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
        self.server.stdin.close()
        self.server.wait()
