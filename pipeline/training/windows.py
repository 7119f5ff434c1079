"""Videos of one rank, epoch after epoch, in windows that are shuffled: read, not yet decoded.

Shards are permuted in every epoch and dealt out to the ranks. Where there are fewer shards than
ranks, every rank reads all of them and takes each ``world_size``-th video. A window is a run of
videos of bounded size; it may go over from one shard into the next one, never into the next epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import RunError, VideoError
from pipeline.loading.hashing import derived_key
from pipeline.loading.order import permutation
from pipeline.ranges import RangeBuffers
from pipeline.reader import ReadRules, Sample, ShardEnd, read_shard, source_of
from pipeline.shards import Shard
from pipeline.training.recipe import Place, place_free_name

SAMPLE_BYTES = 4096
"""What a sample counts for beside its video, so that windows of defects are bounded, too."""
CUT_SHARD = "cut_shard"
"""Reason of one more bad video where the rest of a shard cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """One video of a window."""

    clip_id: str
    """``<file name of the shard>/<key>``."""
    data: bytes
    """The encoded file; empty where there is a defect."""
    defect: VideoError | None
    """Why it cannot be decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Videos that are shuffled together."""

    place: Place
    """Where it begins."""
    videos: list[Video]
    """In shuffled order."""
    after: Place
    """Where the next one begins."""


def shards_of_rank(num_shards: int, rank: int, world_size: int, key: int) -> list[int]:
    """Which shards a rank reads in an epoch, in order; all of them where ranks share shards.

    >>> [shards_of_rank(5, rank, 2, key=3) for rank in range(2)]
    [[0, 2, 3], [4, 1]]
    >>> shards_of_rank(2, 3, 4, key=3)
    [0, 1]
    """
    order: list[int] = permutation(num_shards, key).tolist()
    return order if num_shards < world_size else order[rank::world_size]


class Windows:
    """The windows of one rank.

    Args:
        shards: of the data set.
        rules: what counts as a sample.
        options: fsspec options.
        seed: of all shuffling.
        window_bytes: size of a window; it ends with the video that reaches it.
        rank: which rank this is.
        world_size: number of ranks.
        buffers: memory for reading ahead.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        rules: ReadRules,
        options: Mapping[str, Any],
        seed: int,
        window_bytes: int,
        rank: int,
        world_size: int,
        buffers: RangeBuffers,
    ) -> None:
        self._shards, self._rules, self._options = shards, rules, options
        self._seed, self._window_bytes = seed, window_bytes
        self._rank, self._world_size = rank, world_size
        self._buffers = buffers

    def start_from(self, place: Place) -> Generator[Window]:
        """Windows without end; an epoch ends with the window whose ``after`` is in the next one.

        Raises:
            StorageError: storage did not answer.
            RunError: a shard is not what it was when the place was noted.
        """
        while True:
            yield from self._of_epoch(place)
            place = Place(epoch=place.epoch + 1)

    def _of_epoch(self, place: Place) -> Iterator[Window]:
        videos: list[Video] = []
        num_bytes, here = 0, place
        seen: set[bytes] = set()
        for video, here in self._videos(place, seen):
            if video is not None:
                videos.append(video)
                num_bytes += len(video.data) + SAMPLE_BYTES
            if num_bytes >= self._window_bytes:
                after = replace(here, window=place.window + 1)
                yield self._window(place, videos, after)
                place, videos, num_bytes = after, [], 0
                seen.clear()  # whoever begins at the next window knows no earlier keys either
        yield self._window(place, videos, Place(epoch=place.epoch + 1))

    def _window(self, place: Place, videos: list[Video], after: Place) -> Window:
        key = derived_key(self._seed, place.epoch, self._rank, "videos", place.window)
        shuffled = [videos[at] for at in permutation(len(videos), key)]
        return Window(place=place, videos=shuffled, after=after)

    def _videos(self, place: Place, seen: set[bytes]) -> Iterator[tuple[Video | None, Place]]:
        """Each video of this rank (None: of another one) and the place behind it."""
        dealt = shards_of_rank(
            len(self._shards),
            self._rank,
            self._world_size,
            derived_key(self._seed, place.epoch, "shards"),
        )
        while place.shard < len(dealt):
            for video, here in self._videos_of_shard(self._shards[dealt[place.shard]], place, seen):
                yield video, here
                place = here

    def _videos_of_shard(
        self, shard: Shard, place: Place, seen: set[bytes]
    ) -> Iterator[tuple[Video | None, Place]]:
        """As above; the last place is the begin of the next shard."""
        source = source_of(shard, self._options)
        if place.offset and source.size_bytes != place.shard_bytes:
            raise RunError(
                f"{shard.url} has {source.size_bytes:,} bytes, it had {place.shard_bytes:,} when "
                "the state was written: put back the shard, or continue with next_epoch=True"
            )
        place = replace(place, shard_bytes=source.size_bytes)
        reading = read_shard(
            shard,
            rules=self._rules,
            options=self._options,
            start_offset=place.offset,
            seen=seen,
            source=source,
            buffers=self._buffers,
        )
        with contextlib.closing(reading):
            for item in reading:
                if isinstance(item, Sample):
                    place = replace(
                        place, offset=item.end_offset, num_samples=place.num_samples + 1
                    )
                    yield (_video(shard, item) if self._is_mine(place) else None), place
                    continue
                behind = replace(place, shard=place.shard + 1, offset=0, shard_bytes=0)
                yield _lost_rest(shard, item), behind

    def _is_mine(self, behind: Place) -> bool:
        if len(self._shards) >= self._world_size:
            return True
        turn = derived_key(self._seed, behind.epoch, "ranks")
        return (behind.num_samples + turn) % self._world_size == self._rank


def _lost_rest(shard: Shard, end: ShardEnd) -> Video | None:
    """What stands for the videos behind a cut."""
    if end.cut is None:
        return None
    return Video(clip_id=place_free_name(shard), data=b"", defect=VideoError(CUT_SHARD, end.cut))


def _video(shard: Shard, sample: Sample) -> Video:
    return Video(
        clip_id=f"{place_free_name(shard)}/{sample.key}",
        data=sample.video,
        defect=sample.defect,
    )
