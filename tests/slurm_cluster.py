# SPDX-License-Identifier: Apache-2.0
"""
A real Slurm on this machine: nodes (two by default) that claim the size of a DGX B200 each, all state in one folder.

    python tests/slurm_cluster.py COMMAND...        runs a command beside the cluster, and shuts the cluster down

Needs root, for slurmd starts jobs as their owners. Nodes share this machine's cores and memory; their GPUs are names
without devices, so that the sbatch files can be submitted as they are and train on the CPU.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil


DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = ["slurm-wlm", "munge"]
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
AuthType=auth/munge
# A requeued job waits as long as the credentials of its last run live: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
# The nodes have what is written here, whatever the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT Sockets=2 CoresPerSocket=56 RealMemory=2000000 Gres=gpu:b200:8
{node_lines}
PartitionName=DEFAULT Nodes={node_names} MaxTime=14-0 DefMemPerCPU=100
PartitionName=hpg-b200 Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why a cluster cannot be started here, or None if it can; installs Slurm if that is all that is missing."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root: slurmd starts jobs as their owners"
    if all(map(shutil.which, DAEMONS)):
        return None
    if shutil.which("apt-get") is None:
        return f"{', '.join(DAEMONS)} are not installed, and there is no apt-get to install them with"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        result = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=environment)
    if result.returncode != 0 or not all(map(shutil.which, DAEMONS)):
        return f"apt-get could not install {' and '.join(PACKAGES)}: {result.stderr.strip()[-300:]}"
    return None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def slurm_cluster(folder: Path, nodes: int = 2):
    """
    Runs munged, slurmctld and a slurmd per node while the block runs, and kills them and their jobs after it.

    Yields:
        The environment in which sbatch, squeue and scontrol find the cluster.

    Raises:
        RuntimeError: with the daemons' logs, if the nodes are not idle within 30 seconds.
    """
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller_port, *node_ports = free_ports(1 + nodes)
    names = [f"node{number}" for number in range(1, nodes + 1)]
    lines = "\n".join(f"NodeName={name} NodeAddr=127.0.0.1 Port={port}" for name, port in zip(names, node_ports))
    configuration = folder / "slurm.conf"
    configuration.write_text(
        SLURM_CONF.format(folder=folder, controller_port=controller_port, node_lines=lines, node_names=",".join(names))
    )
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=b200 File={folder}/gpu[0-7]\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment |= {"SLURM_CONF": str(configuration)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log"]
    daemons = []

    def start(*command: str):
        log = open(folder / "daemons.log", "a")
        daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))

    def states() -> list[str]:
        command = ["sinfo", "--noheader", "--Node", "--partition=urgent", "--format=%T"]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()

    try:
        start(*munge)
        wait_for((folder / "munge.socket").exists, 10, "munged has no socket", folder)
        start("slurmctld", "-D", "-f", str(configuration))
        for node in names:
            start("slurmd", "-D", "-N", node, "-f", str(configuration))
        wait_for(lambda: states() == ["idle"] * nodes, 30, "the nodes are not idle", folder)
        yield environment
    finally:
        # While the controller lives: nothing is requeued, and slurmstepd goes with the processes it watches.
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for process in processes_of(configuration, daemons):
            process.kill()
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in processes_of(configuration, []):
            process.kill()


def processes_of(configuration: Path, daemons: list[subprocess.Popen]) -> list[psutil.Process]:
    """What the jobs of the cluster with this configuration still run: they inherit SLURM_CONF from slurmd."""
    found = []
    for process in psutil.process_iter():
        try:
            of_cluster = process.environ().get("SLURM_CONF") == str(configuration)
        except psutil.Error:
            continue
        if of_cluster and process.pid not in [os.getpid(), *(daemon.pid for daemon in daemons)]:
            found.append(process)
    return found


def wait_for(condition, seconds: float, what: str, folder: Path):
    """Raises RuntimeError with `what` and the end of the daemons' logs if `condition` is not true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"{what} after {seconds} s.\n{logs}")
        time.sleep(0.1)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if reason := why_not():
        sys.exit(f"No cluster: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as environment:
        status = subprocess.run(sys.argv[1:], env=environment).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
