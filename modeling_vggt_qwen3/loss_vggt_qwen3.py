# SPDX-License-Identifier: Apache-2.0
"""Cross entropy of many tokens over a large vocabulary, without the logits of all of them at once."""

from importlib import import_module

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.utils import is_liger_kernel_available


IGNORED = -100


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    The sum of the tokens' cross entropies, in float32, with the gradients computed in the forward pass, chunk by chunk.

    What is kept until the backward pass is as large as the hidden states (and as the weight, if it trains), not as the
    logits; and the backward pass does not need the weight, which ZeRO-3 then has to gather but once for all chunks.
    """

    @staticmethod
    def forward(
        ctx,
        hidden_states: torch.Tensor,  # [N, D]
        weight: torch.Tensor,  # [vocab, D]
        labels: torch.Tensor,  # [N]
        chunk_size: int,
    ) -> torch.Tensor:
        device, autocast = hidden_states.device.type, torch.is_autocast_enabled(hidden_states.device.type)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        cast_weight = weight.to(dtype)  # once, where autocast would for every chunk
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=hidden_states.device)
        hidden_gradient = torch.empty_like(hidden_states) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels), chunk_size):
                chunk = hidden_states[start : start + chunk_size].to(dtype)
                targets = labels[start : start + chunk_size, None]
                given = targets != IGNORED
                targets = targets.masked_fill(~given, 0)
                log_probabilities = torch.log_softmax(chunk @ cast_weight.t(), dim=-1, dtype=torch.float32)
                total -= log_probabilities.gather(1, targets).masked_fill(~given, 0.0).sum()
                if needs_hidden or needs_weight:
                    # In place: what is largest are these, and the logits and their gradient in the model's precision.
                    probabilities = log_probabilities.exp_()
                    probabilities.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=torch.float32))
                    logits_gradient = probabilities.mul_(given).to(dtype)
                    if needs_hidden:
                        hidden_gradient[start : start + chunk_size] = logits_gradient @ cast_weight
                    if needs_weight:
                        weight_gradient += logits_gradient.t() @ chunk
                    del probabilities, logits_gradient
                del log_probabilities  # or they would still be there while the next chunk's are made
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype) if needs_weight else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: torch.Tensor):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * scale,
            None if weight_gradient is None else weight_gradient * scale,
            None,
            None,
        )


def use_liger(hidden_states: torch.Tensor) -> bool:
    """Whether Liger's fused loss takes the place of [`ChunkedCrossEntropy`]: on CUDA, where `liger-kernel>=0.6.2` is installed."""
    # Of no tokens at all Liger cannot make chunks.
    return hidden_states.is_cuda and len(hidden_states) > 0 and is_liger_kernel_available()


class VggtQwen3LMHead(nn.Linear):
    """
    The language modeling head. It computes the loss itself where that is done in chunks: one call of one module, whatever
    the number of tokens, is what ZeRO-3 needs of all ranks.
    """

    def forward(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None = None, chunk_size: int | None = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`[..., D]`, with labels `[N, D]`): Of the language model.
            labels (`[N]`): The token that each is to predict, -100 for none.
            chunk_size (`int`): With labels: tokens whose logits are in memory at a time. Liger's fused kernel makes chunks
                of its own, whose logits are about as large as `hidden_states`.

        Returns:
            `torch.Tensor`: logits `[..., vocab]`, or with labels the sum of the cross entropies, float32.
        """
        if labels is None:
            return super().forward(hidden_states)
        if use_liger(hidden_states):
            # Not by an import statement: transformers asks for whatever the code of a checkpoint imports.
            fused_loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(
                ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32
            )
            return fused_loss(self.weight, hidden_states, labels)
        return ChunkedCrossEntropy.apply(hidden_states, self.weight, labels, chunk_size)


def chunked_causal_lm_loss(
    lm_head: VggtQwen3LMHead,
    hidden_states: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    chunk_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """As transformers' `ForCausalLMLoss` of the logits: the mean, or the sum over `num_items_in_batch`; but in chunks."""
    total = lm_head(hidden_states, labels, chunk_size)
    if num_items_in_batch is None:
        return total / (labels != IGNORED).sum()
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


__all__ = ["VggtQwen3LMHead", "chunked_causal_lm_loss"]
