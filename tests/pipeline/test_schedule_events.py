"""The driver's loop when workers come, go, lie or stand still, and when it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import leases as rules_of_leases
from pipeline import schedule
from pipeline.attempts import Finished, Joined, Left, Wish, WorkerReport
from pipeline.books import Book, Books
from pipeline.errors import Abandoned, HandedBack, RunError, WorkerExpelled, WorkerLost
from pipeline.ledger import Ledger, read_chain
from pipeline.schedule import RetryRules, Scheduler
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from pipeline.tally import Tally
from tests.pipeline.fakes import FakeWorkers, Outcome, shard
from tests.pipeline.test_schedule import commit, succeeds


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WATCH_SECONDS", 0.0)


class Driven(FakeWorkers):
    """Workers that do what the test says at every look of the scheduler."""

    def __init__(self, outcomes: dict[str, list[Outcome]], **options: Any) -> None:
        super().__init__(outcomes, **options)
        self.plot: Callable[[Driven], None] = lambda workers: None

    def events(self, timeout_seconds: float) -> list[Any]:
        self.plot(self)
        return super().events(timeout_seconds)

    def task(self, number: int) -> ShardTask:
        return self.submitted[number][2]


def scheduler(workers: FakeWorkers, tally: Tally, **rules: Any) -> Scheduler:
    defaults = {"max_attempts": 2, "retry_seconds": 0.01, "max_bad_fraction": 0.5, "min_videos": 10}
    return Scheduler(
        workers=workers,
        rules=RetryRules(**defaults | rules),
        tally=tally,
        show=lambda tally: None,
    )


def run(storage: Storage, workers: FakeWorkers, *names: str, **rules: Any) -> tuple[Tally, Ledger]:
    tally, ledger = Tally(num_shards=len(names)), Ledger()
    tasks = [ShardTask(shard=shard(name), source=None, remaining=40) for name in names]
    scheduler(workers, tally, **rules).run(tasks, Books([Book(storage, ledger)]))
    return tally, ledger


def goes_on(task: ShardTask) -> None:
    """An attempt that has not ended yet."""


def test_a_worker_that_joins_later_gets_shards(storage: Storage) -> None:
    workers = Driven({name: [succeeds(storage)] for name in "ab"}, owners=())
    joining = [[], [Joined(owner="late", slots=1)]]
    workers.plot = lambda w: w.happens.extend(joining.pop(0) if joining else [])
    tally, _ = run(storage, workers, "a", "b")
    assert tally.done_shards == 2
    assert {owner for _, owner, _ in workers.submitted} == {"late"}
    assert tally.most_workers == 1


def test_a_drained_worker_hands_back_and_another_goes_on_behind_it(storage: Storage) -> None:
    workers = Driven({"s": [goes_on, succeeds(storage)]}, owners=["old"], slots=1)

    def plot(w: Driven) -> None:
        if len(w.submitted) == 1 and not w.asked:
            w.happens.append(Left(owner="old", reason="its machine is being drained"))
            w.happens.append(Joined(owner="new", slots=1))
        elif w.asked and len(w.submitted) == 1 and w.open:
            task = w.task(0)
            commit(storage, task, 2, final=False)
            w.happens.append(Finished(task=task, error=HandedBack("s", "as asked")))

    workers.plot = plot
    tally, ledger = run(storage, workers, "s", max_attempts=1)
    assert workers.asked == [("old", workers.task(0).attempt, Wish.hand_back)]
    assert [(owner, task.start_offset) for _, owner, task in workers.submitted] == [
        ("old", 0),
        ("new", 20),
    ]
    assert (tally.done_shards, tally.handed_back, tally.retries, tally.failed) == (1, 1, 0, {})
    assert [line.end_offset for line in ledger.lines()] == [20, 40]


def test_a_straggler_is_copied_and_the_loser_is_called_off(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules_of_leases, "MIN_COPY_SECONDS", 0.01)
    monkeypatch.setattr(rules_of_leases, "MIN_AGE_SECONDS", 1e9)
    quick = {f"q{n}": [succeeds(storage)] for n in range(3)}
    workers = Driven({**quick, "s": [goes_on, succeeds(storage)]}, owners=["a", "b"], slots=1)

    def plot(w: Driven) -> None:
        if w.asked and w.open:
            (straggler,) = [task for _, _, task in w.submitted if task.attempt in w.open]
            w.happens.append(Finished(task=straggler, error=Abandoned("s", "called off")))

    workers.plot = plot
    tally, ledger = run(storage, workers, *quick, "s")
    (first, copy) = [one for one in workers.submitted if one[2].shard.name == "s"]
    assert first[1] != copy[1]
    assert workers.asked == [(first[1], first[2].attempt, Wish.abandon)]
    assert (tally.done_shards, tally.copies, tally.failed) == (4, 1, {})
    assert len(list(ledger.lines())) == 4


def test_a_copy_whose_first_attempt_dies_goes_on_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules_of_leases, "MIN_COPY_SECONDS", 0.01)
    monkeypatch.setattr(rules_of_leases, "MIN_AGE_SECONDS", 1e9)
    quick = {f"q{n}": [succeeds(storage)] for n in range(3)}
    workers = Driven({**quick, "s": [goes_on, goes_on]}, owners=["a", "b"], slots=1)

    def plot(w: Driven) -> None:
        mine = [task for _, _, task in w.submitted if task.shard.name == "s"]
        if len(mine) == 2 and len(w.open) == 2:
            w.happens.append(Finished(task=mine[0], error=WorkerLost("s", "died")))
        elif len(mine) == 2 and len(w.open) == 1:
            w.happens.append(
                Finished(task=mine[1], receipts=commit(storage, mine[1], 4, final=True))
            )

    workers.plot = plot
    tally, _ = run(storage, workers, *quick, "s", max_attempts=1)
    assert (tally.done_shards, tally.failed) == (4, {})
    assert len(workers.submitted) == 5, "no third attempt"


def test_a_worker_that_lies_is_expelled_and_its_shard_is_done_by_another(storage: Storage) -> None:
    error = WorkerExpelled("device", "the canary differs")
    workers = Driven(
        {"s": [lambda task: Finished(task=task, error=error), succeeds(storage)]},
        owners=["a", "b"],
        slots=1,
    )
    tally, _ = run(storage, workers, "s", max_attempts=1)
    assert workers.removed == [("expel", "a")]
    assert [owner for _, owner, _ in workers.submitted] == ["a", "b"]
    assert tally.done_shards == 1
    assert tally.expelled == {"a": "device: the canary differs"}


def test_a_worker_that_stands_still_is_restarted(storage: Storage) -> None:
    workers = Driven({"s": [goes_on, succeeds(storage)]}, owners=["stuck"], slots=1)
    workers.said = {"stuck": WorkerReport(counters={"clips": 1.0})}

    def plot(w: Driven) -> None:
        if w.removed and w.open and len(w.submitted) == 1:
            w.happens.append(Finished(task=w.task(0), error=WorkerLost("s", "killed")))
            w.happens.append(Joined(owner="stuck.1", slots=1))

    workers.plot = plot
    tally, _ = run(storage, workers, "s", lease_seconds=0.05)
    assert workers.removed == [("restart", "stuck")]
    assert tally.done_shards == 1


def test_asked_to_stop_it_commits_and_begins_nothing_more(storage: Storage) -> None:
    workers = Driven({"s": [goes_on], "t": []}, owners=["a"], slots=1)
    tally, ledger = Tally(num_shards=2), Ledger()
    run_ = scheduler(workers, tally, grace_seconds=60)

    def plot(w: Driven) -> None:
        if w.submitted and not w.asked:
            run_.stop()
        elif w.asked and w.open:
            task = w.task(0)
            commit(storage, task, 1, final=False)
            w.happens.append(Finished(task=task, error=HandedBack("s", "as asked")))

    workers.plot = plot
    tasks = [
        ShardTask(shard=shard("s"), source=None, remaining=9),
        ShardTask(shard=shard("t"), source=None),
    ]
    run_.run(tasks, Books([Book(storage, ledger)]))
    assert tally.is_interrupted
    assert [wish for _, _, wish in workers.asked] == [Wish.hand_back]
    assert len(workers.submitted) == 1
    assert [receipt.end_offset for receipt in read_chain(storage, "s")] == [10]


def test_a_worker_that_does_not_answer_does_not_keep_it_from_stopping(storage: Storage) -> None:
    workers = Driven({"s": [goes_on]}, owners=["a"], slots=1)
    run_ = scheduler(workers, tally := Tally(num_shards=1), grace_seconds=0.05)
    timer = threading.Timer(0.05, run_.stop)
    timer.start()
    run_.run([ShardTask(shard=shard("s"), source=None)], Books([Book(storage, Ledger())]))
    timer.join()
    assert tally.is_interrupted
    assert tally.done_shards == 0


def test_no_worker_and_none_to_come_ends_the_run(storage: Storage) -> None:
    class Nobody(FakeWorkers):
        def events(self, timeout_seconds: float) -> list[Any]:
            raise RunError("no worker for 600 s")

    with pytest.raises(RunError, match="no worker"):
        run(storage, Nobody({}), "s")
