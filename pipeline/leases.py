"""Who works on what: shards that wait, attempts that run, workers with room. Pure bookkeeping.

A *lease* is one attempt at one shard by one owner. A shard has one lease, at the tail of a run
perhaps a second one, the *copy*: receipts decide between the two, segment by segment.

A run ends with its last shard. So large shards begin first; a shard that would end after everything
else gets its worker to itself, or goes to a faster one; and at the tail idle workers take over from
those that have several, or copy what takes too long. Handing over loses nothing that is done.
"""

from __future__ import annotations

import bisect
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
LATE = 1.1
"""A shard is late when it needs this many times the seconds that are left of the run."""
SLOW = 0.6
"""A worker is slow below this share of the usual speed."""
MIN_AGE_SECONDS = 120.0
"""A worker's speed, or a shard's, is not judged sooner."""


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
    joined: float
    leases: set[str] = field(default_factory=set)
    moved: float = 0.0
    """When its progress was last seen to change."""
    bytes_per_second: float = 0.0
    """Its speed so far; 0: not known."""
    alone: str | None = None
    """A late attempt that it works on alone."""
    seen: float = -1.0
    """``WorkerReport.progress`` then."""


class Leases:
    """The driver's memory of a run; storage holds everything that matters."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, ShardTask]] = []
        """By size, the largest last."""
        self._ready_bytes = 0
        self._later: list[tuple[float, int, ShardTask]] = []
        self._order = 0
        self._owners: dict[str, _Owner] = {}
        self._free: set[str] = set()
        self._leases: dict[str, Lease] = {}
        self._of_shard: dict[str, list[Lease]] = {}
        self._seconds_per_byte: deque[float] = deque(maxlen=RATES_KEPT)
        self._usual_speed = self._run_left = 0.0

    # ---- shards ----

    def add(self, task: ShardTask, *, at: float | None = None) -> None:
        """Put a shard in the queue; with ``at`` it waits there until that time."""
        self._order += 1
        if at is None:
            bisect.insort(self._ready, (task.remaining, -self._order, task))
            self._ready_bytes += task.remaining
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
        self._owners[owner] = _Owner(slots, now, moved=now)
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
        name = self._least_busy()
        return self._lease(self._choose(self._owners[name]), name, now)

    def _choose(self, owner: _Owner) -> ShardTask:
        """The largest shard; for a slow worker the largest that does not make the run longer."""
        at = len(self._ready) - 1
        if self._is_slow(owner):
            size = int(owner.bytes_per_second * self._run_left / owner.slots)
            at = max(0, bisect.bisect_right(self._ready, size, key=lambda one: one[0]) - 1)
        size, _, task = self._ready.pop(at)
        self._ready_bytes -= size
        return task

    def _is_slow(self, owner: _Owner) -> bool:
        return 0 < owner.bytes_per_second < SLOW * self._usual_speed

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
            if owner.alone == attempt:
                owner.alone = None
            if owner.alone is None:
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

    def measure(self, reports: Mapping[str, WorkerReport], now: float) -> None:
        """Take in how fast everybody is, and with it how long the run will still take."""
        speeds = []
        for name, owner in self._owners.items():
            age, report = now - owner.joined, reports.get(name)
            if report is not None and age >= MIN_AGE_SECONDS:
                owner.bytes_per_second = report.counters.get("covered", 0.0) / age
                speeds.append(owner.bytes_per_second)
        if not speeds:
            return
        self._usual_speed = statistics.median(speeds)
        running = sum(
            lease.task.remaining - _covered(lease, reports) for lease in self._leases.values()
        )
        speed = sum(speeds) + self._usual_speed * (len(self._owners) - len(speeds))
        self._run_left = (self._ready_bytes + running) / max(speed, 1e-9)

    def to_relieve(self, reports: Mapping[str, WorkerReport], now: float) -> list[Lease]:
        """Attempts to be handed back because of one that would end after everything else.

        Either its neighbours on the same worker, so that it gets the worker to itself; or itself,
        when it has the worker to itself and the worker is slow.
        """
        found: list[Lease] = []
        for name, owner in self._owners.items():
            mine = [self._leases[attempt] for attempt in owner.leases]
            if any(lease.is_asked for lease in mine):
                continue
            late = [lease for lease in mine if self._is_late(lease, reports, now)]
            if not late:
                continue
            if len(mine) > 1:
                worst = max(late, key=lambda one: self._seconds_left(one, reports, now))
                owner.alone = worst.attempt
                self._free.discard(name)
                found += [lease for lease in mine if lease is not worst]
            elif self._is_slow(owner):
                found += late
        return found

    def _is_late(self, lease: Lease, reports: Mapping[str, WorkerReport], now: float) -> bool:
        if now - lease.began < MIN_AGE_SECONDS or not self._run_left:
            return False
        left = self._seconds_left(lease, reports, now)
        return left > max(LATE * self._run_left, MIN_COPY_SECONDS)

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
            # the one that has done least has least to lose
            lease = min(mine, key=lambda one: (_covered(one, reports), one.task.shard.name))
            left = self._seconds_left(lease, reports, now)
            if left >= MIN_MOVE_SECONDS:
                crowded.append((left, lease))
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
        covered = _covered(lease, reports)
        left, age = lease.task.remaining - covered, now - lease.began
        if covered > 0:
            return age * left / covered
        usual = statistics.median(self._seconds_per_byte) if self._seconds_per_byte else 0.0
        return max(usual * left, age)


def _covered(lease: Lease, reports: Mapping[str, WorkerReport]) -> int:
    """Bytes (members) of its shard that an attempt was last heard to be done with."""
    report = reports.get(lease.owner)
    return report.covered.get(lease.attempt, 0) if report else 0
