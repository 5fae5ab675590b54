# SPDX-License-Identifier: Apache-2.0
"""VGGT-Qwen3: the VGGT encoder's tokens of several views, projected into a causal language model."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Unpack

import torch
from torch import nn
from torch.amp import is_autocast_available
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .configuration_vggt_qwen3 import VggtQwen3Config
from .generation_vggt_qwen3 import VggtQwen3GenerationMixin
from .geometry_vggt_qwen3 import Cameras, prediction_to_geometry_inputs
from .loss_vggt_qwen3 import VggtQwen3LMHead, chunked_causal_lm_loss
from .modeling_vggt import VggtModel, count_views
from .modeling_vggt_qwen3_anchor import VggtQwen3AnchorHead, anchor_losses, find_anchors
from .modeling_vggt_qwen3_inputs import OF_SCENES, VggtQwen3Inputs, VggtQwen3SceneInputs, check_names, takes
from .modeling_vggt_qwen3_outputs import (
    VggtQwen3CausalLMOutputWithPast,
    VggtQwen3ImageFeatures,
    VggtQwen3ModelOutputWithPast,
)
from .modeling_vggt_qwen3_projector import PROJECTORS, VggtQwen3GeometryEncoder, VggtQwen3PerceiverProjector
from .module_modes_vggt_qwen3 import modes_to_set
from .packing_vggt_qwen3 import create_packed_mask


class VggtQwen3PreTrainedModel(PreTrainedModel):
    config: VggtQwen3Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VggtBlock", "Dinov2WithRegistersLayer", "VggtQwen3PerceiverLayer", "Qwen3DecoderLayer"]
    _no_split_modules += ["VggtQwen3AnchorLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VggtQwen3PerceiverProjector):
            init.normal_(module.latents, std=self.config.initializer_range)
        elif isinstance(module, VggtQwen3GeometryEncoder):
            init.normal_(module.null_embedding, std=self.config.initializer_range)
        elif isinstance(module, VggtQwen3AnchorHead):
            for embedding in (module.token_embedding, module.no_camera_embedding):
                init.normal_(embedding, std=self.config.initializer_range)

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs):
        """As transformers'; the backbone, whose config is not a part of ours, gets what its encoder gets."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, VggtModel):
                module.backbone.config._attn_implementation = module.config._attn_implementation

    def train(self, mode: bool = True):
        """
        Like `nn.Module.train`, but modules whose parameters are all frozen stay in eval mode; see
        [`~module_modes_vggt_qwen3.modes_to_set`]. Costs little if nothing has changed.
        """
        if modes_to_set(self, mode):
            super().train(mode)  # which calls modules that have a `train` of their own
            for module, training in modes_to_set(self, mode).items():
                module.training = training
        return self


