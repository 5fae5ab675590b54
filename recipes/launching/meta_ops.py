# SPDX-License-Identifier: Apache-2.0
"""Runs modules on the meta device as a GPU would run them, and records each kernel and the memory that is live."""

import math
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


aten = torch.ops.aten
# They make a tensor, or say something of one, without a kernel.
NO_KERNEL = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
NO_KERNEL |= {aten.new_empty_strided.default, aten.detach_.default, aten._unsafe_view.default, aten.set_.source_Tensor}
MATRIX_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
TILE = 128  # rows and columns of an output that one multiprocessor makes at a time


@dataclass
class Kernel:
    """
    One kernel of a micro-step, by the number of rows in it.

    Args:
        part: The part of the model that runs it.
        kind: "matrix products", "attention" or "other".
        phase: "forward", "backward", or "recomputed" by activation checkpointing in the backward pass.
        flops: Operations of one row.
        row_bytes, other_bytes: Read and written for each row, and whatever the number of rows.
        output: Batch, rows and columns of a matrix product's output: (size, whether it is of one row).
    """

    part: str
    kind: str
    phase: str
    flops: float
    row_bytes: float
    other_bytes: float
    output: tuple[tuple[float, bool], ...] = ()

    def tiles(self, rows: int) -> int:
        """Squares of `TILE` that the output of a matrix product is made of."""
        sizes = [size * rows if of_row else size for size, of_row in self.output]
        *batch, height, width = sizes
        return math.prod(map(round, batch)) * math.ceil(height / TILE) * math.ceil(width / TILE)


class Recorder(TorchDispatchMode):
    """
    Records `kernels` in the order they run, and `peak`: the most bytes a row takes at any time.

    On the meta device nothing costs more for being large: `rows` is a prime that is in no other size, so that what is
    divisible by it belongs to rows, and the rest (weights, their gradients) to none.
    """

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows
        self.kernels: list[Kernel] = []
        self.part, self.is_backward = "", False
        self.untracked: str | None = None  # a part whose tensors are not counted in `peak`
        self.live = self.peak = 0
        self.known: dict[int, int] = {}
        self.cache: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Layers repeat: what is made of tensors of the same layout is of the same layout, and costs the same.
        key = (function, layout_of(args), layout_of(tuple(kwargs.items())))
        cached = self.cache.get(key)
        if cached is not None:
            specs, template, is_tuple = cached
            made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in specs]
            output = tuple(made) if is_tuple else made[0]
        else:
            output = function(*args, **kwargs)
            made = tensors_of(output)
            if not made:
                return output
            if function.is_view or function in NO_KERNEL:
                for tensor in made:
                    self.track(tensor)
                return output
            template = self.kernel(function, args, kwargs, output, made)
            is_fresh = all(result.alias_info is None for result in function._schema.returns)
            whole = output if isinstance(output, tuple) else (output,)
            if is_fresh and len(whole) == len(made):
                specs = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in made]
                self.cache[key] = specs, template, isinstance(output, tuple)
        for tensor in made:
            self.track(tensor)
        phase = "forward"
        if self.is_backward:
            # The backward pass builds no graph; what runs again of the forward pass does.
            phase = "recomputed" if torch.is_grad_enabled() else "backward"
        self.kernels.append(replace(template, part=self.part, phase=phase))
        return output

    def kernel(self, function, args, kwargs, output, written: list[torch.Tensor]) -> Kernel:
        kernel = Kernel("", "other", "", 0.0, 0.0, 0.0)
        for tensor in tensors_of((args, kwargs)) + written:
            # Of an expanded tensor what there is.
            sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0]
            size = math.prod(sizes) * tensor.element_size()
            if size % self.rows:
                kernel.other_bytes += size
            else:
                kernel.row_bytes += size / self.rows
        packet = function._overloadpacket
        if packet in flop_registry:
            kernel.flops = flop_registry[packet](*args, **kwargs, out_val=output) / self.rows
            if "attention" in packet.__name__:
                kernel.kind = "attention"
            else:
                kernel.kind = "matrix products"
                # A convolution is a product whose columns are channels.
                shape = written[0].shape if packet in MATRIX_PRODUCTS else (written[0].numel(), 1)
                kernel.output = tuple(
                    (size, False) if size % self.rows else (size / self.rows, True) for size in shape
                )
                if packet not in MATRIX_PRODUCTS:
                    (size, of_row), _ = kernel.output
                    kernel.output = ((size / TILE, of_row), (TILE, False))
        return kernel

    def track(self, tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size % self.rows or storage._cdata in self.known or self.part == self.untracked:
            return
        self.known[storage._cdata] = size
        self.live += size
        self.peak = max(self.peak, self.live / self.rows)
        weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int):
        self.live -= self.known.pop(key)


