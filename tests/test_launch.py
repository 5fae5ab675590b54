# SPDX-License-Identifier: Apache-2.0
"""`recipes.launch`: what it finds before a run starts, what it starts, and how signals reach it."""

import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from safetensors.torch import load_file, save_file
from toys import write_toy_checkpoint, write_toy_repo

from data_scripts.schema import FEATURES, REQUIRED_COLUMNS
from recipes.common.scenes import SceneDataset
from recipes.launch import parse
from recipes.launching import checks, preflight, resources
from recipes.launching.caches import file_system, move_caches, read_mounts
from recipes.launching.checks import check_data, check_precision, check_versions, check_weights
from recipes.launching.estimate import Memory
from recipes.launching.output import check_checkpoints, check_output, clock_difference, config_of, lock_output
from recipes.launching.resources import Gpu, available_memory, check_port, check_rendezvous
from recipes.launching.settings import plan_batch, read_settings, recipe_argv
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.runs.checkpoints import MANIFEST
from recipes.runs.run_config import differences, resolved_config, write_run_config
from recipes.training.packing import PackDataset


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_toy_repo(tmp_path_factory.mktemp("repos") / "toy_launch", {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def recipe(checkpoint, repo, output, *argv):
    """A small stage 2 as a user would ask for it after `--`."""
    settings = ["--model_name_or_path", checkpoint, "--dataset_paths", repo, "--dataset_weights", 1]
    settings += ["--output_dir", output, "--image_size", 28, "--freeze_text_layers", 0, "--bf16", "false"]
    settings += ["--dataloader_num_workers", 0, "--global_batch_size", 2, "--per_device_train_batch_size", 2]
    return list(map(str, [*settings, *argv]))


def arguments(*argv):
    return parse(["stage2", *map(str, argv)])[0]


################
# Caches
################


MOUNTS = [("/", "ext4"), ("/net", "nfs4"), ("/scratch", "lustre"), ("/local", "xfs"), ("/net/user/fast", "tmpfs")]


def test_caches_leave_a_network_home(tmp_path):
    """Catches caches that stay, user settings that are overridden, and downloads that other nodes no longer find."""
    local = tmp_path / "local"
    local.mkdir()
    environment = {"HOME": "/net/user", "SLURM_TMPDIR": str(local), "TORCH_HOME": "/net/user/torch", "USER": "user"}
    moved, lines = move_caches(environment, MOUNTS)
    assert moved["TRITON_CACHE_DIR"] == f"{local}/vggt-qwen3-user/triton"
    assert moved["HF_DATASETS_CACHE"].startswith(str(local)) and "TORCHINDUCTOR_CACHE_DIR" not in moved
    assert "TORCH_HOME" not in moved and "HF_HOME" not in moved
    assert len(lines) == len(moved) + 1 and all("nfs4" in line for line in lines[:-1])
    assert lines[-1].startswith("HF_HOME stays")
    assert move_caches({"HOME": "/local/user"}, MOUNTS) == ({}, [])

    hub = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    (hub / "models--x").mkdir(parents=True)
    mounts = [("/", "ext4"), (str(tmp_path / "home"), "beegfs")]
    shared = {"HOME": str(tmp_path / "home"), "SLURM_TMPDIR": str(local), "SCRATCH": str(local)}
    moved, lines = move_caches(shared, mounts)
    assert "HF_HOME" not in moved and any(line.startswith("HF_HOME stays") for line in lines)
    shutil.rmtree(hub)
    assert move_caches(shared, mounts)[0]["HF_HOME"].startswith(str(local))


def test_file_systems_are_those_of_the_innermost_mount(tmp_path):
    assert file_system(Path("/net/user/fast/x"), MOUNTS) == "tmpfs"
    assert file_system(Path("/network"), MOUNTS) == "ext4"
    table = tmp_path / "mounts"
    table.write_text("server:/x /with\\040space nfs rw 0 0\nnone / overlay rw 0 0\n")
    assert read_mounts(table) == [("/with space", "nfs"), ("/", "overlay")]
    assert read_mounts(tmp_path / "nowhere") == []


################
# Settings
################


def test_debug_and_safe_are_over_the_yaml_and_under_the_user(checkpoint, repo, tmp_path):
    """Catches a debug run that writes over the real one's output, and an override that is overridden."""
    argv = recipe_argv("stage2", "debug", True, recipe(checkpoint, repo, tmp_path, "--max_steps", 7))
    settings = read_settings("stage2", argv)
    assert settings.max_steps == 7 and settings.eval_questions == 32
    assert settings.output_dir == str(tmp_path / "debug") and settings.dataloader_num_workers == 0
    assert read_settings("stage2", recipe_argv("stage2", "debug", False, [])).max_steps == 100
    assert recipe_argv("stage2", "full", False, []) == []


def test_the_full_size_recipes_say_their_global_batch():
    """Catches a recipe whose global batch 8 GPUs cannot share in its micro-batches."""
    for path in CONFIGS.glob("*.yaml"):
        stage = path.name.partition("_")[0]
        settings = read_settings(stage, [])
        plan = plan_batch(settings, 8, settings.per_device_train_batch_size)
        assert plan.micro_batch == settings.per_device_train_batch_size, path
        assert plan.global_batch == settings.global_batch_size, path


def test_launch_and_recipe_agree_on_what_a_run_is(tmp_path):
    """Catches a launch that takes a run's own folder for another's: settings are compared before the recipe reads them."""
    for path in sorted(CONFIGS.glob("**/*.yaml")):
        stage = path.stem.partition("_")[0]
        argv = ["--config", str(path), "--output_dir", str(tmp_path)]
        theirs = resolved_config(*parse_arguments(path, argv))
        settings = read_settings(stage, argv)
        plan = plan_batch(settings, 1, settings.per_device_train_batch_size)
        assert differences(theirs, config_of(settings, plan)) == []


################
# Checks
################


def test_damaged_data_is_named(repo, checkpoint, tmp_path):
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path))
    assert check_data(settings) == []
    broken = tmp_path / "toy_launch_broken"
    shutil.copytree(repo, broken)
    file = broken / "scenes" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    settings = read_settings("stage2", recipe(checkpoint, broken, tmp_path, "--eval_split", "test"))
    problems = check_data(settings)
    assert len(problems) == 2
    assert "no split 'test'" in problems[0] and f"{file} is cut short or damaged" in problems[1]
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path, "--eval_split", "train"))
    assert "4 scenes are in the split train and in train" in check_data(settings)[0]
    other = write_toy_repo(tmp_path / "toy_launch_other", {"val": 1, "train": 1})
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path))
    settings.dataset_paths = [str(repo), str(other)]
    assert "1 scenes are in the split train and in val (scene0000_00" in check_data(settings)[0]
    (tmp_path / "empty").mkdir()
    settings.dataset_paths = [str(tmp_path / "empty"), str(tmp_path / "nowhere")]
    nowhere, empty = check_data(settings)  # what is not here at all comes first
    assert "empty is not a prepared repository" in empty and "nowhere is not here: prepare it first" in nowhere


