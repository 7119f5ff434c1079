"""Opens committed parts for reading, and trusts nothing: sizes, digests, schema, page checksums."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.manifest import Line
from pipeline.receipts import Receipt
from pipeline.schema import TokenFormat, arrow_schema, clip_id, read_token_format
from pipeline.storage import Storage
from pipeline.writer import first_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """A part's footer, which is what the receipt says it is."""

    metadata: pq.FileMetaData
    """Where columns lie."""
    schema: pa.Schema
    """Of the part."""
    token_format: TokenFormat
    """How ``tokens`` is packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part, open; its footer is what the receipt says it is."""

    receipt: Receipt | Line
    """What committed it."""
    token_format: TokenFormat
    """How ``tokens`` is packed."""
    file: pq.ParquetFile
    """Open, with page checksums verified on every read."""


def open_part(storage: Storage, receipt: Receipt | Line) -> Part:
    """Open a receipt's part.

    Raises:
        RunError: missing, of another size, or with a footer that is not the receipt's.
    """
    with _trusting(f"{storage}/parts/{receipt.part}"):
        stream = storage.open(f"parts/{receipt.part}")
        size = stream.seek(0, 2)
        if size != receipt.part_bytes:
            raise ValueError(f"{size:,} bytes, its receipt says {receipt.part_bytes:,}")
        stream.seek(receipt.row_groups[-1].end_offset)
        footer = _checked_footer(receipt, stream.read())
        stream.seek(0)
        file = pq.ParquetFile(stream, page_checksum_verification=True)
    return Part(receipt=receipt, token_format=footer.token_format, file=file)


Get: TypeAlias = Callable[[str, Callable[[], bytes]], bytes]
"""Gives the bytes of a SHA-256: from a cache, or by calling what fetches them."""


def read_footer(storage: Storage, receipt: Receipt | Line, get: Get | None = None) -> Footer:
    """Footer of a receipt's part: one request, or none.

    Args:
        storage: OUT.
        receipt: what committed the part.
        get: of a cache, which is asked first.

    Raises:
        RunError: missing, or not the receipt's.
    """
    with _trusting(f"{storage}/parts/{receipt.part}"):
        start = receipt.row_groups[-1].end_offset

        def fetch() -> bytes:
            content = storage.read_range(f"parts/{receipt.part}", start, receipt.part_bytes)
            return _check_digest(receipt, content)

        content = fetch() if get is None else get(str(receipt.footer_sha256), fetch)
        return _checked_footer(receipt, content)


def _check_digest(receipt: Receipt | Line, content: bytes) -> bytes:
    if hashlib.sha256(content).hexdigest() != receipt.footer_sha256:
        raise ValueError("its footer is not the one that was committed")
    return content


def _checked_footer(receipt: Receipt | Line, content: bytes) -> Footer:
    _check_digest(receipt, content)
    metadata = pq.read_metadata(pa.BufferReader(content))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows, said = [g.num_rows for g in groups], [g.rows for g in receipt.row_groups]
    if rows != said:
        raise ValueError(f"its row groups have {rows} rows, its receipt says {said}")
    starts = [0, *(first_byte(group) for group in groups[1:])]
    if starts[1:] != [group.end_offset for group in receipt.row_groups[:-1]]:
        raise ValueError("its row groups lie elsewhere than its receipt says")
    schema = metadata.schema.to_arrow_schema()
    return Footer(metadata=metadata, schema=schema, token_format=read_token_format(schema.metadata))


