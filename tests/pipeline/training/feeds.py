"""Data sets of small numbered videos, and feeds over them that test one thing at a time."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards import Shard
from pipeline.training.clips import TrainingClips
from pipeline.training.recipe import ClipRecipe
from tests.pipeline.media import encode, numbered
from tests.pipeline.tars import RULES, tar_bytes, tar_shard

RECIPE = ClipRecipe(clip_frames=4, resolution=16, fps=(10.0, 30.0), window_bytes=20_000)


@functools.cache
def colour(number: int, *, num_frames: int = 12) -> bytes:
    """A video whose pictures all say which one it is, by their number of stripes."""
    return encode(range(num_frames), draw=lambda k: numbered(number), options={"crf": "10"})


def write_shards(
    folder: Path, videos: Sequence[bytes], num_shards: int, *, name: str = "shard"
) -> list[Shard]:
    """Videos dealt out to shards, named by their position."""
    members = [(f"{number:03d}.mp4", video) for number, video in enumerate(videos)]
    bounds = [len(members) * at // num_shards for at in range(num_shards + 1)]
    return [
        tar_shard(folder / f"{name}-{at}.tar", tar_bytes(members[bounds[at] : bounds[at + 1]]))
        for at in range(num_shards)
    ]


def feed_of(shards: Sequence[Shard], recipe: ClipRecipe = RECIPE, **changes: Any) -> TrainingClips:
    fields: dict[str, Any] = {"batch_clips": 3, "rules": RULES, "num_children": 1}
    return TrainingClips(shards, recipe, **(fields | changes))


def take(feed: TrainingClips, number: int) -> list[np.ndarray]:
    """So many batches, and the children are gone."""
    batches = iter(feed)
    try:
        return [next(batches) for _ in range(number)]
    finally:
        batches.close()  # type: ignore[attr-defined]


def digests(batches: Iterable[np.ndarray]) -> list[str]:
    return [hashlib.sha256(batch.tobytes()).hexdigest()[:12] for batch in batches]
