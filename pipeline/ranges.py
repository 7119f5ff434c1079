"""Bytes of one shard at growing places: a local file directly, an object in large parallel ranges.

An object store charges and throttles by the request, so an object is asked for in ranges of tens of
megabytes, several of them at once. Their memory belongs to the worker: `RangeBuffers` bounds it
over all shards that are open and uses it again, as fresh pages cost more than the copy into them.
All ranges must come from one version of the object.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from fsspec.asyn import get_loop

from pipeline.backends import error_code, is_local, is_s3, may_pass, pauses, storage_errors
from pipeline.errors import StorageError
from pipeline.listing import entry_of_stat

logger = logging.getLogger(__name__)

RANGE_BYTES = 32 << 20
RANGES_AHEAD = 4
RANGE_SECONDS = 300.0
"""Longest time for one range, for a server that sends a byte now and then."""


class RangeBuffers:
    """Memory for ranges, shared by the readers of one worker.

    At most ``limit_bytes``, shared evenly, and one range more for each reader: the one that it
    waits for is never refused, so that readers cannot wait for each other.
    """

    def __init__(
        self, limit_bytes: int = RANGES_AHEAD * RANGE_BYTES, range_bytes: int = RANGE_BYTES
    ) -> None:
        self.range_bytes = range_bytes
        self._limit = max(1, limit_bytes // range_bytes)
        self._free: list[bytearray] = []
        self.num_taken = 0
        """Ranges that are read or on their way now."""
        self._num_readers = 0
        self._lock = threading.Lock()

    def join(self) -> None:
        """One more reader."""
        with self._lock:
            self._num_readers += 1

    def leave(self) -> None:
        """One reader less."""
        with self._lock:
            self._num_readers -= 1

    def take(self, num_held: int) -> bytearray | None:
        """Memory for one range more, for a reader that holds so many; None: make do with them."""
        with self._lock:
            share = max(1, self._limit // max(1, self._num_readers))
            if num_held and (num_held >= share or self.num_taken >= self._limit):
                return None
            self.num_taken += 1
            return self._free.pop() if self._free else bytearray(self.range_bytes)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody reads it or writes to it any more."""
        with self._lock:
            self.num_taken -= 1
            if self.num_taken + len(self._free) < self._limit:
                self._free.append(buffer)


