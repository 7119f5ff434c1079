"""Children that die by another's hand, second tries, and the pool under all of it at once."""

import os
import random
import signal
import time

import pytest

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import MAX_KILLS
from tests.pipeline.test_decode_pool import child_pids, events_until, kinds, of, pool_of


def test_second_try_has_a_fresh_child_that_is_replaced_after_it(tmp_path):
    with pool_of() as pool:
        pool.submit(0, b"clips=1")
        events_until(pool, num_finished=1)
        (first,) = child_pids()
        pool.submit(1, f"clips=1 exit once={tmp_path / 'seen'}".encode())
        events = events_until(pool, num_finished=1)
        assert kinds(events) == ["ClipDecoded", "VideoRetried", "ClipDecoded", "VideoDecoded"]
        assert (pool.num_restarts, pool.num_recycled) == (1, 1)
        pool.submit(2, b"clips=1")
        events_until(pool, num_finished=1)
        assert first not in child_pids()


def kill_children(number=1, *, sure=False):
    """SIGKILL to children, as the kernel does when memory runs out."""
    pids = list(child_pids())
    for pid in random.sample(pids, min(number, len(pids))):
        os.kill(pid, signal.SIGKILL)
    assert pids or not sure


def test_child_that_somebody_else_kills_costs_no_try():
    with pool_of() as pool:
        pool.submit(0, b"clips=1 slow")
        for _ in range(MAX_KILLS):
            assert isinstance(pool.next_event(20.0), ClipDecoded)
            kill_children(sure=True)
            assert isinstance(pool.next_event(20.0), VideoRetried)
        assert kinds(events_until(pool, num_finished=1)) == ["ClipDecoded", "VideoDecoded"]


def test_video_whose_children_are_killed_again_and_again_is_suspected():
    with pool_of() as pool:
        pool.submit(0, b"clips=1 spin")
        for _ in range(MAX_KILLS + 2):
            assert isinstance(pool.next_event(20.0), ClipDecoded)
            kill_children(sure=True)
            event = pool.next_event(20.0)
        assert isinstance(event, VideoFailed)
        assert (event.reason, event.message) == ("crash", "killed by SIGKILL")


@pytest.mark.slow
def test_two_hundred_videos_many_of_them_poison_and_children_killed_at_random():
    dice = random.Random(7)
    troubles = {
        "segfault": "crash",
        "exit": "crash",
        "raise": "crash",
        "spin": "no_progress",
        "allocate": "memory",
        "refuse": "decode_error",
        "say=nonsense": "crash",
        "pretend": "no_progress",
    }
    videos = [
        f"clips={dice.randrange(9)} {dice.choice([*troubles, *[''] * 12])}" for _ in range(200)
    ]
    events, num_finished = [], 0
    with pool_of(3, ring_bytes=1 << 20, no_progress_seconds=2.0, child_memory_bytes=200 << 20,
                 max_videos_per_child=20) as pool:  # fmt: skip
        for ticket, command in enumerate(videos):
            pool.submit(ticket, command.encode())
        while num_finished < len(videos):
            event = pool.next_event(60.0)
            assert event is not None
            events.append(event)
            num_finished += isinstance(event, VideoDecoded | VideoFailed)
            if isinstance(event, ClipDecoded):
                event.release()
            if len(events) % 30 == 0:  # in the middle of a video as well as between two
                kill_children()
        assert pool.next_event(1.0) is None
    for ticket, command in enumerate(videos):
        clips, _, trouble = command.partition(" ")
        own = of(events, ticket)
        *_, last = own
        retries = [number for number, event in enumerate(own) if isinstance(event, VideoRetried)]
        last_try = own[max(retries, default=-1) + 1 : -1]
        assert len([e for e in own if isinstance(e, VideoDecoded | VideoFailed)]) == 1
        if trouble:
            # where much else runs, kills or the clock may condemn it first
            assert last.reason in {troubles[trouble], "crash", "no_progress"}, command
        else:
            assert isinstance(last, VideoDecoded), (command, last)
            assert [event.clip.clip_index for event in last_try] == list(
                range(int(clips.removeprefix("clips=")))
            )
    assert not child_pids()


@pytest.mark.slow
def test_pool_whose_number_changes_all_the_time_loses_no_video():
    dice = random.Random(3)
    with pool_of(2, max_videos_per_child=5) as pool:
        for ticket in range(40):
            pool.submit(ticket, f"clips=3 {dice.choice(['', '', 'exit'])}".encode())
        finished = 0
        deadline = time.monotonic() + 120
        while finished < 40:
            assert time.monotonic() < deadline
            pool.resize(dice.randrange(1, 4))
            event = pool.next_event(0.2)
            if isinstance(event, ClipDecoded):
                event.release()
            finished += isinstance(event, VideoDecoded | VideoFailed)
