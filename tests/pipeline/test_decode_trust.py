"""What a decoder child says and shows is checked: a hostile one costs its video, never the pool."""

import json

import numpy as np
import pytest

from pipeline.decode_events import VideoDecoded
from pipeline.decode_messages import (
    clip_message,
    end_message,
    read_clip,
    read_summary,
    receive,
    send,
    socket_pair,
)
from pipeline.records import Clip, DecodeSummary, SourceInfo
from tests.pipeline.test_decode_pool import PLAN, events_until, kinds, of, pool_of, run

CLIP = {
    "fps": 8.0,
    "clip_index": 0,
    "num_real_frames": 3,
    "start_seconds": 0.0,
    "end_seconds": 1.0,
    "frame_seconds": [0.0, 0.1, 0.2],
}
SOURCE = {
    "width": 8,
    "height": 8,
    "fps": 8.0,
    "num_frames": 3,
    "duration_seconds": 1.0,
    "codec": "x",
    "pixel_format": "y",
}
SUMMARY = {
    "source": SOURCE,
    "num_clips": [],
    "filtered": {},
    "decode_seconds": 0.1,
    "num_dropped_frames": 0,
}


def clip(**changes):
    message = {
        "kind": "clip",
        "output": 0,
        "slot": 0,
        "shape": [3, 8, 8, 3],
        "clip": CLIP | changes,
    }
    return json.dumps({key: changes.get(key, value) for key, value in message.items()})


def summary(**changes):
    return json.dumps({"kind": "decoded", "output": 0, "summary": SUMMARY | changes})


@pytest.mark.parametrize(
    "said",
    [
        "no json",
        json.dumps({"kind": "surprise"}),
        json.dumps({"kind": "failed", "output": 0, "reason": "empty", "message": 1}),
        clip(slot=99),
        clip(clip_index=1),
        summary(num_clips=[[8.0, 1]]),
    ],
    ids="no_json kind text slot order count".split(),
)
def test_nonsense_costs_the_child_and_its_video(said):
    with pool_of() as pool:
        events = run(pool, f"say={said}", "clips=1")
    assert of(events, 0)[-1].reason == "crash"
    assert "talks nonsense" in of(events, 0)[-1].message
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slot": -1}, "slot"),
        ({"slot": True}, "slot"),
        ({"shape": [3, 8, 8, 4]}, "not of the plan"),
        ({"shape": [10**9, 8, 8, 3]}, "not of the plan"),
        ({"shape": [3, 64, 64, 3]}, "not of the plan"),
        ({"shape": [3, 8, 8]}, "not of the plan"),
        ({"shape": "3888"}, "shape must be a list"),
        ({"fps": 9.0}, "not of the plan"),
        ({"fps": "8"}, "fps must be a finite number"),
        ({"clip_index": 0.5}, "clip_index"),
        ({"num_real_frames": 2**70}, "num_real_frames"),
        ({"start_seconds": float("nan")}, "start_seconds"),
        ({"frame_seconds": ["0"] * 3}, "frame_seconds"),
        ({"frame_seconds": [0.0] * 1000}, "1000 times"),
        ({"clip": []}, "clip must be a dict"),
    ],
)
def test_clip_that_is_none(changes, words):
    assert read_clip(json.loads(clip()), PLAN)[2] == (3, 8, 8, 3)
    with pytest.raises(ValueError, match=words):
        read_clip(json.loads(clip(**changes)), PLAN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_clips": [[9.0, 0]]}, "not of the plan"),
        ({"num_clips": 7}, "num_clips"),
        ({"num_clips": [7]}, "pair"),
        ({"source": SOURCE | {"width": -1}}, "width"),
        ({"source": SOURCE | {"codec": 1}}, "codec"),
        ({"source": {}}, "width"),
        ({"filtered": {"too_short": "1"}}, "too_short"),
        ({"decode_seconds": float("inf")}, "decode_seconds"),
    ],
)
def test_summary_that_is_none(changes, words):
    assert read_summary(json.loads(summary()), PLAN).num_clips == {}
    with pytest.raises(ValueError, match=words):
        read_summary(json.loads(summary(**changes)), PLAN)


