"""Row groups of committed parts, read by byte range and trusted only after their digests."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Buffer, Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorruptPart
from pipeline.schema import TokenFormat, read_token_format
from pipeline.storage import Storage

MAX_FOOTERS = 256
"""Footers kept; others are read again: a data set has more parts than memory for them."""
TAIL_BYTES = 64 << 10
"""Read from the end of a part whose receipt does not say where the footer begins."""

_MAGIC = b"PAR1"
_TRAILER_BYTES = 8

ReadsRange = Callable[[str, int, int], bytes]
"""Bytes ``[start, end)`` of a file in OUT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """Where a part's footer is and what it must be."""

    part: str
    """File name in ``parts/``."""
    start: int | None
    """First byte; None: its length stands at the end of the part."""
    part_bytes: int
    """Size of the part, which ends with it."""
    sha256: str | None
    """Of its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One row group of a committed part."""

    footer: Footer
    """Of the part."""
    index: int
    """Position in the part."""
    rows: int
    """Clips."""
    start: int
    """First byte."""
    end: int
    """First byte behind it."""
    sha256: str | None
    """Of these bytes; None: only page checksums protect them."""

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"part {self.footer.part}, row group {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns of one row group."""

    token_format: TokenFormat
    """How ``tokens`` is packed."""
    table: pa.Table
    """What was asked for, in the part's order."""


class Fetch:
    """Reads row groups. Used by several threads."""

    def __init__(self, storage: Storage, read: ReadsRange | None = None) -> None:
        """Open nothing yet.

        Args:
            storage: OUT.
            read: instead of the storage's own, such as a cache's.
        """
        self._place = str(storage)
        self._read = read or storage.read_range
        self._metadata = functools.lru_cache(maxsize=MAX_FOOTERS)(self._read_footer)

    def rows(self, group: Group, columns: Sequence[str] | None = None) -> Rows:
        """Some columns of a row group.

        Args:
            group: which.
            columns: None: all.

        Raises:
            CorruptPart: it is not what was committed; names part and row group.
            StorageError: storage did not answer.
        """
        metadata = self._metadata(group.footer)
        try:
            content = self._checked(group.footer.part, group.start, group.end, group.sha256)
            window = _Window(content, group.start, group.footer.part_bytes)
            with pq.ParquetFile(
                pa.PythonFile(window, mode="r"),
                metadata=metadata,
                page_checksum_verification=group.sha256 is None,
            ) as file:
                # one thread: Arrow's pool, still at work, may abort the interpreter's end
                # (arrow#33975), and groups are read side by side anyway
                table = file.read_row_group(
                    group.index, columns=None if columns is None else list(columns),
                    use_threads=False,
                )  # fmt: skip
            token_format = read_token_format(metadata.metadata)
        except (FileNotFoundError, ValueError, OSError, pa.ArrowException) as error:
            raise CorruptPart(f"{group} of {self._place}: {error}") from error
        if table.num_rows != group.rows:
            raise CorruptPart(f"{group} of {self._place}: {table.num_rows} rows, not {group.rows}")
        return Rows(token_format=token_format, table=table)

    def metadata(self, footer: Footer) -> pq.FileMetaData:
        """What a part's footer says.

        Raises:
            CorruptPart: the part is missing, or the footer is not the one that was committed.
            StorageError: storage did not answer.
        """
        return self._metadata(footer)

    def _read_footer(self, footer: Footer) -> pq.FileMetaData:
        try:
            content = self._footer_bytes(footer)
            if hashlib.sha256(content).hexdigest() != footer.sha256:
                raise ValueError("its footer is not the one that was committed")
            return pq.read_metadata(pa.BufferReader(_MAGIC + content))
        except (FileNotFoundError, ValueError, OSError, pa.ArrowException) as error:
            raise CorruptPart(f"part {footer.part} of {self._place}: {error}") from error

    def _footer_bytes(self, footer: Footer) -> bytes:
        if footer.start is not None:
            return self._checked(footer.part, footer.start, footer.part_bytes, footer.sha256)
        start = max(0, footer.part_bytes - TAIL_BYTES)
        tail = self._checked(footer.part, start, footer.part_bytes, None)
        size = int.from_bytes(tail[-_TRAILER_BYTES:-4], "little") + _TRAILER_BYTES
        if size <= len(tail):
            return tail[-size:]
        return self._checked(
            footer.part, max(0, footer.part_bytes - size), footer.part_bytes, footer.sha256
        )

    def _checked(self, part: str, start: int, end: int, sha256: str | None) -> bytes:
        content = self._read(f"parts/{part}", start, end)
        if len(content) != end - start:
            raise ValueError(f"{len(content):,} bytes from {start:,} on, not {end - start:,}")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"bytes {start:,} to {end:,} are not those that were committed")
        return content


class _Window(io.RawIOBase):
    """A file of which one stretch of bytes is there."""

    def __init__(self, content: bytes, start: int, size_bytes: int) -> None:
        super().__init__()
        self._content, self._start, self._size, self._at = content, start, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._start
        wanted = self._size - self._at if size < 0 else size
        if begin < 0 or begin + wanted > len(self._content):
            raise ValueError(f"its footer names bytes {self._at:,}+{wanted:,}, outside of the group")
        self._at += wanted
        return self._content[begin : begin + wanted]

    def readinto(self, buffer: Buffer) -> int:
        raise io.UnsupportedOperation("readinto")
