"""A cluster in virtual time: workers that do nothing but take as long as real ones would.

It stands where ``pipeline.driver`` stands, and the code that hands out, retries, moves and copies
shards is the product's own. A worker is one GPU that its open shards share evenly; it commits every
``commit_seconds``. What a shard costs is drawn from a log-normal distribution; the driver sees its
size in bytes, which tells the cost only roughly. Storage is a dictionary that knows receipts.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.attempts import Event, Finished, Joined, Left, Wish, WorkerReport
from pipeline.errors import Abandoned, HandedBack, ShardError, WorkerLost
from pipeline.receipt_values import RowGroup
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.shards import Shard, ShardKind

BYTES_PER_SECOND = 1_000_000
"""Of a shard, per second of GPU; only a scale."""
P99_OVER_P50_SIGMAS = 2.3263
"""99th percentile of the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the simulated cluster is like."""

    num_gpus: int = 1000
    shards_per_gpu: int = 20
    median_seconds: float = 600.0
    """GPU time of the median shard."""
    p99_over_p50: float = 5.0
    """How heavy the tail of the GPU times is."""
    size_error: float = 0.2
    """Standard deviation of log(bytes per GPU second): how roughly a size tells the cost."""
    failures: float = 0.01
    """Share of attempts that fail somewhere on their way."""
    preemptions_per_hour: float = 0.05
    """Per GPU; half of them come with a notice."""
    notice_seconds: float = 30.0
    replacement_seconds: float = 180.0
    """Until another machine takes the place of a preempted one."""
    slow_share: float = 0.01
    """Share of GPUs that are stragglers..."""
    slow_speed: float = 0.33
    """...and how fast these are."""
    commit_seconds: float = 300.0
    open_shards: int = 2
    seed: int = 1


class _Segment(NamedTuple):
    """What a simulated storage remembers of a receipt: its own memory must stay small."""

    attempt: str
    start_offset: int
    end_offset: int
    final: bool


@dataclass(slots=True)
class _Run:
    """One attempt on a simulated worker."""

    task: ShardTask
    work: float
    """GPU seconds of the whole shard."""
    done: float
    """GPU seconds of it that are done, in this attempt and committed before."""
    committed: float
    fails_at: float
    """GPU seconds done at which the attempt fails; infinite for most."""
    since_commit: float = 0.0
    """Virtual seconds."""
    wish: Wish | None = None


@dataclass(slots=True)
class _Gpu:
    name: str
    speed: float
    joined: float
    at: float
    """Virtual time up to which its work is counted."""
    runs: dict[str, _Run] = field(default_factory=dict)
    covered: float = 0.0
    version: int = 0
    """Changes with its runs: older alarms do not count."""


class SimulatedCluster:
    """`Workers` and a clock; ``now`` is virtual."""

    def __init__(self, world: World) -> None:
        self.world, self.now = world, 0.0
        self.dice = random.Random(world.seed)
        self.own_seconds = 0.0
        """Processor time of the simulation itself, which is not the driver's."""
        self.available_seconds = self.lost_seconds = self.lost_preempted_seconds = 0.0
        self.preemptions = 0
        self.chains: dict[str, list[_Segment]] = {}
        self._gpus: dict[str, _Gpu] = {}
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._order = self._num_started = 0
        self._happened: list[Event] = []
        sigma = math.log(world.p99_over_p50) / P99_OVER_P50_SIGMAS
        self.work: dict[str, float] = {}
        self.tasks: list[ShardTask] = []
        for number in range(world.num_gpus * world.shards_per_gpu):
            work = world.median_seconds * math.exp(sigma * self.dice.gauss(0, 1))
            size = work * BYTES_PER_SECOND * math.exp(world.size_error * self.dice.gauss(0, 1))
            name = f"shard-{number:07d}"
            shard = Shard(name=name, url=f"/sim/{name}.tar", kind=ShardKind.tar)
            self.work[name] = work
            self.tasks.append(ShardTask(shard=shard, source=None, remaining=int(size)))
        self.sizes = {task.shard.name: task.remaining for task in self.tasks}
        for _ in range(world.num_gpus):
            self._start(delay=self.dice.uniform(10, 40))

    # ---- Workers ----

    def events(self, timeout_seconds: float) -> list[Event]:
        """Let virtual time pass until something happens, at most so long."""
        began = time.process_time()
        until = self.now + timeout_seconds
        while not self._happened and self._alarms and self._alarms[0][0] <= until:
            self.now, _, alarm = heapq.heappop(self._alarms)
            alarm()
        if not self._happened:
            self.now = until
        happened, self._happened = self._happened, []
        self.own_seconds += time.process_time() - began
        return happened

    def submit(self, owner: str, task: ShardTask) -> None:
        """Begin an attempt."""
        began = time.process_time()
        gpu = self._gpus.get(owner)
        if gpu is None:
            self._happened.append(_lost(task))
        else:
            self._advance(gpu)
            name = task.shard.name
            work = self.work[name]
            done = work * task.start_offset / self.sizes[name]
            fails = self.dice.random() < self.world.failures
            fails_at = self.dice.uniform(done, work) if fails else math.inf
            gpu.runs[task.attempt] = _Run(task, work, done, done, fails_at)
            self._alarm(gpu)
        self.own_seconds += time.process_time() - began

    def ask(self, owner: str, attempt: str, wish: Wish) -> None:
        """Hand back or abandon, at once."""
        began = time.process_time()
        gpu = self._gpus.get(owner)
        if gpu is not None and attempt in gpu.runs:
            self._advance(gpu)
            run = gpu.runs.pop(attempt)
            if wish is Wish.abandon:
                self.lost_seconds += run.done - run.committed
                error = Abandoned(run.task.shard.name, "")
                self._happened.append(Finished(task=run.task, error=error))
            else:
                self._commit(run)
                self._end(run)
            self._alarm(gpu)
        self.own_seconds += time.process_time() - began

    def restart(self, owner: str) -> None:
        """Nothing stands still here."""
        raise AssertionError(f"{owner} was taken for dead")

    def expel(self, owner: str) -> None:
        """Nothing lies here."""
        raise AssertionError(f"{owner} was expelled")

    def reports(self, *, wait_seconds: float = 0.0) -> Mapping[str, WorkerReport]:
        """What every GPU has done up to now."""
        began = time.process_time()
        found = {}
        for name, gpu in self._gpus.items():
            self._advance(gpu)
            covered = {
                attempt: int(self._offset(run)) - run.task.start_offset
                for attempt, run in gpu.runs.items()
            }
            found[name] = WorkerReport(counters={"covered": gpu.covered}, covered=covered)
        self.own_seconds += time.process_time() - began
        return found

    def close(self) -> None:
        """Nothing to close."""

    def stop_now(self) -> None:
        """Nothing to stop."""

    # ---- machines ----

    def _at(self, when: float, alarm: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._alarms, (when, self._order, alarm))

    def _start(self, delay: float) -> None:
        self._num_started += 1
        name = f"gpu-{self._num_started}"
        is_slow = self.dice.random() < self.world.slow_share
        speed = self.world.slow_speed if is_slow else 1.0

        def join() -> None:
            self._gpus[name] = _Gpu(name, speed, self.now, self.now)
            self._happened.append(Joined(owner=name, slots=self.world.open_shards))
            if self.world.preemptions_per_hour:
                life = self.dice.expovariate(self.world.preemptions_per_hour / 3600)
                self._at(self.now + life, lambda: self._preempt(name))

        self._at(self.now + delay, join)

    def _preempt(self, name: str) -> None:
        self.preemptions += 1
        if self.dice.random() < 0.5:
            self._happened.append(Left(owner=name, reason="notice"))
            self._at(self.now + self.world.notice_seconds, lambda: self._die(name))
        else:
            self._die(name)
        self._start(self.world.replacement_seconds)

    def _die(self, name: str) -> None:
        gpu = self._gpus[name]
        self._advance(gpu)
        del self._gpus[name]
        self.available_seconds += self.now - gpu.joined
        self._happened.append(Left(owner=name, reason="gone"))
        for run in gpu.runs.values():
            self.lost_seconds += run.done - run.committed
            self.lost_preempted_seconds += run.done - run.committed
            self._happened.append(_lost(run.task))

    def finish(self) -> None:
        """The run is over: what was available until now."""
        for gpu in self._gpus.values():
            self.available_seconds += self.now - gpu.joined

    # ---- work ----

    def _advance(self, gpu: _Gpu) -> None:
        """Count the work since the last time."""
        passed, gpu.at = self.now - gpu.at, self.now
        if not gpu.runs or passed <= 0:
            return
        share = passed * gpu.speed / len(gpu.runs)
        for run in gpu.runs.values():
            run.done = min(run.work, run.done + share)
            run.since_commit += passed
            gpu.covered += share * BYTES_PER_SECOND
            if run.since_commit >= self.world.commit_seconds:
                self._commit(run)

    def _commit(self, run: _Run, *, final: bool = False) -> None:
        chain = self.chains.setdefault(run.task.shard.name, [])
        size = self.sizes[run.task.shard.name]
        end = size if final else min(int(self._offset(run)), size - 1)
        run.since_commit = 0.0
        if (chain and chain[-1].final) or end <= (chain[-1].end_offset if chain else 0):
            self.lost_seconds += run.done - run.committed  # a copy was faster
            run.committed = run.done
            return
        run.committed = run.done
        start = chain[-1].end_offset if chain else 0
        chain.append(_Segment(run.task.attempt, start, end, final))

    def _offset(self, run: _Run) -> float:
        return self.sizes[run.task.shard.name] * run.done / run.work

    def _alarm(self, gpu: _Gpu) -> None:
        """Ring when the next of its attempts ends."""
        gpu.version += 1
        if not gpu.runs:
            return
        version = gpu.version
        left = min(min(run.work, run.fails_at) - run.done for run in gpu.runs.values())
        when = self.now + max(0.0, left) * len(gpu.runs) / gpu.speed
        self._at(when, lambda: self._ring(gpu, version))

    def _ring(self, gpu: _Gpu, version: int) -> None:
        if gpu.version != version or gpu.name not in self._gpus:
            return
        self._advance(gpu)
        for attempt, run in tuple(gpu.runs.items()):
            if run.done >= run.fails_at - 1e-6:
                del gpu.runs[attempt]
                self.lost_seconds += run.done - run.committed
                error = ShardError(run.task.shard.name, "storage did not answer")
                self._happened.append(Finished(task=run.task, error=error))
            elif run.done >= run.work - 1e-6:
                del gpu.runs[attempt]
                self._commit(run, final=True)
                self._end(run)
        self._alarm(gpu)

    def _end(self, run: _Run) -> None:
        chain = self.chains.get(run.task.shard.name, [])
        receipts = self.receipts(run.task, chain)
        is_final = bool(chain) and chain[-1].final
        error = None if is_final else HandedBack(run.task.shard.name, "as asked")
        self._happened.append(Finished(task=run.task, receipts=receipts, error=error))

    def receipts(self, task: ShardTask, chain: list[_Segment]) -> tuple[Receipt, ...]:
        """Those behind a task's start."""
        name = task.shard.name
        return tuple(
            _receipt(name, number, chain[number]) for number in range(task.next_segment, len(chain))
        )


