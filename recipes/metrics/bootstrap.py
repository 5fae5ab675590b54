# SPDX-License-Identifier: Apache-2.0
"""Bootstrap resamples (Efron, 1979) of scores."""

from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np


RESAMPLES, RESAMPLES_AT_ONCE = 1000, 50


def resample(values: Callable[[np.ndarray], dict[Hashable, np.ndarray]], number: int) -> dict[Hashable, np.ndarray]:
    """
    `values` on `RESAMPLES` draws of as many items with replacement, `[RESAMPLES]` each. The draws are the same in every
    call, so that the differences between systems are paired.

    Args:
        values: From float `[B, number]`, how often each item counts in each of B draws, to `[B]` values by name.
        number: Of items.
    """
    rng = np.random.default_rng(0)
    parts = defaultdict(list)
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        drawn = [np.bincount(rng.integers(number, size=number), minlength=number) for _ in range(RESAMPLES_AT_ONCE)]
        for key, part in values(np.array(drawn, dtype=float)).items():
            parts[key].append(part)
    return {key: np.concatenate(part) for key, part in parts.items()}


__all__ = ["resample"]
