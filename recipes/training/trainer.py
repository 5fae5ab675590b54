# SPDX-License-Identifier: Apache-2.0
"""Trainer of VGGT-Qwen3: parameter groups per module, packed sampling, evaluation by generated answers."""

import logging
import re
import time
from functools import partial
from importlib import import_module

import torch
from accelerate.utils import gather_object, send_to_device
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import speed_metrics

from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

from ..common.scenes import SceneDataset, UnreadablePictureError
from ..runs.arguments import DataArguments, ModelArguments
from ..runs.checkpoints import ResumableTrainer
from .collator import collate_named
from .evaluating import BEST, measure, metrics_of, rows_to_ask
from .muon import MuonAdamW
from .packing import PackSampler
from .precision import autocast, use_autocast_under_zero
from .throughput import Throughput
from .watch import UNREADABLE, StepWatch


logger = logging.getLogger(__name__)


def freeze_and_adapt(model: VggtQwen3ForConditionalGeneration, arguments: ModelArguments):
    """
    Applies `freeze_vision`, `freeze_text`, `freeze_text_layers` and the `lora_*` settings.

    Projector, geometry encoder and anchor head always train. With LoRA the language model's own weights stay as they are, and
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
        modules_to_save=["projector", "geometry_encoder"]
        + ["anchor_head"] * (model.model.anchor_head is not None)
        + ["vision_model"] * (not arguments.freeze_vision),
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


class VggtQwen3Trainer(ResumableTrainer):
    """
    [`ResumableTrainer`] with a learning rate per module, [`PackSampler`]'s order, and exact match of generated
    answers (`eval_exact_match`) as the measure of a checkpoint; see [`evaluating.measure`] for anchors, lists and rooms.

    Args:
        data_arguments (`DataArguments`): Mixing weights, blindness, number of evaluation questions.
        eval_sources (`list[SceneDataset]`): What evaluations answer.
        loss_weights (`dict[str, float]`, *optional*): Weights of a model's `losses`, each of which is logged apart.

    `train` raises [`NonFiniteError`] at the first step whose loss or gradient is not finite, on all processes.
    """

    def __init__(
        self,
        *args,
        data_arguments: DataArguments,
        eval_sources: list[SceneDataset],
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        self.data_arguments = data_arguments
        self.eval_sources = eval_sources
        self.loss_weights = loss_weights
        self.loss_sums: dict[str, torch.Tensor] = {}
        self.first_summed_step = 0
        self.num_anchors_in_batch = None
        # Only its presence counts: Trainer refuses eval_strategy without one, `evaluate` reads eval_sources.
        super().__init__(*args, eval_dataset=eval_sources, **kwargs)
        self.throughput = Throughput(self.data_collator.processor.tokenizer.pad_token_id)
        self.add_callback(self.throughput)
        self.watch = StepWatch(self.train_dataset.sources, self.args.output_dir)
        self.add_callback(self.watch)
        self.unreadable_rows: dict[SceneDataset, set[int]] = {}  # of the sources of evaluations

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            use_autocast_under_zero(self.args, self.accelerator.state.deepspeed_plugin.deepspeed_config)

    def _prepare_input(self, data):
        # Moved, not cast: with DeepSpeed transformers would round cameras to bfloat16, centimetres in a room.
        return send_to_device(data, self.args.device)

    def _get_train_sampler(self, train_dataset=None) -> PackSampler:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        # What one optimizer step takes: the order is the same however many processes and accumulated batches share it.
        batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        self.train_sampler = PackSampler(self.train_dataset, self.data_arguments.dataset_weights, seed, batch_size)
        return self.train_sampler

    def _run_epoch(self, **kwargs):
        # Told here: where a run of several processes goes on within an epoch, the sampler lies below three wrappers, through
        # which accelerate's set_epoch does not reach. The rest of the epoch would be that of the first one.
        self.train_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def learning_rate_of(self, name: str) -> float:
        """The peak learning rate of the parameter `name`."""
        if any(f".{module}." in name for module in ("projector", "geometry_encoder", "anchor_head")):
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

    def get_train_dataloader(self):
        collate = self.data_collator
        self.data_collator = partial(collate_named, collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.watch.begin(batches)
        if torch.is_tensor(num_items):
            num_items = num_items.clamp(min=1)  # where all of a step is left out there is no answer to average over
        self.throughput.count(batches)
        # Anchor losses are averaged as Trainer averages the tokens': over accumulated batches and all processes.
        if self.model.config.anchor_hidden_size:
            count = sum(len(batch["anchor_targets"]) for batch in batches if "anchor_targets" in batch)
            # Filled there: a copy to the GPU would wait for all that it has been given to do.
            count = torch.full((1,), count, device=device)
            self.num_anchors_in_batch = self.accelerator.gather(count).sum()
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        if self.num_anchors_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = inputs | {"num_anchors_in_batch": self.num_anchors_in_batch, "loss_weights": self.loss_weights}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not self.loss_sums:
            self.first_summed_step = self.state.global_step
        for name, value in outputs.losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0) + value.detach()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.watch.losses.append(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        # Called once per optimizer step, before it; under DeepSpeed after it, which ZeRO leaves out by itself where the
        # norm is not finite. With float16 infinite gradients are how the loss's scale is found: the scaler skips them.
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = self.accelerator.scaler is not None
        self.watch.check(self.accelerator, None if scaled else grad_norm, self.state.global_step + 1)
        return grad_norm

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        if is_deepspeed_zero3_enabled() and isinstance(self.model, PeftModel):
            # DeepSpeed leaves out what is frozen; of the modules that PEFT saves whole it wants that too.
            frozen = {
                name: parameter
                for name, parameter in self.model.named_parameters()
                if ".modules_to_save." in name and not parameter.requires_grad
            }
            gathered = import_module("deepspeed").zero.GatheredParameters(list(frozen.values()))
            with gathered:  # on all processes together
                if self.args.should_save:
                    state_dict |= {name: parameter.detach().cpu().clone() for name, parameter in frozen.items()}
        super()._save(output_dir, state_dict)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if self.loss_sums and "loss" in logs:
            # Each is this process's part of a mean over all of them.
            steps = max(1, self.state.global_step - self.first_summed_step)
            names = list(self.loss_sums)
            sums = self.accelerator.reduce(torch.stack([self.loss_sums[name] for name in names]), "sum")
            logs |= {f"loss_{name}": value / steps for name, value in zip(names, sums.tolist(), strict=True)}
            self.loss_sums = {}
        if "loss" in logs:
            logs |= self.throughput.measure(self.accelerator)
            if self.watch.total:
                logs[UNREADABLE] = self.watch.logged = self.watch.total
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Asks the evaluation questions and returns `{prefix}_exact_match`, overall and per dataset, and what else there is of
        [`evaluating.metrics_of`]. A metric that no question has is left out.
        """
        start = time.time()
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        found, unreadable, paths = [], 0, self.data_arguments.dataset_paths
        # Numbered as `dataset_paths`, of which some may have nothing to evaluate on.
        numbers = [
            paths.index(source.path) if source.path in paths else position
            for position, source in enumerate(self.eval_sources)
        ]
        for number, source in zip(numbers, self.eval_sources, strict=True):
            asked = rows_to_ask(source, self.data_arguments.eval_questions, self.args.seed)
            readable = {kind: self._readable(source, rows) for kind, rows in asked.items()}
            unreadable += sum(len(asked[kind]) - len(readable[kind]) for kind in asked)
            with autocast(self.args):
                found += [
                    (number, *result)
                    for result in measure(
                        model,
                        self.processing_class,
                        source,
                        readable,
                        self.args.max_new_tokens,
                        blind=self.data_arguments.blind,
                        batch_size=self.args.per_device_eval_batch_size,
                        process=(self.args.process_index, self.args.world_size),
                        synced_gpus=is_deepspeed_zero3_enabled(),
                        progress=self.is_world_process_zero() and not self.args.disable_tqdm,
                    )
                ]
        model.train(was_training)
        found = gather_object(found)
        metrics = metrics_of([result for _, *result in found], metric_key_prefix)
        for number in dict.fromkeys(numbers) if len(paths) > 1 else ():
            own = metrics_of([result for source, *result in found if source == number], metric_key_prefix)
            metrics |= {f"{name}_{number}": value for name, value in own.items()}
        if unreadable:
            metrics[f"{metric_key_prefix}_unreadable_questions"] = unreadable
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=len(found)))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        # Of lists and rooms alone there is none; a run that needs one was refused before it began.
        return BEST in metrics and super()._determine_best_metric(metrics, trial)

    def _readable(self, source: SceneDataset, rows: list[int]) -> list[int]:
        """
        `rows` without those about scenes that cannot be read, if `on_unreadable` is skip. Before the first evaluation every
        scene is decoded once, by one of the processes; then all leave out the same.

        Raises:
            UnreadablePictureError: if no scene can be read.
        """
        if self.data_arguments.on_unreadable == "error" or self.data_arguments.blind or source.store is not None:
            return rows
        if source not in self.unreadable_rows:
            found = []
            for scene in list(source.questions_of_scene)[self.args.process_index :: self.args.world_size]:
                try:
                    source.scene_inputs(scene)
                except UnreadablePictureError as error:
                    found.append((scene, str(error)))
            found = gather_object(found)
            for _, message in found if self.is_world_process_zero() else ():
                logger.warning("Left out of evaluations, as on_unreadable: skip has it: %s", message)
            if len(found) == len(source.questions_of_scene):
                raise UnreadablePictureError(f"{source.path}, split {source.split}: no scene can be read")
            self.unreadable_rows[source] = {row for scene, _ in found for row in source.questions_of_scene[scene]}
        return [row for row in rows if row not in self.unreadable_rows[source]]


__all__ = ["VggtQwen3Trainer", "freeze_and_adapt"]
