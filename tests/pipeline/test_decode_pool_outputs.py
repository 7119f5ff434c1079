"""The pool with several plans: every output ends once, whatever its child does meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import replace

import pytest

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.records import DecodeSummary, TailPolicy, VideoLimits
from tests.pipeline.media import plan_of
from tests.pipeline.test_decode_outputs import alone, comparable, damaged, read
from tests.pipeline.test_decode_pool import child_pids, events_until, kinds, of
from tests.pipeline.test_decode_trust import CLIP, SUMMARY

SMALL = tuple(plan_of(8, clip_frames=3, buckets=((size, size),)) for size in (8, 4, 16))
REAL = (
    plan_of(8.0, 25.0, clip_frames=9),
    plan_of(12.0, clip_frames=5, tail=TailPolicy.pad, buckets=((96, 96),)),
    plan_of(25.0, max_clips_per_video=1),
)
BUNNY = read("bunny.mp4")


@contextlib.contextmanager
def pool_of(plans=SMALL, *, module="tests.pipeline.decode_trouble", **options):
    limits = VideoLimits(no_progress_seconds=20.0)
    with DecodePool(
        num_children=1, plans=plans, limits=limits, child_module=module, **options
    ) as pool:
        yield pool


def real_pool(**options):
    return pool_of(REAL, module="pipeline.decode_child", **options)


def taken(pool, *, num_ends):
    """Events up to so many ends, with copies of the clips' frames; clips are released."""
    events = []
    while sum(isinstance(event, VideoDecoded | VideoFailed) for event in events) < num_ends:
        event = pool.next_event(20.0)
        assert event is not None, events
        if isinstance(event, ClipDecoded):
            release = event.release
            event = replace(event, clip=event.clip.with_frames(event.clip.frames.copy()))
            release()
        events.append(event)
    return events


def kept(events) -> dict[int, list[object]]:
    """Each output's clips and its end; what was to be forgotten is forgotten."""
    found: dict[int, list[object]] = {}
    for event in events:
        if isinstance(event, VideoRetried):
            for output in event.outputs:
                found.pop(output, None)
            continue
        match event:
            case ClipDecoded():
                said = comparable(event.clip)
            case VideoDecoded():
                said = comparable(event.summary)
            case VideoFailed():
                said = event.reason, event.message
        found.setdefault(event.output, []).append(said)
    return found


@pytest.mark.parametrize("data", [BUNNY, damaged(BUNNY)], ids=["healthy", "damaged"])
def test_outputs_come_through_the_ring_as_they_were_decoded(data):
    with real_pool(ring_bytes=0) as pool:
        pool.submit(0, data)
        found = kept(taken(pool, num_ends=3))
    for output, plan in enumerate(REAL):
        assert found[output] == alone(data, plan, VideoLimits())


def test_every_output_ends_and_says_which_it_is():
    with pool_of() as pool:
        pool.submit(0, b"clips=2")
        pool.submit(1, b"clips=1", outputs=(0, 2))
        events = events_until(pool, num_finished=5)
    assert [(kind, event.output) for kind, event in zip(kinds(events), events, strict=True)] == [
        *[("ClipDecoded", 0)] * 2, ("VideoDecoded", 0),
        *[("ClipDecoded", 1)] * 2, ("VideoDecoded", 1),
        *[("ClipDecoded", 2)] * 2, ("VideoDecoded", 2),
        ("ClipDecoded", 0), ("VideoDecoded", 0), ("ClipDecoded", 2), ("VideoDecoded", 2),
    ]  # fmt: skip
    sizes = {e.output: e.clip.frames.shape[1] for e in events if isinstance(e, ClipDecoded)}
    assert sizes == {0: 8, 1: 4, 2: 16}


def test_outputs_that_are_none_are_refused_at_once():
    with pool_of() as pool, pytest.raises(ValueError, match=r"ascend within 0\.\.2, got \[3\]"):
        pool.submit(0, b"clips=1", outputs=(3,))
    with pytest.raises(ValueError, match="at least 1 plan"):
        DecodePool(num_children=1, plans=(), limits=VideoLimits())


