"""Segments: where a shard is cut, what is committed, and who wins when two attempts race."""

from __future__ import annotations

import io
import random
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.committer import SegmentWriter
from pipeline.errors import ShardError, StorageError
from pipeline.ledger import Ledger, read_chain, task_of
from pipeline.reader import Source
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from tests.pipeline.fakes import segment_writer, shard, video, write_shard


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def clip_ids(storage: Storage) -> list[str]:
    """Committed clips in the order of the shard, read with plain pyarrow."""
    return [
        clip_id
        for one in read_chain(storage, "s")
        if one.part is not None
        for clip_id in pq.read_table(storage.path(f"parts/{one.part}"))["clip_id"].to_pylist()
    ]


def ids(*numbers: int) -> list[str]:
    return [f"s/video_{number}@8fps#0" for number in numbers]


def ranges(receipts: list[Receipt]) -> list[tuple[int, int]]:
    return [(one.start_offset, one.end_offset) for one in receipts]


def test_a_segment_is_cut_at_its_clips(storage: Storage) -> None:
    receipts = write_shard(storage, "s", map(video, range(5)), max_clips=2)
    assert [one.rows for one in receipts] == [2, 2, 1]
    assert ranges(receipts) == [(0, 20), (20, 40), (40, 50)]
    assert [one.final for one in receipts] == [False, False, True]
    assert clip_ids(storage) == ids(0, 1, 2, 3, 4)


def test_a_video_with_more_clips_than_a_segment_is_not_torn(storage: Storage) -> None:
    receipts = write_shard(storage, "s", [video(0, clips=7), video(1)], max_clips=2)
    assert [one.rows for one in receipts] == [7, 1]


def test_a_commit_is_due_after_the_time(storage: Storage) -> None:
    writer = segment_writer(storage, max_seconds=0.05)
    assert 0 < writer.seconds_to_commit <= 0.05
    writer.add(video(0))
    time.sleep(0.06)
    assert writer.seconds_to_commit == 0
    writer.commit_due()
    assert ranges(writer.receipts) == [(0, 10)]
    assert writer.seconds_to_commit > 0


def test_time_is_up_also_for_a_shard_whose_videos_never_wait(storage: Storage) -> None:
    writer = segment_writer(storage, max_seconds=0.05)
    writer.add(video(0, failure="decode"))
    time.sleep(0.06)
    writer.add(video(1, failure="decode"))
    assert ranges(writer.receipts) == [(0, 20)]


def test_nothing_is_committed_when_nothing_is_there(storage: Storage) -> None:
    writer = segment_writer(storage)
    writer.commit_due()
    assert writer.receipts == []


def test_a_shard_without_clips_has_a_final_receipt_and_no_part(storage: Storage) -> None:
    (receipt,) = write_shard(storage, "s", [video(0, clips=0), video(1, failure="decode")])
    assert (receipt.part, receipt.rows, receipt.final, receipt.videos) == (None, 0, True, 2)
    assert receipt.filtered == {"too_short": 1}
    assert [one["reason"] for one in receipt.quarantined] == ["decode"]
    assert storage.entries("parts") == {}


def test_an_empty_shard_has_a_final_receipt(storage: Storage) -> None:
    (receipt,) = write_shard(storage, "s", [])
    assert (receipt.final, receipt.complete, receipt.videos) == (True, True, 0)


def test_a_cut_shard_is_final_and_incomplete(storage: Storage) -> None:
    writer = segment_writer(storage)
    writer.add(video(0))
    writer.finish(10, "byte 12: the archive is cut inside a header")
    (receipt,) = writer.receipts
    assert (receipt.final, receipt.complete, receipt.rows) == (True, False, 1)
    assert receipt.cut_reason == "byte 12: the archive is cut inside a header"


def test_rows_are_ordered_by_rate_and_time_whatever_order_clips_came_in(storage: Storage) -> None:
    shuffled = video(0, clips=6)
    items = list(shuffled.clips.items())
    random.Random(0).shuffle(items)
    shuffled.clips = dict(items)
    write_shard(storage, "s", [shuffled])
    assert clip_ids(storage) == [f"s/video_0@8fps#{index}" for index in range(6)]


def test_a_receipt_says_what_the_source_was_and_which_keys_it_covers(storage: Storage) -> None:
    (receipt,) = write_shard(storage, "s", [video(0), video(1, failure="decode")])
    assert (receipt.source_bytes, receipt.source_version) == (1000, "v1")
    assert len(receipt.key_digests) == 2 * 16
    assert receipt.numerics == {"device": "fake"}
    assert receipt.source_url == "/data/s.tar"
    assert receipt.part_bytes == storage.entry(f"parts/{receipt.part}").size_bytes


