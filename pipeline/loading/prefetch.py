"""Row groups read, and batches made of them, ahead of the training loop: bounded in bytes.

No thread runs ahead by itself: whenever a batch is asked for, as many further steps are handed to
the pool as the bound allows. A step's batch is made in the pool as well; it waits only for row
groups that were handed in before it, so a pool of any size gets through.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.loading.passes import Slot, Work

STEPS_AT_ONCE = 4
"""Handed in when a batch is asked for, at most: the first one must not wait for a full store."""

T = TypeVar("T")


def ahead(
    works: Iterator[Work],
    load: Callable[[Slot], object],
    make: Callable[[Work], T],
    num_bytes: Callable[[Work], int],
    *,
    limit_bytes: int,
    threads: int,
) -> Iterator[tuple[Work, T]]:
    """Steps and their batches, in order.

    Args:
        works: steps of this process.
        load: reads the rows of a slot; what it returns is the slot's from then on.
        make: the batch of a step whose slots are loaded.
        num_bytes: of a step's fresh row groups and its batch.
        limit_bytes: handed in but not handed out; the next step is exempt, or there were no end.
        threads: of the pool.

    Raises:
        Exception: what load or make raised, where the step's batch is due.
    """
    waiting: deque[tuple[Work, Future[T], int]] = deque()
    pool = ThreadPoolExecutor(threads, "loader")
    in_flight = 0

    def make_when_loaded(work: Work) -> T:
        for slot in set(work.slots):
            slot.loaded.result()
        return make(work)

    try:
        while True:
            room = STEPS_AT_ONCE if in_flight < limit_bytes else 1 - len(waiting)
            for work in itertools.islice(works, max(0, room)):
                for slot in work.fresh:
                    slot.loaded = pool.submit(load, slot)
                size = num_bytes(work)
                in_flight += size
                waiting.append((work, pool.submit(make_when_loaded, work), size))
                if in_flight >= limit_bytes:
                    break
            if not waiting:
                return
            work, made, size = waiting.popleft()
            batch = made.result()
            in_flight -= size
            del made
            yield work, batch
    finally:
        pool.shutdown(cancel_futures=True)
