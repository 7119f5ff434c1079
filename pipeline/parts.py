"""Opens committed parts for reading, and trusts nothing: sizes, digests, schema, page checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.manifest import Line
from pipeline.receipts import Receipt
from pipeline.schema import TokenFormat, arrow_schema, clip_id, read_token_format
from pipeline.storage import Storage

_TRAILER_BYTES = 8


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
    place = f"{storage}/parts/{receipt.part}"
    try:
        stream = storage.open(f"parts/{receipt.part}")
        size = stream.seek(0, 2)
        if size != receipt.part_bytes:
            raise ValueError(f"{size:,} bytes, its receipt says {receipt.part_bytes:,}")
        stream.seek(size - _TRAILER_BYTES)
        trailer = stream.read(_TRAILER_BYTES)
        footer_bytes = int.from_bytes(trailer[:4], "little") + _TRAILER_BYTES
        stream.seek(max(0, size - footer_bytes))
        if hashlib.sha256(stream.read(footer_bytes)).hexdigest() != receipt.footer_sha256:
            raise ValueError("its footer is not the one that was committed")
        stream.seek(0)
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        token_format = read_token_format(file.schema_arrow.metadata)
    except FileNotFoundError as error:
        raise RunError(f"{place} is missing") from error
    except (ValueError, OSError, pa.ArrowException) as error:
        raise RunError(f"{place} cannot be trusted: {error}") from error
    return Part(receipt=receipt, token_format=token_format, file=file)


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
    if part.file.metadata.num_rows != receipt.rows:
        yield f"{part.file.metadata.num_rows} rows, its receipt says {receipt.rows}"
    for group in range(part.file.num_row_groups):
        table = read_row_group(part, group)
        for row, blob in zip(table.to_pylist(), blobs(table.column("tokens")), strict=True):
            if problem := _row_problem(row, blob, part, quarantined):
                yield f"row {row['clip_id']}: {problem}"


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
    if blob.size != token_format.clip_bytes(row["token_shape"]):
        return f"{blob.size} bytes of tokens for shape {row['token_shape']}"
    tokens = token_format.unpack(blob[None], row["token_shape"])
    if token_format.is_discrete:
        bound = token_format.codebook_size or 0
        if tokens.min() < 0 or tokens.max() >= bound:
            return f"indices {tokens.min()}..{tokens.max()} outside [0, {bound})"
    elif not np.isfinite(tokens).all():
        return "latents are not finite"
    return None
