"""What an evaluation is made of: videos' time, places on Ray, the settings of a folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.evaluation import pictures
from pipeline.decode_pictures import Work
from pipeline.errors import VideoError
from pipeline.records import VideoLimits

CLIPS = Path(__file__).parents[2] / "pipeline" / "demo_clips"


def test_what_a_model_does_with_pictures_is_not_booked_to_their_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the clock stands for a large model's work on the picture before it."""
    clock, added = time.process_time, 0.0
    monkeypatch.setattr(time, "process_time", lambda: clock() + added)
    clip = (CLIPS / "short.mp4").read_bytes()
    number = 0
    for _ in pictures.shown_pictures(clip, VideoLimits(), 30):
        number += 1
        added += 1000.0
    assert number > 10


def test_work_counts_all_of_its_time_but_that_spent_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 5.0
    monkeypatch.setattr(time, "process_time", lambda: now)
    limits = VideoLimits()
    work = Work(limits)
    now += 1
    with work.elsewhere():
        now += 10 * limits.cpu_seconds
    now += 2
    assert work.cpu_seconds == work.new_seconds() == 3
    work.check(1, 100)
    now += limits.cpu_seconds
    with pytest.raises(VideoError, match="too_much_work"):
        work.check(1, 100)
