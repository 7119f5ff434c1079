"""Manifests: immutable Parquet snapshots of all receipts at one moment, one row a receipt.

Typed columns hold what planning, counting and reading need; of the keys that are covered only
digests, and only of shards that are not final. A manifest is named by the SHA-256 of its file and
is not trusted when read. It can always be made anew from the receipts.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.fingerprint import canonical_json
from pipeline.receipt_values import RowGroup, check_values
from pipeline.receipts import Receipt
from pipeline.storage import Storage

MANIFEST_VERSION = 3
"""Raised when older code could no longer read new manifests rightly."""
MAX_MANIFEST_BYTES = 1 << 30
"""A larger file is no manifest: two million receipts of ten row groups have about that."""
MAX_TABLE_BYTES = 8 << 30
"""Size of its columns when unpacked."""

_FOOTER_KEY = b"vidtok.manifest"
_ROWS_AT_ONCE = 4096
_DIGEST_BYTES = 32
_COUNTS = pa.map_(pa.string(), pa.int64())
_ROW_GROUP = pa.struct(
    [
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("end_offset", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
_ENVIRONMENT = pa.dictionary(pa.int32(), pa.string())

SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("part", pa.string()),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("part_bytes", pa.int64(), nullable=False),
        pa.field("part_sha256", pa.binary(32)),
        pa.field("footer_sha256", pa.binary(32)),
        pa.field(
            "row_groups", pa.list_(pa.field("item", _ROW_GROUP, nullable=False)), nullable=False
        ),
        pa.field("shapes", _COUNTS, nullable=False),
        pa.field("latent_mean", pa.list_(pa.float64()), nullable=False),
        pa.field("latent_std", pa.list_(pa.float64()), nullable=False),
        pa.field("source_url", pa.string(), nullable=False),
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("source_version", pa.string(), nullable=False),
        pa.field("start_offset", pa.int64(), nullable=False),
        pa.field("end_offset", pa.int64(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("cut_reason", pa.string()),
        pa.field("videos", pa.int64(), nullable=False),
        pa.field("filtered", _COUNTS, nullable=False),
        pa.field("quarantined", _COUNTS, nullable=False),
        pa.field("numerics", pa.string(), nullable=False),
        pa.field("created_seconds", pa.float64(), nullable=False),
    ]
)
"""Columns of a receipt; a manifest has ``key_digests`` as well, in the last row of a shard that is
not final: eight bytes for every key that is committed of it."""
_KEY_DIGESTS = pa.field("key_digests", pa.large_binary())


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A receipt in a manifest; fields are those of `Receipt` but for what is said."""

    shard: str
    segment: int
    generation: int
    part: str | None
    rows: int
    part_bytes: int
    part_sha256: str | None
    footer_sha256: str | None
    row_groups: tuple[RowGroup, ...]
    shapes: dict[str, int]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    source_url: str
    source_bytes: int
    source_version: str
    start_offset: int
    end_offset: int
    final: bool
    complete: bool
    cut_reason: str | None
    videos: int
    filtered: dict[str, int]
    quarantined: dict[str, int]
    """Reason -> videos."""
    numerics: str
    """The numeric environment as JSON with sorted keys."""
    created_seconds: float


def line_of(receipt: Receipt) -> Line:
    """What a manifest keeps of a receipt."""
    reasons: dict[str, int] = {}
    for video in receipt.quarantined:
        reasons[video["reason"]] = reasons.get(video["reason"], 0) + 1
    return Line(
        quarantined=reasons,
        numerics=canonical_json(receipt.numerics),
        source_url=_printable(receipt.source_url),
        cut_reason=None if receipt.cut_reason is None else _printable(receipt.cut_reason),
        **{name: getattr(receipt, name) for name in _UNCHANGED},
    )


def _printable(text: str) -> str:
    """Paths that are not UTF-8 hold lone surrogates, which no column takes."""
    return text.encode("utf-8", "backslashreplace").decode()


_MAPS = ("shapes", "filtered", "quarantined")
_CHANGED = {"quarantined", "numerics", "source_url", "cut_reason"}
_UNCHANGED = tuple(name for name in SCHEMA.names if name not in _CHANGED)


