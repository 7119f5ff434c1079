"""Pure: the order of an epoch. Numbers are hashed and sorted, so no library's dice are trusted.

Rows lie in row groups. The groups are permuted, their rows put one behind the other, and that line
is cut into streams of equal length; sample i is taken from stream ``i mod C`` at ``i // C``. Every
second stream runs backwards: the row group that a border cuts is then due on both sides at one
time, at the start or the end of the epoch, and who reads both streams reads it once. Every row
comes once, C neighbours come from C different places of the data set, and whoever reads along holds
one row group a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.loading.hashing import derived_key, hashes

Numbers = npt.NDArray[np.int64]

STREAM_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
"""Powers of two, and three times such: most numbers of ranks divide one of them."""
STREAMS_BYTES = 256 << 20
"""Packed bytes of the row groups that are open at once."""


def permutation(num: int, key: int) -> Numbers:
    """0..num-1 in the order that a key gives; int64 ``[num]``.

    >>> permutation(8, key=1).tolist()
    [2, 4, 6, 5, 0, 3, 7, 1]
    """
    return np.argsort(hashes(np.arange(num), key), kind="stable").astype(np.int64)


def count_streams(num_groups: int, group_bytes: int) -> int:
    """How many streams: what ``STREAMS_BYTES`` hold, and four row groups to a stream or more.

    Each border of streams cuts a row group, which is read twice where two ranks read the streams.
    Data sets of few row groups are cheap to read, so these get up to 12 streams all the same.

    >>> count_streams(1000, 1 << 20), count_streams(1000, 16 << 20), count_streams(7, 1)
    (96, 16, 6)
    """
    enough = min(num_groups, max(12, num_groups // 4))
    most = max(1, min(enough, STREAMS_BYTES // max(1, group_bytes)))
    return max(count for count in STREAM_COUNTS if count <= most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where samples lie; int64 ``[n]`` each."""

    streams: Numbers
    """Which stream."""
    groups: Numbers
    """Position of the row group in the list that the order was made of."""
    offsets: Numbers
    """How many of the group's rows come before."""


class Order:
    """Sample numbers to places, for one kind of row."""

    def __init__(
        self,
        counts: Sequence[int] | Numbers,
        *,
        num_streams: int,
        key: int | None,
        line: Numbers | None = None,
    ) -> None:
        """Lay out an epoch.

        Args:
            counts: rows of each row group.
            num_streams: C; at most as many as rows are used.
            key: of the permutation; None: as listed, in one stream.
            line: the groups' positions as they are put one behind the other; None: by the key.
        """
        listed = np.asarray(counts, dtype=np.int64)
        self._key = key
        if line is None:
            line = np.arange(len(listed)) if key is None else permutation(len(listed), key)
        self._groups = line
        ends = np.cumsum(listed[self._groups])
        self._starts = ends - listed[self._groups]
        self.num_samples = int(ends[-1]) if len(ends) else 0
        """Rows in all."""
        self.num_streams = 1 if key is None else max(1, min(num_streams, self.num_samples))
        streams = np.arange(self.num_streams)
        length, longer = divmod(self.num_samples, self.num_streams)
        is_backward = streams % 2 == 1
        self._first = streams * length + np.minimum(streams, longer)
        self._first += is_backward * (length - 1 + (streams < longer))
        self._direction = np.where(is_backward, -1, 1)

    def places(self, samples: Numbers) -> Places:
        """Where these samples lie; each in ``[0, num_samples)``."""
        along, streams = np.divmod(samples, self.num_streams)
        at = self._first[streams] + self._direction[streams] * along
        nth = self._starts.searchsorted(at, side="right") - 1
        return Places(streams=streams, groups=self._groups[nth], offsets=at - self._starts[nth])

    def rows(self, group: int, count: int) -> Numbers:
        """Offset to row, for one row group of ``count`` rows; int64 ``[count]``."""
        if self._key is None:
            return np.arange(count, dtype=np.int64)
        return permutation(count, derived_key(self._key, group))
