# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist: that they hold everything, and the whole recipe by console commands from a wheel in an own venv."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from toys import write_toy_checkpoint, write_toy_repo

from recipes.cli import COMMANDS, LIBRARIES, STAGES, main
from recipes.launching.checks import SETUP, requirements


ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_vggt_qwen3", "data_scripts", "recipes")
TOP = (
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "push_to_hub.py",
    "pyproject.toml",
    "setup.py",
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
BUILD = "import setuptools.build_meta as build; build.build_wheel({0!r}); build.build_sdist({0!r})"
IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL"}
SMALL = (
    "--max_steps 2 --logging_steps 1 --eval_strategy no --load_best_model_at_end false --save_strategy no --use_cpu true "
    "--dataloader_num_workers 0"
).split()
# Runs several commands in one process and prints how each ended: each alone would import torch anew.
SEVERAL = """
import json, sys
from recipes.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["vggt-qwen3", *command]
    try:
        main()
        code = None
    except SystemExit as error:
        code = error.code
    print(f"{command[0]} ended with {code}", file=sys.stderr)
"""
METRIC = """
import evaluate
from recipes.metrics import ROOM_ACTIONS, THREE_D_QA
print(evaluate.load(THREE_D_QA).compute(predictions=["a chair"], references=[["chair"]], captions=False)["llava3d"]["EM@1"])
print(evaluate.load(ROOM_ACTIONS).name)
"""


def package_files() -> set[str]:
    """Every file of the packages here, as a wheel names it."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if path.suffix != ".pyc"}


def build(source: Path, output: Path):
    output.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", BUILD.format(str(output))], cwd=source, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with a wheel and an sdist of the repository."""
    folder = tmp_path_factory.mktemp("dist")
    for name in (*PACKAGES, "docs", "tests"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=IGNORED)
    for name in TOP:
        shutil.copy(ROOT / name, folder / "source" / name)
    build(folder / "source", folder / "dist")
    return folder / "dist"


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


################
# Fast
################


def test_wheel_holds_every_file_of_the_packages(dist):
    """Catches configs, Slurm files, page templates, push_to_hub or the tested versions that a wheel lacks."""
    (wheel,) = dist.glob("*.whl")
    added = {"push_to_hub.py", "recipes/CITATION.cff", "recipes/constraints.txt"}
    assert names_of(wheel) == package_files() | added
    with zipfile.ZipFile(wheel) as opened:
        for name in ("CITATION.cff", "constraints.txt"):
            assert opened.read(f"recipes/{name}") == (ROOT / name).read_bytes()
        points = next(name for name in opened.namelist() if name.endswith("entry_points.txt"))
        assert "vggt-qwen3 = recipes.cli:main" in opened.read(points).decode()


def test_sdist_holds_the_repository_and_gives_the_same_wheel(dist, tmp_path):
    """Catches an sdist from which no wheel, or another one, can be built."""
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file()}
    expected = package_files() | pages | set(TOP) | {"tests/test_install.py", "tests/toys.py"}
    assert not {name for name in expected if not (source / name).is_file()}
    build(source, tmp_path / "dist")
    (wheel,), (first,) = (tmp_path / "dist").glob("*.whl"), dist.glob("*.whl")
    assert names_of(wheel) == names_of(first)


def test_dockerfile_copies_what_the_wheel_is_built_from(dist, tmp_path):
    """Catches a file or package that is new here and not in the image, and one that it names and that is gone."""
    text = (ROOT / "docs" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = [words for line in re.findall(r"^COPY (.+)$", text.partition("\nFROM ${BASE}\n")[0], re.MULTILINE) if (words := line.split())]  # fmt: skip
    (tmp_path / "source").mkdir()
    for *sources, target in copied:
        for name in sources:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / "source" / (target if (ROOT / name).is_dir() else name))
    build(tmp_path / "source", tmp_path / "dist")
    (wheel,), (first,) = (tmp_path / "dist").glob("*.whl"), dist.glob("*.whl")
    assert names_of(wheel) == names_of(first)