IMAGE = {"fps": 0.0, "frame_seconds": [0.0], "shape": [1, 8, 8, 3]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fps": 8.0}, "not of the plan"),
        ({"shape": [2, 8, 8, 3]}, "2 frames are not"),
        ({"frame_seconds": [0.0, 0.0]}, "2 times is not"),
    ],
)
def test_clip_of_an_image_that_is_none(changes, words):
    said = json.loads(clip(**IMAGE))
    assert read_clip(said, PLAN, is_image=True)[2] == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="not of the plan"):
        read_clip(said, PLAN)
    with pytest.raises(ValueError, match=words):
        read_clip(json.loads(clip(**IMAGE | changes)), PLAN, is_image=True)


def test_summary_and_clip_come_through_as_they_were():
    source = SourceInfo(**SOURCE)
    sent = DecodeSummary(source=source, num_clips={8.0: 2}, filtered={"too_short": 1})
    assert read_summary(json.loads(json.dumps(end_message(sent))), PLAN) == sent
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    made = Clip(**CLIP | {"frame_seconds": (0.0, 0.1, 0.2)}, frames=frames)
    message = json.loads(json.dumps(clip_message(made, 5)))
    read, slot, shape = read_clip(message, PLAN)
    assert (slot, shape) == (5, frames.shape)
    assert {f: getattr(read, f) for f in CLIP} == {f: getattr(made, f) for f in CLIP}


def test_clip_in_a_slot_that_is_still_held_is_nonsense():
    with pool_of(ring_bytes=1 << 20) as pool:
        pool.submit(0, f"clips=1 say={clip(clip_index=1)}".encode())
        events = events_until(pool, num_finished=1, release=False)
    assert "slot 0 is not free" in events[-1].message


@pytest.mark.parametrize("data", [b"[]", b"[" * 100_000, b"\xff", b"{"])
def test_message_that_is_none_of_ours(data):
    ours, theirs = socket_pair()
    with ours, theirs:
        theirs.send(data)
        with pytest.raises(ValueError, match=r"."):
            receive(ours)


def test_messages_are_whole_or_not_there():
    ours, theirs = socket_pair()
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            receive(ours, wait=False)
        send(theirs, {"kind": "a"})
        send(theirs, {"kind": "b"})
        assert [receive(ours)["kind"], receive(ours)["kind"]] == ["a", "b"]
        theirs.close()
        with pytest.raises(EOFError):
            receive(ours)


def send_many(connection):
    for _ in range(10**6):
        send(connection, {"kind": "release", "slot": 1}, wait=False)


def test_parent_never_waits_for_a_child_that_reads_nothing():
    ours, theirs = socket_pair()
    with ours, theirs, pytest.raises(BlockingIOError):
        send_many(ours)


def test_full_ring_is_no_excuse_while_no_clip_is_held():
    with pool_of(no_progress_seconds=0.3) as pool:
        events = run(pool, "clips=2 pretend", "clips=1")
    assert of(events, 0)[-1].reason == "no_progress"
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_child_that_decodes_for_ever_is_stopped_by_its_cpu_time():
    with pool_of(no_progress_seconds=0.5, cpu_seconds=0.0) as pool:
        events = run(pool, "burn", "clips=1")
    assert of(events, 0)[-1].reason == "too_much_work"
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_child_that_gives_clips_for_ever_is_stopped():
    with pool_of(clips=20) as pool:
        events = run(pool, "clips=100000000", "clips=20")
    assert "more than 20 clips" in of(events, 0)[-1].message
    assert len(of(events, 0)) < 200
    assert isinstance(of(events, 1)[-1], VideoDecoded)


@pytest.mark.slow
def test_child_that_moves_for_ever_without_working_is_stopped_by_the_clock():
    with pool_of(no_progress_seconds=0.3, cpu_seconds=0.0) as pool:
        events = run(pool, "for ever", "clips=1")
    assert of(events, 0)[-1].reason == "too_much_work"
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]
