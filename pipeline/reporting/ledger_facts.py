"""One pass over the receipts of an OUT: sums, throughput over time, and what to look at closer.

Memory does not grow with the receipts but by two numbers each: they may be 10^5 and more.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.manifest import Line
from pipeline.moments import LatentMoments, moments_of_parts

BREAK_SECONDS = 120.0
"""A longer time in which no segment was made is left out of the time axis."""
MOST_SPREAD_SECONDS = 600.0
"""A segment's clips are laid over the time since its shard's last commit, at most so long."""


_Times = npt.NDArray[np.float64]


@dataclass(slots=True)
class LedgerFacts:
    """What the receipts say, all together."""

    receipts: int = 0
    clips: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    """``token_shape`` -> clips."""
    environments: Counter[str] = field(default_factory=Counter)
    """Numeric environment (JSON) -> clips."""
    retries: int = 0
    """Receipts of later generations: what retries and continued tars added."""
    began: array[float] = field(default_factory=lambda: array("d"))
    """When each segment was begun, about; seconds since 1970."""
    ended: array[float] = field(default_factory=lambda: array("d"))
    """When it was committed."""
    rows: array[float] = field(default_factory=lambda: array("d"))
    """Its clips."""
    drawn: list[Line] = field(default_factory=list)
    """Some with a part, chosen by hash: the same ones whenever the same is committed."""
    bad: list[Line] = field(default_factory=list)
    """Some with quarantined videos, the newest first."""
    latents: LatentMoments | None = None
    """Of all parts; None of indices."""

    @property
    def num_tokens(self) -> int:
        """Indices, or latent positions, of all clips."""
        return sum(
            clips * int(np.prod([int(n) for n in shape.split(",")][-3:]))
            for shape, clips in self.shapes.items()
        )


def collect(
    lines: Iterable[Line], *, run_starts: Sequence[float], num_drawn: int, num_bad: int
) -> LedgerFacts:
    """Go through all lines once; those of a shard come in the order of its chain.

    Args:
        lines: of the ledger.
        run_starts: when drivers began, as seconds since 1970, in order: no segment is made before.
        num_drawn: lines to keep of those with a part.
        num_bad: lines to keep of those with quarantined videos.
    """
    facts = LedgerFacts()
    drawn: list[tuple[float, str, Line]] = []
    bad: list[tuple[float, str, Line]] = []
    last_shard, last_ended = "", 0.0

    def kept() -> Iterable[Line]:
        nonlocal last_shard, last_ended
        for line in lines:
            began = bisect.bisect_right(run_starts, line.created_seconds)
            earliest = run_starts[began - 1] if began else 0.0
            if line.shard == last_shard:
                earliest = max(earliest, min(last_ended, line.created_seconds))
            _count(facts, line, earliest)
            last_shard, last_ended = line.shard, line.created_seconds
            name = f"{line.shard}/{line.segment}/{line.generation}"
            if line.part is not None:
                _keep(drawn, (-hash_of(name), name, line), num_drawn)
            if line.quarantined:
                _keep(bad, (line.created_seconds, name, line), num_bad)
            yield line

    facts.latents = moments_of_parts(kept())
    facts.drawn = [line for *_, line in sorted(drawn, reverse=True)]
    facts.bad = [line for *_, line in sorted(bad, reverse=True)]
    return facts


def _count(facts: LedgerFacts, line: Line, earliest: float) -> None:
    facts.receipts += 1
    facts.clips += line.rows
    facts.retries += line.generation > 0
    facts.shapes.update(line.shapes)
    facts.environments[line.numerics] += line.rows
    facts.began.append(max(earliest, line.created_seconds - MOST_SPREAD_SECONDS))
    facts.ended.append(line.created_seconds)
    facts.rows.append(line.rows)


def _keep(heap: list[tuple[float, str, Line]], item: tuple[float, str, Line], most: int) -> None:
    """Keep the ``most`` largest."""
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif most:
        heapq.heappushpop(heap, item)


def hash_of(name: str) -> int:
    """Chance that is the same every time: 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Throughput:
    """Clips per second over the time that somebody worked."""

    rates: npt.NDArray[np.float64]
    """One for each step of equal length."""
    worked_seconds: float
    """Length of all steps."""
    breaks: tuple[float, ...]
    """Where on the axis, 0 to 1, time without work is left out."""


def throughput(
    began: npt.ArrayLike, ended: npt.ArrayLike, rows: npt.ArrayLike, *, num_steps: int
) -> Throughput:
    """Spread each segment's clips over the time in which it was made.

    Args:
        began: ``[n]``, seconds.
        ended: ``[n]``, not before ``began``.
        rows: ``[n]``, clips.
        num_steps: of the result.
    """
    starts, ends, clips = (np.asarray(v, dtype=np.float64) for v in (began, ended, rows))
    if not len(ends) or ends.max() <= starts.min():
        return Throughput(np.zeros(0), 0.0, ())
    starts, ends, places = _without_breaks(starts, ends)
    length = float(ends.max())
    edges = np.linspace(0.0, length, num_steps + 1)
    # clips done by each edge: a segment grows evenly from its start to its end
    done = np.zeros(num_steps + 1)
    spans = np.maximum(ends - starts, 1e-6)
    for begin in range(0, len(ends), 4096):
        part = slice(begin, begin + 4096)
        share = np.clip((edges[:, None] - starts[part]) / spans[part], 0.0, 1.0)
        done += share @ clips[part]
    rates = np.diff(done) / (length / num_steps)
    return Throughput(rates, length, tuple(float(place / length) for place in places))


def _without_breaks(starts: _Times, ends: _Times) -> tuple[_Times, _Times, _Times]:
    """Times on a clock that began with the first segment and stood while nobody worked.

    Returns:
        starts, ends, and where on that clock it stood.
    """
    order = np.argsort(starts, kind="stable")
    busy_until = np.maximum.accumulate(ends[order])[:-1]
    resumed = starts[order][1:]
    is_break = resumed - busy_until > BREAK_SECONDS
    resumed, lengths = resumed[is_break], (resumed - busy_until)[is_break]
    lost = np.concatenate([[0.0], np.cumsum(lengths)]) + starts.min()
    begin = starts - lost[np.searchsorted(resumed, starts, side="right")]
    end = ends - lost[np.searchsorted(resumed, ends, side="right")]
    return begin, end, resumed - lost[1:]
