"""The section ``sampling`` of a run: which frames become clips, and what is kept of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from pipeline.records import SamplingMode, TailPolicy, Variant


class Cuts(enum.Enum):
    """What is done about cuts between shots."""

    none = "none"
    """A clip may cross them."""
    detect = "detect"
    """They are looked for in the pictures, and no clip crosses one."""


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """Which clips are cut out of a video."""

    fps: list[float] = field(default_factory=lambda: [8.0])
    """Reduced frame rates; one decoding pass serves them all."""
    mode: SamplingMode = SamplingMode.clips
    """clips: rows of clip_frames; whole: one row per video and rate, however long (causal only)."""
    clip_frames: int | None = None
    """T, frames in a clip; null: the tokenizer's own (17, 16 non-causal). whole: per piece, 16."""
    stride_frames: int | None = None
    """Frames between the starts of two clips; null: clip_frames (no overlap)."""
    max_clips_per_video: int | None = None
    """Per rate; null: no bound."""
    tail: TailPolicy = TailPolicy.drop
    """drop or pad (the last frame is repeated) an incomplete last clip."""
    resolution: int | None = None
    """Pixels of a clip's sides: short side resized to it, then cropped; null: the tokenizer's."""
    buckets: Any = None
    """List of [H, W] instead of a square: a video takes the one of the nearest aspect ratio."""
    variant: Variant = Variant.none
    """What is kept: none: the centre; flip: it, left and right exchanged; crop_start: the left or
    top end; crop_end: the right or bottom end; flip_crop_start, flip_crop_end: those, flipped."""
    cuts: Cuts = Cuts.none
    """detect: clips do not cross cuts between shots, which are found in the pictures."""
    cut_threshold: float = 27.0
    """Mean change of luma from a picture to the next that is a cut, in grey levels (0 to 255)."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if not self.fps or any(not 0 < rate <= 1000 for rate in self.fps):
            raise ValueError(f"sampling.fps must be a list of rates in (0, 1000], got {self.fps}")
        if len(set(self.fps)) != len(self.fps):
            raise ValueError(f"sampling.fps names a rate twice: {self.fps}")
        for name in ("clip_frames", "stride_frames", "max_clips_per_video", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sampling.{name} must be at least 1, got {value}")
        if not 0 < self.cut_threshold <= 255:
            raise ValueError(
                f"sampling.cut_threshold must be in (0, 255], got {self.cut_threshold}"
            )
