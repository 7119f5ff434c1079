"""Several data sets mixed into one stream of batches, by weights, the same on every rank.

>>> from pipeline.mixture import MixedTokenDataset                      # doctest: +SKIP
>>> mixed = MixedTokenDataset({videos: 0.7, images: 0.3}, seed=1)
>>> for batch in mixed:
...     batch["source"]                                  # 0: of videos, 1: of images
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.errors import RunError
from pipeline.loading.hashing import derived_key, hashes, unit_interval

Batch = dict[str, Any]
State = dict[str, Any]

STATE_VERSION = 1


class Source(Protocol):
    """What can be mixed: ``TokenDataset``, and whatever else keeps this protocol.

    Every rank holds the same sources and gets equally many batches of each in an epoch.
    """

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch after the state loaded last; after its end the next epoch."""

    def state_dict(self) -> State:
        """The place after the batch that was handed out last."""

    def load_state_dict(self, state: State) -> None:
        """Go on at such a place with the next ``__iter__``; refuses what is not its own."""


class MixedTokenDataset(torch.utils.data.IterableDataset[Batch]):
    """One batch after the other, each of one source.

    The source of step k is a hash of (seed, k): no rank needs to ask another one, and a step is
    the same wherever a run resumed. A source that ends begins its next epoch, so the mixture ends
    only after ``steps``; then, or after leaving the loop, the next ``__iter__`` goes on where this
    one stopped. Its batches are those of the sources (dicts) with ``source`` (int, position in the
    mapping) added. Ranks agree if their sources do.

    A worker process (one at most) that does not persist starts each time where the mixture in the
    main process stands: keep it (``persistent_workers=True``) or use a StatefulDataLoader.
    """

    def __init__(
        self, sources: Mapping[Any, float], *, seed: int = 0, steps: int | None = None
    ) -> None:
        """Take the sources as they stand; nothing is read yet.

        Args:
            sources: source -> weight above 0, in any unit: how often a step is of this source.
            seed: of the draws; the sources have seeds of their own.
            steps: batches of one ``__iter__``; None: it never ends.

        Raises:
            ValueError: no source, a weight that is not above 0, or fewer than 1 step.
        """
        super().__init__()
        for number, weight in enumerate(sources.values()):
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"source {number}: its weight must be above 0, got {weight}")
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or None for no end, got {steps}")
        self._sources: list[Source] = list(sources)
        self._weights = [float(weight) for weight in sources.values()]
        self._seed, self._steps = seed, steps
        self._key = derived_key(seed, "mixture")
        self._borders = np.cumsum(self._weights) / sum(self._weights)
        self._step = 0
        self._passes: dict[int, Iterator[Batch]] = {}
        self._inherited: dict[int, Iterator[Batch]] = {}
        self._owner = os.getpid()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present step on.

        Raises:
            RunError: a source has no batch at all, or worker processes share the mixture.
            TypeError: a source's batch is no dict.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RunError(
                "MixedTokenDataset reads in one process: use DataLoader(num_workers=0 or 1); its "
                "sources read ahead in threads"
            )
        if self._owner != os.getpid():
            # passes of the process this one was forked from: their threads are not here, so they
            # can neither go on nor end; kept, so that nothing tries to end them
            self._inherited, self._passes, self._owner = self._passes, {}, os.getpid()
        end = None if self._steps is None else self._step + self._steps
        while end is None or self._step < end:
            source = self.source_of(self._step)
            batch = self._next_of(source)
            if not isinstance(batch, dict):
                raise TypeError(
                    f"source {source} gives {type(batch).__name__}, a mixture needs dicts; "
                    "transform its batches after mixing"
                )
            self._step += 1  # first, so that a state taken during the batch counts it
            yield {**batch, "source": source}

    def source_of(self, step: int) -> int:
        """Position of the source that step ``step`` (from 0) is of."""
        drawn = float(unit_interval(hashes(step, self._key))[0])
        # the last border may be a little less than 1
        return min(int(np.searchsorted(self._borders, drawn, side="right")), len(self._sources) - 1)

    def state_dict(self) -> State:
        """The place after the batch handed out last: O(1), JSON-able."""
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "weights": list(self._weights),
            "step": self._step,
            "sources": [source.state_dict() for source in self._sources],
        }

    def load_state_dict(self, state: State) -> None:
        """Go on after that batch, with every source where it was.

        Raises:
            RunError: the state of another mixture; or what a source says to its part of it.
        """
        expected = {"version": STATE_VERSION, "seed": self._seed, "weights": self._weights}
        for name, here in expected.items():
            if state.get(name) != here:
                raise RunError(
                    f"this state is of a mixture with {name}={state.get(name)!r}, here it is "
                    f"{here!r}; use the {name} of the run that wrote it, or start without a state"
                )
        for source, place in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(place)
        self._step = int(state["step"])
        self._passes.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Goes to another process without its open passes."""
        return {**self.__dict__, "_passes": {}, "_inherited": {}}

    def _next_of(self, number: int) -> Batch:
        """Next batch of a source, from its next epoch if this one is over."""
        for _ in range(2):  # a source resumed at the very end of an epoch gives an empty pass first
            # taken out until it has given a batch: one that ended or failed is not asked again
            present = self._passes.pop(number, None)
            if present is None:
                source = self._sources[number]
                source.load_state_dict(source.state_dict())  # not where its last pass began
                present = iter(source)
            for batch in present:
                self._passes[number] = present
                return batch
        raise RunError(
            f"source {number} of the mixture has no batch: its data are fewer than one batch of "
            "all ranks; lower batch_size, or leave it out"
        )
