"""Quarantined videos tried again: what is added, what stays, and who wins when two retries race."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.amendments import AmendmentWriter
from pipeline.ledger import Ledger, task_of
from pipeline.receipts import Receipt
from pipeline.records import Retry
from pipeline.run_record import write_run_record
from pipeline.segments import CommitRules, OpenVideo
from pipeline.storage import Storage
from pipeline.verify import main as verify
from tests.pipeline import runs
from tests.pipeline.fakes import MATERIAL, RULES, committer, shard, video, write_shard
from tests.pipeline.receipts import all_receipts

BAD = (1, 2, 4, 7)
"""Numbers of the videos that are quarantined at first, of 9 in segments of 2 clips."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Segments of videos 0-3, 4-6 and 7-8."""
    storage = Storage(str(tmp_path / "out"))
    write_run_record(
        storage, material=MATERIAL, config={}, random_weights=False, batch_clips=1, device="cpu"
    )
    videos = (video(n, failure="memory" if n in BAD else None) for n in range(9))
    assert len(write_shard(storage, "s", videos, max_clips=2)) == 3
    return storage


def amender(storage: Storage, rules: CommitRules = RULES) -> AmendmentWriter:
    task = task_of(shard(), Ledger.open(storage).state("s"), Retry.quarantined)
    assert task is not None
    assert task.amends
    return AmendmentWriter(task, committer(storage, task), storage, rules)


def amend(writer: AmendmentWriter, saved: Iterable[int]) -> list[Receipt]:
    """What a worker does: hand over the wanted videos in order, those in ``saved`` sound."""
    saved = set(saved)
    for number in range(9):
        one = video(number, failure=None if number in saved else "no_progress")
        if writer.wants(one.sample):
            writer.add(one)
    writer.finish(90, None)
    return writer.receipts[3:]


def still(storage: Storage) -> dict[str, str]:
    """Reason by key of what is still quarantined."""
    latest: dict[int, Receipt] = {}
    for receipt in all_receipts(storage):
        latest[receipt.segment] = receipt
    return {v["key"]: v["reason"] for one in latest.values() for v in one.quarantined}


def clips(storage: Storage) -> set[int]:
    """Numbers of the videos that have a row; each once."""
    return {int(row["key"].removeprefix("video_")) for row in runs.rows(storage.root).values()}


def test_only_quarantined_videos_are_wanted(storage: Storage) -> None:
    writer = amender(storage)
    assert [n for n in range(9) if writer.wants(video(n).sample)] == list(BAD)
    assert (writer.task.start_offset, writer.end_offset) == (0, 90)


