"""Batches of clips that stand alone: filled across videos, one shape each, none kept for long."""

from __future__ import annotations

import numpy as np

from pipeline.batcher import ClipBatcher
from pipeline.records import Clip
from tests.pipeline.fakes import video


def clip(height: int, width: int) -> Clip:
    return Clip(
        fps=8.0,
        clip_index=0,
        num_real_frames=1,
        start_seconds=0.0,
        end_seconds=1.0,
        frame_seconds=(0.0,),
        frames=np.zeros((1, height, width, 3), np.uint8),
    )


def taken(batcher: ClipBatcher, *, num_square: int) -> list[tuple[int, int]]:
    """(height, clips) of the batches that go out while others are read."""
    batches = []
    batcher.add(video(0), clip(16, 8), lambda: None)  # the only tall one of its shard
    for number in range(1, num_square + 1):
        batcher.add(video(number), clip(8, 8), lambda: None)
        if (batch := batcher.take(partial=False)) is not None:
            batches.append((batch.frames.shape[2], len(batch.tags)))
    return batches


def test_batches_that_are_not_full_wait_for_more_clips() -> None:
    assert taken(ClipBatcher(4), num_square=12) == [(8, 4)] * 3


def test_a_clip_of_a_rare_shape_does_not_wait_as_long_as_others_come() -> None:
    batches = taken(ClipBatcher(4, max_seconds=0.0), num_square=12)
    assert batches[0] == (16, 1)
    assert sum(clips for height, clips in batches if height == 8) > 4
