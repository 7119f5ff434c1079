"""Bytes fetched before, on a local disk: each range under the SHA-256 of what it holds.

A name that is a digest cannot be out of date, and what is read is checked against it, so damage
costs a fetch and never a wrong batch. Several processes share a folder: one locked file counts the
bytes, so the limit holds for all of them together.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import RunError

_LOG = logging.getLogger(__name__)

ROOM_FRACTION = 0.1
"""Of the limit; freed beyond what is needed, so that the folder is not searched every time."""

STALE_SECONDS = 3600.0
"""An unfinished file of this age was left by a process that died."""

_TEMPORARY = ".tmp-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class RangeCache:
    """Byte ranges below one folder, at most ``max_bytes``; the longest unused go first.

    Beyond the limit there is at most one unfinished file for each range being written. Threads may
    share a cache.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        """Make the folder.

        Args:
            folder: local, for nothing else; may be shared by processes of one machine.
            max_bytes: limit of the contents, above 0.

        Raises:
            ValueError: a limit that is not above 0.
            RunError: the folder cannot be made.
        """
        if max_bytes < 1:
            raise ValueError(f"the cache's limit must be at least 1 byte, got {max_bytes}")
        self._folder, self._max_bytes = Path(folder), max_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._counter() as (size_bytes, write):
                if size_bytes >= max_bytes:  # new, unknown, or the limit was higher before
                    write(self._make_room(0))
        except OSError as error:
            raise RunError(
                f"cache_dir={folder} cannot be written: {error}; name another folder or none"
            ) from error
        self.num_hits = 0
        """Ranges that were here."""
        self.num_misses = 0
        """Ranges that had to be fetched."""
        self.num_damaged = 0
        """Of these, ranges that were here but were not what their name says."""
        self.num_unwritten = 0
        """Fetched ranges that the disk did not take."""

    @property
    def size_bytes(self) -> int:
        """Bytes held now, by all processes; never above the limit."""
        with self._counter() as (size_bytes, _):
            return size_bytes

    def holds(self, digest: str) -> bool:
        """Whether something of that name is here; whether it is whole, ``get`` finds out."""
        return self._path(digest).exists()

    def get(self, digest: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes with this digest, from here or from ``fetch``.

        Args:
            digest: SHA-256, 64 small hexadecimal digits.
            fetch: gets them from where they are; its errors go through.

        Raises:
            ValueError: not a digest, or what was fetched has another one (it is not kept).
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256 in hexadecimal: {digest!r}")
        held = self._read(digest)
        if held is not None:
            self.num_hits += 1
            return held
        self.num_misses += 1
        content = fetch()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ValueError(f"{len(content):,} bytes with SHA-256 {found}, not {digest}")
        self._keep(digest, content)
        return content

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _read(self, digest: str) -> bytes | None:
        """The bytes, if they are here and whole; damaged ones are removed."""
        path = self._path(digest)
        try:
            content = path.read_bytes()
            whole = hashlib.sha256(content).hexdigest() == digest
            if whole:
                os.utime(path)
        except FileNotFoundError:  # never there, or just removed by another process
            return None
        except OSError as error:
            self._say_once("cannot be read", error)
            content, whole = b"", False
        if whole:
            return content
        self.num_damaged += 1
        with contextlib.suppress(OSError), self._counter() as (size_bytes, write):
            write(max(0, size_bytes - _remove(path)))
        return None

    def _keep(self, digest: str, content: bytes) -> None:
        """Write what was fetched; a full or broken disk is said once and stops nobody."""
        if len(content) > self._max_bytes:
            return
        path = self._path(digest)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            with self._counter() as (size_bytes, write):
                if path.exists():  # another process was faster
                    temporary.unlink()
                    return
                if size_bytes + len(content) > self._max_bytes:
                    size_bytes = self._make_room(len(content))
                # counted first: killed in between, the count is too high, which a search corrects
                write(size_bytes + len(content))
                temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._say_once("takes no more", error)
            self.num_unwritten += 1

    def _make_room(self, wanted_bytes: int) -> int:
        """Remove the longest unused until ``wanted_bytes`` and some room are free; bytes left.

        The lock is held. What is counted here is what is there, so that every search also puts
        the count right.
        """
        found: list[tuple[float, int, Path]] = []
        stale = time.time() - STALE_SECONDS
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if not path.name.startswith(_TEMPORARY):
                    found.append((status.st_mtime, status.st_size, path))
                elif status.st_mtime < stale:
                    path.unlink()
        size_bytes = sum(size for _, size, _ in found)
        aim = min(self._max_bytes - wanted_bytes, int(self._max_bytes * (1 - ROOM_FRACTION)))
        for _, size, path in sorted(found):
            if size_bytes <= aim:
                break
            path.unlink(missing_ok=True)
            size_bytes -= size
        return size_bytes

    @contextlib.contextmanager
    def _counter(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        """The count of bytes, alone among all processes and threads, and how to change it."""
        descriptor = os.open(self._folder / "size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.read(descriptor, 32)
            # an unknown count asks for a search by being too high
            yield (
                int(text) if text.isdigit() else self._max_bytes,
                lambda value: _rewrite(descriptor, value),
            )
        finally:
            os.close(descriptor)

    def _say_once(self, what: str, error: OSError) -> None:
        if not self.num_unwritten and not self.num_damaged:
            _LOG.warning("cache_dir=%s %s: %s; reading goes on", self._folder, what, error)


def _remove(path: Path) -> int:
    """Remove a file; its bytes, 0 if another process was faster."""
    try:
        size_bytes = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size_bytes


def _rewrite(descriptor: int, value: int) -> None:
    os.pwrite(descriptor, f"{value:020d}".encode(), 0)
