"""From a decoded picture to the pixels of a clip: sizes, crops, orientation, colour tags.

Pure arithmetic; the resampling itself is done by the decoder's scaler. The geometry is that of the
reference preprocessing (short side to the clip's size, then a centre crop), extended by what real
files need: pixels that are not square, rotation tags, clips that are not square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pipeline.records import Variant


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a coded picture is turned before it is shown: transpose first, then the two flips."""

    transposed: bool = False
    """Rows become columns."""
    flip_columns: bool = False
    """Left and right are exchanged (after the transpose)."""
    flip_rows: bool = False
    """Top and bottom are exchanged (after the transpose)."""

    @classmethod
    def from_matrix(cls, matrix: Sequence[int]) -> Orientation:
        """The quarter turn or mirroring nearest to a container's display matrix.

        Args:
            matrix: nine integers, rows of a 3x3 matrix that maps (column, row, 1) as a row
                vector; only signs and relative sizes of the upper left 2x2 matter.

        >>> Orientation.from_matrix([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]) == Orientation()
        True
        """
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, flip_columns=c < 0, flip_rows=b < 0)
        return cls(transposed=False, flip_columns=a < 0, flip_rows=d < 0)

    @classmethod
    def from_degrees(cls, rotation: float) -> Orientation:
        """The quarter turn nearest to a display matrix's angle, counter-clockwise as FFmpeg has it.

        >>> Orientation.from_degrees(-90) == Orientation(transposed=True, flip_columns=True)
        True
        """
        turns = round(rotation / 90) % 4
        return cls(
            transposed=turns % 2 == 1, flip_columns=turns in (2, 3), flip_rows=turns in (1, 2)
        )

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture ``[H, W, 3]`` as shown; a view, nothing is copied."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        if self.flip_columns:
            picture = picture[:, ::-1]
        if self.flip_rows:
            picture = picture[::-1]
        return picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Everything needed to turn one size of coded picture into clip pixels."""

    shown_width: int
    """Columns as shown: pixel aspect and orientation applied."""
    shown_height: int
    """Rows as shown."""
    scaled_width: int
    """Columns to which the coded picture is scaled, before it is turned."""
    scaled_height: int
    """Rows to which the coded picture is scaled, before it is turned."""
    left: int
    """First column of the crop, after the picture is turned."""
    top: int
    """First row of the crop, after the picture is turned."""
    is_flipped: bool = False
    """Left and right of the crop are exchanged."""


def clip_geometry(
    width: int,
    height: int,
    *,
    pixel_aspect: Fraction | None,
    orientation: Orientation,
    clip_width: int,
    clip_height: int,
    variant: Variant = Variant.none,
) -> Geometry:
    """Scale so that the shown picture just covers the clip, then crop its centre, or an end.

    For a square clip this is the reference's "short side = resolution, centre crop", with the
    same truncation of the long side and the same rounding of the crop's offset.

    Args:
        width: columns of the coded picture.
        height: rows of the coded picture.
        pixel_aspect: width of a coded pixel over its height; None or not positive means square.
        orientation: how the coded picture is turned to be shown.
        clip_width: columns of the clip.
        clip_height: rows of the clip.
        variant: where the crop lies, and whether it is flipped.

    >>> g = clip_geometry(1920, 1080, pixel_aspect=None, orientation=Orientation(),
    ...                   clip_width=256, clip_height=256)
    >>> g.scaled_width, g.scaled_height, g.left, g.top
    (455, 256, 100, 0)
    """
    if min(width, height, clip_width, clip_height) < 1:
        raise ValueError(
            f"sizes must be at least 1, got picture {width}x{height}, clip "
            f"{clip_width}x{clip_height}"
        )
    aspect = pixel_aspect if pixel_aspect is not None and pixel_aspect > 0 else Fraction(1)
    across, down = Fraction(width) * aspect, Fraction(height)
    if orientation.transposed:
        across, down = down, across
    scale = max(clip_width / across, clip_height / down)
    # int() cuts the long side off as the reference does; the side that decides comes out exact.
    scaled_across = max(clip_width, int(across * scale))
    scaled_down = max(clip_height, int(down * scale))
    turned = (scaled_down, scaled_across) if orientation.transposed else (
        scaled_across, scaled_down)  # fmt: skip
    return Geometry(
        shown_width=max(1, round(across)),
        shown_height=max(1, round(down)),
        scaled_width=turned[0],
        scaled_height=turned[1],
        left=crop_offset(scaled_across, clip_width, variant),
        top=crop_offset(scaled_down, clip_height, variant),
        is_flipped=variant.is_flipped,
    )


def crop_offset(size: int, crop: int, variant: Variant) -> int:
    """First kept row or column of a variant's crop, before it is flipped.

    >>> [crop_offset(9, 4, variant) for variant in Variant]
    [2, 2, 0, 5, 0, 5]
    """
    ends = {"start": 0, "centre": center_crop_offset(size, crop), "end": size - crop}
    return ends[variant.crop]


def center_crop_offset(size: int, crop: int) -> int:
    """First kept row or column of a centre crop; a half is rounded to the even neighbour.

    >>> [center_crop_offset(size, 4) for size in (4, 5, 6, 7, 9)]
    [0, 0, 1, 2, 2]
    """
    return round((size - crop) / 2)


def drawn_offset(size: int, crop: int, chance: float | None, *, centre: int) -> int:
    """First kept row or column of a crop that chance, in [0, 1), puts anywhere; None: the centre.

    >>> [drawn_offset(6, 4, chance, centre=1) for chance in (0.0, 0.4, 0.999, None)]
    [0, 1, 2, 1]
    """
    return centre if chance is None else int(chance * (size - crop + 1))


# The integers of ITU-T H.273 (MatrixCoefficients), which FFmpeg's tags share.
BT709 = 1
UNSPECIFIED = 2
FCC = 4
BT470BG = 5
SMPTE170M = 6
SMPTE240M = 7
BT2020_NCL = 9
BT2020_CL = 10

_MATRIX_TO_SCALER = {
    BT709: BT709,
    FCC: FCC,
    BT470BG: BT470BG,
    SMPTE170M: BT470BG,
    SMPTE240M: SMPTE240M,
    BT2020_NCL: BT2020_NCL,
    BT2020_CL: BT2020_NCL,
}
HD_HEIGHT = 720
"""Coded rows from which an untagged picture is taken for BT.709; below, for BT.601."""


def scaler_matrix(tag: int, coded_height: int) -> int | None:
    """Which colour matrix the scaler is told to undo for a YUV picture.

    The picture's own tag counts; an untagged picture is BT.709 from 720 coded rows, BT.601 below
    (the convention of players; FFmpeg's scaler alone would take BT.601 whatever the size).

    Args:
        tag: MatrixCoefficients of the decoded frame.
        coded_height: rows before scaling and turning.

    Returns:
        The scaler's name for it (BT.601 is 5), or None for a matrix it does not know.

    >>> scaler_matrix(UNSPECIFIED, 1080), scaler_matrix(UNSPECIFIED, 480), scaler_matrix(9, 480)
    (1, 5, 9)
    """
    if tag == UNSPECIFIED:
        return BT709 if coded_height >= HD_HEIGHT else BT470BG
    return _MATRIX_TO_SCALER.get(tag)


def nearest_bucket(
    shown_width: int, shown_height: int, buckets: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The (H, W) whose aspect ratio is nearest, as a ratio of ratios; the first one of equals.

    >>> nearest_bucket(1920, 1080, [(256, 256), (192, 336), (336, 192)])
    (192, 336)
    """
    aspect = math.log(shown_width / shown_height)
    return min(buckets, key=lambda bucket: abs(math.log(bucket[1] / bucket[0]) - aspect))
