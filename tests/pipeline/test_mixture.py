"""Mixtures: the right shares, the same draws everywhere, and an exact continuation."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import RunError
from pipeline.mixture import MixedTokenDataset

DRAWN = [1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]


class Counting:
    """A source of ``length`` batches an epoch that keeps the protocol of TokenDataset."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length
        self.epoch, self.samples = 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.samples and self.samples >= self.length:
            self.epoch, self.samples = self.epoch + 1, 0
        while self.samples < self.length:
            self.samples += 1
            yield {"tokens": torch.zeros(1), "at": (self.name, self.epoch, self.samples - 1)}

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "epoch": self.epoch, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["name"] != self.name:
            raise RunError(f"state of {state['name']}, not of {self.name}")
        self.epoch, self.samples = state["epoch"], state["samples"]


class Rewinding(Counting):
    """As TokenDataset does: a pass begins where the last state was loaded or the last pass ended,
    also after one that was broken off; resumed at an epoch's end it has nothing left at first."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name, length)
        self.start = (0, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.epoch, self.samples = self.start
        for at in range(self.samples, self.length):
            self.samples = at + 1
            yield {"tokens": torch.zeros(1), "at": (self.name, self.epoch, at)}
        self.epoch, self.samples = self.start = (self.epoch + 1, 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start = self.epoch, self.samples


class WithThread(Rewinding):
    """Its pass belongs to the process that began it, as one that threads feed does."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        owner = os.getpid()
        for batch in super().__iter__():
            yield batch
            assert os.getpid() == owner, "a pass was asked for a batch where its threads are not"


KINDS = [Counting, Rewinding]
forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later


def mixture(seed: int = 0, kind: type[Counting] = Counting, **wishes: Any) -> MixedTokenDataset:
    return MixedTokenDataset({kind("a", 7): 0.7, kind("b", 3): 0.3}, seed=seed, **wishes)


def taken(mixed: MixedTokenDataset, number: int) -> list[Any]:
    batches = iter(mixed)
    return [next(batches)["at"] for _ in range(number)]


def test_steps_are_shared_out_by_weight() -> None:
    mixed = MixedTokenDataset({Counting("a", 5): 6, Counting("b", 5): 3, Counting("c", 5): 1})
    drawn = np.bincount([mixed.source_of(step) for step in range(20_000)], minlength=3)
    assert drawn / 20_000 == pytest.approx([0.6, 0.3, 0.1], abs=0.01)


def test_neighbouring_draws_do_not_know_each_other() -> None:
    mixed = MixedTokenDataset({Counting("a", 5): 1, Counting("b", 5): 1})
    drawn = np.array([mixed.source_of(step) for step in range(20_000)])
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03


def test_draws_are_pinned_for_ever() -> None:
    assert [mixture(seed=1).source_of(step) for step in range(16)] == DRAWN


