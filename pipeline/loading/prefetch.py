"""Row groups read, and batches made of them, ahead of the training loop: bounded in bytes.

No thread runs ahead by itself: whenever a batch is asked for, as many further steps are handed to
the pool as the bound allows. A step's batch is made in the pool as well; it waits only for row
groups that were handed in before it, so a pool of any size gets through.

Where requests are dear, more steps are handed in at once, and not before half of the bound is
free: so row groups that lie side by side are seen side by side, and one request brings them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.loading.passes import Slot, Work

STEPS_AT_ONCE = 4
"""Handed in when a batch is asked for, at most: the first one must not wait for a full store."""
STEPS_OF_REQUESTS = 64
"""The same where row groups are brought together."""

Split = Callable[[Sequence[Slot]], Sequence[Sequence[Slot]]]
"""Row groups by request, in the order in which the first one of each is due."""

T = TypeVar("T")


def ahead(
    works: Iterator[Work],
    load: Callable[[Sequence[Slot]], object],
    make: Callable[[Work], T],
    num_bytes: Callable[[Work], int],
    *,
    limit_bytes: int,
    threads: int,
    split: Split | None = None,
) -> Iterator[tuple[Work, T]]:
    """Steps and their batches, in order.

    Args:
        works: steps of this process.
        load: reads the rows of slots that one request brings, and sets their ``loaded``.
        make: the batch of a step whose slots are loaded.
        num_bytes: of a step's fresh row groups and its batch.
        limit_bytes: handed in but not handed out; the next step is exempt, or there were no end.
        threads: of the pool.
        split: where requests are dear; None: each row group is a request.

    Raises:
        Exception: what load or make raised, where the step's batch is due.
    """
    waiting: deque[tuple[Work, Future[T], int]] = deque()
    pool = ThreadPoolExecutor(threads, "loader")
    in_flight, most, below = 0, STEPS_AT_ONCE, limit_bytes

    def make_when_loaded(work: Work) -> T:
        for slot in set(work.slots):
            slot.loaded.result()
        return make(work)

    try:
        while True:
            taken: list[tuple[Work, int]] = []
            room = most if in_flight < below else 1 - len(waiting)
            for work in itertools.islice(works, max(0, room)):
                taken.append((work, num_bytes(work)))
                in_flight += taken[-1][1]
                if in_flight >= limit_bytes:
                    break
            fresh = [slot for work, _ in taken for slot in work.fresh]
            requests = deque(split(fresh) if split else [[slot] for slot in fresh])
            for work, size in taken:
                while requests and not set(work.fresh).isdisjoint(requests[0]):
                    pool.submit(load, requests.popleft())
                waiting.append((work, pool.submit(make_when_loaded, work), size))
            if not waiting:
                return
            if split is not None:  # only the first steps are in a hurry
                most, below = STEPS_OF_REQUESTS, limit_bytes // 2
            work, made, size = waiting.popleft()
            batch = made.result()
            in_flight -= size
            del made
            yield work, batch
    finally:
        pool.shutdown(cancel_futures=True)


def fulfil(future: Future[T], action: Callable[[], T]) -> None:
    """Give a future what an action returns or raises."""
    try:
        future.set_result(action())
    except Exception as error:  # noqa: BLE001 (raised where the future is asked)
        future.set_exception(error)
