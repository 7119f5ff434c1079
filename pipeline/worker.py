"""A worker turns shards into committed segments: readers, decoder children, encoders, committers.

It runs without Ray: `inline` calls it in this process, `actors` wraps it in an actor. Several
shards are open at once, one thread each; decoders, batches and models they share (``flow``).
What waits where is bounded: encoded video in bytes, frames by the decoders' rings and two batches.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.amendments import AmendmentWriter
from pipeline.attempts import Wish, WorkerReport, joint
from pipeline.canary import Canary
from pipeline.committer import Committer, SegmentWriter
from pipeline.encode import ClipEncoder, Encoder
from pipeline.errors import Abandoned, HandedBack, PipelineError, ShardError, WorkerLost
from pipeline.flow import Flow
from pipeline.intake import Lane, OpenAttempt, ShardReading
from pipeline.numerics import check_numerics
from pipeline.ranges import RangeBuffers
from pipeline.reader import Source, source_of
from pipeline.receipts import Receipt
from pipeline.segments import OpenVideo, ShardTask
from pipeline.selection import Selection
from pipeline.storage import Storage
from pipeline.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

Writer = SegmentWriter | AmendmentWriter


class OpenOutput:
    """One output of a worker: its OUT, its model, and the canary that checks the model."""

    def __init__(self, spec: WorkerSpec, encoder: Encoder | None) -> None:
        """Load the model, and check that it computes as the run's others do.

        Args:
            spec: of the output.
            encoder: instead of the VidTok encoder of ``spec``.
        """
        self.spec = spec
        self.encoder: Encoder = encoder or ClipEncoder(spec.encoder)
        self.storage = Storage(spec.output_root, spec.output_options)
        check_numerics(self.storage, self.encoder.numerics, strict=spec.strict_numerics)
        self.canary = Canary(self.encoder, spec.encoder, mode=spec.canary)
        self.canary.start(self.storage)


class Worker:
    """Runs shards; ``run_shard`` may be called from several threads at once."""

    def __init__(self, spec: WorkerSpec, encoder: Encoder | None = None) -> None:
        """Load the models and start the decoder children.

        Args:
            spec: everything it needs to know.
            encoder: instead of the VidTok encoders of ``spec``, for every output.
        """
        self._spec = spec
        self._outputs = [OpenOutput(one, encoder) for one in spec.each()]
        self._selection = Selection(spec.selection)
        self._temporary = tempfile.TemporaryDirectory(prefix="vidtok-")
        folder = Path(self._temporary.name)
        self._scratches = [
            one.storage.scratch(folder / str(number)) for number, one in enumerate(self._outputs)
        ]
        self._buffers = RangeBuffers(spec.read_ahead_bytes // 2, spec.range_bytes)
        self._open: dict[str, OpenAttempt] = {}
        self._flow = Flow(spec, [(one.encoder, one.canary) for one in self._outputs])

    @property
    def storage(self) -> Storage:
        """OUT, of several outputs the first one's."""
        return self._outputs[0].storage

    def run_shard(self, task: ShardTask) -> list[Receipt]:
        """Turn what is left of a shard into committed segments, for every output.

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
        tasks = task.each()
        if any(one.source is not None and one.source != source for one in tasks):
            raise ShardError(
                shard.name, f"{shard.url} has changed since its first segments were made"
            )
        committers = [self._committer(one, source) for one in tasks]
        with self._flow.changed:
            self._open[task.attempt] = OpenAttempt()
        receipts: list[Receipt] = []
        try:
            for one, committer in zip(tasks, committers, strict=True):
                if one.amends:
                    receipts += self._amend(one, committer, source)
            writers: list[Writer] = [
                self._segment_writer(one, committer)
                for one, committer in zip(tasks, committers, strict=True)
                if one.goes_on
            ]
            if writers:
                receipts += self._fill(writers, source)
        finally:
            with self._flow.changed:
                del self._open[task.attempt]
        return receipts

    def _committer(self, task: ShardTask, source: Source) -> Committer:
        """What commits the segments of an attempt for one output."""
        output = self._outputs[task.output]
        return Committer(
            task,
            source=source,
            storage=output.storage,
            scratch=self._scratches[task.output],
            rules=output.spec.commit_rules,
            token_format=output.spec.encoder.token_format,
            numerics=output.encoder.numerics,
            vouch=partial(self._flow.vouch, task.output),
        )

    def _segment_writer(self, task: ShardTask, committer: Committer) -> SegmentWriter:
        rules = self._outputs[task.output].spec.commit_rules
        return SegmentWriter(task, committer, rules, partial(self._count_segment, task.output))

    def _amend(self, task: ShardTask, committer: Committer, source: Source) -> list[Receipt]:
        """Try quarantined videos of one output again: each has its own, and they are few."""
        storage = self._outputs[task.output].storage
        count = partial(self._count_segment, task.output)
        rules = self._outputs[task.output].spec.commit_rules
        amender = AmendmentWriter(task, committer, storage, rules, count)
        if not amender.end_offset:
            return []
        return self._fill([amender], source, amender.end_offset)

    def _fill(
        self, writers: Sequence[Writer], source: Source, end_offset: int | None = None
    ) -> list[Receipt]:
        """Read the videos that writers want, tokenise them, and let them commit them."""
        attempt = writers[0].task.attempt
        lanes = [Lane(writer.task, writer.wants) for writer in writers]
        reading = ShardReading(
            lanes,
            source=source,
            rules=self._spec.read_rules,
            buffers=self._buffers,
            options=self._spec.input_options,
            selection=self._selection,
            end_offset=end_offset,
            open_attempt=self._open[attempt],
            submit=self._flow.submit,
            count=self._flow.count_readers,
        )
        self._flow.count_readers(1)
        reading.start()
        try:
            while (place := self._next_done(reading, writers)) is not None:
                video = lanes[place].videos.popleft()
                self._count_video(video, lanes[place], reading)
                writers[place].add(video)
            if reading.open_attempt.wish is Wish.hand_back:
                for writer in writers:
                    writer.commit_due()
                raise HandedBack(reading.task.shard.name, "handed back as asked")
            assert reading.end is not None
            _finish(writers, reading.end.offset, reading.end.cut)
        finally:
            reading.abandoned.set()
        return [receipt for writer in writers for receipt in writer.receipts]

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
        for one, scratch in zip(self._outputs, self._scratches, strict=True):
            if one.storage.is_local and scratch.exists() and not any(scratch.iterdir()):
                scratch.rmdir()

    def _count_video(self, video: OpenVideo, lane: Lane, reading: ShardReading) -> None:
        """Counted when it is done, so that progress shows between commits."""
        sample, summary = video.sample, video.summary
        with self._flow.changed:
            counters = self._flow.encodings[lane.task.output].counters
            lane.done_offset = sample.end_offset
            reading.open_attempt.covered = reading.covered
            counters.videos += 1
            counters.clips += video.num_clips
            counters.quarantined += video.failure is not None
            counters.covered += sample.end_offset - sample.start_offset
            counters.filtered += sum(video.filtered.values())
            if summary is not None:
                counters.source_seconds += summary.source.duration_seconds
                counters.decode_cpu_seconds += summary.decode_seconds

    def _count_segment(self, output: int, receipt: Receipt) -> None:
        with self._flow.changed:
            counters = self._flow.encodings[output].counters
            counters.segments += 1
            counters.token_bytes += receipt.part_bytes

    def report(self) -> WorkerReport:
        """The counters as they stand, and how far open shards are."""
        with self._flow.changed:
            outputs = self._flow.measured()
            return WorkerReport(
                counters=joint(outputs),
                outputs=tuple(outputs) if len(outputs) > 1 else (),
                covered={attempt: one.covered for attempt, one in self._open.items()},
            )

    def _next_done(self, reading: ShardReading, writers: Sequence[Writer]) -> int | None:
        """Whose next video in input order is done: its place among the lanes; None after the last.

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
                for place, lane in enumerate(reading.lanes):
                    if lane.videos and lane.videos[0].is_done:
                        return place
                if reading.open_attempt.wish is Wish.hand_back:
                    return None
                if reading.end is not None and not reading.num_ahead:
                    return None
                # woken by whatever happens to any shard: the time is looked at every time
                due = min(writer.seconds_to_commit for writer in writers)
                self._flow.changed.wait(timeout=max(0.01, min(5.0, due)))
            for writer in writers:
                if writer.seconds_to_commit == 0:
                    writer.commit_due()


def _finish(writers: Sequence[Writer], end_offset: int, cut: str | None) -> None:
    """Commit what is left for every output, also when that fails for one of them.

    Raises:
        PipelineError: what failed first.
    """
    failures: list[PipelineError] = []
    for writer in writers:
        try:
            writer.finish(end_offset, cut)
        except PipelineError as error:
            if failures:  # only the first one is raised
                logger.warning("output %d, too: %s", writer.task.output, error)
            failures.append(error)
    if failures:
        raise failures[0]
