"""What a clip's pixels say of it, cheaply: brightness, blackness, and whether anything moves.

Every fourth pixel of every fourth row is looked at. Sums of whole numbers, so that the same frames
give the same values on every machine, and pieces of a video can be added up. Decoder children
import this file: standard library and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.records import PixelSums

STEP = 4
"""Of so many pixels in a row, and rows, one is looked at."""
BLACK_LUMA = 16
"""A pixel that is not brighter counts as black: grey levels of 0..255."""
_WEIGHTS = (77, 150, 29)
"""Of R, G and B in BT.601's luma, times 256."""
_DIGITS = 4
"""Decimals that are stored."""


def pixel_sums(frames: npt.NDArray[np.uint8]) -> PixelSums:
    """Sums over uint8 ``[T, H, W, 3]``, RGB.

    >>> pixel_sums(np.full((2, 8, 8, 3), 255, np.uint8))
    PixelSums(values=8, luma=2040, black=0, changes=4, change=0)
    """
    luma = _luma(frames[:, STEP // 2 :: STEP, STEP // 2 :: STEP])
    change = np.abs(luma[1:] - luma[:-1])
    return PixelSums(
        values=luma.size,
        luma=int(luma.sum()),
        black=int((luma <= BLACK_LUMA).sum()),
        changes=change.size,
        change=int(change.sum()),
    )


def _luma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    red, green, blue = (pixels[..., at].astype(np.int32) * _WEIGHTS[at] for at in range(3))
    luma: npt.NDArray[np.int32] = (red + green + blue + 128) >> 8
    return luma


def pixel_columns(pieces: Iterable[PixelSums]) -> dict[str, float | None]:
    """``luma_mean``, ``frame_difference`` and ``black_fraction`` of a clip, or of all its pieces.

    Returns:
        Mean luma and its mean change from a frame to the next in grey levels of 0..255, and the
        share of black pixels in 0..1. No change is None where there is one frame only. The change
        from one piece to the next is left out.
    """
    values = luma = black = changes = change = 0
    for piece in pieces:
        values, luma, black = values + piece.values, luma + piece.luma, black + piece.black
        changes, change = changes + piece.changes, change + piece.change
    return {
        "luma_mean": _ratio(luma, values),
        "frame_difference": _ratio(change, changes),
        "black_fraction": _ratio(black, values),
    }


def _ratio(numerator: int, denominator: int) -> float | None:
    return round(numerator / denominator, _DIGITS) if denominator else None


def index_entropy(indices: npt.NDArray[np.int32]) -> float:
    """Shannon entropy of a clip's indices in bits: 0 for one index, log2(n) for n equally often.

    >>> index_entropy(np.array([[[5, 5, 9, 9]]], np.int32))
    1.0
    """
    counts = np.unique(indices, return_counts=True)[1]
    shares = counts / indices.size
    return round(math.fsum(-share * math.log2(share) for share in shares.tolist()), _DIGITS) + 0.0
