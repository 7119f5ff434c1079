"""Segments of one shard: finished videos in input order become a part, and the part a receipt.

An attempt that finds a segment committed by somebody else deletes its own part and goes on behind
the winner's byte range: rows are never doubled and never lost, wherever the two attempts cut.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.backends import storage_errors
from pipeline.errors import RunError, ShardError, VideoError
from pipeline.reader import Sample, Source, key_digest, shown
from pipeline.receipts import Receipt, commit, new_attempt, part_name, quarantine_name
from pipeline.records import DecodeSummary
from pipeline.schema import TokenFormat, TokenRow, clip_id
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.writer import PartDigest, QuarantinedVideo, quarantine_tar, write_part

logger = logging.getLogger(__name__)

MAX_SEGMENT_VIDEOS = 16384
"""Bound on a receipt, which names every video that gave no clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One attempt at a shard, from where its last receipt ends."""

    shard: Shard
    """What to read."""
    source: Source | None
    """What earlier receipts say the source was; None for a new shard."""
    start_offset: int = 0
    """Where to begin."""
    next_segment: int = 0
    """Number of the first segment to write."""
    generation: int = 0
    """Of the receipts to write: how often the source was found cut before (``ledger``)."""
    seen: bytes = b""
    """Digests of the keys that are committed already, eight bytes each."""
    remaining: int = 0
    """Bytes (members of a bucket) behind ``start_offset``, as planned; 0: not known."""
    attempt: str = field(default_factory=new_attempt)
    """Random id of this attempt; names its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRules:
    """When a segment is cut, and what is written beside its part."""

    max_clips: int
    """Clips after which a segment is committed."""
    max_seconds: float
    """Seconds since the shard's last commit after which one is due."""
    row_group_rows: int
    """Rows of a Parquet row group."""
    max_quarantine_bytes: int
    """Originals kept per segment; 0: none, and no quarantine tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClip:
    """One clip when its pixels are gone."""

    fps: float
    """Target rate."""
    clip_index: int
    """Position at that rate."""
    start_seconds: float
    """From the video's first frame."""
    end_seconds: float
    """From the video's first frame."""
    frame_seconds: tuple[float, ...]
    """Source time of each kept frame."""
    bucket: str
    """Height and width of the clip, ``256x256``."""
    tokens: npt.NDArray[Any]
    """int32 ``[t, h, w]``; latents: float32 ``[2c, t, h, w]``, mean, then log-variance."""


