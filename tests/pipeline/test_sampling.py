"""The sampling rule as tables: which ticks a frame serves, which clips there are."""

import doctest
from fractions import Fraction

import pytest

import pipeline.sampling
from pipeline.clip_sampler import ClipSampler
from pipeline.records import TailPolicy
from pipeline.sampling import (
    PresentationOrder,
    exact_rate,
    is_too_slow,
    last_frame_duration,
    mean_rate,
    tail_frames,
)
from tests.pipeline.media import expected_picks, plan_of

MILLISECOND = Fraction(1, 1000)


def sample(seconds, plan, *, end=None, too_slow=frozenset()):
    """Clips of a video whose frame k is the number k, and how often each frame was kept."""
    kept = []

    def keep(number):
        kept.append(number)
        return number

    sampler = ClipSampler(plan, keep, too_slow=too_slow)
    clips = []
    for number, time in enumerate(seconds):
        clips += sampler.add(Fraction(time), number)
        if sampler.is_done:
            break
    else:
        clips += sampler.finish(Fraction(seconds[-1] if end is None else end))
    return clips, kept, sampler


def cfr(fps, num_frames):
    return [Fraction(k) / fps for k in range(num_frames)]


def picks(clips):
    return [list(clip.frames) for clip in clips]


def test_doctests():
    assert doctest.testmod(pipeline.sampling).failed == 0


@pytest.mark.parametrize("rounding", [lambda x: x, round, int], ids=["exact", "nearest", "down"])
@pytest.mark.parametrize("offset_ms", [0, 3, Fraction(1, 2), Fraction(2, 3)])
@pytest.mark.parametrize(("fps", "step"), [(30, 1), (15, 2), (10, 3), (7.5, 4), (5, 6)])
def test_rounded_timestamps_of_30_fps_give_every_nth_frame(rounding, offset_ms, fps, step):
    stamps = [rounding(Fraction(1000 * k, 30) + offset_ms) for k in range(240)]
    seconds = [(stamp - stamps[0]) * MILLISECOND for stamp in stamps]
    clips, _, _ = sample(seconds, plan_of(fps), end=8)
    assert [pick for clip in clips for pick in clip.frames] == list(range(0, 240, step))


@pytest.mark.parametrize("fps", [3, 8, 24, 29.97])
def test_variable_rate_shows_the_last_frame_on_screen(fps):
    gaps_ms = [33, 34, 400, 5, 5, 5, 33, 1, 760, 33, 0, 40] * 8
    times = [Fraction(sum(gaps_ms[:k]), 1000) for k in range(len(gaps_ms))]
    clips, _, _ = sample(times, plan_of(fps, clip_frames=5), end=times[-1] + 1)
    flat = [pick for clip in clips for pick in clip.frames]
    assert len(flat) > 20
    assert flat == expected_picks([float(t) for t in times], fps, len(flat))


