"""One decoder child as its parent sees it: its process, its socket, its two memory files.

What to do about a child is decided in `pipeline.decode_pool`; here is how. Everything but the
releasers belongs to the pool's manager thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.decode_child import Ring, send, settings_message
from pipeline.records import ClipPlan, VideoLimits

_STDERR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """A video that is to be decoded."""

    ticket: int
    """Its name in events."""
    data: bytes
    """The encoded file."""
    factor: int = 1
    """On the limits: 1 the first time, 2 the second and last time."""


class ChildProcess:
    """Starts when it is made; to be ended by `kill`.

    Args:
        module: run as ``python -m``.
        plan: the child's plan.
        limits: the child's limits.
        num_slots: clips that its ring holds.
    """

    def __init__(self, module: str, plan: ClipPlan, limits: VideoLimits, num_slots: int) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        ring_fd = os.memfd_create("clips", os.MFD_CLOEXEC)
        self._video_fd = os.memfd_create("video", os.MFD_CLOEXEC)
        self.ring = Ring(ring_fd, plan, num_slots)
        self.process = self._spawn(module, theirs.fileno(), ring_fd, self._video_fd)
        theirs.close()
        os.close(ring_fd)
        self.connection = Connection(ours.detach())
        assert self.process.stderr is not None
        self.stderr_fd = self.process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)
        self._stderr = b""
        self._lock = threading.Lock()
        self._is_alive = True
        self.is_ready = False
        """It has imported what it needs and takes videos."""
        self.job: Job | None = None
        """The video that it has."""
        self.num_videos = 0
        """Videos handed to it so far."""
        self.moved_at = time.monotonic()
        """When progress was last seen."""
        self.rss_at_begin_bytes = 0
        """`rss_bytes` when its video was handed over."""
        self._progress = 0
        with contextlib.suppress(ConnectionError):  # already dead: its socket's end tells
            send(self.connection, settings_message(plan, limits, num_slots))

    @staticmethod
    def _spawn(module: str, socket_fd: int, ring_fd: int, video_fd: int) -> subprocess.Popen[bytes]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # The parent's own path, so that the child finds the same code wherever it is started.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        numbers = {
            "--parent-pid": os.getpid(),
            "--socket-fd": socket_fd,
            "--ring-fd": ring_fd,
            "--video-fd": video_fd,
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *(f"{k}={v}" for k, v in numbers.items())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(socket_fd, ring_fd, video_fd),
            env=os.environ | threads | {"PYTHONPATH": path},
        )

    def begin(self, job: Job) -> None:
        """Hand over a video; a child that has just died is noticed by its socket."""
        self.job = job
        self.num_videos += 1
        self.moved_at, self.rss_at_begin_bytes = time.monotonic(), self.rss_bytes()
        os.ftruncate(self._video_fd, 0)
        view = memoryview(job.data)
        while view:
            view = view[os.pwrite(self._video_fd, view, len(job.data) - len(view)) :]
        memory_bytes = job.factor * self._limits.child_memory_bytes
        message = {"kind": "video", "num_bytes": len(job.data), "memory_bytes": memory_bytes}
        with self._lock, contextlib.suppress(ConnectionError):
            send(self.connection, message)

    def releaser(self, slot: int) -> Callable[[], None]:
        """What gives this slot back, once; without effect on a child that is gone."""
        released = False

        def release() -> None:
            nonlocal released
            with self._lock:
                if released:
                    raise RuntimeError("this clip was released before")
                released = True
                if self._is_alive:
                    with contextlib.suppress(ConnectionError):
                        send(self.connection, {"kind": "release", "slot": slot})

        return release

    def note_progress(self, now: float) -> None:
        """Restart the clock when the child has moved, or waits for us."""
        progress = self.ring.progress
        if progress != self._progress or self.ring.is_full:
            self._progress, self.moved_at = progress, now

    def rss_bytes(self) -> int:
        """Memory of its own, without the shared ring and the video's bytes; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")

    def read_stderr(self) -> None:
        """Take what the child wrote, keep the end of it."""
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self.stderr_fd, 1 << 16):
                self._stderr = (self._stderr + text)[-_STDERR_BYTES:]

    def last_words(self) -> str:
        """How it died and what it said; to be asked when its socket has closed."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its socket and stayed"
        self.read_stderr()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        words = self._stderr.decode(errors="replace").strip()
        return f"{cause}; stderr: {words}" if words else cause

    def kill(self) -> None:
        """Kill, reap and close; the ring stays mapped while a clip of it is held."""
        with self._lock:
            self._is_alive = False
            self.connection.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._video_fd)