def test_a_condemned_video_ends_for_every_output_that_had_not_ended():
    with pool_of() as pool:
        pool.submit(0, b"clips=1 last refuse")
        pool.submit(1, b"clips=1 refuse", outputs=(1, 2))
        events = events_until(pool, num_finished=5)
        assert pool.num_restarts == 0
    ends = [(type(e), e.output) for e in of(events, 0) if not isinstance(e, ClipDecoded)]
    assert ends == [(VideoDecoded, 0), (VideoDecoded, 1), (VideoFailed, 2)]
    assert of(events, 1)[1:] == [
        VideoFailed(1, "decode_error", "not today", 1),
        VideoFailed(1, "decode_error", "not today", 2),
    ]


def test_outputs_that_had_ended_are_not_decoded_again(tmp_path):
    with pool_of() as pool:
        pool.submit(0, f"clips=1 last segfault once={tmp_path / 'seen'}".encode())
        events = events_until(pool, num_finished=3)
    assert kinds(events) == [
        *["ClipDecoded", "VideoDecoded"] * 2, "ClipDecoded", "VideoRetried",
        "ClipDecoded", "VideoDecoded",
    ]  # fmt: skip
    assert events[5] == VideoRetried(0, (2,))
    assert [event.output for event in events[6:]] == [2, 2]


def test_a_child_that_is_lost_twice_costs_the_outputs_that_had_not_ended():
    with pool_of() as pool:
        pool.submit(0, b"clips=1 exit", outputs=(1, 2))
        pool.submit(1, b"clips=1 last exit")
        events = events_until(pool, num_finished=5)
    retried = [event for event in events if isinstance(event, VideoRetried)]
    assert retried == [VideoRetried(0, (1, 2)), VideoRetried(1, (2,))]
    ends = [e for e in events if isinstance(e, VideoDecoded | VideoFailed)]
    assert [(e.ticket, e.output) for e in ends if isinstance(e, VideoFailed)] == [
        (0, 1), (0, 2), (1, 2),
    ]  # fmt: skip
    assert {e.reason for e in ends if isinstance(e, VideoFailed)} == {"crash"}


def test_a_child_killed_midway_changes_no_output():
    with real_pool(ring_bytes=0) as pool:  # two slots: it cannot run far ahead of us
        pool.submit(0, BUNNY)
        events = taken(pool, num_ends=1)
        assert events[-1].output == 2  # it wants one clip
        [pid] = child_pids()
        os.kill(pid, signal.SIGKILL)
        events += taken(pool, num_ends=2)
    assert VideoRetried(0, (0, 1)) in events
    found = kept(events)
    for output, plan in enumerate(REAL):
        assert found[output] == alone(BUNNY, plan, VideoLimits())


def clip(output, **changes):
    fields = {"kind": "clip", "output": output, "slot": 5, "shape": [3, 8, 8, 3], "clip": CLIP}
    return fields | changes


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (clip(7), "output 7 is not one of those that are open"),
        (clip(0), "output 0 is not one of those that are open"),  # ended
        (clip(1), "output 1 is not one of those that are open"),  # nobody wants it
        (clip(None), "output must be a whole number"),
        (clip(2), "frames of shape [3, 8, 8, 3] are not of the plan"),  # of output 0
        (
            clip(2, shape=[3, 16, 16, 3], clip=CLIP | {"clip_index": 0}),
            "clip 0 at 8.0 fps comes out of order",  # it had that one
        ),
        ({"kind": "decoded", "output": 0, "summary": SUMMARY}, "output 0 is not one"),
        ({"kind": "failed", "output": 1, "reason": "empty", "message": ""}, "output 1 is not one"),
        ({"kind": "failed", "reason": "empty", "message": ""}, "output must be a whole number"),
        ({"kind": "decoded", "output": 2, "summary": SUMMARY}, "gave {8.0: 1} clips, counts {}"),
    ],
)
def test_nonsense_about_outputs_costs_the_child_and_what_had_not_ended(said, words):
    with pool_of(ring_bytes=1 << 20) as pool:
        pool.submit(0, f"clips=1 last say={json.dumps(said)}".encode(), outputs=(0, 2))
        events = events_until(pool, num_finished=2)
        assert pool.num_restarts == 2
    assert kinds(events) == ["ClipDecoded", "VideoDecoded", "ClipDecoded", "VideoRetried",
                             "ClipDecoded", "VideoFailed"]  # fmt: skip
    assert events[1].output == 0
    assert (events[-1].output, events[-1].reason) == (2, "crash")
    assert f"talks nonsense: {words}" in events[-1].message
    assert isinstance(events[1].summary, DecodeSummary)
