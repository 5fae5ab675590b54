# SPDX-License-Identifier: Apache-2.0
"""Counts what makes the host wait for a GPU; the operations are the same on a CPU, where they cost nothing."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode


aten = torch.ops.aten
# Their result's size, or a Python number, depends on values that the GPU has yet to compute.
WAITING = {
    aten._local_scalar_dense,  # .item(), int(), bool(), `if tensor`; .tolist() and .cpu() on a GPU are copies
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten.equal,
}
# torch.tensor(numbers, device=...) and new_tensor: a copy from memory that is not pinned, for which the host waits too.
CONSTANTS = {aten.lift_fresh, aten.lift_fresh_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class HostSyncs(TorchDispatchMode):
    """
    `with HostSyncs() as syncs: ...` leaves in `syncs.counts` how often each operation that waits was run: those of
    `WAITING` and `CONSTANTS`, indexing by masks, repetition by a tensor, and copies from one device to another.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in WAITING or packet in CONSTANTS:
            self.counts[str(packet)] += 1
        elif packet in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.counts[f"{packet} by a mask"] += 1
        elif packet is aten.repeat_interleave and torch.is_tensor(args[0]) and func is aten.repeat_interleave.Tensor:
            self.counts[str(packet)] += 1
        result = func(*args, **(kwargs or {}))
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            if torch.is_tensor(source) and source.device.type != result.device.type:
                self.counts[f"copy from {source.device.type} to {result.device.type}"] += 1
        return result


__all__ = ["HostSyncs"]
