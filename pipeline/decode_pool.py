"""A pool of decoder children that survives whatever a video does to them.

One manager thread owns the children: it starts, feeds, watches, kills and reaps them, and turns
their messages into events. Callers only put videos in and take events out. (The thread lives as
long as the pool because the kernel kills a child when the *thread* that started it ends.)

A child that dies, makes no progress, takes too much or talks nonsense costs one video. That video
is tried once more, alone: by a fresh child, with twice the limits, and that child is replaced
afterwards, so that neither an earlier video can spoil the second try nor it a later one. A child
that somebody else has killed says nothing of its video, which is then simply begun again. Whenever
a video comes again, it does so for those of its outputs that have not ended.

A child whose ring is full waits for a clip to be released, for as long as it takes: that is the
back pressure, and no lack of progress.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import wait

from pipeline.decode import REASONS
from pipeline.decode_events import (
    ClipDecoded,
    Event,
    PoolUse,
    VideoDecoded,
    VideoFailed,
    VideoRetried,
)
from pipeline.decode_job import Answers, Job
from pipeline.decode_messages import Message, read_output, read_summary, receive, text
from pipeline.decode_process import ChildProcess
from pipeline.errors import RunError
from pipeline.records import ClipPlan, TimeSpan, VideoLimits, chosen_outputs, slot_bytes

CHILD_REASONS = ("no_progress", "crash", "memory")
"""Reasons of the pool, beside `pipeline.decode.REASONS`: what a video did to its child."""
MAX_SLOTS = 64
"""Clips in a ring at most: their release messages must fit the socket unread."""
MAX_FAILED_STARTS = 5
"""Children in a row that may fail to start before the pool gives up; those that somebody else
killed do not count, unless none has started for `START_SECONDS`."""
MAX_KILLS = 5
"""Children that somebody else may kill under one video before it is suspected: the kernel does so
when memory runs out."""
START_SECONDS = 120.0
"""Time a child may take to import what it needs."""
_POLL_SECONDS = 0.25


class DecodePool:
    """Decodes submitted videos in child processes; to be closed, or used as a context manager.

    Args:
        num_children: processes, each with one video at a time.
        plans: which clips to make of every video, one plan for each output.
        limits: what one video may cost.
        ring_bytes: shared memory of one child for clips that wait to be released; at least two
            clips are made to fit, and at most `MAX_SLOTS` are used.
        max_videos_per_child: a child is replaced after so many, in case decoders leak.
        max_child_rss_bytes: a child is replaced when it still holds more after a video.
        child_module: what a child runs; tests give one that misbehaves.

    ``submit`` and ``next_event`` raise `RunError` when no child can be started, and any error of
    the manager thread.
    """

    def __init__(
        self,
        *,
        num_children: int,
        plans: Sequence[ClipPlan],
        limits: VideoLimits,
        ring_bytes: int = 32 << 20,
        max_videos_per_child: int = 500,
        max_child_rss_bytes: int = 1 << 30,
        child_module: str = "pipeline.decode_child",
    ) -> None:
        if num_children < 1:
            raise ValueError(f"a decode pool needs at least 1 child, got {num_children}")
        if not plans:
            raise ValueError("a decode pool needs at least 1 plan, got none")
        self._wanted, self._plans, self._limits = num_children, tuple(plans), limits
        self._num_slots = min(MAX_SLOTS, max(2, ring_bytes // slot_bytes(plans)))
        self._max_videos, self._max_rss_bytes = max_videos_per_child, max_child_rss_bytes
        self._child_module = child_module
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._submitted: deque[Job] = deque()
        self._retries: deque[Job] = deque()
        self._children: list[ChildProcess] = []
        self._failed_starts = 0
        self._failing_since: float | None = None
        self._start_again_at = 0.0
        self._spent_at = time.monotonic()
        self._child_seconds = self._busy_seconds = self._full_seconds = 0.0
        self._peak_rss_bytes = 0
        self._watched_at = 0.0
        self._error: BaseException | None = None
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.num_restarts = 0
        """Children replaced because they died or were killed."""
        self.num_recycled = 0
        """Children replaced for their age or size."""
        self._thread = threading.Thread(target=self._run, name="decode-pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_busy(self) -> int:
        """Children that have a video."""
        return sum(child.job is not None for child in tuple(self._children))

    @property
    def num_children(self) -> int:
        """Children that are wanted; retiring ones may still be at work beside them."""
        return self._wanted

    @property
    def num_waiting(self) -> int:
        """Children whose ring is full: the callers are slower than the decoders."""
        return sum(child.job is not None and child.is_waiting for child in tuple(self._children))

    def resize(self, num_children: int) -> None:
        """Have another number of children: missing ones start at once, idle ones are retired.

        A child that is too many but has a video finishes it first.
        """
        if num_children < 1:
            raise ValueError(f"a decode pool needs at least 1 child, got {num_children}")
        self._wanted = num_children
        self._wake()

    def use(self) -> PoolUse:
        """How the children have spent their time, as of a moment ago."""
        children = tuple(self._children)
        busy = [child for child in children if child.job is not None]
        now = time.monotonic()
        return PoolUse(
            child_seconds=self._child_seconds,
            busy_seconds=self._busy_seconds + sum(now - child.began_at for child in busy),
            full_seconds=self._full_seconds + sum(child.full_seconds for child in busy),
            ring_bytes=sum(child.ring.num_bytes for child in children),
            peak_rss_bytes=max([self._peak_rss_bytes, *(c.peak_rss_bytes() for c in children)]),
        )

    def submit(
        self,
        ticket: int,
        data: bytes,
        spans: tuple[TimeSpan, ...] | None = None,
        *,
        is_image: bool = False,
        outputs: tuple[int, ...] | None = None,
    ) -> None:
        """Queue a video; never waits, so the caller bounds what is in flight.

        Args:
            ticket: names the video in events; unique among those in flight.
            data: the encoded file, kept until the video is done.
            spans: its clips lie within one of these; None: anywhere.
            is_image: it is an image: one clip of one frame.
            outputs: places of the plans that are wanted of it, ascending; None: all.
        """
        self._raise_if_broken()
        wanted = chosen_outputs(outputs, len(self._plans))
        self._submitted.append(Job(ticket, data, spans=spans, is_image=is_image, outputs=wanted))
        self._wake()

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None when none came in time. Events of one video come in order."""
        try:
            event = self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            event = None
        if event is None:
            self._raise_if_broken()
        return event

    def close(self) -> None:
        """Kill and reap every child; views of clips not yet released stay readable."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join()
        os.close(self._wake_fd)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the decode pool is closed")

    # ---- the manager thread ----

    def _run(self) -> None:
        try:
            while not self._closing:
                self._fit_number()
                self._assign()
                self._listen()
                self._watch()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = error
            self._events.put(None)
        finally:
            for child in self._children:
                child.kill()
            self._children = []

    def _fit_number(self) -> None:
        """Retire what is idle and too many or in the way of a second try; start what is missing."""
        idle = [child for child in self._children if child.is_ready and child.job is None]
        idle.sort(key=lambda child: child.num_videos, reverse=True)
        num_retired = max(0, len(self._children) - self._wanted)
        if self._retries and all(child.num_videos for child in self._children):
            num_retired = max(1, num_retired)
        for child in idle[:num_retired]:
            self._remove(child)
        while len(self._children) < self._wanted and time.monotonic() >= self._start_again_at:
            self._children.append(
                ChildProcess(self._child_module, self._plans, self._limits, self._num_slots)
            )

    def _assign(self) -> None:
        for child in self._children:
            if not child.is_ready or child.job is not None:
                continue
            if self._retries and child.num_videos == 0:
                job = self._retries.popleft()
                child.is_spent = job.factor > 1
                child.begin(job)
            elif self._submitted:
                child.begin(self._submitted.popleft())

    def _listen(self) -> None:
        by_source: dict[object, ChildProcess] = {}
        for child in self._children:
            by_source |= {child.connection: child, child.stderr_fd: child}
        timeout = min(_POLL_SECONDS, self._limits.no_progress_seconds / 4)
        for source in wait([self._wake_fd, *by_source], timeout):  # type: ignore[list-item] # stubs know no eventfd
            if source == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif isinstance(source, socket.socket):
                self._read(by_source[source])
            elif by_source[source] in self._children:  # not lost a moment ago
                by_source[source].read_stderr()

    def _read(self, child: ChildProcess) -> None:
        """All that a child has said; at most a ring of clips and a verdict, if it is honest."""
        try:
            for _ in range(2 * MAX_SLOTS):
                self._handle(child, next_message(child))
                if child not in self._children:
                    return
        except BlockingIOError:
            return
        except (EOFError, ConnectionError):
            words, was_killed = child.last_words()
            self._lose(child, "crash", words, was_killed=was_killed)
        except ValueError as error:
            self._lose(child, "crash", f"the child talks nonsense: {error}")

    def _handle(self, child: ChildProcess, message: Message) -> None:
        """Turn a message into an event.

        Raises:
            ValueError: no honest child says that.
        """
        kind, answers = text(message, "kind"), child.answers
        if kind == "ready" and not child.is_ready:
            child.is_ready, self._failed_starts, self._failing_since = True, 0, None
            return
        if answers is None:
            raise ValueError(f"{kind} without a video")
        output, ticket = read_output(message, answers.open_outputs), answers.job.ticket
        if kind == "clip":
            clip, release = child.take_clip(message, output)
            self._events.put(ClipDecoded(ticket, clip, release, output))
            if sum(answers.num_clips(output).values()) > self._limits.clips:
                raise ValueError(f"more than {self._limits.clips} clips")
        elif kind == "decoded":
            summary = read_summary(message, self._plans[output], is_image=answers.job.is_image)
            answers.check_counts(output, summary)
            self._end(child, answers, VideoDecoded(ticket, summary, output))
        elif (reason := text(message, "reason")) in CHILD_REASONS:
            self._lose(child, reason, text(message, "message"))
        elif reason in REASONS:
            failed = VideoFailed(ticket, reason, text(message, "message"), output)
            self._end(child, answers, failed)
        else:
            raise ValueError(f"{kind} for reason {reason!r}")

    def _end(
        self, child: ChildProcess, answers: Answers, event: VideoDecoded | VideoFailed
    ) -> None:
        """An output's last event; counters are up to date when a video's last is given out."""
        answers.end(event.output)
        if not answers.open_outputs:
            self._finish(child)
        self._events.put(event)

    def _finish(self, child: ChildProcess) -> None:
        self._count_use(child)
        child.answers = None
        if (
            child.is_spent
            or child.num_videos >= self._max_videos
            or child.rss_bytes() > self._max_rss_bytes
        ):
            self.num_recycled += 1
            self._remove(child)

    def _count_use(self, child: ChildProcess) -> None:
        self._busy_seconds += time.monotonic() - child.began_at
        self._full_seconds += child.full_seconds

    def _watch(self) -> None:
        """Kill children that do not start, stand still or cost too much."""
        now = time.monotonic()
        self._child_seconds += (now - self._spent_at) * len(self._children)
        self._spent_at = now
        if now - self._watched_at < min(_POLL_SECONDS, self._limits.no_progress_seconds / 4):
            return
        self._watched_at = now
        for child in tuple(self._children):
            if not child.is_ready and now - child.began_at > START_SECONDS:
                self._lose(child, "crash", f"not ready after {START_SECONDS:g} s")
            elif child.job is not None and (trouble := child.trouble(now)) is not None:
                self._lose(child, *trouble)

    def _lose(
        self, child: ChildProcess, reason: str, message: str, *, was_killed: bool = False
    ) -> None:
        """Replace a child; its video gets a second chance, or is condemned."""
        job = None if child.answers is None else child.answers.rest()
        if job is not None:
            self._count_use(child)
        child.answers = None
        self._remove(child)
        self.num_restarts += 1
        if not child.is_ready:
            self._note_failed_start(message, was_killed=was_killed)
        elif job is not None and was_killed and job.num_kills < MAX_KILLS:
            self._try_again(replace(job, num_kills=job.num_kills + 1))
        elif job is not None and job.factor == 1:
            self._try_again(replace(job, factor=2))
        elif job is not None:
            for output in job.outputs:
                self._events.put(VideoFailed(job.ticket, reason, message, output))

    def _note_failed_start(self, message: str, *, was_killed: bool) -> None:
        now = time.monotonic()
        self._start_again_at = now + _POLL_SECONDS
        self._failed_starts += not was_killed
        self._failing_since = self._failing_since or now
        if self._failed_starts >= MAX_FAILED_STARTS or now - self._failing_since > START_SECONDS:
            raise RunError(f"decoder children cannot start: {message}")

    def _try_again(self, job: Job) -> None:
        self._retries.append(job)
        self._events.put(VideoRetried(job.ticket, job.outputs))

    def _remove(self, child: ChildProcess) -> None:
        self._peak_rss_bytes = max(self._peak_rss_bytes, child.peak_rss_bytes())
        child.kill()
        self._children.remove(child)


def next_message(child: ChildProcess) -> Message:
    """What the child said next, also when it has died with something of ours unread.

    The kernel then tells of the reset first, once; what was said before comes behind it.
    """
    try:
        return receive(child.connection, wait=False)
    except ConnectionResetError:
        return receive(child.connection, wait=False)
