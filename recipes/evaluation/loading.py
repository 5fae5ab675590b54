# SPDX-License-Identifier: Apache-2.0
"""Errors of other people's model folders, in one line each."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


__all__ = ["loading"]
