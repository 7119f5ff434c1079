"""The shard of `crash_one_shard` with tokens and originals that go to S3 in several pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import s3fs

from pipeline.segments import OpenVideo
from tests.pipeline import crash_one_shard, crash_segments
from tests.pipeline.crash_one_shard import command, problem, receipts, remove
from tests.pipeline.fakes import indices_of

CHUNK_BYTES = 5 << 20
"""The smallest piece that S3 takes; s3fs sends objects of two and more in pieces."""

__all__ = ["command", "crash_one_shard", "problem", "receipts", "remove"]

small_videos = crash_segments.videos


def large_videos(begin: int) -> list[OpenVideo]:
    """Clips of 4.7 MB, and an original of 11 MB."""
    made = small_videos(begin)
    for video in made:
        video.original = bytes(11 << 20) if video.original else b""
        for key, clip in video.clips.items():
            number = int(video.sample.key.removeprefix("video_")) * 10 + clip.clip_index
            video.clips[key] = replace(clip, tokens=indices_of(number, (2, 1024, 1024)))
    return made


def in_pieces(method: Any) -> Any:
    async def smaller(self: Any, *arguments: Any, **options: Any) -> Any:
        return await method(self, *arguments, **{"chunksize": CHUNK_BYTES} | options)

    return smaller


crash_segments.videos = large_videos
s3fs.S3FileSystem._put_file = in_pieces(s3fs.S3FileSystem._put_file)
s3fs.S3FileSystem._pipe_file = in_pieces(s3fs.S3FileSystem._pipe_file)