@contextlib.contextmanager
def _trusting(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{place} is missing") from error
    except (ValueError, OSError, pa.ArrowException) as error:
        raise RunError(f"{place} cannot be trusted: {error}") from error


def group_range(receipt: Receipt | Line, group: int) -> tuple[int, int]:
    """First byte of a row group in its part, and the one behind its last."""
    start = receipt.row_groups[group - 1].end_offset if group else 0
    return start, receipt.row_groups[group].end_offset


def read_group(
    storage: Storage,
    receipt: Receipt | Line,
    group: int,
    take: Callable[[int], npt.NDArray[np.uint8]] | None = None,
    check: Callable[[Any, int, bytes | memoryview], None] | None = None,
) -> bytes | memoryview:
    """The bytes of one row group: one request; no footer is needed.

    Args:
        storage: OUT.
        receipt: of the part.
        group: number of the row group.
        take: gives the memory to read into, uint8 of so many bytes; None: memory of its own.
        check: compares them with their digest; None: ``check_group``.

    Raises:
        RunError: missing, or not what was committed.
    """
    name, (start, end) = f"parts/{receipt.part}", group_range(receipt, group)
    content: bytes | memoryview
    with _trusting(f"{storage}/{name}"):
        if take is None:
            content = storage.read_range(name, start, end)
        else:
            room = take(end - start).data
            content = room[: storage.read_into(name, start, room)]
    (check or check_group)(receipt, group, content)
    return content


def check_group(receipt: Receipt | Line, group: int, content: bytes | memoryview) -> None:
    """Compare the bytes of a row group with its digest.

    Raises:
        RunError: they differ.
    """
    if hashlib.sha256(content).hexdigest() != receipt.row_groups[group].sha256:
        raise RunError(
            f"part {receipt.part} of {receipt.shard}, row group {group}: its bytes are not those "
            "that were committed"
        )


def table_of_group(
    footer: Footer,
    receipt: Receipt | Line,
    group: int,
    content: bytes | memoryview,
    columns: list[str] | None = None,
) -> pa.Table:
    """Rows of a row group from its bytes, whose digest has been compared.

    Args:
        footer: of the part.
        receipt: of the part.
        group: number of the row group.
        content: its bytes.
        columns: which; None: all.

    Raises:
        RunError: they cannot be read.
    """
    try:
        window = _Window(content, *group_range(receipt, group))
        with pq.ParquetFile(pa.PythonFile(window, mode="r"), metadata=footer.metadata) as file:
            return file.read_row_group(group, columns=columns, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(
            f"part {receipt.part} of {receipt.shard}, row group {group}: {error}"
        ) from error


def token_rows(
    footer: Footer, receipt: Receipt | Line, group: int, content: bytes | memoryview
) -> npt.NDArray[np.uint8] | None:
    """``tokens`` of a row group without Arrow and without copying, where they lie row by row.

    That is so where all have one size: one plain page of values side by side, without levels, as
    ``write_part`` makes it.

    Args:
        footer: of the part.
        receipt: of the part.
        group: number of the row group.
        content: its bytes, whose digest has been compared.

    Returns:
        uint8 ``[rows, bytes]``, a view of ``content``; None: they lie otherwise, Arrow knows how.
    """
    kind = footer.schema.field("tokens").type
    if not pa.types.is_fixed_size_binary(kind):
        return None
    facts = footer.metadata.row_group(group)
    column = facts.column(len(footer.schema.names) - 1)
    num_bytes = facts.num_rows * kind.byte_width
    if (
        column.path_in_schema != "tokens"
        or column.compression != "UNCOMPRESSED"
        or column.has_dictionary_page
        or not set(column.encodings) <= {"PLAIN", "RLE"}
        or footer.schema.field("tokens").nullable
    ):
        return None
    end = column.data_page_offset + column.total_compressed_size - group_range(receipt, group)[0]
    start = end - num_bytes
    header = bytes(content[end - column.total_compressed_size : start])
    if not header.startswith(_plain_page(num_bytes)):
        return None  # several pages, or of another kind
    return np.frombuffer(content, dtype=np.uint8)[start:end].reshape(facts.num_rows, -1)


def _plain_page(num_bytes: int) -> bytes:
    """How the header of a data page of so many bytes, not compressed, begins.

    Thrift's compact protocol: fields 1 to 3 (kind, 0 for a data page; bytes, expanded and as
    stored) are each an int32 (0x15: the next field, of kind 5), zigzag, 7 bits a byte.
    """
    size, rest = b"", 2 * num_bytes
    while rest > 0x7F:
        size, rest = size + bytes([rest & 0x7F | 0x80]), rest >> 7
    size += bytes([rest])
    return b"\x15\x00" + 2 * (b"\x15" + size)


class _Window:
    """A file of which only a range of bytes is at hand; Arrow reads it without copying."""

    closed = False

    def __init__(self, content: bytes | memoryview, start: int, end: int) -> None:
        if len(content) != end - start:
            raise ValueError(f"{len(content):,} bytes given, it has {end - start:,}")
        self._content, self._start, self._size = memoryview(content), start, end
        self._at = 0

    def read_buffer(self, size: int) -> memoryview:
        start = self._at - self._start
        if start < 0 or start + size > len(self._content):
            raise ValueError(f"bytes [{self._at:,}, {self._at + size:,}) are not among its own")
        self._at += size
        return self._content[start : start + size]

    def read(self, size: int) -> bytes:
        return bytes(self.read_buffer(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        pass


def read_row_group(part: Part, group: int, columns: list[str] | None = None) -> pa.Table:
    """Rows of one row group.

    Raises:
        RunError: a page whose checksum does not match, or that cannot be read.
    """
    try:
        # one thread: Arrow's pool, still at work, may abort the interpreter's end (arrow#33975)
        return part.file.read_row_group(group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"part {part.receipt.part} of {part.receipt.shard}, row group {group}: {error}"
        ) from error


def blobs(column: pa.ChunkedArray | pa.Array) -> list[npt.NDArray[np.uint8]]:
    """The bytes of a binary column, one uint8 array a row, without copying."""
    return [np.frombuffer(value.as_buffer(), dtype=np.uint8) for value in column]


def check_part(part: Part, *, fingerprint: str, quarantined: Collection[str] = ()) -> Iterator[str]:
    """Everything that is wrong with a part beyond its digests, in plain words.

    Reads all of it: schema, number of rows, every page's checksum, every token's range.

    Args:
        part: open.
        fingerprint: OUT's.
        quarantined: keys that must have no row.
    """
    receipt, token_format = part.receipt, part.token_format
    schema = part.file.schema_arrow
    kind: Any = schema.field("tokens").type if "tokens" in schema.names else None
    size = kind.byte_width if kind is not None and pa.types.is_fixed_size_binary(kind) else None
    if not schema.equals(arrow_schema(size, token_format), check_metadata=False):
        yield "its schema is not that of a token part"
        return
    if token_format.fingerprint != fingerprint:
        yield f"its fingerprint is {token_format.fingerprint[:12]}, OUT's is {fingerprint[:12]}"
    shapes: Counter[str] = Counter()
    for group in range(part.file.num_row_groups):
        table = read_row_group(part, group)
        for row, blob in zip(table.to_pylist(), blobs(table.column("tokens")), strict=True):
            if problem := _row_problem(row, blob, part, quarantined):
                yield f"row {row['clip_id']}: {problem}"
            shapes[",".join(map(str, row["token_shape"]))] += 1
    if shapes != receipt.shapes:
        yield f"clips by shape {dict(shapes)}, its receipt says {receipt.shapes}"


def _row_problem(
    row: dict[str, Any], blob: npt.NDArray[np.uint8], part: Part, quarantined: Collection[str]
) -> str | None:
    token_format = part.token_format
    if row["shard"] != part.receipt.shard:
        return f"of shard {row['shard']}, its receipt of {part.receipt.shard}"
    if row["clip_id"] != clip_id(*(row[name] for name in ("shard", "key", "fps", "clip_index"))):
        return "it is not named after its key, rate and position"
    if row["key"] in quarantined:
        return "its video is quarantined"
    try:
        expanded = token_format.expand(blob, row["token_shape"])
    except ValueError as error:
        return str(error)
    tokens = token_format.unpack(expanded[None], row["token_shape"])
    if token_format.is_discrete:
        bound = token_format.codebook_size or 0
        if tokens.min() < 0 or tokens.max() >= bound:
            return f"indices {tokens.min()}..{tokens.max()} outside [0, {bound})"
    elif not np.isfinite(tokens).all():
        return "latents are not finite"
    return None
