# SPDX-License-Identifier: Apache-2.0
"""Preemption: SIGTERM or SIGUSR1 in a training process saves a checkpoint and ends the run, to be started again.

Who receives what (read in torch 2.x's elastic agent, accelerate's launchers and Slurm's manual):
- A process of the run (what this module is about): either signal, as often as one likes.
- `accelerate launch` of one process starts a child and forwards nothing: signal the child, or both.
- `accelerate launch` of several processes runs torchrun's agent, each process in a session of its own. The agent passes
  SIGTERM on and kills what is left after TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (30): raise it to what saving takes.
  SIGUSR1 ends the agent at once and orphans the processes, unless it was started with the signal ignored.
- A launcher turns every exit code into 1: whether a run was preempted is told by `preempted.json` in its output folder.
"""

import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.data_loader import DataLoaderShard
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput


REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
PREEMPTED = "preempted.json"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """Ends a run that was asked to make room: by `signal_name`, after `step`."""

    def __init__(self, signal_name: str, step: int = 0):
        super().__init__(f"{signal_name} after step {step}")
        self.signal_name, self.step = signal_name, step


class Preemption(TrainerCallback):
    """
    Before training a signal raises [`Preempted`] at once: there is nothing to save. While training it is remembered;
    at the end of the step the processes agree on it, save a checkpoint together and raise [`Preempted`]. An
    evaluation due at that step is left out: the time that is left goes into the checkpoint.
    """

    def __init__(self):
        self.received, self.training, self.agreed = 0, False, 0

    def install(self):
        for number in SIGNALS:
            signal.signal(number, self._handle)
            signal.siginterrupt(number, False)  # what is being written goes on, below Python too

    def _handle(self, number, frame):
        first, self.received = not self.received, number
        if first and not self.training:
            raise Preempted(signal.Signals(number).name)

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self.received
        if args.world_size > 1:
            flag = torch.tensor(self.received, device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.agreed = int(flag)
        if self.agreed:
            control.should_save = control.should_log = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        if self.agreed:
            raise Preempted(signal.Signals(self.agreed).name, state.global_step)


def train_or_exit(trainer: Trainer, preemption: Preemption, checkpoint: str | None) -> TrainOutput:
    """`trainer.train`; if it is preempted, every process exits with `REQUEUE_EXIT_CODE` once all have saved."""
    trainer.add_callback(preemption)
    try:
        return trainer.train(resume_from_checkpoint=checkpoint)
    except Preempted as caught:
        preempted = caught.with_traceback(None)  # lets go of the data loader
    # Closes the logs; what else follows a training does not happen: no best model is loaded, nothing deleted.
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    exit_preempted(preempted, trainer.args.output_dir)


def exit_preempted(preempted: Preempted, output_dir: str):
    """Leaves the word of it in `output_dir` (from the first process) and exits with `REQUEUE_EXIT_CODE`."""
    if int(os.environ.get("RANK", 0)) == 0:
        word = {
            "signal": preempted.signal_name,
            "step": preempted.step,
            "checkpoint": f"{PREFIX_CHECKPOINT_DIR}-{preempted.step}" if preempted.step else None,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = Path(output_dir) / PREEMPTED
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".tmp")
        partial_path.write_text(json.dumps(word, indent=2) + "\n", encoding="utf-8")
        os.replace(partial_path, path)
        saved = f"saved {word['checkpoint']}" if preempted.step else "nothing to save yet"
        print(f"Preempted by {preempted.signal_name}: {saved}; the same command resumes.", file=sys.stderr)
    if dist.is_initialized() and preempted.step:
        dist.barrier()  # a launcher ends the others as soon as one has gone
    sys.exit(REQUEUE_EXIT_CODE)


def ignore_in_workers(loader: DataLoaderShard) -> DataLoaderShard:
    """
    `loader`, whose worker processes ignore the signals of others than their parent: what ends a job goes to all its
    processes, and the batches of the step that is under way are needed.
    """
    inner = loader.base_dataloader  # what accelerate's iterates over
    inner.worker_init_fn = partial(_ignore_others, inner.worker_init_fn)
    return loader


def _ignore_others(then, worker_id: int):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # SIGTERM is how the parent ends a worker that does not end by itself: only who sent it tells the two apart.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if then is not None:
        then(worker_id)


def _end_with_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


__all__ = [
    "PREEMPTED",
    "REQUEUE_EXIT_CODE",
    "Preempted",
    "Preemption",
    "exit_preempted",
    "ignore_in_workers",
    "train_or_exit",
]
