"""Receipts, the commit itself, and manifests.

A receipt is a small JSON file, created only if absent: it makes one segment's part visible and says
which bytes of the source it covers. Receipts of a shard form a chain: each begins where the one
before ended. A manifest is an immutable Parquet snapshot of all receipts at one moment. Nothing
here is trusted when read: a receipt with a wrong digest is an error that names the file.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.fingerprint import canonical_json, digest_of
from pipeline.schema import FORMAT_VERSION
from pipeline.storage import Storage

_RECEIPT_NAME = re.compile(r"^(?P<shard>.+)\.(?P<segment>\d{5,})\.json$")
_READ_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What commits one segment."""

    shard: str
    """Name of the shard."""
    segment: int
    """Position in the shard's chain, from 0."""
    attempt: str
    """Random id of the attempt that won."""
    fingerprint: str
    """Of the run's configuration."""
    part: str | None
    """File name in ``parts/``; None when the segment gave no clip."""
    rows: int
    """Clips in the part."""
    part_bytes: int
    """Its size."""
    part_sha256: str | None
    """Of the whole file."""
    footer_sha256: str | None
    """Of its footer."""
    source_url: str
    """The tar or folder."""
    source_bytes: int
    """Its size when it was read."""
    source_version: str
    """Its ETag or modification time then."""
    start_offset: int
    """First byte of the source (first member of a bucket) that the segment covers."""
    end_offset: int
    """First one that it does not."""
    final: bool
    """Whether the shard ends here."""
    complete: bool
    """False: the source is cut and what follows is lost."""
    cut_reason: str | None
    """Where and how it is cut."""
    videos: int
    """Videos covered."""
    filtered: dict[str, int]
    """Reason -> healthy videos (per target rate) that gave no clip."""
    quarantined: list[dict[str, str]]
    """key, reason, message of each video that could not be tokenised."""
    key_digests: str
    """``reader.key_digest`` of every key covered, as hex, to find duplicates after a resume."""
    numerics: dict[str, Any]
    """The numeric environment."""
    timings: dict[str, float]
    """Seconds spent, by step."""
    host: str
    """Machine that wrote it."""
    created_seconds: float
    """When, as seconds since 1970."""
    format_version: int = FORMAT_VERSION
    """Of this record."""

    @property
    def name(self) -> str:
        """File name in ``receipts/``."""
        return receipt_name(self.shard, self.segment)

    def to_bytes(self) -> bytes:
        """JSON with the record's own digest."""
        fields = asdict(self)
        return json.dumps(fields | {"digest": digest_of(fields)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Receipt:
        """Read a receipt.

        Raises:
            RunError: broken, changed, of another version, or under another's name.
        """
        try:
            fields = json.loads(content)
            digest = fields.pop("digest")
            version = fields.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version!r}, this code reads {FORMAT_VERSION}")
            if digest != digest_of(fields):
                raise ValueError("its digest does not match its content")
            receipt = cls(**fields)
            if receipt.name != name:
                raise ValueError(f"it belongs to {receipt.name}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"receipt {name} cannot be trusted: {error}") from error
        return receipt


def receipt_name(shard: str, segment: int) -> str:
    """File name of a receipt.

    >>> receipt_name("00017-1b3b", 4)
    '00017-1b3b.00004.json'
    """
    return f"{shard}.{segment:05d}.json"


def part_name(shard: str, segment: int, attempt: str) -> str:
    """File name of a part."""
    return f"{shard}-{segment:05d}-{attempt}.parquet"


def new_attempt() -> str:
    """A random 128-bit id."""
    return uuid.uuid4().hex


def commit(storage: Storage, receipt: Receipt) -> Receipt:
    """Create the receipt; returns the one that holds: this, or that of an attempt that was faster.

    Raises:
        StorageError: no clear answer; the attempt must be repeated.
    """
    place = f"receipts/{receipt.name}"
    if storage.put_if_absent(place, receipt.to_bytes()):
        return receipt
    # Also after a lost answer: whose attempt the receipt names tells who won.
    return Receipt.from_bytes(receipt.name, storage.read(place))


@dataclass(slots=True)
class ShardState:
    """What is committed of one shard: the chain of its receipts."""

    receipts: list[Receipt] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.receipts) and self.receipts[-1].final

    @property
    def is_complete(self) -> bool:
        """Whether the source was whole."""
        return all(receipt.complete for receipt in self.receipts)

    @property
    def end_offset(self) -> int:
        """Where the next attempt starts."""
        return self.receipts[-1].end_offset if self.receipts else 0

    def seen_digests(self) -> set[bytes]:
        """Digests of all keys covered."""
        return {
            bytes.fromhex(receipt.key_digests[at : at + 16])
            for receipt in self.receipts
            for at in range(0, len(receipt.key_digests), 16)
        }


def chain(receipts: Iterable[Receipt]) -> ShardState:
    """Put the receipts of one shard in order.

    Raises:
        RunError: a gap or an overlap, or one behind the final one.
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.segment)
    end = 0
    for position, receipt in enumerate(ordered):
        if receipt.segment != position or receipt.start_offset != end:
            raise RunError(
                f"receipts of {receipt.shard} do not form a chain: segment "
                f"{receipt.segment} starts at {receipt.start_offset:,}, expected segment "
                f"{position} at {end:,}"
            )
        if position and ordered[position - 1].final:
            raise RunError(f"receipts of {receipt.shard} go on behind the final one")
        end = receipt.end_offset
    return ShardState(ordered)


def load_receipts(storage: Storage, *, use_manifest: bool = True) -> list[Receipt]:
    """All receipts: the newest manifest, and the receipt files that it does not hold.

    Args:
        storage: OUT.
        use_manifest: False: every receipt file is read, as ``verify`` does.

    Raises:
        RunError: one that cannot be trusted.
    """
    names = storage.entries("receipts")
    known = {
        receipt.name: receipt
        for receipt in (_newest_manifest(storage) if use_manifest else ())
        # one that was removed on purpose (changed_inputs=redo) is gone, whatever a manifest says
        if receipt.name in names
    }
    missing = sorted(name for name in names if _RECEIPT_NAME.match(name) and name not in known)
    for at in range(0, len(missing), _READ_AT_ONCE):
        chunk = missing[at : at + _READ_AT_ONCE]
        contents = storage.read_many([f"receipts/{name}" for name in chunk])
        for name in chunk:
            content = contents.get(f"receipts/{name}")
            if content is not None:
                known[name] = Receipt.from_bytes(name, content)
    return [known[name] for name in sorted(known)]


def read_chain(storage: Storage, shard: str) -> ShardState:
    """What is committed of one shard now, without a listing.

    Raises:
        RunError: the chain cannot be trusted.
    """
    receipts: list[Receipt] = []
    while not (receipts and receipts[-1].final):
        name = receipt_name(shard, len(receipts))
        try:
            content = storage.read(f"receipts/{name}")
        except FileNotFoundError:
            break
        receipts.append(Receipt.from_bytes(name, content))
    return chain(receipts)


def by_shard(receipts: Iterable[Receipt]) -> dict[str, ShardState]:
    """Chains of all shards.

    Raises:
        RunError: a chain is broken.
    """
    groups: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        groups.setdefault(receipt.shard, []).append(receipt)
    return {shard: chain(group) for shard, group in groups.items()}


def publish_manifest(storage: Storage, receipts: Sequence[Receipt]) -> str:
    """Write a snapshot of receipts and return its digest; the same receipts give the same file."""
    texts = [receipt.to_bytes().decode() for receipt in receipts]
    digest = digest_of(texts)
    name = f"{digest}.parquet"
    if name not in storage.entries("manifests"):
        table = pa.table(
            {
                "shard": pa.array([receipt.shard for receipt in receipts], pa.string()),
                "segment": pa.array([receipt.segment for receipt in receipts], pa.int32()),
                "part": pa.array([receipt.part for receipt in receipts], pa.string()),
                "rows": pa.array([receipt.rows for receipt in receipts], pa.int64()),
                "receipt": pa.array(texts, pa.string()),
            },
            metadata={"vidtok.manifest": canonical_json({"format_version": FORMAT_VERSION})},
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        storage.put_if_absent(f"manifests/{name}", buffer.getvalue())
    return digest


def read_manifest(storage: Storage, digest: str) -> list[Receipt]:
    """Receipts of a snapshot.

    Raises:
        RunError: there is no such manifest, or its content is not what its name says.
    """
    try:
        content = storage.read(f"manifests/{digest}.parquet")
        # Arrow's threads, still at work, may abort the end of the interpreter (arrow#33975)
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        texts = table.column("receipt").to_pylist()
        found = digest_of(texts)
        shards, segments = (table.column(name).to_pylist() for name in ("shard", "segment"))
        names = [receipt_name(*pair) for pair in zip(shards, segments, strict=True)]
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        raise RunError(f"manifest {digest} of {storage} cannot be read: {error}") from error
    if found != digest:
        raise RunError(f"manifest {digest} of {storage} does not match its digest")
    return [
        Receipt.from_bytes(name, text.encode()) for name, text in zip(names, texts, strict=True)
    ]


def _newest_manifest(storage: Storage) -> list[Receipt]:
    found: Mapping[str, Any] = {
        name: entry
        for name, entry in storage.entries("manifests").items()
        if name.endswith(".parquet")
    }
    if not found:
        return []
    newest = max(found, key=lambda name: (found[name].modified_seconds, name))
    return read_manifest(storage, newest.removesuffix(".parquet"))
