"""Several outputs of a run, looked at as one: tasks, ledgers, numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.attempts import WorkerReport
from pipeline.books import Book, Books
from pipeline.heartbeat import read_heartbeats
from pipeline.ledger import Ledger
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask, joined
from pipeline.storage import Storage
from pipeline.tally import OutputTally, Tally
from tests.pipeline.fakes import shard
from tests.pipeline.receipts import receipt


def task(remaining: int, **fields: object) -> ShardTask:
    return ShardTask(shard=shard("s"), source=None, remaining=remaining, **fields)  # type: ignore[arg-type]


@pytest.fixture
def storages(tmp_path: Path) -> list[Storage]:
    return [Storage(str(tmp_path / name)) for name in "ab"]


@pytest.fixture
def books(storages: list[Storage]) -> Books:
    return Books(
        Book(one, Ledger(), fingerprint) for one, fingerprint in zip(storages, "AB", strict=True)
    )


def test_one_attempt_is_for_all_outputs_that_have_something_left() -> None:
    found = joined([task(10), None, task(30, start_offset=5)])
    assert found is not None
    assert found.remaining == 30, "as much as is read"
    again = replace(found, attempt="x")
    assert {one.output: (one.remaining, one.attempt) for one in again.each()} == {
        0: (10, "x"),
        2: (30, "x"),
    }
    assert all(not one.beside for one in again.each())
    assert joined([None, None]) is None


def test_receipts_go_to_the_ledger_of_their_output(books: Books) -> None:
    first: Receipt = replace(receipt(final=True), fingerprint="A")
    books.add([first, replace(first, fingerprint="B", final=False)])
    left = books.left_of(joined([task(10, attempt="t"), task(10)]) or task(0))
    assert left is not None
    assert [one.output for one in left.each()] == [1], "A has nothing left of it"
    assert left.start_offset == first.end_offset


def test_an_output_that_an_attempt_is_not_for_stays_as_it_is(books: Books) -> None:
    left = books.left_of(joined([None, task(10)]) or task(0))
    assert left is not None
    assert [one.output for one in left.each()] == [1]


def test_every_out_says_how_the_run_stands_with_its_own_numbers(
    books: Books, storages: list[Storage]
) -> None:
    tally = Tally(
        num_shards=4, outputs=[OutputTally(before={"clips": n}, to_cover=n) for n in (1, 2)]
    )
    reports = [
        WorkerReport(
            counters={"videos": 3, "clips": 9, "decoders": 2},
            outputs=({"clips": 4, "decoders": 2}, {"clips": 5, "decoders": 0}),
        )
    ]
    tally.take_reports(reports * 2)
    books.beat("driver", tally, running=True)
    first, second = (read_heartbeats(storage)[0] for storage in storages)
    assert (first["num_shards"], first["before"], first["to_cover"]) == (4, {"clips": 1}, 1)
    assert first["counters"] == {"clips": 8, "decoders": 4}
    assert second["counters"] == {"clips": 10, "decoders": 4}, "decoders serve both"
    assert tally.counters == {"videos": 6, "clips": 18, "decoders": 4}
