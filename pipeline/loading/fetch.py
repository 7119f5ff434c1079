"""Row groups of committed parts, read by byte range and trusted only after their digests."""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import CorruptPart, RunError, StorageRefused
from pipeline.loading.buffers import Buffers
from pipeline.loading.cache import RangeCache
from pipeline.loading.checks import Checks
from pipeline.loading.requests import Range
from pipeline.manifest import Line
from pipeline.parts import (
    Footer,
    group_range,
    read_footer,
    read_group,
    table_of_group,
    token_rows,
)
from pipeline.schema import TokenFormat
from pipeline.storage import Storage

MAX_FOOTERS = 256
"""Footers kept in memory; a data set may have more parts: others are read again, or cached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One row group of a committed part."""

    line: Line
    """What committed the part."""
    index: int
    """Position in the part."""

    @property
    def rows(self) -> int:
        """Clips."""
        return self.line.row_groups[self.index].rows

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        start, end = group_range(self.line, self.index)
        return end - start

    @property
    def range(self) -> Range:
        """Where it lies."""
        return Range(str(self.line.part), *group_range(self.line, self.index))

    def __str__(self) -> str:
        return f"part {self.line.part} of {self.line.shard}, row group {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns of one row group."""

    token_format: TokenFormat
    """How ``tokens`` is packed."""
    table: pa.Table
    """What was asked for besides ``tokens``, in the part's order."""
    blobs: Any
    """Packed tokens by row: uint8 ``[rows, bytes]``, or where they differ in size a list of uint8
    ``[bytes]``; None: not asked for."""


class Fetch:
    """Reads row groups. Used by several threads."""

    def __init__(self, storage: Storage, cache: RangeCache | None = None) -> None:
        """Open nothing yet.

        Args:
            storage: OUT.
            cache: of row groups and footers read before.
        """
        self.storage = storage
        self._cache = cache
        self._check = Checks()
        self.buffers = Buffers()
        """Memory of row groups, and of the batches made of them."""
        self._footers: dict[str, Footer] = {}
        self._lock = threading.Lock()
        self._held: dict[Range, memoryview] = {}
        self._shared: dict[Range, dict[tuple[str, ...] | None, Rows]] = {}

    @property
    def joins_requests(self) -> bool:
        """Whether a request costs more than the bytes between two row groups."""
        return not self.storage.is_local

    def together(self, groups: Sequence[Group]) -> Fetch:
        """The same, with what these row groups of one part need at hand: one request for all.

        Nothing is trusted by it: each is compared with its digest when it is asked for. One that is
        listed several times is read by the first who asks for it; for one thread.

        Args:
            groups: neighbours, see `requests`; several shapes' parts of one row group.

        Raises:
            StorageError: storage did not answer.
        """
        if len(groups) == 1:
            return self
        found = copy.copy(self)
        times = Counter(group.range for group in groups)
        found._shared = {one: {} for one, many in times.items() if many > 1}
        ranges = [group.range for group in groups if not self._is_cached(group)]
        if len(set(ranges)) < 2:
            return found
        start, end = min(one.start for one in ranges), max(one.end for one in ranges)
        try:
            content = self.storage.read_range(f"parts/{ranges[0].part}", start, end)
        except FileNotFoundError:
            return found  # each of them says so when it is asked for
        view = memoryview(content)
        found._held = {one: view[one.start - start : one.end - start] for one in ranges}
        return found

    def _is_cached(self, group: Group) -> bool:
        digest = group.line.row_groups[group.index].sha256
        return self._cache is not None and self._cache.holds(digest)

    def rows(self, group: Group, columns: Sequence[str] | None = None) -> Rows:
        """Some columns of a row group.

        Args:
            group: which.
            columns: None: all.

        Raises:
            CorruptPart: it is not what was committed; names part and row group.
            StorageError: storage did not answer.
        """
        if not self._shared or group.range not in self._shared:
            return self._rows(group, columns)
        shared, wanted = self._shared[group.range], None if columns is None else tuple(columns)
        if wanted not in shared:
            shared[wanted] = self._rows(group, columns)
        return shared[wanted]

    def _rows(self, group: Group, columns: Sequence[str] | None) -> Rows:
        try:
            footer = self._footer(group.line)
            content = self._bytes(group)
            wanted = footer.schema.names if columns is None else list(columns)
            blobs = None
            if "tokens" in wanted:
                blobs = token_rows(footer, group.line, group.index, content)
            if blobs is not None:
                wanted = [name for name in wanted if name != "tokens"]
            table = pa.table({})
            if wanted:
                table = table_of_group(footer, group.line, group.index, content, wanted)
            if "tokens" in wanted:
                blobs = blobs_of(table.column("tokens"))
                table = table.drop_columns("tokens")
        except StorageRefused:
            raise
        except RunError as error:
            raise CorruptPart(f"{group}: {error}") from error
        return Rows(token_format=footer.token_format, table=table, blobs=blobs)

    def _bytes(self, group: Group) -> bytes | memoryview:
        """Of a row group; their digest has been compared."""
        if self._cache is None:
            return self._read(group)
        digest = group.line.row_groups[group.index].sha256
        return self._cache.get(digest, lambda: bytes(self._read(group)))

    def _read(self, group: Group) -> bytes | memoryview:
        line, index = group.line, group.index
        held = self._held.get(group.range)
        if held is None:
            return read_group(self.storage, line, index, self.buffers.take, self._check)
        # a copy: a view would keep the bytes of all its neighbours
        content = self.buffers.take(len(held)).data
        content[:] = held
        self._check(line, index, content)
        return content

    def footer(self, line: Line) -> Footer:
        """A part's, by its receipt.

        Raises:
            CorruptPart: it is not the one that was committed.
            StorageError: storage did not answer.
        """
        try:
            return self._footer(line)
        except StorageRefused:
            raise
        except RunError as error:
            raise CorruptPart(str(error)) from error

    def _footer(self, line: Line) -> Footer:
        part = str(line.part)
        with self._lock:
            found = self._footers.pop(part, None)
        get = None if self._cache is None else self._cache.get
        footer = found or read_footer(self.storage, line, get)
        with self._lock:
            self._footers[part] = footer  # the one used last stands last
            while len(self._footers) > MAX_FOOTERS:
                del self._footers[next(iter(self._footers))]
        return footer


class FetchOfProcess:
    """Makes the ``Fetch`` of whatever process asks: connections do not survive a fork."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        options: Mapping[str, Any] | None,
        cache: tuple[str | os.PathLike[str], int] | None,
    ) -> None:
        """Open nothing yet.

        Args:
            root: OUT.
            options: fsspec options.
            cache: folder and bytes of a ``RangeCache``.
        """
        self._root, self._options, self._cache = root, options, cache
        self._opened: tuple[int, Fetch] | None = None

    def __call__(self) -> Fetch:
        """The one of this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            storage = Storage(self._root, self._options)
            cache = None if self._cache is None else RangeCache(*self._cache)
            self._opened = os.getpid(), Fetch(storage, cache)
        return self._opened[1]

    def forget(self) -> None:
        """Begin anew with the next call."""
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def blobs_of(column: pa.ChunkedArray) -> Any:
    """``Rows.blobs`` of a column that Arrow has read, without copying."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
        return flat[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    return [np.frombuffer(value.as_buffer(), dtype=np.uint8) for value in array]
