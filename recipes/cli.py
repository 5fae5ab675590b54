# SPDX-License-Identifier: Apache-2.0
"""The console command `vggt-qwen3`: every command of this project by a name, wherever it is installed.

vggt-qwen3 eval --model DIR ...      # python -m recipes.eval --model DIR ...
vggt-qwen3 train stage2 --any_key value

A command is a module that runs as `__main__`, as `python -m` does it; it is imported when it is called, not before.
"""

import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """
    Attributes:
        module: What runs.
        extra: Which extra of setup.py holds the libraries it needs; "" if it needs none.
        summary: One line for `--help`.
    """

    module: str
    extra: str
    summary: str


# In the order in which one uses them.
COMMANDS = {
    "demo": Command("recipes.demo", "all", "the whole recipe on procedural rooms, from nothing to scores"),
    "files": Command("recipes.copy_files", "", "a copy of settings, templates and Slurm files to adapt"),
    "convert": Command(
        "modeling_vggt_qwen3.convert_vggt_qwen3_to_hf", "", "VGGT and a Qwen3, or a tiny random model, as a checkpoint"
    ),
    "rooms": Command("data_scripts.rooms", "data", "procedural rooms in the official formats"),
    "download": Command("data_scripts.download_arkitscenes", "data", "ARKitScenes from its owner"),
    "prepare": Command("data_scripts.prepare", "data", "raw files to a dataset that load_dataset reads"),
    "view": Command("data_scripts.view", "data", "a prepared scene as a page to look at"),
    "store": Command("recipes.feature_store", "train", "the frozen encoder's features, computed once"),
    "launch": Command("recipes.launch", "train", "check everything, then train a stage on all GPUs; or a dry run"),
    "train": Command("recipes", "train", "a stage's recipe in this process: train stage2 --any_key value"),
    "monitor": Command("recipes.monitor", "train", "where a run stands, also while it goes on"),
    "export": Command("recipes.export", "train", "a checkpoint of a run as a model"),
    "eval": Command("recipes.eval", "eval", "answers to a prepared dataset, and their scores"),
    "score": Command("recipes.score", "eval", "scores of any system's answers"),
    "ask": Command("recipes.ask", "eval", "one question about some photos"),
    "push": Command("push_to_hub", "train", "a trained model on the Hub, with its card"),
    "summary": Command("recipes.summary", "eval", "tables and pictures of a demo"),
    "benchmark": Command("recipes.benchmark", "train", "speed and memory on this machine"),
    "docs-figures": Command("recipes.docs_figures", "train", "the docs' figures from a demo; in a clone of the repository"),
}  # fmt: skip
# What the extras bring, by the name it is imported by, and which extra where it is not the command's.
LIBRARIES = dict.fromkeys(
    ("accelerate", "datasets", "evaluate", "packaging", "peft", "psutil", "pyarrow", "scipy")
    + ("tensorboard", "tqdm", "yaml")
) | {"deepspeed": "train", "matplotlib": "eval", "pycocoevalcap": "metrics", "trimesh": "scene", "xgrammar": "actions"}
STAGES = sorted(path.stem for path in Path(__file__).parent.glob("stage[0-9].py"))


def help_text() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vggt-qwen3 COMMAND [ARGUMENTS]",
            "",
            "Commands, in the order in which one uses them; each has its own --help:",
            "",
            *lines,
        ]
    )


def main():
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help", "help"):
        print(help_text())
        sys.exit(2 * (len(sys.argv) == 1))
    name, *arguments = sys.argv[1:]
    if name not in COMMANDS:
        print(f"vggt-qwen3: there is no command {name!r}.\n\n{help_text()}", file=sys.stderr)
        sys.exit(2)
    command, module, program = COMMANDS[name], COMMANDS[name].module, f"vggt-qwen3 {name}"
    if name == "train":
        if not arguments or arguments[0] not in STAGES:
            print(
                f"usage: vggt-qwen3 train {{{','.join(STAGES)}}} [--config FILE.yaml] [--any_key value ...]\n\n"
                "One process. On all GPUs: vggt-qwen3 launch, or accelerate launch -m recipes.stage2"
            )
            sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
        stage, *arguments = arguments
        module = f"recipes.{stage}"
        program = str(Path(__file__).with_name(f"{stage}.py"))  # which the run's record and the model's card name
    try:
        run_as_main(module, [program, *arguments])
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        extra = LIBRARIES[error.name] or command.extra
        sys.exit(f"vggt-qwen3 {name} needs {error.name}, which is not installed: pip install 'vggt-qwen3[{extra}]'")


def run_as_main(name: str, argv: list[str]):
    """Runs the module `name` as `python -m` does, but for `sys.argv[0]`, which argparse takes for the program's name."""
    spec = find_spec(name)
    module = module_from_spec(spec)
    module.__name__ = "__main__"
    sys.modules["__main__"] = module  # as what processes that it starts know its functions
    sys.argv = argv
    exec(spec.loader.get_code(name), module.__dict__)


if __name__ == "__main__":
    main()


__all__ = ["COMMANDS", "main"]
