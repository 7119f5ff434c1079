"""What the run of a drill has to do: tars of real clips on S3, among them damaged and hostile ones.

A round is one run over all shards into an OUT of its own. When a round ends before the faults do,
the next one begins, so that a drill lasts as long as it should on any machine.
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
from collections.abc import Sequence

from jobs.drill.cluster import BUCKET, Store
from pipeline.demo import demo_videos

SHARDS, CLEAN = "shards", "clean"
VIDEOS_PER_SHARD = 8
SHARDS_PER_MINUTE, MIN_SHARDS = 5, 10
HOSTILE = ("empty", "noise", "half", "torn_header")
"""Kinds of videos that cannot be tokenised, made of real ones."""


def hostile(kind: str, dice: random.Random, source: bytes) -> bytes:
    """A video that must be quarantined.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "empty":
        return b""
    if kind == "noise":
        return dice.randbytes(20_000)
    if kind == "half":
        return source[: len(source) // 2]
    if kind == "torn_header":
        return dice.randbytes(64) + source[64:]
    raise ValueError(f"unknown kind {kind!r}, one of {HOSTILE}")


def shard(number: int, seed: int) -> bytes:
    """A tar of real clips in an order of its own; one in four is hostile or damaged."""
    dice = random.Random(f"{seed}:{number}")
    videos = demo_videos()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place in range(VIDEOS_PER_SHARD):
            video = dice.choice(videos)
            content = video.read_bytes()
            name = f"{place:03d}-{video.stem}"
            if dice.random() < 0.2:
                kind = dice.choice(HOSTILE)
                name, content = f"{name}-{kind}", hostile(kind, dice, content)
            _add(tar, f"{name}{video.suffix}", content)
            _add(tar, f"{name}.txt", video.with_suffix(".txt").read_bytes())
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def upload(store: Store, *, minutes: float, seed: int) -> int:
    """Write the shards; returns how many."""
    num_shards = max(MIN_SHARDS, round(SHARDS_PER_MINUTE * minutes))
    for number in range(num_shards):
        key = f"{SHARDS}/{number:05d}.tar"
        store.client.put_object(Bucket=BUCKET, Key=key, Body=shard(number, seed))
    return num_shards


def command(num_shards: int, out: str, *where: str) -> Sequence[str]:
    """The run that a user would type: a real tokenizer that is quick on one core."""
    return [
        *(sys.executable, "-m", "pipeline.run", "+dataset=tars", "+tokenizer=demo"),
        f"dataset.shards=s3://{BUCKET}/{SHARDS}/{{00000..{num_shards - 1:05d}}}.tar",
        *(
            "tokenizer.checkpoint=random",
            "tokenizer.ch=8",
            "tokenizer.num_res_blocks=1",
            "sampling.resolution=64",
        ),
        *("encoder.threads=1", "encoder.decoders=1", "encoder.device=cpu"),
        *("commit.max_clips=3", "commit.max_seconds=20", "cluster.cpus_per_worker=1"),
        *("cluster.max_attempts=1000", "cluster.retry_seconds=0.5", "cluster.lease_seconds=120"),
        *("cluster.open_shards=2", f"output.root=s3://{BUCKET}/{out}"),
        "hydra.run.dir=.",
        *where,
    ]