@pytest.mark.parametrize(
    ("num_ticks", "stride", "tail", "expected"),
    [
        (8, 4, "drop", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (7, 4, "drop", [[0, 1, 2, 3]]),
        (7, 4, "pad", [[0, 1, 2, 3], [4, 5, 6, 6]]),
        (8, 4, "pad", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (5, 4, "pad", [[0, 1, 2, 3], [4, 4, 4, 4]]),
        (3, 4, "drop", []),
        (3, 4, "pad", [[0, 1, 2, 2]]),
        (1, 4, "pad", [[0, 0, 0, 0]]),
        (8, 2, "drop", [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]),
        (8, 2, "pad", [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]),
        (7, 2, "pad", [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 6]]),
        (12, 6, "drop", [[0, 1, 2, 3], [6, 7, 8, 9]]),
        (6, 6, "pad", [[0, 1, 2, 3]]),
        (7, 6, "pad", [[0, 1, 2, 3], [6, 6, 6, 6]]),
    ],
)
def test_stride_and_tail(num_ticks, stride, tail, expected):
    plan = plan_of(8, stride_frames=stride, tail=TailPolicy[tail])
    clips, _, _ = sample(cfr(8, num_ticks), plan, end=Fraction(num_ticks, 8))
    assert picks(clips) == expected
    assert [clip.clip_index for clip in clips] == list(range(len(expected)))


def test_times_of_a_clip_and_of_a_padded_one():
    plan = plan_of(4, tail=TailPolicy.pad)
    clips, _, _ = sample(cfr(8, 11), plan, end=Fraction(11, 8))
    assert [(clip.start_seconds, clip.end_seconds) for clip in clips] == [(0, 1), (1, 1.375)]
    assert clips[0].frame_seconds == (0, 0.25, 0.5, 0.75)
    assert clips[1].frame_seconds == (1, 1.25, 1.25, 1.25)


def test_last_frame_stays_until_the_end_given():
    assert picks(sample(cfr(2, 2), plan_of(8), end=1)[0]) == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_single_frame_is_an_image_that_serves_one_tick():
    clips, _, _ = sample([0], plan_of(8, clip_frames=1, stride_frames=1))
    assert picks(clips) == [[0]]


def test_several_rates_in_one_pass_keep_each_frame_once():
    clips, kept, sampler = sample(cfr(30, 61), plan_of(30, 15, 10))
    by_rate = {fps: [p for c in clips if c.fps == fps for p in c.frames] for fps in (30, 15, 10)}
    assert by_rate == {30: list(range(60)), 15: list(range(0, 56, 2)), 10: list(range(0, 60, 3))}
    assert kept == list(range(60))
    assert sampler.num_clips == {30: 15, 15: 7, 10: 5}


def test_frames_between_clips_and_after_the_last_one_are_not_kept():
    plan = plan_of(10, stride_frames=10, max_clips_per_video=2)
    clips, kept, sampler = sample(cfr(30, 300), plan)
    assert kept == [0, 3, 6, 9, 30, 33, 36, 39]
    assert len(clips) == 2
    assert sampler.is_done


def test_bounded_pass_gives_the_beginning_of_an_unbounded_one():
    unbounded, _, _ = sample(cfr(30, 200), plan_of(30, 7))
    bounded, _, _ = sample(cfr(30, 200), plan_of(30, 7, max_clips_per_video=2))
    assert bounded == [clip for clip in unbounded if clip.clip_index < 2]


def test_rates_without_a_clip_are_filtered_by_reason():
    _, _, sampler = sample(cfr(8, 9), plan_of(30, 8, 2), too_slow=frozenset({30}))
    assert sampler.num_clips == {30: 0, 8: 2, 2: 0}
    assert sampler.filtered() == {"source_too_slow": 1, "too_short": 1}


def test_backward_time_is_the_callers_error():
    with pytest.raises(ValueError, match="comes after"):
        sample([0, 1, Fraction(1, 2)], plan_of(8))


@pytest.mark.parametrize(
    ("source", "target", "slow"),
    [
        (Fraction(30000, 1001), 30, False),
        (Fraction(24000, 1001), 24, False),
        (Fraction(294, 10), 30, False),
        (Fraction(2939, 100), 30, True),
        (Fraction(24), 25, True),
        (Fraction(1563, 100), 8, False),
        (None, 30, False),
    ],
)
def test_slow_sources(source, target, slow):
    assert is_too_slow(source, exact_rate(target)) is slow


def test_mean_rate_of_nothing_is_unknown():
    assert mean_rate([], MILLISECOND) is mean_rate([5], MILLISECOND) is None
    assert mean_rate([5, 5], MILLISECOND) is None


@pytest.mark.parametrize("fps", [0, -1.0])
def test_rate_must_be_positive(fps):
    with pytest.raises(ValueError, match="above 0"):
        exact_rate(fps)


def test_last_frame_duration_is_bounded_by_the_video_itself():
    assert last_frame_duration([], stated=40) == 40
    assert last_frame_duration([], stated=0) == 0
    assert last_frame_duration([30, 50, 40], stated=0) == 40
    assert last_frame_duration([30, 50, 40], stated=10**9) == 50


def test_tail_is_padded_only_where_it_shows_something_new():
    padded = plan_of(8.0, clip_frames=4, tail=TailPolicy.pad)
    assert tail_frames(0, 0, padded) is None
    assert tail_frames(1, 0, padded) == 4
    assert tail_frames(4, 1, padded) is None
    apart = plan_of(8.0, clip_frames=4, stride_frames=8, tail=TailPolicy.pad)
    assert tail_frames(6, 1, apart) is None
    assert tail_frames(1, 0, plan_of(8.0, clip_frames=4)) is None


def put_in_order(times, expected=None, **options):
    order = PresentationOrder(sorted(times) if expected is None else expected, **options)
    out, delays = [], []
    for number, time in enumerate(times):
        for item in order.add(time, number, size_bytes=1):
            delays.append(number - item[1])
            out.append(item)
    return [*out, *order.finish()], max(delays, default=0), order.num_dropped


def test_frames_in_order_never_wait():
    assert put_in_order([3, 5, 5, 9]) == ([(3, 0), (5, 1), (5, 2), (9, 3)], 0, 0)


def test_backward_timestamps_are_sorted_and_the_frames_are_not():
    out, delay, dropped = put_in_order([0, 101, 67, 134, 34, 234])
    assert out == [(0, 0), (34, 1), (67, 2), (101, 3), (134, 4), (234, 5)]
    assert (delay, dropped) == (3, 0)


def test_jump_back_beyond_the_window_drops_frames_not_the_video():
    times = [*range(100, 130), *range(10), *range(130, 140)]
    out, delay, dropped = put_in_order(times, max_frames=4)
    stamps = [time for time, _ in out]
    assert stamps == sorted(stamps)
    assert delay <= 4
    assert dropped == 10
    assert len(out) == 40


def test_waiting_frames_are_bounded_in_bytes():
    assert put_in_order([9, 8, 7, 6, 5, 4, 3, 2, 1], max_bytes=2)[1] == 2


def test_announced_frames_that_never_come_hold_nobody_for_long():
    out, delay, dropped = put_in_order(
        [20, 30, 40, 50, 60], expected=[0, 10, 20, 30, 40, 50, 60], max_frames=2
    )
    assert [time for time, _ in out] == [20, 30, 40, 50, 60]
    assert (delay, dropped) == (2, 0)


def test_frames_that_nobody_announced_pass():
    assert put_in_order([1, 2, 3], expected=[]) == ([(1, 0), (2, 1), (3, 2)], 0, 0)