def test_the_preflight_finds_what_training_would_die_of(checkpoint, tmp_path):
    """Catches a run that dies after "all checks passed": of a column, a question's scene or an answer that is missing."""
    toy = write_toy_repo(tmp_path / "toy", {"train": 2, "val": 1})
    settings = read_settings("stage2", recipe(checkpoint, toy, tmp_path))

    def without(table, column):
        """Also of the features that `datasets` notes in a file."""
        return table.drop_columns([column]).replace_schema_metadata(None)

    def unanswered(table):
        position, field = table.column_names.index("answers"), table.schema.field("answers")
        return table.set_column(position, field, pyarrow.array([[]] * len(table), field.type))

    def change(config, function, splits="*"):
        """What preflight and training say of the repository with one of its tables changed."""
        changed = tmp_path / f"toy_{len(list(tmp_path.iterdir()))}"  # `datasets` would know one of the same name
        shutil.copytree(toy, changed)
        for file in (changed / config).glob(f"{splits}.parquet"):
            table = pyarrow.parquet.read_table(file)
            pyarrow.parquet.write_table(function(table), file)
        theirs = ""
        try:
            PackDataset([SceneDataset(str(changed), "train")], 4)
        except ValueError as error:
            theirs = str(error)
        settings.dataset_paths = [str(changed)]
        return check_data(settings), theirs

    for config, features in FEATURES.items():
        for column in features:
            found, theirs = change(config, lambda table, column=column: without(table, column))
            needed = column in REQUIRED_COLUMNS[config]
            assert len(found) == 2 * needed and bool(theirs) == needed, (config, column, found, theirs)
            if needed:
                assert f"has no column {column}. Prepare it again" in found[0] and f"no column {column};" in theirs
    found, theirs = change("scenes", lambda table: table.slice(0, 1), "train*")
    assert "asks in the split train of 'qa' about 1 scenes" in found[0] and "is not among the scenes" in theirs
    found, theirs = change("qa", unanswered, "train*")
    assert "questions without an answer to train on (the first is train-" in found[0] and "has no answer" in theirs
    found, theirs = change("qa", lambda table: without(table, "object_ids"), "train*")
    assert len(found) == 1 and "has not (object_ids)" in found[0]
    assert "object_ids" in theirs
    assert change("qa", lambda table: table) == ([], "")


