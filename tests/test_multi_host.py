# SPDX-License-Identifier: Apache-2.0
"""One run on two machines: network namespaces with a cable between them, as `recipes.launch` is started on each."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import write_toy_checkpoint, write_toy_repo


ROOT = Path(__file__).parent.parent
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # of the range that is reserved for examples
STEPS = 60


class Hosts:
    """Two namespaces of network devices; each knows itself and, by a pair of virtual cards, the other."""

    def __init__(self):
        self.names = [f"host{number}-{os.getpid()}" for number in (1, 2)]

    def __enter__(self):
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", self.names[0], "type", "veth", "peer", "eth0", "netns", self.names[1])
        for name, address in zip(self.names, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *exception):
        for number in range(2):
            self.kill(number)
            ip("netns", "delete", self.names[number])

    def kill(self, number: int):
        """What a machine that dies does: every process ends at once."""
        for process in ip("netns", "pids", self.names[number]).split():
            os.kill(int(process), signal.SIGKILL)

    def launch(self, number: int, log: Path, *arguments) -> subprocess.Popen:
        command = ["ip", "netns", "exec", self.names[number], sys.executable, "-m", "recipes.launch", "stage2"]
        command += ["--num_processes", "2", "--num_machines", "2", "--machine_rank", str(number)]
        command += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29400"]
        # The host name is the same in both namespaces, and resolves to the loopback device.
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        with log.open("w") as stream:
            return subprocess.Popen(
                [*command, *map(str, arguments)], cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )


def ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"ip {' '.join(arguments)}: {result.stderr}"
    return result.stdout


@pytest.fixture
def hosts():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2's `ip`")
    if subprocess.run(["ip", "netns", "add", "probe"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root make network namespaces")
    ip("netns", "delete", "probe")
    with Hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toy_checkpoint(folder / "model")
    write_toy_repo(folder / "repo", {"train": 6, "val": 2})
    return folder


def recipe(toys: Path, output: Path) -> list:
    return [
        *["--", "--use_cpu", "true", "--bf16", "false", "--model_name_or_path", toys / "model"],
        *["--dataset_paths", toys / "repo", "--dataset_weights", 1, "--freeze_text_layers", 0, "--image_size", 28],
        *["--dataloader_num_workers", 0, "--report_to", "none", "--eval_strategy", "no"],
        *["--load_best_model_at_end", "false", "--logging_steps", 1, "--global_batch_size", 4],
        *["--max_steps", STEPS, "--save_steps", 10, "--save_total_limit", 2, "--output_dir", output],
    ]


def losses_of(output: Path) -> dict[int, float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


@pytest.mark.slow
def test_a_host_that_dies_costs_no_checkpoint(hosts, toys, tmp_path):
    """
    Catches hosts that do not meet or draw other batches than the processes of one host do, a host that waits for a
    dead one, and a checkpoint that is lost with it: the run goes on, and its losses are those of one host.
    """
    output, logs = tmp_path / "two", [tmp_path / f"host{number}.log" for number in (1, 2)]
    first, second = (hosts.launch(number, logs[number], *recipe(toys, output)) for number in range(2))
    deadline = time.monotonic() + 90
    while not (output / "checkpoint-20" / "trainer_state.json").is_file():
        assert first.poll() is None and time.monotonic() < deadline, logs[0].read_text()[-4000:]
        time.sleep(0.05)
    hosts.kill(1)
    died = time.monotonic()
    assert second.wait(10) != 0
    assert first.wait(90) not in (0, 75), "a run that lost a host is neither finished nor preempted"
    print(f"host 1 ended {time.monotonic() - died:.1f} s after host 2 died")
    # "Connection closed by peer [...]", or "Read error [...]: Connection reset by peer" where bytes were on their way.
    assert re.search(rf"(closed by peer|error) \[{ADDRESSES[1]}\]", logs[0].read_text()), logs[0].read_text()[-8000:]
    assert "recipes.launch: the run failed with exit code 1; " in logs[0].read_text()

    alone = tmp_path / "one"
    command = [sys.executable, "-m", "recipes.launch", "stage2", "--num_processes", 2, *recipe(toys, alone)]
    with (tmp_path / "one.log").open("w") as stream:
        runs = [subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)]
    runs += [hosts.launch(number, logs[number], *recipe(toys, output)) for number in range(2)]
    try:
        assert [run.wait(150) for run in runs] == [0, 0, 0], logs[0].read_text()[-4000:]
    finally:
        runs[0].terminate()
    # What was saved before the death was gone on from, not begun anew.
    assert "'step': 1," not in logs[0].read_text()
    assert list(losses_of(output)) == list(range(1, STEPS + 1))
    assert losses_of(output) == pytest.approx(losses_of(alone), abs=1e-4)
