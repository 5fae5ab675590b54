# SPDX-License-Identifier: Apache-2.0
"""Trainer of VGGT-Qwen3: parameter groups per module, packed sampling, evaluation by generated answers."""

import random
import re
import time

import torch
from accelerate.utils import gather_object
from peft import LoraConfig, get_peft_model
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import speed_metrics

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from recipes.evaluation.generation import generate_answers
from recipes.metrics.three_d_qa.protocols import exact_match

from .arguments import DataArguments, ModelArguments
from .data import PackSampler, SceneDataset
from .muon import MuonAdamW


def freeze_and_adapt(model: VggtQwen3ForConditionalGeneration, arguments: ModelArguments):
    """
    Applies `freeze_vision`, `freeze_text`, `freeze_text_layers` and the `lora_*` settings.

    Projector and geometry encoder always train. With LoRA the language model's own weights stay as they are, and
    what trains beside it is saved whole with the adapter (`modules_to_save`).

    Returns:
        The model itself, or a PEFT model around it.

    Raises:
        ValueError: if a frozen layer does not exist, or the LoRA targets match nothing.
    """
    layers = model.model.language_model.layers
    outside = [layer for layer in arguments.freeze_text_layers if not 0 <= layer < len(layers)]
    if outside:
        raise ValueError(f"freeze_text_layers names {outside}, but the language model has layers 0-{len(layers) - 1}.")
    if arguments.freeze_vision:
        model.model.vision_model.requires_grad_(False)
    if arguments.freeze_text:
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    for layer in arguments.freeze_text_layers:
        layers[layer].requires_grad_(False)
    if arguments.lora_r == 0:
        return model
    adapted = [layer for layer in range(len(layers)) if layer not in arguments.freeze_text_layers]
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=(
            rf"model\.language_model\.layers\.({'|'.join(map(str, adapted))})\..*"
            rf"({'|'.join(map(re.escape, arguments.lora_target_modules))})"
        ),
        modules_to_save=["projector", "geometry_encoder"] + ["vision_model"] * (not arguments.freeze_vision),
        task_type="CAUSAL_LM",
    )
    # ZeRO-3 keeps all that trains in one buffer, of one dtype; otherwise adapters are better kept in float32.
    adapted_model = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    if not arguments.freeze_vision:
        # As in our models: PEFT's trainable copy of the encoder must not count as trained what no loss reaches.
        for name, parameter in adapted_model.named_parameters():
            if name.endswith("embeddings.mask_token") or ".camera_head." in name or ".depth_head." in name:
                parameter.requires_grad_(False)
    return adapted_model


class VggtQwen3Trainer(Trainer):
    """
    [`~transformers.Trainer`] with a learning rate per module, [`PackSampler`]'s order, and exact match of generated
    answers (`eval_exact_match`) as the measure of a checkpoint.

    Args:
        data_arguments (`DataArguments`): Mixing weights, blindness, number of evaluation questions.
        eval_sources (`list[SceneDataset]`): What evaluations answer.
    """

    def __init__(self, *args, data_arguments: DataArguments, eval_sources: list[SceneDataset], **kwargs):
        self.data_arguments = data_arguments
        self.eval_sources = eval_sources
        # Only its presence counts: Trainer refuses eval_strategy without one, `evaluate` reads eval_sources.
        super().__init__(*args, eval_dataset=eval_sources, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> PackSampler:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        batch_size = self.args.train_batch_size * self.args.world_size
        return PackSampler(self.train_dataset, self.data_arguments.dataset_weights, seed, batch_size)

    def learning_rate_of(self, name: str) -> float:
        """The peak learning rate of the parameter `name`."""
        if ".projector." in name or ".geometry_encoder." in name:
            rate = self.args.projector_learning_rate
        elif ".vision_model." in name:
            rate = self.args.vision_learning_rate
        else:
            rate = None
        return self.args.learning_rate if rate is None else rate

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        muon_rate = self.args.muon_learning_rate
        groups, muon_groups = {}, {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            decay = self.args.weight_decay if name in decayed else 0.0
            # Muon is for matrices that map activations to activations; (tied) embeddings and latents are tables.
            is_matrix = parameter.ndim == 2 and name.endswith("weight") and id(parameter) not in embeddings
            if muon_rate is not None and is_matrix:
                muon_groups.setdefault((muon_rate, decay), []).append(parameter)
            else:
                groups.setdefault((self.learning_rate_of(name), decay), []).append(parameter)
        optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        groups, muon_groups = (
            [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in by_key.items()]
            for by_key in (groups, muon_groups)
        )
        if muon_rate is None:
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        elif self.is_deepspeed_enabled or optimizer_class is not torch.optim.AdamW:
            raise ValueError("muon_learning_rate needs optim=adamw_torch_fused (or adamw_torch), without DeepSpeed.")
        else:
            self.optimizer = MuonAdamW(muon_groups, groups, **optimizer_kwargs)
        return self.optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Answers the evaluation questions and returns `{prefix}_exact_match`, overall and per dataset."""
        start = time.time()
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        correct = []
        for number, source in enumerate(self.eval_sources):
            rows = list(range(len(source.qa)))
            if self.data_arguments.eval_questions is not None:
                # The same questions in every evaluation and every run with this seed.
                rows = sorted(
                    random.Random(self.args.seed).sample(rows, min(len(rows), self.data_arguments.eval_questions))
                )
            with self.compute_loss_context_manager():
                answers = generate_answers(
                    model,
                    self.processing_class,
                    source,
                    rows,
                    blind=self.data_arguments.blind,
                    batch_size=self.args.per_device_eval_batch_size,
                    max_new_tokens=self.args.max_new_tokens,
                    process=(self.args.process_index, self.args.world_size),
                    synced_gpus=is_deepspeed_zero3_enabled(),
                    progress=self.is_world_process_zero() and not self.args.disable_tqdm,
                )
                correct += [(number, exact_match(answer, source.qa[row]["answers"])) for row, answer in answers]
        model.train(was_training)
        correct = gather_object(correct)
        metrics = {f"{metric_key_prefix}_exact_match": sum(match for _, match in correct) / len(correct)}
        for number in range(len(self.eval_sources)) if len(self.eval_sources) > 1 else ():
            matches = [match for source, match in correct if source == number]
            metrics[f"{metric_key_prefix}_exact_match_{number}"] = sum(matches) / len(matches)
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=len(correct)))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


__all__ = ["VggtQwen3Trainer", "freeze_and_adapt"]
