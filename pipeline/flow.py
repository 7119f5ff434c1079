"""What all open shards of a worker share: decoder children, encoders, their threads.

A video goes in by ``submit`` and is done when its tokens, or the reason why there are none, are in
it; whoever waits for that waits on ``changed``. It is decoded once, for all outputs that want it.
One thread takes clips from the decoders to the encoding halves (``encoding``), one per output.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipeline.canary import Canary
from pipeline.decode_events import ClipDecoded, Event, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.encode import Encoder
from pipeline.encoding import Encoding
from pipeline.errors import RunError, VideoError, WorkerExpelled, WorkerLost
from pipeline.intake import ByteBudget
from pipeline.segments import OpenVideo
from pipeline.steering import Steering
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
        models: of every output its encoder, and what checks that one's arithmetic.
    """

    def __init__(self, spec: WorkerSpec, models: Sequence[tuple[Encoder, Canary]]) -> None:
        plans = tuple(one.plan for one in spec.each())
        self._pool = DecodePool(num_children=spec.decoders, plans=plans, limits=spec.limits)
        self._budget = ByteBudget(spec.read_ahead_bytes // 2, MAX_OPEN_VIDEOS)
        self._tickets = itertools.count()
        self._decoding: dict[int, _Decoding] = {}
        self._num_readers = 0
        self.changed = threading.Condition()
        """Notified whenever something happens to any video."""
        self.stopped = threading.Event()
        self._broken: BaseException | None = None
        self.encodings = [
            Encoding(
                one,
                encoder,
                canary,
                changed=self.changed,
                stopped=self.stopped,
                is_open=lambda: bool(self._num_readers or self._decoding),
            )
            for one, (encoder, canary) in zip(spec.each(), models, strict=True)
        ]
        """By output."""
        self._steering = Steering(
            self._pool, [one.counters for one in self.encodings], most=spec.most_decoders
        )
        steps = [one.encode for one in self.encodings for _ in range(one.num_threads)]
        self._threads = [
            threading.Thread(target=self._guarded, args=(step,), name=step.__name__, daemon=True)
            for step in (self._collect, *steps)
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

    def submit(self, videos: Mapping[int, OpenVideo]) -> None:
        """Hand a video to the decoders; waits while too much is in hand.

        Args:
            videos: the same video for every output that wants it.
        """
        video = next(iter(videos.values()))
        size = len(video.original)
        self._budget.take(size, self.stopped)
        with self.changed:
            ticket = next(self._tickets)
            self._decoding[ticket] = _Decoding(dict(videos), size)
        self._pool.submit(
            ticket,
            video.original,
            video.time_spans,
            is_image=video.sample.is_image,
            outputs=tuple(sorted(videos)),
        )

    def count_readers(self, change: int) -> None:
        """Readers that supply videos are more or fewer now."""
        with self.changed:
            self._num_readers += change
            self.changed.notify_all()

    def vouch(self, output: int) -> None:
        """Have an encoder's arithmetic checked behind everything that it has encoded so far.

        Raises:
            WorkerExpelled: it is wrong.
            WorkerLost: the worker was closed meanwhile.
        """
        wish = self.encodings[output].wish_for_canary()
        if wish is None:
            return
        while not self.stopped.is_set():
            try:
                return wish.result(timeout=0.5)
            except TimeoutError:
                continue
        self.raise_if_broken("canary")
        raise WorkerLost("worker", "closed")

    def measured(self) -> list[dict[str, float]]:
        """The counters of every output as they stand; to be called with ``changed`` held."""
        self._steering.measure()
        return [asdict(one.counters) for one in self.encodings]

    def close(self) -> None:
        """Stop the threads and the children."""
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=60)
        self._pool.close()

    # ---- its own thread ----

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
        """Take clips from the decoders to the encodings, and have them encode what is full."""
        while not self.stopped.is_set():
            self._take(self._pool.next_event(EVENT_SECONDS))
            self._steering.look()
            for encoding in self.encodings:
                while (batch := self._next_batch(encoding)) is not None:
                    encoding.hand_over(batch)

    def _take(self, event: Event | None) -> None:
        if event is None:
            return
        with self.changed:
            self.encodings[0].counters.events += 1
            decoding = self._decoding[event.ticket]
            if isinstance(event, ClipDecoded):
                video = decoding.videos[event.output]
                self.encodings[event.output].add(video, event.clip, event.release)
            elif isinstance(event, VideoRetried):
                for output in event.outputs:
                    decoding.videos[output].tries += 1
                    self.encodings[output].forget(decoding.videos[output])
            else:
                self._end_of_video(event, decoding)

    def _end_of_video(self, event: VideoDecoded | VideoFailed, decoding: _Decoding) -> None:
        """One output has all its clips of a video, or gets none."""
        video, encoding = decoding.videos.pop(event.output), self.encodings[event.output]
        if isinstance(event, VideoDecoded):
            num_rows = encoding.decoded(video, event.summary.num_clips)
            video.summary = replace(event.summary, num_clips=num_rows)
            video.original = b""
        else:
            video.failure = VideoError(event.reason, event.message)
            encoding.forget(video)
        if not decoding.videos:
            del self._decoding[event.ticket]
            self._budget.give_back(decoding.size)
        self.changed.notify_all()

    def _next_batch(self, encoding: Encoding) -> Any:
        busy = self._pool.num_busy
        is_blocked = busy > 0 and busy == self._pool.num_waiting
        with self.changed:
            is_idle = not self._decoding and not self._num_readers
            return encoding.next_batch(is_idle=is_idle, is_blocked=is_blocked)


class _Decoding:
    """A video that decoders have."""

    def __init__(self, videos: dict[int, OpenVideo], size: int) -> None:
        self.videos, self.size = videos, size
