"""Decoding and encoding in processes that know nothing of each other: what the machine can do.

Cores share caches, memory and power, so the sum of two times measured alone is not a limit; both
at once is. Every decoder takes the next video when it is done with one, and writes clips into one
array over and over, as into a slot of shared memory. The encoder has its clips from the start.
"""

from __future__ import annotations

import math
import multiprocessing
import tarfile
from pathlib import Path
from typing import Any

from jobs.benchmark.clock import clocked
from jobs.benchmark.workload import Figures, Job, plan_of, run_config, some_clips, worker_spec
from pipeline.decode import decode_plan
from pipeline.records import Clip, ClipPlan, VideoLimits

START_SECONDS = 300.0
"""Longest wait until all are ready."""


def run(job: Job, *, decodes: bool, encodes: bool) -> Figures:
    """Decode all videos of the tars, encode as many clips as they hold, or both at once."""
    spawn = multiprocessing.get_context("spawn")
    plan = plan_of(run_config(job.shards, Path(job.folder, "unused"), job.setting))
    num_decoders = job.setting.decoders if decodes else 0
    gun = spawn.Barrier(num_decoders + encodes + 1)
    turn, done = spawn.Value("q", 0), spawn.Queue()
    work = [
        spawn.Process(target=_decode, args=(plan, job.shards, gun, turn, done))
        for _ in range(num_decoders)
    ]
    work += [spawn.Process(target=_encode, args=(job, gun, done))] if encodes else []
    for process in work:
        process.start()
    gun.wait(START_SECONDS)
    with clocked() as figures:
        counts = [done.get() for _ in work]
    for process in work:
        process.join()
    clips, expected = sum(counts), job.num_clips * (decodes + encodes)
    if clips != expected:
        raise RuntimeError(f"the pieces made {clips} clips of {expected}")
    return figures


def _decode(plan: ClipPlan, shards: list[str], gun: Any, turn: Any, done: Any) -> None:
    import numpy as np

    slot = np.empty(plan.clip_bytes, np.uint8)
    videos = _videos(shards)

    def num_clips(data: bytes) -> int:
        items = decode_plan(
            data,
            plan,
            VideoLimits(),
            new_frames=lambda shape: slot[: math.prod(shape)].reshape(shape),
        )
        return sum(isinstance(item, Clip) for item in items)

    num_clips(videos[0])
    gun.wait(START_SECONDS)
    decoded = 0
    while (number := _next(turn)) < len(videos):
        decoded += num_clips(videos[number])
    done.put(decoded)


def _next(turn: Any) -> int:
    with turn.get_lock():
        turn.value += 1
        return int(turn.value) - 1


def _videos(shards: list[str]) -> list[bytes]:
    """The encoded videos of the tars."""
    found = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.name.endswith((".txt", ".json")):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(file.read())
    return found


def _encode(job: Job, gun: Any, done: Any) -> None:
    from pipeline.encode import ClipEncoder

    run = run_config(job.shards, Path(job.folder, "unused"), job.setting)
    clips = some_clips(plan_of(run))
    encoder = ClipEncoder(worker_spec(run).encoder)
    encoder.encode(clips[0].frames[None], 1)
    gun.wait(START_SECONDS)
    for number in range(job.num_clips):
        encoder.encode(clips[number % len(clips)].frames[None], 1)
    done.put(job.num_clips)