def test_every_rank_draws_the_same_and_another_seed_other_sources() -> None:
    ranks = [[batch["source"] for batch in mixture(seed=4, steps=50)] for _ in range(3)]
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] != [batch["source"] for batch in mixture(seed=5, steps=50)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_ends_begins_its_next_epoch(kind: type[Counting]) -> None:
    batches = taken(mixture(kind=kind), 60)
    for name, length in (("a", 7), ("b", 3)):
        places = [(epoch, at) for source, epoch, at in batches if source == name]
        assert places == [(n // length, n % length) for n in range(len(places))]
        assert places[-1][0] > 1


def test_batches_tell_their_source() -> None:
    assert all(
        batch["at"][0] == "ab"[batch["source"]] and "tokens" in batch for batch in mixture(steps=20)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 1, 9, 23, 24, 25, 26, 40])
def test_a_state_continues_exactly(after: int, kind: type[Counting]) -> None:
    whole = taken(mixture(kind=kind), 60)
    first = mixture(kind=kind)
    assert taken(first, after) == whole[:after]
    state = json.loads(json.dumps(first.state_dict()))
    assert state["step"] == after
    resumed = mixture(kind=kind)
    resumed.load_state_dict(state)
    assert taken(resumed, 60 - after) == whole[after:]


def test_the_state_is_as_small_after_many_steps() -> None:
    mixed = mixture()
    small = len(json.dumps(mixed.state_dict()))
    taken(mixed, 5000)
    assert len(json.dumps(mixed.state_dict())) < small + 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_was_left_goes_on_where_it_stopped(kind: type[Counting]) -> None:
    whole, mixed = taken(mixture(kind=kind), 30), mixture(kind=kind, steps=10)
    assert [batch["at"] for _ in range(3) for batch in mixed] == whole
    broken = mixture(kind=kind)
    assert [at for part in (4, 1, 9) for at in taken(broken, part)] == whole[:14]


def test_a_mixture_loaded_in_the_middle_of_a_loop_forgets_the_passes_it_had_open() -> None:
    mixed = mixture()
    start = mixed.state_dict()
    first = taken(mixed, 12)
    mixed.load_state_dict(start)
    assert taken(mixed, 12) == first


@pytest.mark.parametrize("kind", KINDS)
def test_it_travels_to_another_process_in_the_middle_of_a_pass(kind: type[Counting]) -> None:
    whole, mixed = taken(mixture(kind=kind), 30), mixture(kind=kind)
    taken(mixed, 11)
    assert taken(pickle.loads(pickle.dumps(mixed)), 19) == whole[11:]


@forking
def test_one_worker_of_a_data_loader_goes_on_amid_the_passes_of_its_parent() -> None:
    mixed = mixture(kind=WithThread, steps=20)
    before = taken(mixed, 5)
    loader = torch.utils.data.DataLoader(
        mixed, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=30
    )
    assert before + [tuple(batch["at"]) for batch in loader] == taken(mixture(), 25)


@forking
def test_several_workers_are_refused_where_they_cannot_share_a_source() -> None:
    loader = torch.utils.data.DataLoader(mixture(steps=9), batch_size=None, num_workers=2)
    with pytest.raises(RunError, match="source 0 of the mixture, Counting, cannot be shared"):
        list(loader)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 8), ("weights", [0.5, 0.5]), ("weights", [1.0]), ("version", 1)]
)
def test_the_state_of_another_mixture_is_refused(name: str, value: Any) -> None:
    mixed = mixture()
    taken(mixed, 5)
    with pytest.raises(RunError, match=f"of a mixture with {name}="):
        mixture().load_state_dict({**mixed.state_dict(), name: value})


def test_a_source_may_refuse_its_part_of_the_state() -> None:
    other = MixedTokenDataset({Counting("a", 7): 0.7, Counting("z", 3): 0.3})
    with pytest.raises(RunError, match="state of b, not of z"):
        other.load_state_dict(mixture().state_dict())


def test_a_source_without_a_batch_is_an_error_not_an_endless_loop() -> None:
    mixed = MixedTokenDataset({Counting("a", 7): 1, Counting("none", 0): 1})
    with pytest.raises(RunError, match="source 1 of the mixture has no batch"):
        taken(mixed, 100)


def test_an_error_of_a_source_goes_through() -> None:
    class Broken(Counting):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            raise RunError("part p of s, row group 3: damaged")

    with pytest.raises(RunError, match="row group 3"):
        next(iter(MixedTokenDataset({Broken("a", 7): 1})))


def test_after_an_error_no_batch_is_skipped() -> None:
    class FailsOnce(Rewinding):
        has_failed = False

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for batch in super().__iter__():
                yield batch
                if self.samples == 2 and not self.has_failed:
                    self.has_failed = True
                    raise RunError("storage did not answer")

    mixed = MixedTokenDataset({FailsOnce("a", 4): 1})
    assert taken(mixed, 2) == [("a", 0, 0), ("a", 0, 1)]
    with pytest.raises(RunError, match="did not answer"):
        taken(mixed, 1)
    assert taken(mixed, 3) == [("a", 0, 2), ("a", 0, 3), ("a", 1, 0)]


def test_a_source_whose_transform_makes_no_dict_is_refused() -> None:
    class Tuples(Counting):
        def __iter__(self) -> Iterator[Any]:
            yield (1, 2)

    with pytest.raises(TypeError, match="source 0 gives tuple, a mixture needs dicts"):
        taken(MixedTokenDataset({Tuples("a", 1): 1}), 1)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="source 1: its weight must be above 0"):
        MixedTokenDataset({Counting("a", 1): 1, Counting("b", 1): weight})


def test_no_source_and_no_step_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        MixedTokenDataset({})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        mixture(steps=0)
