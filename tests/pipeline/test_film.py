"""Frames in a row, and what was made of them below."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.film import film, in_a_row, spread


@pytest.mark.parametrize(
    ("num_frames", "most", "shown"),
    [(1, 6, (0,)), (2, 6, (0, 1)), (5, 4, (0, 1, 3, 4)), (17, 1, (0,)), (17, 3, (0, 8, 16))],
)
def test_first_and_last_frame_are_shown_and_none_twice(
    num_frames: int, most: int, shown: tuple[int, ...]
) -> None:
    assert spread(num_frames, most) == shown


def test_every_frame_stands_over_its_own() -> None:
    above = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    picture = film(above, above + 100, shown=(0, 4), gap=1)
    assert picture.shape == (5, 7, 3)
    expected = np.full((5, 7), 255)
    expected[:2, :3], expected[:2, 4:] = 0, 4
    expected[3:, :3], expected[3:, 4:] = 100, 104
    assert np.array_equal(picture, np.repeat(expected[..., None], 3, axis=2))
    assert picture.dtype == np.uint8


def test_without_a_gap_nothing_but_frames_is_there() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    assert np.array_equal(film(clip, shown=range(3)), np.concatenate(list(clip), axis=1))


def test_the_room_between_pictures_has_its_grey() -> None:
    assert in_a_row(np.zeros((3, 1, 1, 3), np.uint8), gap=2, colour=128)[0, :, 0].tolist() == [
        *(0, 128, 128),
        *(0, 128, 128),
        0,
    ]