def layout_of(values):
    """Something hashable that is equal for arguments whose results are alike."""
    if isinstance(values, torch.Tensor):
        return values.shape, values.stride(), values.dtype, values.device.type
    if isinstance(values, (tuple, list)):
        return tuple(map(layout_of, values))
    return values


def tensors_of(values) -> list[torch.Tensor]:
    """The tensors on the meta device in `values`."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta"]


def fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """`scaled_dot_product_attention` by the kernels of a GPU, which keep no attention weights."""
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            # As PyTorch does, in every layer.
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask.logical_not(), -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale
    )[0]


class Autocast:
    """`torch.autocast` on the meta device, which has none: functions are patched, and ask whether it is on."""

    dtype: torch.dtype | None = None  # that is in force; None: it is off
    default: torch.dtype | None = None  # of those who switch it on without naming one

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **kwargs):
        self.within = (dtype or Autocast.default) if enabled else None

    def __enter__(self):
        self.outside, Autocast.dtype = Autocast.dtype, self.within

    def __exit__(self, *error):
        Autocast.dtype = self.outside


def ask_on_meta(function, answer, device_type: str | None = None):
    """What PyTorch says of autocast on a device, and `answer` of the meta device."""
    if device_type == "meta":
        return answer()
    return function() if device_type is None else function(device_type)


def cast(tensor, dtype: torch.dtype | None):
    is_float = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    return tensor.to(dtype) if is_float and dtype is not None else tensor


@contextmanager
def as_on_a_gpu(dtype: torch.dtype | None):
    """
    Within it functions of `torch.nn.functional` do on the meta device, which knows neither, what they do on a GPU: fused
    attention, and autocast to `dtype` (None: none) with norms in float32.
    """
    functional = nn.functional
    linear, conv2d, layer_norm = functional.linear, functional.conv2d, functional.layer_norm

    def in_half(function, count):
        def call(*args, **kwargs):
            args = [cast(arg, Autocast.dtype) if place < count else arg for place, arg in enumerate(args)]
            return function(*args, **kwargs)

        return call

    def norm(*args, **kwargs):
        wide = None if Autocast.dtype is None else torch.float32
        return layer_norm(*(cast(arg, wide) for arg in args), **kwargs)

    patches = {
        "linear": in_half(linear, 3),
        "conv2d": in_half(conv2d, 3),
        "scaled_dot_product_attention": in_half(fused_attention, 4),
        "layer_norm": norm,
    }
    matmul = mock.patch.object(torch, "matmul", in_half(torch.matmul, 2))
    with matmul, ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch.object(functional, name, replacement))
        stack.enter_context(mock.patch.object(torch, "autocast", Autocast))
        stack.enter_context(mock.patch.object(Autocast, "default", dtype or torch.bfloat16))
        for name, answer in (
            ("is_autocast_enabled", lambda: Autocast.dtype is not None),
            ("get_autocast_dtype", lambda: Autocast.dtype or Autocast.default),
        ):
            ask = partial(ask_on_meta, getattr(torch, name), answer)
            stack.enter_context(mock.patch.object(torch, name, ask))
        if dtype is not None:
            stack.enter_context(Autocast("meta", dtype))
        yield


__all__ = ["Kernel", "Recorder", "as_on_a_gpu"]