class SimulatedStorage:
    """Receipts of a cluster; what else the driver writes is taken and forgotten."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """A receipt."""
        began = time.process_time()
        shard, segment, _ = name.removeprefix("receipts/").rsplit(".", 2)
        chain = self._cluster.chains.get(shard, [])
        if int(segment) >= len(chain):
            self._cluster.own_seconds += time.process_time() - began
            raise FileNotFoundError(name)
        content = _receipt(shard, int(segment), chain[int(segment)]).to_bytes()
        self._cluster.own_seconds += time.process_time() - began
        return content

    def put(self, name: str, content: bytes) -> None:
        """Heartbeats and failures."""

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Manifests."""
        return True

    def entries(self, folder: str) -> dict[str, Any]:
        """Nothing was there before."""
        return {}


def _lost(task: ShardTask) -> Finished:
    error = WorkerLost(task.shard.name, "preempted")
    return Finished(task=task, error=error, counts_as_attempt=False)


def _receipt(shard: str, number: int, segment: _Segment) -> Receipt:
    return Receipt(
        shard=shard,
        segment=number,
        attempt=segment.attempt,
        fingerprint="f" * 64,
        part=f"{shard}-{number:05d}-{segment.attempt}.parquet",
        rows=1000,
        part_bytes=11_000_000,
        part_sha256="0" * 64,
        footer_sha256="0" * 64,
        row_groups=(RowGroup(rows=1000, end_offset=10_990_000, sha256="0" * 64),),
        shapes={"5,32,32": 1000},
        latent_mean=(),
        latent_std=(),
        source_url=f"/sim/{shard}.tar",
        source_bytes=segment.end_offset,
        source_version="v",
        start_offset=segment.start_offset,
        end_offset=segment.end_offset,
        final=segment.final,
        complete=True,
        cut_reason=None,
        videos=100,
        filtered={},
        quarantined=[],
        key_digests="",
        numerics={"device": "simulated"},
        timings={},
        host="simulated",
        created_seconds=0.0,
    )
