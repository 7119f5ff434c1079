"""Draws clips of an OUT by hash: what is stored of them, and their videos from the source."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from pipeline.errors import ShardError, StorageRefused
from pipeline.inputs import list_folder
from pipeline.parts import blobs, open_part, read_row_group
from pipeline.reader import ReadRules, Sample, Source, read_shard, source_of
from pipeline.receipts import Receipt, list_receipts, read_receipts
from pipeline.shards import Shard, tar_shards
from pipeline.storage import Storage

Clips = dict[tuple[float, int], npt.NDArray[Any]]
"""Tokens by rate and index: int32 ``[t, h, w]`` or float32 ``[2c, t, h, w]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnVideo:
    """A video that holds a drawn clip."""

    receipt: Receipt
    """What committed its clips."""
    sample: Sample
    """As it stands in the source."""
    stored: Clips
    """All that is committed of it."""


def draw(storage: Storage, *, num_clips: int, seed: int) -> list[tuple[Receipt, set[str]]]:
    """Receipts, and the keys of those of their videos that hold the clips with the smallest hashes.

    Raises:
        RunError: a receipt or part that cannot be trusted.
    """

    def clips() -> Iterator[tuple[bytes, str, Receipt]]:
        for receipt in read_receipts(storage, list_receipts(storage)):
            for clip_id, key in _names(storage, receipt):
                yield hashlib.sha256(f"{seed}/{clip_id}".encode()).digest(), key, receipt

    found: dict[str, tuple[Receipt, set[str]]] = {}
    for _, key, receipt in heapq.nsmallest(num_clips, clips(), key=lambda clip: clip[0]):
        found.setdefault(receipt.name, (receipt, set()))[1].add(key)
    return [found[name] for name in sorted(found)]


def _names(storage: Storage, receipt: Receipt) -> Iterator[tuple[str, str]]:
    """``clip_id`` and key of every row."""
    if receipt.part is None:
        return
    part = open_part(storage, receipt)
    for group in range(part.file.num_row_groups):
        table = read_row_group(part, group, ["clip_id", "key"])
        yield from zip(*(table.column(n).to_pylist() for n in ("clip_id", "key")), strict=True)


def stored_clips(
    storage: Storage, receipt: Receipt, keys: set[str] | None = None
) -> dict[str, Clips]:
    """Clips of these videos, or of all, by key.

    Raises:
        RunError: a part that cannot be trusted.
    """
    found: dict[str, Clips] = {}
    if receipt.part is None:
        return found
    part = open_part(storage, receipt)
    columns = ["key", "fps", "clip_index", "token_shape", "tokens"]
    for group in range(part.file.num_row_groups):
        table = read_row_group(part, group, columns)
        rows = table.drop_columns(["tokens"]).to_pylist()
        for row, blob in zip(rows, blobs(table.column("tokens")), strict=True):
            if keys is None or row["key"] in keys:
                tokens = part.token_format.unpack_row(blob, row["token_shape"])
                found.setdefault(row["key"], {})[row["fps"], row["clip_index"]] = tokens
    return found


@dataclass(slots=True, kw_only=True)
class Sources:
    """Reads videos again that were tokenised once."""

    storage: Storage
    """OUT."""
    rules: ReadRules
    options: Mapping[str, Any]
    """fsspec options for the source."""
    num_buckets: int | None
    """Of a folder; None: the sources are tars."""
    _folders: dict[str, dict[str, Shard]] = field(default_factory=dict)

    def read(self, receipt: Receipt, keys: set[str]) -> Iterator[DrawnVideo | str]:
        """Videos of one segment, one after the other; in words, what cannot be had of them."""
        missing = set(keys)
        stored = stored_clips(self.storage, receipt, keys)
        try:
            for sample in self._samples(receipt):
                if sample.key not in missing:
                    continue
                missing.remove(sample.key)
                if sample.defect is None:
                    yield DrawnVideo(receipt=receipt, sample=sample, stored=stored[sample.key])
                else:
                    yield (
                        f"{receipt.shard}::{sample.key} cannot be read with the limits in run.json "
                        f"(--limits raises them): {sample.defect}"
                    )
                if not missing:
                    return
        except (ShardError, StorageRefused) as error:
            yield f"{receipt.name}: {len(missing)} drawn videos cannot be compared: {error}"
            return
        for key in sorted(missing):
            yield f"{receipt.shard}::{key} is not in {receipt.source_url} any more"

    def _samples(self, receipt: Receipt) -> Iterator[Sample]:
        """Every sample that the segment covers."""
        shard = self._shard_of(receipt)
        items = read_shard(
            shard,
            rules=self.rules,
            options=self.options,
            start_offset=receipt.start_offset,
            source=_unchanged_source(shard, receipt, self.options),
        )
        with contextlib.closing(items):
            for item in items:
                if not isinstance(item, Sample) or item.start_offset >= receipt.end_offset:
                    return
                yield item

    def _shard_of(self, receipt: Receipt) -> Shard:
        """What the receipt's clips were made of.

        Raises:
            ShardError: a bucket of a folder that is empty now.
        """
        url = receipt.source_url
        if self.num_buckets is None:
            return replace(tar_shards([url])[0], name=receipt.shard)
        if url not in self._folders:
            listed = list_folder(
                url,
                self.rules.media_extensions,
                num_buckets=self.num_buckets,
                options=self.options,
            )
            self._folders[url] = {shard.name: shard for shard in listed}
        if receipt.shard not in self._folders[url]:
            raise ShardError(receipt.shard, f"{url} has no videos of this bucket any more")
        return self._folders[url][receipt.shard]


def _unchanged_source(shard: Shard, receipt: Receipt, options: Mapping[str, Any]) -> Source:
    """What the source is now, which must be what it was.

    Raises:
        ShardError: it is not there, or another one.
    """
    before = Source(size_bytes=receipt.source_bytes, version=receipt.source_version)
    now = source_of(shard, options)
    if now != before:
        raise ShardError(
            shard.name,
            f"{shard.url} has changed since it was tokenised: {before.size_bytes:,} bytes, version "
            f"{before.version} then; {now.size_bytes:,} bytes, version {now.version} now",
        )
    return now
