# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there: saved under another name, chosen to resume from, deleted when they are old."""

import dataclasses
import json
import logging
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import gather_object
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from peft import PeftModel
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from data_scripts.files import flush, flush_all, write_atomically

from .disk import failed_line, is_write_error
from .manifest import MANIFEST, check_checkpoint, hash_files, in_a_line, write_manifest
from .preemption import ignore_in_workers
from .processes import is_lost, limit_waiting
from .run_config import RUN_CONFIG
from .trained import TRAINED, CheckpointError, describe_weights, load_trained, save_trained
from .zero import load_zero_checkpoint, rank_of, save_zero_checkpoint


logger = logging.getLogger(__name__)

# Not checkpoint-*, so that nobody takes it for one; a leading underscore is not uploaded to the Hub.
SAVING = "_saving"


################
# Reading
################


def checkpoints_of(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-N` in `output_dir`, whole or not, latest first."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    named = [folder for folder in folders if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name)]
    return sorted(named, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """N of a folder `checkpoint-N`."""
    return int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def last_whole_checkpoint(output_dir: Path, hashes: bool = True) -> Path | None:
    """
    The latest checkpoint in `output_dir` that passes [`check_checkpoint`] (with its `hashes`, or without); a warning names
    each that does not.

    Raises:
        CheckpointError: if there are checkpoints and none is whole.
    """
    folders = checkpoints_of(output_dir)
    for folder in folders:
        try:
            check_checkpoint(folder, hashes)
        except CheckpointError as error:
            logger.warning("%s. Going back to the one before.", error)
        else:
            return folder
    if folders:
        raise CheckpointError(
            f"None of the {len(folders)} checkpoints in {output_dir} is whole. Remove them to start again."
        )
    return None


def checkpoint_to_resume(arguments) -> str | None:
    """
    What `resume_from_checkpoint` means: "auto" the last whole checkpoint of the output folder, "none", or a folder.

    Raises:
        CheckpointError: if there is none to resume from, or it needs another engine than the one that runs.
    """
    choice = arguments.resume_from_checkpoint
    if choice in (None, "none"):
        return None
    if choice == "auto":
        folder = last_whole_checkpoint(arguments.output_dir, arguments.verify_checkpoint)
    else:
        folder = Path(choice)
        check_checkpoint(folder, arguments.verify_checkpoint)
    if folder is None:
        return None
    of_deepspeed, with_deepspeed = (folder / "latest").exists(), arguments.deepspeed_plugin is not None
    if of_deepspeed != with_deepspeed:
        raise CheckpointError(
            f"{folder} was saved {'with' if of_deepspeed else 'without'} DeepSpeed and this run is "
            f"{'with' if with_deepspeed else 'without'} it: its optimizer cannot go on. Use an accelerate config like "
            "that of before, or start from its weights (python -m recipes.export)."
        )
    return str(folder)


def check_base(checkpoint: Path, path: str, base: dict[str, str] | None = None) -> dict[str, str]:
    """
    `describe_weights` of the base model at `path` (or `base`, where it is known), if `checkpoint` (None for any) was
    trained on these very weights.

    Raises:
        CheckpointError: naming both models, if it was not: it holds what trained of a model, which would be put into
            another one.
    """
    base = base or describe_weights(path)
    if checkpoint is None:
        return base
    trained_on = json.loads((Path(checkpoint) / MANIFEST).read_text(encoding="utf-8")).get("base")
    if trained_on is not None and trained_on["weights_sha256"] != base["weights_sha256"]:
        raise CheckpointError(
            f"{checkpoint} holds what was trained on {trained_on['path']} (weights {trained_on['weights_sha256'][:12]}), and "
            f"{path} has other weights ({base['weights_sha256'][:12]}): the two are not put together. Bring back the "
            "model that it was trained on, or train anew into another output_dir."
        )
    return base


################
# Writing
################


def remove_old_checkpoints(newest: Path, limit: int | None, best: str | None):
    """
    Deletes checkpoints beside `newest`, the oldest first, until there are `limit` (None or 0: as many as there are), but
    neither `newest` nor the `best`.

    Their age is the number of their step: clocks of file servers and nodes differ. Those of later steps than `newest` are
    the oldest, left by a run that was begun anew, or that went back.
    """
    if not limit or limit < 0:
        return
    others = [folder for folder in checkpoints_of(newest.parent) if folder.name != newest.name]
    step = step_of(newest)
    others.sort(key=lambda folder: (step_of(folder) < step, step_of(folder)))
    kept = {newest.name} | ({Path(best).name} if best is not None else set())
    surplus = len(others) + 1 - max(limit, len(kept))
    for folder in [folder for folder in others if folder.name not in kept][: max(0, surplus)]:
        shutil.rmtree(folder, ignore_errors=True)


def advice(output_dir: Path) -> str:
    """What is left of a run that could not save, and how it goes on."""
    last = next(iter(checkpoints_of(output_dir)), None)
    return f"{last} is whole: when there is room, the same command resumes from it." if last else ""


@contextmanager
def loading(checkpoint: str | None, files: str):
    """
    Within it `files` of a checkpoint are loaded: whatever they make their readers raise becomes a line that names them.

    Raises:
        CheckpointError: in place of any other error.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if is_lost(error):
            raise
        raise CheckpointError(
            f"{checkpoint} cannot be resumed from: {files}: {type(error).__name__}: {in_a_line(error)}. Remove it to go on "
            "from the one before."
        ) from error


class ResumableTrainer(Trainer):
    """
    [`~transformers.Trainer`] whose checkpoints appear in the output folder whole, or not at all, and under DeepSpeed can
    be resumed by any number of processes.

    `checkpoint-N` is written as `_saving/checkpoint-N`, brought to the disk and given a manifest, and then renamed; only
    after that are old ones deleted and is the new one pushed to the Hub.

    It holds what trains; what is frozen is that of `base` ([`describe_weights`]), which the manifest names.
    """

    _saving = False
    base: dict[str, str] | None = None

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            # Lets go of the data loader: workers that persist live, and hold memory, as long as it does.
            self.callback_handler.train_dataloader = None
            self.accelerator._dataloaders.clear()

    def get_train_dataloader(self):
        loader = ignore_in_workers(super().get_train_dataloader())
        # A loader draws a number when its workers start: in every epoch, or once where they persist, and again when a
        # run is resumed. Drawn from the model's generator it would make the resumed run another one.
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, SAVING) if self._saving else folder

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if not self._saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        output_dir = Path(self._get_output_dir(trial))
        final = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = output_dir / SAVING / final.name
        if self.args.should_save and folder.parent.exists():
            shutil.rmtree(folder.parent)  # of a run that was killed while it saved
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # all ranks have written
            if self.state.best_model_checkpoint == str(folder):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                shutil.copy2(output_dir / RUN_CONFIG, folder)
            # Each process reads what it has written itself, which its machine still has in memory.
            hashes = gather_object([hash_files(folder, self._own_files(folder), flushed=True)])
            if self.args.should_save:
                hashes = dict(sorted(item for own in hashes for item in own.items()))
                write_manifest(folder, world_size=self.args.world_size, base=self.base, sha256=hashes)
            self.accelerator.wait_for_everyone()  # the folder's files keep their names from here on
            if self.accelerator.is_local_main_process:
                flush_all(folder)
        except Exception as error:
            failed = (
                failed_line(final, error) if is_write_error(error) else None
            )  # of the space there was, before it is freed
            if self.args.should_save:
                shutil.rmtree(folder.parent, ignore_errors=True)
            if failed is None:
                raise
            raise CheckpointError(f"{failed} {advice(output_dir)}".rstrip()) from error
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()  # all nodes have flushed
        if self.args.should_save:
            if final.exists():  # one that was not whole, and is made again
                shutil.rmtree(final)
            os.rename(folder, final)
            folder.parent.rmdir()
            flush(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            remove_old_checkpoints(final, self.args.save_total_limit, self.state.best_model_checkpoint)

    def save_state(self):
        if self.args.should_save:
            # As Trainer writes it, but whole.
            state = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n"
            write_atomically(Path(self.args.output_dir) / TRAINER_STATE_NAME, state)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True):
        if not self.is_world_process_zero():
            return
        output_dir = Path(self.args.output_dir)
        every = output_dir / "all_results.json"
        if combined:
            before = json.loads(every.read_text(encoding="utf-8")) if every.is_file() else {}
            write_atomically(every, json.dumps(before | metrics, indent=4, sort_keys=True) + "\n")
        write_atomically(output_dir / f"{split}_results.json", json.dumps(metrics, indent=4, sort_keys=True) + "\n")

    def _own_files(self, folder: Path) -> list[Path]:
        """The files of a checkpoint that this process has written: DeepSpeed's of its rank; of the first, all others."""
        return [path for path in folder.rglob("*") if path.is_file() and rank_of(path) == self.args.process_index]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        of_deepspeed = self.is_deepspeed_enabled
        # With LoRA it is the adapter that is saved.
        if not self._saving or isinstance(self.model, PeftModel) or (of_deepspeed and self.args.save_only_model):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # other processes write there too
            if not of_deepspeed:  # whose own files have the weights in float32
                save_trained(self.model, Path(output_dir))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)
            torch.save(self.args, Path(output_dir) / TRAINING_ARGS_NAME)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_zero_checkpoint(self.model_wrapped, Path(output_dir))
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        with loading(checkpoint, TRAINER_STATE_NAME):
            begin = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
            )
        # Of a run that trained to its end and could not save the model: Trainer would take a step too many.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else begin

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        with loading(resume_from_checkpoint, f"{TRAINED} or adapter"):
            if (Path(resume_from_checkpoint) / TRAINED).is_file():
                load_trained(self.model, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        with loading(checkpoint, f"{OPTIMIZER_NAME} or {SCHEDULER_NAME}"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None):
        with loading(checkpoint, "rng_state"):
            super()._load_rng_state(checkpoint)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        by_deepspeed = self.is_deepspeed_enabled and resume_from_checkpoint is not None
        # DeepSpeed's own loading takes as many processes as there were, and unpickles whatever is in the files.
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if by_deepspeed else resume_from_checkpoint
        )
        limit_waiting(self.args)  # in the groups that DeepSpeed has made
        if not by_deepspeed:
            return prepared
        with loading(resume_from_checkpoint, "DeepSpeed's files"):
            load_zero_checkpoint(self.model_wrapped, Path(resume_from_checkpoint))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_best_model(self):
        if self.is_deepspeed_enabled:
            load_zero_checkpoint(self.model_wrapped, Path(self.state.best_model_checkpoint))
        elif (Path(self.state.best_model_checkpoint) / TRAINED).is_file():
            load_trained(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


__all__ = [
    "SAVING",
    "CheckpointError",
    "ResumableTrainer",
    "advice",
    "check_base",
    "check_checkpoint",
    "checkpoint_to_resume",
    "checkpoints_of",
    "last_whole_checkpoint",
    "remove_old_checkpoints",
]
