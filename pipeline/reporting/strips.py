"""A clip beside what the decoder makes of its tokens, and how near they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.reporting.pictures import Rgb

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
    source: Rgb
    """Some of its frames, side by side."""
    reconstruction: Rgb
    """The same frames, decoded from the tokens."""


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
        kinds.setdefault(f"{one.fps:g} fps, {one.bucket}", []).append(one.psnr)
    return {kind: (len(found), float(np.median(found))) for kind, found in sorted(kinds.items())}