@dataclass(slots=True)
class OpenVideo:
    """A video between the reader and its segment."""

    sample: Sample
    """As read, without its bytes."""
    original: bytes
    """The encoded video; dropped when it has been decoded, kept when it is quarantined."""
    clips: dict[tuple[float, int], EncodedClip] = field(default_factory=dict)
    """Encoded clips by rate and index."""
    tries: int = 0
    """Times that its decoding was begun anew; clips of an earlier try are stale."""
    summary: DecodeSummary | None = None
    """Set when its last clip has been decoded."""
    failure: VideoError | None = None
    """Set when it is quarantined."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        if self.failure is not None:
            return True
        return self.summary is not None and len(self.clips) == sum(self.summary.num_clips.values())

    @property
    def num_clips(self) -> int:
        """Clips that count."""
        return 0 if self.failure is not None else len(self.clips)

    def rows(self, shard: str, token_format: TokenFormat) -> list[TokenRow]:
        """Rows of the part, by rate, then time."""
        if self.failure is not None or self.summary is None:
            return []
        source, sample = self.summary.source, self.sample
        return [
            TokenRow(
                clip_id=clip_id(shard, sample.key, clip.fps, clip.clip_index),
                shard=shard,
                key=sample.key,
                clip_index=clip.clip_index,
                fps=clip.fps,
                start_seconds=clip.start_seconds,
                end_seconds=clip.end_seconds,
                frame_seconds=clip.frame_seconds,
                source_width=source.width,
                source_height=source.height,
                source_fps=source.fps,
                bucket=clip.bucket,
                caption=sample.caption,
                metadata=sample.metadata,
                token_shape=token_format.token_shape(clip.tokens.shape),
                tokens=token_format.pack(clip.tokens),
            )
            for _, clip in sorted(self.clips.items())
        ]


class SegmentWriter:
    """Commits the segments of one attempt at one shard. Used by one thread."""

    def __init__(
        self,
        task: ShardTask,
        *,
        source: Source,
        storage: Storage,
        scratch: Path,
        rules: CommitRules,
        token_format: TokenFormat,
        numerics: Mapping[str, Any],
        vouch: Callable[[], None] = lambda: None,
        on_commit: Callable[[Receipt], None] = lambda receipt: None,
    ) -> None:
        self._task, self._source, self._storage, self._scratch = task, source, storage, scratch
        self._rules, self._format, self._numerics = rules, token_format, dict(numerics)
        self._vouch, self._on_commit = vouch, on_commit
        self._attempt = task.attempt
        self._segment = task.next_segment
        self._start = task.start_offset
        self._ready: deque[OpenVideo] = deque()
        self._clips = 0
        self._original_bytes = 0
        self._attempt_clips = 0
        self._attempt_began = self._began = time.monotonic()
        self.receipts: list[Receipt] = []

    @property
    def is_final(self) -> bool:
        """Whether the shard's last segment is committed."""
        return bool(self.receipts) and self.receipts[-1].final

    @property
    def seconds_to_commit(self) -> float:
        """Until time alone makes a commit due."""
        return max(0.0, self._began + self._rules.max_seconds - time.monotonic())

    def add(self, video: OpenVideo) -> None:
        """Take the next video of the shard, done; commits when clips or time are enough."""
        if video.sample.start_offset < self._start:
            return
        # Nothing else bounds them: a segment may quarantine thousands of videos.
        if self._original_bytes + len(video.original) > self._rules.max_quarantine_bytes:
            video.original = b""
        self._ready.append(video)
        self._clips += video.num_clips
        self._original_bytes += len(video.original)
        is_full = self._clips >= self._rules.max_clips or len(self._ready) >= MAX_SEGMENT_VIDEOS
        if is_full or self.seconds_to_commit == 0:
            self.commit_due()

    def commit_due(self) -> None:
        """Commit what is there, if anything."""
        if self._ready:
            self._commit(self._ready[-1].sample.end_offset, final=False, cut=None)

    def finish(self, end_offset: int, cut: str | None) -> None:
        """Commit the rest; repeated while other attempts have taken what was meant for it."""
        while not self.is_final:
            self._commit(max(end_offset, self._start), final=True, cut=cut)

    def _commit(self, end_offset: int, *, final: bool, cut: str | None) -> None:
        receipt = self._write(list(self._ready), end_offset, final, cut)
        if receipt.part is not None:
            self._vouch_for(receipt.part)
        # Before the receipt: a kill between the two leaves an orphan, and never loses an original.
        tar = self._keep_originals([v for v in self._ready if v.failure is not None], receipt)
        holds = commit(self._storage, receipt)
        if holds.attempt != self._attempt:
            for name in (receipt.part and f"parts/{receipt.part}", tar):
                if name is not None:
                    self._storage.delete(name)
            self._check_same_source(holds)
        self.receipts.append(holds)
        self._on_commit(holds)
        self._segment, self._start = holds.segment + 1, holds.end_offset
        self._ready = deque(v for v in self._ready if v.sample.start_offset >= self._start)
        self._clips = sum(video.num_clips for video in self._ready)
        self._original_bytes = sum(len(video.original) for video in self._ready)
        self._began = time.monotonic()

    def _vouch_for(self, part: str) -> None:
        """Behind the segment's last clip, and before anybody can see its part."""
        try:
            self._vouch()
        except ShardError:
            self._storage.delete(f"parts/{part}")
            raise

    def _check_same_source(self, winner: Receipt) -> None:
        logger.info("%s was committed by attempt %s", winner.name, winner.attempt)
        mine = (self._source.size_bytes, self._source.version)
        if (
            winner.source_bytes,
            winner.source_version,
        ) != mine or winner.start_offset != self._start:
            raise ShardError(
                winner.shard, f"{winner.name} was made of another version of the source"
            )

    def _write(
        self, videos: Sequence[OpenVideo], end_offset: int, final: bool, cut: str | None
    ) -> Receipt:
        """Publish the part; returns the receipt that would commit it."""
        shard, began = self._task.shard, time.monotonic()
        try:
            rows = [row for video in videos for row in video.rows(shard.name, self._format)]
        except ValueError as error:
            raise RunError(f"{shard.name}: tokens that cannot be stored: {error}") from error
        name, digest = self._publish(rows)
        summaries = [video.summary for video in videos if video.summary]
        filtered: Counter[str] = Counter()
        for summary in summaries:
            filtered.update(summary.filtered)
        receipt = Receipt(
            shard=shard.name,
            segment=self._segment,
            generation=self._task.generation,
            attempt=self._attempt,
            fingerprint=self._format.fingerprint,
            part=name,
            rows=len(rows),
            part_bytes=digest.size_bytes if digest else 0,
            part_sha256=digest.file_sha256 if digest else None,
            footer_sha256=digest.footer_sha256 if digest else None,
            source_url=shard.url,
            source_bytes=self._source.size_bytes,
            source_version=self._source.version,
            start_offset=self._start,
            end_offset=end_offset,
            final=final,
            complete=cut is None,
            cut_reason=cut,
            videos=len(videos),
            filtered=dict(filtered),
            quarantined=self._quarantine([one for one in videos if one.failure is not None]),
            key_digests="".join(key_digest(video.sample.key).hex() for video in videos),
            numerics=self._numerics,
            timings={
                "segment_seconds": round(began - self._began, 3),
                "decode_cpu_seconds": round(sum(s.decode_seconds for s in summaries), 3),
                "source_seconds": round(sum(s.source.duration_seconds for s in summaries), 3),
                "write_seconds": round(time.monotonic() - began, 3),
            },
            host=socket.gethostname(),
            created_seconds=round(time.time(), 3),
        )
        self._log(receipt)
        return receipt

    def _publish(self, rows: Sequence[TokenRow]) -> tuple[str | None, PartDigest | None]:
        if not rows:
            return None, None
        name = part_name(self._task.shard.name, self._segment, self._attempt)
        path = self._scratch / name
        with storage_errors(f"{self._task.shard.name}: {path.parent}"):  # the disk may be full
            digest = write_part(path, rows, self._format, row_group_rows=self._rules.row_group_rows)
        self._storage.publish(path, f"parts/{name}")
        return name, digest

    def _log(self, receipt: Receipt) -> None:
        """One line per segment; the rate is that of the attempt, as segments come in bursts."""
        self._attempt_clips += receipt.rows
        logger.info(
            "shard=%s segment=%d videos=%d clips=%d quarantined=%d bytes=%d %.1f clips/s%s",
            receipt.shard,
            receipt.segment,
            receipt.videos,
            receipt.rows,
            len(receipt.quarantined),
            receipt.part_bytes,
            self._attempt_clips / max(1e-3, time.monotonic() - self._attempt_began),
            " final" if receipt.final else "",
        )

    def _quarantine(self, videos: Sequence[OpenVideo]) -> list[dict[str, str]]:
        records = []
        for video in videos:
            failure = video.failure
            assert failure is not None
            records.append(
                {"key": video.sample.key, "reason": failure.reason, "message": failure.message}
            )
            logger.warning(
                "%s::%s quarantined: %s", self._task.shard.name, shown(video.sample.key), failure
            )
        return records

    def _keep_originals(self, videos: Sequence[OpenVideo], receipt: Receipt) -> str | None:
        """Write the quarantine tar of a segment, if there is need for one; returns its place."""
        if not self._rules.max_quarantine_bytes:
            return None
        originals = [
            (QuarantinedVideo(**record), video.sample.extension or "bin", video.original)
            for record, video in zip(receipt.quarantined, videos, strict=True)
        ]
        content = quarantine_tar(originals, max_bytes=self._rules.max_quarantine_bytes)
        if content is None:
            return None
        name = f"quarantine/{quarantine_name(receipt.shard, receipt.segment, receipt.attempt)}"
        self._storage.put(name, content)
        return name
