"""The process that decodes: one video at a time, its clips handed over in shared memory.

Started by `pipeline.decode_pool` as ``python -m pipeline.decode_child``. It imports numpy and av
and nothing heavier, so that it starts in a fraction of a second. What connects it to its parent:

* a socket with the messages of `pipeline.decode_messages` (work and freed slots come in; clips and
  verdicts go out);
* a memory file into which the parent writes the bytes of a video;
* a memory file with a `Ring` of clips, written here and read there without copying.

Neither memory file has a name, so nothing is left over whoever dies. The child dies with its
parent, and it is what the kernel kills first when the machine's memory runs out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import math
import mmap
import os
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av.logging
import numpy as np
import numpy.typing as npt

from pipeline.decode import Item, NewFrames, decode_clips
from pipeline.decode_image import decode_image
from pipeline.decode_messages import (
    Message,
    clip_message,
    end_message,
    read_settings,
    read_spans,
    receive,
    send,
)
from pipeline.errors import VideoError
from pipeline.records import Clip, ClipPlan, TimeSpan, VideoLimits, slot_bytes

Decode = Callable[
    [
        bytes,
        Sequence[ClipPlan],
        VideoLimits,
        Callable[[], None],
        NewFrames,
        Sequence[TimeSpan] | None,
        Sequence[int],
    ],
    Iterator[Item],
]

_MAYBE_MEMORY = ("not_a_video", "no_video_stream", "no_frames", "decode_error")
"""Reasons behind which FFmpeg hides that it was refused memory."""
_PR_SET_PDEATHSIG = 1
_HEADER_BYTES = mmap.PAGESIZE


class Ring:
    """Slots of one clip each in a memory file that two processes map, and three counters.

    Args:
        descriptor: the memory file; it may be closed afterwards.
        slot_bytes: that of the largest clip of all.
        num_slots: clips that fit.
    """

    def __init__(self, descriptor: int, slot_bytes: int, num_slots: int) -> None:
        size = _HEADER_BYTES + num_slots * slot_bytes
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        # Never closed by hand: arrays on it keep it alive, and the last one unmaps it.
        memory = mmap.mmap(descriptor, size)
        self._counters = np.frombuffer(memory, np.uint64, count=3)
        self.num_bytes = size
        pixels = np.frombuffer(memory, np.uint8, offset=_HEADER_BYTES)
        self._slots = pixels.reshape(num_slots, slot_bytes)

    def clip(self, slot: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        """The clip in a slot, uint8 ``[T, H, W, 3]``, not copied.

        Raises:
            ValueError: a shape that does not fit the slot.
        """
        size = math.prod(shape)
        if len(shape) != 4 or min(shape) < 1 or size > self._slots.shape[1]:
            raise ValueError(f"a slot of {self._slots.shape[1]} bytes cannot hold {list(shape)}")
        pixels: npt.NDArray[np.uint8] = self._slots[slot, :size].reshape(*shape)
        return pixels

    @property
    def progress(self) -> int:
        """Packets read and frames decoded since the child started; only the child counts up."""
        return int(self._counters[0])

    def count_progress(self) -> None:
        """One more packet or frame."""
        self._counters[0] += 1

    @property
    def is_full(self) -> bool:
        """Whether the child waits for a slot: then it is not its fault that nothing moves."""
        return bool(self._counters[1])

    @property
    def full_seconds(self) -> float:
        """Time that the child has waited for a slot since it started, this moment included."""
        since, waited_ns = int(self._counters[1]), int(self._counters[2])
        return (waited_ns + (time.monotonic_ns() - since if since else 0)) / 1e9

    def wait_while(self, wait: Callable[[], None]) -> None:
        """Run what waits for a slot; only the child does."""
        began = time.monotonic_ns()
        self._counters[1] = began
        wait()
        self._counters[2] += np.uint64(time.monotonic_ns() - began)
        self._counters[1] = 0


class _Child:
    """Serves its parent until the socket closes."""

    def __init__(
        self, connection: socket.socket, ring_fd: int, video_fd: int, decode: Decode
    ) -> None:
        self._connection, self._video_fd, self._decode = connection, video_fd, decode
        self._plans, self._limits, num_slots = read_settings(receive(connection))
        self._ring = Ring(ring_fd, slot_bytes(self._plans), num_slots)
        self._free = deque(range(num_slots))
        self._slot: int | None = None

    def serve(self) -> None:
        gc.freeze()  # what was imported stays: collecting is then a matter of microseconds
        send(self._connection, {"kind": "ready"})
        while True:
            message = receive(self._connection)
            if message["kind"] == "release":
                self._free.append(message["slot"])
            else:
                self._decode_video(message)

    def _decode_video(self, message: Message) -> None:
        """Send the clips and ends of a video, the last end when all of it was cleared away."""
        held: list[Message] = []
        still_open = list(message["outputs"])
        try:
            limit_memory(message["memory_bytes"])
            self._send_items(message, still_open, held)
        except (VideoError, MemoryError) as error:
            verdict = self._verdict(error, message["memory_bytes"])
            held += [end_message(verdict, output) for output in still_open]
        finally:
            gc.collect()  # containers hold themselves: else the next video would pay for this one
            limit_memory(None)
        if self._slot is not None:  # taken for a clip that was never finished
            self._free.append(self._slot)
            self._slot = None
        for end in held:
            send(self._connection, end)

    def _send_items(self, message: Message, still_open: list[int], held: list[Message]) -> None:
        decode = decode_image if message["kind"] == "image" else self._decode
        for output, item in decode(
            self._read_video(message["num_bytes"]),
            self._plans,
            self._limits,
            self._ring.count_progress,
            self._next_slot,
            read_spans(message),
            tuple(still_open),
        ):
            if isinstance(item, Clip):
                assert self._slot is not None
                send(self._connection, clip_message(item, self._slot, output))
                self._slot = None
                continue
            still_open.remove(output)
            if still_open:
                send(self._connection, end_message(item, output))
            else:
                held.append(end_message(item, output))
        assert not still_open

    @staticmethod
    def _verdict(error: VideoError | MemoryError, memory_bytes: int) -> VideoError:
        if isinstance(error, MemoryError):
            return VideoError("memory", f"needs more than {memory_bytes} bytes")
        if error.reason in _MAYBE_MEMORY and is_memory_short(memory_bytes):
            return VideoError("memory", error.message)
        return error

    def _read_video(self, num_bytes: int) -> bytes:
        with open(self._video_fd, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read(num_bytes)
        os.ftruncate(self._video_fd, 0)  # one copy of the video is enough
        return data

    def _next_slot(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """A free slot, as an array of this shape; waits for the parent to release one."""
        while not self._free:
            self._ring.wait_while(lambda: self._free.append(receive(self._connection)["slot"]))
        self._slot = self._free.popleft()
        return self._ring.clip(self._slot, shape)


def limit_memory(num_bytes: int | None) -> None:
    """Let this process grow by so many bytes of address space from here on; None: without bound."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard
    if num_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft = pages * mmap.PAGESIZE + num_bytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def is_memory_short(num_bytes: int) -> bool:
    """Whether this process came within a quarter of so many bytes of its limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:"))
    return peak > soft - num_bytes // 4


def _die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that started us ends; leave at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _give_up_rights() -> None:
    """No files are written, no memory is dumped, and others are spared when memory runs out."""
    with contextlib.suppress(OSError):  # some containers do not let a process say so
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))


def main(decode: Decode = decode_clips) -> None:
    """Serve the parent named on the command line; tests pass a decoder that misbehaves."""
    parser = argparse.ArgumentParser()
    for name in ("parent-pid", "socket-fd", "ring-fd", "video-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    _die_with_parent(args.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent acts
    faulthandler.enable()  # a crash then says where, on the stderr that the parent quotes
    av.logging.set_level(None)
    connection = socket.socket(fileno=args.socket_fd)
    try:
        child = _Child(connection, args.ring_fd, args.video_fd, decode)
        _give_up_rights()
        child.serve()
    except (EOFError, ConnectionError):
        return  # the parent closed the pool


if __name__ == "__main__":
    main()
