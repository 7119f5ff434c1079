"""Who works on what: shards that wait, attempts that run, workers with room. Pure bookkeeping.

A *lease* is one attempt at one shard by one owner. A shard has one lease, at the tail of a run
perhaps a second one, the *copy*: receipts decide between the two, segment by segment. Large shards
begin first, so that the end of a run is not spent waiting for one that began last.
"""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.attempts import WorkerReport
from pipeline.receipts import new_attempt
from pipeline.segments import ShardTask

RATES_KEPT = 512
"""Attempts whose speed is remembered, to tell what is usual."""
MIN_COPY_SECONDS = 30.0
"""A shard that is done sooner is not worth a copy."""
COPY_GAIN = 0.75
"""A copy must be expected to take less than this share of what the first one still needs."""
MIN_MOVE_SECONDS = 5.0
"""A shard that is done sooner is not worth moving to an idle worker."""


@dataclass(slots=True)
class Lease:
    """One attempt at one shard."""

    task: ShardTask
    """What is attempted."""
    owner: str
    """Who does it."""
    began: float
    """When, by the driver's clock in seconds."""
    is_asked: bool = False
    """It has been asked to end."""

    @property
    def attempt(self) -> str:
        """Its random id."""
        return self.task.attempt


@dataclass(slots=True)
class _Owner:
    slots: int
    leases: set[str] = field(default_factory=set)
    moved: float = 0.0
    """When its progress was last seen to change."""
    seen: float = -1.0
    """``WorkerReport.progress`` then."""


