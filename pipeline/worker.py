"""A worker turns shards into committed segments: readers, decoder children, batcher, encoder.

It runs without Ray: `inline` calls it in this process, `actors` wraps it in an actor. Several
shards are open at once, one thread each; all share the decoder pool, the batcher and the model.
What waits where is bounded: encoded video in bytes, frames by the decoders' rings and two batches.
"""

from __future__ import annotations

import itertools
import json
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.amendments import AmendmentWriter
from pipeline.batcher import ClipBatcher, GathersClips, Rows
from pipeline.committer import Committer, SegmentWriter
from pipeline.decode_pool import (
    ClipDecoded,
    DecodePool,
    Event,
    VideoDecoded,
    VideoFailed,
    VideoRetried,
)
from pipeline.encode import ClipEncoder, Encoder, EncoderSpec
from pipeline.errors import RunError, ShardError, VideoError, WorkerLost
from pipeline.fingerprint import differences
from pipeline.intake import ByteBudget, ShardReading
from pipeline.reader import ReadRules, source_of
from pipeline.receipts import Receipt
from pipeline.records import ClipPlan, SamplingMode, VideoLimits
from pipeline.segments import CommitRules, OpenVideo, ShardTask
from pipeline.storage import Storage
from pipeline.streams import StreamBatcher

logger = logging.getLogger(__name__)

EVENT_SECONDS = 0.01
"""Longest wait for a decoder's message before batches are looked at again."""
MAX_OPEN_VIDEOS = 64
"""Videos of one worker that are read and not yet decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs to know; picklable."""

    encoder: EncoderSpec
    plan: ClipPlan
    limits: VideoLimits
    read_rules: ReadRules
    read_ahead_bytes: int
    decoders: int
    commit_rules: CommitRules
    output_root: str
    output_options: Mapping[str, Any]
    input_options: Mapping[str, Any]
    strict_numerics: bool
    """Refuse to write tokens of another numeric environment into OUT."""


