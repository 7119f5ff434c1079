"""Writes the part of one segment: a Parquet file, finished locally, read back, then published.

A part becomes visible to readers only by its receipt (``manifest``); publishing it is not a commit.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardError
from pipeline.schema import TokenFormat, TokenRow, rows_to_table

_MAGIC_BYTES = 8
"""A Parquet file ends with the footer's length (4 bytes) and ``PAR1``."""


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
    path: Path, rows: Sequence[TokenRow], token_format: TokenFormat, *, row_group_rows: int
) -> PartDigest:
    """Write rows to a local Parquet file and check that they can be read back.

    ``tokens`` is stored plain, without dictionary, statistics or compression; the other columns
    are compressed. Pages carry checksums.

    Raises:
        ShardError: what was read back is not what was written.
    """
    table = rows_to_table(rows, token_format)
    others = [name for name in table.column_names if name != "tokens"]
    encoded = [name for name in others if pa.types.is_string(table.schema.field(name).type)]
    pq.write_table(
        table,
        path,
        row_group_size=row_group_rows,
        compression={name: "zstd" for name in others} | {"tokens": "none"},
        use_dictionary=encoded,
        # nested columns are named by their leaf
        write_statistics=[
            name for name in others if not pa.types.is_list(table.schema.field(name).type)
        ],
        write_page_checksum=True,
        store_schema=True,
    )
    # not pq.read_table: its threads may outlive the interpreter and abort it (arrow#33975)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        read_back = file.read(use_threads=False)
    if not read_back.equals(table, check_metadata=False):
        raise ShardError(
            rows[0].shard if rows else str(path), f"{path} does not read back as written"
        )
    return digest_part(path.read_bytes(), len(rows))


def digest_part(content: bytes, rows: int) -> PartDigest:
    """Digests of a part.

    Raises:
        ValueError: it does not end like a Parquet file.
    """
    footer_bytes = int.from_bytes(content[-_MAGIC_BYTES:-4], "little")
    if content[-4:] != b"PAR1" or footer_bytes + _MAGIC_BYTES > len(content):
        raise ValueError("not a whole Parquet file")
    footer = content[-_MAGIC_BYTES - footer_bytes :]
    return PartDigest(
        rows=rows,
        size_bytes=len(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
        footer_sha256=hashlib.sha256(footer).hexdigest(),
    )


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
