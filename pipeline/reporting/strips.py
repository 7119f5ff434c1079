"""A clip beside what the decoder makes of its tokens, and how near they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

NUM_FRAMES = 6
"""Of a clip, side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One clip, before and after."""

    clip_id: str
    caption: str | None
    fps: float
    bucket: str
    psnr: float
    """Of all frames of the clip, in dB."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """What each shows -> PNG or JPEG, from top to bottom."""

    @property
    def kind(self) -> str:
        """Rate and bucket."""
        return f"{self.fps:g} fps, {self.bucket}"

    def with_pictures(self, pictures: Mapping[str, bytes]) -> Strip:
        """The same clip with these."""
        return replace(self, pictures=pictures)


def psnr(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all values, peak 255; inf for equal frames.

    >>> frames = np.zeros((1, 2, 2, 3), np.uint8)
    >>> psnr(frames, frames), round(psnr(frames, frames + np.uint8(255)), 1)
    (inf, 0.0)
    """
    error = float(np.mean((before.astype(np.float64) - after) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def psnr_by_kind(strips: Sequence[Strip]) -> dict[str, tuple[int, float]]:
    """Number of clips and median PSNR for each rate and bucket."""
    kinds: dict[str, list[float]] = {}
    for one in strips:
        kinds.setdefault(one.kind, []).append(one.psnr)
    return {kind: (len(found), float(np.median(found))) for kind, found in sorted(kinds.items())}
