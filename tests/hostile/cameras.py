# SPDX-License-Identifier: Apache-2.0
"""Cameras of prepared datasets by others: numbers of every size, fields that are missing, of another shape or no numbers."""

from collections.abc import Iterator

import numpy as np
from toys import toy_geometry


# What float64 holds, at and beyond the edges of float32.
NUMBERS = [
    np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e-46, 1e-39, 1e-30, 1e-7, 1e-4, 2e-3, 1.0, -1.0, 9.0, 1e3, 990.0, -990.0, 2e3, 1e5, 1e12, 1e20,
    -1e30, 3.4e38, 3.5e38, 1e39, -1e39, 1e308,
]  # fmt: skip


def cameras(seed: int, num_views: int = 3) -> Iterator[tuple[str, dict]]:
    """Geometries in which one number, all of a view's, or the form of a field is another."""
    rng = np.random.default_rng(seed)
    for key, array in toy_geometry(num_views).items():
        for value in NUMBERS:
            for many in (False, True):
                geometry = {name: values.astype(np.float64) for name, values in toy_geometry(num_views).items()}
                place = tuple(rng.integers(array.shape))
                geometry[key][place[0] if many else place] = value
                yield f"{key}{'' if many else list(map(int, place))} = {value}", geometry
        whole = toy_geometry(num_views)
        forms = {
            "is missing": None, "of one view less": whole[key][1:], "without a dimension": whole[key][0],
            "as text": whole[key].astype(str).tolist(), "of words": [["far"]] * num_views, "of nulls": [[None]] * num_views,
            "empty": [],
        }  # fmt: skip
        for form, values in forms.items():
            yield (
                f"{key} {form}",
                {k: v for k, v in whole.items() if k != key} | ({} if values is None else {key: values}),
            )


__all__ = ["cameras"]
