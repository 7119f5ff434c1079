"""Memory that comes back: row groups and batches of one size follow one another for hours.

Memory fresh from the kernel is cleared first, page by page, and given back just as slowly: that
cost more than unpacking. So what nobody looks at any more is lent again.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Take = Callable[[int], npt.NDArray[np.uint8]]
"""`Buffers.take`, or what gives memory like it."""

KEEP_BYTES = 128 << 20
"""Kept for later at most; what is lent does not count."""

SMALLEST_BYTES = 1 << 16
"""Less than this is left to the allocator, which keeps it anyway."""


def fresh(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of nobody: a `Take` for those who hold no `Buffers`."""
    return np.empty(num_bytes, dtype=np.uint8)


class Buffers:
    """Lends arrays of bytes and gets each one back when its last view is gone.

    Nobody returns anything: an array that a user's tensor still shows is never lent again. Threads
    may share it.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        """Hold nothing yet.

        Args:
            keep_bytes: that are kept for later, at most.
        """
        self._keep_bytes = keep_bytes
        self._free: dict[int, deque[memoryview]] = {}
        self._taken: dict[int, int] = {}
        self._clock = itertools.count()

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Memory of anything: uint8 ``[num_bytes]``, writable, aligned for all numbers."""
        if num_bytes < SMALLEST_BYTES:
            return fresh(num_bytes)
        capacity = capacity_of(num_bytes)
        self._taken[capacity] = next(self._clock)
        try:
            memory = self._free[capacity].pop()
        except (KeyError, IndexError):
            memory = np.empty(capacity, dtype=np.uint8).data
        # views of an array refer to it, not to what it was made of: it dies with the last of them
        lent = np.frombuffer(memory, dtype=np.uint8, count=num_bytes)
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    @property
    def kept_bytes(self) -> int:
        """Kept now."""
        return sum(size * len(kept) for size, kept in list(self._free.items()))

    def _take_back(self, memory: memoryview) -> None:
        # no lock: this runs wherever a view dies, also amid its own steps, which are atomic
        if memory.nbytes > self._keep_bytes:
            return
        self._free.setdefault(memory.nbytes, deque()).append(memory)
        while self.kept_bytes > self._keep_bytes:
            sizes = [size for size, kept in list(self._free.items()) if kept]
            with contextlib.suppress(IndexError):  # another thread was faster
                self._free[min(sizes, key=self._taken.__getitem__)].pop()


def capacity_of(num_bytes: int) -> int:
    """What is taken for so many bytes: up to an eighth more, so that sizes meet again.

    >>> capacity_of(1 << 20) >> 10, capacity_of((1 << 20) + 1) >> 10
    (1024, 1152)
    """
    step = 1 << max(0, (num_bytes - 1).bit_length() - 4)
    return -(-num_bytes // step) * step
