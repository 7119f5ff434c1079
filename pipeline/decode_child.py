"""The process that decodes: one video at a time, its clips handed over in shared memory.

Started by `pipeline.decode_pool` as ``python -m pipeline.decode_child``. It imports numpy and av
and nothing heavier, so that it starts in a fraction of a second. What connects it to its parent:

* a socket with small JSON messages (work and freed slots come in; clips and verdicts go out), never
  pickles, because what decodes untrusted bytes must not be able to make its parent run code;
* a memory file into which the parent writes the bytes of a video;
* a memory file with a `Ring` of clips, written here and read there without copying.

Neither memory file has a name, so nothing is left over whoever dies. The child dies with its
parent.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import faulthandler
import json
import math
import mmap
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av.logging
import numpy as np
import numpy.typing as npt

from pipeline.decode import decode_clips
from pipeline.errors import VideoError
from pipeline.records import (
    Clip,
    ClipPlan,
    DecodeSummary,
    SamplingMode,
    SourceInfo,
    TailPolicy,
    VideoLimits,
)

Message = dict[str, Any]
Decode = Callable[
    [
        bytes,
        ClipPlan,
        VideoLimits,
        Callable[[], None],
        Callable[[tuple[int, ...]], npt.NDArray[np.uint8]],
    ],
    Iterator[Clip | DecodeSummary],
]

_PR_SET_PDEATHSIG = 1
_HEADER_BYTES = mmap.PAGESIZE


class Ring:
    """Slots of one clip each in a memory file that two processes map, and two counters.

    Args:
        descriptor: the memory file; it may be closed afterwards.
        plan: gives the size of a slot, that of the largest clip.
        num_slots: clips that fit.
    """

    def __init__(self, descriptor: int, plan: ClipPlan, num_slots: int) -> None:
        size = _HEADER_BYTES + num_slots * plan.clip_bytes
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        # Never closed by hand: arrays on it keep it alive, and the last one unmaps it.
        memory = mmap.mmap(descriptor, size)
        self._counters = np.frombuffer(memory, np.uint64, count=2)
        pixels = np.frombuffer(memory, np.uint8, offset=_HEADER_BYTES)
        self._slots = pixels.reshape(num_slots, plan.clip_bytes)

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

    @is_full.setter
    def is_full(self, value: bool) -> None:
        self._counters[1] = value


def settings_message(plan: ClipPlan, limits: VideoLimits, num_slots: int) -> Message:
    """The first message to a child; `_settings` reads it."""
    plan_fields = dataclasses.asdict(plan) | {"tail": plan.tail.name, "mode": plan.mode.name}
    return {"plan": plan_fields, "limits": dataclasses.asdict(limits), "num_slots": num_slots}


def _settings(message: Message) -> tuple[ClipPlan, VideoLimits, int]:
    fields = message["plan"]
    fields |= {
        "fps": tuple(fields["fps"]),
        "mode": SamplingMode[fields["mode"]],
        "tail": TailPolicy[fields["tail"]],
        "buckets": tuple((height, width) for height, width in fields["buckets"]),
    }
    return ClipPlan(**fields), VideoLimits(**message["limits"]), message["num_slots"]


def clip_message(clip: Clip, slot: int) -> Message:
    """A clip without its pixels, which lie in the slot."""
    fields = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip) if f.name != "frames"}
    return {"kind": "clip", "slot": slot, "shape": clip.frames.shape, "clip": fields}


def read_clip(message: Message, ring: Ring) -> Clip:
    """The clip of a message; its frames are a view of the slot."""
    fields = message["clip"] | {"frame_seconds": tuple(message["clip"]["frame_seconds"])}
    return Clip(**fields, frames=ring.clip(message["slot"], message["shape"]))


def summary_message(summary: DecodeSummary) -> Message:
    """A summary as JSON: its numbers of clips as pairs, since JSON has no numeric keys."""
    fields = dataclasses.asdict(summary) | {"num_clips": list(summary.num_clips.items())}
    return {"kind": "decoded", "summary": fields}


def read_summary(message: Message) -> DecodeSummary:
    """The inverse of `summary_message`."""
    fields = message["summary"]
    source = SourceInfo(**fields["source"])
    return DecodeSummary(**fields | {"source": source, "num_clips": dict(fields["num_clips"])})


def send(connection: Connection, message: Message) -> None:
    """One message; a few hundred bytes, so that it never waits for the reader."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    message: Message = json.loads(connection.recv_bytes())
    return message


class _Child:
    """Serves its parent until the socket closes."""

    def __init__(self, connection: Connection, ring_fd: int, video_fd: int, decode: Decode) -> None:
        self._connection, self._video_fd, self._decode = connection, video_fd, decode
        self._plan, self._limits, num_slots = _settings(receive(connection))
        self._ring = Ring(ring_fd, self._plan, num_slots)
        self._free = deque(range(num_slots))
        self._slot: int | None = None

    def serve(self) -> None:
        send(self._connection, {"kind": "ready"})
        while True:
            message = receive(self._connection)
            if message["kind"] == "release":
                self._free.append(message["slot"])
            else:
                send(self._connection, self._verdict(message))

    def _verdict(self, message: Message) -> Message:
        try:
            limit_memory(message["memory_bytes"])
            return summary_message(self._decode_video(message["num_bytes"]))
        except VideoError as error:
            reason, text = error.reason, error.message
        except MemoryError:
            reason, text = "memory", f"needs more than {message['memory_bytes']} bytes"
        finally:
            limit_memory(None)
        if self._slot is not None:  # taken for a clip that was never finished
            self._free.append(self._slot)
            self._slot = None
        return {"kind": "failed", "reason": reason, "message": text}

    def _decode_video(self, num_bytes: int) -> DecodeSummary:
        summary: DecodeSummary | None = None
        for item in self._decode(
            self._read_video(num_bytes),
            self._plan,
            self._limits,
            self._ring.count_progress,
            self._next_slot,
        ):
            if isinstance(item, DecodeSummary):
                summary = item
                continue
            assert self._slot is not None
            send(self._connection, clip_message(item, self._slot))
            self._slot = None
        assert summary is not None
        return summary

    def _read_video(self, num_bytes: int) -> bytes:
        if num_bytes == 0:  # an empty file cannot be mapped
            return b""
        with mmap.mmap(self._video_fd, num_bytes, access=mmap.ACCESS_READ) as file:
            data = file[:]
        os.ftruncate(self._video_fd, 0)  # one copy of the video is enough
        return data

    def _next_slot(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """A free slot, as an array of this shape; waits for the parent to release one."""
        while not self._free:
            self._ring.is_full = True
            self._free.append(receive(self._connection)["slot"])
        self._ring.is_full = False
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


def _die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that started us ends; leave at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def main(decode: Decode = decode_clips) -> None:
    """Serve the parent named on the command line; tests pass a decoder that misbehaves."""
    parser = argparse.ArgumentParser()
    for name in ("parent-pid", "socket-fd", "ring-fd", "video-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    _die_with_parent(args.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent acts
    faulthandler.enable()  # a crash then says where, on the stderr that the parent quotes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(None)
    try:
        _Child(Connection(args.socket_fd), args.ring_fd, args.video_fd, decode).serve()
    except (EOFError, ConnectionError):
        return  # the parent closed the pool


if __name__ == "__main__":
    main()
