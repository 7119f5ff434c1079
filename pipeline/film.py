"""Frames of a clip in a row, and what was made of them below, as one picture. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rgb = npt.NDArray[np.uint8]
"""uint8 ``[H, W, 3]``."""
WHITE = 255


def spread(num_frames: int, most: int) -> tuple[int, ...]:
    """Which frames to show: the first, the last and some evenly between them.

    Args:
        num_frames: of the clip, 1 or more.
        most: frames shown at most, 1 or more.

    >>> spread(17, 4), spread(1, 4), spread(3, 6)
    ((0, 5, 11, 16), (0,), (0, 1, 2))
    """
    return tuple(sorted({round(at) for at in np.linspace(0, num_frames - 1, most).tolist()}))


def film(*videos: npt.NDArray[np.uint8], shown: Sequence[int], gap: int = 0) -> Rgb:
    """Frames from left to right, one video below the other.

    Args:
        videos: uint8 ``[T, H, W, 3]`` each, of one size: a source, its reconstruction.
        shown: which frames of each.
        gap: white pixels between two frames.

    Returns:
        uint8 ``[m * H + (m - 1) * gap, n * W + (n - 1) * gap, 3]`` of m videos and n frames.
    """
    rows = [in_a_row(video[list(shown)], gap=gap) for video in videos]
    columns = in_a_row(np.stack(rows).swapaxes(1, 2), gap=gap)
    return columns.swapaxes(0, 1)


def in_a_row(pictures: npt.NDArray[np.uint8], *, gap: int, colour: int = WHITE) -> Rgb:
    """Pictures side by side with room between them.

    Args:
        pictures: uint8 ``[n, H, W, 3]``.
        gap: pixels between two.
        colour: of the room, a grey 0 to 255.

    Returns:
        uint8 ``[H, n * W + (n - 1) * gap, 3]``.
    """
    num, height, width, _ = pictures.shape
    wide = np.full((height, num * (width + gap) - gap, 3), colour, dtype=np.uint8)
    for at, picture in enumerate(pictures):
        wide[:, at * (width + gap) : at * (width + gap) + width] = picture
    return wide
