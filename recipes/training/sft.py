# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning, the same for every stage.

accelerate launch recipes/stage2.py [--config FILE.yaml] [--any_key value ...]
"""

import logging
import sys
from pathlib import Path

import transformers
from peft import PeftModel
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.trainer_utils import get_last_checkpoint

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Processor

from .arguments import parse_arguments
from .collator import PackCollator
from .data import PackDataset, SceneDataset, check_disjoint
from .store import FeatureStore, store_key
from .trainer import VggtQwen3Trainer, freeze_and_adapt


logger = logging.getLogger(__name__)


def main(default_config: Path):
    """Runs a stage with the settings of `default_config`, or of `--config`, and the command line."""
    ################
    # Arguments
    ################
    # Parsed before any model is made: under ZeRO-3 its parameters are partitioned as they are created.
    model_arguments, data_arguments, training_arguments = parse_arguments(default_config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    transformers.logging.set_verbosity_warning()
    set_seed(training_arguments.seed)
    try:
        trainer = make_trainer(model_arguments, data_arguments, training_arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    run(trainer, model_arguments)


def make_trainer(model_arguments, data_arguments, training_arguments) -> VggtQwen3Trainer:
    """
    Loads data and model, and checks both before any step is taken.

    Raises:
        OSError: if the checkpoint cannot be found.
        ValueError: for settings, data or checkpoints that cannot be trained with.
    """
    ################
    # Data
    ################
    path = model_arguments.model_name_or_path
    processor = VggtQwen3Processor.from_pretrained(path)
    set_preprocessing(processor, data_arguments.image_size, data_arguments.image_mode)
    store = None
    if data_arguments.feature_store is not None:
        if not model_arguments.freeze_vision:
            raise ValueError("feature_store needs freeze_vision: true; the features of an encoder that trains change.")
        store = open_store(data_arguments.feature_store, path, processor)
    sources = {
        split: [
            SceneDataset(dataset, split, data_arguments.num_views, store) for dataset in data_arguments.dataset_paths
        ]
        for split in (data_arguments.train_split, data_arguments.eval_split)
    }
    train_sources, eval_sources = sources[data_arguments.train_split], sources[data_arguments.eval_split]
    for train_source in train_sources:
        for eval_source in eval_sources:
            check_disjoint(train_source, eval_source)
    train_dataset = PackDataset(
        train_sources,
        data_arguments.questions_per_scene,
        data_arguments.view_dropout,
        data_arguments.blind,
        data_arguments.feature_store_drop_tokens,
    )

    ################
    # Model
    ################
    model = load_model(path, model_arguments.attn_implementation, data_arguments.geometry_source)
    model = freeze_and_adapt(model, model_arguments)
    collator = PackCollator(processor, model.config.text_config.max_position_embeddings)
    for source in train_sources:
        collator.check_context(source)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s parameters train, in %s packs of %s datasets", trainable, len(train_dataset), len(train_sources))

    return VggtQwen3Trainer(
        model=model,
        args=training_arguments,
        train_dataset=train_dataset,
        data_collator=collator,
        processing_class=processor,
        data_arguments=data_arguments,
        eval_sources=eval_sources,
    )


def run(trainer: VggtQwen3Trainer, model_arguments):
    """Trains, and leaves in `output_dir` the best checkpoint as a model that `from_pretrained` loads (LoRA merged)."""
    ################
    # Training
    ################
    resume = trainer.args.resume_from_checkpoint
    if resume == "auto":
        resume = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
    result = trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
    trainer.log_metrics("train", result.metrics)
    trainer.save_state()

    ################
    # Saving
    ################
    save(trainer, model_arguments)
    # Last, so that whoever finds this file finds a whole model.
    trainer.save_metrics("train", result.metrics)


def set_preprocessing(processor: VggtQwen3Processor, image_size: int | None, image_mode: str | None):
    """Changes how pictures are brought to the encoder's size; None leaves a setting as the checkpoint has it."""
    if image_size is not None:
        processor.image_processor.image_size = image_size
    if image_mode is not None:
        processor.image_processor.mode = image_mode


def open_store(path: str, checkpoint: str, processor: VggtQwen3Processor) -> FeatureStore:
    """The feature store at `path`, for reading. Raises ValueError if it does not fit checkpoint and preprocessing."""
    config = VggtQwen3Config.from_pretrained(checkpoint)
    return FeatureStore(path, store_key(checkpoint, config, processor.image_processor))


def load_model(
    path: str, attn_implementation: str, geometry_source: str | None = None
) -> VggtQwen3ForConditionalGeneration:
    """
    Loads a checkpoint, whole; with `geometry_source` in place of the one that it was saved with.

    Raises:
        ValueError: if keys are missing, unexpected or of the wrong shape: nothing is filled in silently; or if the
            checkpoint has no camera head to predict the geometry with.
    """
    model, info = VggtQwen3ForConditionalGeneration.from_pretrained(
        path,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # not ignored: reported below, by name
    )
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        details = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)})" for kind, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint {path} does not fit its own config. {details}")
    if geometry_source is not None:
        model.config.geometry_source = geometry_source
        model.config.check_geometry_source()
    return model


def save(trainer: VggtQwen3Trainer, model_arguments):
    """Writes model and processor to the output directory; a LoRA adapter to `adapter/`, and merged beside it."""
    output_dir = Path(trainer.args.output_dir)
    # Training switches the cache off; generation wants it.
    trainer.model.config.use_cache = True
    if not isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        trainer.save_model()
    else:
        adapter_dir = output_dir / "adapter"
        trainer.save_model(str(adapter_dir))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            # Merged from the files: under ZeRO-3 no process holds the whole model.
            if is_deepspeed_zero3_enabled():
                unset_hf_deepspeed_config()
            base = load_model(
                model_arguments.model_name_or_path,
                model_arguments.attn_implementation,
                trainer.model.config.geometry_source,
            )
            merged = PeftModel.from_pretrained(base, adapter_dir).merge_and_unload()
            merged.save_pretrained(output_dir)
            trainer.processing_class.save_pretrained(output_dir)
    trainer.accelerator.wait_for_everyone()
