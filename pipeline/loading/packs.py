"""Sequence packing: samples of unequal length side by side in packs of one length.

The global order is cut into windows of ``WINDOW_SAMPLES``. Inside a window the samples are placed
by best fit decreasing: the longest first, each into the fullest pack that still takes it. What
this gives depends on nothing but how often each length occurs, so it is worked out on these counts
(a few hundred steps a window, whatever its size), and any pack of an epoch is found from its
number alone.

Pure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loading.hashing import hashes

WINDOW_SAMPLES = 4096
"""Samples of the order that are packed among themselves."""

Counts = tuple[tuple[int, int], ...]
"""How often each length occurs: (length, number), longest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Packs that hold the same lengths."""

    holds: Counts
    """Lengths and how many of each one pack holds."""
    number: int
    """Packs like this."""
    free: int
    """Tokens that stay empty in each."""


def best_fit_decreasing(counts: Counts, pack_length: int) -> list[Pattern]:
    """Packs for so many sequences of each length.

    Equal lengths come one after the other, and a pack that took one is the fullest that may take
    the next: so it takes as many as it can before another one is looked at.

    >>> best_fit_decreasing(((5, 2), (3, 3)), 8)[0]
    Pattern(holds=((5, 1), (3, 1)), number=2, free=0)
    """
    patterns: list[Pattern] = []
    for length, number in sorted(counts, reverse=True):
        left = number
        fitting = sorted(
            (pattern for pattern in patterns if pattern.free >= length), key=lambda one: one.free
        )
        kept = [pattern for pattern in patterns if pattern.free < length]
        for pattern in fitting:
            filled, left = _fill(pattern, length, left)
            kept.extend(filled)
        empty = Pattern(
            holds=(), number=math.ceil(left / (pack_length // length)), free=pack_length
        )
        filled, _ = _fill(empty, length, left)
        patterns = kept + filled
    return patterns


def _fill(pattern: Pattern, length: int, left: int) -> tuple[list[Pattern], int]:
    """Put up to ``left`` sequences into the packs of a pattern; the outcome, what is left."""
    most = pattern.free // length
    full = min(pattern.number, left // most)
    rest = left - full * most if full < pattern.number else 0
    amounts = [(full, most), (1 if rest else 0, rest)]
    amounts.append((pattern.number - full - amounts[1][0], 0))
    filled = [
        Pattern(
            holds=(*pattern.holds, (length, taken)) if taken else pattern.holds,
            number=number,
            free=pattern.free - taken * length,
        )
        for number, taken in amounts
        if number
    ]
    return filled, left - full * most - rest


class PackedOrder:
    """The packs of one epoch."""

    def __init__(
        self,
        lengths: npt.NDArray[np.integer],
        pack_length: int,
        *,
        key: int | None,
        window_samples: int = WINDOW_SAMPLES,
    ) -> None:
        """Count the packs of every window.

        Args:
            lengths: tokens of each sample, in the global order, int ``[N]``.
            pack_length: tokens of a pack.
            key: of seed and epoch, shuffles the packs of a window; None: by their first samples.
            window_samples: that are packed among themselves.

        Raises:
            ValueError: a sample that is longer than a pack, or has no token.
        """
        longest = int(lengths.max(initial=0))
        if longest > pack_length or (lengths.size and int(lengths.min()) < 1):
            raise ValueError(
                f"pack_length={pack_length} must hold the longest sample: lengths are "
                f"{int(lengths.min())}..{longest}; raise pack_length or filter the long clips out"
            )
        self._lengths, self._pack_length = lengths, pack_length
        self._key, self._window_samples = key, window_samples
        self._num_windows = math.ceil(lengths.size / window_samples)
        packs = [
            sum(pattern.number for pattern in best_fit_decreasing(counts, pack_length))
            for counts in map(self._counts, range(self._num_windows))
        ]
        self._ends = np.cumsum(packs, dtype=np.int64)
        self._held: tuple[int, list[npt.NDArray[np.int64]]] = (-1, [])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._num_windows else 0

    @property
    def waste(self) -> float:
        """Fraction of the epoch's tokens that are padding, in [0, 1)."""
        space = len(self) * self._pack_length
        return 1 - int(self._lengths.sum(dtype=np.int64)) / space if space else 0.0

    def __getitem__(self, number: int) -> npt.NDArray[np.int64]:
        """Samples of a pack: their places in the global order, rising, int64 ``[S]``.

        Raises:
            IndexError: no such pack in this epoch.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"pack {number} of an epoch of {len(self)} packs")
        window = self.window_of(number)
        if self._held[0] != window:
            self._held = (window, self._packs_of(window))
        before = int(self._ends[window - 1]) if window else 0
        return self._held[1][number - before]

    def window_of(self, number: int) -> int:
        """The window that a pack is made of."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def samples_of(self, window: int) -> range:
        """Places in the global order that a window spans."""
        first = window * self._window_samples
        return range(first, min(first + self._window_samples, self._lengths.size))

    def _window(self, window: int) -> npt.NDArray[np.integer]:
        span = self.samples_of(window)
        return self._lengths[span.start : span.stop]

    def _counts(self, window: int) -> Counts:
        lengths, numbers = np.unique(self._window(window), return_counts=True)
        return tuple(zip(lengths.tolist(), numbers.tolist(), strict=True))[::-1]

    def _packs_of(self, window: int) -> list[npt.NDArray[np.int64]]:
        """Deal the samples of a window to its packs, then shuffle the packs."""
        lengths, first = self._window(window), window * self._window_samples
        counts = self._counts(window)
        waiting = {
            length: iter((np.flatnonzero(lengths == length) + first).tolist())
            for length, _ in counts
        }
        packs = [
            np.array(
                sorted(next(waiting[length]) for length, many in one.holds for _ in range(many)),
                dtype=np.int64,
            )
            for one in best_fit_decreasing(counts, self._pack_length)
            for _ in range(one.number)
        ]
        ranks = np.array([pack[0] for pack in packs], dtype=np.uint64)
        if self._key is not None:
            ranks = hashes(ranks, self._key)
        shuffled = np.argsort(ranks, kind="stable")
        return [packs[index] for index in shuffled]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything lies in a batch of B packs of L tokens."""

    positions: npt.NDArray[np.int32]
    """``[B, L, 3]``: t, h, w of every token in its own sample; 0 in padding."""
    valid: npt.NDArray[np.bool_]
    """``[B, L]``: False in padding."""
    cu_seqlens: npt.NDArray[np.int32]
    """``[S + 1]``: where the sequences begin in the flattened ``B * L`` tokens, and the end. The
    padding at a pack's end is a sequence of its own."""
    is_padding: npt.NDArray[np.bool_]
    """``[S]``: which of the sequences are padding."""
    max_seqlen: int
    """The longest sequence, padding included."""