@dataclass(slots=True)
class Counters:
    """What a worker has done so far; read by the driver now and then."""

    videos: int = 0
    clips: int = 0
    quarantined: int = 0
    filtered: int = 0
    segments: int = 0
    token_bytes: int = 0
    covered: int = 0
    """Bytes of tars, or members of buckets, that are done with."""
    source_seconds: float = 0.0
    decode_cpu_seconds: float = 0.0
    encode_seconds: float = 0.0
    starved_seconds: float = 0.0
    """Time that the encoder waited for clips while shards were open."""
    decoder_restarts: int = 0


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
        self._temporary = tempfile.TemporaryDirectory(prefix="vidtok-")
        self._scratch = self.storage.scratch(Path(self._temporary.name))
        self._pool = DecodePool(num_children=spec.decoders, plan=spec.plan, limits=spec.limits)
        self._batcher: GathersClips = (
            StreamBatcher(spec.encoder.batch_clips, spec.plan.time_factor)
            if spec.plan.mode is SamplingMode.whole
            else ClipBatcher(spec.encoder.batch_clips)
        )
        self._batches: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._budget = ByteBudget(spec.read_ahead_bytes, MAX_OPEN_VIDEOS)
        self._tickets = itertools.count()
        self._decoding: dict[int, OpenVideo] = {}
        self._num_readers = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._broken: BaseException | None = None
        self.counters = Counters()
        self._threads = [
            threading.Thread(target=self._guarded, args=(step,), name=step.__name__, daemon=True)
            for step in (self._collect, self._encode)
        ]
        for thread in self._threads:
            thread.start()

    def run_shard(self, task: ShardTask) -> list[Receipt]:
        """Turn what is left of a shard into committed segments.

        Returns:
            The receipts that hold, of this attempt or of a faster one; the last one is final.

        Raises:
            ShardError: this attempt failed; committed segments stay.
            RunError: no attempt can succeed.
        """
        shard = task.shard
        source = source_of(shard, self._spec.input_options)
        if task.source is not None and source != task.source:
            raise ShardError(
                shard.name, f"{shard.url} has changed since its first segments were made"
            )
        committer = Committer(
            shard,
            source=source,
            storage=self.storage,
            scratch=self._scratch,
            rules=self._spec.commit_rules,
            token_format=self._spec.encoder.token_format,
            numerics=self._encoder.numerics,
        )
        receipts: list[Receipt] = []
        if task.amends:
            amender = AmendmentWriter(task, committer, self.storage, self._count_segment)
            receipts += self._fill(amender, amender.end_offset) if amender.end_offset else []
        if task.goes_on:
            rules = self._spec.commit_rules
            receipts += self._fill(SegmentWriter(task, committer, rules, self._count_segment))
        return receipts

    def _fill(
        self, writer: SegmentWriter | AmendmentWriter, end_offset: int | None = None
    ) -> list[Receipt]:
        """Read the videos that a writer wants, tokenise them, and let it commit them."""
        reading = ShardReading(
            writer.task,
            rules=self._spec.read_rules,
            options=self._spec.input_options,
            wants=writer.wants,
            end_offset=end_offset,
            submit=self._submit,
            on_end=self._reader_ended,
        )
        with self._changed:
            self._num_readers += 1
        reading.start()
        try:
            while (video := self._next_done(reading, writer)) is not None:
                self._count_video(video)
                writer.add(video)
            assert reading.end is not None
            writer.finish(reading.end.offset, reading.end.cut)
        finally:
            reading.abandoned.set()
        return writer.receipts

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

    def _count_video(self, video: OpenVideo) -> None:
        """Counted when it is done, so that progress shows between commits."""
        sample, summary = video.sample, video.summary
        with self._changed:
            counters = self.counters
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

    def snapshot(self) -> dict[str, float]:
        """The counters as they stand."""
        with self._changed:
            self.counters.decoder_restarts = self._pool.num_restarts
            return asdict(self.counters)

    def _next_done(
        self, reading: ShardReading, writer: SegmentWriter | AmendmentWriter
    ) -> OpenVideo | None:
        """The shard's next video in input order, done; None after the last one."""
        while True:
            with self._changed:
                if isinstance(self._broken, RunError):
                    raise self._broken
                if self._broken is not None:
                    raise WorkerLost(
                        reading.task.shard.name, f"worker failed: {self._broken!r}"
                    ) from (self._broken)
                if self._stopped.is_set():
                    raise WorkerLost(reading.task.shard.name, "the worker was closed")
                if reading.failure is not None:
                    raise reading.failure
                if reading.videos and reading.videos[0].is_done:
                    return reading.videos.popleft()
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

    def _reader_ended(self) -> None:
        """A shard's reader supplies nothing more."""
        with self._changed:
            self._num_readers -= 1
            self._changed.notify_all()

    def _collect(self) -> None:
        """Take clips from the decoders into batches, and hand batches to the encoder."""
        while not self._stopped.is_set():
            self._take(self._pool.next_event(EVENT_SECONDS))
            while (batch := self._next_batch()) is not None:
                self._hand_over(batch)

    def _take(self, event: Event | None) -> None:
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
                self._keep(self._batcher.encoded(batch, result))
                self._changed.notify_all()

    def _keep(self, rows: Rows) -> None:
        for video, clip in rows:
            video.clips[clip.fps, clip.clip_index] = clip


def check_numerics(storage: Storage, numerics: Mapping[str, Any], *, strict: bool) -> None:
    """Compare with the environment of the first worker that ever wrote to this OUT.

    Raises:
        RunError: they differ, and ``numerics=strict``.
    """
    name = "numerics.json"
    if storage.put_if_absent(name, json.dumps(dict(numerics), indent=1).encode()):
        return
    differing = differences(json.loads(storage.read(name)), numerics)
    if not differing:
        return
    changes = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in differing.items())
    text = f"{storage} holds tokens of another numeric environment: {changes}"
    if strict:
        raise RunError(f"{text}; refused by numerics=strict")
    logger.warning("%s; tokens may differ in the last bits", text)
