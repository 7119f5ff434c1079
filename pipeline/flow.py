"""What all open shards of a worker share: decoder children, batches, the encoder, their threads.

A video goes in by ``submit`` and is done when its tokens, or the reason why there are none, are in
it; whoever waits for that waits on ``changed``. One thread takes clips from the decoders into
batches, one encodes them (on a GPU two: one sends its batch while the other computes).
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

from pipeline.batcher import ClipBatcher, GathersClips, Rows
from pipeline.canary import Canary
from pipeline.counters import Counters
from pipeline.decode_events import ClipDecoded, Event, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.encode import Encoder
from pipeline.errors import PipelineError, RunError, VideoError, WorkerExpelled, WorkerLost
from pipeline.intake import ByteBudget
from pipeline.reconstruction import Reconstructions
from pipeline.records import CanaryMode, SamplingMode
from pipeline.segments import OpenVideo
from pipeline.steering import Steering
from pipeline.streams import StreamBatcher
from pipeline.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

EVENT_SECONDS = 0.01
"""Longest wait for a decoder's message before batches are looked at again."""
MAX_OPEN_VIDEOS = 64
"""Videos of one worker that are read and not yet decoded."""


class Flow:
    """From encoded videos to tokens; to be closed.

    Args:
        spec: the worker's.
        encoder: its model.
        canary: checks the model's arithmetic.
    """

    def __init__(self, spec: WorkerSpec, encoder: Encoder, canary: Canary) -> None:
        self._encoder, self._canary, self._canary_mode = encoder, canary, spec.canary
        self._pool = DecodePool(num_children=spec.decoders, plans=(spec.plan,), limits=spec.limits)
        is_whole = spec.plan.mode is SamplingMode.whole
        looks = Reconstructions(spec.quality, encoder)
        self._batcher: GathersClips = (
            StreamBatcher(spec.encoder.batch_clips, spec.plan.time_factor, looks)
            if is_whole
            else ClipBatcher(spec.encoder.batch_clips, looks)
        )
        self._next: queue.Queue[Any] = queue.Queue(maxsize=1)
        """What an encoder thread does next: batches, and wishes for a canary."""
        self._budget = ByteBudget(spec.read_ahead_bytes // 2, MAX_OPEN_VIDEOS)
        self._tickets = itertools.count()
        self._decoding: dict[int, OpenVideo] = {}
        self._num_readers = 0
        self.changed = threading.Condition()
        """Notified whenever something happens to any video."""
        self.stopped = threading.Event()
        self._broken: BaseException | None = None
        self.counters = Counters()
        self._steering = Steering(self._pool, self.counters, most=spec.most_decoders)
        num_encoders = 1 if is_whole else getattr(encoder, "num_callers", 1)
        self._threads = [
            threading.Thread(target=self._guarded, args=(step,), name=step.__name__, daemon=True)
            for step in (self._collect, *[self._encode] * num_encoders)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_broken(self) -> bool:
        """Whether one of its threads failed, so that no shard can go on here."""
        return self._broken is not None

    def raise_if_broken(self, place: str) -> None:
        """What ended one of the threads, in whatever shard it is noticed.

        Raises:
            RunError, WorkerExpelled: as they are.
            WorkerLost: anything else.
        """
        if isinstance(self._broken, (RunError, WorkerExpelled)):
            raise self._broken
        if self._broken is not None:
            raise WorkerLost(place, f"worker failed: {self._broken!r}") from self._broken

    def submit(self, video: OpenVideo) -> None:
        """Hand a video to the decoders; waits while too much is in hand."""
        self._budget.take(len(video.original), self.stopped)
        with self.changed:
            ticket = next(self._tickets)
            self._decoding[ticket] = video
        self._pool.submit(ticket, video.original, video.time_spans, is_image=video.sample.is_image)

    def count_readers(self, change: int) -> None:
        """Readers that supply videos are more or fewer now."""
        with self.changed:
            self._num_readers += change
            self.changed.notify_all()

    def vouch(self) -> None:
        """Have the encoder's arithmetic checked behind everything that it has encoded so far.

        Raises:
            WorkerExpelled: it is wrong.
            WorkerLost: the worker was closed meanwhile.
        """
        if self._canary_mode is not CanaryMode.commit:
            return
        wish: Future[None] = Future()
        self._hand_over(wish)
        while not self.stopped.is_set():
            try:
                return wish.result(timeout=0.5)
            except TimeoutError:
                continue
        self.raise_if_broken("canary")
        raise WorkerLost("worker", "closed")

    def measured(self) -> dict[str, float]:
        """The counters as they stand; to be called with ``changed`` held."""
        self._steering.measure()
        return asdict(self.counters)

    def close(self) -> None:
        """Stop the threads and the children."""
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=60)
        self._pool.close()

    # ---- its threads ----

    def _guarded(self, step: Any) -> None:
        """Run a thread's loop; what it raises ends every open shard."""
        try:
            step()
        except BaseException as error:
            logger.exception("worker thread %s failed", step.__name__)
            with self.changed:
                self._broken = error
                self.changed.notify_all()
            self.stopped.set()

    def _collect(self) -> None:
        """Take clips from the decoders into batches, and hand batches to the encoder."""
        while not self.stopped.is_set():
            self._take(self._pool.next_event(EVENT_SECONDS))
            self._steering.look()
            while (batch := self._next_batch()) is not None:
                self._hand_over(batch)

    def _take(self, event: Event | None) -> None:
        self.counters.events += event is not None
        if isinstance(event, ClipDecoded):
            with self.changed:
                self._batcher.add(self._decoding[event.ticket], event.clip, event.release)
        elif isinstance(event, VideoRetried):
            with self.changed:
                video = self._decoding[event.ticket]
                video.tries += 1
                video.clips.clear()
                self._batcher.forget(video)
        elif event is not None:
            self._end_of_video(event)

    def _end_of_video(self, event: VideoDecoded | VideoFailed) -> None:
        with self.changed:
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
            self.changed.notify_all()
        self._budget.give_back(size)

    def _next_batch(self) -> Any:
        """A full batch; one that is not full when nobody can supply another clip for it."""
        busy = self._pool.num_busy
        is_blocked = busy > 0 and busy == self._pool.num_waiting and self._next.empty()
        with self.changed:
            is_idle = not self._decoding and not self._num_readers
            waits = self._batcher.waits_for(is_idle=is_idle, is_blocked=is_blocked)
            return self._batcher.take(partial=not waits)

    def _hand_over(self, batch: Any) -> None:
        while not self.stopped.is_set():
            try:
                self._next.put(batch, timeout=0.5)
            except queue.Full:
                continue
            return

    def _encode(self) -> None:
        """Encode batches as they come and hand each clip's tokens to its video."""
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                batch = self._next.get(timeout=0.1)
            except queue.Empty:
                batch = None
            if isinstance(batch, Future):
                self._check_arithmetic(batch)
                continue
            waited = time.monotonic() - began
            with self.changed:
                if self._num_readers or self._decoding or batch is not None:
                    self.counters.starved_seconds += waited
            if batch is None:
                continue
            began = time.monotonic()
            result = self._batcher.run(batch, self._encoder)
            with self.changed:
                self.counters.encode_seconds += time.monotonic() - began
                self.counters.encoded_clips += len(result)
                self._note_start()
                self._keep(self._batcher.encoded(batch, result))
                self.changed.notify_all()

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