def quarantined(storage: Storage, segment: int = 0) -> dict[str, int]:
    (name,) = (name for name in storage.entries("quarantine") if name[:7] == f"s-{segment:05d}")
    content = storage.read(f"quarantine/{name}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {info.name: info.size for info in archive if info.name.endswith(".mp4")}


def test_quarantined_originals_are_kept_up_to_the_bound(storage: Storage) -> None:
    writer = segment_writer(storage, max_quarantine_bytes=100)
    for number in range(4):
        writer.add(video(number, failure="crash", original=bytes(40)))
    writer.finish(40, None)
    assert quarantined(storage) == {"video_0.mp4": 40, "video_1.mp4": 40}
    assert len(writer.receipts[0].quarantined) == 4


def test_originals_beyond_the_bound_are_not_held_in_memory(storage: Storage) -> None:
    writer = segment_writer(storage, max_quarantine_bytes=100)
    videos = [video(number, failure="crash", original=bytes(40)) for number in range(50)]
    for one in videos:
        writer.add(one)
    assert sum(len(one.original) for one in videos) <= 100


def test_no_quarantine_tar_when_it_is_switched_off(storage: Storage) -> None:
    writer = segment_writer(storage, max_quarantine_bytes=0)
    writer.add(video(0, failure="crash", original=b"1"))
    writer.finish(10, None)
    assert storage.entries("quarantine") == {}
    assert writer.receipts[0].quarantined[0]["key"] == "video_0"


def test_the_next_attempt_continues_the_chain(storage: Storage) -> None:
    first = segment_writer(storage, max_clips=2)
    for number in range(3):
        first.add(video(number))
    task = task_of(shard(), Ledger.open(storage).state("s"))
    assert (task.start_offset, task.next_segment, len(task.seen)) == (20, 1, 2 * 8)
    second = segment_writer(storage, task=task, max_clips=2)
    for number in range(2, 5):
        second.add(video(number))
    second.finish(50, None)
    assert clip_ids(storage) == ids(0, 1, 2, 3, 4)


def run_interleaved(dice: random.Random, writers: list[SegmentWriter], num_videos: int) -> None:
    """Each writer takes the videos in order; whose turn it is, is drawn."""
    left = [list(map(video, range(num_videos))) for _ in writers]
    while any(not writer.is_final for writer in writers):
        number = dice.randrange(len(writers))
        writer = writers[number]
        if left[number]:
            writer.add(left[number].pop(0))
        elif not writer.is_final:
            writer.finish(num_videos * 10, None)


@pytest.mark.parametrize("seed", range(12))
def test_racing_attempts_commit_every_clip_once_wherever_they_cut(
    storage: Storage, seed: int
) -> None:
    dice = random.Random(seed)
    writers = [segment_writer(storage, max_clips=dice.randint(1, 6)) for _ in range(3)]
    run_interleaved(dice, writers, 11)
    assert clip_ids(storage) == ids(*range(11))
    receipts = read_chain(storage, "s")
    assert receipts[-1].final
    committed = {one.part for one in receipts if one.part}
    assert set(storage.entries("parts")) == committed, "losers deleted their parts"


def test_a_loser_goes_on_behind_a_winner_who_got_further(storage: Storage) -> None:
    slow, fast = segment_writer(storage, max_clips=3), segment_writer(storage, max_clips=2)
    for number in range(4):
        fast.add(video(number))
    for number in range(5):
        slow.add(video(number))
    slow.finish(50, None)
    assert ranges(slow.receipts) == [(0, 20), (20, 40), (40, 50)]
    assert clip_ids(storage) == ids(0, 1, 2, 3, 4)


def test_a_loser_does_not_replace_the_winners_quarantine(storage: Storage) -> None:
    slow, fast = segment_writer(storage), segment_writer(storage)
    bad = [video(number, failure="crash", original=b"1") for number in range(4)]
    for one in bad[:3]:
        fast.add(one)
    fast.finish(30, None)
    slow.add(bad[3])
    slow.add(bad[0])
    slow.finish(30, None)
    assert set(quarantined(storage)) == {"video_0.mp4", "video_1.mp4", "video_2.mp4"}


def test_a_loser_on_another_version_of_the_source_stops(storage: Storage) -> None:
    winner = segment_writer(storage, max_clips=1)
    loser = segment_writer(storage, source=Source(size_bytes=1000, version="v2"), max_clips=1)
    winner.add(video(0))
    with pytest.raises(ShardError, match="made of another version of the source"):
        loser.add(video(0))
    assert len(storage.entries("parts")) == 1


def test_a_part_that_cannot_be_published_leaves_nothing_in_scratch(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, seen = tmp_path / "scratch", []
    scratch.mkdir()
    monkeypatch.setattr(storage, "scratch", lambda fallback: scratch)

    def away(local: Path, name: str) -> None:
        seen.append(local.stat().st_size)
        raise StorageError(name, "storage is away")

    monkeypatch.setattr(storage, "publish", away)
    writer = segment_writer(storage, max_clips=1)
    with pytest.raises(StorageError, match="storage is away"):
        writer.add(video(0))
    assert seen[0] > 0
    assert list(scratch.iterdir()) == []


def test_commits_are_told_to_whoever_asked(storage: Storage) -> None:
    task = ShardTask(shard=shard(), source=None)
    writer = segment_writer(storage, task=task, max_clips=1)
    told: list[Receipt] = []
    writer._on_commit = told.append
    writer.add(video(0))
    writer.finish(10, None)
    assert told == writer.receipts
