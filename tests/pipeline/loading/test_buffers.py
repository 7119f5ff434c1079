"""Memory that comes back: never while somebody looks at it, and not without bound."""

from __future__ import annotations

import doctest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.loading import buffers
from pipeline.loading.buffers import Buffers, capacity_of

SIZE = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_the_examples_hold() -> None:
    assert doctest.testmod(buffers).failed == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda array: array,
        lambda array: array[4:].view(np.int32)[::2],
        lambda array: array.reshape(64, -1)[3],
        lambda array: memoryview(array)[5:9],
        lambda array: np.frombuffer(memoryview(array)[8:], dtype=np.uint16).reshape(-1, 4),
        lambda array: torch.from_numpy(array).view(torch.int32)[7:],
        lambda array: torch.from_numpy(array).view(64, -1)[3].numpy(),
    ],
)
def test_memory_is_not_lent_again_while_a_view_of_it_lives(look) -> None:
    lender = Buffers()
    taken = lender.take(SIZE)
    place = address(taken)
    view = look(taken)
    del taken
    assert address(lender.take(SIZE)) != place
    del view
    assert place in [address(one) for one in [lender.take(SIZE), lender.take(SIZE)]]


def test_sizes_that_are_close_share_memory() -> None:
    lender = Buffers()
    taken = lender.take(SIZE - 1)
    place = address(taken)
    del taken
    again = lender.take(SIZE - 1000)
    assert (address(again), again.size, again.flags.writeable) == (place, SIZE - 1000, True)


def test_what_is_kept_is_bounded_and_the_size_that_nobody_asks_for_goes_first() -> None:
    lender = Buffers(keep_bytes=4 * SIZE)
    kept = []
    for size in (SIZE, 2 * SIZE, 3 * SIZE, 8 * SIZE, SIZE):
        lent = [lender.take(size) for _ in range(10)]
        assert lender.kept_bytes <= 4 * SIZE
        del lent
        kept.append(lender.kept_bytes // SIZE)
    assert kept == [4, 4, 3, 3, 4]


@pytest.mark.parametrize("num_bytes", [1, 2, 15, 16, 17, 1000, SIZE + 1, 2949152])
def test_an_eighth_more_is_taken_at_most(num_bytes: int) -> None:
    assert num_bytes <= capacity_of(num_bytes) <= num_bytes * 9 / 8 + 1


def test_threads_never_hold_the_same_memory() -> None:
    lender = Buffers()

    def work(number: int) -> bool:
        for _ in range(200):
            mine = lender.take(SIZE >> 4)
            mine[::512] = number
            if not (mine[::512] == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