class VggtQwen3Model(VggtQwen3PreTrainedModel):
    """Encoder, projector, geometry encoder and language model, without the language modeling head."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__(config)
        self.vision_model = VggtModel._from_config(config.vision_config)
        # No loss reaches VGGT's heads: what they predict is an input here. Frozen, they do not count as trained.
        for head in (self.vision_model.camera_head, self.vision_model.depth_head):
            if head is not None:
                head.requires_grad_(False)
        self.projector = PROJECTORS[config.projector_type](config)
        self.geometry_encoder = VggtQwen3GeometryEncoder(config)
        self.anchor_head = VggtQwen3AnchorHead(config) if config.anchor_hidden_size else None
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def _embed_tokens(self, input_ids: torch.LongTensor) -> torch.Tensor:
        if self.anchor_head is None:
            return self.get_input_embeddings()(input_ids)
        # The anchor's id may lie beyond the table: any other row is looked up in its place.
        is_anchor = input_ids == self.config.anchor_token_id
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_anchor, 0))
        return torch.where(is_anchor[..., None], self.anchor_head.token_embedding.to(embeddings.dtype), embeddings)

    def encode_views(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        view_counts: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """The patch tokens that the projector reads, `[S, V, P, 2C * layers]`, of `pixel_values [S, V, 3, H, W]`."""
        layers = self.config.vision_feature_layers
        return self._patch_features(self._run_encoder(pixel_values, view_mask, view_counts, layers))

    def _run_encoder(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None,
        view_counts: Sequence[int] | None,
        layers: Sequence[int],
    ) -> BaseModelOutput:
        # A frozen encoder keeps no activations. In autocast's own type it needs no autocast either: without, its tokens
        # and cameras are those of inference and of a feature store.
        encoder_trains = any(parameter.requires_grad for parameter in self.vision_model.parameters())
        device = pixel_values.device.type
        autocast = nullcontext()
        if not encoder_trains and is_autocast_available(device) and torch.is_autocast_enabled(device):
            own_type = self.vision_model.camera_token.dtype == torch.get_autocast_dtype(device)
            autocast = torch.autocast(device, enabled=not own_type)
        with torch.set_grad_enabled(torch.is_grad_enabled() and encoder_trains), autocast:
            return self.vision_model(
                pixel_values, view_mask=view_mask, view_counts=view_counts, hidden_state_layers=layers
            )

    def _patch_features(self, outputs: BaseModelOutput) -> torch.Tensor:
        first_patch = 1 + self.config.vision_config.num_register_tokens
        layers = outputs.hidden_states[: len(self.config.vision_feature_layers)]
        return torch.cat([layer[:, :, first_patch:] for layer in layers], dim=-1)

    def encode_views_and_geometry(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        view_counts: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, Cameras]:
        """
        As [`~VggtQwen3Model.encode_views`], and the cameras that VGGT's heads predict from the same pass, without a gradient.

        Raises:
            ValueError: if the encoder has no camera head.
        """
        self.config.check_geometry_source()
        feature_layers = list(self.config.vision_feature_layers)
        layers = feature_layers + list(self.config.vision_config.depth_head_layers)
        outputs = self._run_encoder(pixel_values, view_mask, view_counts, layers)
        image_size = tuple(pixel_values.shape[-2:])
        with torch.no_grad():
            geometry = self.vision_model.decode_geometry(
                outputs.last_hidden_state,
                outputs.hidden_states[len(feature_layers) :],
                image_size,
                view_mask,
                view_counts,
            )
            cameras = prediction_to_geometry_inputs(
                geometry.extrinsics,
                geometry.intrinsics,
                geometry.depth,
                view_mask,
                self.config.geometry_num_depth_bins,
            )
        return self._patch_features(outputs), Cameras(*cameras, view_mask, image_size)

    def encode_scenes(
        self,
        pixel_values: torch.Tensor | None = None,
        geometry_source: str | None = None,
        **scene_inputs: Unpack[VggtQwen3SceneInputs],
    ) -> tuple[torch.Tensor, Cameras]:
        """
        What projector and geometry encoder read of scenes. Here alone it is decided where cameras come from: for training,
        generation and feature stores.

        Args:
            geometry_source (`str`, *optional*): `dataset`, `predicted` or `none`; by default the config's.
            scene_inputs ([`VggtQwen3SceneInputs`]): Pixels or stored features, and what the source needs.

        Returns:
            Patch tokens `[S, V, P, 2C * layers]`, and `Cameras`, of which none is used where there is no geometry.

        Raises:
            ValueError: if stored features come without the cameras that were predicted with them.
            TypeError: for an input that there is none of.
        """
        check_names(scene_inputs, VggtQwen3SceneInputs)
        source = geometry_source or self.config.geometry_source
        view_mask, view_counts = scene_inputs.get("view_mask"), scene_inputs.get("view_counts")
        stored = scene_inputs.get("vision_features")
        if stored is None and source == "predicted":
            return self.encode_views_and_geometry(pixel_values, view_mask, view_counts)
        if stored is None:
            features = self.encode_views(pixel_values, view_mask, view_counts)
            image_size = tuple(pixel_values.shape[-2:])
        else:
            features = stored.flatten(2, 3).to(self.projector.input_norm.weight.dtype)
            image_size = tuple(side * self.config.vision_config.patch_size for side in stored.shape[2:4])
        if source == "predicted":
            if scene_inputs.get("camera_encodings") is None:
                raise ValueError("geometry_source 'predicted' needs camera_encodings with vision_features.")
            return features, Cameras.unpack(scene_inputs["camera_encodings"], view_mask, image_size)

        num_scenes, num_views = features.shape[:2]
        mask = scene_inputs.get("geometry_mask")
        if source == "dataset" and scene_inputs.get("extrinsics") is not None:
            arrays = [scene_inputs.get(name) for name in ("extrinsics", "intrinsics", "depth_histogram")]
            if mask is None:
                mask = torch.ones(num_scenes, num_views, dtype=torch.bool, device=features.device)
        else:
            arrays = [
                features.new_zeros(num_scenes, num_views, 3, 4, dtype=torch.float32),
                features.new_zeros(num_scenes, num_views, 3, 3, dtype=torch.float32),
                features.new_zeros(num_scenes, num_views, self.config.geometry_num_depth_bins),
            ]
            mask = features.new_zeros(num_scenes, num_views, dtype=torch.bool)
        return features, Cameras(*arrays, mask.bool(), view_mask, image_size)

    @can_return_tuple
    @takes(VggtQwen3SceneInputs)
    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, **scene_inputs: Unpack[VggtQwen3SceneInputs]
    ) -> VggtQwen3ImageFeatures:
        r"""
        Encodes scenes of one or more views, given as [`VggtQwen3SceneInputs`].

        Returns:
            `VggtQwen3ImageFeatures`: per scene, image tokens and geometry tokens in the language model's space.

        Raises:
            TypeError: for an input that there is none of.
        """
        check_names(scene_inputs, VggtQwen3SceneInputs)
        view_mask, view_counts = scene_inputs.get("view_mask"), scene_inputs.get("view_counts")
        if view_mask is not None and view_counts is None:
            view_counts = count_views(view_mask)
        elif view_mask is None and view_counts is not None:
            raise ValueError("view_counts says how many views of view_mask are real: give both.")
        features, cameras = self.encode_scenes(pixel_values, **scene_inputs | {"view_counts": view_counts})
        grid = tuple(side // self.config.vision_config.patch_size for side in cameras.image_size)
        image_embeddings = self.projector(features, grid, view_mask, view_counts)
        geometry = self.geometry_encoder(
            cameras.extrinsics, cameras.intrinsics, cameras.depth_histogram, cameras.mask, cameras.image_size
        )
        if view_counts is None:
            geometry_embeddings = list(geometry)
        else:
            geometry_embeddings = [scene[:count] for scene, count in zip(geometry, view_counts, strict=True)]
        return VggtQwen3ImageFeatures(
            last_hidden_state=features,
            pooler_output=image_embeddings,
            geometry_embeddings=geometry_embeddings,
            cameras=cameras,
        )

    def get_placeholder_indices(
        self,
        input_ids: torch.LongTensor,
        token_id: int,
        embeddings: torch.Tensor,
        name: str,
        indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Where `token_id` stands in the flattened `input_ids`: `indices`, if the batch brings them, else looked up, for which the
        host waits for the device. Raises ValueError if their number is not that of `embeddings`.
        """
        if indices is None:
            indices = (input_ids == token_id).flatten().nonzero()[:, 0]
        if len(indices) != len(embeddings):
            raise ValueError(
                f"The text has {len(indices)} {name} placeholders (token id {token_id}), but the images give "
                f"{len(embeddings)} {name} features."
            )
        return indices

    @can_return_tuple
    @takes(VggtQwen3Inputs)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **model_inputs: Unpack[VggtQwen3Inputs],
    ) -> VggtQwen3ModelOutputWithPast:
        r"""As [`VggtQwen3ForConditionalGeneration.forward`], of which the rest are for the heads."""
        check_names(model_inputs, VggtQwen3Inputs)
        scene_inputs = {name: model_inputs.pop(name) for name in list(model_inputs) if name in OF_SCENES}
        vision_features = scene_inputs.get("vision_features")
        segment_ids = model_inputs.pop("segment_ids", None)
        image_indices = model_inputs.pop("image_indices", None)
        geometry_indices = model_inputs.pop("geometry_indices", None)
        image_features = (model_inputs.pop("mm_encoder_outputs", None) or {}).get("image")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self._embed_tokens(input_ids)

        given = sum(source is not None for source in (pixel_values, vision_features, image_features))
        if given > 1 or (given and input_ids is None):
            raise ValueError(
                "Give at most one of pixel_values, vision_features and mm_encoder_outputs, and input_ids with it."
            )
        if pixel_values is not None or vision_features is not None:
            image_features = self.get_image_features(pixel_values, return_dict=True, **scene_inputs)
        if image_features is not None:
            config = self.config
            for name, token_id, embeddings, indices in (
                ("image", config.image_token_id, image_features.pooler_output, image_indices),
                ("geometry", config.geometry_token_id, image_features.geometry_embeddings, geometry_indices),
            ):
                embeddings = torch.cat(embeddings).to(inputs_embeds.device, inputs_embeds.dtype)
                indices = self.get_placeholder_indices(input_ids, token_id, embeddings, name, indices)
                flat = inputs_embeds.flatten(0, 1).index_copy(0, indices, embeddings)
                inputs_embeds = flat.view_as(inputs_embeds)
        elif self.training:
            # A batch without images still runs every module, on one dummy view and times zero: under ZeRO-3 and
            # DDP all ranks must run the same modules in every step.
            side = self.config.vision_config.patch_size
            dummy = self.get_image_features(
                torch.zeros(1, 1, 3, side, side, device=inputs_embeds.device, dtype=self.dtype), return_dict=True
            )
            unused = sum(tokens.sum() for tokens in dummy.pooler_output + dummy.geometry_embeddings)
            inputs_embeds = inputs_embeds + 0.0 * unused.to(inputs_embeds.dtype)
            image_features = dummy

        if segment_ids is not None:
            attention_mask = create_packed_mask(self.config.text_config, inputs_embeds, attention_mask, segment_ids)
        if self.training:  # Trainer switches the key-value cache off in our config alone, not in the language model's
            model_inputs.setdefault("use_cache", False)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **model_inputs,
        )
        return VggtQwen3ModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
        )


