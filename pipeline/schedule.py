"""The driver's loop: hands shards to workers, takes back receipts, tries failed ones again.

It keeps nothing that storage does not hold: killed at any moment, the same command continues from
the receipts, and a second driver may run at any time. Where attempts run is handed in (``inline``
or ``driver``), and so is the clock: ``jobs.benchmark scheduler`` runs this code in virtual time.
"""

from __future__ import annotations

import json
import logging
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.attempts import Event, Finished, Joined, Left, Wish, WorkerReport, Workers
from pipeline.books import Books
from pipeline.errors import (
    Abandoned,
    HandedBack,
    RunError,
    ShardError,
    TooManyBadVideos,
    WorkerExpelled,
    WorkerLost,
)
from pipeline.heartbeat import HEARTBEAT_SECONDS
from pipeline.leases import Lease, Leases
from pipeline.receipts import new_attempt
from pipeline.segments import ShardTask
from pipeline.tally import Tally

logger = logging.getLogger(__name__)

MANIFEST_SECONDS = 600.0
WATCH_SECONDS = 1.0
"""Between two looks at counters, leases and the tail."""
MEASURE_SECONDS = 30.0
"""Between two looks at how fast everybody is, and at shards that would end last."""
WORKERS_PER_SECOND = 100.0
"""Looked at, at most, so that a large pool does not keep the driver busy."""
EVENT_SECONDS = 0.5
"""Longest wait for an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """When to try again and when to stop."""

    max_attempts: int
    """Attempts at a shard in this run."""
    retry_seconds: float
    """Wait before the second attempt; doubled for each further one."""
    max_bad_fraction: float
    """Largest share of quarantined videos..."""
    min_videos: int
    """...once this many were seen."""
    lease_seconds: float = 1800.0
    """A worker whose counters stand still for so long while it has a shard is replaced."""
    grace_seconds: float = 30.0
    """Time for open segments to be committed when the run is asked to stop."""


class Scheduler:
    """One run over a list of shards."""

    def __init__(
        self,
        *,
        workers: Workers,
        rules: RetryRules,
        tally: Tally,
        show: Callable[[Tally], None],
        clock: Callable[[], float] = time.monotonic,
        is_shared: bool = False,
    ) -> None:
        """Nothing is begun yet.

        Args:
            workers: where attempts run.
            rules: when to try again and when to stop.
            tally: kept up to date.
            show: told of the tally about every second.
            clock: seconds, from anywhere on.
            is_shared: others bring in receipts all the time: they are looked at before every
                attempt, and now and then while it goes on.
        """
        self._is_shared = is_shared
        self._workers, self._rules = workers, rules
        self._tally, self._show, self._clock = tally, show, clock
        self._leases = Leases()
        self._attempts: dict[str, int] = {}
        self._done: set[str] = set()
        self._books = Books()
        self._watched, self._beat, self._snapshot = clock() - WATCH_SECONDS, 0.0, clock()
        self._measured = clock()
        self._stop_wanted, self._give_up_at = False, float("inf")
        self._driver = new_attempt()

    def stop(self) -> None:
        """Ask the run to end: open segments are committed first. May be called by a signal."""
        self._stop_wanted = True

    def run(self, tasks: Sequence[ShardTask], books: Books) -> None:
        """Carry out all tasks; ``books`` grow by what they commit. May be called again.

        Raises:
            RunError: the run cannot go on; what is committed stays.
        """
        self._books, self._beat = books, 0.0
        for task in tasks:
            self._leases.add(task)
        try:
            while not self._leases.is_empty and not self._must_end():
                self._hand_out()
                for event in self._workers.events(EVENT_SECONDS):
                    self._take(event)
                self._watch()
        finally:
            reports = self._workers.reports(wait_seconds=5.0)
            self._tally.take_reports(reports.values())
            self._count()
            self._heartbeat(running=False)

    # ---- handing out ----

    def _hand_out(self) -> None:
        if self._stop_wanted:
            return
        while (lease := self._leases.next(self._clock())) is not None:
            left = self._left_by_others(lease)
            if left is None:
                self._leases.end(lease.attempt, self._clock(), finished=False)
                self._finish(lease.task.shard.name)
            else:
                lease.task = replace(left, attempt=lease.attempt)
                self._workers.submit(lease.owner, lease.task)

    def _left_by_others(self, lease: Lease) -> ShardTask | None:
        """The task behind what others have committed by now; None: nothing is left."""
        if not self._is_shared or lease.task.is_retry:  # tried again by one rank only
            return lease.task
        try:
            return self._left_of(lease.task)
        except ShardError as away:
            logger.warning("receipts of %s cannot be read now: %s", lease.task.shard.name, away)
            return lease.task

    def _must_end(self) -> bool:
        """Whether the run, asked to stop, has nothing more to wait for."""
        if not self._stop_wanted:
            return False
        now = self._clock()
        if self._give_up_at == float("inf"):
            self._give_up_at = now + self._rules.grace_seconds
            self._tally.is_interrupted = True
        for lease in self._leases.running():
            self._hand_back(lease)
        return self._leases.num_running == 0 or now >= self._give_up_at

    def _hand_back(self, lease: Lease) -> None:
        if not lease.is_asked:
            lease.is_asked = True
            self._workers.ask(lease.owner, lease.attempt, Wish.hand_back)

    # ---- what happened ----

    def _take(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._leases.join(event.owner, event.slots, self._clock())
        elif isinstance(event, Left):
            logger.info("%s takes no more shards: %s", event.owner, event.reason)
            for lease in self._leases.leave(event.owner):
                self._hand_back(lease)
        else:
            self._take_finished(event)

    def _take_finished(self, finished: Finished) -> None:
        shard = finished.task.shard.name
        lease = self._leases.end(
            finished.task.attempt, self._clock(), finished=finished.error is None
        )
        if lease is None:
            logger.debug("an attempt at %s that was given up has ended", shard)
            return
        if isinstance(finished.error, WorkerExpelled):
            self._expel(lease.owner, finished.error)
        if shard in self._done or isinstance(finished.error, Abandoned):
            return
        if finished.error is None:
            self._books.add(finished.receipts)
            self._tally.take(finished.receipts)
            self._finish(shard)
        elif isinstance(finished.error, HandedBack):
            self._tally.handed_back += 1
            self._go_on(finished.task)
        else:
            self._take_failure(finished)

    def _finish(self, shard: str) -> None:
        self._done.add(shard)
        self._tally.done_shards += 1
        for other in self._leases.of_shard(shard):
            other.is_asked = True
            self._workers.ask(other.owner, other.attempt, Wish.abandon)

    def _take_failure(self, finished: Finished) -> None:
        error, shard = finished.error, finished.task.shard
        self._record_failure(finished)
        if isinstance(error, RunError) or not isinstance(error, ShardError):
            assert error is not None
            raise error
        tried = self._attempts.get(shard.name, 0) + int(
            finished.counts_as_attempt and not isinstance(error, WorkerExpelled)
        )
        self._attempts[shard.name] = tried
        if tried >= self._rules.max_attempts and not self._leases.of_shard(shard.name):
            logger.error("%s given up after %d attempts: %s", shard.name, tried, error)
            self._go_on(finished.task, give_up=str(error))
            return
        delay = self._rules.retry_seconds * 2.0 ** max(0, tried - 1) * random.uniform(0.5, 1.5)
        self._tally.retries += 1
        logger.warning("%s failed, again in %.1f s: %s", shard.name, delay, error)
        self._go_on(finished.task, delay_seconds=delay)

    def _go_on(
        self,
        task: ShardTask,
        *,
        delay_seconds: float | None = None,
        give_up: str | None = None,
    ) -> None:
        """What an attempt committed stays: the next one begins behind it.

        Args:
            task: of the attempt that has ended.
            delay_seconds: to wait before the next one.
            give_up: do not try again, for this reason.
        """
        shard = task.shard
        try:
            left = self._left_of(task)
        except ShardError as away:
            # the same task then: it meets what is committed, and goes on behind it
            logger.warning("receipts of %s cannot be read now: %s", shard.name, away)
        else:
            if left is None:
                self._finish(shard.name)
                return
            task = left
        if give_up is not None:
            self._tally.failed[shard.name] = give_up
        elif not self._leases.of_shard(shard.name):  # else its copy goes on
            self._leases.add(task, at=None if delay_seconds is None else self._later(delay_seconds))

    def _left_of(self, task: ShardTask) -> ShardTask | None:
        """The task behind what is committed by now, by whomever; None: nothing is left."""
        self._books.read(task.shard.name)
        return self._books.left_of(task)

    def _later(self, seconds: float) -> float:
        return self._clock() + seconds

    def _expel(self, owner: str, error: WorkerExpelled) -> None:
        if owner in self._tally.expelled:
            return
        self._tally.expelled[owner] = str(error)
        logger.error("%s is expelled: %s", owner, error)
        for lease in self._leases.leave(owner):
            lease.is_asked = True  # they end by the same error
        self._workers.expel(owner)

    # ---- now and then ----

    def _watch(self) -> None:
        now = self._clock()
        # a thousand workers report every ten seconds: no use in looking more often
        period = max(WATCH_SECONDS, self._leases.num_owners / WORKERS_PER_SECOND)
        if now - self._watched < period and not self._leases.is_empty:
            return
        self._watched = now
        reports = self._workers.reports()
        self._tally.take_reports(reports.values())
        self._count()
        self._show(self._tally)
        self._check_bad_fraction()
        if not self._stop_wanted:
            self._watch_leases(reports, now)
        if now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            self._heartbeat(running=True)
        if now - self._snapshot >= MANIFEST_SECONDS and self._books.are_worth_publishing:
            self._snapshot = now
            self._publish_manifest()

    def _watch_leases(self, reports: Mapping[str, WorkerReport], now: float) -> None:
        for owner in self._leases.silent(reports, now, self._rules.lease_seconds):
            logger.error("%s stood still for %.0f s", owner, self._rules.lease_seconds)
            self._leases.leave(owner)
            self._workers.restart(owner)
        moving = self._leases.to_move(reports, now)
        if now - self._measured >= MEASURE_SECONDS:
            self._measured = now
            self._leases.measure(reports, now)
            moving += self._leases.to_relieve(reports, now)
            for lease in self._leases.running():
                if not lease.is_asked and self._left_by_others(lease) is None:
                    self._finish(lease.task.shard.name)
        for lease in moving:
            logger.info("%s goes to another worker", lease.task.shard.name)
            self._hand_back(lease)
        for lease in self._leases.to_copy(reports, now):
            self._copy(lease)

    def _copy(self, lease: Lease) -> None:
        """Give a straggler to an idle worker as well; whoever is faster wins, by its receipts."""
        shard = lease.task.shard.name
        try:
            task = self._left_of(lease.task)
        except ShardError as away:
            logger.warning("no copy of %s now: %s", shard, away)
            return
        if task is None:  # another driver was here
            self._finish(shard)
            return
        copy = self._leases.copy(task, self._clock())
        self._tally.copies += 1
        logger.info("%s takes long: a copy goes to %s", shard, copy.owner)
        self._workers.submit(copy.owner, copy.task)

    def _count(self) -> None:
        self._tally.in_flight = self._leases.num_running
        self._tally.num_workers = self._leases.num_owners
        self._tally.most_workers = max(self._tally.most_workers, self._leases.num_owners)
        self._tally.remember()

    def _publish_manifest(self) -> None:
        try:
            self._books.publish()
        except ShardError as away:
            logger.warning("no manifest this time: %s", away)

    def _check_bad_fraction(self) -> None:
        tally, rules = self._tally, self._rules
        videos = tally.before.get("videos", 0) + tally.counters.get("videos", 0)
        bad = tally.before.get("quarantined", 0) + tally.counters.get("quarantined", 0)
        if videos >= rules.min_videos and bad > rules.max_bad_fraction * videos:
            raise TooManyBadVideos(
                f"{bad:.0f} of {videos:.0f} videos were quarantined, more than "
                f"limits.max_bad_fraction={rules.max_bad_fraction}; see OUT/quarantine for reasons"
            )

    def _record_failure(self, finished: Finished) -> None:
        error, shard = finished.error, finished.task.shard
        assert error is not None
        record = {
            "shard": shard.name,
            "url": shard.url,
            "class": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "at_seconds": time.time(),
        }
        name = f"failures/{shard.name}-{new_attempt()}.json"
        try:
            self._books.put(name, json.dumps(record, indent=1).encode())
        except (ShardError, RunError) as unwritable:
            # the failure itself is what matters; it is raised or retried by the caller
            logger.warning("could not write %s: %s", name, unwritable)

    def _heartbeat(self, *, running: bool) -> None:
        try:
            self._books.beat(self._driver, self._tally, running=running)
        except (ShardError, WorkerLost) as error:
            # storage may be away for a moment; the attempts that need it will say so
            logger.warning("no heartbeat: %s", error)
