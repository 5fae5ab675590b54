# SPDX-License-Identifier: Apache-2.0
"""VGGT-Qwen3: the VGGT encoder's tokens of several views, projected into a causal language model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .configuration_vggt_qwen3 import VggtQwen3Config
from .geometry_vggt_qwen3 import normalized_intrinsics, relative_extrinsics
from .modeling_vggt import VggtModel, eager_attention_forward


@dataclass
class VggtQwen3ImageFeatures(BaseModelOutputWithPooling):
    """
    What the language model reads of each scene.

    Args:
        last_hidden_state (`torch.Tensor` of shape `[S, V, P, 2C * layers]`): The encoder's patch tokens.
        pooler_output (`list[torch.Tensor]`): Per scene, image tokens `[T, hidden_size]` in the language model's space.
        geometry_embeddings (`list[torch.Tensor]`): Per scene, one token per real view, `[V, hidden_size]`.
    """

    geometry_embeddings: list[torch.Tensor] | None = None


@dataclass
class VggtQwen3ModelOutputWithPast(BaseModelOutputWithPast):
    image_features: VggtQwen3ImageFeatures | None = None


@dataclass
class VggtQwen3CausalLMOutputWithPast(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None
    image_features: VggtQwen3ImageFeatures | None = None


class VggtQwen3PerceiverAttention(nn.Module):
    """Latents attend to `key_value_states`: the visual tokens (cross-attention) or themselves (self-attention)."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        self.config = config
        self.head_dim = config.projector_hidden_size // config.projector_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.k_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.v_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)
        self.o_proj = nn.Linear(config.projector_hidden_size, config.projector_hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, hidden_states),
                (self.k_proj, key_value_states),
                (self.v_proj, key_value_states),
            )
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention_interface(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(output.flatten(-2))


class VggtQwen3PerceiverLayer(GradientCheckpointingLayer):
    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        size = config.projector_hidden_size
        self.cross_attention_norm = nn.LayerNorm(size)
        self.context_norm = nn.LayerNorm(size)
        self.cross_attention = VggtQwen3PerceiverAttention(config)
        self.self_attention_norm = nn.LayerNorm(size)
        self.self_attention = VggtQwen3PerceiverAttention(config)
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.projector_mlp_ratio * size),
            nn.GELU(),
            nn.Linear(config.projector_mlp_ratio * size, size),
        )

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        latents = latents + self.cross_attention(
            self.cross_attention_norm(latents), self.context_norm(context), attention_mask
        )
        normed = self.self_attention_norm(latents)
        latents = latents + self.self_attention(normed, normed)
        return latents + self.mlp(self.mlp_norm(latents))


