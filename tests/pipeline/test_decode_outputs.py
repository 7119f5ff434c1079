"""One pass for several outputs gives each what a pass for it alone gives, to the byte."""

from __future__ import annotations

import time
from dataclasses import replace

import av
import numpy as np
import pytest

from pipeline.cuts import CutDetector
from pipeline.decode import decode_clips, decode_plan
from pipeline.decode_image import decode_image
from pipeline.decode_pictures import Work
from pipeline.demo import CLIPS
from pipeline.errors import VideoError
from pipeline.records import (
    IMAGE_FPS,
    Clip,
    ClipPlan,
    DecodeSummary,
    SamplingMode,
    TailPolicy,
    TimeSpan,
    VideoLimits,
)
from pipeline.scaling import RgbScaler
from tests.pipeline import pictures
from tests.pipeline.media import encode, numbered, plan_of
from tests.pipeline.test_decode_bad import noisy

PLANS = (
    plan_of(8, 25, clip_frames=9),
    plan_of(
        12,
        clip_frames=5,
        stride_frames=3,
        tail=TailPolicy.pad,
        buckets=((48, 96), (96, 48)),
        cut_threshold=20.0,
    ),
    plan_of(8, clip_frames=4, max_clips_per_video=1),
    plan_of(5, clip_frames=6, cut_threshold=4.0),
)
WHOLE = plan_of(6, clip_frames=8, mode=SamplingMode.whole, time_factor=4, buckets=((32, 32),))
SPANS = (TimeSpan(0.5, 1.5), TimeSpan(1.0), TimeSpan(60.0))


def damaged(data: bytes, share: float = 0.6) -> bytes:
    """From this share on, some bytes are zeros."""
    at = int(len(data) * share)
    return data[:at] + bytes(4000) + data[at + 4000 :]


def read(name: str) -> bytes:
    return (CLIPS / name).read_bytes()


