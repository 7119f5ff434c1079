"""Receipts: the commit itself.

A receipt is a small JSON file, created only if absent: it makes one segment's part visible and
says which bytes of the source it covers. Receipts of a shard form a chain: each begins where the
one before ended. A receipt is never changed; a retry adds a *generation*
(``<shard>.<segment>.r1.json``) that only adds rows. Nothing is trusted when read: a receipt with a
wrong digest, or with values that no run writes, is an error that names the file.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipeline.errors import RunError
from pipeline.fingerprint import digest_of
from pipeline.listing import Entry
from pipeline.receipt_values import RowGroup, check_receipt, row_groups_of
from pipeline.schema import FORMAT_VERSION
from pipeline.storage import Storage

MAX_RECEIPT_BYTES = 64 << 20
"""A larger file is no receipt: one of 100,000 videos, all quarantined, has 30 MB."""

NEVER_RETRIED = frozenset({"duplicate_key"})
"""Reasons of a quarantine that no other attempt can change: the key is another video's."""

_RECEIPT_NAME = re.compile(
    r"(?P<shard>[A-Za-z0-9_][A-Za-z0-9_.-]*)\.(?P<segment>\d{5,9})(?:\.r(?P<generation>[1-9]\d{0,5}))?\.json"
)
_OTHER_SPELLINGS = (re.compile(rb"\\u[0-9a-f]{0,3}[A-F]"), re.compile(rb"E(?<=[0-9.]E)"))
"""Two that each begin with a letter: searched forty times faster than as one."""
_READ_AT_ONCE = 512