def test_a_generation_holds_the_rows_of_those_that_succeed(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = all_receipts(storage)
    added = amend(amender(storage), [1, 4, 7])
    assert [(one.name, one.rows, one.videos) for one in added] == [
        ("s.00000.r1.json", 1, 2),
        ("s.00001.r1.json", 1, 1),
        ("s.00002.r1.json", 1, 1),
    ]
    assert [one for one in all_receipts(storage) if not one.generation] == before
    assert clips(storage) == set(range(9)) - {2}
    assert still(storage) == {"video_2": "no_progress"}, "with the newest reason"
    counts = Ledger.open(storage).counts()
    assert (counts.videos, counts.clips, counts.quarantined) == (9, 8, {"no_progress": 1})
    assert verify([storage.root]) == 0


@pytest.mark.parametrize("bound", [{"max_clips": 1}, {"max_seconds": 0.0}])
def test_what_waits_for_its_commit_is_bounded_as_in_a_first_attempt(
    storage: Storage, bound: dict[str, float]
) -> None:
    added = amend(amender(storage, replace(RULES, **bound)), [2, 4, 7])
    assert [(one.name, one.rows) for one in added] == [
        ("s.00000.r1.json", 1),
        ("s.00001.r1.json", 1),
        ("s.00002.r1.json", 1),
    ]
    assert still(storage) == {"video_1": "no_progress"}, "of a part of the segment before"
    again = amend(amender(storage, replace(RULES, **bound)), [1])
    assert (again[-1].name, again[-1].rows) == ("s.00000.r2.json", 1)
    assert clips(storage) == set(range(9))


def test_time_makes_a_commit_due_only_while_something_waits_for_it(storage: Storage) -> None:
    writer = amender(storage, replace(RULES, max_seconds=50.0))
    assert writer.seconds_to_commit == math.inf
    writer.add(video(1))
    assert 0 < writer.seconds_to_commit <= 50
    writer.commit_due()
    assert writer.seconds_to_commit == math.inf
    assert clips(storage) == set(range(9)) - {2, 4, 7}


def test_a_segment_whose_videos_all_succeed_has_a_generation_for_each_bounded_part(
    storage: Storage,
) -> None:
    added = amend(amender(storage, replace(RULES, max_clips=1)), BAD)
    assert [one.name for one in added][:2] == ["s.00000.r1.json", "s.00000.r2.json"]
    assert (still(storage), clips(storage)) == ({}, set(range(9)))
    assert verify([storage.root]) == 0


def test_a_retry_that_changes_nothing_writes_nothing(storage: Storage) -> None:
    before = storage.entries("receipts"), storage.entries("parts")
    assert amend(amender(storage), []) == []
    assert (storage.entries("receipts"), storage.entries("parts")) == before


def test_another_retry_adds_another_generation(storage: Storage) -> None:
    amend(amender(storage), [1])
    second = amender(storage)
    assert [n for n in range(9) if second.wants(video(n).sample)] == [2, 4, 7]
    assert [one.name for one in amend(second, [2, 4, 7])] == [
        "s.00000.r1.json",  # met
        "s.00000.r2.json",
        "s.00001.r1.json",
        "s.00002.r1.json",
    ]
    assert still(storage) == {}
    assert clips(storage) == set(range(9))
    assert task_of(shard(), Ledger.open(storage).state("s"), Retry.quarantined) is None


def test_a_video_that_is_now_too_short_is_filtered(storage: Storage) -> None:
    writer = amender(storage)
    writer.add(video(1, clips=0))
    writer.finish(90, None)
    (receipt,) = writer.receipts[3:]
    assert (receipt.part, receipt.filtered) == (None, {"too_short": 1})
    assert "video_1" not in still(storage)
    assert Ledger.open(storage).counts().filtered == {"too_short": 1}


def test_reading_begins_at_the_first_segment_with_something_to_try(storage: Storage) -> None:
    amend(amender(storage), [1, 2, 7])
    writer = amender(storage)
    assert (writer.task.start_offset, writer.end_offset) == (40, 70)
    assert len(writer.task.seen) == 4 * 8, "keys before it, to tell duplicates"


def test_two_retries_at_once_add_every_video_once(storage: Storage) -> None:
    slow, fast = amender(storage), amender(storage)
    amend(fast, [1, 7])
    amend(slow, [1, 2, 4, 7])
    assert [one.name for one in slow.receipts[3:]] == [
        "s.00000.r1.json",
        "s.00000.r2.json",
        "s.00001.r1.json",
        "s.00002.r1.json",
    ]
    assert clips(storage) == set(range(9))
    assert set(storage.entries("parts")) == {one.part for one in all_receipts(storage) if one.part}
    assert verify([storage.root]) == 0


def test_a_retry_that_was_overtaken_adds_nothing_of_its_own(storage: Storage) -> None:
    slow, fast = amender(storage), amender(storage)
    amend(fast, BAD)
    amend(slow, [1, 4])
    assert len(storage.entries("receipts")) == 6
    assert verify([storage.root]) == 0


def test_the_second_video_of_a_key_is_never_tried_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    twice: list[OpenVideo] = [video(0, failure="crash"), video(1, failure="duplicate_key")]
    write_shard(storage, "s", twice)
    writer = amender(storage)
    assert [n for n in range(2) if writer.wants(video(n).sample)] == [0]
    state = Ledger.open(storage).state("s")
    assert state.num_retriable == 1


def test_a_duplicate_does_not_take_the_place_of_the_first_video_of_its_key(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    write_run_record(
        storage, material=MATERIAL, config={}, random_weights=False, batch_clips=1, device="cpu"
    )

    def videos(first: str | None) -> Iterator[OpenVideo]:
        """Of the keys 0, 1, 0: the last as the reader hands it out."""
        yield video(0, failure=first)
        yield video(1)
        twin = video(2, failure="duplicate_key")
        twin.sample = replace(twin.sample, key="video_0", defect=twin.failure)
        yield twin

    write_shard(storage, "s", videos("crash"))
    for first in ("no_progress", None):
        assert Ledger.open(storage).state("s").num_retriable == 1
        writer = amender(storage)
        for one in videos(first):
            if writer.wants(one.sample):
                writer.add(one)
        writer.finish(30, None)
    assert clips(storage) == {0, 1}
    assert still(storage) == {"video_0": "duplicate_key"}
    assert Ledger.open(storage).state("s").num_retriable == 0
    assert verify([storage.root]) == 0


def test_a_ledger_that_knows_the_first_generations_takes_in_the_rest(storage: Storage) -> None:
    ledger = Ledger.open(storage)
    amend(amender(storage), [1])
    again = amender(storage)
    amend(again, [2])
    ledger.add(again.receipts)
    assert ledger.state("s").generations == {0: 2}
    assert ledger.counts().clips == 7


def test_a_part_of_a_generation_may_hold_only_what_was_quarantined(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = amender(storage)
    writer._wanted = [{"video_0"} for _ in writer._wanted]
    writer.wants(video(0).sample)
    receipt = writer._latest[0]
    receipt.quarantined.append({"key": "video_0", "reason": "crash", "message": ""})
    writer.add(video(0))
    writer.finish(90, None)
    assert verify([storage.root]) == 1
    said = capsys.readouterr().out
    assert "s.00000.r1.json: video_0 was not quarantined before" in said
    assert "clip s/video_0@8fps#0 is also in s.00000.json" in said
