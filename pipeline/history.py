"""How the counters of a run grew: a bounded list of moments, for report and status. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 240
"""Moments kept; beyond them every second one is dropped, and new ones come half as often."""
COLUMNS = (
    "clips",
    "videos",
    "encode_seconds",
    "starved_seconds",
    "decoder_seconds",
    "decoder_busy_seconds",
    "decoder_full_seconds",
    "encoded_clips",
    "covered",
    "source_seconds",
    "token_bytes",
)
"""The counters of a moment, behind its ``at_seconds``."""


@dataclass(slots=True)
class History:
    """Moments of a run, the oldest first, evenly spread whatever its length."""

    every_seconds: float = 5.0
    """Least time between two moments."""
    moments: list[list[float]] = field(default_factory=list)
    """Each: seconds since the run began, then the counters of `COLUMNS`."""

    def record(self) -> dict[str, Any]:
        """For the heartbeat: plain values."""
        return {"columns": list(COLUMNS), "moments": self.moments}

    def add(self, at_seconds: float, counters: Mapping[str, float]) -> None:
        """Keep a moment, unless the last one was just now."""
        if self.moments and at_seconds - self.moments[-1][0] < self.every_seconds:
            return
        self.moments.append([round(at_seconds, 3), *(counters.get(name, 0) for name in COLUMNS)])
        if len(self.moments) > MOST:
            self.moments, self.every_seconds = self.moments[::2], 2 * self.every_seconds


@dataclass(frozen=True, slots=True)
class Step:
    """What happened between two moments."""

    at_seconds: float
    """Its beginning, since the run began."""
    seconds: float
    """Its length."""
    grown: dict[str, float]
    """By how much each counter of `COLUMNS` grew; 0 where a worker died with its own."""

    @property
    def clips_per_second(self) -> float:
        """Rate of the step."""
        return self.grown["clips"] / self.seconds


def steps(moments: Sequence[Sequence[float]]) -> list[Step]:
    """What happened between moments.

    >>> first, second = [0.0] * 12, [10.0, 5.0, *[0.0] * 10]
    >>> steps([first, second])[0].clips_per_second
    0.5
    """
    found = []
    for before, after in itertools.pairwise(moments):
        seconds = after[0] - before[0]
        if seconds > 0:
            pairs = zip(COLUMNS, before[1:], after[1:], strict=True)
            grown = {name: max(0.0, new - old) for name, old, new in pairs}
            found.append(Step(before[0], seconds, grown))
    return found


def lately(found: Sequence[Step], *, seconds: float) -> Step | None:
    """The last steps as one, at least so long where there are enough; None of none."""
    if not found:
        return None
    end = found[-1].at_seconds + found[-1].seconds
    last = [step for step in found if step.at_seconds >= end - seconds] or [found[-1]]
    grown = {name: sum(step.grown[name] for step in last) for name in COLUMNS}
    return Step(last[0].at_seconds, end - last[0].at_seconds, grown)


def moments_of(beat: Mapping[str, Any]) -> list[list[float]]:
    """The moments in a heartbeat; none in one that has other columns than these."""
    history = beat.get("history")
    if not isinstance(history, Mapping) or history.get("columns") != list(COLUMNS):
        return []
    width = 1 + len(COLUMNS)
    return [list(map(float, row)) for row in history.get("moments", ()) if len(row) == width]
