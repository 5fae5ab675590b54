# SPDX-License-Identifier: Apache-2.0
"""Environment of every test, set before any library reads it; subprocesses inherit it."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
