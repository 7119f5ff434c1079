"""How many decoder children a worker should have, from what it measures of itself. Pure: no clock.

Two things can wait in a worker: the encoder for clips, and the decoders for room in their rings.
Which one does says what is too few. More children are tried while the encoder starves and children
are at work all the time; they stay only if more clips come out, because on a small machine children
take from the encoder what they give. Children are given up while the rest would still be idle
for part of their time. In between nothing changes, and an attempt that failed is not repeated soon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

STARVED_SHARE = 0.05
"""More children are tried when the encoder waits for longer than this share of its time ..."""
AT_WORK_SHARE = 0.7
"""... and children decode for more of theirs than this: else they wait for videos."""
FULL_SHARE = 0.4
"""Children are given up when they wait for room for more than this share of their time ..."""
SPARE_SHARE = 0.25
"""... by so many that the rest would still have this share of theirs left."""
GAIN = 1.02
"""Clips per second with more children, on those before, that an attempt must reach."""
PATIENCE = 8
"""Periods before an attempt that failed is repeated; doubled each time it fails again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Sums since a worker began, or of several workers, under the names of their counters.

    The difference of two of them says what happened in between.
    """

    encode_seconds: float
    """Time that the encoder encoded."""
    starved_seconds: float
    """Time that it waited for clips though videos were there."""
    decoder_seconds: float
    """Time of all decoder children."""
    decoder_busy_seconds: float
    """Of that, time with a video."""
    decoder_full_seconds: float
    """Of that, time with a full ring."""
    encoded_clips: float
    """Clips, or pieces of whole videos, that were encoded."""


def waiting(counters: Mapping[str, float]) -> Waiting:
    """What is among the counters of a worker, or the sums of many; what is missing is 0."""
    return Waiting(**{field.name: counters.get(field.name, 0.0) for field in fields(Waiting)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """One period."""

    starved: float
    """Of the encoder's time, waiting for clips; 0 to 1."""
    full: float
    """Of the children's time, waiting for room; 0 to 1."""
    idle: float
    """Of the children's time, without a video; 0 to 1."""
    clips_per_second: float
    """Of the encoder's time."""


def shares(before: Waiting, now: Waiting) -> Shares:
    """What happened between two measurements.

    >>> later = Waiting(encode_seconds=6, starved_seconds=2, decoder_seconds=16,
    ...                 decoder_busy_seconds=12, decoder_full_seconds=4, encoded_clips=80)
    >>> shares(waiting({}), later)
    Shares(starved=0.25, full=0.25, idle=0.25, clips_per_second=10.0)
    """
    starved = now.starved_seconds - before.starved_seconds
    encoder = now.encode_seconds - before.encode_seconds + starved
    children = now.decoder_seconds - before.decoder_seconds
    busy = min(children, now.decoder_busy_seconds - before.decoder_busy_seconds)
    clips = max(0.0, now.encoded_clips - before.encoded_clips)
    return Shares(
        starved=_share(starved, encoder),
        full=_share(now.decoder_full_seconds - before.decoder_full_seconds, children),
        idle=_share(children - busy, children),
        clips_per_second=clips / encoder if encoder > 0 else 0.0,
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


class Balance:
    """Asked once a period, says how many children there should be.

    Args:
        num_children: how many there are at the start.
        least: never fewer.
        most: never more.
    """

    def __init__(self, num_children: int, *, least: int, most: int) -> None:
        if not 1 <= least <= num_children <= most:
            raise ValueError(f"need 1 <= {least} <= {num_children} <= {most}")
        self.num_children, self._least, self._most = num_children, least, most
        self._trial: tuple[int, float] | None = None
        self._rest = 0
        self._patience = PATIENCE

    def next(self, period: Shares) -> int:
        """The number wanted after this period; the same as before while all is well."""
        if period.clips_per_second == 0.0:  # nothing was measured
            return self.num_children
        self._rest = max(0, self._rest - 1)
        if self._trial is not None:
            self._judge(*self._trial, period)
        elif period.full > FULL_SHARE and period.starved < STARVED_SHARE:
            self._shrink(period)
        elif (
            period.starved > STARVED_SHARE
            and 1.0 - period.full - period.idle > AT_WORK_SHARE
            and self.num_children < self._most
            and self._rest == 0
        ):
            self._grow(period)
        return self.num_children

    def _grow(self, period: Shares) -> None:
        """Children that would feed the encoder if each brought as much as those there; try them."""
        self._trial = (self.num_children, period.clips_per_second)
        needed = math.ceil(self.num_children / max(0.1, 1.0 - period.starved))
        wanted = min(needed, 2 * self.num_children)
        self.num_children = min(self._most, max(wanted, self.num_children + 1))

    def _judge(self, before: int, clips_per_second: float, period: Shares) -> None:
        """Keep more children if more clips come out; else go back, and wait before trying again."""
        self._trial = None
        if period.clips_per_second >= GAIN * clips_per_second:
            self._patience = PATIENCE
            return
        self.num_children = before
        self._rest, self._patience = self._patience, 2 * self._patience

    def _shrink(self, period: Shares) -> None:
        """Fewer, so that the rest has `SPARE_SHARE` of its time left; at most a third at once."""
        at_work = self.num_children * (1.0 - period.full - period.idle)
        needed = math.ceil(at_work / (1.0 - SPARE_SHARE))
        self.num_children = max(
            self._least, needed, self.num_children - max(1, self.num_children // 3)
        )


def bounds(*, given: int | None, cores: int, threads: int) -> tuple[int, int | None]:
    """Children of a worker at the start and at the most; None: the number is fixed.

    A given number is fixed. Else the start is what the encoder's threads leave of the worker's
    cores, and there may be as many as there are cores: that children share them with the encoder
    may pay, which is measured.

    >>> bounds(given=3, cores=16, threads=2), bounds(given=None, cores=16, threads=2)
    ((3, None), (8, 16))
    >>> bounds(given=None, cores=2, threads=2)
    (1, 2)
    """
    if given is not None:
        return given, None
    return max(1, min(8, cores - threads)), max(2, cores)


def bottleneck(counters: Mapping[str, float]) -> str:
    """What limited the work, in words for the summary and for status.

    >>> at_work = {"decoder_seconds": 100.0, "decoder_busy_seconds": 90.0}
    >>> bottleneck(at_work | {"encode_seconds": 62.0, "starved_seconds": 38.0})
    'encoder starved 38% (decode)'
    >>> bottleneck(at_work | {"encode_seconds": 99.0, "decoder_full_seconds": 60.0})
    'decode waits 60% (encoder)'
    >>> bottleneck({"decoder_seconds": 100.0, "encode_seconds": 62.0, "starved_seconds": 38.0})
    'encoder starved 38% (read)'
    """
    now = waiting(counters)
    if now.encode_seconds + now.starved_seconds <= 0:
        return "nothing was encoded"
    share = shares(waiting({}), now)
    if share.full > share.starved:
        return f"decode waits {share.full:.0%} (encoder)"
    return f"encoder starved {share.starved:.0%} ({'read' if share.idle > 0.5 else 'decode'})"