class VggtQwen3ForConditionalGeneration(VggtQwen3PreTrainedModel, VggtQwen3GenerationMixin):
    """VGGT-Qwen3 with a language modeling head: answers questions about the views of a scene."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # Labelled tokens whose logits are in memory at a time while training; None for all. Set per run, not per checkpoint.
    loss_chunk_size: int | None = None

    def __init__(self, config: VggtQwen3Config):
        super().__init__(config)
        self.model = VggtQwen3Model(config)
        self.lm_head = VggtQwen3LMHead(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, **scene_inputs: Unpack[VggtQwen3SceneInputs]
    ) -> VggtQwen3ImageFeatures:
        return self.model.get_image_features(pixel_values, **scene_inputs)

    @can_return_tuple
    @takes(VggtQwen3Inputs)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        anchor_targets: torch.Tensor | None = None,
        num_anchors_in_batch: torch.Tensor | int | None = None,
        loss_weights: dict[str, float] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        label_indices: torch.Tensor | None = None,
        anchor_positions: torch.Tensor | None = None,
        anchors_per_scene: int | None = None,
        **model_inputs: Unpack[VggtQwen3Inputs],
    ) -> VggtQwen3CausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`[B, L]`): Text with, per scene, one geometry placeholder per view and one image placeholder
                per image token; [`VggtQwen3Processor`] makes them.
            pixel_values (`[S, V, 3, H, W]`): See [`VggtQwen3SceneInputs`].
            attention_mask (`[B, L]`): 1 for tokens, 0 for padding.
            position_ids (`[B, L]`): Positions; in a packed sequence they restart after the prefix in every segment.
            labels (`[B, L]`): Targets, -100 where there is none. While training, `logits` are those of the N labelled
                tokens only, `[N, vocab]`; None with `loss_chunk_size`.
            anchor_targets (`[A, 9]`): The true box of each `<|anchor|>` in `input_ids`, row by row: centre, extent and
                normal in the frame of view 0, metres. NaN for an anchor without one.
            num_anchors_in_batch (`int`): Boxes that the anchor losses are averaged over; by default those given.
            loss_weights (`dict[str, float]`): Weights of `losses` in `loss`; 1 by default.
            logits_to_keep (`int` or `torch.Tensor`): Positions to compute logits for; 0 for all.
            label_indices (`[N]`): Where, in the flattened `labels`, the tokens stand that are followed by a label.
            anchor_positions (`[A, 3]`): Of each `<|anchor|>`, row by row, where it stands in the flattened `input_ids`, the
                index of its scene (-1 for a text without images) and its number among that scene's.
            anchors_per_scene (`int`): The largest such number plus 1.
            model_inputs ([`VggtQwen3Inputs`]): Scenes, and where their tokens stand.

        `view_counts` and the indices and positions are looked up in the other inputs if they are not given; the host waits
        for the device each time. A packed batch brings them (`recipes.training.collator`).

        Returns:
            `VggtQwen3CausalLMOutputWithPast`: beside the usual, of a model with an anchor head `anchors [A, 9]`, the boxes
            predicted for the `<|anchor|>` tokens of `input_ids`, and with targets `losses`: `language`, `action_json`,
            `geometry_consistency` and `pointing` (see [`~modeling_vggt_qwen3_anchor.anchor_losses`]), of which `loss` is the weighted
            sum.

        Raises:
            ValueError: if the numbers of placeholders and of features, or of anchors and targets, differ.
            TypeError: for an input that there is none of.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **model_inputs,
        )
        hidden_states, shift_labels = outputs.last_hidden_state, None
        if labels is not None and self.training:
            # Most tokens are prompts: their logits, a vocabulary wide, would be computed for nothing.
            if label_indices is None:
                label_indices = (
                    (nn.functional.pad(labels[:, 1:], (0, 1), value=-100) != -100).flatten().nonzero()[:, 0]
                )
            hidden_states = hidden_states.flatten(0, 1).index_select(0, label_indices)
            shift_labels = labels.flatten().index_select(0, label_indices + 1)
            logits = None if self.loss_chunk_size else self.lm_head(hidden_states)
        else:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        loss = None
        if labels is not None and logits is None:
            count = model_inputs.get("num_items_in_batch")
            loss = chunked_causal_lm_loss(self.lm_head, hidden_states, shift_labels, self.loss_chunk_size, count)
        elif labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                shift_labels=shift_labels,
                num_items_in_batch=model_inputs.get("num_items_in_batch"),
            )
        anchors, losses = None, None
        if self.model.anchor_head is not None and input_ids is not None:
            anchors, losses = self._run_anchor_head(
                input_ids, outputs, anchor_targets, num_anchors_in_batch, anchor_positions, anchors_per_scene
            )
            if loss is not None:
                losses = {"language": loss} | losses
                loss = sum(losses[name] * (loss_weights or {}).get(name, 1.0) for name in losses)
        return VggtQwen3CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=outputs.image_features,
            losses=losses,
            anchors=anchors,
        )

    def _run_anchor_head(
        self,
        input_ids: torch.LongTensor,
        outputs: VggtQwen3ModelOutputWithPast,
        targets: torch.Tensor | None,
        num_anchors: torch.Tensor | int | None,
        positions: torch.Tensor | None,
        anchors_per_scene: int | None,
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        cache = outputs.past_key_values
        if not self.training and cache is not None and cache.get_seq_length() > input_ids.shape[1]:
            return None, {}  # a step of decoding, or what follows a shared prefix: see `answer_questions`
        if positions is None:
            positions, anchors_per_scene = find_anchors(
                input_ids, self.config.anchor_token_id, self.config.image_token_id
            )
        indices, scenes, numbers = positions.unbind(dim=1)
        hidden_states = outputs.last_hidden_state.flatten(0, 1).index_select(0, indices)
        features = outputs.image_features
        if not self.training:
            if not len(indices):
                return None, {}
            return self.model.anchor_head(hidden_states, scenes, features, numbers, anchors_per_scene)[0], {}
        # A batch without anchors, or without images, still runs every module (see `VggtQwen3Model.forward`): for one
        # more anchor in the first scene, or in the dummy one, times zero.
        boxes, log_attention = self.model.anchor_head(
            torch.cat([hidden_states, outputs.last_hidden_state[:1, 0]]),
            nn.functional.pad(scenes, (0, 1)),
            features,
            nn.functional.pad(numbers, (0, 1), value=anchors_per_scene),
            anchors_per_scene + 1,
        )
        boxes, unused = boxes[:-1], boxes[-1]
        if targets is None:
            targets = boxes.new_full(boxes.shape, torch.nan)
        if len(targets) != len(boxes):
            raise ValueError(f"Got {len(targets)} anchor_targets for {len(boxes)} <|anchor|> tokens.")
        # In float32, like the head's own geometry: of a few metres bfloat16 keeps centimetres.
        with torch.autocast(boxes.device.type, enabled=False):
            losses = anchor_losses(
                boxes,
                targets,
                scenes,
                log_attention[:-1],
                features.cameras,
                self.config.vision_config.patch_size,
                num_anchors,
            )
        losses["action_json"] = losses["action_json"] + 0.0 * unused.sum()
        return boxes, losses


__all__ = ["VggtQwen3ForConditionalGeneration", "VggtQwen3Model", "VggtQwen3PreTrainedModel"]
