"""Several data sets mixed into one stream of batches, by weights, the same on every rank.

>>> from pipeline.mixture import MixedTokenDataset                      # doctest: +SKIP
>>> mixed = MixedTokenDataset({videos: 0.7, images: 0.3}, seed=1)
>>> for batch in mixed:
...     batch["source"]                                  # 0: of videos, 1: of images
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import RunError
from pipeline.loading.hashing import derived_key, hashes, unit_interval
from pipeline.loading.state import check_snapshot, next_step_of, portable, states_in

Batch = dict[str, Any]
State = dict[str, Any]
Pass = Iterator[tuple[State, Any]]
"""For each batch of a source where that stands after it, and the batch, if it is wanted here."""

STATE_VERSION = 2

_DRAWN_AT_ONCE = 256
_OF_MIXTURE = frozenset({"version", "weights", "step", "sources"})


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


@runtime_checkable
class SharedSource(Protocol):
    """A source that worker processes can share, as ``TokenDataset`` is."""

    def share(self, is_mine: Iterator[bool]) -> Pass:
        """As ``__iter__``, but of batches that are not this process's only where they end."""

    def state_dict(self, after: Mapping[str, Any] | None = None) -> State:
        """The place after such an end."""

    def load_state_dict(self, state: State, *, convert_batch: bool = False) -> None:
        """Go on at such a place, with batches of another size where that is meant."""


