"""Decoding drawn videos: which frames are picked at which times, read back from the pixels."""

import gc
import itertools
from fractions import Fraction

import numpy as np
import pytest

from pipeline.decode import decode_plan
from pipeline.records import Clip, DecodeSummary, TailPolicy, VideoLimits
from tests.pipeline.media import SIZE, decoded, encode, expected_picks, plan_of, read_numbers

MILLISECONDS = Fraction(1, 1000)
RANDOM_MS = np.cumsum(np.random.default_rng(3).choice([17, 33, 34, 90, 320], 90)).tolist()
B_FRAMES = {"bf": "3", "b-pyramid": "normal"}


def numbers_at(clips, fps):
    return [number for clip in clips if clip.fps == fps for number in read_numbers(clip)]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx"),
        ("mpegts", "libx264"),
        ("mpeg", "mpeg2video"),
        ("avi", "mpeg4"),
        ("nut", "ffv1"),
    ],
)
def test_30_fps_gives_every_first_second_third_frame(container, codec):
    data = encode(range(60), container=container, codec=codec)
    clips, summary = decoded(data, plan_of(30, 15, 10))
    assert numbers_at(clips, 30) == list(range(60))
    assert numbers_at(clips, 15) == list(range(0, 56, 2))
    assert numbers_at(clips, 10) == list(range(0, 60, 3))
    assert summary.num_clips == {30: 15, 15: 7, 10: 5}
    assert summary.filtered == {}
    assert summary.source.num_frames == 60
    assert summary.source.fps == pytest.approx(30, rel=1e-3)
    assert summary.source.duration_seconds == pytest.approx(2, abs=2e-3)


@pytest.mark.parametrize("fps", [3, 5.5, 9])
@pytest.mark.parametrize(
    ("container", "options"), [("mp4", B_FRAMES), ("matroska", B_FRAMES), ("mp4", {"bf": "0"})]
)
def test_variable_rate_matches_the_slow_oracle(fps, container, options):
    data = encode(RANDOM_MS, time_base=MILLISECONDS, container=container, options=options)
    clips, summary = decoded(data, plan_of(fps))
    picks = expected_picks([ms / 1000 for ms in RANDOM_MS], fps, 4 * len(clips))
    assert len(picks) > 16
    assert numbers_at(clips, fps) == picks
    times = [seconds for clip in clips for seconds in clip.frame_seconds]
    assert times == pytest.approx([(RANDOM_MS[k] - RANDOM_MS[0]) / 1000 for k in picks], abs=1e-6)
    assert summary.source.num_frames == len(RANDOM_MS)


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_times_count_from_the_first_frame(container):
    data = encode(range(150, 170), container=container)
    clips, _ = decoded(data, plan_of(30))
    assert numbers_at(clips, 30) == list(range(20))
    assert clips[0].start_seconds == clips[0].frame_seconds[0] == 0


def test_frames_outside_the_edit_list_do_not_show_up():
    data = encode(
        range(-10, 30), options={"bf": "0"}, container_options={"avoid_negative_ts": "disabled"}
    )
    clips, summary = decoded(data, plan_of(30))
    assert numbers_at(clips, 30) == list(range(10, 38))
    assert summary.source.num_frames == 30


def rising_in_storage_order(packets):
    """As a recorder does that stamps packets as they leave the encoder."""
    times = sorted(packet.pts for packet in packets)
    for packet, time in zip(packets, times, strict=True):
        packet.pts = packet.dts = time
    return packets


def test_backward_timestamps_are_sorted_under_the_decoders_order():
    options = B_FRAMES | {"g": "100", "sc_threshold": "0"}
    data = encode(range(48), container="matroska", options=options, change=rising_in_storage_order)
    clips, summary = decoded(data, plan_of(30))
    assert numbers_at(clips, 30) == list(range(48))
    flat = [seconds for clip in clips for seconds in clip.frame_seconds]
    assert flat == pytest.approx([k / 30 for k in range(48)], abs=1e-3)
    assert summary.num_dropped_frames == 0


