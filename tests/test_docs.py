# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/: every command and Python block runs, or at least parses; links lead somewhere; messages are ours."""

import argparse
import ast
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from docs_commands import NOT_RUN, PAGES, ROOT, RUN, blocks, commands, entry_of
from docs_world import World
from slurm_cluster import slurm_cluster, why_not
from torch.distributed.run import get_args_parser as torchrun_parser

from recipes.cli import COMMANDS
from recipes.launch import parse as parse_launch
from recipes.launching.checks import requirements
from recipes.launching.settings import read_settings, recipe_argv
from recipes.runs.arguments import DataArguments, ModelArguments, SftArguments


# Messages of others in troubleshooting.md: transformers, torch, DeepSpeed, Slurm, Linux.
OTHERS = (
    "torch.cuda.is_available", "The repository", "contains custom code which must be executed", "torch.OutOfMemoryError",
    "Unable to JIT load the cpu_adam op", "Error no file named", "Killed", "oom_kill", "No space left on device",
    "Invalid account or account/partition combination specified", "No module named",
)  # fmt: skip


class Parsed(Exception):
    """Ends a command once its arguments are accepted."""


def run_until_parsed(words: list[str]):
    """Runs `python` with these arguments until argparse has accepted the command's own."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise Parsed

    argv = words[1:] if words[0] == "-m" else words
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(sys, "argv", argv)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        if words[0] == "-m":
            runpy.run_module(argv[0], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)  # data_scripts.prepare sets one


def parse_command(words: list[str]):
    """Raises (or exits) unless a command accepts its arguments."""
    if words[:2] == ["accelerate", "launch"]:
        position = next(number for number, word in enumerate(words) if word.startswith("recipes/stage"))
        arguments, _ = launch_command_parser().parse_known_args(words[2:])
        assert arguments.config_file is None or (ROOT / arguments.config_file).is_file(), arguments.config_file
        read_settings(Path(words[position]).stem, words[position + 1 :])
    elif words[0] == "torchrun":
        arguments = torchrun_parser().parse_args(words[1:])
        read_settings(Path(arguments.training_script).stem, arguments.training_script_args)
    elif words[:3] == ["python", "-m", "recipes.launch"]:
        arguments, argv = parse_launch(words[3:])
        read_settings(arguments.stage, recipe_argv(arguments.stage, arguments.mode, arguments.safe, argv))
    elif words[0] == "sbatch":
        position = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / words[position]).is_file(), words[position]
        stage = Path(words[position]).stem
        rest = words[position + 1 :]
        parse_command(["python", "-m", "recipes.launch", *([stage] if stage.startswith("stage") else []), *rest])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        assert all(word.split("=")[0] in (ROOT / "Makefile").read_text() for word in words[2:])
    elif words[0] == "vggt-qwen3" and words[1] == "train":
        read_settings(words[2], words[3:])
    elif words[0] == "vggt-qwen3" and words[1] in COMMANDS:
        parse_command(["python", "-m", COMMANDS[words[1]].module, *words[2:]])
    elif words[:2] == ["pip", "install"] or words[:3] == ["uv", "pip", "install"]:
        extra = re.search(r"\[(\w+)\]$", words[-1])[1]
        assert requirements(extra) != requirements(""), extra
    elif words[0] == "python":
        run_until_parsed(words[1:])
    else:
        known = ("hf", "source", "tensorboard", "pip", "uv", "docker", "vggt-qwen3")
        assert words[0] in known, f"nothing here knows {words[0]}"


################
# Fast
################


def test_every_command_is_run_or_says_why_not():
    """Catches a new command in the docs that nobody tries, and an entry here of one that is gone."""
    entries = {command: entry_of(command) for command in commands()}
    unknown = [f"{commands()[command]}: {command}" for command, entry in entries.items() if entry is None]
    assert not unknown, "\n".join(unknown)
    assert not {*RUN, *NOT_RUN} - set(entries.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # runpy: the module is imported already
def test_every_command_parses(monkeypatch, capsys):
    """Catches an option, a stage, a YAML key or a file that the docs name and that is not there."""
    monkeypatch.chdir(ROOT)
    wrong = []
    for command, where in commands().items():
        try:
            parse_command(shlex.split(command))
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            wrong.append(f"{where}: {command}: {error!r} {capsys.readouterr().err[-400:]}")
    assert not wrong, "\n".join(wrong)


def test_python_blocks_compile():
    """Catches Python in the docs with a typo, also in those that are not run."""
    for where, text in blocks("python"):
        compile(text, where, "exec")


def test_examples_decode_as_evaluation_does():
    """Catches an example that samples, by Qwen3's own generation settings: other answers with each call, and worse ones."""
    calls = [
        (where, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for where, text in blocks("python")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "generate"
    ]
    assert calls and not [where for where, keywords in calls if keywords.get("do_sample") != "False"]


def test_links_lead_somewhere():
    """Catches links to files and headings that were renamed."""
    wrong = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            path, _, heading = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            if not other.exists():
                # A picture that make docs-figures is still to write, from a run with all three stages.
                if not (other.suffix == ".png" and not (ROOT / "docs" / "demo.json").exists()):
                    wrong.append(f"{page.name}: {target}")
            elif heading:
                titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                if heading not in slugs:
                    wrong.append(f"{page.name}: {target}")
    assert not wrong, wrong


def test_settings_table_has_every_key():
    """Catches a setting of the recipes that docs/training.md does not explain, and one that is gone."""
    own = {field for part in (ModelArguments, DataArguments) for field in part.__dataclass_fields__}
    own |= set(SftArguments.__annotations__) - {"hub_strategy", "remove_unused_columns", "metric_for_best_model"}
    own -= {"greater_is_better"}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = text[text.index("## Settings") : text.index("## One sequence")]
    keys = {
        key
        for line in table.splitlines()
        if line.startswith("|")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert keys - {"learning_rate"} == own


def test_stage_table_is_that_of_the_configs():
    """Catches a README whose views, rates or LoRA are no longer those of the YAML files."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, name in enumerate(("stage1_sft", "stage2_3d", "stage3_arkit"), start=1):
        config = yaml.safe_load((ROOT / "recipes" / "configs" / f"{name}.yaml").read_text())
        column = {
            cells[1].strip(): cells[1 + number].strip()
            for cells in (line.split("|") for line in text.splitlines())
            if len(cells) == 6
        }
        views = column["views, size"]
        assert views.startswith(f"{config['num_views']}, {config['image_size']} px"), name
        assert ("view_dropout" not in config) or f"view dropout {config['view_dropout']}" in views, name
        rates = [
            float(rate) for rate in re.findall(r"\d+e-\d+", column["[learning rate](docs/training.md#learning-rates)"])
        ]
        assert config["projector_learning_rate"] in rates, name
        if "lora_r" in config:
            assert f"r {config['lora_r']}, α {config['lora_alpha']}" in column["trains"], name
            assert config["learning_rate"] in rates, name
        if "dataset_weights" in config:
            assert re.findall(r"0\.\d", column["data"]) == [str(weight) for weight in config["dataset_weights"]], name


def test_messages_of_troubleshooting_exist():
    """Catches a message that the code no longer prints: nobody would find it by searching for what they see."""
    ours = [(ROOT / "Makefile").read_text(), *(path.read_text() for path in (ROOT / "recipes" / "slurm").iterdir())]
    for folder in ("modeling_vggt_qwen3", "data_scripts", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            ours += [
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    ours = "\n".join(ours)
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    wrong = []
    for heading in re.findall(r"^### (.+)$", text, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", heading):
            parts = [part.strip(" .'()?") for part in message.split("…")]
            wrong += [part for part in parts if len(part) > 3 and part not in ours and not part.startswith(OTHERS)]
    assert not wrong, wrong


################
# Slow
################


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("docs"))
    yield world
    world.close()


def commands_to_run(slurm: bool) -> list[str]:
    """In the order of `RUN`: some need what others made."""
    order = list(RUN)
    wanted = [command for command in commands() if entry_of(command) in RUN and command.startswith("sbatch") == slurm]
    return sorted(wanted, key=lambda command: order.index(entry_of(command)))


@pytest.fixture(scope="module")
def failures(world) -> dict[str, str]:
    """Runs the commands that need no Slurm; where those that failed stand, and what they printed."""
    return {f"{commands()[c]}: {c}": failure for c in commands_to_run(False) if (failure := world.run_command(c))}


@pytest.mark.slow
def test_commands_run(failures):
    """Catches a command that parses and does not do what the docs say."""
    assert not failures, "\n\n".join(map("\n".join, failures.items()))


@pytest.mark.slow
def test_python_blocks_run(world, failures):
    """Catches code in the docs that does not run as it stands, after the commands that publish what it loads."""
    wrong = []
    for where, text in blocks("python"):
        (world.folder / "block.py").write_text(text)
        if failure := world.run("python block.py"):
            wrong.append(f"{where}: {failure}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
def test_slurm_commands_run(world, failures, tmp_path):
    """Catches a job that the docs submit and that no Slurm takes, or that does not train."""
    if reason := why_not():
        pytest.skip(reason)
    jobs, wrong = {}, []
    with slurm_cluster(tmp_path, nodes=4) as environment:
        slurm = {"SLURM_CONF": environment["SLURM_CONF"], "MODULES": "", "MAX_REQUEUES": "0"}
        for command in commands_to_run(True):
            failure = world.run_command(command, slurm)
            submitted = re.search(r"Submitted batch job (\d+)", world.printed())
            assert failure is None and submitted, f"{command}: {world.printed()}"
            jobs[submitted[1]] = command
        deadline = time.monotonic() + 240
        for number, command in jobs.items():
            show = ["scontrol", "--oneliner", "show", "job", number]
            state = "PENDING"
            while state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") and time.monotonic() < deadline:
                time.sleep(0.2)
                shown = subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout
                state = re.search(r"JobState=(\w+)", shown)[1]
            if state != "COMPLETED":
                log = "".join(path.read_text(errors="replace") for path in world.folder.glob(f"*-{number}.log"))
                wrong.append(f"{commands()[command]}: {command}: {state}\n{log[-3000:]}")
    assert not wrong, "\n\n".join(wrong)
