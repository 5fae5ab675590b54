# SPDX-License-Identifier: Apache-2.0
"""Trainer of VGGT-Qwen3: parameter groups per module, packed sampling, evaluation by generated answers."""

import re
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object, send_to_device
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import speed_metrics

from data_scripts.files import write_atomically
from data_scripts.hub import check_repo, upload
from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from recipes.publishing.checkpoint import checkpoint_files
from recipes.publishing.upload import make_unevaluated_card

from .arguments import DataArguments, ModelArguments
from .checkpoints import ResumableTrainer
from .data import PackSampler, SceneDataset
from .evaluating import BEST, measure, metrics_of, rows_to_ask
from .monitoring import Throughput
from .muon import MuonAdamW
from .precision import autocast, use_autocast_under_zero
from .record import RECORD


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

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
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

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if self.loss_sums and "loss" in logs:
            # Each is this process's part of a mean over all of them.
            steps = max(1, self.state.global_step - self.first_summed_step)
            names = list(self.loss_sums)
            sums = self.accelerator.reduce(torch.stack([self.loss_sums[name] for name in names]), "sum")
            logs |= {f"loss_{name}": value / steps for name, value in zip(names, sums.tolist(), strict=True)}
            self.loss_sums = {}
        if "loss" in logs:
            # transformers takes the sum from itself to reset it; one that is not a number would stay in all later logs.
            self._tr_loss.zero_()
            logs |= self.throughput.measure(self.accelerator)
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
        found, paths = [], self.data_arguments.dataset_paths
        # Numbered as `dataset_paths`, of which some may have nothing to evaluate on.
        numbers = [
            paths.index(source.path) if source.path in paths else position
            for position, source in enumerate(self.eval_sources)
        ]
        for number, source in zip(numbers, self.eval_sources, strict=True):
            asked = rows_to_ask(source, self.data_arguments.eval_questions, self.args.seed)
            with autocast(self.args):
                found += [
                    (number, *result)
                    for result in measure(
                        model,
                        self.processing_class,
                        source,
                        asked,
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
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=len(found)))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        # Of lists and rooms alone there is none; a run that needs one was refused before it began.
        return BEST in metrics and super()._determine_best_metric(metrics, trial)

    def create_model_card(self, *args, **kwargs):
        """Writes the card that `push_to_hub.py` would write to `output_dir`, as far as it can be known without an evaluation."""
        if self.is_world_process_zero():
            output_dir = Path(self.args.output_dir)
            title = self.hub_model_id or output_dir.absolute().name
            write_atomically(output_dir / "README.md", make_unevaluated_card(output_dir, title))

    def push_to_hub(self, commit_message: str = "End of training", **kwargs) -> str | None:
        """
        Publishes what is in `output_dir` with its card, without a tag: `push_to_hub.py` validates and tags.

        Returns:
            The repo's address; None on other processes than the first.

        Raises:
            UploadError: if it cannot be uploaded.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        output_dir = Path(self.args.output_dir)
        files = checkpoint_files(output_dir) | {"README.md": output_dir / "README.md"}
        api = HfApi(token=self.args.hub_token, library_name="vggt-qwen3")
        options = {"private": bool(self.args.hub_private_repo), "tag": None}
        remote = check_repo(api, self.hub_model_id, "model", files, marker=RECORD, **options)
        return upload(api, self.hub_model_id, "model", files, remote, message=commit_message, **options)[0]


__all__ = ["VggtQwen3Trainer", "freeze_and_adapt"]