def test_missing_timestamps_follow_from_the_durations():
    data = encode(range(40), container="h264")  # a raw stream: it states durations only
    clips, summary = decoded(data, plan_of(30, 6))
    assert numbers_at(clips, 30) == list(range(40))
    assert numbers_at(clips, 6) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert summary.source.fps == 30
    assert summary.source.duration_seconds == pytest.approx(40 / 30)


@pytest.mark.parametrize(
    ("tail", "numbers", "end"),
    [("drop", [0, 1, 2, 3], 4 / 30), ("pad", [0, 1, 2, 3, 4, 5, 5, 5], 0.2)],
)
def test_tail(tail, numbers, end):
    clips, _ = decoded(encode(range(6)), plan_of(30, tail=TailPolicy[tail]))
    assert numbers_at(clips, 30) == numbers
    assert clips[-1].end_seconds == pytest.approx(end)


def test_last_frame_lasts_as_long_as_the_others():
    clips, _ = decoded(encode(range(0, 80, 2)), plan_of(60 / 4, 30 / 2.01))
    assert numbers_at(clips, 15) == list(range(40))


def test_rates_that_cannot_be_served_are_filtered():
    clips, summary = decoded(encode(range(30)), plan_of(60, 30, 1))
    assert summary.num_clips == {60: 0, 30: 7, 1: 0}
    assert summary.filtered == {"source_too_slow": 1, "too_short": 1}
    assert {clip.fps for clip in clips} == {30}


def test_slow_video_is_filtered_after_one_frame():
    _, summary = decoded(encode(range(30)), plan_of(60))
    assert summary.filtered == {"source_too_slow": 1}
    assert summary.source.num_frames == 1
    assert summary.source.fps == 30


def test_slowness_does_not_depend_on_where_the_pass_is_cut():
    times = [*range(40), *range(100, 400, 30)]  # 30 fps at first, 50 frames in 12 s in all
    for bound in (None, 1):
        clips, summary = decoded(encode(times), plan_of(30, 3, max_clips_per_video=bound))
        assert summary.filtered == {"source_too_slow": 1}
        assert summary.num_clips[3] == (9 if bound is None else 1)
        assert clips[0].fps == 3


def test_bounded_pass_stops_early_and_gives_the_same_clips():
    data = encode(range(120))
    every, _ = decoded(data, plan_of(30, 10))
    first, summary = decoded(data, plan_of(30, 10, max_clips_per_video=1))
    assert summary.num_clips == {30: 1, 10: 1}
    assert summary.source.num_frames < 20
    assert summary.source.duration_seconds == pytest.approx(4)
    for clip in first:
        same = next(c for c in every if c.fps == clip.fps)
        np.testing.assert_array_equal(clip.frames, same.frames)
        assert clip.frame_seconds == same.frame_seconds


def test_image_is_a_video_of_one_frame():
    data = encode([0], container="image2pipe", codec="png", pix_fmt="rgb24")
    clips, summary = decoded(data, plan_of(8, clip_frames=1))
    assert clips[0].frames.shape == (1, SIZE, SIZE, 3)
    assert summary.source.fps == 0
    assert decoded(data, plan_of(8))[1].filtered == {"too_short": 1}


def test_clips_are_written_where_the_caller_says():
    arrays = [np.zeros((4, SIZE, SIZE, 3), np.uint8) for _ in range(2)]
    supply = iter(arrays)
    items = decode_plan(
        encode(range(8)), plan_of(30), VideoLimits(), new_frames=lambda shape: next(supply)
    )
    clips = [item for item in items if isinstance(item, Clip)]
    assert all(clip.frames is array for clip, array in zip(clips, arrays, strict=True))
    assert read_numbers(clips[1]) == [4, 5, 6, 7]


def test_progress_counts_packets_and_frames():
    counter = itertools.count()
    *_, summary = decode_plan(
        encode(range(20)), plan_of(30), VideoLimits(), lambda: next(counter) and None
    )
    assert isinstance(summary, DecodeSummary)
    assert next(counter) >= 40


def test_pixels_go_when_they_were_used_not_when_the_garbage_collector_comes():
    data = encode(range(60))
    gc.collect()
    gc.disable()
    try:
        decoded(data, plan_of(30))
        assert gc.collect() < 60  # the container, not the frames
    finally:
        gc.enable()
