"""Row groups of committed parts, read by byte range and trusted only after their digests."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import CorruptPart, RunError, StorageRefused
from pipeline.loading.cache import RangeCache
from pipeline.manifest import Line
from pipeline.parts import Footer, group_range, read_footer, read_group, table_of_group
from pipeline.schema import TokenFormat
from pipeline.storage import Storage

MAX_FOOTERS = 256
"""Footers kept; others are read again: a data set has more parts than memory for them."""


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

    def __str__(self) -> str:
        return f"part {self.line.part} of {self.line.shard}, row group {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns of one row group."""

    token_format: TokenFormat
    """How ``tokens`` is packed."""
    table: pa.Table
    """What was asked for, in the part's order."""


class Fetch:
    """Reads row groups. Used by several threads."""

    def __init__(self, storage: Storage, cache: RangeCache | None = None) -> None:
        """Open nothing yet.

        Args:
            storage: OUT.
            cache: of row groups read before.
        """
        self._storage, self._cache = storage, cache
        self._footers: dict[str, Footer] = {}
        self._lock = threading.Lock()

    def rows(self, group: Group, columns: Sequence[str] | None = None) -> Rows:
        """Some columns of a row group.

        Args:
            group: which.
            columns: None: all.

        Raises:
            CorruptPart: it is not what was committed; names part and row group.
            StorageError: storage did not answer.
        """
        try:
            footer = self._footer(group.line)
            content = self._bytes(group)
            wanted = None if columns is None else list(columns)
            table = table_of_group(footer, group.line, group.index, content, wanted)
        except StorageRefused:
            raise
        except RunError as error:
            raise CorruptPart(f"{group}: {error}") from error
        return Rows(token_format=footer.token_format, table=table)

    def _bytes(self, group: Group) -> bytes:
        """Of a row group; their digest has been compared."""

        def read() -> bytes:
            return read_group(self._storage, group.line, group.index)

        if self._cache is None:
            return read()
        return self._cache.get(group.line.row_groups[group.index].sha256, read)

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
        footer = found or read_footer(self._storage, line)
        with self._lock:
            self._footers[part] = footer  # the one used last stands last
            while len(self._footers) > MAX_FOOTERS:
                del self._footers[next(iter(self._footers))]
        return footer


class FetchOfProcess:
    """Makes the ``Fetch`` of whatever process asks: connections do not survive a fork."""

    def __init__(
        self, root: str, options: Mapping[str, Any] | None, cache: tuple[str, int] | None
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
