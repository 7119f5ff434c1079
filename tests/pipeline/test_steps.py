"""An epoch as steps: every rank the same number of full batches, and nothing left out unsaid."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from pipeline.loading import plan
from pipeline.loading.plan import Kind, Plan


def kinds(*pairs: tuple[int, int]) -> list[Kind]:
    return [Kind(num_samples=num, global_batch=size) for num, size in pairs]


def test_the_examples_hold() -> None:
    assert doctest.testmod(plan).failed == 0


@pytest.mark.parametrize(
    ("num_samples", "global_batch", "drop_last", "steps", "dropped"),
    [(12, 4, True, 3, 0), (13, 4, True, 3, 1), (13, 4, False, 4, 0), (3, 4, True, 0, 3),
     (3, 4, False, 1, 0), (0, 4, False, 0, 0), (12, 4, False, 3, 0)],
)  # fmt: skip
def test_steps_of_one_kind(
    num_samples: int, global_batch: int, drop_last: bool, steps: int, dropped: int
) -> None:
    made = Plan(kinds((num_samples, global_batch)), drop_last=drop_last, key=None)
    assert (len(made), made.num_dropped) == (steps, dropped)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_ranks_share_a_step_without_overlap(world_size: int) -> None:
    made = Plan(kinds((30, 12)), drop_last=True, key=None)
    for number in range(len(made)):
        step = made.step(number)
        taken = [step.of_rank(rank, world_size) for rank in range(world_size)]
        assert {len(samples) for samples in taken} == {12 // world_size}
        assert sorted(np.concatenate(taken)) == list(range(12 * number, 12 * number + 12))


@pytest.mark.parametrize("key", [None, 1, 2])
def test_of_several_kinds_each_has_all_its_steps(key: int | None) -> None:
    made = Plan(kinds((10, 4), (7, 2), (3, 3)), drop_last=True, key=key)
    steps = [made.step(number) for number in range(len(made))]
    for kind, firsts in enumerate([[0, 4], [0, 2, 4], [0]]):
        assert [step.first for step in steps if step.kind == kind] == firsts
    assert [step.samples_after for step in steps] == np.cumsum(
        [step.global_batch for step in steps]
    ).tolist()


def test_kinds_are_interleaved_by_the_key() -> None:
    pairs = kinds((100, 4), (100, 4))

    def order(key: int | None) -> list[int]:
        made = Plan(pairs, drop_last=True, key=key)
        return [made.step(number).kind for number in range(len(made))]

    assert order(None) == [0] * 25 + [1] * 25
    assert order(1) != order(2)
    assert sorted(order(1)) == order(None)


def test_every_step_is_found_again_by_its_samples() -> None:
    made = Plan(kinds((50, 4), (50, 6)), drop_last=True, key=8)
    for number in range(len(made)):
        assert made.step_after(made.step(number).samples_after) == number + 1
    assert made.step_after(0) == 0
    assert made.step_after(10**9) == len(made)


def test_an_offset_begins_where_another_batch_size_ended() -> None:
    made = Plan(kinds((20, 4)), drop_last=True, key=None, offset=3)
    assert [made.step(number).first for number in range(len(made))] == [3, 7, 11, 15]
    assert made.num_dropped == 1
    assert (made.step_after(3), made.step_after(7)) == (0, 1)


def test_an_offset_into_several_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="one kind of rows, there are 2"):
        Plan(kinds((4, 2), (4, 2)), drop_last=True, key=None, offset=1)
