"""Commits finished videos in segments: part, quarantine tar, receipt.

An attempt that finds a segment committed by somebody else deletes its own part and goes on behind
the winner's byte range: rows are never doubled and never lost, wherever the two attempts cut.
`SegmentWriter` cuts what is new of a shard; `amendments` adds videos that were quarantined before.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backends import storage_errors
from pipeline.errors import RunError, ShardError
from pipeline.reader import Sample, Source, key_digest, shown
from pipeline.receipts import Receipt, commit, part_name, quarantine_name
from pipeline.samples import keep_sample
from pipeline.schema import TokenFormat, TokenRow
from pipeline.segments import CommitRules, OpenVideo, ShardTask
from pipeline.storage import Storage
from pipeline.writer import NO_PART, QuarantinedVideo, quarantine_tar, write_part

logger = logging.getLogger(__name__)

MAX_SEGMENT_VIDEOS = 4096
"""Bound on a receipt, which names every video that gave no clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What of a shard a receipt covers; fields are those of `Receipt`."""

    segment: int
    generation: int
    start_offset: int
    end_offset: int
    final: bool
    cut_reason: str | None


class Committer:
    """Commits for one attempt at one shard."""

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
    ) -> None:
        self._shard, self._source = task.shard, source
        self._storage, self._scratch, self._vouch = storage, scratch, vouch
        self._rules, self._format, self._numerics = rules, token_format, dict(numerics)
        self._clips, self._began = 0, time.monotonic()
        self.attempt = task.attempt

    def commit(
        self,
        span: Span,
        videos: Sequence[OpenVideo],
        *,
        began: float,
        retry: tuple[int, list[dict[str, str]]] | None = None,
    ) -> Receipt:
        """Write the part and create the receipt; returns the one that holds.

        Args:
            span: what is covered.
            videos: those that are in it, in order.
            began: when the segment was begun, by the monotonic clock.
            retry: videos that were tried again, and those still quarantined; None: new videos.

        Raises:
            ShardError: somebody was faster, with another version of the source.
            RunError: tokens that cannot be stored.
        """
        receipt = self._write(span, videos, began, retry)
        if receipt.part is not None:
            self._vouch_for(receipt.part)
        for video in videos:
            for sample in video.samples:
                keep_sample(self._storage, sample)
        # Before the receipt: a kill between the two leaves an orphan, and never loses an original.
        tar = None if retry else self._keep_originals(receipt, videos)
        holds = commit(self._storage, receipt)
        if holds.attempt != self.attempt:
            for name in (receipt.part and f"parts/{receipt.part}", tar):
                if name is not None:
                    self._storage.delete(name)
            self._check_same_source(holds, span)
        return holds

    def _vouch_for(self, part: str) -> None:
        """Behind the segment's last clip, and before anybody can see its part."""
        try:
            self._vouch()
        except ShardError:
            self._storage.delete(f"parts/{part}")
            raise

    def _check_same_source(self, winner: Receipt, span: Span) -> None:
        logger.info("%s was committed by attempt %s", winner.name, winner.attempt)
        theirs = Source(size_bytes=winner.source_bytes, version=winner.source_version)
        if theirs != self._source or winner.start_offset != span.start_offset:
            raise ShardError(
                winner.shard, f"{winner.name} was made of another version of the source"
            )

    def _write(
        self,
        span: Span,
        videos: Sequence[OpenVideo],
        began: float,
        retry: tuple[int, list[dict[str, str]]] | None,
    ) -> Receipt:
        """Publish the part; returns the receipt that would commit it."""
        wrote, shard = time.monotonic(), self._shard
        try:
            rows = [row for video in videos for row in video.rows(shard.name, self._format)]
        except ValueError as error:
            raise RunError(f"{shard.name}: tokens that cannot be stored: {error}") from error
        part = self._publish(span, rows)
        summaries = [video.summary for video in videos if video.summary]
        filtered: Counter[str] = Counter()
        for video in videos:
            filtered.update(video.filtered)
        num_videos, quarantined = retry or (len(videos), self._quarantine(videos))
        keys = [] if retry else [key_digest(video.sample.key).hex() for video in videos]
        receipt = Receipt(
            shard=shard.name,
            segment=span.segment,
            generation=span.generation,
            attempt=self.attempt,
            fingerprint=self._format.fingerprint,
            rows=len(rows),
            **part,
            source_url=shard.url,
            source_bytes=self._source.size_bytes,
            source_version=self._source.version,
            start_offset=span.start_offset,
            end_offset=span.end_offset,
            final=span.final,
            complete=span.cut_reason is None,
            cut_reason=span.cut_reason,
            videos=num_videos,
            filtered=dict(filtered),
            quarantined=quarantined,
            key_digests="".join(keys),
            numerics=self._numerics,
            timings={
                "segment_seconds": round(wrote - began, 3),
                "decode_cpu_seconds": round(sum(s.decode_seconds for s in summaries), 3),
                "source_seconds": round(sum(s.source.duration_seconds for s in summaries), 3),
                "write_seconds": round(time.monotonic() - wrote, 3),
            },
            host=socket.gethostname(),
            created_seconds=round(time.time(), 3),
        )
        self._log(receipt)
        return receipt

    def _publish(self, span: Span, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """The receipt's fields about the part."""
        if not rows:
            return dict(NO_PART)
        name = part_name(self._shard.name, span.segment, self.attempt, span.generation)
        path = self._scratch / name
        try:
            with storage_errors(f"{self._shard.name}: {path.parent}"):  # the disk may be full
                digest = write_part(
                    path,
                    rows,
                    self._format,
                    row_group_rows=self._rules.row_group_rows,
                    row_group_bytes=self._rules.row_group_bytes,
                )
            self._storage.publish(path, f"parts/{name}")
        finally:  # while storage is away every attempt would leave one
            path.unlink(missing_ok=True)
        return {"part": name, **digest.receipt_fields()}

    def _log(self, receipt: Receipt) -> None:
        """One line per segment; the rate is that of the attempt, as segments come in bursts."""
        self._clips += receipt.rows
        logger.info(
            "shard=%s segment=%d%s videos=%d clips=%d quarantined=%d bytes=%d %.1f clips/s%s",
            receipt.shard,
            receipt.segment,
            f".r{receipt.generation}" if receipt.generation else "",
            receipt.videos,
            receipt.rows,
            len(receipt.quarantined),
            receipt.part_bytes,
            self._clips / max(1e-3, time.monotonic() - self._began),
            " final" if receipt.final else "",
        )

    def _quarantine(self, videos: Sequence[OpenVideo]) -> list[dict[str, str]]:
        records = []
        for video in videos:
            failure = video.failure
            if failure is not None:
                records.append(
                    {"key": video.sample.key, "reason": failure.reason, "message": failure.message}
                )
                logger.warning(
                    "%s::%s quarantined: %s", self._shard.name, shown(video.sample.key), failure
                )
        return records

    def _keep_originals(self, receipt: Receipt, videos: Sequence[OpenVideo]) -> str | None:
        """Write the quarantine tar of a segment, if there is need for one; returns its place."""
        if not self._rules.max_quarantine_bytes:
            return None
        bad = [video for video in videos if video.failure is not None]
        originals = [
            (QuarantinedVideo(**record), video.sample.extension or "bin", video.original)
            for record, video in zip(receipt.quarantined, bad, strict=True)
        ]
        content = quarantine_tar(originals, max_bytes=self._rules.max_quarantine_bytes)
        if content is None:
            return None
        name = f"quarantine/{quarantine_name(receipt.shard, receipt.segment, receipt.attempt)}"
        self._storage.put(name, content)
        return name


class SegmentWriter:
    """Commits the segments of one attempt at one shard. Used by one thread."""

    def __init__(
        self,
        task: ShardTask,
        committer: Committer,
        rules: CommitRules,
        on_commit: Callable[[Receipt], None] = lambda receipt: None,
    ) -> None:
        self.task = task
        self._committer, self._rules, self._on_commit = committer, rules, on_commit
        self._segment, self._start = task.next_segment, task.start_offset
        self._ready: deque[OpenVideo] = deque()
        self._clips = 0
        self._original_bytes = 0
        self._began = time.monotonic()
        self.receipts: list[Receipt] = []

    @property
    def is_final(self) -> bool:
        """Whether the shard's last segment is committed."""
        return bool(self.receipts) and self.receipts[-1].final

    @property
    def seconds_to_commit(self) -> float:
        """Until time alone makes a commit due."""
        return max(0.0, self._began + self._rules.max_seconds - time.monotonic())

    def wants(self, sample: Sample) -> bool:
        """Whether a video is to be decoded."""
        return sample.start_offset >= self._start

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
        is_unchanged = cut is not None and not self._ready and not self.receipts
        if self.task.continues_cut and is_unchanged:
            return
        while not self.is_final:
            self._commit(max(end_offset, self._start), final=True, cut=cut)

    def _commit(self, end_offset: int, *, final: bool, cut: str | None) -> None:
        span = Span(
            segment=self._segment,
            generation=self.task.generation,
            start_offset=self._start,
            end_offset=end_offset,
            final=final,
            cut_reason=cut,
        )
        holds = self._committer.commit(span, list(self._ready), began=self._began)
        self.receipts.append(holds)
        self._on_commit(holds)
        self._segment, self._start = holds.segment + 1, holds.end_offset
        self._ready = deque(v for v in self._ready if v.sample.start_offset >= self._start)
        self._clips = sum(video.num_clips for video in self._ready)
        self._original_bytes = sum(len(video.original) for video in self._ready)
        self._began = time.monotonic()
