# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, whole or refused: the model, its preprocessing, the feature store that fits it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Processor

from .feature_store import FeatureStore, store_key


@contextmanager
def loading(model: str) -> Iterator[None]:
    """
    While what is in the folder `model` is read: whatever goes wrong there is a ValueError that names it. A config, tokenizer,
    template or weights that somebody wrote by hand fail in transformers in more ways than have names.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # says enough of itself
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason was given"
        raise ValueError(
            f"--model {model} is no VGGT-Qwen3 that can be loaded ({type(error).__name__}: {reason[:300]}). Give the folder that a "
            "stage or the converter wrote, or a Hub repository."
        ) from error


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
    path: str,
    attn_implementation: str | dict[str, str],
    geometry_source: str | None = None,
    config: VggtQwen3Config | None = None,
    new_anchor_head: bool = False,
    dtype: torch.dtype | None = None,
) -> VggtQwen3ForConditionalGeneration:
    """
    Loads a checkpoint, whole; with `geometry_source` in place of the one that it was saved with.

    Args:
        attn_implementation (`str` or `dict`): Of all parts, or by the name of a part's config ("" for the rest).
        config (`VggtQwen3Config`, *optional*): Instead of the checkpoint's own.
        new_anchor_head (`bool`): The checkpoint has no anchor head, and `config` has one: it is initialised at random.
        dtype (`torch.dtype`, *optional*): Of the weights, VGGT's heads aside, which are float32; by default the
            checkpoint's.

    Raises:
        ValueError: if keys are missing, unexpected or of the wrong shape: nothing is filled in silently; or if the
            checkpoint has no camera head to predict the geometry with; or if an attention implementation is not
            installed here; or if the checkpoint is another model's.
    """
    # transformers would make a model of default shape, of billions of parameters, of another one's config.
    kind = VggtQwen3Config.get_config_dict(path)[0].get("model_type")
    if kind != VggtQwen3Config.model_type:
        raise ValueError(f"{path} holds a {kind or 'config without model_type'}, not a {VggtQwen3Config.model_type}.")
    try:
        model, info = VggtQwen3ForConditionalGeneration.from_pretrained(
            path,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # not ignored: reported below, by name
        )
    except ImportError as error:
        raise ValueError(
            f"attn_implementation, vision_attn_implementation: {error} Install it, or set sdpa instead."
        ) from error
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if new_anchor_head:
        problems["missing_keys"] = [
            key for key in problems["missing_keys"] if not key.startswith("model.anchor_head.")
        ]
    if any(problems.values()):
        details = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)})" for kind, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint {path} does not fit its own config. {details}")
    if geometry_source is not None:
        model.config.geometry_source = geometry_source
        model.config.check_geometry_source()
    return model


__all__ = ["load_model", "loading", "open_store", "set_preprocessing"]
