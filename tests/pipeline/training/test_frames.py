"""Which pictures a training clip shows: the published choice, and what it means in time."""

from __future__ import annotations

import doctest
import json
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.training import draws, frames, recipe, windows
from pipeline.training.frames import (
    SlotPicker,
    clip_slots,
    frame_numbers,
    num_slots,
    num_starts,
    with_ends,
)

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "training.json"
CASES = json.loads(GOLDEN.read_text())["frame_sampling"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["args"]))
def test_frame_numbers_are_those_of_the_published_code(case: dict) -> None:
    num_frames, source_rate, wanted, rate, start = case["args"]
    assert frame_numbers(num_frames, source_rate, wanted, rate, start) == case["idx"]


@pytest.mark.parametrize(
    ("num_frames", "source_rate", "wanted", "rate"),
    [
        (300, 30.0, 17, 3),
        (300, 29.97, 17, 8),
        (66, 30.0, 17, 8),
        (65, 30.0, 17, 8),
        (12, 30, 17, 8),
    ],
)
def test_every_start_stays_inside_the_video(
    num_frames: int, source_rate: float, wanted: int, rate: float
) -> None:
    starts = num_starts(num_frames, source_rate, wanted, rate)
    for start in range(starts):
        numbers = frame_numbers(num_frames, source_rate, wanted, rate, start)
        assert numbers[0] == start
        assert numbers == sorted(numbers)
        assert numbers[-1] < num_frames
    chances = [clip_slots(num_frames, source_rate, wanted, rate, (i + 0.5) / starts)
               for i in range(starts)]  # fmt: skip
    assert [slots[0] for slots in chances] == list(range(starts))


def test_a_short_video_is_squeezed_and_its_last_frame_repeated() -> None:
    assert clip_slots(12, 30.0, 17, 30, 0.7) == [*range(12), *[11] * 5]
    assert clip_slots(20, 30.0, 17, 8, 0.7)[-1] == 19
    assert clip_slots(1, 25.0, 4, 8, 0.7) == [0, 0, 0, 0]


def picked(slots: list[int], rate: Fraction, times: list[float]) -> list[int]:
    picker = SlotPicker[int, int](slots, rate, lambda frame: frame)
    pictures = ((Fraction(str(time)), number) for number, time in enumerate(times))
    for frame, until in with_ends(pictures):
        picker.show(frame, until=until)
    assert picker.is_done
    return picker.frames


def test_at_a_constant_rate_slots_are_frames_even_with_timestamps_in_whole_milliseconds() -> None:
    times = [round(number / 29.97, 3) for number in range(200)]
    slots = [0, 1, 57, 57, 198, 199]
    assert picked(slots, Fraction(2997, 100), times) == slots


def test_at_a_variable_rate_slots_are_evenly_spaced_in_time() -> None:
    times = [0.0, 0.1, 0.2, 0.3, 1.0, 2.0]  # a mean rate of 2.5
    assert num_slots(Fraction(12, 5), Fraction(5, 2)) == 6
    assert picked([0, 1, 2, 3, 4, 5], Fraction(5, 2), times) == [2, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("module", [draws, frames, recipe, windows], ids=lambda m: m.__name__)
def test_examples_in_docstrings_are_true(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