def test_damaged_weights_are_named(checkpoint, tmp_path):
    assert check_weights(str(checkpoint)) == []
    assert "nowhere is not here: make a checkpoint first" in check_weights(str(tmp_path / "nowhere"))[0]
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is truncated" in check_weights(str(broken))[0]

    # Sharded, with an index that promises what no shard holds.
    tensors = load_file(checkpoint / "model.safetensors")
    weights.unlink()
    save_file(tensors, broken / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    names = dict.fromkeys([*tensors, "model.projector.lost"], "model-00001-of-00001.safetensors")
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "model.projector.lost" in check_weights(str(broken))[0]
    (broken / "config.json").unlink()
    assert "no config.json" in check_weights(str(broken))[0]


def test_versions_are_compared_with_what_is_needed(monkeypatch, tmp_path):
    """Catches a GPU machine's torch 2.11 for CUDA 13 that is refused because the tests ran with a newer one."""
    assert check_versions()[0] == []
    table = tmp_path / "constraints.txt"
    table.write_text("torch==999.0\nnumpy==0.1\npytest==999.0\n")
    monkeypatch.setattr(checks, "CONSTRAINTS", table)
    problems, warnings = check_versions()
    assert not problems and len(warnings) == 2
    assert "older than the tested 999.0" in warnings[0] and "numpy" in warnings[1] and "newer" in warnings[1]

    installed = {"torch": "2.11.0+cu130", "transformers": "6.0.0", "deepspeed": "0.20.1", "peft": "0.1"}
    monkeypatch.setattr(checks, "version", lambda name: installed.get(name) or importlib.metadata.version(name))
    problems, _ = check_versions()
    assert [problem.split()[1] for problem in problems] == ["transformers", "deepspeed", "peft"]
    assert "transformers 6.0.0 does not satisfy transformers<6,>=" in problems[0]
    assert problems[0].endswith("pip install -c constraints.txt -e '.[train]'")


def test_an_installed_package_is_compared_with_its_metadata(monkeypatch, tmp_path):
    """Catches a check that only works in a checkout, or that takes what the extras need for needed."""
    monkeypatch.setattr(checks, "SETUP", tmp_path / "setup.py")
    needed = ["torch>=999", "numpy>=1", 'trimesh>=999; extra == "scene"', 'vggt-qwen3[data]; extra == "train"']
    needed += [
        'peft>=0.1; extra == "train"',
        'tqdm>=999; extra == "data"',
        'vggt-qwen3[train,scene]; extra == "all"',
    ]
    monkeypatch.setattr(checks, "requires", lambda name: needed)
    assert [requirement.name for requirement in checks.requirements()] == ["torch", "numpy", "peft", "tqdm"]
    problems, _ = check_versions()
    assert len(problems) == 2 and "does not satisfy torch>=999" in problems[0] and "tqdm>=999" in problems[1]
    assert problems[0].endswith("constraints.txt 'vggt-qwen3[train]'")


def test_what_is_tested_satisfies_what_is_needed():
    """Catches a bound that leaves out the versions that the tests run with."""
    tested = dict(
        line.split("==") for line in checks.CONSTRAINTS.read_text().splitlines() if "==" in line and line[0] != "#"
    )
    for requirement in checks.requirements("dev"):
        assert requirement.specifier.contains(tested[requirement.name]), requirement


def test_cgroup_limits_count_in_both_versions(tmp_path):
    """Catches a job that takes the node's memory for its own and is killed hours later."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 50000000 kB\n")
    assert available_memory(tmp_path, "0::/user\n") == (50_000_000 * 1024, "the machine")
    group = tmp_path / "sys/fs/cgroup/slurm/job_1/step_0"
    group.mkdir(parents=True)
    # The limit is the job's, above the group of the process.
    for folder, limit in ((group, "max"), (group.parent, "8000000000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("3000000000")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 1000000000\n")
    amount, what = available_memory(tmp_path, "0::/slurm/job_1/step_0\n")
    assert amount == 6_000_000_000 and "job_1" in what
    group = tmp_path / "sys/fs/cgroup/memory/slurm/job_2"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000000")
    (group / "memory.usage_in_bytes").write_text("1000000000")
    (group / "memory.stat").write_text("total_inactive_file 0\n")
    assert available_memory(tmp_path, "5:cpu:/x\n4:memory:/slurm/job_2\n")[0] == 3_000_000_000


def test_a_port_in_use_and_an_address_of_another_machine():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"{port} of 127.0.0.1 is in use" in check_port("127.0.0.1", port)[0]
        assert check_rendezvous(1, 0, None, port) and not check_rendezvous(1, 0, None, None)
        assert check_rendezvous(2, 1, "127.0.0.1", port) == []
    assert "not an address of this machine" in check_rendezvous(2, 0, "192.0.2.1", port)[0]
    assert "not known here" in check_rendezvous(2, 1, "no-such-host.invalid", port)[0]
    assert len(check_rendezvous(2, 2, None, None)) == 2


def test_a_folder_of_another_run_or_with_half_a_checkpoint(checkpoint, repo, tmp_path):
    """Catches a run that goes on from what another one left, and one that is lost because of a damaged checkpoint."""
    output = tmp_path / "run"
    settings = read_settings("stage2", recipe(checkpoint, repo, output))
    plan = plan_batch(settings, 1, 2)
    assert check_output(settings, plan) == ([], [])
    for step in (10, 20):
        folder = output / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / MANIFEST).write_text(json.dumps({"files": {"trainer_state.json": 2}}))
    assert "no run_config.yaml" in check_output(settings, plan)[0][0]
    write_run_config(output, config_of(settings, plan))
    assert check_output(settings, plan) == ([], []) == check_checkpoints(settings)
    # Another number of processes is the same run; another learning rate is not.
    assert check_output(settings, plan_batch(settings, 2, 1)) == ([], [])
    settings.learning_rate = 0.5
    problems, _ = check_output(settings, plan)
    assert "learning_rate" in problems[0] and "0.5" in problems[0]
    (output / "checkpoint-20" / "trainer_state.json").write_text("{")
    problems, warnings = check_checkpoints(settings)
    assert not problems and "checkpoint-20" in warnings[0] and "1 bytes" in warnings[0]
    (output / "checkpoint-10" / MANIFEST).unlink()
    problems, _ = check_checkpoints(settings)
    assert "checkpoint-10" in problems[0] and "remove them to start again" in problems[0]


def test_a_second_launch_in_one_folder_is_kept_out(tmp_path):
    lock = lock_output(tmp_path / "run", 0)
    with pytest.raises(ValueError, match=f"in use by another launch: process {os.getpid()} on"):
        lock_output(tmp_path / "run", 0)
    lock_output(tmp_path / "run", 1).close()
    lock.close()
    lock_output(tmp_path / "run", 0).close()
    assert abs(clock_difference(tmp_path)) < 1


def test_every_problem_is_listed_at_once(tmp_path, monkeypatch):
    """Catches a launch that is started five times to find five mistakes."""
    output = tmp_path / "file"
    output.write_text("")
    argv = recipe(tmp_path / "no_model", tmp_path / "no_data", output, "--gradient_accumulation_steps", 3)
    with pytest.raises(ValueError) as error:
        preflight.launch(arguments("--num_processes", 3, "--num_machines", 2, "--machine_rank", 5), argv)
    text = str(error.value)
    assert "nothing was started" in text.splitlines()[0]
    for part in (
        "no_model is not here",
        "no_data is not here",
        "is a file",
        "cannot be shared by 3",
        "--machine_rank 5",
    ):
        assert part in text, part
    for part in ("need --main_process_ip", "3 cannot be shared by 2 machines", "gradient_accumulation_steps follows"):
        assert part in text, part
    assert output.read_text() == ""


def test_disk_memory_and_gpus_are_compared_with_the_need(checkpoint, repo, tmp_path, monkeypatch):
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path))
    run = preflight.describe(settings, False)
    usage = shutil.disk_usage(tmp_path)
    assert resources.check_disk(run, tmp_path / "new" / "run", False) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "Make room" in resources.check_disk(run, tmp_path / "new" / "run", False)[0]
    plan, memory = plan_batch(settings, 1, 2), Memory(0, 0, 0, 0, 1e15)
    assert "--mem" in resources.check_memory(run, memory, plan, 1, True)[0]
    assert resources.check_memory(run, Memory(0, 0, 0, 0, 0), plan, 1, True) == []
    assert resources.check_gpus([], settings, 1, 1, run) == []
    run.parts["projector"].trainable = 10**9
    assert "none is visible" in resources.check_gpus([], settings, 1, 1, run)[0]
    settings.use_cpu = True
    assert resources.check_gpus([], settings, 1, 1, run) == []
    settings.use_cpu = False
    assert "sees 1 GPUs" in resources.check_gpus([Gpu("x", 1, 1)], settings, 4, 2, run)[0]
    settings.bf16, old = True, Gpu("Tesla V100", 1, 1, bfloat16=False)
    assert "Tesla V100 has no bfloat16" in resources.check_gpus([Gpu("x", 1, 1), old], settings, 2, 1, run)[0]
    settings.bf16 = False
    assert resources.check_gpus([old], settings, 1, 1, run) == []


def test_a_precision_that_no_run_can_have_is_a_problem(checkpoint, repo, tmp_path):
    """Catches a run that is started, and ends in every process, for what its checkpoint's config tells."""
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path, "--fp16", "true"))
    assert check_precision(settings) == []
    model = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    settings.model_name_or_path = str(model)
    assert "fp16: the checkpoint is bfloat16" in check_precision(settings)[0]


