"""``TrainingClips``: endless batches of clips for training a tokenizer, in an exact order.

Every video of every epoch gives ``clips_per_video`` clips. Which batch comes next is a function of
the recipe, the list of shards, rank and world size; children, threads and time have no say. The
state is a few hundred bytes, and continues with exactly the next clip, after reading at most one
window of videos again and decoding at most the videos that are mixed (one, or ``MIX_VIDEOS``).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError, TooManyBadVideos
from pipeline.loading.hashing import derived_key
from pipeline.loading.order import permutation
from pipeline.ranges import RangeBuffers
from pipeline.reader import ReadRules
from pipeline.records import VideoLimits
from pipeline.shards import Shard
from pipeline.training.decoding import Decoded, DrawnClips, Frames
from pipeline.training.draws import Draw, draws
from pipeline.training.recipe import (
    ClipRecipe,
    Position,
    Tally,
    position_of,
    state_of,
)
from pipeline.training.windows import Video, Window, Windows

logger = logging.getLogger(__name__)

MIXES_AHEAD = 64
"""Mixes whose decoding may have begun, however small they are."""

Batch = npt.NDArray[np.uint8]
"""uint8 ``[B, T, H, W, 3]``, RGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Videos whose clips are mixed, one behind the other in their window."""

    before: Position
    """Where it begins; its tally is not known before it is decoded."""
    after: Position
    """Where the next one begins, likewise."""
    videos: tuple[Video, ...]
    """What is in it."""
    ends_epoch: bool
    """The next one is of another epoch."""


class TrainingClips:
    """Clips of one rank; iterating gives batches without end.

    Args:
        shards: of `pipeline.inputs.list_tars` or ``list_folder``; the same list on every rank.
        recipe: what makes the clips and their order.
        batch_clips: B; may differ from the run that wrote a state.
        rules: what counts as a sample.
        rank: which rank this is.
        world_size: number of ranks.
        options: fsspec options.
        limits: what one video may cost.
        num_children: decoder processes.
        prefetch_bytes: encoded videos and clips that are decoded ahead; one video is always.
        ring_bytes: shared memory of each child for clips on their way.
        max_bad_fraction: the feed stops when more than this share of its videos was skipped ...
        min_videos: ... and at least this many were seen.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        recipe: ClipRecipe,
        *,
        batch_clips: int,
        rules: ReadRules,
        rank: int = 0,
        world_size: int = 1,
        options: Mapping[str, Any] | None = None,
        limits: VideoLimits | None = None,
        num_children: int = 2,
        prefetch_bytes: int = 256 << 20,
        ring_bytes: int = 32 << 20,
        max_bad_fraction: float = 0.5,
        min_videos: int = 100,
    ) -> None:
        if not shards:
            raise RunError("training clips need at least one shard")
        if batch_clips < 1:
            raise RunError(f"batch_clips must be at least 1, got {batch_clips}")
        if not 0 <= rank < world_size:
            raise RunError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        self._recipe, self._batch_clips = recipe, batch_clips
        self._rank, self._world_size = rank, world_size
        self._limits = limits or VideoLimits(video_bytes=rules.video_bytes)
        self._num_children, self._ring_bytes = num_children, ring_bytes
        self._prefetch_bytes = prefetch_bytes
        self._max_bad_fraction, self._min_videos = max_bad_fraction, min_videos
        self._windows = Windows(
            shards,
            rules=rules,
            options=options or {},
            seed=recipe.seed,
            window_bytes=recipe.window_bytes,
            rank=rank,
            world_size=world_size,
            buffers=RangeBuffers(),
        )
        self._digest = recipe.digest(shards)
        self._position = Position()
        self._tally = Tally()

    @property
    def tally(self) -> Tally:
        """How the videos went up to the last batch."""
        return self._tally

    @property
    def epoch(self) -> int:
        """Of the next clip; at a border that of the clip before it."""
        return self._position.place.epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the clips behind the last batch begin; plain values."""
        return state_of(
            self._position, digest=self._digest, rank=self._rank, world_size=self._world_size
        )

    def load_state_dict(self, state: Mapping[str, Any], *, next_epoch: bool = False) -> None:
        """Continue there; iterators made before are not affected.

        Args:
            state: of ``state_dict``.
            next_epoch: begin with the epoch after it instead; the state may be of any rank and
                world size then, and all ranks are to be given the same one.

        Raises:
            RunError: other clips would follow; says which way there is.
        """
        self._position = position_of(
            state,
            digest=self._digest,
            rank=self._rank,
            world_size=self._world_size,
            next_epoch=next_epoch,
        )
        self._tally = self._position.tally

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present position on; close the iterator to end the children.

        Raises:
            TooManyBadVideos: more videos were skipped than is allowed, or all of an epoch.
            StorageError: storage did not answer.
            RunError: no decoder child can be started; a shard was changed.
        """
        with closing(self._clips(self._position)) as clips:
            while True:
                batch: list[Frames] = []
                while len(batch) < self._batch_clips:
                    frames, position, tally = next(clips)
                    batch.append(frames)
                self._position, self._tally = position, tally
                yield np.stack(batch)

    def _clips(self, position: Position) -> Generator[tuple[Frames, Position, Tally]]:
        """Clips, each with the position and the tally behind it."""
        tally = position.tally
        with closing(self._decoded(position)) as mixes:
            for mix, decoded in mixes:
                before = replace(mix.before, tally=tally)
                for video in decoded:
                    tally = self._counted(tally, video)
                    if video.reason is not None:
                        is_news = mix.before.place.epoch == position.place.epoch
                        level = logging.WARNING if is_news else logging.DEBUG  # or once an epoch
                        logger.log(level, "%s was skipped: %s", video.clip_id, video.words)
                clips = self._mixed(mix, decoded)
                at_end = tally if not mix.ends_epoch else self._next_epoch(mix, tally)
                for taken in range(before.taken, len(clips)):
                    behind = replace(before, taken=taken + 1)
                    if taken + 1 == len(clips):
                        behind = replace(mix.after, tally=at_end)
                    yield clips[taken], behind, tally
                tally = at_end

    def _decoded(self, position: Position) -> Generator[tuple[Mix, list[Decoded]]]:
        """Mixes and what became of their videos, decoded ahead within the bound."""
        given: deque[tuple[Mix, int]] = deque()
        with (
            DrawnClips(
                self._recipe,
                self._limits,
                num_children=self._num_children,
                ring_bytes=self._ring_bytes,
            ) as drawn,
            closing(self._mixes(position)) as mixes,
        ):
            while True:
                while not given or self._has_room(drawn.in_flight_bytes, len(given)):
                    mix = next(mixes)
                    for video in mix.videos:
                        drawn.give(video, self._draws(mix, video))
                    given.append((replace(mix, videos=()), len(mix.videos)))
                mix, number = given.popleft()
                yield mix, [drawn.take() for _ in range(number)]

    def _has_room(self, in_flight_bytes: int, num_mixes: int) -> bool:
        return in_flight_bytes < self._prefetch_bytes and num_mixes < MIXES_AHEAD

    def _mixes(self, position: Position) -> Generator[Mix]:
        """The mixes of all windows from a position on; the next window is read meanwhile."""
        windows = self._windows.start_from(position.place)
        reader = ThreadPoolExecutor(1, "training-reader")
        try:
            coming = reader.submit(next, windows)
            while True:
                window = coming.result()
                coming = reader.submit(next, windows)
                yield from mixes_of(window, position, self._recipe.mix_videos)
                position = Position(place=window.after)
        finally:
            reader.shutdown(cancel_futures=True)
            windows.close()

    def _draws(self, mix: Mix, video: Video) -> list[Draw]:
        return draws(
            self._recipe.seed,
            mix.before.place.epoch,
            video.clip_id,
            self._recipe.clips_per_video,
            fps=self._recipe.fps,
            random_crop=self._recipe.random_crop,
            mirror=self._recipe.mirror,
            max_zoom=self._recipe.max_zoom,
        )

    def _mixed(self, mix: Mix, decoded: Sequence[Decoded]) -> list[Frames]:
        """The clips of a mix in the order in which they are given."""
        clips = [frames for video in decoded for frames in video.clips]
        place = mix.before.place
        names = ("mix", place.epoch, self._rank, place.window, mix.before.video)
        return [clips[at] for at in permutation(len(clips), derived_key(self._recipe.seed, *names))]

    def _counted(self, tally: Tally, video: Decoded) -> Tally:
        if video.reason is None:
            return tally.with_video(len(video.clips))
        tally = tally.with_bad(video.reason)
        allowed = self._max_bad_fraction * tally.num_videos
        if tally.num_videos >= self._min_videos and tally.num_bad > allowed:
            raise TooManyBadVideos(
                f"{tally.num_bad} of {tally.num_videos} videos gave no training clips, "
                f"max_bad_fraction is {self._max_bad_fraction:g}; reasons: {tally.reasons()}"
            )
        return tally

    def _next_epoch(self, mix: Mix, tally: Tally) -> Tally:
        """The tally at a border of epochs; an epoch without clips would go on for ever."""
        if tally.epoch_clips == 0:
            raise TooManyBadVideos(
                f"epoch {mix.before.place.epoch} gave rank {self._rank} of {self._world_size} no "
                f"clip: {tally.num_videos} videos seen, skipped: {tally.reasons()}; give more or "
                "other videos, or fewer ranks"
            )
        return tally.in_next_epoch()


def mixes_of(window: Window, position: Position, size: int) -> Iterator[Mix]:
    """The rest of a window in mixes; one without videos where it has none.

    Args:
        window: to be decoded.
        position: where to begin, if it is in this window.
        size: videos of a mix.
    """
    videos = window.videos
    for at in range(position.video, max(1, len(videos)), size):
        is_last = at + size >= len(videos)
        yield Mix(
            before=replace(position, video=at, taken=position.taken if at == position.video else 0),
            after=Position(place=window.after)
            if is_last
            else replace(position, video=at + size, taken=0),
            videos=tuple(videos[at : at + size]),
            ends_epoch=is_last and window.after.epoch != window.place.epoch,
        )
