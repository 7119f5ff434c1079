"""The driver's loop: who is tried again, when, from where, and what stops the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import books, schedule
from pipeline.attempts import Finished, WorkerReport
from pipeline.books import Book, Books
from pipeline.errors import (
    RunError,
    ShardError,
    StorageError,
    StorageRefused,
    TooManyBadVideos,
    WorkerLost,
)
from pipeline.ledger import Ledger, task_of
from pipeline.receipts import Receipt
from pipeline.schedule import RetryRules, Scheduler
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from pipeline.tally import Tally
from tests.pipeline.fakes import FakeWorkers, Outcome, segment_writer, shard, video


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def commit(storage: Storage, task: ShardTask, upto: int, *, final: bool) -> list[Receipt]:
    """What a worker does: commit one segment of videos up to ``upto``."""
    writer = segment_writer(storage, task=task)
    for number in range(task.start_offset // 10, upto):
        writer.add(video(number))
    if final:
        writer.finish(upto * 10, None)
    else:
        writer.commit_due()
    return writer.receipts


def succeeds(storage: Storage) -> Outcome:
    return lambda task: Finished(task=task, receipts=commit(storage, task, 4, final=True))


def fails(error: Exception, *, counts: bool = True) -> Outcome:
    return lambda task: Finished(task=task, error=error, counts_as_attempt=counts)


def fails_after(storage: Storage, upto: int, *, final: bool = False) -> Outcome:
    def attempt(task: ShardTask) -> Finished:
        commit(storage, task, upto, final=final)
        return Finished(task=task, error=WorkerLost("s", "died"))

    return attempt


def run(
    storage: Storage,
    outcomes: dict[str, list[Outcome]],
    *,
    workers: FakeWorkers | None = None,
    tally: Tally | None = None,
    **rules: Any,
) -> tuple[FakeWorkers, Tally, Ledger]:
    workers = workers or FakeWorkers(outcomes)
    tally = tally or Tally(num_shards=len(outcomes))
    defaults = {"max_attempts": 3, "retry_seconds": 0.01, "max_bad_fraction": 0.5, "min_videos": 10}
    scheduler = Scheduler(
        workers=workers,
        rules=RetryRules(**defaults | rules),  # type: ignore[arg-type]
        tally=tally,
        show=lambda tally: None,
    )
    ledger = Ledger()
    tasks = [ShardTask(shard=shard(name), source=None) for name in outcomes]
    scheduler.run(tasks, Books([Book(storage, ledger)]))
    return workers, tally, ledger


def failures(storage: Storage) -> list[dict[str, Any]]:
    return [json.loads(storage.read(f"failures/{name}")) for name in storage.entries("failures")]


def heartbeat(storage: Storage) -> dict[str, Any]:
    (name,) = storage.entries("progress")
    return json.loads(storage.read(f"progress/{name}"))


def test_all_shards_are_done_and_their_receipts_returned(storage: Storage) -> None:
    outcomes = {name: [succeeds(storage)] for name in "abcde"}
    workers, tally, ledger = run(storage, outcomes)
    assert (tally.done_shards, tally.failed, tally.retries, tally.in_flight) == (5, {}, 0, 0)
    assert set(ledger.states) == set("abcde")
    assert workers.most_open <= 2


def test_a_failed_shard_is_tried_again_after_a_growing_wait(storage: Storage) -> None:
    outcomes = {"s": [fails(ShardError("s", "x"))] * 2 + [succeeds(storage)]}
    workers, tally, _ = run(storage, outcomes, retry_seconds=0.1)
    first, second, third = [at for at, _, _ in workers.submitted]
    assert second - first >= 0.05
    assert third - second >= 0.1
    assert (tally.done_shards, tally.retries, tally.failed) == (1, 2, {})


def test_a_shard_is_given_up_after_so_many_attempts_and_others_go_on(storage: Storage) -> None:
    outcomes = {"s": [fails(ShardError("s", "broken"))] * 3, "t": [succeeds(storage)]}
    workers, tally, _ = run(storage, outcomes, max_attempts=3)
    assert tally.failed == {"s": "s: broken"}
    assert tally.done_shards == 1
    assert len(workers.submitted) == 4


def test_an_attempt_that_was_preempted_does_not_count(storage: Storage) -> None:
    lost = fails(WorkerLost("s", "preempted"), counts=False)
    _, tally, _ = run(storage, {"s": [lost] * 7 + [succeeds(storage)]}, max_attempts=1)
    assert (tally.done_shards, tally.retries) == (1, 7)


def test_the_next_attempt_begins_behind_what_the_failed_one_committed(storage: Storage) -> None:
    outcomes = {"s": [fails_after(storage, 2), fails_after(storage, 3), succeeds(storage)]}
    workers, tally, ledger = run(storage, outcomes)
    assert [task.start_offset for _, _, task in workers.submitted] == [0, 20, 30]
    assert [task.next_segment for _, _, task in workers.submitted] == [0, 1, 2]
    assert [(line.start_offset, line.end_offset) for line in ledger.lines()] == [
        (0, 20),
        (20, 30),
        (30, 40),
    ]
    assert tally.done_shards == 1


def test_an_attempt_that_died_behind_its_final_commit_is_done(storage: Storage) -> None:
    workers, tally, ledger = run(storage, {"s": [fails_after(storage, 4, final=True)]})
    assert (tally.done_shards, len(workers.submitted), len(ledger)) == (1, 1, 1)


@pytest.mark.parametrize("error", [RunError("no"), StorageRefused("no"), ZeroDivisionError("no")])
def test_an_error_that_is_no_shards_stops_the_run(storage: Storage, error: Exception) -> None:
    workers = FakeWorkers({"s": [fails(error)], "t": [succeeds(storage)]}, slots=1)
    with pytest.raises(type(error), match="no"):
        run(storage, {"s": [], "t": []}, workers=workers)
    assert len(workers.submitted) == 1


def test_a_failure_is_recorded_with_its_traceback(storage: Storage) -> None:
    try:
        raise ShardError("s", "broken here")
    except ShardError as error:
        raised = error
    run(storage, {"s": [fails(raised), succeeds(storage)]})
    (record,) = failures(storage)
    assert (record["shard"], record["class"]) == ("s", "ShardError")
    assert record["message"] == "s: broken here"
    assert "test_schedule.py" in record["traceback"]


def test_a_failure_that_cannot_be_recorded_is_retried_all_the_same(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, content: bytes) -> None:
        raise StorageError(name, "away")

    monkeypatch.setattr(storage, "put", refuse)
    _, tally, _ = run(storage, {"s": [fails(ShardError("s", "x")), succeeds(storage)]})
    assert tally.done_shards == 1


def test_storage_that_is_away_when_a_failure_is_taken_in_does_not_end_the_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter([StorageError("receipts", "away"), None])
    whole = books.read_chain

    def flaky(*arguments: Any) -> Any:
        if error := next(reads):
            raise error
        return whole(*arguments)

    monkeypatch.setattr(books, "read_chain", flaky)
    outcomes = {"s": [fails(WorkerLost("s", "died"))] * 2 + [succeeds(storage)]}
    _, tally, ledger = run(storage, outcomes)
    assert (tally.done_shards, len(ledger)) == (1, 1)


def test_a_manifest_that_cannot_be_written_now_does_not_end_the_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> str:
        raise StorageError("manifests", "away")

    monkeypatch.setattr(schedule, "MANIFEST_SECONDS", 0.0)
    monkeypatch.setattr(Ledger, "publish", away)
    _, tally, _ = run(storage, {"s": [succeeds(storage)]})
    assert tally.done_shards == 1


def test_manifests_are_published_now_and_then(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MANIFEST_SECONDS", 0.0)
    run(storage, {"s": [succeeds(storage)]})
    assert len(storage.entries("manifests")) == 1


def test_the_heartbeat_says_how_the_run_stands(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[dict[str, Any]] = []
    put = storage.put
    monkeypatch.setattr(schedule, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(
        storage,
        "put",
        lambda name, content: (
            beats.append(json.loads(content)) if name.startswith("progress/") else None,
            put(name, content),
        ),
    )
    outcomes = {"s": [succeeds(storage)], "t": [fails(ShardError("t", "x"))] * 3}
    run(storage, outcomes)
    assert [beat["running"] for beat in beats] == [True] * (len(beats) - 1) + [False]
    last = heartbeat(storage)
    assert (last["num_shards"], last["done_shards"], last["in_flight"]) == (2, 1, 0)
    assert last["failed_shards"] == {"t": "t: x"}


def test_a_heartbeat_is_left_when_the_run_stops(storage: Storage) -> None:
    with pytest.raises(RunError):
        run(storage, {"s": [fails(RunError("no"))]})
    assert heartbeat(storage)["running"] is False


def bad_videos(storage: Storage, before: dict[str, float], counted: dict[str, float]) -> None:
    workers = FakeWorkers({"s": [succeeds(storage)]})
    workers.said = {"fake": WorkerReport(counters=counted)}
    run(storage, {"s": []}, workers=workers, tally=Tally(num_shards=1, before=before))


def test_too_many_bad_videos_stop_the_run(storage: Storage) -> None:
    with pytest.raises(TooManyBadVideos, match=r"6 of 10 videos were quarantined.*=0\.5"):
        bad_videos(storage, {}, {"videos": 10, "quarantined": 6})


def test_videos_of_earlier_runs_count_as_well(storage: Storage) -> None:
    with pytest.raises(TooManyBadVideos):
        bad_videos(storage, {"videos": 9, "quarantined": 6}, {"videos": 1, "quarantined": 0})


@pytest.mark.parametrize("counted", [(10, 5), (9, 9), (1000, 500)])
def test_as_many_bad_videos_as_allowed_do_not(storage: Storage, counted: tuple[int, int]) -> None:
    bad_videos(storage, {}, {"videos": counted[0], "quarantined": counted[1]})


def test_a_task_is_made_from_the_last_receipt(storage: Storage) -> None:
    fresh = task_of(shard(), Ledger.open(storage).state("s"))
    assert (fresh.source, fresh.start_offset, fresh.next_segment) == (None, 0, 0)
    commit(storage, fresh, 2, final=False)
    task = task_of(shard(), Ledger.open(storage).state("s"))
    assert task.source is not None
    assert (task.source.version, task.start_offset, task.next_segment) == ("v1", 20, 1)
    assert len(task.seen) == 2 * 8
