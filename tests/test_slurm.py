# SPDX-License-Identifier: Apache-2.0
"""The sbatch files on a real Slurm of two nodes (slurm_cluster.py), as they are: submitted, preempted, resumed."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import slurm_cluster, why_not
from toys import write_toy_checkpoint, write_toy_repo


ROOT = Path(__file__).parent.parent
SLURM = ROOT / "recipes" / "slurm"
STEPS = 80


def test_sbatch_files_are_sound():
    """Catches shell errors, and files that lose what makes a job resume."""
    files = sorted(SLURM.glob("*.sbatch"))
    assert [file.stem for file in files] == ["full_node", "multi_node", "stage1", "stage2", "stage3"]
    for file in [*files, SLURM / "common.sh"]:
        result = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        result = subprocess.run(
            [Path(sys.executable).parent / "shellcheck", "--external-sources", file],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stdout
    for file in files:
        directives = re.findall(r"^#SBATCH (--[\w-]+)", file.read_text(), re.MULTILINE)
        assert {"--account", "--partition", "--requeue", "--signal", "--open-mode", "--output"} <= set(directives)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toy_checkpoint(folder / "model")
    write_toy_repo(folder / "repo", {"train": 6, "val": 2})
    return folder


class Job:
    """A job submitted as a user does, from the repository's root; it logs to `folder`."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments):
        self.environment = environment | {
            "MODULES": "",
            "SBATCH_OUTPUT": f"{folder}/%x-%j.log",
            "OMP_NUM_THREADS": "1",
        }
        self.environment |= {"PYTHON": sys.executable}
        self.number = self.call("sbatch", "--parsable", *arguments).strip()
        self.folder = folder

    def call(self, *command) -> str:
        result = subprocess.run(
            list(map(str, command)), env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def details(self) -> dict[str, str]:
        """What Slurm knows of the job, by name."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "--oneliner", "show", "job", self.number)))

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"*-{self.number}.log"))

    def wait(self, condition, seconds: int = 90):
        """Waits until `condition(details, log)`; a job that ends before is shown."""
        deadline = time.monotonic() + seconds
        while not condition(details := self.details(), log := self.log()):
            over = details["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
            assert not over and time.monotonic() < deadline, f"{details}\n{log[-4000:]}"
            time.sleep(0.2)

    def finish(self) -> str:
        """Waits for the end; returns the state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda details, log: details["JobState"] in ends)
        return self.details()["JobState"]


def recipe(toys: Path, output: Path, *arguments) -> list:
    """Arguments of a small run on the CPU; what Slurm gives as GPUs are only names."""
    return [
        *["--", "--use_cpu", "true", "--bf16", "false", "--model_name_or_path", toys / "model"],
        *["--dataset_paths", toys / "repo", "--dataset_weights", 1, "--freeze_text_layers", 0, "--image_size", 28],
        *["--dataloader_num_workers", 0, "--report_to", "none", "--eval_strategy", "no"],
        *["--load_best_model_at_end", "false", "--logging_steps", 1, "--global_batch_size", 2, "--output_dir", output],
        *arguments,
    ]


def losses_of(output: Path) -> dict[int, float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def trained(details: dict[str, str], log: str) -> bool:
    return "'loss'" in log


@pytest.mark.slow
def test_a_preempted_job_resumes_by_itself(cluster, toys, tmp_path):
    """
    Catches notices that do not reach the training processes, a job that ends instead of being requeued, and losses that
    differ from those of a job left in peace. A partition of higher priority takes the node.
    """
    steps = ["--max_steps", STEPS]
    peaceful = Job(
        cluster, tmp_path, SLURM / "full_node.sbatch", "stage2", *recipe(toys, tmp_path / "peaceful", *steps)
    )
    job = Job(cluster, tmp_path, SLURM / "stage2.sbatch", *recipe(toys, tmp_path / "preempted", *steps))
    job.wait(trained)
    node = job.details()["NodeList"]
    urgent = Job(cluster, tmp_path, "--partition=urgent", f"--nodelist={node}", "--exclusive", "--wrap", "sleep 1")
    assert urgent.finish() == "COMPLETED"
    assert job.details()["Restarts"] == "1" and "goes back to the queue" in job.log()
    assert "Preempted by SIGTERM: saved checkpoint-" in job.log()

    assert job.finish() == "COMPLETED", job.log()
    assert job.details()["Restarts"] == "1" and job.log().count(", start ") == 2
    assert peaceful.finish() == "COMPLETED", peaceful.log()
    losses = losses_of(tmp_path / "preempted")
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses == pytest.approx(losses_of(tmp_path / "peaceful"), abs=1e-4)
    assert (tmp_path / "preempted" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_nodes_train_one_model(cluster, toys, tmp_path):
    """Catches nodes that do not meet, ranks given twice, and requeues beyond MAX_REQUEUES."""
    arguments = [SLURM / "multi_node.sbatch", "stage2", "--num_processes", 2]
    arguments += recipe(toys, tmp_path / "two", "--max_steps", 10**6, "--save_total_limit", 1)
    job = Job(cluster | {"MAX_REQUEUES": "0"}, tmp_path, *arguments)
    job.wait(trained)
    job.call("scancel", "--signal=USR1", job.number)
    assert job.finish() == "FAILED"
    assert job.details()["ExitCode"] == "75:0", job.log()
    assert "requeued 0 times already (MAX_REQUEUES)" in job.log()
    assert job.log().count("Preempted by SIGUSR1: saved checkpoint-") == 1
    assert "2 processes × micro-batch 1 × accumulation 1" in job.log()
    assert job.log().count("SIGUSR1 passed on to 1 training processes") == 2


@pytest.mark.slow
def test_what_cannot_run_fails_once(cluster, toys, tmp_path):
    """Catches bad input that is requeued or that a job's success hides, and a cancelled job that comes back."""
    stages = ("stage1", "stage3")
    jobs = [Job(cluster, tmp_path, SLURM / f"{stage}.sbatch", *recipe(toys / stage, tmp_path)) for stage in stages]
    for stage, job in zip(stages, jobs):
        assert job.finish() == "FAILED"
        assert job.details()["ExitCode"] == "1:0" and job.details()["Restarts"] == "0"
        assert "nothing was started" in job.log() and str(toys / stage) in job.log()
    outside = Job(cluster, tmp_path, f"--chdir={tmp_path}", SLURM / "stage1.sbatch")
    assert outside.finish() == "FAILED" and "Submit from the repository's root" in outside.log()

    job = Job(cluster, tmp_path, SLURM / "stage2.sbatch", *recipe(toys, tmp_path / "cancelled"))
    job.wait(lambda details, log: ", start 1," in log)
    time.sleep(1)
    job.call("scancel", job.number)
    assert job.finish() == "CANCELLED"
    time.sleep(2)
    assert job.details()["JobState"] == "CANCELLED" and job.details()["Restarts"] == "0"

    result = subprocess.run(
        ["sbatch", SLURM / "stage2.sbatch"],
        env=cluster | {"SBATCH_PARTITION": "gpus"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "invalid partition specified: gpus" in result.stderr
