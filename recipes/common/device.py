# SPDX-License-Identifier: Apache-2.0
"""What the processors of this machine can do."""

import torch


def has_fast_bfloat16(device_type: str) -> bool:
    """
    Whether products of bfloat16 matrices are at least as fast as those of float32 on "cpu", "cuda", ...

    On a CPU without instructions for them they take about twenty times as long.
    """
    if device_type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


__all__ = ["has_fast_bfloat16"]