def test_every_module_that_runs_has_a_command():
    """Catches a new `python -m` without a console command, and a command whose module is gone."""
    paths = [ROOT / "push_to_hub.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    mains = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in paths
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    stages = {f"recipes.{stage}" for stage in STAGES}
    inner = {"recipes.cli", "recipes.benchmarking.full_size_worker"}  # the second is started by recipes.benchmark
    assert mains - inner == {command.module for command in COMMANDS.values()} - {"recipes"} | stages


def test_help_lists_the_commands_and_imports_nothing(capsys, monkeypatch):
    """Catches a dispatcher that waits for torch to print a list."""
    code = "import sys; sys.argv[1:] = ['--help']\nfrom recipes.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    modules = result.stdout.splitlines()[-1].split()
    assert "recipes.cli" in modules and not {"torch", "transformers", "numpy"} & set(modules)
    listed = re.findall(r"^  ([\w-]+)  +\S.*$", result.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    monkeypatch.setattr(sys, "argv", ["vggt-qwen3", "evaluate"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2 and "there is no command 'evaluate'" in capsys.readouterr().err


def test_the_extra_of_a_command_holds_what_it_imports():
    """Catches a library that an install with the documented extra lacks, and base requirements that only training needs."""
    wanted = {
        extra: {IMPORT_NAMES.get(needed.name, needed.name) for needed in requirements(extra)}
        for extra in ("", "data", "train", "eval", "all")
    }
    assert wanted[""] == {"huggingface_hub", "numpy", "PIL", "safetensors", "torch", "transformers"}
    assert {"deepspeed", "matplotlib", "tensorboard"} <= wanted["all"]
    for name, command in COMMANDS.items():
        # What the stages import once they know that their inputs are here.
        modules = ["recipes.training.sft"] if name == "train" else [command.module]
        modules += ["recipes.launching.preflight"] * (name == "launch")  # imported once the caches are moved
        missing = set().union(*map(libraries_of, modules)) - wanted[command.extra] - {"filelock"}  # datasets'
        assert not missing, f"{name}: {missing}"
    assert set(LIBRARIES) == wanted["all"] - wanted[""]


def libraries_of(module: str) -> set[str]:
    """Libraries that a module, and all of ours that it imports, import at their top."""
    seen, libraries, todo = set(), set(), [module]
    while todo:
        name = todo.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen:
            continue
        seen.add(name)
        if not path.is_file():
            if name.split(".")[0] not in (*sys.stdlib_module_names, *PACKAGES):
                libraries.add(name.split(".")[0])
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                found = [base, *(f"{base}.{alias.name}" for alias in node.names if base.split(".")[0] in PACKAGES)]
            todo += [".".join(each.split(".")[: end + 1]) for each in found for end in range(each.count(".") + 1)]
    return libraries


def test_a_missing_extra_is_named(tmp_path):
    """Catches a traceback where a library of an extra is not installed."""
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "rooms", "--help"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == ("vggt-qwen3 rooms needs tqdm, which is not installed: pip install 'vggt-qwen3[data]'\n")


def test_what_lies_beside_an_install_is_not_taken_for_the_repository(tmp_path, monkeypatch):
    """Catches constraints.txt or setup.py of something else in site-packages that is read for ours."""
    assert SETUP == ROOT / "setup.py"
    site = tmp_path / "site-packages"
    (site / "recipes").mkdir(parents=True)
    for name in ("constraints.txt", "setup.py"):
        (site / name).write_text("numpy==0.1")
    shutil.copy(ROOT / "recipes" / "__init__.py", site / "recipes")
    shutil.copy(ROOT / "constraints.txt", site / "recipes")
    code = "import recipes; print(recipes.top_file('constraints.txt').parent.name, recipes.top_file('setup.py').is_file())"
    result = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True)  # fmt: skip
    assert result.stdout.split() == ["recipes", "False"], result.stderr


def test_no_direct_dependency_is_under_the_gpl():
    """Catches a library whose licence does not go with this code's (plyfile was one) that every user of an extra installs."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            try:
                metadata = importlib.metadata.metadata(line.split("==")[0])
            except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed here
                continue
            own = (metadata["License"] or "")[:200]  # what follows, of some, are the licences of what they bundle
            licence = " ".join([metadata["License-Expression"] or "", own, *metadata.get_all("Classifier", [])])
            found = re.search(r"GPL|GNU [\w ]*GENERAL PUBLIC", licence, re.IGNORECASE)
            assert not found, f"{line}: {found}"


################
# Slow
################


@pytest.fixture(scope="module")
def venv(dist, tmp_path_factory) -> Path:
    """
    An environment with the wheel in it, and the libraries of the one that runs the tests. What that one has of this project
    is not seen: Python reads no `.pth` of a folder that itself comes from a `.pth`, and the wheel's metadata come first.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    (wheel,) = dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", wheel], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))
    return folder


def environment_of(venv: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    cache = str(venv.parent / "cache")
    return kept | {"HF_HOME": cache, "HF_MODULES_CACHE": f"{cache}/modules", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # fmt: skip


def files_of(venv: Path) -> set[Path]:
    return {path for path in venv.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_recipe_from_a_wheel(venv, tmp_path):
    """Catches whatever works in a clone only: files found from the repository's root, paths beside the code, imports by cwd."""
    before = files_of(venv)

    def run(*words) -> str:
        program = venv / "bin" / words[0]
        result = subprocess.run(
            list(map(str, (program, *words[1:]))),
            cwd=tmp_path,
            env=environment_of(venv),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{words}\n{result.stdout}{result.stderr}"
        return result.stdout

    run("vggt-qwen3", "files")
    assert (tmp_path / "recipes" / "slurm" / "common.sh").is_file()
    sizes = "--scenes 3 --views 2 --image-size 28 --seed 0 --instruct-images 8 --formats scannet arkitscenes".split()
    run("vggt-qwen3", "rooms", "--output", "rooms", *sizes)
    sources = {
        "instruct": ["--image-root", "rooms/instruct"],
        "scanqa": ["--scannet-root", "rooms/scannet"],
        "arkit_actions": ["--arkitscenes-root", "rooms/arkitscenes", "--actions", "place_anchor"],
    }
    for name, source in sources.items():
        files = sorted((tmp_path / "rooms" / name).glob("*.json"))
        annotations = ["--annotations", *files] if files else []
        views = [] if name == "instruct" else ["--num-views", "2"]
        run("vggt-qwen3", "prepare", name, *annotations, *source, *views, "--output", f"data/{name}")
    run("vggt-qwen3", "convert", "tiny", "--output", "outputs/stage0", "--image-size", "28")
    for number, data in enumerate(sources, start=1):
        words = ["--config", f"recipes/configs/rooms/stage{number}.yaml", "--dataset_paths", f"data/{data}", *SMALL]
        words += ["--model_name_or_path", f"outputs/stage{number - 1}", "--output_dir", f"outputs/stage{number}"]
        words += ["--dataset_weights", "1"] * (number == 2)  # its file has two datasets
        run("vggt-qwen3", *(["launch", "stage2", "--"] if number == 2 else ["train", f"stage{number}"]), *words)
        record = json.loads((tmp_path / "outputs" / f"stage{number}" / "run.json").read_text())
        assert record["command"][0] == f"recipes/stage{number}.py"  # as in a clone, and no path of this machine
    scanqa = ["--dataset", "data/scanqa", "--split", "val", "--output", "scores", "--report", "page.html", "--em-only"]
    run("vggt-qwen3", "eval", "--model", "outputs/stage2", *scanqa)
    assert "<html" in (tmp_path / "page.html").read_text()
    photos = sorted((tmp_path / "rooms" / "scannet" / "scene0000_00" / "color").iterdir())
    assert run("vggt-qwen3", "ask", "--model", "outputs/stage2", *photos, "Is there a bed?", "--max-new-tokens", "4")
    card = run("vggt-qwen3", "push", "--model", "outputs/stage2", "--evaluation", "scores", "--repo-id", "org/name", "--dry-run")  # fmt: skip
    assert "@inproceedings{wang2025" in card and "nothing was uploaded" in card
    assert run("python", "-c", METRIC).split() == ["100.0", "room_actions"]
    assert files_of(venv) == before


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(venv, tmp_path):
    """Catches tracebacks in a read-only folder, and an evaluation that finds out after it has answered everything."""
    write_toy_checkpoint(tmp_path / "model")
    data = write_toy_repo(tmp_path / "data", {"train": 2, "val": 1})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o555)
    train = ["--model_name_or_path", tmp_path / "model", "--dataset_paths", data, "--dataset_weights", 1, *SMALL]
    train += "--bf16 false --activation_checkpointing false --freeze_text_layers 0 --global_batch_size 1".split()
    commands = [
        ["files"],
        "rooms --output rooms --scenes 3 --views 2 --image-size 28 --seed 0".split(),
        "convert tiny --output tiny".split(),
        ["demo", "--smoke"],
        ["view", data, "--scene", "scene0000_00", "--output", "page.html"],
        ["eval", "--model", tmp_path / "nowhere", "--dataset", data, "--split", "val", "--output", "scores"],
        ["train", "stage2", *train],
        ["launch", "stage2", "--", *train],
    ]
    words = [venv / "bin" / "python", "-c", SEVERAL, json.dumps([[str(word) for word in each] for each in commands])]
    if os.geteuid() == 0:  # root may write anywhere, but for the capability that lets it
        if shutil.which("setpriv") is None:
            pytest.skip("root without setpriv can write to every folder")
        dropped = "-dac_override,-dac_read_search"
        words = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", *words]
    before = files_of(venv)
    result = subprocess.run(words, cwd=tmp_path / "folder", env=environment_of(venv), capture_output=True, text=True)
    for message in (
        "recipes.copy_files: cannot write to . (Permission denied): give another with --output.",
        "error: cannot write to",
        "convert ended with vggt-qwen3 convert: [Errno 13] Permission denied",
        "recipes.demo: cannot write to demo (Permission denied): give another with --output.",
        "error: cannot write page.html (Permission denied): give another with --output",
        "recipes.eval: cannot write to scores (Permission denied): give another with --output.",
        "cannot write to outputs/stage2 (Permission denied): give another with --output_dir.",
        "Output: cannot write to outputs/stage2 (Permission denied). Give another folder with -- --output_dir.",
    ):
        assert message in result.stderr, f"{message}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "folder").iterdir()) and files_of(venv) == before
