"""Packs in lanes, so that a rank reads what is its own.

Sample i of the order comes from stream i mod C. Lane p takes the samples that are p modulo P, where
P divides C: these come from C / P streams of their own. Each lane is packed by itself, and pack j
is the next one of lane j mod P: so rank r of W, which takes every W-th pack, reads the streams of
P / W lanes, where W divides P. Lanes fill unequal numbers of packs; what some have more comes last.

Pure.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.loading.hashing import derived_key
from pipeline.loading.packs import WINDOW_SAMPLES, PackedOrder

MAX_LANES = 8
"""More would leave too few samples in a window of a lane: packs would be less full."""

Window: TypeAlias = tuple[int, int]
"""Lane, and a window of it."""


def count_lanes(num_streams: int, num_samples: int) -> int:
    """P: of small data sets fewer, so that each lane fills a window.

    >>> count_lanes(24, 100_000), count_lanes(12, 100_000), count_lanes(24, 1500), count_lanes(1, 9)
    (8, 4, 2, 1)
    """
    lanes = math.gcd(num_streams, MAX_LANES)
    while lanes > 1 and num_samples < lanes * (WINDOW_SAMPLES // MAX_LANES):
        lanes //= 2
    return lanes


class Lanes:
    """The packs of one epoch."""

    def __init__(
        self,
        lengths: npt.NDArray[np.integer],
        pack_length: int,
        *,
        num_streams: int,
        key: int | None,
    ) -> None:
        """Count the packs of every lane.

        Args:
            lengths: tokens of each sample, in the global order, int ``[N]``.
            pack_length: tokens of a pack.
            num_streams: C, of that order.
            key: see `PackedOrder`.

        Raises:
            ValueError: see `PackedOrder`.
        """
        num = count_lanes(num_streams, lengths.size)
        self._lanes = [
            PackedOrder(
                lengths[lane::num],
                pack_length,
                key=None if key is None else derived_key(key, lane),
                window_samples=WINDOW_SAMPLES // num,
            )
            for lane in range(num)
        ]
        sizes = [len(lane) for lane in self._lanes]
        self._even = min(sizes)
        self._last = [
            (lane, at)
            for at in range(self._even, max(sizes))
            for lane in range(num)
            if at < sizes[lane]
        ]
        self._space = sum(sizes) * pack_length
        self._tokens = int(lengths.sum(dtype=np.int64))

    def __len__(self) -> int:
        return self._even * len(self._lanes) + len(self._last)

    @property
    def waste(self) -> float:
        """Fraction of the epoch's tokens that are padding, in [0, 1)."""
        return 1 - self._tokens / self._space if self._space else 0.0

    def __getitem__(self, number: int) -> npt.NDArray[np.int64]:
        """Samples of a pack: their places in the global order, rising, int64 ``[S]``.

        Raises:
            IndexError: no such pack in this epoch.
        """
        lane, at = self._place(number)
        return self._lanes[lane][at] * len(self._lanes) + lane

    def window_of(self, number: int) -> Window:
        """The window that a pack is made of."""
        lane, at = self._place(number)
        return lane, self._lanes[lane].window_of(at)

    def samples_of(self, window: Window) -> range:
        """Places in the global order that a window spans."""
        num, (lane, nth) = len(self._lanes), window
        span = self._lanes[lane].samples_of(nth)
        return range(span.start * num + lane, span.stop * num + lane, num)

    def _place(self, number: int) -> tuple[int, int]:
        """Lane and pack of the lane."""
        if not 0 <= number < len(self):
            raise IndexError(f"pack {number} of an epoch of {len(self)} packs")
        at, lane = divmod(number, len(self._lanes))
        return (lane, at) if at < self._even else self._last[number - self._even * len(self._lanes)]
