"""The values that flow between the steps of the pipeline: frozen, small, without behaviour.

Standard library and numpy only: decoder children import this file.
Shapes: T frames, H rows, W columns before the encoder; t h w after it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

IMAGE_FPS = 0.0
"""Rate of the one clip that an image is: it has no time."""


class SamplingMode(enum.Enum):
    """What one row of tokens covers."""

    clips = "clips"
    """T frames; a video gives many rows."""
    whole = "whole"
    """All of a video at one rate; encoded in pieces, whatever its length."""


class TailPolicy(enum.Enum):
    """What becomes of frames at a video's end that do not fill a clip."""

    drop = "drop"
    pad = "pad"


class Variant(enum.Enum):
    """What is kept of a picture that is larger than the clip, and which way round."""

    none = "none"
    """The centre, as it is shown."""
    flip = "flip"
    """The centre, left and right exchanged."""
    crop_start = "crop_start"
    """The left or the top end."""
    crop_end = "crop_end"
    """The right or the bottom end."""
    flip_crop_start = "flip_crop_start"
    """The left or the top end, then left and right exchanged."""
    flip_crop_end = "flip_crop_end"
    """The right or the bottom end, then left and right exchanged."""

    @property
    def is_flipped(self) -> bool:
        """Whether left and right are exchanged, behind the crop."""
        return self.value.startswith("flip")

    @property
    def crop(self) -> str:
        """Where the crop lies: ``centre``, ``start`` or ``end``."""
        return next((end for end in ("start", "end") if self.value.endswith(end)), "centre")


class CanaryMode(enum.Enum):
    """When a worker's arithmetic is checked."""

    commit = "commit"
    """At its start and before every commit."""
    start = "start"
    """At its start only."""
    off = "off"


class Retry(enum.Enum):
    """What of the committed part of OUT is tried again."""

    quarantined = "quarantined"
    """Videos that could not be tokenised."""
    incomplete = "incomplete"
    """What lay behind the cut of a tar."""


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """A stretch of a video that no clip may cross."""

    start_seconds: float
    """From the video's first frame."""
    end_seconds: float | None = None
    """None: the video's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPlan:
    """Which clips one decoding pass makes of a video."""

    fps: tuple[float, ...]
    """Target frame rates; each gives clips of its own."""
    mode: SamplingMode = SamplingMode.clips
    """clips: the clips that are encoded; whole: pieces of one long clip, the first of one frame."""
    clip_frames: int
    """T, frames in a clip; whole: in every piece but the first."""
    stride_frames: int
    """Frames between the starts of two clips, at the target rate; whole: T."""
    time_factor: int = 1
    """whole: frames per latent frame; a video's frames behind the first are a multiple of it."""
    max_clips_per_video: int | None
    """Per target rate; None: no bound."""
    tail: TailPolicy
    """drop: a tail shorter than a clip is left out; pad: its last frame is repeated."""
    buckets: tuple[tuple[int, int], ...]
    """Sizes of clips, each (H, W) in pixels; a video takes the one of the nearest aspect ratio."""
    cut_threshold: float | None = None
    """Mean change of luma, in grey levels, that is a cut; clips do not cross it."""
    variant: Variant = Variant.none
    """Where the crop lies and whether it is flipped."""

    @property
    def clip_bytes(self) -> int:
        """Size of the largest clip, uint8 ``[T, H, W, 3]``."""
        return self.clip_frames * max(height * width for height, width in self.buckets) * 3


def slot_bytes(plans: Sequence[ClipPlan]) -> int:
    """Size of the largest clip of all plans."""
    return max(plan.clip_bytes for plan in plans)


