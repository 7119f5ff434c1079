"""The driver's loop: hands shards to workers, takes back receipts, tries failed ones again.

It keeps nothing that storage does not hold: killed at any moment, the same command continues from
the receipts. Where attempts run is handed in (``inline`` or ``driver``).
"""

from __future__ import annotations

import heapq
import json
import logging
import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import RunError, ShardError, TooManyBadVideos, WorkerLost
from pipeline.heartbeat import HEARTBEAT_SECONDS, write_heartbeat
from pipeline.ledger import Ledger, read_chain, task_of
from pipeline.receipts import Receipt, new_attempt
from pipeline.segments import ShardTask
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

MANIFEST_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One attempt that came to an end."""

    task: ShardTask
    """What was attempted."""
    receipts: Sequence[Receipt] = ()
    """The segments that hold, when it succeeded."""
    error: BaseException | None = None
    """Why it did not."""
    counts_as_attempt: bool = True
    """False: the machine was taken away, which says nothing of the shard."""


class Workers(Protocol):
    """Where attempts run."""

    def capacity(self) -> int:
        """Attempts that may be in hand at once, now."""

    def submit(self, task: ShardTask) -> None:
        """Begin an attempt."""

    def wait(self, timeout_seconds: float) -> list[Finished]:
        """Attempts that ended since the last call; may be none."""

    def counters(self, *, wait_seconds: float = 0.0) -> dict[str, float]:
        """Sums of ``worker.Counters`` over all workers; waits that long for fresh ones."""

    def close(self) -> None:
        """Stop everything that was started."""


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


@dataclass(slots=True)
class Tally:
    """How the run stands; what the progress line, the heartbeat and the summary show."""

    num_shards: int = 0
    done_shards: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Shards given up in this run, and why."""
    retries: int = 0
    in_flight: int = 0
    to_cover: int = 0
    """Bytes of tars, or members of buckets, that were left when the run began."""
    before: dict[str, float] = field(default_factory=dict)
    """Videos, clips and so on that were committed when the run began."""
    counters: dict[str, float] = field(default_factory=dict)
    """What the workers have done since."""
    began: float = field(default_factory=time.monotonic)


class Scheduler:
    """One run over a list of shards."""

    def __init__(
        self,
        *,
        storage: Storage,
        workers: Workers,
        rules: RetryRules,
        tally: Tally,
        show: Callable[[Tally], None],
    ) -> None:
        self._storage, self._workers, self._rules = storage, workers, rules
        self._tally, self._show = tally, show
        self._attempts: dict[str, int] = {}
        self._waiting: list[tuple[float, int, ShardTask]] = []
        self._order = 0
        self._beat, self._snapshot = 0.0, time.monotonic()
        self._driver = new_attempt()

    def run(self, tasks: Sequence[ShardTask], ledger: Ledger) -> None:
        """Carry out all tasks; ``ledger`` grows by what they commit.

        Raises:
            RunError: the run cannot go on; what is committed stays.
        """
        for task in tasks:
            self._queue(task, 0.0)
        in_flight = 0
        try:
            while self._waiting or in_flight:
                now = time.monotonic()
                while (
                    self._waiting
                    and self._waiting[0][0] <= now
                    and in_flight < self._workers.capacity()
                ):
                    self._workers.submit(heapq.heappop(self._waiting)[2])
                    in_flight += 1
                for finished in self._workers.wait(0.5):
                    in_flight -= 1
                    self._take(finished, ledger)
                self._tally.in_flight = in_flight
                self._report(ledger)
        finally:
            self._tally.counters = self._workers.counters(wait_seconds=5.0)
            self._heartbeat(running=False)

    def _queue(self, task: ShardTask, delay_seconds: float) -> None:
        self._order += 1
        heapq.heappush(self._waiting, (time.monotonic() + delay_seconds, self._order, task))

    def _take(self, finished: Finished, ledger: Ledger) -> None:
        shard = finished.task.shard
        if finished.error is None:
            ledger.add(finished.receipts)
            self._tally.done_shards += 1
            return
        self._record_failure(finished)
        if isinstance(finished.error, RunError) or not isinstance(finished.error, ShardError):
            raise finished.error
        # What the attempt committed before it failed stays: begin behind it.
        task = finished.task
        try:
            ledger.add(read_chain(self._storage, shard.name))
        except ShardError as away:
            # the same task then: it meets what is committed, and goes on behind it
            logger.warning("receipts of %s cannot be read now: %s", shard.name, away)
        else:
            left = task_of(shard, ledger.state(shard.name), task.retry)
            if left is None:
                self._tally.done_shards += 1
                return
            task = left
        tried = self._attempts.get(shard.name, 0) + int(finished.counts_as_attempt)
        self._attempts[shard.name] = tried
        if tried >= self._rules.max_attempts:
            logger.error("%s given up after %d attempts: %s", shard.name, tried, finished.error)
            self._tally.failed[shard.name] = str(finished.error)
            return
        delay = self._rules.retry_seconds * 2.0 ** max(0, tried - 1) * random.uniform(0.5, 1.5)
        self._tally.retries += 1
        logger.warning("%s failed, again in %.1f s: %s", shard.name, delay, finished.error)
        self._queue(task, delay)

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
            self._storage.put(name, json.dumps(record, indent=1).encode())
        except (ShardError, RunError) as unwritable:
            # the failure itself is what matters; it is raised or retried by the caller
            logger.warning("could not write %s: %s", name, unwritable)

    def _report(self, ledger: Ledger) -> None:
        now = time.monotonic()
        self._tally.counters = self._workers.counters()
        self._show(self._tally)
        self._check_bad_fraction()
        if now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            self._heartbeat(running=True)
        if now - self._snapshot >= MANIFEST_SECONDS and ledger.is_worth_publishing:
            self._snapshot = now
            try:
                ledger.publish(self._storage)
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

    def _heartbeat(self, *, running: bool) -> None:
        tally = self._tally
        record = {
            "running": running,
            "at_seconds": time.time(),
            "num_shards": tally.num_shards,
            "done_shards": tally.done_shards,
            "failed_shards": tally.failed,
            "in_flight": tally.in_flight,
            "retries": tally.retries,
            "before": tally.before,
            "counters": tally.counters,
            "elapsed_seconds": time.monotonic() - tally.began,
        }
        try:
            write_heartbeat(self._storage, self._driver, record)
        except (ShardError, WorkerLost) as error:
            # storage may be away for a moment; the attempts that need it will say so
            logger.warning("no heartbeat: %s", error)