Shape = tuple[int, int, int]


def lay_out(packs: Sequence[Sequence[Shape]], pack_length: int) -> Layout:
    """Lay samples of these shapes (t, h, w) one after the other into their packs.

    Raises:
        ValueError: a pack whose samples do not fit.
    """
    positions = np.zeros((len(packs), pack_length, 3), dtype=np.int32)
    valid = np.zeros((len(packs), pack_length), dtype=np.bool_)
    lengths: list[int] = []
    is_padding: list[bool] = []
    for index, shapes in enumerate(packs):
        end = 0
        for shape in shapes:
            start, end = end, end + math.prod(shape)
            if end > pack_length:
                raise ValueError(f"samples of {list(shapes)} do not fit in {pack_length} tokens")
            positions[index, start:end] = _grid(shape)
        valid[index, :end] = True
        lengths += [math.prod(shape) for shape in shapes]
        is_padding += [False] * len(shapes)
        if end < pack_length:
            lengths.append(pack_length - end)
            is_padding.append(True)
    return Layout(
        positions=positions,
        valid=valid,
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        is_padding=np.array(is_padding, dtype=np.bool_),
        max_seqlen=max(lengths, default=0),
    )


@functools.lru_cache(maxsize=256)
def _grid(shape: Shape) -> npt.NDArray[np.int32]:
    """t, h, w of every token of a shape, int32 ``[t * h * w, 3]``."""
    return np.ascontiguousarray(np.indices(shape, dtype=np.int32).reshape(3, -1).T)


def lay_tokens(packs: Sequence[Sequence[Tensor]], pack_length: int) -> Tensor:
    """Tokens of the packs in the places of ``lay_out``, on their device; padding is 0.

    Args:
        packs: of each pack the samples, all indices ``[t, h, w]`` or all latents ``[c, t, h, w]``.
        pack_length: L.

    Returns:
        ``[B, L]`` of the indices' dtype, or ``[B, L, c]`` of the latents'.
    """
    first = packs[0][0]
    channels = first.shape[:-3]
    laid = torch.zeros((len(packs), pack_length, *channels), dtype=first.dtype, device=first.device)
    for index, samples in enumerate(packs):
        end = 0
        for sample in samples:
            start, end = end, end + math.prod(sample.shape[-3:])
            laid[index, start:end] = sample.reshape(*channels, -1).movedim(-1, 0)
    return laid
