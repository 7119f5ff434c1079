"""Fills batches across videos and shards: one batch under construction per shape.

Every batch of a shape has the same size, the last ones padded with black: the tokens of a clip
depend (in the last bits) on the shape of the batch, never on what else is in it.

``GathersClips`` is what a worker needs of a batcher; `ClipBatcher` is for clips that stand alone,
`pipeline.streams` for whole videos. None is thread-safe: a worker holds its lock, but for ``run``.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.encode import Encoder
from pipeline.pixel_stats import pixel_columns
from pipeline.reconstruction import NOT_LOOKED, Look, Reconstructions
from pipeline.records import Clip
from pipeline.segments import EncodedClip, OpenVideo

Rows = list[tuple[OpenVideo, EncodedClip]]
"""Clips that are ready to be written, and whose they are."""


class GathersClips(Protocol):
    """Takes decoded clips, gives batches, and turns what the encoder made of them into rows."""

    def add(self, video: OpenVideo, clip: Clip, release: Callable[[], None]) -> None:
        """Take a clip; ``release`` is called once its frames are not needed any more."""

    def take(self, *, partial: bool) -> Any:
        """A full batch, with ``partial`` also one that is not; None when there is none."""

    def run(self, batch: Any, encoder: Encoder) -> Any:
        """Encode a batch. Called without the lock."""

    def encoded(self, batch: Any, result: Any) -> Rows:
        """Rows that are complete now."""

    def decoded(
        self, video: OpenVideo, num_clips: Mapping[float, int]
    ) -> tuple[dict[float, int], Rows]:
        """A video gives no more clips: how many rows it has per rate, and those complete now."""

    def forget(self, video: OpenVideo) -> None:
        """The clips of a video so far are not wanted."""

    def waits_for(self, *, is_idle: bool, is_blocked: bool) -> bool:
        """Whether a batch that is not full should wait for more clips.

        Args:
            is_idle: nothing is being read or decoded, so no clip will come.
            is_blocked: every decoder waits for a clip to be released.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBatch:
    """B clips of one shape, and whose they are."""

    frames: npt.NDArray[np.uint8]
    """uint8 ``[B, T, H, W, 3]``, RGB; rows behind ``len(tags)`` are black."""
    tags: tuple[_Tag, ...]
    """Ids travel with the pixels."""


@dataclass(frozen=True, slots=True)
class _Tag:
    video: OpenVideo
    tries: int
    clip: Clip


@dataclass(slots=True)
class _Unfinished:
    frames: npt.NDArray[np.uint8]
    tags: list[_Tag]
    began: float = field(default_factory=time.monotonic)


def quality_of(pieces: Iterable[Clip], look: Look) -> dict[str, float | None]:
    """Columns about a clip's pixels, or those of its pieces, and about its reconstruction."""
    sums = [piece.pixels for piece in pieces if piece.pixels is not None]
    return pixel_columns(sums) | {"recon_psnr": look.recon_psnr}


class ClipBatcher:
    """Batches of clips that stand alone; their frames are copied at once."""

    def __init__(
        self,
        batch_clips: int,
        reconstructions: Reconstructions | None = None,
        *,
        max_seconds: float = math.inf,
    ) -> None:
        """Nothing is gathered yet.

        Args:
            batch_clips: B.
            reconstructions: what looks at some of the clips' reconstructions.
            max_seconds: a batch is not filled for longer than this: a clip of a rare shape would
                keep its shard from committing for as long as others are read.
        """
        self._batch_clips, self._reconstructions = batch_clips, reconstructions
        self._max_seconds = max_seconds
        self._unfinished: dict[tuple[int, ...], _Unfinished] = {}
        self._full: deque[ClipBatch] = deque()

    def add(self, video: OpenVideo, clip: Clip, release: Callable[[], None]) -> None:
        """Copy a clip into the batch of its shape."""
        shape = clip.frames.shape
        batch = self._unfinished.get(shape)
        if batch is None:
            frames = np.zeros((self._batch_clips, *shape), dtype=np.uint8)
            batch = self._unfinished[shape] = _Unfinished(frames, [])
        batch.frames[len(batch.tags)] = clip.frames
        batch.tags.append(_Tag(video, video.tries, clip.without_frames()))
        release()
        if len(batch.tags) == self._batch_clips:
            self._close(shape)

    def _close(self, shape: tuple[int, ...]) -> None:
        batch = self._unfinished.pop(shape)
        self._full.append(ClipBatch(frames=batch.frames, tags=tuple(batch.tags)))

    def take(self, *, partial: bool) -> ClipBatch | None:
        """The oldest full batch, or, with ``partial``, one that is not full."""
        if self._unfinished:
            shape, oldest = next(iter(self._unfinished.items()))
            is_late = time.monotonic() - oldest.began > self._max_seconds
            if is_late or (partial and not self._full):
                self._close(shape)
        return self._full.popleft() if self._full else None

    def run(self, batch: ClipBatch, encoder: Encoder) -> list[tuple[npt.NDArray[Any], Look]]:
        """Tokens of each clip, and its reconstruction where it is chosen."""
        tokens = encoder.encode(batch.frames, len(batch.tags))
        rows = zip(batch.tags, batch.frames, tokens, strict=False)  # the last rows may be padding
        return [(one, self._look(tag, frames, one)) for tag, frames, one in rows]

    def _look(self, tag: _Tag, frames: npt.NDArray[np.uint8], tokens: npt.NDArray[Any]) -> Look:
        if self._reconstructions is None:
            return NOT_LOOKED
        clip = tag.clip
        return self._reconstructions.look(
            tag.video, fps=clip.fps, clip_index=clip.clip_index, frames=frames, tokens=tokens
        )

    def encoded(self, batch: ClipBatch, result: list[tuple[npt.NDArray[Any], Look]]) -> Rows:
        """A row for every clip that is still wanted."""
        height, width = batch.frames.shape[2:4]
        return [
            (
                tag.video,
                EncodedClip(
                    fps=tag.clip.fps,
                    clip_index=tag.clip.clip_index,
                    start_seconds=tag.clip.start_seconds,
                    end_seconds=tag.clip.end_seconds,
                    frame_seconds=tag.clip.frame_seconds,
                    bucket=f"{height}x{width}",
                    tokens=tokens,
                    span_index=tag.clip.span_index,
                    quality=quality_of([tag.clip], look),
                    sample=look.sample,
                ),
            )
            for tag, (tokens, look) in zip(batch.tags, result, strict=True)
            if tag.tries == tag.video.tries and tag.video.failure is None
        ]

    def decoded(
        self, video: OpenVideo, num_clips: Mapping[float, int]
    ) -> tuple[dict[float, int], Rows]:
        """Every clip is a row."""
        return dict(num_clips), []

    def forget(self, video: OpenVideo) -> None:
        """Stale clips are encoded and dropped: they are told by ``tries`` and ``failure``."""

    def waits_for(self, *, is_idle: bool, is_blocked: bool) -> bool:
        """Until no other clip can come."""
        return not is_idle
