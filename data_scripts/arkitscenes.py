# SPDX-License-Identifier: Apache-2.0
"""The old place of `data_scripts.readers.arkitscenes`, for one version."""

import warnings

from .readers.arkitscenes import open_scan  # noqa: F401


warnings.warn("data_scripts.arkitscenes is now data_scripts.readers.arkitscenes", FutureWarning, stacklevel=2)