def table_of(lines: Sequence[Line]) -> pa.Table:
    """Columns of these lines."""

    def values(name: str) -> list[Any]:
        column = [getattr(line, name) for line in lines]
        if name in _MAPS:
            return [sorted(counts.items()) for counts in column]
        if name in ("part_sha256", "footer_sha256"):
            return [None if text is None else bytes.fromhex(text) for text in column]
        if name == "row_groups":
            return [
                [(rows, end, bytes.fromhex(digest)) for rows, end, digest in groups]
                for groups in column
            ]
        return column

    columns = [pa.array(values(field.name), field.type) for field in SCHEMA]
    return _encoded(pa.Table.from_arrays(columns, schema=SCHEMA))


def _encoded(table: pa.Table) -> pa.Table:
    """A few environments among very many rows: held once each."""
    at = table.schema.get_field_index("numerics")
    column = table.column(at).cast(_ENVIRONMENT)
    return table.set_column(at, pa.field("numerics", _ENVIRONMENT, nullable=False), column)


def lines_of(table: pa.Table, *, with_groups: bool = True) -> Iterator[Line]:
    """The lines of a table, in its order.

    Args:
        table: of `table_of` or `read_manifest`.
        with_groups: False: ``row_groups`` are checked and left out, which is three times faster.

    Raises:
        ValueError: values that no run writes.
    """
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns: dict[str, list[Any]] = {
            name: batch.column(name).to_pylist() for name in SCHEMA.names if name != "row_groups"
        }
        columns["row_groups"] = (
            _row_groups(batch.column("row_groups")) if with_groups else [()] * len(batch)
        )
        for name in ("part_sha256", "footer_sha256"):
            columns[name] = [None if value is None else value.hex() for value in columns[name]]
        for name in ("latent_mean", "latent_std"):
            columns[name] = [tuple(values) for values in columns[name]]
        for name in _MAPS:
            columns[name] = [dict(pairs) for pairs in columns[name]]
        names, rows = tuple(columns), zip(*columns.values(), strict=True)
        lines = [Line(**dict(zip(names, values, strict=True))) for values in rows]
        for line in lines:
            check_values(line, with_groups=False)
        _check_row_groups(batch)
        yield from lines


def _check_row_groups(batch: pa.RecordBatch) -> None:
    """As `receipt_values.check_values` does for one receipt, for millions of row groups at once.

    Raises:
        ValueError: they do not make up the part.
    """
    column = batch.column("row_groups")
    rows, ends = (values.to_numpy() for values in column.flatten().flatten()[:2])
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    lengths = np.diff(offsets)
    of = np.repeat(np.arange(len(batch)), lengths)
    before = np.concatenate([[0], ends])[:-1]
    before[offsets[:-1][lengths > 0]] = 0
    part_bytes, part_rows = (batch.column(n).to_numpy() for n in ("part_bytes", "rows"))
    is_wrong = (rows < 1) | (rows > part_rows[of]) | (ends <= before) | (ends >= part_bytes[of])
    total = np.concatenate([[0], np.cumsum(rows)])
    wrong = np.diff(total[offsets]) != part_rows
    wrong |= (lengths > 0) != batch.column("part").is_valid().to_numpy(zero_copy_only=False)
    wrong[of[is_wrong]] = True
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        shard, segment = (batch.column(name)[at].as_py() for name in ("shard", "segment"))
        raise ValueError(f"row_groups of segment {segment} of {shard} do not make up its part")


def _row_groups(column: pa.ListArray) -> list[tuple[RowGroup, ...]]:
    """Column by column: a manifest has millions of row groups."""
    rows, ends, digests = column.flatten().flatten()
    start, end = (_DIGEST_BYTES * at for at in (digests.offset, digests.offset + len(digests)))
    hexes = memoryview(digests.buffers()[1])[start:end].hex() if len(digests) else ""
    groups = list(
        map(
            RowGroup,
            rows.to_numpy().tolist(),
            ends.to_numpy().tolist(),
            (hexes[at : at + 2 * _DIGEST_BYTES] for at in range(0, len(hexes), 2 * _DIGEST_BYTES)),
        )
    )
    offsets = (column.offsets.to_numpy() - column.offsets[0].as_py()).tolist()
    return [tuple(groups[start:end]) for start, end in itertools.pairwise(offsets)]


