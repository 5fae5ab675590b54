# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning, the same for every stage.

accelerate launch recipes/stage2.py [--config FILE.yaml] [--any_key value ...]
"""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from data_scripts.hub import UploadError
from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from recipes.common.loading import load_model, open_store, set_preprocessing

from ..common.scenes import MissingSplitError, SceneDataset, UnreadablePictureError, check_disjoint
from ..runs.arguments import ModelArguments, check_checkpoint_for, no_eval_split, parse_arguments
from ..runs.checkpoints import SAVING, CheckpointError, advice, check_base, checkpoint_to_resume
from ..runs.disk import move_into, saving
from ..runs.inputs import check_data
from ..runs.preemption import Preempted, Preemption, exit_preempted, train_or_exit
from ..runs.processes import agree, check_same, explain_lost, limit_waiting, together
from ..runs.record import finish_record, start_record
from ..runs.run_config import (
    check_output_dir,
    check_same_batch,
    lock_output_dir,
    resolved_config,
    unlock_output_dir,
    write_run_config,
)
from ..runs.zero import check_deepspeed_config
from .collator import PackCollator
from .comparison import describe_run
from .compilation import check_compile_layers, compile_layers
from .evaluating import check_evaluations
from .packing import PackDataset
from .precision import cast_trained, keep_trained_in_float32, load_dtype
from .trainer import VggtQwen3Trainer, freeze_and_adapt
from .watch import NonFiniteError, exit_stopped


logger = logging.getLogger(__name__)


def main(default_config: Path, publish: Callable[[VggtQwen3Trainer], str | None]):
    """
    Runs a stage with the settings of `default_config`, or of `--config`, and the command line.

    Args:
        publish (`Callable`): What `push_to_hub: true` does in the end, [`recipes.publishing.upload.publish_run`]: the recipes
            hand it over, because publishing is built on training.
    """
    ################
    # Arguments
    ################
    # Parsed before any model is made: under ZeRO-3 its parameters are partitioned as they are created.
    arguments = parse_arguments(default_config)
    try:
        run_stage(*arguments, publish)
    finally:
        unlock_output_dir()


def run_stage(model_arguments, data_arguments, training_arguments, publish):
    """Loads, compares, trains and saves; what cannot be done exits with a line that says why."""
    preemption = Preemption()
    preemption.install()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    transformers.logging.set_verbosity_warning()
    set_seed(training_arguments.seed)
    name = Path(sys.argv[0]).name
    try:
        limit_waiting(training_arguments)
        checkpoint = agree(training_arguments, start_run, model_arguments, data_arguments, training_arguments)
        trainer = make_trainer(model_arguments, data_arguments, training_arguments, checkpoint)
        path = model_arguments.model_name_or_path
        trainer.base = agree(training_arguments, check_base, checkpoint, path, trainer.base)
    except (OSError, ValueError) as error:
        sys.exit(f"{name}: {error}")
    except RuntimeError as error:
        sys.exit(f"{name}: {explain_lost(error, training_arguments)}")
    except Preempted as preempted:
        exit_preempted(preempted, training_arguments.output_dir)
    output_dir = Path(training_arguments.output_dir)
    try:
        with saving(output_dir, lambda: advice(output_dir)):
            run(trainer, model_arguments, preemption, checkpoint, publish)
    except NonFiniteError as error:
        exit_stopped(error, training_arguments.output_dir, name)
    except UnreadablePictureError as error:
        hint = "With --on_unreadable skip the same command leaves such scenes out and goes on."
        sys.exit(f"{name}: {error}" + f". {hint}" * (data_arguments.on_unreadable == "error"))
    except CheckpointError as error:
        sys.exit(f"{name}: {error}")
    except RuntimeError as error:
        sys.exit(f"{name}: {explain_lost(error, training_arguments, trainer.state.global_step)}")


def start_run(model_arguments, data_arguments, training_arguments) -> str | None:
    """
    Takes the output directory for a run of these settings, and returns the checkpoint to resume from, if any.

    Raises:
        ValueError: if the directory is another run's, or another is at work in it, no checkpoint in it is whole, a dataset is
            damaged, or DeepSpeed's settings contradict.
    """
    check_deepspeed_config(training_arguments)
    check_compile_layers(model_arguments.compile_layers)
    config = resolved_config(model_arguments, data_arguments, training_arguments)
    lock_output_dir(training_arguments.output_dir)
    check_output_dir(training_arguments.output_dir, config)
    checkpoint = checkpoint_to_resume(training_arguments)
    if checkpoint is not None:
        check_same_batch(checkpoint, config)  # where the folder is not that of this run
    check_data(data_arguments.dataset_paths, contents=data_arguments.verify_data)
    write_run_config(training_arguments.output_dir, config)
    return checkpoint


def make_trainer(
    model_arguments, data_arguments, training_arguments, checkpoint: str | None = None
) -> VggtQwen3Trainer:
    """
    Loads data and model, and checks both before any step is taken.

    Args:
        checkpoint (`str`, *optional*): What the run will resume from.

    Raises:
        OSError: if data or weights cannot be read.
        ValueError: for settings, data or checkpoints that cannot be trained with, or that another process has not.
    """
    arguments = (model_arguments, data_arguments, training_arguments)
    processor, train_dataset, eval_sources = together(training_arguments, load_data, *arguments)
    base = None
    # Before the model: under ZeRO-3 the processes load it together, and would wait for one that has another.
    if training_arguments.world_size > 1:
        loaded = (train_dataset, eval_sources, checkpoint)
        fields, base = together(training_arguments, describe_run, *arguments, *loaded)
        check_same(fields)

    ################
    # Model
    ################
    path = model_arguments.model_name_or_path
    dtype = load_dtype(training_arguments)
    model = load_for_training(path, processor, model_arguments, data_arguments.geometry_source, dtype)
    model.loss_chunk_size = model_arguments.loss_chunk_size
    model = freeze_and_adapt(model, model_arguments)
    keep_trained_in_float32(model)
    if model_arguments.compile_layers:
        compile_layers(model, training_arguments.device)
    collator = PackCollator(processor, model.config.text_config.max_position_embeddings)
    for source in train_dataset.sources:
        collator.check_context(source)
    # All that trains is used in every step, but for what an encoder computes after the layers that the projector reads;
    # buffers are constants. Looking for the one and sending the others costs DDP time in every step.
    if training_arguments.ddp_find_unused_parameters is None:
        training_arguments.ddp_find_unused_parameters = not model_arguments.freeze_vision
    if training_arguments.ddp_broadcast_buffers is None:
        training_arguments.ddp_broadcast_buffers = False
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    num_datasets = len(train_dataset.sources)
    logger.info("%s parameters train, in %s packs of %s datasets", trainable, len(train_dataset), num_datasets)

    trainer = VggtQwen3Trainer(
        model=model,
        loss_weights=model_arguments.loss_heads,
        args=training_arguments,
        train_dataset=train_dataset,
        data_collator=collator,
        processing_class=processor,
        data_arguments=data_arguments,
        eval_sources=eval_sources,
    )
    trainer.base = base
    return trainer


def load_data(
    model_arguments, data_arguments, training_arguments
) -> tuple[VggtQwen3Processor, PackDataset, list[SceneDataset]]:
    """
    The processor, what is trained on and what is evaluated on.

    Raises:
        OSError: if they cannot be read.
        ValueError: for settings, data or checkpoints that cannot be trained with.
    """
    path = model_arguments.model_name_or_path
    try:
        config = VggtQwen3Config.from_pretrained(path)
    except OSError as error:  # without a network transformers does not say of what
        raise ValueError(f"model_name_or_path {path} cannot be read: {error}") from error
    check_checkpoint_for(config, data_arguments, training_arguments)
    processor = VggtQwen3Processor.from_pretrained(path, trust_remote_code=False)
    set_preprocessing(processor, data_arguments.image_size, data_arguments.image_mode)
    store = None
    if data_arguments.feature_store is not None:
        if not model_arguments.freeze_vision:
            raise ValueError("feature_store needs freeze_vision: true; the features of an encoder that trains change.")
        store = open_store(data_arguments.feature_store, path, processor)
    options = (data_arguments.num_views, store, processor.image_processor)
    train_sources = [SceneDataset(path, data_arguments.train_split, *options) for path in data_arguments.dataset_paths]
    eval_sources = load_eval_sources(data_arguments, training_arguments, options)
    for train_source in train_sources:
        for eval_source in eval_sources:
            check_disjoint(train_source, eval_source)
    check_evaluations(eval_sources, data_arguments, training_arguments)
    train_dataset = PackDataset(
        train_sources,
        data_arguments.questions_per_scene,
        data_arguments.view_dropout,
        data_arguments.blind,
        data_arguments.feature_store_drop_tokens,
        # Without a head there is nothing to train on an anchor but its text.
        data_arguments.anchor_text_share
        if processor.has_anchor_head or model_arguments.numbers_from == "head"
        else 1.0,
        data_arguments.on_unreadable,
    )
    return processor, train_dataset, eval_sources


def load_eval_sources(data_arguments, training_arguments, options: tuple) -> list[SceneDataset]:
    """
    The datasets that evaluations ask about; one without `eval_split` trains all the same, and a warning says so.

    Args:
        options (`tuple`): Further arguments of [`SceneDataset`].

    Raises:
        ValueError: if there are to be evaluations, and none has the split.
    """
    sources, without = [], []
    for path in data_arguments.dataset_paths:
        try:
            sources.append(SceneDataset(path, data_arguments.eval_split, *options))
        except MissingSplitError:
            without.append(path)
    if not sources and training_arguments.eval_strategy != "no":
        raise ValueError(no_eval_split(without, data_arguments.eval_split))
    if without and training_arguments.process_index == 0:
        logger.warning(
            "Without a split %r, trained on and left out of evaluations: %s",
            data_arguments.eval_split,
            ", ".join(without),
        )
    return sources


def run(trainer: VggtQwen3Trainer, model_arguments, preemption: Preemption, checkpoint: str | None, publish: Callable):
    """Trains from `checkpoint` on, and leaves in `output_dir` the best checkpoint as a model that `from_pretrained` loads (LoRA merged)."""
    ################
    # Training
    ################
    record = start_record(trainer, model_arguments)
    try:
        result = train_or_exit(trainer, preemption, checkpoint)
    except NonFiniteError:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # closes the logs
        raise
    trainer.log_metrics("train", result.metrics)
    trainer.save_state()

    ################
    # Saving
    ################
    save(trainer, model_arguments)
    finish_record(record, result.metrics, trainer.watch.total)
    # Last, so that whoever finds this file finds a whole model.
    trainer.save_metrics("train", result.metrics)
    if trainer.args.push_to_hub:
        try:
            url = publish(trainer)
        except UploadError as error:
            sys.exit(f"{Path(sys.argv[0]).name}: the model is whole in {trainer.args.output_dir}. {error}")
        if url:
            print(f"published: {url}")


def load_for_training(
    path: str,
    processor: VggtQwen3Processor,
    arguments: ModelArguments,
    geometry_source: str | None,
    dtype: torch.dtype | None = None,
) -> VggtQwen3ForConditionalGeneration:
    """
    Loads the checkpoint to start from, in `dtype` or, by default, its own. With `numbers_from: head` one without an anchor
    head gets a new, random one, and `processor` the token `<|anchor|>`. Raises ValueError as [`load_model`].
    """
    config = VggtQwen3Config.from_pretrained(path)
    new_head = arguments.numbers_from == "head" and not config.anchor_hidden_size
    if new_head:
        config.anchor_hidden_size = arguments.anchor_hidden_size
        config.anchor_token_id = processor.add_anchor_token()
        logger.info("%s has no anchor head: a new one of width %s trains", path, config.anchor_hidden_size)
    if arguments.numbers_from is not None:
        config.numbers_from = arguments.numbers_from
    config.check_anchor_head()
    implementations = {
        "": arguments.attn_implementation,
        "text_config": arguments.attn_implementation,
        "vision_config": arguments.vision_attn_implementation or arguments.attn_implementation,
    }
    return load_model(path, implementations, geometry_source, config, new_head, dtype)


def save(trainer: VggtQwen3Trainer, model_arguments):
    """
    Writes model and processor to the output directory; a LoRA adapter to `adapter/`, and merged beside it. What trained is
    float32 in the adapter, and in the model of the type that the checkpoint had which the run started from.

    Everything is written to a folder of its own first: what is in the output directory is whole.
    """
    output_dir = Path(trainer.args.output_dir)
    folder = output_dir / SAVING / "model"
    if trainer.is_world_process_zero():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of a run that ended while it saved
        folder.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    try:
        write_model(trainer, model_arguments, folder)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            weights = {path.name for path in folder.glob("*.safetensors")}
            move_into(folder, output_dir)
            for path in output_dir.glob("*.safetensors"):
                if path.name not in weights:  # of an earlier save in other pieces
                    path.unlink()
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder.parent, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def write_model(trainer: VggtQwen3Trainer, model_arguments, folder: Path):
    dtype = load_dtype(trainer.args) or VggtQwen3Config.from_pretrained(model_arguments.model_name_or_path).dtype
    # Training switches the cache off; generation wants it.
    trainer.model.config.use_cache = True
    if not isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        cast_trained(trainer.model, dtype or torch.float32)
        trainer.save_model(str(folder), _internal_call=True)  # published when all is there, by `run`
        return
    adapter_dir = folder / "adapter"
    trainer.save_model(str(adapter_dir), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        # Merged from the files: under ZeRO-3 no process holds the whole model.
        if is_deepspeed_zero3_enabled():
            unset_hf_deepspeed_config()
        # A new anchor head's own weights are those of the adapter.
        base = load_for_training(
            model_arguments.model_name_or_path,
            trainer.processing_class,
            model_arguments,
            trainer.model.config.geometry_source,
            load_dtype(trainer.args),
        )
        merged = PeftModel.from_pretrained(base, adapter_dir).merge_and_unload()
        merged.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
