"""From a sample to a whole data set: arithmetic that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.prediction import DataSet, Machine, Rules, Unit, predict, ratio

DATA = DataSet(num_shards=10, num_objects=10, to_cover=1e10, read_bytes=1e10)
MACHINE = Machine(
    num_workers=4,
    cores=16.0,
    encoder_cores=1.0,
    clips_per_second=10.0,
    encode_seconds_per_clip=0.1,
    gpu_usd_per_hour=2.0,
    core_usd_per_hour=0.05,
)
RULES = Rules(max_clips=4096, max_seconds=300.0, open_shards=2, range_bytes=32_000_000)


def unit(group="a", covered=1e8, clips=100.0, **changes):
    fields = {
        "videos": 20.0,
        "quarantined": 1.0,
        "token_bytes": clips * 1000.0,
        "decode_cpu_seconds": clips * 0.5,
    }
    return Unit(group=group, covered=covered, clips=clips, **fields | changes)


UNITS = [unit("a"), unit("b", clips=80.0), unit("c", clips=120.0)]


def test_amounts_grow_with_what_is_covered():
    seen = predict(UNITS, DATA, MACHINE, RULES)
    assert seen.clips.value == pytest.approx(10_000)
    assert seen.token_bytes.value == pytest.approx(1e7)
    assert (seen.videos.value, seen.quarantined.value) == pytest.approx((2000, 100))
    assert seen.sampled_share == pytest.approx(0.03)
    # shards of 80, 100, 120 clips: 20 of 100 / sqrt(3), without the 3% that were seen
    error = 10_000 * 0.2 / 3**0.5 * 0.97**0.5 * 1.645
    assert seen.clips.high - seen.clips.value == pytest.approx(error)
    assert seen.clips.value - seen.clips.low == pytest.approx(error)


def test_hours_and_money():
    seen = predict(UNITS, DATA, MACHINE, RULES)
    assert seen.clips_per_second == 40.0
    assert seen.hours.value == pytest.approx(10_000 / 40 / 3600)
    assert seen.usd.value == pytest.approx(seen.hours.value * 4 * (2.0 + 16 * 0.05))
    assert seen.hours.low < seen.hours.value < seen.hours.high
    relative = (seen.clips.high / seen.clips.value - 1, 0.1)  # and that of the rate
    assert seen.hours.high / seen.hours.value - 1 == pytest.approx(np.hypot(*relative))


def test_twice_the_workers_take_half_the_time_for_the_same_money():
    one = predict(UNITS, DATA, replace(MACHINE, num_workers=5), RULES)
    two = predict(UNITS, DATA, replace(MACHINE, num_workers=10), RULES)
    assert two.hours.value == pytest.approx(one.hours.value / 2)
    assert two.usd.value == pytest.approx(one.usd.value)


def test_workers_without_a_shard_are_not_counted():
    many = predict(UNITS, DATA, replace(MACHINE, num_workers=1000), RULES)
    assert many.num_workers == 10
    assert many.hours.value == predict(
        UNITS, DATA, replace(MACHINE, num_workers=10), RULES
    ).hours.value  # fmt: skip


@pytest.mark.parametrize(
    ("clips_per_second", "gain"),
    [
        (10.0, 1.0),  # the encoder is never waited for: nothing to gain
        (5.0, 1.4),  # a core decodes 2 clips a second
        (9.0, 10 / 9),  # until the encoder is the limit
    ],
)
def test_what_one_more_core_buys(clips_per_second, gain):
    seen = predict(UNITS, DATA, replace(MACHINE, clips_per_second=clips_per_second), RULES)
    assert seen.with_another_core == pytest.approx(gain)
    assert seen.usd_with_another_core == pytest.approx(seen.usd.value / gain * 2.85 / 2.8)
    # 0.5 s of decoding for 0.1 s of encoding, and a core that feeds the GPU
    assert seen.cores_wanted == pytest.approx(6.0)


def test_requests():
    seen = predict(UNITS, DATA, MACHINE, RULES)
    seconds = 10_000 / 40
    assert seen.read_bytes_per_second == pytest.approx(1e10 / seconds)
    assert seen.gets_per_second == pytest.approx((1e10 / 32e6 + 2 * 10) / seconds)
    assert seen.puts_per_second == pytest.approx(2 * 10 / seconds)  # a segment a shard
    assert seen.written_bytes_per_second == pytest.approx(1e7 / seconds)


@pytest.mark.parametrize(
    ("changes", "segments"),
    [({"max_clips": 100}, 10), ({"max_seconds": 50.0}, 4), ({"max_clips": 10**6}, 1)],
)
def test_segments_are_cut_by_clips_or_by_time(changes, segments):
    # 1,000 clips a shard take 200 s where two are open at once
    seen = predict(UNITS, DATA, MACHINE, replace(RULES, **changes))
    assert seen.puts_per_second == pytest.approx(2 * 10 * segments / (10_000 / 40))


def test_without_prices_there_is_no_money():
    seen = predict(UNITS, DATA, replace(MACHINE, core_usd_per_hour=None), RULES)
    assert seen.usd is seen.usd_with_another_core is None


def test_all_seen_is_all_known():
    whole = replace(DATA, to_cover=3e8)
    clips = predict(UNITS, whole, MACHINE, RULES).clips
    assert (clips.low, clips.value, clips.high) == pytest.approx((300, 300, 300))


def test_one_shard_is_judged_by_its_parts_and_one_part_knows_nothing():
    parts = ratio([unit("a"), unit("a", clips=50.0)], "clips", 1e10)
    assert 0 < parts.low < parts.value < parts.high
    alone = ratio([unit("a")], "clips", 1e10)
    assert (alone.value, alone.low) == pytest.approx((10_000, 100))
    assert alone.high == pytest.approx(20_000, rel=0.01)


def test_what_was_seen_is_there_for_sure():
    wild = [unit("a", clips=1000.0), unit("b", clips=1.0)]
    assert ratio(wild, "clips", 4e8).low == pytest.approx(1001)


def test_nothing_can_be_said_of_a_probe_without_clips():
    with pytest.raises(ValueError, match="no clip"):
        predict([unit(clips=0.0)], DATA, MACHINE, RULES)


def test_nine_of_ten_intervals_hold_the_truth():
    dice = np.random.default_rng(5)
    shards = [unit(str(n), clips=dice.gamma(4.0, 25.0)) for n in range(200)]
    truth, hits = sum(shard.clips for shard in shards), 0
    for _ in range(400):
        sample = [shards[n] for n in dice.choice(200, 16, replace=False)]
        estimate = ratio(sample, "clips", 200 * 1e8)
        hits += estimate.low <= truth <= estimate.high
    assert 0.82 < hits / 400 < 0.95
