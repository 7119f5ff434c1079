"""A pass continues exactly where it was, on any number of ranks and worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from pipeline.dataset import TokenDataset
from pipeline.errors import RunError
from pipeline.loading.state import states_in
from pipeline.storage import Storage
from tests.pipeline.fakes import SHAPE, make_out, row, token_format
from tests.pipeline.test_dataset import out_of

GLOBAL_BATCH = 24
WORLDS = (1, 2, 3, 4, 8)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """100 clips in 52 row groups: 4 steps an epoch, and four clips left."""
    return make_out(tmp_path_factory.mktemp("loader") / "out", shards=4, videos=25, max_clips=6)


def ranks(storage: Storage, world_size: int, **changes: Any) -> list[TokenDataset]:
    return [
        TokenDataset(
            storage.root,
            **{"shuffle": True, "seed": 5, "columns": ["clip_id"]}
            | {"batch_size": GLOBAL_BATCH // world_size, "rank": rank, "world_size": world_size}
            | changes,
        )
        for rank in range(world_size)
    ]


def loaders(datasets: list[TokenDataset], workers: int, **options: Any) -> list[Any]:
    if not workers:
        return list(datasets)
    return [DataLoader(one, batch_size=None, num_workers=workers, **options) for one in datasets]


def steps(sources: list[Any]) -> Iterator[tuple[list[str], list[Any]]]:
    """Clips of each global batch in order, and the batches that they came in."""
    for batches in zip(*sources, strict=True):
        ids = zip(*(batch["clip_id"] for batch in batches), strict=True)
        yield [clip_id for across in ids for clip_id in across], list(batches)


def clips(sources: list[Any]) -> list[list[str]]:
    return [ids for ids, _ in steps(sources)]


def epochs(storage: Storage) -> list[list[str]]:
    """Two epochs of one rank."""
    (dataset,) = ranks(storage, 1)
    return clips([dataset]) + clips([dataset])


def test_epochs_are_orders_of_their_own_without_repeats(storage: Storage) -> None:
    first, second = epochs(storage)[:4], epochs(storage)[4:]
    assert first != second
    for epoch in (first, second):
        flat = [clip_id for batch in epoch for clip_id in batch]
        assert len(flat) == len(set(flat)) == 96
    (dataset,) = ranks(storage, 1, epoch=1)
    assert clips([dataset]) == second


@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_share_the_order_of_one(storage: Storage, world_size: int) -> None:
    assert clips(ranks(storage, world_size)) == epochs(storage)[:4]


@pytest.mark.parametrize("after", WORLDS)
@pytest.mark.parametrize("before", WORLDS)
def test_other_ranks_continue_exactly(storage: Storage, before: int, after: int) -> None:
    """Two steps on ``before`` ranks, the rest of two epochs on ``after``."""
    expected = epochs(storage)
    first = ranks(storage, before)
    assert [ids for ids, _ in islice(steps([iter(one) for one in first]), 2)] == expected[:2]
    states = [one.state_dict() for one in first]
    assert all(state == states[0] for state in states)
    second = ranks(storage, after)
    for dataset in second:
        dataset.load_state_dict(json.loads(json.dumps(states[-1])))
    assert clips(second) + clips(second) == expected[2:]


def continue_with_workers(storage: Storage, before: int, after: int, workers: int) -> None:
    expected = epochs(storage)
    first = ranks(storage, before)
    *_, (_, batches) = islice(steps(loaders(first, workers)), 2)
    state = first[0].state_dict(after=batches[0])
    second = ranks(storage, after)
    for dataset in second:
        dataset.load_state_dict(state)
    assert clips(loaders(second, workers)) == expected[2:4]


@pytest.mark.parametrize(("before", "after", "workers"), [(1, 2, 2), (2, 1, 1)])
def test_worker_processes_continue_exactly(
    storage: Storage, before: int, after: int, workers: int
) -> None:
    continue_with_workers(storage, before, after, workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("after", WORLDS)
@pytest.mark.parametrize("before", WORLDS)
def test_every_change_of_ranks_and_workers_continues_exactly(
    storage: Storage, before: int, after: int, workers: int
) -> None:
    continue_with_workers(storage, before, after, workers)


@pytest.mark.slow
def test_spawned_workers_get_the_data_set_by_pickle(storage: Storage) -> None:
    sources = loaders(ranks(storage, 1), 2, multiprocessing_context="spawn")
    assert clips(sources) == epochs(storage)[:4]


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_workers_that_persist_go_on_behind_a_pass_that_was_broken_off(
    storage: Storage, after: int
) -> None:
    """Near its end one of them has made its whole share, the other one not."""
    straight = ranks(storage, 1)
    first, *later = (clips(straight) for _ in range(3))
    (loader,) = loaders(ranks(storage, 1), 2, persistent_workers=True)
    assert [ids for ids, _ in islice(steps([iter(loader)]), after)] == first[:after]
    assert [clips([loader]) for _ in range(2)] == later


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4])
def test_a_state_of_any_step_continues_with_the_next(storage: Storage, taken: int) -> None:
    expected = epochs(storage)
    (first,), (second,) = ranks(storage, 1), ranks(storage, 1)
    iterator = iter(first)
    for _ in range(taken):
        next(iterator)
    second.load_state_dict(first.state_dict())
    assert clips([second]) + clips([second]) == expected[taken:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "its seed is 5, this data set's 6"),
        ({"shuffle": False}, "shuffle"),
        ({"drop_last": False}, "drop_last"),
        ({"num_streams": 2}, "num_streams"),
        ({"filters": [("key", "!=", "video_3")]}, "filters of the run that wrote"),
        ({"batch_size": 12}, "convert_batch=True"),
    ],
)
def test_a_state_of_another_order_is_refused(
    storage: Storage, changes: dict[str, Any], message: str
) -> None:
    (first,), (second,) = ranks(storage, 1), ranks(storage, 1, **changes)
    with pytest.raises(RunError, match=message):
        second.load_state_dict(first.state_dict())


def test_something_else_is_no_state(storage: Storage) -> None:
    (dataset,) = ranks(storage, 1)
    with pytest.raises(RunError, match="no 'version'"):
        dataset.load_state_dict({"model": 1})
    with pytest.raises(RunError, match="samples of a state must be a number from 0 on: -1"):
        dataset.load_state_dict(dataset.state_dict() | {"samples": -1})


def test_another_batch_size_goes_on_at_the_next_sample_when_it_is_meant(storage: Storage) -> None:
    expected = [clip_id for batch in epochs(storage)[:4] for clip_id in batch]
    (first,), (second,) = ranks(storage, 1), ranks(storage, 1, batch_size=7)
    next(iter(first))
    second.load_state_dict(first.state_dict(), convert_batch=True)
    next(iter(second))
    converted = second.state_dict()
    seen = [clip_id for batch in clips([second]) for clip_id in batch]
    assert seen == expected[24:94], "ten batches of seven, two clips are left"
    (third,) = ranks(storage, 1, batch_size=7)
    third.load_state_dict(converted)
    assert [clip_id for batch in clips([third]) for clip_id in batch] == seen[7:]


def two_shapes(folder: Path, num_clips: int) -> Storage:
    """Every third clip is a smaller one."""
    rows = [row(n, shape=SHAPE if n % 3 else (1, 4, 4)) for n in range(num_clips)]
    return Storage(out_of(folder, rows, token_format()))


@pytest.mark.parametrize(
    ("num_clips", "alone", "of_two", "num_steps"),
    [
        (30, {"batch_size": 4}, {"batch_size": 2}, 20 // 4 + 10 // 4),
        (60, {"tokens_per_batch": 96}, {"tokens_per_batch": 48}, 40 // 16 + 20 // 6),
    ],
)
def test_shapes_take_turns_and_continue_exactly_on_other_ranks(
    tmp_path: Path,
    num_clips: int,
    alone: dict[str, int],
    of_two: dict[str, int],
    num_steps: int,
) -> None:
    root = two_shapes(tmp_path, num_clips)
    expected = clips(ranks(root, 1, **alone))
    first = ranks(root, 2, **of_two)
    assert [ids for ids, _ in islice(steps([iter(one) for one in first]), 3)] == expected[:3]
    (second,) = ranks(root, 1, **alone)
    second.load_state_dict(first[1].state_dict())
    assert clips([second]) == expected[3:]
    assert len(expected) == num_steps


def test_another_token_budget_is_refused_and_counts_clips_as_they_are_cut(tmp_path: Path) -> None:
    root = two_shapes(tmp_path, 60)
    state = ranks(root, 2, tokens_per_batch=48)[1].state_dict()
    (other,) = ranks(root, 1, tokens_per_batch=192)
    with pytest.raises(RunError, match=r"tokens_per_batch\) and world_size with the same product"):
        other.load_state_dict(state)
    (cut,) = ranks(root, 1, tokens_per_batch=16, crop_latents=(1, 2, 2))
    assert {len(ids) for ids in clips([cut])} == {4}, "tokens are counted as they are cut"


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_continues_exactly(storage: Storage, workers: int) -> None:
    from torchdata import stateful_dataloader as stateful

    def loader() -> Any:
        (dataset,) = ranks(storage, 1, batch_size=8)
        return stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    expected = clips([loader()])
    first = loader()
    iterator = iter(first)
    for _ in range(5):
        next(iterator)
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert clips([second]) == expected[5:]

    elastic = TokenDataset.state_of(state)
    assert list(states_in(elastic)) == [elastic]
    others = ranks(storage, 2, batch_size=4)
    for dataset in others:
        dataset.load_state_dict(elastic)
    assert clips(others) == expected[5:]