class ReceiptName(NamedTuple):
    """What a receipt's file name says; sorted by shard, then in the order of its chain."""

    shard: str
    segment: int
    generation: int

    def __str__(self) -> str:
        return receipt_name(*self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What commits one segment, or a later generation of it."""

    shard: str
    """Name of the shard."""
    segment: int
    """Position in the shard's chain, from 0."""
    generation: int = 0
    """0: of the first pass; n: rows that the n-th retry added."""
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
    """Of its footer, which begins where the last row group ends."""
    row_groups: tuple[RowGroup, ...]
    """In the part's order; with the footer they cover every byte of it."""
    shapes: dict[str, int]
    """``token_shape``, joined by commas -> clips of it in the part."""
    latent_mean: tuple[float, ...]
    """Of each latent channel over the part (``moments``); empty for indices."""
    latent_std: tuple[float, ...]
    """Standard deviation of each."""
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
    """Videos covered; of a retry of quarantined videos: those that were tried again."""
    filtered: dict[str, int]
    """Reason -> healthy videos (per target rate) that gave no clip."""
    quarantined: list[dict[str, str]]
    """key, reason, message of each video that could not be tokenised; of a retry: that still
    cannot, and replaces the list of the generation before."""
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
        return receipt_name(self.shard, self.segment, self.generation)

    def to_bytes(self) -> bytes:
        """JSON with the record's own digest."""
        fields = asdict(self)
        fields["row_groups"] = [group._asdict() for group in self.row_groups]
        return json.dumps(fields | {"digest": digest_of(fields)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Receipt:
        """Read a receipt.

        Raises:
            RunError: broken, changed, too large, of another version, under another's name, or
                with values that no run writes.
        """
        try:
            if len(content) > MAX_RECEIPT_BYTES:
                raise ValueError(f"more than {MAX_RECEIPT_BYTES:,} bytes")
            fields = json.loads(content)
            digest = fields.pop("digest")
            version = fields.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version!r}, this code reads {FORMAT_VERSION}")
            if digest != digest_of(fields):
                raise ValueError("its digest does not match its content")
            groups = row_groups_of(fields.pop("row_groups"))
            mean, std = (tuple(fields.pop(name)) for name in ("latent_mean", "latent_std"))
            receipt = cls(**fields, row_groups=groups, latent_mean=mean, latent_std=std)
            check_receipt(receipt)
            if receipt.name != name:
                raise ValueError(f"it belongs to {receipt.name}")
            # a flipped bit may leave the values as they are: 1E-07, or \\u00FC
            is_odd = any(spelling.search(content) for spelling in _OTHER_SPELLINGS)
            if is_odd and receipt.to_bytes() != content:
                raise ValueError("it is not spelt as a run spells it")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"receipt {name} cannot be trusted: {error}") from error
        return receipt


def receipt_name(shard: str, segment: int, generation: int = 0) -> str:
    """File name of a receipt.

    >>> receipt_name("00017-1b3b", 4), receipt_name("00017-1b3b", 4, 1)
    ('00017-1b3b.00004.json', '00017-1b3b.00004.r1.json')
    """
    retry = f".r{generation}" if generation else ""
    return f"{shard}.{segment:05d}{retry}.json"


def parse_name(name: str) -> ReceiptName | None:
    """The inverse; None for a file that is no receipt.

    >>> parse_name("00017-1b3b.00004.r1.json")
    ReceiptName(shard='00017-1b3b', segment=4, generation=1)
    """
    match = _RECEIPT_NAME.fullmatch(name)
    if match is None:
        return None
    return ReceiptName(match["shard"], int(match["segment"]), int(match["generation"] or 0))


def part_name(shard: str, segment: int, attempt: str, generation: int = 0) -> str:
    """File name of a part."""
    retry = f"-r{generation}" if generation else ""
    return f"{shard}-{segment:05d}{retry}-{attempt}.parquet"


def quarantine_name(shard: str, segment: int, attempt: str) -> str:
    """File name of the tar of a segment's quarantined originals."""
    return f"{shard}-{segment:05d}-{attempt}.tar"


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
    return read_receipt(storage, receipt.name)


def read_receipt(storage: Storage, name: str) -> Receipt:
    """One receipt, by its file name.

    Raises:
        FileNotFoundError: there is none.
        RunError: it cannot be trusted.
    """
    content = storage.read(f"receipts/{name}", max_bytes=MAX_RECEIPT_BYTES + 1)
    return Receipt.from_bytes(name, content)


def list_receipts(storage: Storage) -> list[ReceiptName]:
    """Names of all receipts, in the order of shards and chains: one request per 1,000 on S3.

    Raises:
        RunError: a file there is empty, or too large for a receipt.
    """
    names = _listed(storage)
    gaps = gaps_of(names)
    if not gaps:
        return names
    # A long listing is not of one moment: it may hold a receipt and lack the one before it, which
    # was written while the first pages had been answered already. A link that two listings lack
    # is lost; what lies behind a gap that only the second has is for the next listing.
    names = _listed(storage)
    ends = {end.shard: end for end in sorted(gaps_of(names) - gaps, reverse=True)}
    return [name for name in names if name.shard not in ends or name <= ends[name.shard]]


def _listed(storage: Storage) -> list[ReceiptName]:
    found = []
    for file, entry in storage.entries("receipts").items():
        name = parse_name(file)
        if name is not None:
            _check_size(file, entry)
            found.append(name)
    return sorted(found)


def gaps_of(names: Sequence[ReceiptName]) -> set[ReceiptName]:
    """Links behind which one is missing, of the chains among these sorted names.

    Segment -1 stands for a chain whose first link is missing.

    >>> gaps_of([ReceiptName("s", 0, 0), ReceiptName("s", 2, 0)])
    {ReceiptName(shard='s', segment=0, generation=0)}
    """
    gaps = set()
    before = ReceiptName("", -1, 0)
    for name in names:
        if name.shard != before.shard:
            before = ReceiptName(name.shard, -1, 0)
        is_next = name.segment == before.segment + 1
        adds = (name.segment, name.generation) == (before.segment, before.generation + 1)
        if not (is_next or adds):
            gaps.add(before)
        before = name
    return gaps


def read_receipts(storage: Storage, names: Sequence[ReceiptName]) -> Iterator[Receipt]:
    """The receipts of these names, a few hundred at a time; one that is gone is left out.

    Raises:
        RunError: one that cannot be trusted.
    """
    for at in range(0, len(names), _READ_AT_ONCE):
        files = [str(name) for name in names[at : at + _READ_AT_ONCE]]
        contents = storage.read_many(
            [f"receipts/{file}" for file in files], max_bytes=MAX_RECEIPT_BYTES + 1
        )
        for file in files:
            content = contents.get(f"receipts/{file}")
            if content is not None:
                yield Receipt.from_bytes(file, content)


def _check_size(file: str, entry: Entry) -> None:
    if not 0 < entry.size_bytes <= MAX_RECEIPT_BYTES:
        raise RunError(
            f"receipt {file} cannot be trusted: {entry.size_bytes:,} bytes, a receipt has 1 to "
            f"{MAX_RECEIPT_BYTES:,}"
        )