class VggtQwen3PerceiverProjector(nn.Module):
    """Learned latents that read every patch token of every view of a scene."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        self.config = config
        size = config.projector_hidden_size
        in_features = 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
        self.input_norm = nn.LayerNorm(in_features)
        self.input_proj = nn.Linear(in_features, size)
        self.latents = nn.Parameter(torch.zeros(config.projector_num_latents, size))
        self.layers = nn.ModuleList(
            [VggtQwen3PerceiverLayer(config) for _ in range(config.projector_num_hidden_layers)]
        )
        self.output_norm = nn.LayerNorm(size)
        self.output_proj = nn.Linear(size, config.text_config.hidden_size)

    def forward(
        self,
        features: torch.Tensor,  # [S, V, P, 2C * layers]
        grid: tuple[int, int],
        view_mask: torch.Tensor | None = None,  # [S, V]
    ) -> list[torch.Tensor]:
        context = self.input_proj(self.input_norm(features)).flatten(1, 2)  # [S, V * P, D]
        latents = self.latents.expand(context.shape[0], -1, -1)
        attention_mask = None
        if view_mask is not None:
            attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=latents,
                attention_mask=view_mask.bool().repeat_interleave(features.shape[2], dim=1),
                encoder_hidden_states=context,
            )
        for layer in self.layers:
            latents = layer(latents, context, attention_mask)
        return list(self.output_proj(self.output_norm(latents)))  # S × [num_latents, hidden_size]


class VggtQwen3MLPProjector(nn.Module):
    """Each 2×2 square of a view's patch tokens becomes one token; an odd last row or column is repeated."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        in_features = 4 * 2 * config.vision_config.hidden_size * len(config.vision_feature_layers)
        self.input_norm = nn.LayerNorm(in_features)
        self.input_proj = nn.Linear(in_features, config.projector_hidden_size)
        self.act = nn.GELU()
        self.output_proj = nn.Linear(config.projector_hidden_size, config.text_config.hidden_size)

    def forward(
        self, features: torch.Tensor, grid: tuple[int, int], view_mask: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        rows, columns = grid
        features = features.unflatten(2, grid)  # [S, V, rows, columns, F]
        if rows % 2:
            features = torch.cat([features, features[:, :, -1:]], dim=2)
        if columns % 2:
            features = torch.cat([features, features[:, :, :, -1:]], dim=3)
        features = features.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # [S, V, rows/2, 2, columns/2, 2, F]
        features = features.transpose(3, 4).flatten(4).flatten(2, 3)  # [S, V, T, 4F]
        tokens = self.output_proj(self.act(self.input_proj(self.input_norm(features))))  # [S, V, T, hidden_size]
        if view_mask is None:
            return list(tokens.flatten(1, 2))
        return [scene[mask].flatten(0, 1) for scene, mask in zip(tokens, view_mask.bool(), strict=True)]


PROJECTORS = {"perceiver": VggtQwen3PerceiverProjector, "mlp": VggtQwen3MLPProjector}


class VggtQwen3GeometryEncoder(nn.Module):
    """One token per view from its pose relative to view 0, its intrinsics and its depth histogram."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__()
        in_features = 12 + 4 + config.geometry_num_depth_bins
        self.input_proj = nn.Linear(in_features, config.geometry_hidden_size)
        self.act = nn.GELU()
        self.output_proj = nn.Linear(config.geometry_hidden_size, config.text_config.hidden_size)
        self.null_embedding = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    def forward(
        self,
        extrinsics: torch.Tensor,  # [S, V, 3, 4] world-to-camera, metres
        intrinsics: torch.Tensor,  # [S, V, 3, 3] pixels of the encoded image
        depth_histogram: torch.Tensor,  # [S, V, bins]
        geometry_mask: torch.Tensor,  # [S, V] False where a view has no geometry
        image_size: tuple[int, int],
    ) -> torch.Tensor:
        """Geometry tokens `[S, V, hidden_size]`; the learned null token where `geometry_mask` is False."""
        # Poses in float32: a camera 5 m away is only known to 2 cm in bfloat16.
        with torch.autocast(extrinsics.device.type, enabled=False):
            poses = relative_extrinsics(extrinsics.float()).flatten(-2)  # [S, V, 12]
            features = torch.cat(
                [poses, normalized_intrinsics(intrinsics.float(), *image_size), depth_histogram.float()], dim=-1
            )
        embeddings = self.output_proj(self.act(self.input_proj(features.to(self.input_proj.weight.dtype))))
        return torch.where(geometry_mask.bool()[..., None], embeddings, self.null_embedding.to(embeddings.dtype))


class VggtQwen3PreTrainedModel(PreTrainedModel):
    config: VggtQwen3Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VggtBlock", "Dinov2WithRegistersLayer", "VggtQwen3PerceiverLayer", "Qwen3DecoderLayer"]
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

    def train(self, mode: bool = True):
        """Like `nn.Module.train`, but modules whose parameters are all frozen stay in eval mode."""
        super().train(mode)
        if mode:
            pending = list(self.children())
            while pending:
                module = pending.pop()
                trainable = {parameter.requires_grad for parameter in module.parameters()}
                if trainable == {False}:
                    module.eval()
                elif len(trainable) == 2:
                    pending.extend(module.children())
        return self


class VggtQwen3Model(VggtQwen3PreTrainedModel):
    """Encoder, projector, geometry encoder and language model, without the language modeling head."""

    def __init__(self, config: VggtQwen3Config):
        super().__init__(config)
        self.vision_model = VggtModel._from_config(config.vision_config)
        self.projector = PROJECTORS[config.projector_type](config)
        self.geometry_encoder = VggtQwen3GeometryEncoder(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        depth_histogram: torch.Tensor | None = None,
        geometry_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> VggtQwen3ImageFeatures:
        r"""
        Encodes scenes of one or more views. Arguments as in [`VggtQwen3ForConditionalGeneration.forward`].

        Returns:
            `VggtQwen3ImageFeatures`: per scene, image tokens and geometry tokens in the language model's space.
        """
        # A frozen encoder keeps no activations.
        encoder_trains = any(parameter.requires_grad for parameter in self.vision_model.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and encoder_trains):
            hidden_states = self.vision_model(
                pixel_values, view_mask=view_mask, hidden_state_layers=self.config.vision_feature_layers
            ).hidden_states
            first_patch = 1 + self.config.vision_config.num_register_tokens
            features = torch.cat([layer[:, :, first_patch:] for layer in hidden_states], dim=-1)
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.vision_config.patch_size
        image_embeddings = self.projector(features, (height // patch_size, width // patch_size), view_mask)

        num_scenes, num_views = pixel_values.shape[:2]
        if extrinsics is None:
            extrinsics = features.new_zeros(num_scenes, num_views, 3, 4, dtype=torch.float32)
            intrinsics = features.new_zeros(num_scenes, num_views, 3, 3, dtype=torch.float32)
            depth_histogram = features.new_zeros(num_scenes, num_views, self.config.geometry_num_depth_bins)
            geometry_mask = features.new_zeros(num_scenes, num_views, dtype=torch.bool)
        elif geometry_mask is None:
            geometry_mask = torch.ones(num_scenes, num_views, dtype=torch.bool, device=features.device)
        geometry = self.geometry_encoder(extrinsics, intrinsics, depth_histogram, geometry_mask, (height, width))
        if view_mask is None:
            geometry_embeddings = list(geometry)
        else:
            geometry_embeddings = [scene[mask] for scene, mask in zip(geometry, view_mask.bool(), strict=True)]
        return VggtQwen3ImageFeatures(
            last_hidden_state=features, pooler_output=image_embeddings, geometry_embeddings=geometry_embeddings
        )

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor, token_id: int, embeddings: torch.Tensor, name: str
    ) -> torch.Tensor:
        """Where `token_id` stands in `input_ids`, `[B, L, 1]`. Raises ValueError if their number is not that of `embeddings`."""
        mask = input_ids == token_id
        num_tokens = int(mask.sum())
        if num_tokens != embeddings.shape[0]:
            raise ValueError(
                f"The text has {num_tokens} {name} placeholders (token id {token_id}), but the images give "
                f"{embeddings.shape[0]} {name} features."
            )
        return mask.unsqueeze(-1)

    def create_packed_mask(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, segment_ids: torch.Tensor
    ):
        """
        The mask of packed scenes: a token sees, causally, the prefix (segment 0) and its own segment.

        Raises:
            ValueError: if the language model has layers that are not full attention; their window counts tokens,
                which are not adjacent in a packed sequence.
        """
        text_config = self.config.text_config
        if set(getattr(text_config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ValueError("Packed scenes need a language model with full attention in all layers.")

        def same_scene_or_segment(batch_idx, head_idx, q_idx, kv_idx):
            key_segment = segment_ids[batch_idx, kv_idx]
            return (key_segment == 0) | (key_segment == segment_ids[batch_idx, q_idx])

        return create_causal_mask(
            config=text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=None,
            and_mask_function=same_scene_or_segment,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        depth_histogram: torch.Tensor | None = None,
        geometry_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, VggtQwen3ImageFeatures] | None = None,
        **kwargs,
    ) -> VggtQwen3ModelOutputWithPast:
        r"""Arguments as in [`VggtQwen3ForConditionalGeneration.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_features = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if input_ids is None or image_features is not None:
                raise ValueError("pixel_values go with input_ids, and not with mm_encoder_outputs.")
            image_features = self.get_image_features(
                pixel_values, view_mask, extrinsics, intrinsics, depth_histogram, geometry_mask, return_dict=True
            )
        if image_features is not None:
            for name, token_id, embeddings in (
                ("image", self.config.image_token_id, image_features.pooler_output),
                ("geometry", self.config.geometry_token_id, image_features.geometry_embeddings),
            ):
                embeddings = torch.cat(embeddings).to(inputs_embeds.device, inputs_embeds.dtype)
                mask = self.get_placeholder_mask(input_ids, token_id, embeddings, name)
                inputs_embeds = inputs_embeds.masked_scatter(mask, embeddings)
        elif self.training:
            # A batch without images still runs every module, on one dummy view and times zero: under ZeRO-3 and
            # DDP all ranks must run the same modules in every step.
            side = self.config.vision_config.patch_size
            dummy = self.get_image_features(
                torch.zeros(1, 1, 3, side, side, device=inputs_embeds.device, dtype=self.dtype), return_dict=True
            )
            unused = sum(tokens.sum() for tokens in dummy.pooler_output + dummy.geometry_embeddings)
            inputs_embeds = inputs_embeds + 0.0 * unused.to(inputs_embeds.dtype)

        if segment_ids is not None:
            attention_mask = self.create_packed_mask(inputs_embeds, attention_mask, segment_ids)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return VggtQwen3ModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
        )


class VggtQwen3ForConditionalGeneration(VggtQwen3PreTrainedModel, GenerationMixin):
    """VGGT-Qwen3 with a language modeling head: answers questions about the views of a scene."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VggtQwen3Config):
        super().__init__(config)
        self.model = VggtQwen3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> VggtQwen3ImageFeatures:
        return self.model.get_image_features(pixel_values, **kwargs)

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, expand_size: int = 1, inputs_embeds=None):
        # For beams, transformers repeats the image tokens of each text; the geometry tokens have to follow.
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, expand_size, inputs_embeds)
        if "image" in expanded:
            geometry = expanded["image"].geometry_embeddings
            expanded["image"].geometry_embeddings = [tokens for tokens in geometry for _ in range(expand_size)]
        return expanded

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        depth_histogram: torch.Tensor | None = None,
        geometry_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, VggtQwen3ImageFeatures] | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> VggtQwen3CausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`[B, L]`): Text with, per scene, one geometry placeholder per view and one image placeholder
                per image token; [`VggtQwen3Processor`] makes them.
            pixel_values (`[S, V, 3, H, W]`): RGB in [0, 1] of the S scenes in the order of their placeholders.
            attention_mask (`[B, L]`): 1 for tokens, 0 for padding.
            position_ids (`[B, L]`): Positions; in a packed sequence they restart after the prefix in every segment.
            segment_ids (`[B, L]`): Of packed scenes: 0 for the prefix that all questions of a scene share, n for its
                n-th question and answer. A segment sees the prefix and itself.
            view_mask (`[S, V]`): True for real views, False for padding; None if all are real.
            extrinsics (`[S, V, 3, 4]`): World-to-camera, OpenCV axes, metres.
            intrinsics (`[S, V, 3, 3]`): Pixels of `pixel_values`.
            depth_histogram (`[S, V, bins]`): Share of a view's valid depth pixels per bin of 8 m / bins.
            geometry_mask (`[S, V]`): False where a view has no geometry and gets the learned null token. Without
                `extrinsics` all views do.
            mm_encoder_outputs (`dict`): `{"image": features}` of [`~VggtQwen3Model.get_image_features`] instead of
                `pixel_values`.
            labels (`[B, L]`): Targets, -100 where there is none.
            logits_to_keep (`int` or `torch.Tensor`): Positions to compute logits for; 0 for all.

        Raises:
            ValueError: if the numbers of placeholders and of features differ.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            view_mask=view_mask,
            extrinsics=extrinsics,
            intrinsics=intrinsics,
            depth_histogram=depth_histogram,
            geometry_mask=geometry_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return VggtQwen3CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=outputs.image_features,
        )


__all__ = ["VggtQwen3ForConditionalGeneration", "VggtQwen3Model", "VggtQwen3PreTrainedModel"]