VIDEOS = {
    "h264": lambda: read("bunny.mp4"),
    "vp9": lambda: read("beak.webm"),
    "rotated": lambda: read("cup_portrait.mp4"),
    "h264 with B-frames": lambda: encode(range(70), options={"bf": "3", "b-pyramid": "normal"}),
    "one frame": lambda: encode([0], container="image2pipe", codec="png", pix_fmt="rgb24"),
    "damaged in the middle": lambda: damaged(read("bunny.mp4")),
    "damaged packets": lambda: damaged(encode(range(90), draw=noisy, options={"g": "10"})),
    "cut off": lambda: read("guitar.mkv")[: -len(read("guitar.mkv")) // 3],
    "garbage": lambda: read("damaged.mp4"),
}


def comparable(item: Clip | DecodeSummary | VideoError) -> object:
    """All that an item says, but for the time it took."""
    if isinstance(item, Clip):
        return repr(item.without_frames()), item.frames.shape, item.frames.tobytes()
    if isinstance(item, DecodeSummary):
        return replace(item, decode_seconds=0.0)
    return item.reason, item.message


def alone(data: bytes, plan: ClipPlan, limits: VideoLimits, spans: object = None) -> list[object]:
    found = []
    try:
        for item in decode_plan(data, plan, limits, spans=spans):
            found.append(comparable(item))
    except VideoError as error:
        found.append(comparable(error))
    return found


def together(items, outputs) -> dict[int, list[object]]:
    """What each output got; the error of the whole video is the end of those without one."""
    found: dict[int, list[object]] = {output: [] for output in outputs}
    still_open = set(outputs)
    try:
        for output, item in items:
            assert output in still_open
            found[output].append(comparable(item))
            if not isinstance(item, Clip):
                still_open.remove(output)
        assert not still_open
    except VideoError as error:
        for output in still_open:
            found[output].append(comparable(error))
    return found


@pytest.mark.parametrize("spans", [None, SPANS], ids=["anywhere", "spans"])
@pytest.mark.parametrize("name", VIDEOS)
def test_each_output_gets_what_a_pass_for_it_alone_gives(name, spans):
    data, limits = VIDEOS[name](), VideoLimits()
    plans = PLANS if spans else (*PLANS, WHOLE)
    found = together(decode_clips(data, plans, limits, spans=spans), range(len(plans)))
    for output, plan in enumerate(plans):
        assert found[output] == alone(data, plan, limits, spans)


def test_each_output_meets_the_bound_on_clips_that_it_meets_alone():
    data, limits = read("bunny.mp4"), VideoLimits(clips=5)
    found = together(decode_clips(data, PLANS, limits), range(len(PLANS)))
    ends = [found[output][-1] for output in found]
    assert found == {output: alone(data, plan, limits) for output, plan in enumerate(PLANS)}
    assert {end[0] for end in ends if isinstance(end, tuple)} == {"too_many_clips"}
    assert isinstance(ends[2], DecodeSummary)


@pytest.mark.parametrize("outputs", [(0,), (1, 3), (0, 2, 3)])
def test_only_the_outputs_that_are_wanted_come(outputs):
    data, limits = encode(range(70)), VideoLimits()
    found = together(decode_clips(data, PLANS, limits, outputs=outputs), outputs)
    assert found == {output: alone(data, PLANS[output], limits) for output in outputs}


@pytest.mark.parametrize("outputs", [(), (1, 0), (0, 0), (4,), (-1,)])
def test_outputs_that_cannot_be_are_refused(outputs):
    with pytest.raises(ValueError, match=r"outputs must ascend within 0\.\.3"):
        next(decode_clips(read("short.mp4"), PLANS, VideoLimits(), outputs=outputs))


def test_an_output_that_has_its_clips_ends_before_the_damage():
    data = damaged(encode(range(90), draw=noisy, options={"g": "10"}), 0.8)
    plans = (plan_of(30), plan_of(30, max_clips_per_video=1))
    found = together(decode_clips(data, plans, VideoLimits()), (0, 1))
    assert found[0][-1][0] == "decode_error"
    assert len(found[0]) > len(found[1])
    assert found[1][-1].source.num_frames < 20


def test_the_pass_stops_when_all_outputs_are_done():
    counts = []
    for bound in (1, 2, None):
        plans = (plan_of(10, max_clips_per_video=1), plan_of(10, max_clips_per_video=bound))
        *_, (output, last) = decode_clips(encode(range(90)), plans, VideoLimits())
        assert output == 1
        counts.append(last.source.num_frames)
    assert counts[0] < counts[1] < counts[2] == 90


def test_a_picture_that_explodes_in_one_size_condemns_that_output_alone():
    data = encode(
        [0, 1],
        container="nut",
        codec="ffv1",
        pix_fmt="bgr0",
        draw=lambda k: numbered(k, 4, 2000),
    )
    limits = VideoLimits(pixels=40_000)
    plans = (plan_of(8, clip_frames=1), plan_of(8, clip_frames=1, buckets=((8, 8),)))
    found = together(decode_clips(data, plans, limits), (0, 1))
    assert found == {output: alone(data, plan, limits) for output, plan in enumerate(plans)}
    assert found[0][-1][0] == "too_many_pixels"
    assert isinstance(found[1][-1], DecodeSummary)


def first_waits_for_a_broken_second(packets):
    """The first picture is to be shown behind the second, which is none."""
    first, second = packets
    broken = av.Packet(b"no picture")
    first.pts, first.dts = 1, -2
    broken.pts, broken.dts, broken.time_base = 0, -1, second.time_base
    broken.stream = second.stream
    return [first, broken]


def test_an_output_refused_at_the_first_picture_stays_so_when_the_second_is_broken():
    data = encode(
        [0, 1],
        container="nut",
        codec="ffv1",
        pix_fmt="bgr0",
        draw=lambda k: numbered(k, 4, 2000),
        change=first_waits_for_a_broken_second,
    )
    limits = VideoLimits(pixels=40_000)
    plans = (plan_of(8, clip_frames=1), plan_of(8, clip_frames=1, buckets=((8, 8),)))
    found = together(decode_clips(data, plans, limits), (0, 1))
    assert [end[0] for [end] in found.values()] == ["too_many_pixels", "decode_error"]
    assert found == {output: alone(data, plan, limits) for output, plan in enumerate(plans)}


def test_what_two_outputs_have_in_common_is_computed_once(monkeypatch):
    counts = {"scaled": 0, "looked at": 0}

    def counted(kind, name, function):
        def call(*args, **options):
            counts[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(kind, function.__name__, call)

    counted(RgbScaler, "scaled", RgbScaler.scaled)
    counted(CutDetector, "looked at", CutDetector.is_cut)
    data, decoded = encode(range(60)), [0]
    same = plan_of(30, cut_threshold=20.0)
    other = plan_of(30, clip_frames=2, cut_threshold=30.0)
    seen = []
    for plans in ([same], [same, replace(other, cut_threshold=20.0)], [same, other]):
        counts.update(dict.fromkeys(counts, 0))
        list(decode_clips(data, plans, VideoLimits(), lambda: decoded.append(1)))
        seen.append((counts["scaled"], counts["looked at"], sum(decoded)))
        decoded.clear()
    assert seen == [(60, 60, seen[0][2]), (60, 60, seen[0][2]), (60, 120, seen[0][2])]


def test_cuts_are_looked_for_as_long_as_an_output_wants_them(monkeypatch):
    looked = []
    monkeypatch.setattr(CutDetector, "is_cut", lambda *_: looked.append(1))
    plans = (plan_of(30), plan_of(30, max_clips_per_video=1, cut_threshold=20.0))
    list(decode_clips(encode(range(60)), plans, VideoLimits()))
    assert len(looked) == 5  # four frames of a clip, and the one that ends the fourth


def test_the_cpu_seconds_of_all_outputs_add_up_to_those_of_the_pass():
    data = encode(range(60))
    began = time.process_time()
    items = list(decode_clips(data, (plan_of(30), plan_of(30, clip_frames=2)), VideoLimits()))
    took = time.process_time() - began
    told = sum(item.decode_seconds for _, item in items if isinstance(item, DecodeSummary))
    assert 0.5 * took < told <= took


def test_every_output_brings_its_own_allowance_of_cpu_time():
    work = Work(VideoLimits(cpu_seconds=1e-9), num_outputs=2)
    with pytest.raises(VideoError, match=r"more than 0 s of CPU time"):
        work.check(1, 64)


def test_an_image_comes_once_for_every_output_in_its_size():
    data = pictures.image(np.dstack([pictures.corners(), np.full((64, 64), 99, np.uint8)]),
                          "png", "rgba")  # fmt: skip
    plans = (plan_of(8), plan_of(8, 4), plan_of(5, buckets=((16, 32),)))
    items = list(decode_image(data, plans, VideoLimits(), outputs=(0, 2)))
    assert [output for output, _ in items] == [0, 0, 2, 2]
    assert [item.frames.shape[1:3] for _, item in items[::2]] == [(64, 64), (16, 32)]
    assert [item.num_clips for _, item in items[1::2]] == [{IMAGE_FPS: 1}] * 2
    for output in (0, 2):
        [(_, only), _] = decode_image(data, plans, VideoLimits(), outputs=(output,))
        both = next(item for at, item in items if at == output)
        np.testing.assert_array_equal(only.frames, both.frames)


def test_an_image_that_explodes_in_one_size_condemns_that_output_alone():
    data = pictures.image(numbered(1, 4, 2000), "png", "rgb24")
    plans = (plan_of(8), plan_of(8, buckets=((8, 8),)))
    (_, error), (_, clip), (_, summary) = decode_image(data, plans, VideoLimits(pixels=40_000))
    assert error.reason == "too_many_pixels"
    assert clip.frames.shape == (1, 8, 8, 3)
    assert isinstance(summary, DecodeSummary)
