"""Writes the part of one segment: a Parquet file, finished locally, read back, then published.

A part becomes visible to readers only by its receipt (``manifest``); publishing it is not a commit.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardError
from pipeline.moments import LatentMoments, moments_of
from pipeline.receipt_values import RowGroup
from pipeline.schema import TokenFormat, TokenRow, rows_to_table

_MAGIC_BYTES = 8
"""A Parquet file ends with the footer's length (4 bytes) and ``PAR1``."""


NO_PART: Mapping[str, Any] = {
    "part": None,
    "part_bytes": 0,
    "part_sha256": None,
    "footer_sha256": None,
    "row_groups": (),
    "shapes": {},
    "latent_mean": (),
    "latent_std": (),
}
"""What the receipt of a segment without clips says of its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDigest:
    """What a receipt records of a part's bytes."""

    rows: int
    """Clips."""
    size_bytes: int
    """Length of the file."""
    file_sha256: str
    """Of the whole file."""
    footer_sha256: str
    """Of the footer alone: page checksums do not cover it."""
    row_groups: tuple[RowGroup, ...]
    """Its row groups; with the footer they cover every byte."""
    shapes: dict[str, int]
    """``token_shape``, joined by commas -> clips."""
    moments: LatentMoments | None = None
    """Of its latents."""

    def receipt_fields(self) -> dict[str, Any]:
        """The same under a receipt's names, without the rows."""
        return {
            "part_bytes": self.size_bytes,
            "part_sha256": self.file_sha256,
            "footer_sha256": self.footer_sha256,
            "row_groups": self.row_groups,
            "shapes": self.shapes,
            "latent_mean": self.moments.mean if self.moments else (),
            "latent_std": self.moments.std if self.moments else (),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedVideo:
    """One video that could not be tokenised."""

    key: str
    """Its key in the shard."""
    reason: str
    """One word of the list in pipeline/README.md."""
    message: str
    """What was seen."""


def write_part(
    path: Path,
    rows: Sequence[TokenRow],
    token_format: TokenFormat,
    *,
    row_group_rows: int,
    row_group_bytes: int = 8 << 20,
) -> PartDigest:
    """Write rows to a local Parquet file and check that they can be read back.

    ``tokens`` is stored plain, without dictionary, statistics or compression; the other columns
    are compressed. Pages carry checksums. A row group has at most that many rows, and holds no more
    bytes of tokens and text than that, unless one row has more.

    Raises:
        ShardError: what was read back is not what was written.
    """
    table = rows_to_table(rows, token_format)
    others = [name for name in table.column_names if name != "tokens"]
    encoded = [name for name in others if pa.types.is_string(table.schema.field(name).type)]
    with pq.ParquetWriter(
        path,
        table.schema,
        compression={_leaf(table.schema.field(name)): "zstd" for name in others}
        | {"tokens": "none"},
        use_dictionary=encoded,
        write_statistics=[
            name for name in others if not pa.types.is_list(table.schema.field(name).type)
        ],
        write_page_checksum=True,
        store_schema=True,
    ) as file:
        for start, end in _row_groups(rows, row_group_rows, row_group_bytes):
            file.write_table(table.slice(start, end - start), row_group_size=end - start)
    # not pq.read_table: its threads may outlive the interpreter and abort it (arrow#33975)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        read_back = file.read(use_threads=False)
    if not read_back.equals(table, check_metadata=False):
        raise ShardError(
            rows[0].shard if rows else str(path), f"{path} does not read back as written"
        )
    shapes = Counter(",".join(map(str, row.token_shape)) for row in rows)
    digest = digest_part(path.read_bytes(), shapes)
    return replace(digest, moments=moments_of(rows, token_format))


def _leaf(field: pa.Field) -> str:
    """What Parquet calls a column; Arrow takes no other name, and says nothing of it."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _row_groups(
    rows: Sequence[TokenRow], most_rows: int, most_bytes: int
) -> Iterator[tuple[int, int]]:
    """First row, and the one behind the last, of each row group."""
    start, held = 0, 0
    for at, row in enumerate(rows):
        texts = (row.caption, row.metadata, *row.columns.values())
        size = len(row.tokens) + sum(len(text) for text in texts if isinstance(text, str))
        if at > start and (at - start >= most_rows or held + size > most_bytes):
            yield start, at
            start, held = at, 0
        held += size
    if rows:
        yield start, len(rows)


def digest_part(content: bytes, shapes: Mapping[str, int]) -> PartDigest:
    """Digests of a part.

    Args:
        content: of the file.
        shapes: ``token_shape``, joined by commas -> rows.

    Raises:
        ValueError: it does not end like a Parquet file.
    """
    footer_bytes = int.from_bytes(content[-_MAGIC_BYTES:-4], "little")
    if content[-4:] != b"PAR1" or footer_bytes + _MAGIC_BYTES > len(content):
        raise ValueError("not a whole Parquet file")
    footer_offset = len(content) - _MAGIC_BYTES - footer_bytes
    metadata = pq.read_metadata(pa.BufferReader(content))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    borders = [0, *(first_byte(group) for group in groups[1:]), footer_offset]
    return PartDigest(
        rows=sum(shapes.values()),
        size_bytes=len(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
        footer_sha256=hashlib.sha256(content[footer_offset:]).hexdigest(),
        row_groups=tuple(
            RowGroup(group.num_rows, end, hashlib.sha256(content[start:end]).hexdigest())
            for group, (start, end) in zip(groups, itertools.pairwise(borders), strict=False)
        ),
        shapes=dict(shapes),
    )


def first_byte(group: pq.RowGroupMetaData) -> int:
    """Where a row group's first page lies in its file."""
    columns = [group.column(number) for number in range(group.num_columns)]
    offsets: list[int] = [
        column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        for column in columns
    ]
    return min(offsets)


def quarantine_tar(
    videos: Sequence[tuple[QuarantinedVideo, str, bytes]], *, max_bytes: int
) -> bytes | None:
    """A WebDataset tar of quarantined originals, each beside a ``.reason.json``.

    Args:
        videos: what was quarantined, the extension, and the original bytes (may be empty).
        max_bytes: originals beyond this sum are left out; their reasons stay.

    Returns:
        The tar, or None when there is nothing to keep.
    """
    if not videos:
        return None
    buffer, kept = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for video, extension, original in videos:
            fits = bool(original) and kept + len(original) <= max_bytes
            kept += len(original) if fits else 0
            record = {
                "key": video.key,
                "reason": video.reason,
                "message": video.message,
                "original_bytes": len(original),
                "original_kept": fits,
            }
            name = video.key.lstrip("/").replace("..", "__")
            if fits:
                _add(archive, f"{name}.{extension}", original)
            _add(archive, f"{name}.reason.json", json.dumps(record).encode())
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
