"""One decoder child as its parent sees it: its process, its socket, its two memory files.

What becomes of its video when something is wrong with it is decided in `pipeline.decode_pool`; here
is how to notice. Everything but the releasers belongs to the pool's manager thread. Nothing that
the child says is taken on trust, and nothing here waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.decode_child import Ring
from pipeline.decode_job import Answers, Job
from pipeline.decode_messages import (
    Message,
    read_clip,
    send,
    settings_message,
    socket_pair,
    video_message,
)
from pipeline.records import Clip, ClipPlan, VideoLimits, slot_bytes

_STDERR_BYTES = 4096
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Environment that a child gets; credentials of storage are none of its business."""
_PAGE_BYTES, _TICKS = os.sysconf("SC_PAGESIZE"), os.sysconf("SC_CLK_TCK")
WALL_PER_CPU = 4
"""Time that decoding may take, waiting for its ring apart, on the CPU time that it may."""
REAP_SECONDS = 5.0
"""Longest wait for a process that was killed, or has closed its socket."""


class ChildProcess:
    """Starts when it is made; to be ended by `kill`.

    Args:
        module: run as ``python -m``.
        plans: the child's plans, one for each output.
        limits: the child's limits.
        num_slots: clips that its ring holds.
    """

    def __init__(
        self, module: str, plans: Sequence[ClipPlan], limits: VideoLimits, num_slots: int
    ) -> None:
        self._plans, self._limits, self._num_slots = plans, limits, num_slots
        self.connection, theirs = socket_pair()
        ring_fd = os.memfd_create("clips", os.MFD_CLOEXEC)
        self._video_fd = os.memfd_create("video", os.MFD_CLOEXEC)
        self.ring = Ring(ring_fd, slot_bytes(plans), num_slots)
        self.process = self._spawn(module, theirs.fileno(), ring_fd, self._video_fd)
        theirs.close()
        os.close(ring_fd)
        assert self.process.stderr is not None
        self.stderr_fd = self.process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)
        self._stderr = b""
        self._lock = threading.Lock()
        self._is_alive = True
        self._held: set[int] = set()
        self.is_ready = False
        """It has imported what it needs and takes videos."""
        self.answers: Answers | None = None
        """What it has given of the video that it has; None: it has none."""
        self.num_videos = 0
        """Videos handed to it so far."""
        self.is_spent = False
        """It is to be replaced after its video."""
        self._moved_at = self.began_at = time.monotonic()
        self._rss_at_begin_bytes = 0
        self._cpu_at_begin_seconds = 0.0
        self._full_at_begin_seconds = 0.0
        self._progress = 0
        with contextlib.suppress(ConnectionError):  # already dead: its socket's end tells
            send(self.connection, settings_message(plans, limits, num_slots), wait=False)

    @staticmethod
    def _spawn(module: str, socket_fd: int, ring_fd: int, video_fd: int) -> subprocess.Popen[bytes]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
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
            env=inherited | threads | {"PYTHONPATH": path},
        )

    @property
    def job(self) -> Job | None:
        """The video that it has."""
        answers = self.answers
        return None if answers is None else answers.job

    def begin(self, job: Job) -> None:
        """Hand over a video; a child that has just died is noticed by its socket."""
        self.num_videos += 1
        self.answers = Answers(job)
        self._moved_at = self.began_at = time.monotonic()
        self._rss_at_begin_bytes = self.rss_bytes()
        self._cpu_at_begin_seconds = self.cpu_seconds()
        self._full_at_begin_seconds = self.ring.full_seconds
        os.ftruncate(self._video_fd, 0)
        view = memoryview(job.data)
        while view:
            view = view[os.pwrite(self._video_fd, view, len(job.data) - len(view)) :]
        memory_bytes = job.factor * self._limits.child_memory_bytes
        message = video_message(
            len(job.data), memory_bytes, job.spans, is_image=job.is_image, outputs=job.outputs
        )
        with self._lock, contextlib.suppress(ConnectionError, BlockingIOError):
            send(self.connection, message, wait=False)

    def take_clip(self, message: Message, output: int) -> tuple[Clip, Callable[[], None]]:
        """The clip of a message for an open output, and what releases its slot.

        Raises:
            ValueError: the message is wrong, or it is not this clip's turn.
        """
        answers = self.answers
        assert answers is not None
        plan = self._plans[output]
        clip, slot, shape = read_clip(message, plan, is_image=answers.job.is_image)
        with self._lock:
            if slot >= self._num_slots or slot in self._held:
                raise ValueError(f"slot {slot} is not free")
            answers.check(output, clip)
            self._held.add(slot)
        answers.count(output, clip)
        return clip.with_frames(self.ring.clip(slot, shape)), self._releaser(slot)

    def _releaser(self, slot: int) -> Callable[[], None]:
        """What gives this slot back, once; without effect on a child that is gone."""
        released = False

        def release() -> None:
            nonlocal released
            with self._lock:
                if released:
                    raise RuntimeError("this clip was released before")
                released = True
                self._held.discard(slot)
                if self._is_alive:
                    # a child that reads nothing is standing still, and is noticed by that
                    with contextlib.suppress(ConnectionError, BlockingIOError):
                        send(self.connection, {"kind": "release", "slot": slot}, wait=False)

        return release

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a clip to be released; to say so while none is held is a lie."""
        return bool(self._held) and self.ring.is_full

    @property
    def full_seconds(self) -> float:
        """Time that it has waited for its ring with the video that it has; never more than all."""
        full = self.ring.full_seconds - self._full_at_begin_seconds
        return max(0.0, min(full, time.monotonic() - self.began_at))

    def trouble(self, now: float) -> tuple[str, str] | None:
        """Reason and message when its video must be taken from it; None while all is well."""
        job, limits = self.job, self._limits
        assert job is not None
        factor = job.factor
        progress = self.ring.progress
        if progress != self._progress or self.is_waiting:
            self._progress, self._moved_at = progress, now
        still = factor * limits.no_progress_seconds
        if now - self._moved_at > still:
            return "no_progress", f"no packet and no frame for {still:g} s"
        # The child looks after both of these itself, unless a library goes around it.
        cpu_seconds = limits.cpu_seconds * len(job.outputs)
        seconds = factor * (cpu_seconds + limits.no_progress_seconds)
        if self.cpu_seconds() - self._cpu_at_begin_seconds > seconds:
            return "too_much_work", f"not decoded after {seconds:g} s of CPU time"
        seconds *= WALL_PER_CPU
        if now - self.began_at - self.full_seconds > seconds:
            return "too_much_work", f"not decoded after {seconds:g} s"
        allowed = factor * limits.child_memory_bytes
        grown = self.rss_bytes() - self._rss_at_begin_bytes
        if grown > allowed:
            return "memory", f"took {grown} bytes of memory, {allowed} are allowed"
        return None

    def rss_bytes(self) -> int:
        """Memory of its own, without the shared ring and the video's bytes; 0 when it is gone."""
        fields = self._proc("statm").split()
        return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES if fields else 0

    def peak_rss_bytes(self) -> int:
        """The most memory it ever had, what it shares included; 0 when it is gone."""
        for line in self._proc("status").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu_seconds(self) -> float:
        """CPU time it has used; 0 when it is gone."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.process.pid}/{name}").read_text()
        except OSError:
            return ""

    def read_stderr(self) -> None:
        """Take what the child wrote, keep the end of it."""
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self.stderr_fd, 1 << 16):
                self._stderr = (self._stderr + text)[-_STDERR_BYTES:]

    def last_words(self) -> tuple[str, bool]:
        """How it died and what it said, and whether somebody else killed it.

        To be asked when its socket has closed.
        """
        try:
            code = self.process.wait(timeout=REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its socket and stayed", False
        self.read_stderr()
        cause = f"killed by {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        words = self._stderr.decode(errors="replace").strip()
        was_killed = code in (-signal.SIGKILL, -signal.SIGTERM)
        return (f"{cause}; stderr: {words}" if words else cause), was_killed

    def kill(self) -> None:
        """Kill, reap and close; the ring stays mapped while a clip of it is held."""
        with self._lock:
            self._is_alive = False
            self.connection.close()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: reaped later
            self.process.wait(timeout=REAP_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._video_fd)


def _signal_name(number: int) -> str:
    """SIGSEGV and the like; real-time signals have no name.

    >>> _signal_name(11), _signal_name(40)
    ('SIGSEGV', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
