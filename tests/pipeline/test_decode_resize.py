"""A pool that grows and shrinks while it works, and what it says of its use."""

import logging
import time

import pytest

from pipeline import steering
from pipeline.counters import Counters
from pipeline.decode_events import PoolUse
from pipeline.steering import Steering, peak_rss_bytes
from tests.pipeline.test_decode_pool import PLAN, child_pids, events_until, kinds, pool_of


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pool_grows_at_once_and_retires_idle_children_only():
    with pool_of(1, ring_bytes=0) as pool:
        pool.submit(0, b"clips=3")  # its ring holds two: the child waits
        held = [pool.next_event(20.0), pool.next_event(20.0)]
        (busy,) = child_pids()
        pool.resize(3)
        wait_for(lambda: len(child_pids()) == 3)
        wait_for(lambda: all(child.is_ready for child in pool._children))
        pool.resize(1)
        wait_for(lambda: len(child_pids()) == 1)
        assert child_pids() == {busy}
        for event in held:
            event.release()
        assert kinds(events_until(pool, num_finished=1)) == ["ClipDecoded", "VideoDecoded"]
        assert pool.num_restarts == 0
        with pytest.raises(ValueError, match="at least 1"):
            pool.resize(0)


def test_use_tells_waiting_from_work_and_from_idleness():
    with pool_of(2, ring_bytes=0) as pool:
        pool.submit(0, b"clips=3")
        held = [pool.next_event(20.0), pool.next_event(20.0)]
        wait_for(lambda: pool.num_waiting == 1)
        before = pool.use()
        time.sleep(0.6)
        after = pool.use()
        full = after.full_seconds - before.full_seconds
        assert full == pytest.approx(after.busy_seconds - before.busy_seconds, abs=0.1)
        assert 0.5 < full < after.child_seconds
        assert after.ring_bytes >= 2 * 2 * PLAN.clip_bytes
        for event in held:
            event.release()
        events_until(pool, num_finished=1)
        done = pool.use()
        assert done.full_seconds >= after.full_seconds
        wait_for(lambda: pool.use().child_seconds > done.child_seconds)
        assert pool.use().busy_seconds == done.busy_seconds
        assert 20 << 20 < done.peak_rss_bytes < 500 << 20


class OtherPool:
    """Says what it is told to, instead of starting children."""

    num_children, num_restarts = 2, 7
    used = PoolUse(
        child_seconds=0.0, busy_seconds=0.0, full_seconds=0.0, ring_bytes=5, peak_rss_bytes=6
    )

    def use(self):
        return self.used

    def resize(self, number):
        self.num_children = number


def test_steering_looks_once_a_period_and_follows_what_it_sees(monkeypatch, caplog):
    pool, counters = OtherPool(), Counters()
    steered = Steering(pool, [counters], most=8)
    steered.look()
    assert counters.decoders == 0
    monkeypatch.setattr(steering, "PERIOD_SECONDS", 0.0)
    counters.encode_seconds, counters.starved_seconds, counters.encoded_clips = 6.0, 4.0, 50
    pool.used = PoolUse(
        child_seconds=20.0, busy_seconds=20.0, full_seconds=0.0, ring_bytes=5, peak_rss_bytes=6
    )
    with caplog.at_level(logging.INFO, logger="pipeline.steering"):
        steered.look()
    assert pool.num_children == 4
    assert "decoders 2 -> 4: the encoder starved 40%" in caplog.text
    assert (counters.decoder_restarts, counters.ring_bytes) == (7, 5)
    assert (counters.decoder_busy_seconds, counters.peak_decoder_rss_bytes) == (20.0, 6)
    assert counters.peak_worker_rss_bytes == pytest.approx(peak_rss_bytes(), rel=0.1)


def test_given_number_of_children_is_kept(monkeypatch):
    pool, counters = OtherPool(), Counters(encode_seconds=1.0, starved_seconds=9.0, encoded_clips=9)
    monkeypatch.setattr(steering, "PERIOD_SECONDS", 0.0)
    Steering(pool, [counters], most=None).look()
    assert pool.num_children == 2
