# SPDX-License-Identifier: Apache-2.0
"""Zips that are damaged, or made to harm who unpacks them. Each holds, or did, a folder `41`."""

import io
import random
import stat
import zipfile
from collections.abc import Iterator


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (kind | 0o777) << 16
    return member


def harmful() -> Iterator[tuple[str, bytes]]:
    """What no archive of scans holds: each has to be refused."""
    whole = ("41/a.json", b"{}")
    for name in (
        "../evil",
        "41/../../evil",
        "/evil",
        "/tmp/evil",
        "41/..",
        "..",
        "41/../../../../../../../../tmp/evil",
    ):
        yield f"a name that leads out, {name}", zipped(whole, (name, b"evil"))
    for kind, what in (
        (stat.S_IFLNK, "link"),
        (stat.S_IFIFO, "pipe"),
        (stat.S_IFCHR, "device"),
        (stat.S_IFSOCK, "socket"),
    ):
        yield f"a {what}", zipped(whole, (special(f"41/{what}", kind), b"/etc/passwd"))
    bomb = zipped(whole, ("41/zeros", bytes(64 << 20)))
    yield "a bomb", bomb
    yield "a bomb in a zip", zipped(("41.zip", bomb))
    inner = zipped(("41/zeros", bytes(17 << 20)))
    yield "many small bombs in a zip", zipped(*((f"41/{index}.zip", inner) for index in range(20)))
    yield "a name as file and as folder", zipped(("41/a", b""), ("41/a/b", b""))
    yield "a name too long for any disk", zipped(whole, ("41/" + "n" * 300, b""))
    yield "a path too long for any disk", zipped(whole, ("41/" + "/".join(["n" * 200] * 40), b""))
    yield "no scan", zipped(("42/a.json", b"{}"))
    yield "nothing", zipped()
    yield "no zip", b"<html>Please sign in.</html>"
    yield "no byte", b""


def damaged(number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Archives of all methods with bytes changed, cut out or put in."""
    rng = random.Random(seed)
    members = (("41/a.json", b'{"a": 1}' * 40), ("41/b/c.png", rng.randbytes(500)))
    wholes = [zipped(*members, method=method) for method in METHODS]
    wholes += [zipped(("41.zip", whole)) for whole in wholes]
    for index in range(number):
        content = bytearray(rng.choice(wholes))
        for _ in range(rng.choice((1, 1, 2, 5))):
            # Half of them in the directory at the end, which says what is where.
            place = rng.randrange(len(content)) if rng.random() < 0.5 else len(content) - 1 - rng.randrange(150)
            how = rng.randrange(4)
            if how == 0:
                content[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            elif how == 1:
                content[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x80\x00\x00\x00", rng.randbytes(4)))
            elif how == 2:
                del content[place : place + rng.randrange(1, 40)]
            else:
                content[place:place] = rng.randbytes(rng.randrange(1, 40))
        yield f"damage {index}", bytes(content)


__all__ = ["damaged", "harmful", "zipped"]
