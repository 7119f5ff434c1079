"""The pool with a child that misbehaves on demand: one video is lost, never the pool."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_messages import send, socket_pair
from pipeline.decode_pool import DecodePool, next_message
from pipeline.errors import RunError
from pipeline.records import ClipPlan, TailPolicy, TimeSpan, VideoLimits
from pipeline.span_table import MAX_SPANS

PLAN = ClipPlan(
    fps=(8.0,),
    clip_frames=3,
    stride_frames=3,
    max_clips_per_video=None,
    tail=TailPolicy.drop,
    buckets=((8, 8),),
)


@contextlib.contextmanager
def pool_of(num_children=1, *, module="tests.pipeline.decode_trouble", **options):
    bounds = {"no_progress_seconds": 20.0, "child_memory_bytes": 1 << 30}
    names = [field.name for field in dataclasses.fields(VideoLimits) if field.name in options]
    limits = VideoLimits(**bounds | {name: options.pop(name) for name in names})
    with DecodePool(
        num_children=num_children, plans=(PLAN,), limits=limits, child_module=module, **options
    ) as pool:
        yield pool


def events_until(pool, *, num_finished, release=True, seconds=30):
    """Events up to the given number of final ones; clips are released unless told otherwise."""
    events = []
    deadline = time.monotonic() + seconds
    while sum(isinstance(e, VideoDecoded | VideoFailed) for e in events) < num_finished:
        assert time.monotonic() < deadline, events
        event = pool.next_event(1.0)
        if event is not None:
            events.append(event)
            if release and isinstance(event, ClipDecoded):
                event.release()
    return events


def run(pool, *commands, **options):
    for ticket, command in enumerate(commands):
        pool.submit(ticket, command.encode())
    return events_until(pool, num_finished=len(commands), **options)


def of(events, ticket):
    return [event for event in events if event.ticket == ticket]


def kinds(events):
    return [type(event).__name__ for event in events]


def child_pids(parent=None):
    pid = parent or os.getpid()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = {int(word) for task in tasks for word in (task / "children").read_text().split()}
    # Python's own, which the first spawned process of a test run leaves until its end
    return {pid for pid in found if b"resource_tracker" not in command_line(pid)}


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:  # gone since it was listed
        return b""


def test_clips_of_a_video_come_in_order_before_its_summary():
    with pool_of(2, ring_bytes=0) as pool:
        events = run(pool, "clips=5", "clips=4", "clips=0")
    for ticket, number in enumerate((5, 4, 0)):
        *clips, last = of(events, ticket)
        assert [event.clip.clip_index for event in clips] == list(range(number))
        assert isinstance(last, VideoDecoded)
    assert of(events, 0)[1].clip.start_seconds == 1 / 3
    assert of(events, 0)[-1].summary.num_clips == {8.0: 5}


def test_frames_are_read_in_place_and_survive_their_pool():
    with pool_of(ring_bytes=1 << 20) as pool:
        events = run(pool, "clips=4", release=False)
    clips = [event.clip for event in events if isinstance(event, ClipDecoded)]
    assert [clip.frames.shape for clip in clips] == [(3, 8, 8, 3)] * 4
    assert [set(clip.frames.flat) for clip in clips] == [{0}, {1}, {2}, {3}]
    for event in events[:4]:
        event.release()


def test_full_ring_waits_for_releases_and_is_no_lack_of_progress():
    with pool_of(ring_bytes=0, no_progress_seconds=0.3) as pool:
        pool.submit(7, b"clips=3")
        held = [pool.next_event(20.0), pool.next_event(20.0)]
        assert pool.next_event(1.0) is None
        assert pool.num_waiting == pool.num_busy == 1
        held[1].release()
        third = pool.next_event(5.0)
        assert third.clip.clip_index == 2
        assert [int(event.clip.frames[0, 0, 0, 0]) for event in (held[0], third)] == [0, 2]
        assert kinds(events_until(pool, num_finished=1)) == ["VideoDecoded"]


def test_clip_is_released_once():
    with pool_of() as pool:
        clip = run(pool, "clips=1")[0]
        with pytest.raises(RuntimeError, match="released before"):
            clip.release()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("exit", "exit status 3; stderr: goodbye from the child"),
        ("raise", "a bug in the decoder"),
    ],
)
def test_death_costs_one_video_and_is_tried_twice(command, words):
    with pool_of() as pool:
        events = run(pool, f"clips=2 {command}", "clips=1")
        assert pool.num_restarts == 2
    clips = ["ClipDecoded"] * 2
    assert kinds(of(events, 0)) == [*clips, "VideoRetried", *clips, "VideoFailed"]
    assert of(events, 0)[-1].reason == "crash"
    assert words in of(events, 0)[-1].message
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_second_try_may_succeed(tmp_path):
    with pool_of() as pool:
        events = run(pool, f"clips=1 segfault once={tmp_path / 'seen'}")
    assert kinds(events) == ["ClipDecoded", "VideoRetried", "ClipDecoded", "VideoDecoded"]


def test_clip_of_a_dead_child_stays_readable_and_releasable():
    with pool_of() as pool:
        events = run(pool, "clips=2 exit", release=False)
        clips = [event for event in events if isinstance(event, ClipDecoded)]
        assert [int(event.clip.frames[-1, -1, -1, -1]) for event in clips] == [0, 1, 0, 1]
        for event in clips:
            event.release()


def test_child_that_holds_the_gil_is_killed():
    with pool_of(no_progress_seconds=0.3) as pool:
        began = time.monotonic()
        events = run(pool, "spin", "clips=1")
        assert time.monotonic() - began < 15
    assert kinds(of(events, 0)) == ["VideoRetried", "VideoFailed"]
    assert of(events, 0)[-1].reason == "no_progress"
    assert "0.6 s" in of(events, 0)[-1].message
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_slow_child_that_counts_frames_is_left_alone():
    with pool_of(no_progress_seconds=0.5) as pool:
        assert kinds(run(pool, "slow")) == ["VideoDecoded"]


def test_memory_limit_is_doubled_once_then_condemns():
    with pool_of(child_memory_bytes=300 << 20) as pool:  # the command takes 1 GiB
        events = run(pool, "allocate", "clips=1")
    assert kinds(of(events, 0)) == ["VideoRetried", "VideoFailed"]
    assert of(events, 0)[-1].reason == "memory"
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_twice_the_memory_is_enough_for_some():
    with pool_of(child_memory_bytes=700 << 20) as pool:
        assert kinds(run(pool, "allocate")) == ["VideoRetried", "VideoDecoded"]


def test_condemned_video_costs_no_child():
    with pool_of() as pool:
        events = run(pool, "refuse", "clips=1")
        assert pool.num_restarts == 0
    assert events[0] == VideoFailed(0, "decode_error", "not today")


@pytest.mark.parametrize(
    ("options", "commands"),
    [({"max_videos_per_child": 2}, ["clips=1"] * 5), ({"max_child_rss_bytes": 80 << 20}, ["keep"])],
)
def test_children_are_recycled_by_age_and_by_size(options, commands):
    with pool_of(**options) as pool:
        events = run(pool, *commands)
        assert pool.num_recycled == max(1, len(commands) // 2)
        assert pool.num_restarts == 0
    assert not [event for event in events if isinstance(event, VideoRetried | VideoFailed)]


def test_child_that_cannot_start_stops_the_run():
    with pool_of(2, module="tests.pipeline.no_such_module") as pool:
        with pytest.raises(RunError, match=r"cannot start: .*No module named"):
            events_until(pool, num_finished=1)
        with pytest.raises(RunError, match="cannot start"):
            pool.submit(1, b"")
    assert not child_pids()


def test_close_kills_busy_children_and_can_be_repeated():
    with pool_of(2) as pool:
        pool.submit(0, b"clips=1 spin")
        assert isinstance(pool.next_event(20.0), ClipDecoded)
        assert len(child_pids()) == 2
        pool.close()
        assert not child_pids()
        pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(1, b"")


def test_the_most_spans_of_the_longest_numbers_reach_a_child():
    span = TimeSpan(2.2250738585072014e-308, 1.7976931348623157e308)
    with pool_of() as pool:
        pool.submit(0, b"clips=0", spans=(span,) * MAX_SPANS)
        pool.submit(1, b"clips=1")
        events = events_until(pool, num_finished=2)
    assert kinds(of(events, 0)) == ["VideoDecoded"]
    assert kinds(of(events, 1)) == ["ClipDecoded", "VideoDecoded"]


def test_children_die_with_a_killed_parent():
    script = textwrap.dedent("""
        import time
        from tests.pipeline.test_decode_pool import pool_of
        with pool_of(2) as pool:
            pool.submit(0, b"clips=1 spin")
            pool.next_event(20.0)
            print("ready", flush=True)
            time.sleep(60)
    """)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        children = child_pids(parent.pid)
        parent.send_signal(signal.SIGKILL)
    assert len(children) == 2
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_child_imports_nothing_heavy():
    code = (
        "import sys, pipeline.decode_child; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    root = Path(__file__).parents[2]
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    ).stdout.split()
    assert {"av", "numpy", "pipeline"} <= set(names)
    heavy = {"torch", "ray", "webdataset", "hydra", "omegaconf", "pyarrow", "fsspec", "tokenizer"}
    assert not heavy & set(names)


def test_what_a_dying_child_said_is_heard_though_it_left_something_unread():
    ours, theirs = socket_pair()
    send(ours, {"kind": "release", "slot": 0})
    send(theirs, {"kind": "ready"})
    theirs.close()  # the kernel tells of a reset before the message
    child = SimpleNamespace(connection=ours)
    with ours:
        assert next_message(child) == {"kind": "ready"}
        with pytest.raises(EOFError):
            next_message(child)
