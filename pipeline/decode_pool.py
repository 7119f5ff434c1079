"""A pool of decoder children that survives whatever a video does to them.

One manager thread owns the children: it starts, feeds, watches, kills and reaps them, and turns
their messages into events. Callers only put videos in and take events out. A child that dies, makes
no progress or takes too much memory costs one video, which is tried once more by a fresh child
with twice the limits. (The thread lives as long as the pool because the kernel kills a child when
the *thread* that started it ends.)

A child whose ring is full waits for a clip to be released, for as long as it takes: that is the
back pressure, and no lack of progress.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from pipeline.decode_child import Message, read_clip, read_summary, receive
from pipeline.decode_process import ChildProcess, Job
from pipeline.errors import RunError
from pipeline.records import Clip, ClipPlan, DecodeSummary, VideoLimits

CHILD_REASONS = ("no_progress", "crash", "memory")
"""Reasons of the pool, beside `pipeline.decode.REASONS`: what a video did to its child."""
MAX_SLOTS = 64
"""Clips in a ring at most: their release messages must fit the socket unread."""
MAX_FAILED_STARTS = 3
"""Children in a row that may fail to start before the pool gives up."""
START_SECONDS = 120.0
"""Time a child may take to import what it needs."""
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ClipDecoded:
    """One clip of a video; clips of one rate come in order."""

    ticket: int
    """The video, as named in `DecodePool.submit`."""
    clip: Clip
    """Its ``frames`` lie in the child's ring: valid until ``release()``."""
    release: Callable[[], None]
    """To be called once, from any thread, when the frames were used or copied."""


@dataclass(frozen=True, slots=True)
class VideoRetried:
    """The video's child was lost: forget its clips so far (but release them); all come again."""

    ticket: int
    """The video."""


@dataclass(frozen=True, slots=True)
class VideoDecoded:
    """The video is done; its last clip came before this."""

    ticket: int
    """The video."""
    summary: DecodeSummary
    """How it went."""


@dataclass(frozen=True, slots=True)
class VideoFailed:
    """The video is condemned; its clips so far are to be forgotten (and released)."""

    ticket: int
    """The video."""
    reason: str
    """One of `pipeline.decode.REASONS` or `CHILD_REASONS`."""
    message: str
    """What happened, for a person."""


Event = ClipDecoded | VideoRetried | VideoDecoded | VideoFailed