class Leases:
    """The driver's memory of a run; storage holds everything that matters."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, ShardTask]] = []
        self._later: list[tuple[float, int, ShardTask]] = []
        self._order = 0
        self._owners: dict[str, _Owner] = {}
        self._free: set[str] = set()
        self._leases: dict[str, Lease] = {}
        self._of_shard: dict[str, list[Lease]] = {}
        self._seconds_per_byte: deque[float] = deque(maxlen=RATES_KEPT)

    # ---- shards ----

    def add(self, task: ShardTask, *, at: float | None = None) -> None:
        """Put a shard in the queue; with ``at`` it waits there until that time."""
        self._order += 1
        if at is None:
            heapq.heappush(self._ready, (-task.remaining, self._order, task))
        else:
            heapq.heappush(self._later, (at, self._order, task))

    @property
    def num_waiting(self) -> int:
        """Shards that nobody has."""
        return len(self._ready) + len(self._later)

    @property
    def num_running(self) -> int:
        """Attempts under way."""
        return len(self._leases)

    @property
    def is_empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not (self._ready or self._later or self._leases)

    def running(self) -> list[Lease]:
        """All leases."""
        return list(self._leases.values())

    def of_shard(self, shard: str) -> list[Lease]:
        """The leases of one shard: none, one, or with its copy two."""
        return list(self._of_shard.get(shard, ()))

    # ---- owners ----

    def join(self, owner: str, slots: int, now: float) -> None:
        """A worker is there."""
        self._owners[owner] = _Owner(slots, moved=now)
        self._free.add(owner)

    def leave(self, owner: str) -> list[Lease]:
        """A worker takes nothing more; returns what it still has."""
        gone = self._owners.pop(owner, None)
        self._free.discard(owner)
        return [self._leases[attempt] for attempt in sorted(gone.leases)] if gone else []

    @property
    def num_owners(self) -> int:
        """Workers that take attempts."""
        return len(self._owners)

    @property
    def num_idle(self) -> int:
        """Workers that have none."""
        return sum(not self._owners[name].leases for name in self._free)

    # ---- leases ----

    def next(self, now: float) -> Lease | None:
        """Give the next shard to the owner that has least to do; None: no shard or no room."""
        while self._later and self._later[0][0] <= now:
            self.add(heapq.heappop(self._later)[2])
        if not self._ready or not self._free:
            return None
        return self._lease(heapq.heappop(self._ready)[2], self._least_busy(), now)

    def end(self, attempt: str, now: float, *, finished: bool) -> Lease | None:
        """An attempt has ended; None when it is none of ours."""
        lease = self._leases.pop(attempt, None)
        if lease is None:
            return None
        siblings = self._of_shard[lease.task.shard.name]
        siblings.remove(lease)
        if not siblings:
            del self._of_shard[lease.task.shard.name]
        owner = self._owners.get(lease.owner)
        if owner is not None:
            owner.leases.discard(attempt)
            owner.moved = now
            self._free.add(lease.owner)
        if finished and lease.task.remaining:
            self._seconds_per_byte.append((now - lease.began) / lease.task.remaining)
        return lease

    def copy(self, task: ShardTask, now: float) -> Lease:
        """Give what is left of a shard that somebody has to an idle owner as well."""
        return self._lease(task, self._least_busy(), now)

    def _lease(self, task: ShardTask, name: str, now: float) -> Lease:
        lease = Lease(replace(task, attempt=new_attempt()), name, now)
        self._leases[lease.attempt] = lease
        self._of_shard.setdefault(task.shard.name, []).append(lease)
        owner = self._owners[name]
        owner.leases.add(lease.attempt)
        if len(owner.leases) >= owner.slots:
            self._free.discard(name)
        return lease

    def _least_busy(self) -> str:
        return min(self._free, key=lambda name: (len(self._owners[name].leases), name))

    # ---- what to do about those that take long ----

    def silent(
        self, reports: Mapping[str, WorkerReport], now: float, limit_seconds: float
    ) -> list[str]:
        """Owners that have attempts, and have shown no progress for so long."""
        found = []
        for name, owner in self._owners.items():
            report = reports.get(name)
            progress = report.progress if report else owner.seen
            if progress != owner.seen or not owner.leases:
                owner.seen, owner.moved = progress, now
            elif now - owner.moved > limit_seconds:
                found.append(name)
        return found

    def to_move(self, reports: Mapping[str, WorkerReport], now: float) -> list[Lease]:
        """Attempts to be handed back: idle workers wait while their owners have several.

        One for each idle worker at most, those that take longest first.
        """
        idle = self.num_idle - sum(lease.is_asked for lease in self._leases.values())
        if self._ready or idle <= 0:
            return []
        crowded: list[tuple[float, Lease]] = []
        for owner in self._owners.values():
            mine = [self._leases[attempt] for attempt in owner.leases]
            if len(mine) < 2 or any(lease.is_asked for lease in mine):
                continue
            left = [(self._seconds_left(lease, reports, now), lease) for lease in mine]
            # the one that has done least has least to lose
            candidate = max(left, key=lambda pair: (pair[1].began, pair[1].attempt))
            if candidate[0] >= MIN_MOVE_SECONDS:
                crowded.append(candidate)
        crowded.sort(key=lambda pair: -pair[0])
        return [lease for _, lease in crowded[:idle]]

    def to_copy(self, reports: Mapping[str, WorkerReport], now: float) -> list[Lease]:
        """Attempts that an idle worker would finish sooner than their owner; the worst first."""
        idle = self.num_idle
        if self._ready or self._later or idle <= 0 or not self._seconds_per_byte:
            return []
        usual = statistics.median(self._seconds_per_byte)
        slow: list[tuple[float, Lease]] = []
        for leases in self._of_shard.values():
            lease = leases[0]
            if len(leases) > 1 or lease.is_asked:
                continue
            left = self._seconds_left(lease, reports, now)
            # a copy begins behind the last commit, perhaps at the beginning
            anew = lease.task.remaining * usual
            if left > MIN_COPY_SECONDS and anew < COPY_GAIN * left:
                slow.append((left, lease))
        slow.sort(key=lambda pair: -pair[0])
        return [lease for _, lease in slow[:idle]]

    def _seconds_left(self, lease: Lease, reports: Mapping[str, WorkerReport], now: float) -> float:
        """By its own speed so far; at the beginning by what is usual, less the time it has had."""
        report = reports.get(lease.owner)
        covered = report.covered.get(lease.attempt, 0) if report else 0
        left, age = lease.task.remaining - covered, now - lease.began
        if covered > 0:
            return age * left / covered
        usual = statistics.median(self._seconds_per_byte) if self._seconds_per_byte else 0.0
        return max(usual * left, age)
