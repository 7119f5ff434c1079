"""What a `pipeline.decode_pool.DecodePool` tells its callers.

Of every output that a video was submitted for, exactly one `VideoDecoded` or `VideoFailed` comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.records import Clip, DecodeSummary


@dataclass(frozen=True, slots=True)
class ClipDecoded:
    """One clip of a video; clips of one rate of an output come in order."""

    ticket: int
    """The video, as named in `DecodePool.submit`."""
    clip: Clip
    """Its ``frames`` lie in the child's ring: valid until ``release()``."""
    release: Callable[[], None]
    """To be called once, from any thread, when the frames were used or copied."""
    output: int = 0
    """The plan that it is of."""


@dataclass(frozen=True, slots=True)
class VideoRetried:
    """The video's child was lost: some clips so far are to be forgotten (but released).

    They come again, all of them; an output that has ended stays ended.
    """

    ticket: int
    """The video."""
    outputs: tuple[int, ...] = (0,)
    """The outputs whose clips are meant: those that have not ended."""


@dataclass(frozen=True, slots=True)
class VideoDecoded:
    """An output of the video is done; its last clip came before this."""

    ticket: int
    """The video."""
    summary: DecodeSummary
    """How it went."""
    output: int = 0
    """The plan that it is of."""


@dataclass(frozen=True, slots=True)
class VideoFailed:
    """An output is condemned; its clips so far are to be forgotten (and released)."""

    ticket: int
    """The video."""
    reason: str
    """One of `pipeline.decode.REASONS` or `CHILD_REASONS`."""
    message: str
    """What happened, for a person."""
    output: int = 0
    """The plan that it is of."""


Event = ClipDecoded | VideoRetried | VideoDecoded | VideoFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How the children spent their time since the pool was made, and what they hold."""

    child_seconds: float
    """Time of all children, at work or not."""
    busy_seconds: float
    """Time with a video."""
    full_seconds: float
    """Of that, time with a full ring: the callers are slower than the decoders."""
    ring_bytes: int
    """Shared memory of the rings now."""
    peak_rss_bytes: int
    """The most memory that one child ever had, its ring included."""
