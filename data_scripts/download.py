# SPDX-License-Identifier: Apache-2.0
"""
Downloads files that may be large, over networks that fail, by several processes at once.

`X` arrives as `X.part`, with `X.part.json` beside it, which says which version of the file the server had: what is there is
gone on with if the server still has that one. Imports only the standard library and tqdm.
"""

import base64
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from .archives import ArchiveError, DamagedArchiveError, unpack
from .files import describe_os_error, flush, flush_all, is_disk_full


ATTEMPTS = 6
FIRST_PAUSE = 1.0  # seconds before the second attempt; it doubles with each further one
LONGEST_PAUSE = 60.0
LOCK_PAUSE = 0.2
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 18


class DownloadError(RuntimeError):
    """A file that cannot be had; the message says which and why."""


class DiskFullError(DownloadError):
    """There is no room for a file, and so for none of the others."""


class TransferError(Exception):
    """What another attempt may mend."""


@dataclass(frozen=True)
class Item:
    """A file to fetch.

    Attributes:
        url: its address.
        target: the file or, of an archive, the folder that is there once it is complete.
        archive: whether it is a zip to unpack into `target`.
    """

    url: str
    target: Path
    archive: bool


@dataclass(frozen=True)
class Version:
    """Which file the server has, as far as it says.

    Attributes:
        length: of the whole file, bytes.
        etag, last_modified: the headers of these names.
        checksum: algorithm and hexadecimal digest.
    """

    length: int | None
    etag: str | None
    last_modified: str | None
    checksum: tuple[str, str] | None = None

    @classmethod
    def of_whole(cls, headers: Message) -> "Version":
        """By the headers of an answer with the whole file."""
        return cls(_number(headers["Content-Length"]), headers["ETag"], headers["Last-Modified"], _checksum(headers))

    def differs(self, other: "Version") -> bool:
        """Whether something that both know is another thing."""
        pairs = (
            (self.length, other.length),
            (self.etag, other.etag),
            (self.last_modified, other.last_modified),
        )
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def condition(self) -> str | None:
        """What `If-Range` takes: no weak ETag, which two files that differ may share."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class Downloader:
    """Fetches items one by one; may be used by several threads, and beside other processes with the same targets.

    Args:
        keep_zip: leave an unpacked archive where it was.
        bar: progress bar that counts bytes.
    """

    def __init__(self, keep_zip: bool, bar: tqdm):
        self.keep_zip = keep_zip
        self.bar = bar
        self.stopped = threading.Event()
        self._bar_lock = threading.Lock()

    def fetch(self, item: Item) -> bool:
        """Fetches and unpacks an item; returns False if it was there already, or another process fetched it meanwhile.

        Raises:
            DownloadError: the server does not have it, it holds what it must not, every attempt failed, or it cannot be
                written here.
            DiskFullError: there is no room for it.
        """
        if item.target.exists() and not _lock_file(item).exists() and not _unpacking(item).exists():
            return False
        try:
            item.target.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(item):
                if not item.target.exists():
                    return self._fetch(item)
                if _unpacking(item).exists():
                    self._clear(item)
                return False
        except OSError as error:  # of this machine: another attempt would not mend it
            text = f"{item.target}: not written: {describe_os_error(error, item.target.parent)}"
            if is_disk_full(error):
                raise DiskFullError(f"{text}; the same command goes on from here") from error
            raise DownloadError(text) from error

    @contextmanager
    def _locked(self, item: Item) -> Iterator[None]:
        """Keeps other processes from the item until this one is done with it, or dead. Who comes second waits."""
        path = _lock_file(item)
        while True:
            with open(path, "ab") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if self.stopped.wait(LOCK_PAUSE):
                        raise DownloadError(f"{item.url}: interrupted") from None
                    continue
                try:
                    if not os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                        continue
                except FileNotFoundError:  # who had it is done, and has removed the file that is locked now
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def _fetch(self, item: Item) -> bool:
        path = _zip_file(item) if item.archive else item.target
        if item.archive and path.exists():  # without its folder: it was not unpacked to the end
            try:
                self._unpack(item, path)
            except DamagedArchiveError:
                path.unlink()
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if not item.target.exists():
                    self._download(item.url, path)
                    if item.archive:
                        self._unpack(item, path)
                return True
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    raise DownloadError(f"{item.url}: {reason}") from None
                wait = max(pause, _number(error.headers["Retry-After"]) or 0)
            except DamagedArchiveError as error:
                path.unlink()
                reason, wait = f"what arrived is {error}", pause
            except TransferError as error:
                reason, wait = str(error), pause
            if attempt == ATTEMPTS or self.stopped.wait(min(wait, LONGEST_PAUSE)):
                raise DownloadError(f"{item.url}: {reason} ({attempt} attempts)")
            pause *= 2
        raise AssertionError("unreachable")

    def _download(self, url: str, path: Path):
        """Downloads to `path` by way of its part, from which the next attempt goes on."""
        part = path.with_name(f"{path.name}.part")
        version = _read_version(part)
        start = part.stat().st_size if version is not None and part.exists() else 0
        if not start or start != version.length:
            version = self._receive(url, part, start, version)
        if version.checksum is not None:
            algorithm, expected = version.checksum
            with open(part, "rb") as stream:
                if hashlib.file_digest(stream, algorithm).hexdigest() != expected:
                    _remove(part)
                    raise TransferError(f"what arrived has not the {algorithm} that the server says")
        flush(part)
        _version_file(part).unlink(missing_ok=True)
        os.replace(part, path)
        flush(path.parent)

    def _receive(self, url: str, part: Path, start: int, version: Version | None) -> Version:
        """Completes the part, of which `start` bytes of `version` are there; returns what it is complete of."""
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if version.condition():
                headers["If-Range"] = version.condition()
        try:
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # there is more of the part than of the file
                _remove(part)
                raise TransferError("what was there of it does not fit the server's file") from None
            raise
        except (OSError, http.client.HTTPException) as error:
            raise TransferError(str(error) or type(error).__name__) from None
        except ValueError as error:  # no address
            raise DownloadError(f"{url}: {error}") from None
        with response:
            if response.status == 206:
                first, length = _content_range(response.headers["Content-Range"])
                now = Version(length, response.headers["ETag"], response.headers["Last-Modified"])
                if not start or first != start or version.differs(now):
                    _remove(part)
                    raise TransferError(
                        f"the file has changed since {start} bytes of it were fetched, or others were sent than asked for"
                    )
            else:  # the server does not resume, or has another version now
                start, version = 0, Version.of_whole(response.headers)
                _remove(part)
                _version_file(part).write_text(json.dumps(asdict(version)))
            size = self._copy(url, response, part, start, version.length)
        if version.length not in (None, size):
            if size > version.length:
                _remove(part)
            raise TransferError(f"{size} of {version.length} bytes arrived")
        return version

    def _copy(self, url: str, response: http.client.HTTPResponse, part: Path, start: int, length: int | None) -> int:
        """Appends what comes to the part; returns how long it is then."""
        size, is_complete = start, False
        with self._bar_lock:
            self.bar.total = (self.bar.total or 0) + (length or 0)
            self.bar.update(start)
        try:
            with open(part, "ab") as stream:
                while chunk := _read(response):
                    if self.stopped.is_set():
                        raise DownloadError(f"{url}: interrupted")
                    stream.write(chunk)
                    size += len(chunk)
                    with self._bar_lock:
                        self.bar.update(len(chunk))
            is_complete = length in (None, size)
        finally:
            if not is_complete:
                with self._bar_lock:  # all of it is counted again with the next attempt
                    self.bar.total -= length or 0
                    self.bar.update(-size)
        return size

    def _unpack(self, item: Item, path: Path):
        """
        Unpacks an archive, and archives inside it, into `item.target`.

        Raises:
            DamagedArchiveError: it is damaged.
            DownloadError: it is intact, but holds what it must not, or no folder of the target's name.
        """
        folder = _unpacking(item)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unpack(path, folder)
            found = next((place for place in sorted(folder.rglob(item.target.name)) if place.is_dir()), None)
            if found is None:
                names = ", ".join(sorted(place.name for place in folder.iterdir())[:5])
                raise ArchiveError(f"holds no folder {item.target.name}, but {names or 'nothing'}")
            flush_all(found)
            os.replace(found, item.target)
            flush(item.target.parent)
        except DamagedArchiveError:
            raise
        except ArchiveError as error:
            path.unlink()
            raise DownloadError(f"{item.url}: {error}") from None
        finally:
            if not item.target.exists():
                shutil.rmtree(folder, ignore_errors=True)
        self._clear(item)

    def _clear(self, item: Item):
        """Removes what an unpacked archive needs no more; the folder last: by it one that was killed here is known."""
        if not self.keep_zip:
            _zip_file(item).unlink(missing_ok=True)
        shutil.rmtree(_unpacking(item), ignore_errors=True)


def _lock_file(item: Item) -> Path:
    return item.target.with_name(f".{item.target.name}.lock")


def _zip_file(item: Item) -> Path:
    return item.target.with_name(f"{item.target.name}.zip")


def _unpacking(item: Item) -> Path:
    return item.target.with_name(f".{item.target.name}.unpacking")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(str(error) or type(error).__name__) from None


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path) -> Version | None:
    """None: it is not known, so that the part cannot be gone on with."""
    try:
        version = Version(**json.loads(_version_file(part).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return version


def _remove(part: Path):
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _checksum(headers: Message) -> tuple[str, str] | None:
    """Algorithm and digest of the whole file, if the headers say; what an ETag is, only Amazon's S3 says (in part)."""
    sha256 = re.search(r"sha-256=:([A-Za-z0-9+/]{43}=):", headers["Repr-Digest"] or "")
    if sha256:
        return "sha256", base64.b64decode(sha256[1]).hex()
    if re.fullmatch(r"[A-Za-z0-9+/]{22}==", headers["Content-MD5"] or ""):
        return "md5", base64.b64decode(headers["Content-MD5"]).hex()
    # Of a file that came in several parts it has a dash; of one encrypted by another key it is no digest.
    is_plain = (headers["x-amz-server-side-encryption"] or "AES256") == "AES256"
    is_plain = is_plain and not headers["x-amz-server-side-encryption-customer-algorithm"]
    md5 = re.fullmatch(r'"([0-9a-f]{32})"', headers["ETag"] or "")
    return ("md5", md5[1]) if md5 and headers["Server"] == "AmazonS3" and is_plain else None


def _content_range(value: str | None) -> tuple[int, int | None]:
    """First byte and length of the whole of `bytes 100-199/200`."""
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", value or "", re.ASCII)
    if match is None:
        raise TransferError(f"an answer with the range '{value}'")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _number(value: str | None) -> int | None:
    return int(value) if re.fullmatch(r"\d{1,18}", value or "", re.ASCII) else None


__all__ = ["DiskFullError", "DownloadError", "Downloader", "Item"]
