"""A worker turns shards into committed segments: readers, decoder children, batcher, encoder.

It runs without Ray: `inline` calls it in this process, `actors` wraps it in an actor. Several
shards are open at once, one thread each; decoders, batches and the model they share (``flow``).
What waits where is bounded: encoded video in bytes, frames by the decoders' rings and two batches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.amendments import AmendmentWriter
from pipeline.attempts import Wish, WorkerReport
from pipeline.canary import Canary
from pipeline.committer import Committer, SegmentWriter
from pipeline.encode import ClipEncoder, Encoder
from pipeline.errors import Abandoned, HandedBack, ShardError, WorkerLost
from pipeline.flow import Flow
from pipeline.intake import OpenAttempt, ShardReading
from pipeline.numerics import check_numerics
from pipeline.ranges import RangeBuffers
from pipeline.reader import Source, source_of
from pipeline.receipts import Receipt
from pipeline.segments import OpenVideo, ShardTask
from pipeline.selection import Selection
from pipeline.storage import Storage
from pipeline.worker_spec import WorkerSpec


class Worker:
    """Runs shards; ``run_shard`` may be called from several threads at once."""

    def __init__(self, spec: WorkerSpec, encoder: Encoder | None = None) -> None:
        """Load the model and start the decoder children.

        Args:
            spec: everything it needs to know.
            encoder: instead of the VidTok encoder of ``spec``.
        """
        self._spec = spec
        self._encoder: Encoder = encoder or ClipEncoder(spec.encoder)
        self.storage = Storage(spec.output_root, spec.output_options)
        check_numerics(self.storage, self._encoder.numerics, strict=spec.strict_numerics)
        self._canary = Canary(self._encoder, spec.encoder, mode=spec.canary)
        self._canary.start(self.storage)
        self._selection = Selection(spec.selection)
        self._temporary = tempfile.TemporaryDirectory(prefix="vidtok-")
        self._scratch = self.storage.scratch(Path(self._temporary.name))
        self._buffers = RangeBuffers(spec.read_ahead_bytes // 2, spec.range_bytes)
        self._open: dict[str, OpenAttempt] = {}
        self._flow = Flow(spec, self._encoder, self._canary)

    def run_shard(self, task: ShardTask) -> list[Receipt]:
        """Turn what is left of a shard into committed segments.

        Returns:
            The receipts that hold, of this attempt or of a faster one.

        Raises:
            HandedBack: it was asked to end early; what was done is committed.
            ShardError: this attempt failed; committed segments stay.
            WorkerExpelled: this worker's arithmetic is wrong; what it did since its last canary
                is not committed.
            RunError: no attempt can succeed.
        """
        shard = task.shard
        source = source_of(shard, self._spec.input_options)
        if task.source is not None and source != task.source:
            raise ShardError(
                shard.name, f"{shard.url} has changed since its first segments were made"
            )
        committer = Committer(
            task,
            source=source,
            storage=self.storage,
            scratch=self._scratch,
            rules=self._spec.commit_rules,
            token_format=self._spec.encoder.token_format,
            numerics=self._encoder.numerics,
            vouch=self._flow.vouch,
        )
        with self._flow.changed:
            self._open[task.attempt] = OpenAttempt()
        receipts: list[Receipt] = []
        try:
            if task.amends:
                amender = AmendmentWriter(task, committer, self.storage, self._count_segment)
                if amender.end_offset:
                    receipts += self._fill(amender, source, amender.end_offset)
            if task.goes_on:
                rules = self._spec.commit_rules
                writer = SegmentWriter(task, committer, rules, self._count_segment)
                receipts += self._fill(writer, source)
        finally:
            with self._flow.changed:
                del self._open[task.attempt]
        return receipts

    def _fill(
        self,
        writer: SegmentWriter | AmendmentWriter,
        source: Source,
        end_offset: int | None = None,
    ) -> list[Receipt]:
        """Read the videos that a writer wants, tokenise them, and let it commit them."""
        reading = ShardReading(
            writer.task,
            source=source,
            rules=self._spec.read_rules,
            buffers=self._buffers,
            options=self._spec.input_options,
            selection=self._selection,
            wants=writer.wants,
            end_offset=end_offset,
            open_attempt=self._open[writer.task.attempt],
            submit=self._flow.submit,
            count=self._flow.count_readers,
        )
        self._flow.count_readers(1)
        reading.start()
        try:
            while (video := self._next_done(reading, writer)) is not None:
                self._count_video(video, reading)
                writer.add(video)
            if reading.open_attempt.wish is Wish.hand_back:
                writer.commit_due()
                raise HandedBack(writer.task.shard.name, "handed back as asked")
            assert reading.end is not None
            writer.finish(reading.end.offset, reading.end.cut)
        finally:
            reading.abandoned.set()
        return writer.receipts

    def ask(self, attempt: str, wish: Wish) -> None:
        """Ask something of an open attempt; without effect when it has ended."""
        with self._flow.changed:
            if attempt in self._open:
                self._open[attempt].wish = wish
            self._flow.changed.notify_all()

    @property
    def is_broken(self) -> bool:
        """Whether one of its threads failed, so that no shard can go on here."""
        return self._flow.is_broken

    def close(self) -> None:
        """Stop the threads and the children; open ``run_shard`` calls raise."""
        self._flow.close()
        self._selection.close()
        self._temporary.cleanup()
        if self.storage.is_local and self._scratch.exists() and not any(self._scratch.iterdir()):
            self._scratch.rmdir()

    def _count_video(self, video: OpenVideo, reading: ShardReading) -> None:
        """Counted when it is done, so that progress shows between commits."""
        sample, summary = video.sample, video.summary
        with self._flow.changed:
            counters = self._flow.counters
            reading.open_attempt.covered = sample.end_offset - reading.task.start_offset
            counters.videos += 1
            counters.clips += video.num_clips
            counters.quarantined += video.failure is not None
            counters.covered += sample.end_offset - sample.start_offset
            counters.filtered += sum(video.filtered.values())
            if summary is not None:
                counters.source_seconds += summary.source.duration_seconds
                counters.decode_cpu_seconds += summary.decode_seconds

    def _count_segment(self, receipt: Receipt) -> None:
        with self._flow.changed:
            self._flow.counters.segments += 1
            self._flow.counters.token_bytes += receipt.part_bytes

    def report(self) -> WorkerReport:
        """The counters as they stand, and how far open shards are."""
        with self._flow.changed:
            return WorkerReport(
                counters=self._flow.measured(),
                covered={attempt: one.covered for attempt, one in self._open.items()},
            )

    def _next_done(
        self, reading: ShardReading, writer: SegmentWriter | AmendmentWriter
    ) -> OpenVideo | None:
        """The shard's next video in input order, done; None after the last one.

        Also None when the attempt is to be handed back: what is done has been given out.
        """
        shard = reading.task.shard.name
        while True:
            with self._flow.changed:
                self._flow.raise_if_broken(shard)
                if self._flow.stopped.is_set():
                    raise WorkerLost(shard, "the worker was closed")
                if reading.open_attempt.wish is Wish.abandon:
                    raise Abandoned(shard, "another attempt has finished it")
                if reading.failure is not None:
                    raise reading.failure
                if reading.videos and reading.videos[0].is_done:
                    return reading.videos.popleft()
                if reading.open_attempt.wish is Wish.hand_back:
                    return None
                if reading.end is not None and not reading.videos:
                    return None
                # woken by whatever happens to any shard: the time is looked at every time
                self._flow.changed.wait(timeout=max(0.01, min(5.0, writer.seconds_to_commit)))
            if writer.seconds_to_commit == 0:
                writer.commit_due()