class ReadsPlaces(Protocol):
    """An open shard. Used by one thread."""

    size_bytes: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at a place, mostly behind the last ones; fewer only where the shard ends.

        Raises:
            StorageError: storage did not answer, gave fewer bytes than it holds, or holds something
                else by now.
        """

    def close(self) -> None:
        """Give up what is on its way."""


def open_places(
    shard: str,
    filesystem: Any,
    path: str,
    size_bytes: int,
    version: str,
    buffers: RangeBuffers,
) -> ReadsPlaces:
    """Open a shard for reading.

    Args:
        shard: its name, for messages.
        filesystem: of ``backends.open_filesystem``.
        path: inside the file system.
        size_bytes: its length.
        version: its ETag or modification time, as in ``listing.Entry``.
        buffers: of the worker.

    Raises:
        StorageError: it is not there.
    """
    if is_local(filesystem):
        return _LocalFile(shard, Path(path), size_bytes, version)
    return _Ranges(shard, filesystem, path, size_bytes, version, buffers)


class _LocalFile:
    """The page cache reads ahead; every byte is copied once."""

    def __init__(self, shard: str, path: Path, size_bytes: int, version: str) -> None:
        self._shard, self.size_bytes = shard, size_bytes
        try:
            with storage_errors(shard):
                self._file = path.open("rb", buffering=0)
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                status = os.fstat(self._file.fileno())
        except FileNotFoundError as error:
            raise StorageError(shard, f"{path} is not there") from error
        self._status = (status.st_size, status.st_mtime_ns)
        found = entry_of_stat(status)
        if (found.size_bytes, found.version) != (size_bytes, version):
            self._file.close()
            raise self._changed(0)

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size_bytes - offset))
        number = self._file.fileno()
        try:
            data = os.pread(number, size, offset)
            while 0 < len(data) < size:  # the system gives at most 2 GiB at once
                more = os.pread(number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            status = os.fstat(number)
        except OSError:
            with storage_errors(self._shard):
                raise
        if (status.st_size, status.st_mtime_ns) != self._status:
            raise self._changed(offset)
        if len(data) < size:
            raise StorageError(
                self._shard, f"{len(data):,} of {size:,} bytes came at byte {offset:,}"
            )
        return data

    def _changed(self, offset: int) -> StorageError:
        return StorageError(self._shard, f"changed while it was read, at byte {offset:,}")

    def close(self) -> None:
        self._file.close()


class _Range:
    """Some bytes of the object on their way into a buffer.

    The buffer is the fetching task's until that has ended, then the reader's: one that the reader
    has dropped may still be written to.
    """

    def __init__(self, begin: int, end: int, buffer: bytearray, buffers: RangeBuffers) -> None:
        self.begin, self.end, self.buffer, self._buffers = begin, end, buffer, buffers
        self.task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        self.arrived = threading.Event()
        self.is_dropped = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.end - self.begin

    def bytes_at(self, offset: int, size: int) -> memoryview:
        """What of so many bytes at this place of the object is in here."""
        begin = offset - self.begin
        return memoryview(self.buffer)[begin : min(begin + size, len(self))]

    def end_fetching(self, error: BaseException | None) -> None:
        """Nothing more is written to the buffer."""
        with self._lock:
            self.error = error
            self.arrived.set()
            if self.is_dropped:
                self._buffers.give_back(self.buffer)

    def drop(self) -> None:
        """Nothing more is read from the buffer."""
        with self._lock:
            self.is_dropped = True
            if self.arrived.is_set():
                self._buffers.give_back(self.buffer)


class _Ranges:
    """An object, in ranges that are asked for before they are needed, and handed out in order."""

    def __init__(
        self,
        shard: str,
        filesystem: Any,
        path: str,
        size_bytes: int,
        version: str,
        buffers: RangeBuffers,
    ) -> None:
        self._shard, self._filesystem, self._path = shard, filesystem, path
        self.size_bytes, self._version, self._buffers = size_bytes, version, buffers
        self._loop = getattr(filesystem, "loop", None) or get_loop()
        self._get = self._get_s3 if is_s3(filesystem) else self._get_any
        self._window: deque[_Range] = deque()
        self._next = 0
        buffers.join()

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size_bytes)
        if end <= offset:
            return b""
        first = self._arrived(offset)
        if end <= first.end:
            return bytes(first.bytes_at(offset, end - offset))
        whole = io.BytesIO()  # gives its content away without a copy
        while offset < end:
            offset += whole.write(self._arrived(offset).bytes_at(offset, end - offset))
        return whole.getvalue()

    def close(self) -> None:
        self._drop_all()
        self._buffers.leave()

    def _arrived(self, offset: int) -> _Range:
        """The range that holds this place, when it is there; others are asked for meanwhile."""
        while self._window and self._window[0].end <= offset:
            self._window.popleft().drop()
        if not self._window or offset < self._window[0].begin:
            self._drop_all()  # a member was passed over
            self._next = offset
        self._ask_ahead()
        first = self._window[0]
        first.arrived.wait()
        if first.error is not None:
            try:
                with storage_errors(self._shard):
                    raise first.error
            except FileNotFoundError as error:
                raise StorageError(self._shard, f"is not there any more: {error}") from error
        return first

    def _ask_ahead(self) -> None:
        while self._next < self.size_bytes:
            buffer = self._buffers.take(len(self._window))
            if buffer is None:
                return
            end = min(self._next + len(buffer), self.size_bytes)
            one = _Range(self._next, end, buffer, self._buffers)
            self._loop.call_soon_threadsafe(self._start, one)
            self._window.append(one)
            self._next = end

    def _drop_all(self) -> None:
        while self._window:
            one = self._window.popleft()
            one.drop()
            self._loop.call_soon_threadsafe(self._cancel, one)

    # --- on the event loop of the file system ----------------------------------------------------

    def _start(self, one: _Range) -> None:
        def end(task: asyncio.Task[None]) -> None:
            one.end_fetching(asyncio.CancelledError() if task.cancelled() else task.exception())

        one.task = self._loop.create_task(self._try(one))
        one.task.add_done_callback(end)

    @staticmethod
    def _cancel(one: _Range) -> None:
        assert one.task is not None  # started by an earlier call on the same loop
        one.task.cancel()

    async def _try(self, one: _Range) -> None:
        """Fill the range's buffer; what goes wrong is raised where the range is read."""
        for pause in pauses():
            try:
                return await asyncio.wait_for(self._get(one), RANGE_SECONDS)
            except Exception as error:
                if not may_pass(error):
                    raise
                place = f"{self._shard}: bytes {one.begin:,} to {one.end:,}"
                logger.info("%s: %s; again in %.1f s", place, error, pause)
            await asyncio.sleep(pause)
        await asyncio.wait_for(self._get(one), RANGE_SECONDS)

    async def _get_s3(self, one: _Range) -> None:
        bucket, key, _ = self._filesystem.split_path(self._path)
        wanted = f"bytes {one.begin}-{one.end - 1}"
        try:
            answer = await self._filesystem._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=wanted.replace(" ", "=")
            )
        except OSError as error:
            if error_code(error) == "InvalidRange":
                raise self._changed("is shorter than it was") from error
            raise
        async with answer["Body"] as body:
            if str(answer.get("ETag")).strip('"') != self._version:
                raise self._changed(f"has another ETag, {answer.get('ETag')}")
            if not str(answer.get("ContentRange")).startswith(f"{wanted}/"):
                raise StorageError(
                    self._shard, f"asked for {wanted}, was given {answer.get('ContentRange')}"
                )
            target, filled = memoryview(one.buffer)[: len(one)], 0
            while filled < len(one) and (count := await body.readinto(target[filled:])):
                filled += count
        self._check_length(one, filled)

    async def _get_any(self, one: _Range) -> None:
        files, bounds = self._filesystem, {"start": one.begin, "end": one.end}
        if files.async_impl:
            data = await files._cat_file(self._path, **bounds)
        else:
            data = await asyncio.to_thread(files.cat_file, self._path, **bounds)
        self._check_length(one, len(data))
        one.buffer[: len(one)] = data

    def _check_length(self, one: _Range, found: int) -> None:
        if found != len(one):
            raise OSError(f"{found:,} of {len(one):,} bytes came at byte {one.begin:,}")

    def _changed(self, how: str) -> StorageError:
        return StorageError(self._shard, f"changed while it was read: {how}")