def test_a_read_only_cache_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.write_text("")  # root may write to any folder, but not into a file
    problems = resources.check_writable(tmp_path, {"HOME": str(tmp_path), "TRITON_CACHE_DIR": str(closed / "triton")})
    assert len(problems) == 1 and problems[0].startswith("Cache TRITON_CACHE_DIR: cannot write to")


################
# Signals
################


WORKER = """
import os, signal, sys, time
folder = sys.argv[1]
got = []
if "late" not in sys.argv:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: got.append(number))
open(f"{folder}/ready-{os.getpid()}", "w").close()
deadline = time.time() + 20
while not got and time.time() < deadline:
    time.sleep(0.02)
time.sleep(0.3)  # a second signal would come now
open(f"{folder}/got-{os.getpid()}", "w").write(" ".join(map(str, got)))
sys.exit(75)
"""
LAUNCHER = """
import subprocess, sys
workers = [subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True) for _ in range(2)]
codes = [worker.wait() for worker in workers]
sys.exit(1 if any(codes) else 0)
"""
DRIVER = """
import os, sys
from recipes.launching.process import run
folder, launcher, worker, *rest = sys.argv[1:]
outcome = run([sys.executable, launcher, worker, folder, *rest], worker, dict(os.environ))
print(outcome.code, outcome.asked_to_stop, outcome.stopped_early)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("to_all", [False, True])
def test_signals_reach_every_training_process(number, to_all, tmp_path):
    """
    Catches a launcher that dies of the signal or kills its processes while they save; the batch system may signal this
    command only, or every process of the job.
    """
    driver = start_driver(tmp_path)
    workers = wait_for(lambda: list(tmp_path.glob("ready-*")), 2)
    if to_all and number != signal.SIGINT:
        for pid in {int(path.name.partition("-")[2]) for path in workers}:
            os.kill(pid, number)
    os.kill(driver.pid, number)
    out, _ = driver.communicate(timeout=20)
    got = [path.read_text().split() for path in tmp_path.glob("got-*")]
    assert len(got) == 2 and all(set(numbers) == {str(int(number))} for numbers in got), got
    if not to_all:
        assert all(len(numbers) == 1 for numbers in got)
    assert out.split() == ["1", str(number != signal.SIGINT), "False"]


def test_a_signal_before_training_ends_the_run_at_once(tmp_path):
    """Catches a job that is killed by the batch system because nothing listens yet."""
    driver = start_driver(tmp_path, "late")
    wait_for(lambda: list(tmp_path.glob("ready-*")), 2)
    started = time.monotonic()
    os.kill(driver.pid, signal.SIGTERM)
    out, _ = driver.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert out.split() == [str(128 + signal.SIGTERM), "True", "True"]
    assert not list(tmp_path.glob("got-*"))


def start_driver(folder, *rest):
    scripts = {"worker.py": WORKER, "launcher.py": LAUNCHER, "driver.py": DRIVER}
    for name, text in scripts.items():
        (folder / name).write_text(text)
    command = [folder / "driver.py", folder, folder / "launcher.py", folder / "worker.py", *rest]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def wait_for(function, number):
    deadline = time.monotonic() + 20
    while len(function()) < number:
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return function()


################
# Whole runs
################


def launch(*argv):
    command = [sys.executable, "-m", "recipes.launch", "stage2", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


SHORT = ["--max_steps", 4, "--eval_steps", 2, "--save_steps", 2, "--logging_steps", 1, "--report_to", "tensorboard"]


@pytest.mark.slow
def test_launched_runs_train_resume_and_are_monitored(checkpoint, repo, tmp_path):
    """A run as a user launches it on a CPU; what is wrong with a second one is found before it starts."""
    output = tmp_path / "run"
    argv = recipe(checkpoint, repo, output, *SHORT)
    result = launch("--num_processes", 1, "--", *argv)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "1 processes × micro-batch 2 × accumulation 1 = 2 sequences per step, by cpu.yaml" in result.stdout
    config = yaml.safe_load((output / "accelerate_config.yaml").read_text())
    assert config["distributed_type"] == "NO" and config["use_cpu"] is True
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    first = next(entry for entry in history if "loss" in entry)
    assert {"questions_per_second", "tokens_per_second", "padding", "memory_gb"} <= first.keys()
    result = subprocess.run(
        [sys.executable, "-m", "recipes.monitor", str(output), "--png", str(tmp_path / "run.png")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout and "step 4 of 4" in result.stdout and (tmp_path / "run.png").is_file()

    result = launch("--", *argv, "--learning_rate", "0.5")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "learning_rate" in result.stderr and "nothing was started" in result.stderr


@pytest.mark.slow
def test_two_processes_on_a_cpu_and_a_preemption(checkpoint, repo, tmp_path):
    """Two processes keep the global batch; SIGTERM saves and gives the exit code of a requeue; the same command goes on."""
    output = tmp_path / "run"
    argv = recipe(checkpoint, repo, output, "--max_steps", 150, "--save_steps", 150, "--eval_steps", 150)
    argv += ["--logging_steps", "1", "--eval_questions", "2"]
    command = [sys.executable, "-m", "recipes.launch", "stage2", "--num_processes", "2", "--", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    deadline = time.monotonic() + 200
    while not list((output / "runs").rglob("events*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out[-3000:]
    assert "2 processes × micro-batch 1 × accumulation 1 = 2" in out
    (folder,) = output.glob("checkpoint-*")
    step = int(folder.name.partition("-")[2])
    result = launch("--num_processes", 1, "--", *argv, "--save_total_limit", 5)
    assert result.returncode == 0, result.stderr[-3000:]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, 151)) and step < 150


def test_bad_arguments_exit_with_usage():
    for argv in (["stage9"], ["stage2", "--num_processes", "0"], ["stage2", "--utilisation", "2"]):
        with pytest.raises(SystemExit) as error:
            parse(argv)
        assert error.value.code == 2
    known, rest = parse(["stage2", "--num_processes", "auto", "--", "--seed", "1"])
    assert isinstance(known, Namespace) and rest == ["--seed", "1"] and known.num_processes == "auto"
