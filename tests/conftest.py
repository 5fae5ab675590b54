# SPDX-License-Identifier: Apache-2.0
"""Environment of every test, set before any library reads it; subprocesses inherit it."""

import os
import tempfile

import pytest


# Test processes that run side by side must not write modules into one another's folder.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="vggt-qwen3-modules-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def hub(monkeypatch):
    """A running Hub of our own that this process may reach, whatever CI forbids, without waiting between attempts."""
    import huggingface_hub.constants
    import huggingface_hub.utils._http
    from hub_server import HubServer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    with HubServer() as server:
        yield server
