"""Geometry and colour tags as tables."""

import doctest
from fractions import Fraction

import numpy as np
import pytest

import pipeline.transforms
from pipeline.records import Variant
from pipeline.transforms import Orientation, center_crop_offset, clip_geometry, scaler_matrix

UPRIGHT = Orientation()
ONE = 65536
PICTURE = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)


def geometry(
    width, height, clip=(256, 256), *, aspect=None, orientation=UPRIGHT, variant=Variant.none
):
    g = clip_geometry(
        width,
        height,
        pixel_aspect=aspect,
        orientation=orientation,
        clip_width=clip[0],
        clip_height=clip[1],
        variant=variant,
    )
    return (g.shown_width, g.shown_height), (g.scaled_width, g.scaled_height), (g.left, g.top)


def test_doctests():
    assert doctest.testmod(pipeline.transforms).failed == 0


@pytest.mark.parametrize(
    ("size", "clip", "scaled", "offset"),
    [
        ((1920, 1080), (256, 256), (455, 256), (100, 0)),  # 455.1 is cut, 99.5 goes to even
        ((1080, 1920), (256, 256), (256, 455), (0, 100)),
        ((640, 272), (128, 128), (301, 128), (86, 0)),
        ((256, 256), (256, 256), (256, 256), (0, 0)),
        ((100, 50), (256, 256), (512, 256), (128, 0)),  # enlarged
        ((640, 480), (256, 128), (256, 192), (0, 32)),  # the width decides
        ((1920, 1080), (224, 160), (284, 160), (30, 0)),
        ((1, 1), (128, 128), (128, 128), (0, 0)),
    ],
)
def test_picture_covers_the_clip(size, clip, scaled, offset):
    assert geometry(*size, clip) == (size, scaled, offset)


@pytest.mark.parametrize(
    ("size", "aspect", "shown", "scaled"),
    [
        ((720, 576), Fraction(16, 15), (768, 576), (341, 256)),
        ((176, 144), Fraction(128, 117), (193, 144), (342, 256)),
        ((1440, 1080), Fraction(4, 3), (1920, 1080), (455, 256)),
        ((720, 576), Fraction(1, 2), (360, 576), (256, 409)),
        ((720, 576), Fraction(0), (720, 576), (320, 256)),
    ],
)
def test_pixel_aspect_is_undone(size, aspect, shown, scaled):
    assert geometry(*size, aspect=aspect)[:2] == (shown, scaled)


def test_turned_picture_is_scaled_as_coded_and_cropped_as_shown():
    turned = Orientation(transposed=True)
    assert geometry(1920, 1080, orientation=turned) == ((1080, 1920), (455, 256), (0, 100))
    wide = geometry(720, 576, (256, 128), aspect=Fraction(16, 15), orientation=turned)
    assert wide == ((576, 768), (341, 256), (0, 106))


@pytest.mark.parametrize("size", [(0, 10), (10, 0)])
def test_empty_picture_is_refused(size):
    with pytest.raises(ValueError, match="at least 1"):
        geometry(*size)


@pytest.mark.parametrize(
    ("size", "start", "end"),
    [
        ((1920, 1080), (0, 0), (199, 0)),
        ((1080, 1920), (0, 0), (0, 199)),
        ((512, 512), (0, 0), (0, 0)),
    ],
)
def test_variant_crops_at_an_end_of_the_long_side(size, start, end):
    for variant, offset in ((Variant.crop_start, start), (Variant.flip_crop_end, end)):
        assert geometry(*size, variant=variant)[2] == offset


def test_crop_offset_rounds_half_to_even():
    assert [center_crop_offset(size, 256) for size in (256, 257, 258, 259, 455)] == [
        0,
        0,
        1,
        2,
        100,
    ]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((ONE, 0, 0, ONE), PICTURE),
        ((-ONE, 0, 0, -ONE), np.rot90(PICTURE, 2)),
        ((0, ONE, -ONE, 0), np.rot90(PICTURE, -1)),  # x -> down, y -> left: clockwise
        ((0, -ONE, ONE, 0), np.rot90(PICTURE, 1)),
        ((-ONE, 0, 0, ONE), PICTURE[:, ::-1]),
        ((ONE, 0, 0, -ONE), PICTURE[::-1]),
        ((0, ONE, ONE, 0), PICTURE.swapaxes(0, 1)),
        ((46341, 46340, -46340, 46341), PICTURE),  # just below 45 degrees
        ((0, 0, 0, 0), PICTURE),
    ],
)
def test_display_matrix(matrix, expected):
    a, b, c, d = matrix
    turned = Orientation.from_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30]).apply(PICTURE)
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize(
    ("tag", "height", "matrix"),
    [(2, 719, 5), (2, 720, 1), (1, 100, 1), (5, 2160, 5), (6, 2160, 5), (7, 100, 7), (4, 100, 4),
     (9, 480, 9), (10, 480, 9), (0, 480, None), (8, 1080, None)],
)  # fmt: skip
def test_matrix_by_tag_then_by_height(tag, height, matrix):
    assert scaler_matrix(tag, height) == matrix
