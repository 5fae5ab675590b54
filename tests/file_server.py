# SPDX-License-Identifier: Apache-2.0
"""A server of ARKitScenes on this machine that misbehaves on purpose, and the command that downloads from it."""

import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from data_scripts.download_arkitscenes import main


NOISE = np.random.default_rng(0).bytes(300_000)  # does not compress


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


SCAN = zipped({"41/41_3dod_annotation.json": b"{}", "41/41_frames/lowres_wide/41_1.000.png": NOISE})


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` with `server.headers`; what `server.trouble` lists for a path happens first, one per request."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        trouble = server.trouble.get(self.path, [])
        event = trouble.pop(0) if trouble else None
        if isinstance(event, threading.Event):
            event.wait(60)
        if content is None or isinstance(event, int):
            self.send_error(404 if content is None else event)
            return
        start, total = 0, len(content)
        headers = server.headers.get(self.path, {})
        condition = self.headers.get("If-Range")
        is_same = condition is None or condition in (headers.get("ETag"), headers.get("Last-Modified"))
        if self.headers.get("Range") and server.resumes and (is_same or server.ignores_conditions):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        for name, value in headers.items():
            if name != "Server":  # which is sent already
                self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if event == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        elif event == "garble":
            body = bytes(len(body))
        elif isinstance(event, bytes):
            body = event
        self.wfile.write(body)

    def version_string(self):
        return self.server.headers.get(self.path, {}).get("Server", "test")

    def log_message(self, *arguments):
        pass


class Served:
    """A socket server that serves on a thread of its own while it is entered."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class FileServer(Served, ThreadingHTTPServer):
    """
    Attributes:
        files, headers: path to content, and to the headers it is sent with.
        trouble: path to what goes wrong, one per request: a status, "cut" (half of what is to come), "garble" (zeros), other
            bytes, or an event to wait for.
        resumes, ignores_conditions: whether it knows `Range`, but not `If-Range`.
        requests: path and `Range` of each.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.trouble, self.headers = [], {}, {}
        self.resumes, self.ignores_conditions = True, False
        self.files = {
            "/threedod/metadata.csv": b"video_id,sky_direction\n41,Up\n",
            "/threedod/Training/41.zip": SCAN,
            "/raw/metadata.csv": b"video_id,sky_direction\n41,Up\n",
            "/raw/Training/41/lowres_wide.zip": zipped({"lowres_wide/41_1.000.png": NOISE}),
            "/raw/Training/41/lowres_wide.traj": b"1.0 0 0 0 0 0 0\n",
        }


def run(server, output, *arguments):
    return main([*arguments, "--output", str(output), "--base-url", server.url])


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = ["3dod/Training/41/41_3dod_annotation.json", "3dod/Training/41/41_frames/lowres_wide/41_1.000.png"]
WHOLE.append("3dod/metadata.csv")
