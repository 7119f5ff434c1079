"""The number of decoder children follows the waiting: a table, and simulated machines."""

import itertools
import random

import pytest

from pipeline.balance import Balance, Shares, bottleneck, bounds, shares, waiting


def period(starved=0.0, full=0.0, idle=0.0, clips_per_second=10.0):
    return Shares(starved=starved, full=full, idle=idle, clips_per_second=clips_per_second)


@pytest.mark.parametrize(
    ("now", "measured", "wanted"),
    [
        (4, period(), 4),  # nobody waits
        (4, period(starved=0.04), 4),  # not enough to act
        (4, period(starved=0.06), 5),
        (4, period(starved=0.5), 8),  # each child brings what the others bring
        (4, period(starved=0.9), 8),  # but never more than twice as many at once
        (9, period(starved=0.5), 12),  # never more than the most
        (12, period(starved=0.5), 12),
        (4, period(starved=0.5, idle=0.6), 4),  # children wait for videos: more would not help
        (4, period(starved=0.3, full=0.35), 4),  # both wait in turns: bursts, not a lack
        (8, period(full=0.39), 8),  # some spare time is kept
        (8, period(full=0.5), 6),
        (8, period(full=0.9), 6),  # at most a third at once
        (2, period(full=0.9), 1),
        (1, period(full=0.9), 1),
        (2, period(full=0.45), 2),  # one would be at work for more than its share
        (4, period(starved=0.9, clips_per_second=0.0), 4),  # nothing was measured
    ],
)
def test_table(now, measured, wanted):
    assert Balance(now, least=1, most=12).next(measured) == wanted


def test_more_children_stay_only_if_more_clips_come_out():
    balance = Balance(2, least=1, most=8)
    assert balance.next(period(starved=0.3)) == 3
    assert balance.next(period(starved=0.2, clips_per_second=11.0)) == 3
    assert balance.next(period(starved=0.2, clips_per_second=11.0)) == 4
    assert balance.next(period(starved=0.1, clips_per_second=11.1)) == 3


def test_attempt_that_failed_is_repeated_later_and_later():
    balance = Balance(2, least=1, most=8)
    numbers = [balance.next(period(starved=0.3)) for _ in range(50)]
    attempts = [k for k, number in enumerate(numbers) if number == 3]
    assert attempts[0] == 0
    assert [b - a for a, b in itertools.pairwise(attempts)] == [9, 17]


def test_fixed_number_never_changes():
    balance = Balance(3, least=3, most=3)
    for measured in (period(starved=0.9), period(full=0.9)):
        assert balance.next(measured) == 3


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="1 <= 2 <= 1 <= 4"):
        Balance(1, least=2, most=4)


class Machine:
    """Encodes in ``encode`` seconds a clip; children need ``decode`` CPU seconds for one.

    Without a GPU the encoder's threads share the cores with the children.
    """

    def __init__(self, *, encode, decode, cores, gpu=True, threads=2, noise=0.0):
        self.encode, self.decode, self.cores, self.gpu = encode, decode, cores, gpu
        self.threads, self.noise, self.dice = threads, noise, random.Random(1)

    def clips_per_second(self, children):
        wanted = children + (0 if self.gpu else self.threads)
        slowed = max(1.0, wanted / self.cores)
        encode = self.encode if self.gpu else self.encode * slowed
        return min(1 / encode, children / (self.decode * slowed)), encode, self.decode * slowed

    def period(self, children):
        rate, encode, decode = self.clips_per_second(children)
        rate *= 1 + self.dice.uniform(-self.noise, self.noise)
        return period(
            starved=max(0.0, 1 - rate * encode),
            full=max(0.0, 1 - rate * decode / children),
            clips_per_second=rate,
        )

    def run(self, balance, periods):
        return [balance.next(self.period(balance.num_children)) for _ in range(periods)]


@pytest.mark.parametrize("start", [1, 4, 16])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize(
    ("decode", "fewest", "most"),
    # the encoder takes 0.1 s a clip, so that so many children are at work: 0.5, 3, 6, 40
    [(0.05, 1, 2), (0.3, 3, 5), (0.6, 6, 9), (4.0, 16, 16)],
)
def test_gpu_is_fed_by_few_more_children_than_it_takes(decode, fewest, most, noise, start):
    machine = Machine(encode=0.1, decode=decode, cores=16, noise=noise)
    numbers = machine.run(Balance(start, least=1, most=16), 60)
    settled = numbers[20:]
    fed = [machine.clips_per_second(n)[0] / machine.clips_per_second(most)[0] for n in settled]
    assert sum(fed) / len(fed) > 0.95
    assert min(settled) >= fewest - 1
    assert max(settled) <= most + 1


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_number_comes_to_rest(noise):
    numbers = Machine(encode=0.1, decode=0.45, cores=16, noise=noise).run(
        Balance(2, least=1, most=16), 60
    )
    assert len(set(numbers[10:])) == 1


@pytest.mark.parametrize(
    ("decode", "best"),
    [(0.5, {1}), (2.0, {2})],  # children take from the encoder what they give, and may yet pay
)
def test_small_machine_lets_the_measurement_decide(decode, best):
    machine = Machine(encode=1.0, decode=decode, cores=2, gpu=False)
    assert set(machine.run(Balance(1, least=1, most=2), 40)[5:]) == best


def test_change_of_data_is_followed():
    balance = Balance(3, least=1, most=16)
    assert Machine(encode=0.1, decode=0.3, cores=16).run(balance, 20)[-1] in (3, 4)
    assert Machine(encode=0.1, decode=0.9, cores=16).run(balance, 20)[-1] in range(9, 13)
    assert Machine(encode=0.1, decode=0.1, cores=16).run(balance, 20)[-1] in (1, 2)


def test_shares_are_of_one_period_and_stay_between_0_and_1():
    before = waiting({"encode_seconds": 5.0, "decoder_seconds": 10.0, "encoded_clips": 50.0})
    after = waiting(
        {
            "encode_seconds": 9.0,
            "starved_seconds": 1.0,
            "decoder_seconds": 20.0,
            "decoder_busy_seconds": 11.0,  # counted at the end of a video, also of time before
            "encoded_clips": 70.0,
        }
    )
    assert shares(before, after) == period(starved=0.2, clips_per_second=4.0)
    assert shares(after, before).starved == 0.0


@pytest.mark.parametrize(
    ("given", "cores", "expected"),
    [
        (5, 64, (5, None)),
        (None, 1, (1, 2)),
        (None, 4, (2, 4)),
        (None, 12, (8, 12)),
    ],
)
def test_bounds_follow_the_cores(given, cores, expected):
    assert bounds(given=given, cores=cores, threads=2) == expected


@pytest.mark.parametrize(
    ("counters", "words"),
    [
        ({}, "nothing was encoded"),
        ({"starved_seconds": 5.0}, "encoder starved 100% (read)"),
        ({"encode_seconds": 5.0, "decoder_seconds": 5.0, "decoder_busy_seconds": 5.0},
         "encoder starved 0% (decode)"),
    ],
)  # fmt: skip
def test_words_of_the_bottleneck(counters, words):
    assert bottleneck({"decoder_seconds": 1.0} | counters) == words