class MixedTokenDataset(torch.utils.data.IterableDataset[Batch]):
    """One batch after the other, each of one source.

    The source of step k is a hash of (seed, k): no rank needs to ask another one, and a step is
    the same wherever a run resumed. A source that ends begins its next epoch, so the mixture ends
    only after ``steps``; then, or after leaving the loop, the next ``__iter__`` goes on where this
    one stopped. Its batches are those of the sources (dicts) with ``source`` (int, position in the
    mapping) and ``mixture`` (dict: how far it is with this batch) added. Ranks agree if their
    sources do.

    In a DataLoader take ``batch_size=None``; its worker processes share the steps, whose order
    stays the same; every source must have ``share``. There the pass behind one that was broken off
    is the next one (without ``steps`` it begins again), as a worker may have ended it; workers that
    do not persist start each time where the mixture in the main process stands:
    ``load_state_dict(state_dict(after=batch))`` moves it.
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
        self._end: int | None = None
        self._end_of_state: int | None = None
        self._next_step: int | None = None
        self._broken_off: State | None = None
        self._places: dict[int, State] = {}
        self._passes: dict[int, Pass] = {}
        self._inherited: dict[int, Pass] = {}
        self._owner = os.getpid()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present step on.

        Raises:
            RunError: a source has no batch at all, or cannot be shared by worker processes.
            TypeError: a source's batch is no dict.
        """
        worker = torch.utils.data.get_worker_info()
        at, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if num_workers > 1:
            self._check_shared()
        self._leave_passes_of_parent()
        if worker and self._broken_off is not None:  # its workers stopped at different steps
            self.load_state_dict(self._broken_off)
            self._pass_over_the_rest(num_workers)
        self._end, self._end_of_state = self._end_of_state, None
        if self._end is None and self._steps is not None:
            self._end = self._step + self._steps
        self._broken_off = self.state_dict() if worker else None
        if num_workers > 1:
            self._passes.clear()  # opened for other steps, where the last pass ended amid a turn
        mine = self._step + at if self._next_step is None else self._next_step
        while self._end is None or self._step < self._end:
            source = self.source_of(self._step)
            batch = self._next_of(source, mine, num_workers)
            self._step += 1  # first, so that a state taken during the batch counts it
            if self._step > mine:
                mine += num_workers
                self._next_step = mine if worker else None
                yield {**batch, "source": source, "mixture": self._progress()}
        self._end = self._next_step = self._broken_off = None

    def _pass_over_the_rest(self, num_workers: int) -> None:
        """To the end of a pass that was broken off: another worker may have made its share."""
        end = self._end_of_state
        if end is None:
            return
        while self._step < end:
            self._next_of(self.source_of(self._step), end, num_workers)
            self._step += 1
        self._end_of_state = self._next_step = None

    def _leave_passes_of_parent(self) -> None:
        if self._owner != os.getpid():
            # passes of the process this one was forked from: their threads are not here, so they
            # can neither go on nor end; kept, so that nothing tries to end them
            self._inherited, self._passes, self._owner = self._passes, {}, os.getpid()

    def _check_shared(self) -> None:
        for number, source in enumerate(self._sources):
            if not isinstance(source, SharedSource):
                raise RunError(
                    f"source {number} of the mixture, {type(source).__name__}, cannot be shared by "
                    "several worker processes: use DataLoader(num_workers=0 or 1), or give it "
                    "share() as TokenDataset has it"
                )

    def source_of(self, step: int) -> int:
        """Position of the source that step ``step`` (from 0) is of."""
        return int(self._sources_of(np.array([step]))[0])

    def _sources_of(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        drawn = unit_interval(hashes(steps, self._key))
        # the last border may be a little less than 1
        last = len(self._sources) - 1
        return np.minimum(np.searchsorted(self._borders, drawn, side="right"), last)

    def state_dict(self, after: Mapping[str, Any] | None = None) -> State:
        """The place after the batch handed out last: O(1), JSON-able, the same on all ranks.

        Args:
            after: or behind this batch: with worker processes the one used last, as others have
                been made ahead.
        """
        progress = after["mixture"] if after else self._progress()
        pairs = zip(self._sources, progress["places"], strict=True)
        state = {
            "version": STATE_VERSION,
            "seed": self._seed,
            "weights": list(self._weights),
            "step": progress["step"],
            "end": progress["end"],
            "sources": [_state_after(source, place) for source, place in pairs],
        }
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            state |= {"num_workers": worker.num_workers, "next_step": self._next_step}
        return state

    def _progress(self) -> State:
        """Steps done, where the pass ends, and where each source stands."""
        for number, source in enumerate(self._sources):
            if number not in self._places or not isinstance(source, SharedSource):
                self._places[number] = _state_now(source)
        places = [self._places[number] for number in range(len(self._sources))]
        return {"step": self._step, "end": self._end, "places": places}

    def load_state_dict(self, state: State, *, convert_batch: bool = False) -> None:
        """Go on after that batch, with every source where it was, to the end of that pass.

        Args:
            state: of ``state_dict``, of any rank.
            convert_batch: other global batches than the state's are meant, of sources that have
                ``share``; see ``TokenDataset.load_state_dict``.

        Raises:
            RunError: the state of another mixture or number of workers; or what a source says to
                its part of it.
        """
        expected = {"version": STATE_VERSION, "seed": self._seed, "weights": self._weights}
        for name, here in expected.items():
            if state.get(name) != here:
                raise RunError(
                    f"this state is of a mixture with {name}={state.get(name)!r}, here it is "
                    f"{here!r}; use the {name} of the run that wrote it, or start without a state"
                )
        next_step = next_step_of(state, "MixedTokenDataset")
        self._leave_passes_of_parent()
        for source, place in zip(self._sources, state["sources"], strict=True):
            if convert_batch and isinstance(source, SharedSource):
                source.load_state_dict(place, convert_batch=True)
            else:
                source.load_state_dict(place)
        self._step, self._next_step = int(state["step"]), next_step
        self._end = self._end_of_state = state["end"]
        self._broken_off = None
        self._passes.clear()
        self._places.clear()

    @staticmethod
    def state_of(loader_state: Mapping[str, Any]) -> State:
        """A StatefulDataLoader's state as one of this class, for any number of workers.

        Raises:
            RunError: it holds none, or one older than the batch handed out last.
        """
        check_snapshot(loader_state)
        found = list(states_in(loader_state, _OF_MIXTURE))
        if not found:
            raise RunError("no state of a MixedTokenDataset in there")
        return portable(max(found, key=lambda one: one["step"]))

    def __getstate__(self) -> dict[str, Any]:
        """Goes to another process without its open passes."""
        return {**self.__dict__, "_passes": {}, "_inherited": {}}

    def _next_of(self, number: int, mine: int, num_workers: int) -> Any:
        """Next batch of a source, from its next epoch if this one is over.

        Args:
            number: of the source.
            mine: the step that this process makes next; None is returned for those before.
            num_workers: from there on it makes every ``num_workers``-th.
        """
        for _ in range(2):  # a source resumed at the very end of an epoch gives an empty pass first
            # taken out until it has given a batch: one that ended or failed is not asked again
            present = self._passes.pop(number, None)
            if present is None:
                source = self._sources[number]
                source.load_state_dict(_state_now(source))  # not where its last pass began
                present = _pass_of(source, self._wanted(number, self._step, mine, num_workers))
            for place, batch in present:
                if batch is not None and not isinstance(batch, dict):
                    raise TypeError(
                        f"source {number} gives {type(batch).__name__}, a mixture needs dicts; "
                        "transform its batches after mixing"
                    )
                self._passes[number], self._places[number] = present, place
                return batch
        raise RunError(
            f"source {number} of the mixture has no batch: its data are fewer than one batch of "
            "all ranks; lower batch_size, or leave it out"
        )

    def _wanted(self, number: int, step: int, mine: int, num_workers: int) -> Iterator[bool]:
        """Whether this process makes the batches of a source that are due from a step on."""
        for first in itertools.count(step, _DRAWN_AT_ONCE):
            steps = np.arange(first, first + _DRAWN_AT_ONCE)
            own = steps[self._sources_of(steps) == number]
            yield from ((own >= mine) & ((own - mine) % num_workers == 0)).tolist()


def _pass_of(source: Source, wanted: Iterator[bool]) -> Pass:
    if isinstance(source, SharedSource):
        yield from source.share(wanted)
    else:
        for batch in source:
            yield {}, batch


def _state_now(source: Source) -> State:
    return (
        portable(source.state_dict()) if isinstance(source, SharedSource) else source.state_dict()
    )


def _state_after(source: Source, place: State) -> State:
    return portable(source.state_dict(after=place)) if isinstance(source, SharedSource) else place
