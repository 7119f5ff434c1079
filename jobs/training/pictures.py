"""Pictures of source frames over their reconstructions, written as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.training.checkpoints import write_atomically
from pipeline.png import png

GAP = 2
"""White pixels between the frames of a picture."""


def side_by_side(
    source: NDArray[np.uint8], made: NDArray[np.uint8], num_frames: int
) -> NDArray[np.uint8]:
    """Some frames in a row, what was made of them below: uint8 ``[2H + gap, nW + gaps, 3]``.

    Args:
        source: uint8 frames ``[T, H, W, 3]``.
        made: as many of the same size.
        num_frames: n at most, evenly spaced, the first and the last among them.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, num_frames).round().astype(int))
    height, width = source.shape[1:3]
    size = (2 * height + GAP, len(chosen) * (width + GAP) - GAP, 3)
    picture = np.full(size, 255, np.uint8)
    for column, index in enumerate(chosen):
        left = column * (width + GAP)
        picture[:height, left : left + width] = source[index]
        picture[height + GAP :, left : left + width] = made[index]
    return picture


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a PNG that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(png(picture)))
