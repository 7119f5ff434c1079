"""Some videos of a data set, copied into small tars: the sample that a probe tokenises.

Shards are chosen by the hash of their names, so that the choice is the same every time and has
nothing to do with their order. Of a tar the first videos are taken, because a tar is read from the
front; of a folder's bucket those with the smallest hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, ShardError
from pipeline.reader import ReadRules, Sample, read_shard
from pipeline.shards import Shard

MAX_SHARDS = 16
"""Shards that are looked into."""
PIECE_VIDEOS, PIECE_BYTES = 8, 32 << 20
"""A piece, the unit of the sample, ends with this many videos or bytes ..."""
PIECES_PER_SHARD = 4
"""... and a shard gives so many at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A few neighbouring videos of one shard, in a tar of their own."""

    shard: Shard
    """The shard that they come from."""
    path: Path
    """The small tar."""
    covered: float
    """Bytes of the shard's tar, or files of its bucket, that they stand for."""
    num_videos: int
    """Videos in the tar."""
    defects: int
    """Samples that cannot even be handed to a decoder; not in the tar."""


@dataclass(slots=True)
class Sampling:
    """Takes pieces of shards, in turns, into a folder."""

    folder: Path
    rules: ReadRules
    options: Mapping[str, Any]
    tar_bytes: Mapping[str, int]
    """Size of each tar by its shard's name: what follows the last video counts with it."""
    pieces: list[Piece] = field(default_factory=list)
    num_bytes: int = 0
    """Of the videos read."""

    def take(self, shards: Sequence[Shard], deadline: float) -> list[Piece]:
        """Pieces of chosen shards until there are enough or the deadline has come.

        Raises:
            RunError: no video could be read.
        """
        offsets = {shard: 0 for shard in map(_few_members, choose(shards))}
        errors: list[str] = []
        for number, shard in itertools.product(range(PIECES_PER_SHARD), tuple(offsets)):
            if self.pieces and time.monotonic() > deadline:
                break
            if shard not in offsets:
                continue
            try:
                taken = self._samples(shard, offsets.pop(shard))
            except ShardError as error:
                errors.append(str(error))
                continue
            end = taken[-1].end_offset if taken else 0
            if len(taken) == PIECE_VIDEOS or sum(len(s.video) for s in taken) >= PIECE_BYTES:
                offsets[shard] = end
            elif not shard.members:  # that was all
                end = self.tar_bytes[shard.name]
            if taken:
                self._add(shard, number, taken, end)
        if not self.pieces:
            raise RunError(f"no video could be read: {errors[0] if errors else 'all are empty'}")
        return self.pieces

    def _samples(self, shard: Shard, offset: int) -> list[Sample]:
        """Enough for a piece, or what is left."""
        items = read_shard(shard, rules=self.rules, options=self.options, start_offset=offset)
        taken: list[Sample] = []
        with contextlib.closing(items):
            for item in items:
                if isinstance(item, Sample):
                    taken.append(item)
                size = sum(len(sample.video) for sample in taken)
                if len(taken) == PIECE_VIDEOS or size >= PIECE_BYTES:
                    break
        return taken

    def _add(self, shard: Shard, number: int, taken: Sequence[Sample], end: int) -> None:
        whole = [sample for sample in taken if sample.defect is None]
        path = self.folder / f"{shard.name}-{number}.tar"
        path.write_bytes(tar_of(whole))
        self.num_bytes += sum(len(sample.video) for sample in whole)
        self.pieces.append(
            Piece(
                shard=shard,
                path=path,
                covered=end - taken[0].start_offset,
                num_videos=len(whole),
                defects=len(taken) - len(whole),
            )
        )


def _few_members(shard: Shard) -> Shard:
    """A tar as it is; of a bucket those files with the smallest hashes."""
    chosen = sorted(shard.members, key=_hash)[: PIECE_VIDEOS * PIECES_PER_SHARD]
    return replace(shard, members=tuple(chosen))


def choose(shards: Sequence[Shard]) -> list[Shard]:
    """At most `MAX_SHARDS` shards, by the hashes of their names."""
    return sorted(shards, key=lambda shard: _hash(shard.name))[:MAX_SHARDS]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def tar_of(samples: Sequence[Sample]) -> bytes:
    """The samples under new keys, so that whatever they are called is a sample again.

    What they were called stands in a .key member (``ReadRules.has_original_keys``).
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            for extension, content in (
                (sample.extension, sample.video),
                ("txt", sample.caption and sample.caption.encode()),
                ("json", sample.metadata and sample.metadata.encode()),
                ("key", (sample.original_key or sample.key).encode()),
            ):
                if not content:
                    continue
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()
