"""What a driver may ask of an attempt that is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.attempts import Wish
from pipeline.errors import Abandoned, HandedBack
from pipeline.ledger import Ledger, read_chain, task_of
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.shards import Shard
from pipeline.worker import Worker
from tests.pipeline.fakes import FakeEncoder
from tests.pipeline.test_worker import LONG, rows, shard_of, spec, task


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(spec(tmp_path / "out", decoders=1), FakeEncoder(seconds=0.02))
    yield made
    made.close()


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return shard_of(tmp_path, *[LONG] * 6)


def begun(worker: Worker, attempt: ShardTask, threads: ThreadPoolExecutor) -> Future[list[Receipt]]:
    """An attempt of which at least one video is done."""
    running = threads.submit(worker.run_shard, attempt)
    deadline = time.monotonic() + 60
    while not worker.report().covered.get(attempt.attempt):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return running


def test_an_attempt_handed_back_commits_what_is_done_and_the_next_goes_on_behind_it(
    worker: Worker, shard: Shard
) -> None:
    first = task(shard)
    with ThreadPoolExecutor(1) as threads:
        running = begun(worker, first, threads)
        worker.ask(first.attempt, Wish.hand_back)
        with pytest.raises(HandedBack):
            running.result(timeout=60)
    receipts = read_chain(worker.storage, shard.name)
    assert [receipt.final for receipt in receipts] == [False]
    assert 1 <= receipts[0].videos < 6

    ledger = Ledger()
    ledger.add(receipts)
    again = task_of(shard, ledger.state(shard.name))
    assert again is not None
    assert again.start_offset == receipts[0].end_offset
    rest = worker.run_shard(again)
    assert rest[-1].final
    keys = [row["key"] for row in rows(worker, [*receipts, *rest])]
    assert keys == [f"v{number}" for number in range(6) for _ in range(12)]


def test_an_attempt_that_is_called_off_commits_nothing_and_leaves_nothing(
    worker: Worker, shard: Shard
) -> None:
    attempt = task(shard)
    with ThreadPoolExecutor(1) as threads:
        running = begun(worker, attempt, threads)
        worker.ask(attempt.attempt, Wish.abandon)
        with pytest.raises(Abandoned):
            running.result(timeout=60)
    assert worker.storage.entries("receipts") == {}
    assert worker.storage.entries("parts") == {}
    assert worker.report().covered == {}


def test_a_wish_for_an_attempt_that_has_ended_has_no_effect(worker: Worker, shard: Shard) -> None:
    worker.ask("nobody", Wish.abandon)
    assert worker.run_shard(task(shard))[-1].final


def test_two_attempts_at_one_shard_in_one_out_leave_one_receipt_a_segment(
    worker: Worker, shard: Shard, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(worker.run_shard, task(shard)) for _ in range(2)]
        one, other = (running.result(timeout=100) for running in both)
    assert one == other
    assert len(worker.storage.entries("receipts")) == len(one)
    assert len(worker.storage.entries("parts")) == len(one), "the loser's part is gone"
