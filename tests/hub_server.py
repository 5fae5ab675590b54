# SPDX-License-Identifier: Apache-2.0
"""A Hub of our own: an HTTP server that speaks as much of the Hub's API as huggingface_hub and datasets use, and can fail.

    with HubServer() as hub:
        hub.faults.append(Fault("PUT", "/lfs/", status=500, times=2))
        subprocess.run(command, env=hub.environment(tmp_path))
        hub.repos["model", "org/name"].head.files

`hub_api.py` holds the routes.
"""

import os
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_api import READ_TOKEN, TOKEN, HubHandler
from hub_repos import Repo, Stored


@dataclass
class Fault:
    """
    What goes wrong, for the next `times` requests of `method` whose path matches `path`.

    Attributes:
        status: answer with this status instead.
        message: of that answer.
        cut_after: read so many bytes of the request's body, then cut the connection.
        reached: with `cut_after`, is set at that point, and the connection stays open until the client dies.
    """

    method: str
    path: str
    status: int | None = None
    message: str = "made to fail"
    cut_after: int | None = None
    reached: threading.Event | None = None
    times: int = 1


class HubServer:
    """
    Runs in a thread while the `with` block lasts.

    Args:
        chunk_size: files of the large file storage that are larger are asked for in parts of so many bytes.
    """

    def __init__(self, chunk_size: int = 1 << 20):
        self.chunk_size = chunk_size
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Of a process that knows no other Hub, whose caches are in `home`, and that is online whatever this one is."""
        dropped = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "PYTHONPATH")
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return environment | ({"HF_TOKEN": token} if token else {})

    def put(self, kind: str, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """Makes a repo that holds `files`, as if somebody had uploaded them."""
        repo = self.repos[kind, name] = Repo(private)
        repo.commit("initial commit", {".gitattributes": Stored(b"", None)})
        repo.commit("files", repo.head.files | {path: Stored(content, None) for path, content in files.items()})
        return repo


__all__ = ["READ_TOKEN", "TOKEN", "Fault", "HubServer"]
