"""Mixtures of real data sets: worker processes share the steps, and a state continues exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import DataLoader

from pipeline.dataset import TokenDataset
from pipeline.errors import RunError
from pipeline.mixture import MixedTokenDataset
from tests.pipeline.fakes import make_out

GLOBAL_BATCH = 4
STEPS = 25
"""Of a pass: several epochs of both sources."""
WORLDS = (1, 2, 4)
WORKERS = (0, 1, 2)

Step = tuple[int, list[str]]
"""Source, and clips of all ranks in order."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """22 and 9 clips: 5 and 2 steps an epoch."""
    folder = tmp_path_factory.mktemp("mixture")
    return [
        make_out(folder / "videos", shards=2, videos=11, max_clips=3).root,
        make_out(folder / "images", shards=1, videos=9, max_clips=2).root,
    ]


def mixtures(
    roots: list[str],
    world_size: int,
    steps: int | None = STEPS,
    global_batch: int = GLOBAL_BATCH,
) -> list[Any]:
    """One mixture for each rank."""

    def source(number: int, rank: int) -> TokenDataset:
        return TokenDataset(
            roots[number], batch_size=global_batch // world_size, rank=rank, world_size=world_size,
            shuffle=True, seed=number, columns=["clip_id"],
        )  # fmt: skip

    return [
        MixedTokenDataset({source(0, rank): 0.7, source(1, rank): 0.3}, seed=3, steps=steps)
        for rank in range(world_size)
    ]


def loaders(mixed: Sequence[Any], workers: int, **options: Any) -> list[Any]:
    if not workers:
        return list(mixed)
    return [DataLoader(one, batch_size=None, num_workers=workers, **options) for one in mixed]


def steps(sources: Sequence[Any]) -> Iterator[tuple[Step, dict[str, Any]]]:
    """Each step of all ranks, and rank 0's batch."""
    for batches in zip(*sources, strict=True):
        assert len({batch["source"] for batch in batches}) == 1
        across = zip(*(batch["clip_id"] for batch in batches), strict=True)
        yield (batches[0]["source"], [one for row in across for one in row]), batches[0]


def taken(sources: Sequence[Any], number: int | None = None) -> list[Step]:
    return [step for step, _ in islice(steps([iter(one) for one in sources]), number)]


@pytest.fixture(scope="module")
def expected(roots: list[str]) -> list[Step]:
    """What one process reads in two passes."""
    mixed = mixtures(roots, 1)
    return taken(mixed) + taken(mixed)


def test_a_pass_holds_epochs_of_both(expected: list[Step]) -> None:
    assert len(expected) == 2 * STEPS
    for source, length in ((0, 5), (1, 2)):
        batches = [clips for number, clips in expected if number == source]
        assert len(batches) > 3 * length
        for first in range(0, len(batches) - length + 1, length):
            epoch = [one for clips in batches[first : first + length] for one in clips]
            assert len(set(epoch)) == len(epoch), "no clip twice in an epoch"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 1), (4, 2)])
def test_ranks_and_workers_share_the_steps_of_one(
    roots: list[str], expected: list[Step], world_size: int, workers: int
) -> None:
    assert taken(loaders(mixtures(roots, world_size), workers)) == expected[:STEPS]


