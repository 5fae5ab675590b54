# SPDX-License-Identifier: Apache-2.0
"""The old place of `data_scripts.readers.roomplan`, for one version."""

import warnings

from .readers.roomplan import read_captured_room  # noqa: F401


warnings.warn("data_scripts.roomplan is now data_scripts.readers.roomplan", FutureWarning, stacklevel=2)