def chosen_outputs(outputs: Sequence[int] | None, num_plans: int) -> tuple[int, ...]:
    """The outputs that are wanted, out of one for each plan; None: all.

    >>> chosen_outputs(None, 3), chosen_outputs([0, 2], 3)
    ((0, 1, 2), (0, 2))

    Raises:
        ValueError: none is wanted, or they do not ascend, or there is no such plan.
    """
    chosen = tuple(range(num_plans)) if outputs is None else tuple(outputs)
    if not chosen or list(chosen) != sorted(set(chosen) & set(range(num_plans))):
        raise ValueError(f"outputs must ascend within 0..{num_plans - 1}, got {list(chosen)}")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLimits:
    """Bounds on what one video may cost; beyond them it is quarantined."""

    video_bytes: int = 2 << 30
    """Size of the encoded file."""
    pixels: int = 8192 * 8192
    """Rows times columns of the coded picture, checked before a frame is decoded."""
    frames: int = 1_000_000
    """Decoded frames; of packets, all streams together, `PACKETS_PER_FRAME` times as many."""
    streams: int = 64
    """Streams of all kinds in the file."""
    clips: int = 250_000
    """Clips (whole: pieces) of an output, all target rates together."""
    duration_seconds: float = 6 * 3600.0
    """Length by the container's word and by the timestamps seen."""
    cpu_seconds: float = 6 * 3600.0
    """CPU time of decoding for an output; less by what a video announces, see `cpu_allowance`."""
    no_progress_seconds: float = 30.0
    """Time without a new frame, after which the decoder child is killed."""
    child_memory_bytes: int = 4 << 30
    """Address space of a decoder child beyond what it has at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What the container and the decoder said of a video."""

    width: int
    """Columns as shown: rotation and pixel aspect applied."""
    height: int
    """Rows as shown."""
    fps: float
    """Mean frame rate of the whole video by its timestamps; 0 for a single frame."""
    num_frames: int
    """Frames decoded; less than the video holds when max_clips_per_video ended the pass."""
    duration_seconds: float
    """From the first frame's timestamp to the end of the last one, of the whole video."""
    codec: str
    """FFmpeg's name of the decoder."""
    pixel_format: str
    """FFmpeg's name of the decoded pixel format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSums:
    """Of the pixels of a clip that were looked at (``pixel_stats``)."""

    values: int
    """Pixels, all frames together."""
    luma: int
    """Sum of their luma, 0..255 each."""
    black: int
    """Those that are black."""
    changes: int
    """Pixels of all frames that have one before them."""
    change: int
    """Sum of their absolute change of luma."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """T frames of one video at one target rate."""

    fps: float
    """The target rate."""
    clip_index: int
    """Position among the video's clips (whole: pieces) at this rate, from 0."""
    num_real_frames: int
    """whole: frames that count, the rest of the last piece is padding; clips: T."""
    start_seconds: float
    """When the clip starts, from the video's first frame."""
    end_seconds: float
    """``start_seconds + T / fps``, or less where the video ends inside a padded clip."""
    frame_seconds: tuple[float, ...]
    """Source time of each kept frame, from the video's first frame; length T."""
    frames: npt.NDArray[np.uint8]
    """uint8 ``[T, H, W, 3]``, RGB."""
    span_index: int | None = None
    """Which of the video's spans it lies in; None: the video has none."""
    pixels: PixelSums | None = None
    """Of the frames that count; None: nobody asked."""

    def with_frames(self, frames: npt.NDArray[np.uint8]) -> Clip:
        """The same clip with other pixels."""
        return replace(self, frames=frames)

    def without_frames(self) -> Clip:
        """The same clip with no pixels: frames may be a view that must not be kept."""
        return self.with_frames(np.empty((0, 0, 0, 3), dtype=np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSummary:
    """How decoding one video went."""

    source: SourceInfo
    """The video itself."""
    num_clips: dict[float, int]
    """Clips made per target rate."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Reason -> number of target rates at which the healthy video gave no clip."""
    decode_seconds: float = 0.0
    """CPU seconds of the child since the last summary of the same pass: those of all add up."""
    num_dropped_frames: int = 0
    """Frames left out because their timestamps jump back too far to be put in order."""
