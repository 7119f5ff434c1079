"""Steps ahead of the training loop: in order, bounded, errors where they are due, an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.loading.passes import Layout, Share, Slot, Work
from pipeline.loading.prefetch import STEPS_AT_FIRST, STEPS_OF_A_RUN, ahead, fulfil

SIZE = 10
"""Bytes of a step, as told here."""


class Pass:
    """100 steps of 4 samples out of 50 row groups, watched."""

    def __init__(self, *, fails_at: int | None = None, slow_loads: bool = False) -> None:
        layout = Layout([np.full(50, 8)], [6], [4], key=1, drop_last=True)
        self.num_steps = len(layout.plan)
        self.handed_in = self.most_at_once = self.handed_out = 0
        self.makers: set[str] = set()
        self._works = layout.works(range(self.num_steps), Share())
        self._fails_at, self._slow_loads = fails_at, slow_loads

    def works(self) -> Iterator[Work]:
        for work in self._works:
            self.handed_in += 1
            self.most_at_once = max(self.most_at_once, self.handed_in - self.handed_out)
            yield work

    def load(self, slots: Sequence[Slot]) -> None:
        if self._slow_loads:
            time.sleep(0.02)
        for slot in slots:
            slot.rows = ("rows", slot.group)
            fulfil(slot.loaded, lambda: None)

    def make(self, work: Work) -> int:
        self.makers.add(threading.current_thread().name)
        assert [slot.rows for slot in work.slots] == [("rows", slot.group) for slot in work.slots]
        if work.number == self._fails_at:
            raise KeyError(work.number)
        return work.number

    def batches(self, limit: int, *, threads: int = 2, makers: int = 1, **how: Any) -> Any:
        for work, made in ahead(
            self.works(), self.load, self.make, lambda _: SIZE,
            limit_bytes=limit * SIZE, loaders=threads, makers=makers, **how,
        ):  # fmt: skip
            assert work.number == made
            self.handed_out += 1
            yield made


@pytest.mark.parametrize("makers", [1, 3])
@pytest.mark.parametrize("limit", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize("joined", [False, True])
def test_steps_come_in_order_and_no_more_of_them_are_in_flight_than_the_bound_says(
    limit: int, makers: int, joined: bool
) -> None:
    watched = Pass()
    how: dict[str, Any] = {}
    if joined:
        how = {"split": lambda slots: [list(slots)] if slots else [], "joins": True}
    made = list(watched.batches(limit, makers=makers, **how))
    assert made == list(range(watched.num_steps)), "100 of them, one after the other"
    # the step that was handed out last is counted when the next one is asked for
    assert watched.most_at_once <= max(1, limit) + 1


def test_the_first_batch_does_not_wait_for_a_full_store() -> None:
    watched = Pass()
    batches = watched.batches(1000)
    next(batches)
    assert watched.handed_in == STEPS_AT_FIRST
    next(batches)
    assert watched.handed_in == STEPS_AT_FIRST + STEPS_OF_A_RUN


@pytest.mark.parametrize("fails_at", [0, 3, 30])
def test_what_making_a_batch_raised_is_raised_where_it_is_due(fails_at: int) -> None:
    watched = Pass(fails_at=fails_at)
    batches = watched.batches(1000)
    assert [next(batches) for _ in range(fails_at)] == list(range(fails_at))
    with pytest.raises(KeyError, match=str(fails_at)):
        next(batches)


def test_what_loading_raised_is_raised_where_its_batch_is_due() -> None:
    watched = Pass()
    healthy = watched.load

    def load(slots: Sequence[Slot]) -> None:
        if watched.handed_out < 10:
            healthy(slots)
            return

        def broken() -> None:
            raise OSError("disk")

        for slot in slots:
            fulfil(slot.loaded, broken)

    watched.load = load  # type: ignore[method-assign]
    got: list[int] = []
    with pytest.raises(OSError, match="disk"):
        got.extend(watched.batches(4))
    assert got == list(range(len(got)))
    assert 10 <= len(got) < watched.num_steps


def test_a_pass_that_is_left_ends_its_threads_also_those_that_wait_for_row_groups() -> None:
    before = set(threading.enumerate())
    watched = Pass(slow_loads=True)
    batches = watched.batches(1000, threads=1)
    assert [next(batches) for _ in range(6)] == list(range(6))
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 0.5, "what nobody needs any more is not loaded"
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("makers", "most"), [(1, 1), (3, 3)])
def test_so_many_threads_make_batches(makers: int, most: int) -> None:
    watched = Pass()
    list(watched.batches(1000, makers=makers))
    assert 1 <= len(watched.makers) <= most