def continues(
    roots: list[str], expected: list[Step], before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Eleven steps on so many ranks and workers, the rest of the pass on others."""
    first = mixtures(roots, before[0])
    run = list(islice(steps([iter(one) for one in loaders(first, before[1])]), 11))
    assert [step for step, _ in run] == expected[:11]
    states = [one.state_dict(after=run[-1][1]) for one in first]
    assert all(state == states[0] for state in states)
    second = mixtures(roots, after[0])
    for mixed in second:
        mixed.load_state_dict(json.loads(json.dumps(states[-1])))
    assert taken(loaders(second, after[1])) == expected[11:STEPS]


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 0), (2, 0)), ((4, 0), (1, 2)), ((1, 2), (2, 1)), ((2, 1), (1, 0))],
)
def test_other_ranks_and_workers_continue_exactly(
    roots: list[str], expected: list[Step], before: tuple[int, int], after: tuple[int, int]
) -> None:
    continues(roots, expected, before, after)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [(world, workers) for world in WORLDS for workers in WORKERS])
@pytest.mark.parametrize("before", [(world, workers) for world in WORLDS for workers in WORKERS])
def test_every_change_of_ranks_and_workers_continues_exactly(
    roots: list[str], expected: list[Step], before: tuple[int, int], after: tuple[int, int]
) -> None:
    continues(roots, expected, before, after)


def test_workers_that_persist_read_pass_after_pass(roots: list[str], expected: list[Step]) -> None:
    (loader,) = loaders(mixtures(roots, 1), 2, persistent_workers=True)
    assert taken([loader]) + taken([loader]) == expected


@pytest.mark.parametrize(
    ("workers", "after"),
    [(2, 1), (2, 7), (2, 21), (2, 22), (2, 24), (2, 25), (1, 7)]
    + [pytest.param(2, after, marks=pytest.mark.slow) for after in range(2, STEPS)],
)
def test_workers_that_persist_go_on_behind_a_pass_that_was_broken_off(
    roots: list[str], expected: list[Step], workers: int, after: int
) -> None:
    """Near its end one of them has made its whole share, the other one not."""
    (loader,) = loaders(mixtures(roots, 1), workers, persistent_workers=True)
    assert taken([loader], after) == expected[:after]
    assert taken([loader]) == expected[STEPS:]


def test_workers_that_persist_begin_a_mixture_without_end_again(
    roots: list[str], expected: list[Step]
) -> None:
    (loader,) = loaders(mixtures(roots, 1, steps=None), 2, persistent_workers=True)
    assert taken([loader], 7) == expected[:7]
    assert taken([loader], 9) == expected[:9]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_pass_that_a_state_began_and_a_loop_broke_off_is_passed_over(
    roots: list[str], expected: list[Step]
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        (mixed,) = mixtures(roots, 1)
        return stateful.StatefulDataLoader(
            mixed, batch_size=None, num_workers=2, persistent_workers=True
        )

    first, second = loader(), loader()
    assert taken([first], 3) == expected[:3]
    second.load_state_dict(first.state_dict())
    assert taken([second], 5) == expected[3:8]
    assert taken([second]) == expected[STEPS:]


def test_a_mixture_broken_off_here_goes_on_in_workers(
    roots: list[str], expected: list[Step]
) -> None:
    mixed = mixtures(roots, 1)
    assert taken(mixed, 4) == expected[:4]
    assert taken(loaders(mixed, 2)) == expected[4 : 4 + STEPS]


def test_a_state_of_the_last_step_leaves_nothing_of_the_pass(
    roots: list[str], expected: list[Step]
) -> None:
    first, second = mixtures(roots, 1), mixtures(roots, 1)
    *_, (_, batch) = steps(first)
    second[0].load_state_dict(first[0].state_dict(after=batch))
    assert taken(second) == []
    assert taken(second) == expected[STEPS:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [6, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_a_stateful_data_loader_continues_exactly(
    roots: list[str], expected: list[Step], workers: int, after: int
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        (mixed,) = mixtures(roots, 1)
        return stateful.StatefulDataLoader(mixed, batch_size=None, num_workers=workers)

    first = loader()
    assert taken([first], after) == expected[:after]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert taken([second]) == expected[after:STEPS]
    others = mixtures(roots, 2)
    for mixed in others:
        mixed.load_state_dict(MixedTokenDataset.state_of(state))
    assert taken(others) == expected[after:STEPS]


def test_other_batches_are_taken_by_every_source_when_they_are_meant(
    roots: list[str], expected: list[Step]
) -> None:
    (first,), (second,) = mixtures(roots, 1), mixtures(roots, 1, global_batch=2)
    taken([first], 2)
    with pytest.raises(RunError, match="convert_batch=True"):
        second.load_state_dict(first.state_dict())
    second.load_state_dict(first.state_dict(), convert_batch=True)
    source, clips = expected[2]
    assert taken([second], 1) == [(source, clips[:2])]


@pytest.mark.parametrize("kind", [TokenDataset, MixedTokenDataset])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_record_older_than_the_last_batch_is_refused(roots: list[str], kind: Any) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    (mixed,) = mixtures(roots, 1)
    loader = stateful.StatefulDataLoader(
        mixed, batch_size=None, num_workers=1, snapshot_every_n_steps=4
    )
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    assert kind.state_of(loader.state_dict())
    for _ in range(2):
        next(batches)
    with pytest.raises(RunError, match=r"2 batches older .* snapshot_every_n_steps=1, or"):
        kind.state_of(loader.state_dict())


def test_a_record_without_a_mixture_is_refused() -> None:
    with pytest.raises(RunError, match="no state of a MixedTokenDataset"):
        MixedTokenDataset.state_of({"step": 1})
