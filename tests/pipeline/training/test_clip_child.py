"""A drawn clip against the pipeline's own clips of the same real video."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.demo import CLIPS
from pipeline.errors import VideoError
from pipeline.records import Clip, DecodeSummary, VideoLimits
from pipeline.training.clip_child import decode_drawn
from pipeline.training.draws import Draw, with_draws
from tests.pipeline.media import decoded, plan_of

CENTRE = Draw(fps=25.0, start=0.0, across=None, down=None, mirrored=False, zoom=1.0)


def drawn_clips(video: bytes, draws: list[Draw], clip_frames: int = 17) -> list[np.ndarray]:
    plan = plan_of(*{draw.fps for draw in draws}, clip_frames=clip_frames)
    items = decode_drawn(with_draws(draws, video), (plan,), VideoLimits())
    *clips, summary = [item for _, item in items]
    assert isinstance(summary, DecodeSummary)
    assert sum(summary.num_clips.values()) == len(draws)
    return [clip.frames for clip in clips if isinstance(clip, Clip)]


@pytest.mark.parametrize(
    ("name", "fps"),
    [("bunny.mp4", 25.0), ("bunny.mp4", 12.5), ("drums.3gp", 8.0),
     ("beak.webm", 10.0), ("guitar.mkv", 24.0)],
)  # fmt: skip
def test_frames_before_the_last_are_those_that_the_pipeline_encodes(name: str, fps: float) -> None:
    video = (CLIPS / name).read_bytes()
    [clip] = drawn_clips(video, [dataclasses.replace(CENTRE, fps=fps)])
    ours, _ = decoded(video, plan_of(fps, clip_frames=17, max_clips_per_video=1))
    np.testing.assert_array_equal(clip[:-1], ours[0].frames[:-1])
    assert not np.array_equal(clip[-1], ours[0].frames[-1])  # one further, as published


def test_several_clips_of_one_pass_are_those_of_several_passes() -> None:
    video = (CLIPS / "cup_portrait.mp4").read_bytes()
    draws = [
        Draw(fps=8.0, start=0.9, across=0.1, down=0.8, mirrored=True, zoom=1.0),
        Draw(fps=25.0, start=0.2, across=None, down=0.1, mirrored=False, zoom=1.0),
        Draw(fps=8.0, start=0.0, across=0.5, down=0.5, mirrored=False, zoom=1.0),
    ]
    together = drawn_clips(video, draws, 5)
    for draw, clip in zip(draws, together, strict=True):
        np.testing.assert_array_equal(drawn_clips(video, [draw], 5)[0], clip)


def test_a_damaged_video_is_condemned_as_in_the_pipeline() -> None:
    with pytest.raises(VideoError, match="not_a_video"):
        drawn_clips((CLIPS / "damaged.mp4").read_bytes(), [CENTRE])
