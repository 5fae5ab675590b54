# SPDX-License-Identifier: Apache-2.0
"""The child process of a launch, and the signals that reach it."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil


FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Training processes handle these themselves; the launchers between must survive them. torchrun would kill the training
# processes half a minute after a SIGTERM, in the middle of a checkpoint.
SURVIVED = (signal.SIGTERM, signal.SIGUSR1)
LAUNCHER_ENVIRONMENT = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}


def ignore_signals():
    """Runs in the child before it becomes another program, which keeps what is ignored."""
    for number in SURVIVED:
        signal.signal(number, signal.SIG_IGN)


def training_processes(launcher: int, script: str) -> list[psutil.Process]:
    """The processes that `accelerate launch` started to run `script`; not the data loaders that they started."""
    try:
        children = psutil.Process(launcher).children()
        return [child for child in children if script in child.cmdline()]
    except psutil.Error:  # they ended meanwhile
        return []


def ignores(process: psutil.Process, number: int) -> bool:
    """Whether a process has no handler of its own yet for a signal that it was started ignoring."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.split("SigIgn:")[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


class Child:
    """
    Runs a command in a session of its own; what the batch system or the keyboard sends to this process reaches every
    training process once.

    A signal that comes while the training processes still load, before they can save anything, ends them.
    """

    def __init__(self, command: list[str], script: str, environment: dict[str, str]):
        self.script, self.stopped_early = script, None
        self.process = subprocess.Popen(
            command,
            env=environment | LAUNCHER_ENVIRONMENT,
            start_new_session=True,
            preexec_fn=ignore_signals,  # this process has no threads that matter to it
        )
        self.received: list[int] = []
        for number in FORWARDED:
            signal.signal(number, self.forward)

    def forward(self, number: int, frame):
        name = signal.Signals(number).name
        processes = training_processes(self.process.pid, self.script)
        if number == signal.SIGINT and signal.SIGINT in self.received:
            print(f"recipes.launch: {name} again: ending the run at once.", file=sys.stderr, flush=True)
            self.kill()
            return
        self.received.append(number)
        if not processes or (number in SURVIVED and any(ignores(process, number) for process in processes)):
            print(f"recipes.launch: {name} before training began: ending the run.", file=sys.stderr, flush=True)
            self.stopped_early = number
            self.kill()
            return
        print(f"recipes.launch: {name} passed on to {len(processes)} training processes.", file=sys.stderr, flush=True)
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.Error:
                continue

    def kill(self):
        """Ends every process of the child's, data loaders included."""
        try:
            processes = psutil.Process(self.process.pid).children(recursive=True)
            for process in processes:
                process.kill()
            os.killpg(self.process.pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            return

    def wait(self) -> int:
        """The exit code: the child's, negated signals as 128 + number; 128 + number if it was stopped early."""
        code = self.process.wait()
        if self.stopped_early is not None:
            return 128 + self.stopped_early
        return 128 - code if code < 0 else code


@dataclass
class Outcome:
    """
    How a child process ended.

    Args:
        code: Its exit code.
        asked_to_stop: A preemption's signal came.
        stopped_early: It came before training began.
    """

    code: int
    asked_to_stop: bool
    stopped_early: bool


def run(command: list[str], script: str, environment: dict[str, str]) -> Outcome:
    """Runs `command`, with signals passed on, and waits for it."""
    child = Child(command, script, environment)
    code = child.wait()
    asked = any(number in SURVIVED for number in child.received)
    return Outcome(code, asked, child.stopped_early in SURVIVED)


__all__ = ["Outcome", "run", "training_processes"]
