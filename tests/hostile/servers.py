# SPDX-License-Identifier: Apache-2.0
"""Answers of servers that keep to no rule: the bytes that a connection gets, whatever it asks for."""

import random
import socketserver
from collections.abc import Iterator

from file_server import Served


GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "a"\r\nRepr-Digest: sha-256=:x:\r\n\r\nhello'
PARTIAL = b'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/5\r\nContent-Length: 3\r\nETag: "a"\r\n\r\nllo'


def answers(number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n"
    yield "a line without end", b"HTTP/1.1 200 " + b"O" * 100_000
    yield "headers without end", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 2000
    yield "a body until the end", b"HTTP/1.1 200 OK\r\n\r\nhello"
    for value in (b"abc", b"-1", b"1e3", b"\xb2", b"9" * 30, b"9" * 5000, b"5, 5", b""):
        yield f"length {value[:9]!r}", b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\nhello"
    for value in (
        b"",
        b"bytes",
        b"bytes 0-4/5",
        b"bytes 2-4/*",
        b"bytes 2-4/9",
        b"bytes -1-4/5",
        b"bytes 2-1/5",
        b"2-4/\xb2",
    ):
        yield (
            f"range {value!r}",
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: " + value + b"\r\n\r\nllo",
        )
    for value in (b"\xb2", b"-1", b"nan", b"9" * 5000, b"Wed, 21 Oct 2015 07:28:00 GMT"):
        yield f"retry {value[:9]!r}", b"HTTP/1.1 503 Busy\r\nRetry-After: " + value + b"\r\n\r\n"
    for value in (b"/file", b"file:///etc/passwd", b"data:,x", b"http://[", b"//", b"\x00", b"http://\xff/", b""):
        yield f"elsewhere {value!r}", b"HTTP/1.1 302 Found\r\nLocation: " + value + b"\r\n\r\n"
    for value in (b"zz", b"-1", b"5\r\nhel", b"9" * 20):
        yield f"chunks {value!r}", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + value + b"\r\nhello"
    for name in (b"ETag", b"Last-Modified", b"Content-MD5", b"Repr-Digest", b"Server"):
        yield f"odd {name!r}", GOOD.replace(b"\r\n\r\n", b"\r\n" + name + b": \xff\x00=:\r\n folded\r\n\r\n")
    for status in (99, 100, 204, 304, 401, 407, 416, 999):
        yield f"status {status}", GOOD.replace(b"200 OK", b"%d X" % status)
    rng = random.Random(seed)
    for index in range(number):
        answer = bytearray(rng.choice((GOOD, PARTIAL)))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(answer))
            if rng.random() < 0.3:
                del answer[place : place + rng.randrange(1, 9)]
            elif rng.random() < 0.5:
                answer[place] = rng.randrange(256)
            else:
                answer[place:place] = rng.choice((b"\r\n", b"\n", b"0", b"-", b"9" * 9, rng.randbytes(3)))
        yield f"damage {index}", bytes(answer)


class AnswerServer(Served, socketserver.ThreadingTCPServer):
    """Sends `answer` to whoever connects."""

    daemon_threads = True
    answer = b""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(1 << 16)
        self.request.sendall(self.server.answer)


__all__ = ["AnswerServer", "answers"]
