"""A worker turns shards into committed segments: readers, decoder children, batcher, encoder.

It runs without Ray: `inline` calls it in this process, `actors` wraps it in an actor. Several
shards are open at once, one thread each; all share the decoder pool, the batcher and the model.
What waits where is bounded: encoded video in bytes, frames by the decoders' rings and two batches.
"""

from __future__ import annotations

import itertools
import logging
import queue
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.amendments import AmendmentWriter
from pipeline.attempts import Wish, WorkerReport
from pipeline.batcher import ClipBatcher, GathersClips, Rows
from pipeline.canary import Canary
from pipeline.committer import Committer, SegmentWriter
from pipeline.counters import Counters
from pipeline.decode_events import ClipDecoded, Event, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.encode import ClipEncoder, Encoder
from pipeline.errors import (
    Abandoned,
    HandedBack,
    PipelineError,
    RunError,
    ShardError,
    VideoError,
    WorkerExpelled,
    WorkerLost,
)
from pipeline.intake import ByteBudget, OpenAttempt, ShardReading
from pipeline.numerics import check_numerics
from pipeline.ranges import RangeBuffers
from pipeline.reader import Source, source_of
from pipeline.receipts import Receipt
from pipeline.records import CanaryMode, SamplingMode
from pipeline.segments import OpenVideo, ShardTask
from pipeline.steering import Steering
from pipeline.storage import Storage
from pipeline.streams import StreamBatcher
from pipeline.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

