# SPDX-License-Identifier: Apache-2.0
"""The old place of `data_scripts.readers.scannet`, for one version."""

import warnings

from .readers.scannet import open_scan  # noqa: F401


warnings.warn("data_scripts.scannet is now data_scripts.readers.scannet", FutureWarning, stacklevel=2)
