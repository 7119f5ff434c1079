"""Pure: an epoch as steps. In each step every rank gets one full batch of one kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.loading.order import Numbers, permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Rows that may share a batch."""

    num_samples: int
    """How many there are."""
    global_batch: int
    """How many of them all ranks take in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What all ranks take at once."""

    kind: int
    """Position of the kind."""
    first: int
    """First sample number."""
    global_batch: int
    """Sample numbers from there on."""
    samples_after: int
    """Samples taken in this epoch when the step is done."""

    def of_rank(self, rank: int, world_size: int) -> Numbers:
        """Sample numbers of a rank: every ``world_size``-th; int64 ``[batch size]``.

        >>> Step(kind=0, first=8, global_batch=4, samples_after=12).of_rank(1, 2).tolist()
        [9, 11]
        """
        return np.arange(self.first + rank, self.first + self.global_batch, world_size)


class Plan:
    """The steps of an epoch, of every kind as many as it has full global batches.

    Kinds are interleaved at random; without a key they follow one another.
    """

    def __init__(
        self, kinds: Sequence[Kind], *, drop_last: bool, key: int | None, offset: int = 0
    ) -> None:
        """Count and order the steps.

        Args:
            kinds: at least one sample and a global batch of 1 or more each.
            drop_last: False: one step more for what is left of a kind; its sample numbers run on
                past the last one and are filled up from the start.
            key: of the interleaving; None: kind after kind.
            offset: samples that came before the first step; of a single kind only.
        """
        if offset and len(kinds) != 1:
            raise ValueError(f"an offset needs one kind of rows, there are {len(kinds)}")
        self._offset = offset
        self._sizes = np.array([kind.global_batch for kind in kinds], dtype=np.int64)
        wanted = np.array([kind.num_samples for kind in kinds], dtype=np.int64) - offset
        steps = wanted // self._sizes if drop_last else -(-wanted // self._sizes)
        steps = np.maximum(steps, 0)
        self.num_dropped = int(np.maximum(wanted - steps * self._sizes, 0).sum())
        """Samples of the epoch that are in no step."""
        kinds_of = np.repeat(np.arange(len(kinds), dtype=np.int64), steps)
        if key is not None and len(kinds) > 1:
            kinds_of = kinds_of[permutation(len(kinds_of), key)]
        self._kinds = kinds_of
        self._after = np.cumsum(self._sizes[kinds_of]) + offset
        self._nth = np.zeros(len(kinds_of), dtype=np.int64)
        for kind in range(len(kinds)):
            mine = kinds_of == kind
            self._nth[mine] = np.arange(int(mine.sum()))

    def __len__(self) -> int:
        """Steps of the epoch."""
        return len(self._kinds)

    @property
    def samples_at_end(self) -> int:
        """Samples taken when the last step is done."""
        return int(self._after[-1]) if len(self) else self._offset

    def step(self, number: int) -> Step:
        """Step ``number``, from 0."""
        kind = int(self._kinds[number])
        size = int(self._sizes[kind])
        return Step(
            kind=kind,
            first=int(self._nth[number]) * size + self._offset,
            global_batch=size,
            samples_after=int(self._after[number]),
        )

    def step_after(self, samples: int) -> int:
        """The first step that begins at or behind so many samples.

        >>> plan = Plan([Kind(num_samples=10, global_batch=4)], drop_last=True, key=None)
        >>> plan.step_after(0), plan.step_after(4), plan.step_after(5)
        (0, 1, 2)
        """
        if samples <= self._offset:
            return 0
        return min(int(np.searchsorted(self._after, samples)) + 1, len(self))
