"""The loop of one rank while others, played by the test, commit to the same OUT."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline import schedule
from pipeline.array import work_as_rank
from pipeline.attempts import Finished, Wish
from pipeline.errors import Abandoned, WorkerLost
from pipeline.ledger import Ledger
from pipeline.planning import Plan, books_of
from pipeline.rank import Rank
from pipeline.reader import Source
from pipeline.records import Retry
from pipeline.schedule import RetryRules, Scheduler
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from pipeline.tally import Tally
from tests.pipeline.fakes import FakeWorkers, Outcome, shard
from tests.pipeline.test_schedule import commit, fails, succeeds

RANK = Rank(number=0, ranks=2)
OWN, OTHERS = (
    [name for name in "abcdefghijklmnop" if RANK.owns(name) is is_own] for is_own in (True, False)
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def task(name: str, **fields: object) -> ShardTask:
    return ShardTask(shard=shard(name), source=None, remaining=40, **fields)  # type: ignore[arg-type]


def work(
    storage: Storage, workers: FakeWorkers, tasks: Iterable[ShardTask], *, attempts: int = 1
) -> tuple[Tally, Plan]:
    """One rank of two, to its end."""
    tasks = list(tasks)
    shards = [one.shard for one in tasks]
    sources = {one.name: Source(size_bytes=40, version="1") for one in shards}
    plan = Plan(shards, sources, {}, [], storage, Ledger(), tasks)
    tally = Tally(num_shards=len(shards))
    rules = RetryRules(
        max_attempts=attempts, retry_seconds=0.01, max_bad_fraction=1.0, min_videos=10
    )
    scheduler = Scheduler(
        workers=workers,
        rules=rules,
        tally=tally,
        show=lambda tally: None,
        is_shared=True,
    )
    work_as_rank(RANK, scheduler, [plan], books_of([plan], [""]), tally, at_once=2)
    return tally, plan


def done_first(workers: FakeWorkers) -> list[str]:
    return [one.shard.name for _, _, one in workers.submitted]


def another_rank(storage: Storage, name: str, upto: int = 4) -> None:
    """Commits a shard's first videos, of four."""
    commit(storage, task(name), upto, final=upto == 4)


def test_the_own_share_is_done_first_and_then_all_that_is_left(storage: Storage) -> None:
    everything = sorted(OWN + OTHERS)
    workers = FakeWorkers({name: [succeeds(storage)] for name in everything}, slots=1)
    tally, plan = work(storage, workers, map(task, everything))
    assert sorted(done_first(workers)[: len(OWN)]) == OWN
    assert sorted(done_first(workers)[len(OWN) :]) == OTHERS
    assert (tally.done_shards, tally.failed) == (len(everything), {})
    assert plan.ledger.counts().final_shards == len(everything)


def test_what_another_rank_has_finished_meanwhile_is_not_attempted(storage: Storage) -> None:
    """One of our own share that was stolen, and one that its owner has done."""

    def both_are_done(one: ShardTask) -> Finished:
        another_rank(storage, OWN[1])
        another_rank(storage, OTHERS[0])
        return succeeds(storage)(one)  # type: ignore[return-value]

    workers = FakeWorkers({OWN[0]: [both_are_done]}, slots=1)
    tally, _ = work(storage, workers, map(task, (*OWN[:2], OTHERS[0])))
    assert done_first(workers) == [OWN[0]]
    assert (tally.done_shards, tally.failed) == (3, {})


def test_what_another_rank_has_begun_is_taken_up_behind_it(storage: Storage) -> None:
    another_rank(storage, OWN[0], upto=2)
    another_rank(storage, OTHERS[0], upto=3)
    workers = FakeWorkers({name: [succeeds(storage)] for name in (OWN[0], OTHERS[0])})
    tally, plan = work(storage, workers, map(task, (OWN[0], OTHERS[0])))
    assert [(one.start_offset, one.next_segment) for _, _, one in workers.submitted] == [
        (20, 1),
        (30, 1),
    ]
    assert tally.done_shards == 2
    assert plan.ledger.counts().segments == 4


def test_an_attempt_is_called_off_when_another_rank_has_finished_its_shard(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(schedule, "MEASURE_SECONDS", 0.0)

    class Asked(FakeWorkers):
        def ask(self, owner: str, attempt: str, wish: Wish) -> None:
            super().ask(owner, attempt, wish)
            self.happens.append(
                Finished(task=self.submitted[0][2], error=Abandoned(OWN[0], "as asked"))
            )

    def goes_on(one: ShardTask) -> None:
        another_rank(storage, OWN[0])

    workers = Asked({OWN[0]: [goes_on]})
    tally, _ = work(storage, workers, [task(OWN[0])])
    assert [wish for _, _, wish in workers.asked] == [Wish.abandon]
    assert (tally.done_shards, tally.failed) == (1, {})


@pytest.mark.parametrize(("is_saved", "failed"), [(True, []), (False, [OWN[0]])])
def test_a_shard_given_up_here_counts_as_done_when_another_rank_could_do_it(
    storage: Storage, *, is_saved: bool, failed: list[str]
) -> None:
    def next_one(one: ShardTask) -> Finished | None:
        if is_saved:
            another_rank(storage, OWN[0])
        return succeeds(storage)(one)

    outcomes: dict[str, list[Outcome]] = {
        OWN[0]: [fails(WorkerLost(OWN[0], "died"))],
        OTHERS[0]: [next_one],
    }
    tally, _ = work(storage, FakeWorkers(outcomes), map(task, (OWN[0], OTHERS[0])))
    assert list(tally.failed) == failed
    assert tally.done_shards == 2 - len(failed)


def test_videos_that_are_tried_again_stay_with_their_rank(storage: Storage) -> None:
    for name in (OWN[0], OTHERS[0]):
        another_rank(storage, name)
    again = [
        task(name, start_offset=40, next_segment=1, retry=Retry.quarantined, goes_on=False)
        for name in (OWN[0], OTHERS[0])
    ]
    workers = FakeWorkers({OWN[0]: [lambda one: Finished(task=one, receipts=[])]})
    tally, _ = work(storage, workers, again)
    assert done_first(workers) == [OWN[0]]
    assert (tally.done_shards, tally.failed) == (2, {})


def test_a_rank_that_is_asked_to_stop_steals_nothing(storage: Storage) -> None:
    stop: list[Scheduler] = []
    original = Scheduler.run

    def remembered(self: Scheduler, tasks: object, ledger: object) -> None:
        stop.append(self)
        original(self, tasks, ledger)  # type: ignore[arg-type]

    def asked_to_stop(one: ShardTask) -> Finished | None:
        stop[0].stop()
        return succeeds(storage)(one)

    workers = FakeWorkers({OWN[0]: [asked_to_stop]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "run", remembered)
        tally, _ = work(storage, workers, map(task, (OWN[0], *OTHERS)))
    assert done_first(workers) == [OWN[0]]
    assert tally.is_interrupted
    assert tally.done_shards == 1
