"""Row groups read, and batches made of them, ahead of the training loop: bounded in bytes.

No thread runs ahead by itself: whenever a batch is asked for, as many further steps are handed to
threads as the bound allows. Some load row groups, others make batches, a run of steps at a time:
to hand each step over, and to wait for the interpreter's lock after every call of numpy because
others want it, too, cost more than to make a batch.

Where requests are dear, more steps are handed in at once, and not before half of the bound is
free: so row groups that lie side by side are seen side by side, and one request brings them.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.loading.passes import Slot, Work

STEPS_AT_FIRST = 4
"""Handed in for the first batch, each for itself: it must not wait for a full store."""
STEPS_OF_A_RUN = 16
"""Later on, whose batches are made together; at most."""
RUNS_IN_FLIGHT = 8
"""That the bound holds: enough for all threads."""
STEPS_OF_REQUESTS = 64
"""Handed in at once where row groups are brought together."""

Split = Callable[[Sequence[Slot]], Sequence[Sequence[Slot]]]
"""Row groups by request, in the order in which the first one of each is due."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Run(Generic[T]):
    """Steps whose batches are made together."""

    steps: deque[tuple[Work, int]]
    """Not yet handed out, with their bytes."""
    made: Future[tuple[deque[T], Exception | None]]
    """Their batches, as many as could be made; and what the next one raised."""


def singly(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Each row group is a request."""
    return [[slot] for slot in slots]


def ahead(
    works: Iterator[Work],
    load: Callable[[Sequence[Slot]], object],
    make: Callable[[Work], T],
    num_bytes: Callable[[Work], int],
    *,
    limit_bytes: int,
    loaders: int,
    makers: int,
    split: Split = singly,
    joins: bool = False,
) -> Iterator[tuple[Work, T]]:
    """Steps and their batches, in order.

    Args:
        works: steps of this process.
        load: reads the rows of slots that one request brings, and sets their ``loaded``.
        make: the batch of a step whose slots are loaded.
        num_bytes: of a step's fresh row groups and its batch.
        limit_bytes: handed in but not handed out; the next step is exempt, or there were no end.
        loaders: threads that load.
        makers: threads that make.
        split: which slots one request brings.
        joins: whether requests are dear.

    Raises:
        Exception: what load or make raised, where the step's batch is due.
    """
    runs: deque[_Run[T]] = deque()
    loading, making = ThreadPoolExecutor(loaders, "loader"), ThreadPoolExecutor(makers, "maker")
    stopped = threading.Event()
    run_bytes = limit_bytes // RUNS_IN_FLIGHT
    in_flight, most, longest, below = 0, STEPS_AT_FIRST, 1, limit_bytes

    def make_run(steps: Sequence[Work]) -> tuple[deque[T], Exception | None]:
        batches: deque[T] = deque()
        try:
            for work in steps:
                for slot in work.slots:
                    if slot.rows is None:  # or it raises what loading it raised
                        slot.loaded.result()
                batches.append(make(work))
        except Exception as error:  # noqa: BLE001 (raised where the batch is due)
            return batches, error
        return batches, None

    def load_unless_stopped(slots: Sequence[Slot]) -> None:
        if not stopped.is_set():
            load(slots)
            return
        for slot in slots:  # a run may wait for it
            slot.loaded.cancel()

    try:
        while True:
            taken: list[tuple[Work, int]] = []
            room = most if in_flight < below else int(not runs)
            for work in itertools.islice(works, room):
                taken.append((work, num_bytes(work)))
                in_flight += taken[-1][1]
                if in_flight >= limit_bytes:
                    break
            fresh = [slot for work, _ in taken for slot in work.fresh]
            requests = deque(split(fresh))
            for steps in _cut(taken, longest, run_bytes):
                needed = {slot for work, _ in steps for slot in work.fresh}
                while requests and not needed.isdisjoint(requests[0]):
                    loading.submit(load_unless_stopped, requests.popleft())
                made = making.submit(make_run, [work for work, _ in steps])
                runs.append(_Run(deque(steps), made))
            if not runs:
                return
            # only the first steps are in a hurry
            most, below = STEPS_OF_A_RUN, limit_bytes - run_bytes
            if joins:
                most, below = STEPS_OF_REQUESTS, limit_bytes // 2
            longest = STEPS_OF_A_RUN
            batches, error = runs[0].made.result()
            if error is not None and not batches:
                raise error
            work, size = runs[0].steps.popleft()
            if not runs[0].steps:
                runs.popleft()
            in_flight -= size
            yield work, batches.popleft()
    finally:
        stopped.set()
        making.shutdown(cancel_futures=True)
        loading.shutdown()


def _cut(
    steps: Sequence[tuple[Work, int]], longest: int, run_bytes: int
) -> Iterator[list[tuple[Work, int]]]:
    """Runs of at most so many steps, and of more than so many bytes only where a step is."""
    run: list[tuple[Work, int]] = []
    total = 0
    for work, size in steps:
        if run and (len(run) == longest or total + size > run_bytes):
            yield run
            run, total = [], 0
        run.append((work, size))
        total += size
    if run:
        yield run


def fulfil(future: Future[T], action: Callable[[], T]) -> None:
    """Give a future what an action returns or raises."""
    try:
        future.set_result(action())
    except Exception as error:  # noqa: BLE001 (raised where the future is asked)
        future.set_exception(error)