EVENT_SECONDS = 0.01
"""Longest wait for a decoder's message before batches are looked at again."""
MAX_OPEN_VIDEOS = 64
"""Videos of one worker that are read and not yet decoded."""


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
        self._temporary = tempfile.TemporaryDirectory(prefix="vidtok-")
        self._scratch = self.storage.scratch(Path(self._temporary.name))
        self._pool = DecodePool(num_children=spec.decoders, plan=spec.plan, limits=spec.limits)
        self._batcher: GathersClips = (
            StreamBatcher(spec.encoder.batch_clips, spec.plan.time_factor)
            if spec.plan.mode is SamplingMode.whole
            else ClipBatcher(spec.encoder.batch_clips)
        )
        self._batches: queue.Queue[Any] = queue.Queue(maxsize=1)
        """What the encoder thread does next: batches, and wishes for a canary."""
        self._budget = ByteBudget(spec.read_ahead_bytes // 2, MAX_OPEN_VIDEOS)
        self._buffers = RangeBuffers(spec.read_ahead_bytes // 2, spec.range_bytes)
        self._tickets = itertools.count()
        self._decoding: dict[int, OpenVideo] = {}
        self._open: dict[str, OpenAttempt] = {}
        self._num_readers = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._broken: BaseException | None = None
        self.counters = Counters()
        self._steering = Steering(self._pool, self.counters, most=spec.most_decoders)
        self._threads = [
            threading.Thread(target=self._guarded, args=(step,), name=step.__name__, daemon=True)
            for step in (self._collect, self._encode)
        ]
        for thread in self._threads:
            thread.start()

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
            vouch=self._vouch,
        )
        with self._changed:
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
            with self._changed:
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
            wants=writer.wants,
            end_offset=end_offset,
            open_attempt=self._open[writer.task.attempt],
            submit=self._submit,
            count=self._count_readers,
        )
        with self._changed:
            self._num_readers += 1
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
        with self._changed:
            if attempt in self._open:
                self._open[attempt].wish = wish
            self._changed.notify_all()

    @property
    def is_broken(self) -> bool:
        """Whether one of its threads failed, so that no shard can go on here."""
        return self._broken is not None

    def close(self) -> None:
        """Stop the threads and the children; open ``run_shard`` calls raise."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=60)
        self._pool.close()
        self._temporary.cleanup()
        if self.storage.is_local and self._scratch.exists() and not any(self._scratch.iterdir()):
            self._scratch.rmdir()

    def _count_video(self, video: OpenVideo, reading: ShardReading) -> None:
        """Counted when it is done, so that progress shows between commits."""
        sample, summary = video.sample, video.summary
        with self._changed:
            counters = self.counters
            reading.open_attempt.covered = sample.end_offset - reading.task.start_offset
            counters.videos += 1
            counters.clips += video.num_clips
            counters.quarantined += video.failure is not None
            counters.covered += sample.end_offset - sample.start_offset
            if summary is not None:
                counters.filtered += sum(summary.filtered.values())
                counters.source_seconds += summary.source.duration_seconds
                counters.decode_cpu_seconds += summary.decode_seconds

    def _count_segment(self, receipt: Receipt) -> None:
        with self._changed:
            self.counters.segments += 1
            self.counters.token_bytes += receipt.part_bytes

    def report(self) -> WorkerReport:
        """The counters as they stand, and how far open shards are."""
        with self._changed:
            self._steering.measure()
            return WorkerReport(
                counters=asdict(self.counters),
                covered={attempt: one.covered for attempt, one in self._open.items()},
            )

    def _vouch(self) -> None:
        """Have the encoder's arithmetic checked behind everything that it has encoded so far.

        Raises:
            WorkerExpelled: it is wrong.
            WorkerLost: the worker was closed meanwhile.
        """
        if self._spec.canary is not CanaryMode.commit:
            return
        wish: Future[None] = Future()
        self._hand_over(wish)
        while not self._stopped.is_set():
            try:
                return wish.result(timeout=0.5)
            except TimeoutError:
                continue
        self._raise_if_broken("canary")
        raise WorkerLost("worker", "closed")

    def _raise_if_broken(self, place: str) -> None:
        """What ended one of the threads, in whatever shard it is noticed."""
        if isinstance(self._broken, (RunError, WorkerExpelled)):
            raise self._broken
        if self._broken is not None:
            raise WorkerLost(place, f"worker failed: {self._broken!r}") from self._broken

    def _next_done(
        self, reading: ShardReading, writer: SegmentWriter | AmendmentWriter
    ) -> OpenVideo | None:
        """The shard's next video in input order, done; None after the last one.

        Also None when the attempt is to be handed back: what is done has been given out.
        """
        shard = reading.task.shard.name
        while True:
            with self._changed:
                self._raise_if_broken(shard)
                if self._stopped.is_set():
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
                self._changed.wait(timeout=max(0.01, min(5.0, writer.seconds_to_commit)))
            if writer.seconds_to_commit == 0:
                writer.commit_due()

    # --- threads that all shards share -------------------------------------------------------

    def _guarded(self, step: Any) -> None:
        """Run a thread's loop; what it raises ends every open shard."""
        try:
            step()
        except BaseException as error:
            logger.exception("worker thread %s failed", step.__name__)
            with self._changed:
                self._broken = error
                self._changed.notify_all()
            self._stopped.set()

    def _submit(self, video: OpenVideo) -> None:
        """Hand a video to the decoders; waits while too much is in hand."""
        self._budget.take(len(video.original), self._stopped)
        with self._changed:
            ticket = next(self._tickets)
            self._decoding[ticket] = video
        self._pool.submit(ticket, video.original)

    def _count_readers(self, change: int) -> None:
        """Readers that supply videos are more or fewer now."""
        with self._changed:
            self._num_readers += change
            self._changed.notify_all()

    def _collect(self) -> None:
        """Take clips from the decoders into batches, and hand batches to the encoder."""
        while not self._stopped.is_set():
            self._take(self._pool.next_event(EVENT_SECONDS))
            self._steering.look()
            while (batch := self._next_batch()) is not None:
                self._hand_over(batch)

    def _take(self, event: Event | None) -> None:
        self.counters.events += event is not None
        if isinstance(event, ClipDecoded):
            with self._changed:
                self._batcher.add(self._decoding[event.ticket], event.clip, event.release)
        elif isinstance(event, VideoRetried):
            with self._changed:
                video = self._decoding[event.ticket]
                video.tries += 1
                video.clips.clear()
                self._batcher.forget(video)
        elif event is not None:
            self._end_of_video(event)

    def _end_of_video(self, event: VideoDecoded | VideoFailed) -> None:
        with self._changed:
            video = self._decoding.pop(event.ticket)
            size = len(video.original)
            if isinstance(event, VideoDecoded):
                num_rows, rows = self._batcher.decoded(video, event.summary.num_clips)
                video.summary = replace(event.summary, num_clips=num_rows)
                video.original = b""
                self._keep(rows)
            else:
                video.failure = VideoError(event.reason, event.message)
                video.clips.clear()
                self._batcher.forget(video)
            self._changed.notify_all()
        self._budget.give_back(size)

    def _next_batch(self) -> Any:
        """A full batch; one that is not full when nobody can supply another clip for it."""
        busy = self._pool.num_busy
        is_blocked = busy > 0 and busy == self._pool.num_waiting and self._batches.empty()
        with self._changed:
            is_idle = not self._decoding and not self._num_readers
            waits = self._batcher.waits_for(is_idle=is_idle, is_blocked=is_blocked)
            return self._batcher.take(partial=not waits)

    def _hand_over(self, batch: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._batches.put(batch, timeout=0.5)
            except queue.Full:
                continue
            return

    def _encode(self) -> None:
        """Encode batches as they come and hand each clip's tokens to its video."""
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                batch = self._batches.get(timeout=0.1)
            except queue.Empty:
                batch = None
            if isinstance(batch, Future):
                self._check_arithmetic(batch)
                continue
            waited = time.monotonic() - began
            with self._changed:
                if self._num_readers or self._decoding or batch is not None:
                    self.counters.starved_seconds += waited
            if batch is None:
                continue
            began = time.monotonic()
            result = self._batcher.run(batch, self._encoder)
            with self._changed:
                self.counters.encode_seconds += time.monotonic() - began
                self.counters.encoded_clips += len(result)
                self._note_start()
                self._keep(self._batcher.encoded(batch, result))
                self._changed.notify_all()

    def _check_arithmetic(self, wish: Future[None]) -> None:
        """Let the canary answer whoever waits for it; a wrong answer ends the worker."""
        try:
            self._canary.check()
        except PipelineError as error:
            wish.set_exception(error)
            raise
        self.counters.canaries += 1
        wish.set_result(None)

    def _note_start(self) -> None:
        if not self.counters.first_encoded_at_seconds:
            now = time.time()
            self.counters.first_encoded_at_seconds = self.counters.last_started_at_seconds = now

    def _keep(self, rows: Rows) -> None:
        for video, clip in rows:
            video.clips[clip.fps, clip.clip_index] = clip
