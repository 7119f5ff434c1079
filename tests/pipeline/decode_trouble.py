"""A decoder child that does what the first bytes of the "video" say, for the tests of the pool.

Run by the pool as ``python -m tests.pipeline.decode_trouble``; everything but the decoding is the
real child.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.decode_child import main
from pipeline.errors import VideoError
from pipeline.records import Clip, DecodeSummary, SourceInfo

SOURCE = SourceInfo(
    width=8, height=8, fps=8.0, num_frames=17, duration_seconds=2.0, codec="x", pixel_format="y"
)


def descriptor(name):
    """What the parent handed over under this name."""
    return int(next(word for word in sys.argv if word.startswith(f"--{name}=")).split("=")[1])


def decode(data, plans, limits, on_progress, new_frames, spans, outputs):
    """``clips=N`` clips with their number in every pixel, then the trouble that is asked for.

    The outputs come one after the other; with ``last`` in its command, trouble comes at the last.
    """
    for output in outputs:
        is_late = b"last" in data and output != outputs[-1]
        command = data.split(b"last")[0] if is_late else data
        for item in decode_output(command, plans[output], on_progress, new_frames):
            yield output, item


def decode_output(data, plan, on_progress, new_frames):
    """What one output gets."""
    command = data.decode()
    num_clips = int(re.search(r"clips=(\d+)|$", command).group(1) or 0)
    for index in range(num_clips):
        on_progress()
        frames = new_frames((plan.clip_frames, *plan.buckets[0], 3))
        frames[:] = index
        yield Clip(
            fps=plan.fps[0],
            clip_index=index,
            num_real_frames=plan.clip_frames,
            start_seconds=index / 3,
            end_seconds=index + 1.0,
            frame_seconds=(0.1,) * plan.clip_frames,
            frames=frames,
        )
    if once := re.search(r"once=(\S+)", command):
        marker = Path(once.group(1))
        if marker.exists():
            command = ""
        marker.touch()
    if "segfault" in command:
        ctypes.string_at(0)
    if "exit" in command:
        os.write(2, b"goodbye from the child")
        os._exit(3)
    if "raise" in command:
        raise AssertionError("a bug in the decoder")
    if "refuse" in command:
        raise VideoError("decode_error", "not today")
    if "spin" in command:
        ctypes.PyDLL(None).sleep(1000)  # the GIL stays held
    if "slow" in command:
        for _ in range(12):
            time.sleep(0.1)
            on_progress()
    if say := re.search(r"say=(.*)", command):
        os.write(descriptor("socket-fd"), say.group(1).encode())
    if "pretend" in command:  # that the ring is full, while all clips are released
        ring = mmap.mmap(descriptor("ring-fd"), 16)
        ring[8:16] = time.monotonic_ns().to_bytes(8, "little")
        time.sleep(1000)
    if "for ever" in command:
        for _ in itertools.repeat(0):
            time.sleep(0.001)
            on_progress()
    if "burn" in command:
        for _ in itertools.repeat(0):
            on_progress()
    if "allocate" in command:
        kept = [np.ones(1 << 24, np.uint8) for _ in itertools.repeat(0, 64)]
        kept.clear()
    if "keep" in command:
        decode_output.leak = np.ones(64 << 20, np.uint8)
    yield DecodeSummary(
        source=SOURCE, num_clips={plan.fps[0]: num_clips}, filtered={}, decode_seconds=0.5
    )


if __name__ == "__main__":
    main(decode)
