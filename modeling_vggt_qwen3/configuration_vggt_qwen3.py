# SPDX-License-Identifier: Apache-2.0
"""Configurations of VGGT (the multi-view geometry encoder) and of VGGT-Qwen3 (encoder, projector, language model)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec


# Attention implementations of the language model that can express the mask of packed scenes. Flash kernels know causal
# attention and padding alone.
PACKING_ATTENTION = ("sdpa", "eager", "flex_attention")


@strict
class VggtConfig(PreTrainedConfig):
    r"""
    Configuration of [`VggtModel`]. The defaults are the released 1B model (Wang et al., CVPR 2025, arXiv 2503.11651).

    Args:
        image_size (`int`): Side in pixels of the square that the backbone's positional embedding was trained on.
            Any height and width that are multiples of `patch_size` can be encoded.
        patch_size (`int`): Side of a patch in pixels.
        hidden_size (`int`): Width C of a token. The encoder's outputs are 2C wide: frame and global part.
        num_attention_heads (`int`): Heads of the backbone and of the alternating blocks.
        num_hidden_layers (`int`): Number of alternating pairs (one frame block, then one global block).
        backbone_num_hidden_layers (`int`): Layers of the DINOv2 backbone.
        mlp_ratio (`int`): Width of the MLPs over `hidden_size`.
        num_register_tokens (`int`): Register tokens R of a view (and of the backbone).
        rope_theta (`float`): Base of the 2-D rotary embedding's frequencies.
        layer_norm_eps (`float`): Epsilon of the alternating blocks' layer norms.
        backbone_layer_norm_eps (`float`): Epsilon of the backbone's layer norms.
        layer_scale_init_value (`float`): Initial LayerScale of the alternating blocks.
        backbone_layer_scale_init_value (`float`): Initial LayerScale of the backbone.
        camera_head_num_layers (`int`): Blocks of the camera head; 0 for a model without one.
        depth_head_layers (`list[int]`): The four alternating pairs (0-based, negative from the end) whose patch
            tokens the depth head reads, the finest level first; empty for a model without one.
        depth_head_neck_hidden_sizes (`list[int]`): Channels of the depth head's four levels.
        depth_head_fusion_hidden_size (`int`): Channels in which the depth head fuses them.
        image_mean, image_std (`list[float]`): Normalisation that the network itself applies to RGB in [0, 1].
        initializer_range (`float`): Standard deviation of newly initialised linear layers.
    """

    model_type = "vggt"
    base_config_key = "vision_config"

    image_size: int = 518
    patch_size: int = 14
    hidden_size: int = 1024
    num_attention_heads: int = 16
    num_hidden_layers: int = 24
    backbone_num_hidden_layers: int = 24
    mlp_ratio: int = 4
    num_register_tokens: int = 4
    rope_theta: float | int = 100.0
    layer_norm_eps: float = 1e-5
    backbone_layer_norm_eps: float = 1e-6
    layer_scale_init_value: float = 0.01
    backbone_layer_scale_init_value: float = 1.0
    camera_head_num_layers: int = 4
    depth_head_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    depth_head_neck_hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    depth_head_fusion_hidden_size: int = 256
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 4:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be num_attention_heads ({self.num_attention_heads}) times a "
                "multiple of 4: the 2-D rotary embedding rotates pairs in each half of a head."
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}).")
        if self.camera_head_num_layers < 0:
            raise ValueError(f"camera_head_num_layers must not be negative, got {self.camera_head_num_layers}.")
        if self.depth_head_layers:
            self._check_depth_head()

    def _check_depth_head(self):
        layers, pairs = list(self.depth_head_layers), self.num_hidden_layers
        if len(layers) != 4 or any(not -pairs <= layer < pairs for layer in layers):
            raise ValueError(
                f"depth_head_layers {layers} must name four of the encoder's {pairs} alternating pairs (0 to "
                f"{pairs - 1}, or negative from the end), or be empty for a model without a depth head."
            )
        sizes = [*self.depth_head_neck_hidden_sizes, self.depth_head_fusion_hidden_size]
        if len(sizes) != 5 or any(size <= 0 or size % 4 for size in sizes[:4]) or sizes[4] <= 0 or sizes[4] % 8:
            raise ValueError(
                f"depth_head_neck_hidden_sizes {sizes[:-1]} must be four multiples of 4 and "
                f"depth_head_fusion_hidden_size ({sizes[-1]}) a multiple of 8: the positional embedding needs sine "
                "and cosine of two coordinates."
            )


@strict
class VggtQwen3Config(PreTrainedConfig):
    r"""
    Configuration of [`VggtQwen3ForConditionalGeneration`].

    Args:
        vision_config (`VggtConfig` or `dict`): The encoder.
        text_config (`PreTrainedConfig` or `dict`): The language model; Qwen3 unless `model_type` says otherwise.
        image_token_id (`int`): Placeholder of one image token (`<|image_pad|>` in Qwen3's vocabulary).
        geometry_token_id (`int`): Placeholder of one geometry token (`<|vision_pad|>` in Qwen3's vocabulary).
        vision_feature_layers (`list[int]`): Alternating pairs (0-based, negative from the end) whose outputs the
            projector reads, concatenated on the channel axis.
        projector_type (`"perceiver"` or `"mlp"`): `perceiver` resamples all views of a scene into
            `projector_num_latents` tokens; `mlp` merges 2×2 patches of each view into one token.
        projector_hidden_size (`int`): Width inside the projector.
        projector_num_latents, projector_num_hidden_layers, projector_num_attention_heads, projector_mlp_ratio
            (`int`): Sizes of the perceiver; the `mlp` projector does not read them.
        geometry_hidden_size (`int`): Width inside the geometry encoder.
        geometry_num_depth_bins (`int`): Bins of a view's depth histogram.
        geometry_source (`"dataset"`, `"predicted"` or `"none"`): What the geometry tokens are made of. `dataset`: the
            cameras given with the views, and the learned null token for views without. `predicted`: the encoder's
            own camera head, for every view: cameras given with the views are not read, because metres and the scale
            of a prediction do not mix (see [`~geometry_vggt_qwen3.prediction_to_geometry_inputs`]). `none`: the
            learned null token for every view.
        anchor_token_id (`int`): The `<|anchor|>` token, where an action's box is predicted (by default the first id
            that Qwen3's vocabulary leaves free). The language model reads the anchor head's own embedding there.
        anchor_hidden_size (`int`): Width of the anchor head; 0 for a model without one.
        anchor_num_hidden_layers, anchor_num_attention_heads (`int`): Its layers and their heads.
        numbers_from (`"head"` or `"text"`): Whether an action's numbers are the anchor head's or those of the text.
        initializer_range (`float`): Standard deviation of newly initialised linear layers.
    """

    model_type = "vggt_qwen3"
    sub_configs_defaults = {
        "vision_config": VggtConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655
    geometry_token_id: int = 151654
    vision_feature_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    projector_type: Literal["perceiver", "mlp"] = "perceiver"
    projector_hidden_size: int = 1024
    projector_num_latents: int = 128
    projector_num_hidden_layers: int = 2
    projector_num_attention_heads: int = 16
    projector_mlp_ratio: int = 4
    geometry_hidden_size: int = 512
    geometry_num_depth_bins: int = 16
    geometry_source: Literal["dataset", "predicted", "none"] = "dataset"
    anchor_token_id: int = 151669
    anchor_hidden_size: int = 0
    anchor_num_hidden_layers: int = 2
    anchor_num_attention_heads: int = 8
    numbers_from: Literal["head", "text"] = "text"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Saving names the class that is saved; AutoModel has to find its own as well.
        self.auto_map = {"AutoModel": "modeling_vggt_qwen3.VggtQwen3Model"} | (getattr(self, "auto_map", None) or {})
        # Tying is the language model's business, but transformers reads it from the outermost config.
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        pairs = self.vision_config.num_hidden_layers
        outside = [layer for layer in self.vision_feature_layers if not -pairs <= layer < pairs]
        if outside or not self.vision_feature_layers:
            raise ValueError(
                f"vision_feature_layers {list(self.vision_feature_layers)} must name at least one of the encoder's "
                f"{pairs} alternating pairs (0 to {pairs - 1}, or negative from the end)."
            )
        self.check_geometry_source()
        self.check_anchor_head()
        if self.projector_hidden_size % self.projector_num_attention_heads:
            raise ValueError(
                f"projector_hidden_size ({self.projector_hidden_size}) must be a multiple of "
                f"projector_num_attention_heads ({self.projector_num_attention_heads})."
            )

    def check_geometry_source(self):
        """Raises ValueError if `geometry_source` asks for cameras that the encoder cannot predict."""
        if self.geometry_source == "predicted" and self.vision_config.camera_head_num_layers == 0:
            raise ValueError(
                "geometry_source 'predicted' needs an encoder with a camera head, but its camera_head_num_layers is 0."
            )

    def check_anchor_head(self):
        """Raises ValueError for sizes that no anchor head can have, and if `numbers_from` asks for one that is not there."""
        if self.anchor_hidden_size % self.anchor_num_attention_heads:
            raise ValueError(
                f"anchor_hidden_size ({self.anchor_hidden_size}) must be a multiple of anchor_num_attention_heads "
                f"({self.anchor_num_attention_heads})."
            )
        if self.numbers_from == "head" and not self.anchor_hidden_size:
            raise ValueError("numbers_from 'head' needs an anchor head, but anchor_hidden_size is 0.")


__all__ = ["PACKING_ATTENTION", "VggtConfig", "VggtQwen3Config"]