def publish(storage: Storage, table: pa.Table, key_digests: Mapping[str, bytes]) -> str:
    """Write a manifest and return its digest; the same receipts give the same file.

    Args:
        storage: OUT.
        table: columns of all receipts, in any order.
        key_digests: of the shards that are not final.
    """
    order = pc.sort_indices(
        table, [(name, "ascending") for name in ("shard", "segment", "generation")]
    )
    table = table.take(order)
    at = table.schema.get_field_index("numerics")
    table = table.set_column(at, SCHEMA.field("numerics"), table.column(at).cast(pa.string()))
    table = table.append_column(_KEY_DIGESTS, _last_rows(table.column("shard"), key_digests))
    table = table.replace_schema_metadata(
        {_FOOTER_KEY: canonical_json({"version": MANIFEST_VERSION})}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{digest}.parquet"
    if name not in storage.entries("manifests"):
        storage.put_if_absent(f"manifests/{name}", content)
    return digest


def _last_rows(shards: pa.ChunkedArray, key_digests: Mapping[str, bytes]) -> pa.Array:
    names = shards.to_pylist()
    values: list[bytes | None] = [None] * len(names)
    for at, name in enumerate(names):
        if name in key_digests and (at + 1 == len(names) or names[at + 1] != name):
            values[at] = key_digests[name]
    return pa.array(values, _KEY_DIGESTS.type)


def newest_manifest(storage: Storage) -> str | None:
    """Digest of the manifest that was written last; None where there is none."""
    found = {
        name: entry
        for name, entry in storage.entries("manifests").items()
        if name.endswith(".parquet")
    }
    if not found:
        return None
    # S3 tells whole seconds: of two manifests of one second the larger one holds more
    newest = max(found, key=lambda name: (found[name].modified_seconds, found[name].size_bytes))
    return newest.removesuffix(".parquet")


def read_manifest(storage: Storage, digest: str) -> tuple[pa.Table, dict[str, bytes]]:
    """Columns of a manifest, and the key digests of shards that are not final.

    Raises:
        RunError: there is no such manifest, or its content is not what its name says.
    """
    place = f"manifests/{digest}.parquet"
    try:
        if not digest.isalnum():
            raise ValueError("not a digest")
        size = storage.entry(place).size_bytes
        if size > MAX_MANIFEST_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MAX_MANIFEST_BYTES:,}")
        content = storage.read(place)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it does not match its digest")
        return _read_table(content)
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"manifest {digest} of {storage} cannot be read: {error}") from error


def _read_table(content: bytes) -> tuple[pa.Table, dict[str, bytes]]:
    # Arrow's threads, still at work, may abort the end of the interpreter (arrow#33975)
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        record = json.loads((file.schema_arrow.metadata or {}).get(_FOOTER_KEY, b"{}"))
        version = record.get("version") if isinstance(record, dict) else None
        if version != MANIFEST_VERSION:
            raise ValueError(f"version {version!r}, this code reads {MANIFEST_VERSION}")
        if not file.schema_arrow.equals(SCHEMA.append(_KEY_DIGESTS), check_metadata=False):
            raise ValueError("its columns are not those of a manifest")
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > MAX_TABLE_BYTES:
            raise ValueError(f"{unpacked:,} bytes unpacked, more than {MAX_TABLE_BYTES:,}")
        key_digests: dict[str, bytes] = {}
        for batch in file.iter_batches(
            _ROWS_AT_ONCE, columns=["shard", "key_digests"], use_threads=False
        ):
            marked = batch.filter(pc.is_valid(batch.column("key_digests")))
            key_digests.update(zip(*(c.to_pylist() for c in marked.columns), strict=True))
        table = file.read(SCHEMA.names, use_threads=False)
        return _encoded(table.replace_schema_metadata(None)), key_digests