class DecodePool:
    """Decodes submitted videos in child processes; to be closed, or used as a context manager.

    Args:
        num_children: processes, each with one video at a time.
        plan: which clips to make of every video.
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
        plan: ClipPlan,
        limits: VideoLimits,
        ring_bytes: int = 32 << 20,
        max_videos_per_child: int = 500,
        max_child_rss_bytes: int = 1 << 30,
        child_module: str = "pipeline.decode_child",
    ) -> None:
        if num_children < 1:
            raise ValueError(f"a decode pool needs at least 1 child, got {num_children}")
        self._num_children, self._plan, self._limits = num_children, plan, limits
        self._num_slots = min(MAX_SLOTS, max(2, ring_bytes // plan.clip_bytes))
        self._max_videos, self._max_rss_bytes = max_videos_per_child, max_child_rss_bytes
        self._child_module = child_module
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._submitted: deque[Job] = deque()
        self._retries: deque[Job] = deque()
        self._children: list[ChildProcess] = []
        self._failed_starts = 0
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
    def num_waiting(self) -> int:
        """Children whose ring is full: the callers are slower than the decoders."""
        return sum(child.job is not None and child.ring.is_full for child in tuple(self._children))

    @property
    def num_queued(self) -> int:
        """Videos that no child has begun."""
        return len(self._submitted) + len(self._retries)

    def submit(self, ticket: int, data: bytes) -> None:
        """Queue a video; never waits, so the caller bounds what is in flight.

        Args:
            ticket: names the video in events; unique among those in flight.
            data: the encoded file, kept until the video is done.
        """
        self._raise_if_broken()
        self._submitted.append(Job(ticket, data))
        os.eventfd_write(self._wake_fd, 1)

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
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the decode pool is closed")

    # ---- the manager thread ----

    def _run(self) -> None:
        try:
            while not self._closing:
                self._start_missing()
                self._assign()
                self._listen()
                for child in tuple(self._children):
                    self._watch(child)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = error
            self._events.put(None)
        finally:
            for child in self._children:
                child.kill()
            self._children = []

    def _start_missing(self) -> None:
        while len(self._children) < self._num_children:
            self._children.append(
                ChildProcess(self._child_module, self._plan, self._limits, self._num_slots)
            )

    def _assign(self) -> None:
        for child in self._children:
            if not child.is_ready or child.job is not None:
                continue
            # Every retry cost a child, so a fresh one is here or on its way.
            if self._retries and child.num_videos == 0:
                child.begin(self._retries.popleft())
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
            elif isinstance(source, Connection):
                self._read(by_source[source])
            elif by_source[source] in self._children:  # not lost a moment ago
                by_source[source].read_stderr()

    def _read(self, child: ChildProcess) -> None:
        try:
            while child.connection.poll():
                self._handle(child, receive(child.connection))
                if child not in self._children:
                    return
        except (EOFError, ConnectionError):
            self._lose(child, "crash", child.last_words())

    def _handle(self, child: ChildProcess, message: Message) -> None:
        kind, job = message["kind"], child.job
        if kind == "ready":
            child.is_ready, self._failed_starts = True, 0
            return
        assert job is not None
        if kind == "clip":
            clip = read_clip(message, child.ring)
            self._events.put(ClipDecoded(job.ticket, clip, child.releaser(message["slot"])))
        elif kind == "decoded":
            self._finish(child)
            self._events.put(VideoDecoded(job.ticket, read_summary(message)))
        elif message["reason"] in CHILD_REASONS:
            self._lose(child, message["reason"], message["message"])
        else:
            self._finish(child)
            self._events.put(VideoFailed(job.ticket, message["reason"], message["message"]))

    def _finish(self, child: ChildProcess) -> None:
        """Runs before the video's last event is given out, so that counters are up to date then."""
        child.job = None
        if child.num_videos >= self._max_videos or child.rss_bytes() > self._max_rss_bytes:
            self.num_recycled += 1
            self._remove(child)

    def _watch(self, child: ChildProcess) -> None:
        """Kill a child that does not start, stands still or has grown too large."""
        now = time.monotonic()
        if not child.is_ready:
            if now - child.moved_at > START_SECONDS:
                self._lose(child, "crash", f"not ready after {START_SECONDS:g} s")
            return
        if child.job is None:
            return
        factor = child.job.factor
        child.note_progress(now)
        still = factor * self._limits.no_progress_seconds
        if now - child.moved_at > still:
            self._lose(child, "no_progress", f"no packet and no frame for {still:g} s")
            return
        # The child's own limit answers sooner, unless a library allocates around it.
        allowed = factor * self._limits.child_memory_bytes
        grown = child.rss_bytes() - child.rss_at_begin_bytes
        if grown > allowed:
            self._lose(child, "memory", f"took {grown} bytes of memory, {allowed} are allowed")

    def _lose(self, child: ChildProcess, reason: str, message: str) -> None:
        """Replace a child; its video gets a second chance, or is condemned."""
        self._remove(child)
        self.num_restarts += 1
        job = child.job
        if not child.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(
                    f"decoder children cannot start ({self._failed_starts} tried): {message}"
                )
        elif job is not None and job.factor == 1:
            self._retries.append(Job(job.ticket, job.data, factor=2))
            self._events.put(VideoRetried(job.ticket))
        elif job is not None:
            self._events.put(VideoFailed(job.ticket, reason, message))

    def _remove(self, child: ChildProcess) -> None:
        child.kill()
        self._children.remove(child)
