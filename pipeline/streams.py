"""Whole videos, piece by piece: which pieces make a batch, and what is known of each stream.

A stream is one video at one rate. Its first piece is one frame, each later one has T frames, so
there are two batch shapes per bucket. The pieces of a stream go through the encoder one after the
other, and its state (the last frames of each layer's input) is kept between them; rows of one
batch are pieces of different streams. Decoded pieces stay in their decoder's ring until they are
batched: the rings bound what waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batcher import Rows, quality_of
from pipeline.encode import Encoder
from pipeline.reconstruction import NOT_LOOKED, Look, Reconstructions
from pipeline.records import Clip
from pipeline.segments import EncodedClip, OpenVideo

Tokens = npt.NDArray[Any]
"""int32 ``[t, h, w]``, or float32 ``[2c, t, h, w]`` (mean, log-variance)."""


@dataclass(slots=True, eq=False)
class Stream:
    """One video at one rate, on its way through the encoder."""

    video: OpenVideo
    """Whose it is."""
    fps: float
    """Target rate."""
    waiting: deque[tuple[Clip, Callable[[], None]]] = field(default_factory=deque)
    """Decoded pieces and what gives their slots back."""
    in_flight: bool = False
    """A piece is being encoded, so that the next one must wait for the state."""
    state: Any = None
    """The encoder's; None before the first piece."""
    encoded: list[tuple[Clip, Tokens]] = field(default_factory=list)
    """Pieces without their pixels, and their tokens."""
    first: tuple[npt.NDArray[np.uint8], Tokens] | None = None
    """Frames and tokens of the first piece, until they are decoded with the second."""
    look: Look = NOT_LOOKED
    """What the first two pieces look like when they are decoded again."""
    bucket: str = ""
    """Height and width, ``256x256``."""
    num_pieces: int | None = None
    """Known when decoding has ended."""

    @property
    def is_complete(self) -> bool:
        """Every piece is encoded."""
        return self.num_pieces == len(self.encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceBatch:
    """Pieces of different streams, all first ones or none."""

    frames: npt.NDArray[np.uint8]
    """uint8 ``[B, T, H, W, 3]``; rows behind ``len(streams)`` are black."""
    streams: tuple[Stream, ...]
    """Whose rows they are."""
    pieces: tuple[Clip, ...]
    """The rows' times; their frames are gone."""


class StreamBatcher:
    """The streams that are open. Not thread-safe."""

    def __init__(
        self,
        batch_clips: int,
        time_factor: int,
        reconstructions: Reconstructions | None = None,
    ) -> None:
        """Args: B, frames per latent frame, and what looks at some reconstructions."""
        self._batch_clips, self._time_factor = batch_clips, time_factor
        self._reconstructions = reconstructions
        self._streams: dict[tuple[int, float], Stream] = {}

    def add(self, video: OpenVideo, piece: Clip, release: Callable[[], None]) -> None:
        """Take the next piece of a stream; its frames are read when it is batched."""
        key = (id(video), piece.fps)
        if key not in self._streams:
            self._streams[key] = Stream(video, piece.fps)
        self._streams[key].waiting.append((piece, release))

    def take(self, *, partial: bool) -> PieceBatch | None:
        """A full batch; or, with ``partial``, the fullest that can be had."""
        groups: dict[tuple[bool, tuple[int, ...]], list[Stream]] = {}
        for stream in self._streams.values():
            if stream.waiting and not stream.in_flight:
                shape = stream.waiting[0][0].frames.shape
                groups.setdefault((stream.state is None, shape), []).append(stream)
        if not groups:
            return None
        (_, shape), streams = max(groups.items(), key=lambda group: len(group[1]))
        if len(streams) < self._batch_clips and not partial:
            return None
        return self._batch(streams[: self._batch_clips], shape)

    def _batch(self, streams: Sequence[Stream], shape: tuple[int, ...]) -> PieceBatch:
        frames = np.zeros((self._batch_clips, *shape), dtype=np.uint8)
        pieces = []
        for row, stream in enumerate(streams):
            piece, release = stream.waiting.popleft()
            frames[row] = piece.frames
            pieces.append(piece.without_frames())
            release()
            stream.in_flight = True
            stream.bucket = f"{shape[1]}x{shape[2]}"
        return PieceBatch(frames=frames, streams=tuple(streams), pieces=tuple(pieces))

    def run(self, batch: PieceBatch, encoder: Encoder) -> list[tuple[Tokens, Any]]:
        """Tokens of each piece, and the state behind it."""
        result = encoder.encode_pieces(batch.frames, [stream.state for stream in batch.streams])
        for row, (stream, piece) in enumerate(zip(batch.streams, batch.pieces, strict=True)):
            if piece.clip_index < 2 and self._reconstructions is not None:
                self._look(stream, piece, batch.frames[row], result[row][0])
        return result

    def _look(
        self, stream: Stream, piece: Clip, frames: npt.NDArray[np.uint8], tokens: Tokens
    ) -> None:
        """Decode the first two pieces of a chosen stream together: more would not be bounded."""
        assert self._reconstructions is not None
        if not self._reconstructions.chooses(stream.video, stream.fps, 0):
            return
        if piece.clip_index == 0:
            stream.first = (frames.copy(), tokens)
            return
        assert stream.first is not None
        stream.look = self._reconstructions.look(
            stream.video,
            fps=stream.fps,
            clip_index=0,
            frames=np.concatenate([stream.first[0], frames])[: 1 + piece.num_real_frames],
            tokens=np.concatenate([stream.first[1], tokens], axis=-3),
        )
        stream.first = None

    def encoded(self, batch: PieceBatch, result: list[tuple[Tokens, Any]]) -> Rows:
        """Rows of the streams that are complete now."""
        for stream, piece, (tokens, state) in zip(batch.streams, batch.pieces, result, strict=True):
            stream.in_flight, stream.state = False, state
            stream.encoded.append((piece, tokens))
        return self._close(batch.streams)

    def decoded(
        self, video: OpenVideo, num_clips: Mapping[float, int]
    ) -> tuple[dict[float, int], Rows]:
        """One row for each rate that gave a piece."""
        ended = []
        for fps, count in num_clips.items():
            stream = self._streams.get((id(video), fps))
            if stream is not None:
                stream.num_pieces = count
                ended.append(stream)
        return {fps: min(1, count) for fps, count in num_clips.items()}, self._close(ended)

    def forget(self, video: OpenVideo) -> None:
        """Its decoding failed or begins anew."""
        for stream in [s for s in self._streams.values() if s.video is video]:
            self._drop(stream)

    def waits_for(self, *, is_idle: bool, is_blocked: bool) -> bool:
        """Until no other piece can come before one of these is encoded."""
        return not (is_idle or is_blocked)

    def _close(self, streams: Iterable[Stream]) -> Rows:
        complete = [stream for stream in streams if stream.is_complete and self._is_open(stream)]
        for stream in complete:
            self._drop(stream)
        return [(stream.video, self._row(stream)) for stream in complete]

    def _is_open(self, stream: Stream) -> bool:
        """False for one that was forgotten while a piece of it was being encoded."""
        return self._streams.get((id(stream.video), stream.fps)) is stream

    def _row(self, stream: Stream) -> EncodedClip:
        """Put the pieces together, without the frames and latents that are padding."""
        kept = []
        for piece, tokens in stream.encoded:
            latent_frames = piece.num_real_frames
            if piece.clip_index:
                latent_frames //= self._time_factor
            kept.append(tokens[..., :latent_frames, :, :])
        first, last = stream.encoded[0][0], stream.encoded[-1][0]
        return EncodedClip(
            fps=stream.fps,
            clip_index=0,
            start_seconds=first.start_seconds,
            end_seconds=last.end_seconds,
            frame_seconds=tuple(t for piece, _ in stream.encoded for t in piece.frame_seconds),
            bucket=stream.bucket,
            tokens=np.concatenate(kept, axis=-3),
            quality=quality_of((piece for piece, _ in stream.encoded), stream.look),
            sample=stream.look.sample,
        )

    def _drop(self, stream: Stream) -> None:
        if self._is_open(stream):
            del self._streams[id(stream.video), stream.fps]
        while stream.waiting:
            stream.waiting.popleft()[1]()
        stream.state = None
