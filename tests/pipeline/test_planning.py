"""What is left to do in an OUT: shards against receipts, and the record that OUT is of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, FingerprintMismatch, RunError
from pipeline.ledger import Ledger
from pipeline.planning import Plan, make_plan, tally_of
from pipeline.reader import source_of
from pipeline.records import Retry
from pipeline.run_record import check_fingerprint, read_run_record, write_run_record
from pipeline.segments import ShardTask
from pipeline.shards import Shard
from pipeline.storage import Storage
from tests.pipeline.fakes import MATERIAL, segment_writer, video
from tests.pipeline.tars import tar_bytes, tar_shard, three_samples


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    content = tar_bytes(three_samples())
    return [tar_shard(tmp_path / f"{name}.tar", content) for name in "abc"]


def plan(shards: list[Shard], storage: Storage, **changes: Any) -> Plan:
    return make_plan(shards, storage, **{"options": {}, "redo_changed": False} | changes)


def work(storage: Storage, shard: Shard, videos: int, *, final: bool) -> None:
    source = source_of(shard, {})
    writer = segment_writer(storage, task=ShardTask(shard=shard, source=None), source=source)
    for number in range(videos):
        writer.add(video(number))
    if final:
        writer.finish(videos * 10, None)
    else:
        writer.commit_due()


def change(shard: Shard) -> None:
    Path(shard.url).write_bytes(tar_bytes(three_samples()[:2]))
    os.utime(shard.url, (1, 1))


def test_everything_is_left_in_a_new_out(storage: Storage, shards: list[Shard]) -> None:
    found = plan(shards, storage)
    assert [(task.shard, task.start_offset) for task in found.tasks] == [(s, 0) for s in shards]
    assert (found.missing, found.changed, len(found.ledger)) == ({}, [], 0)


def test_final_shards_are_done_and_begun_ones_go_on(storage: Storage, shards: list[Shard]) -> None:
    work(storage, shards[0], 2, final=True)
    work(storage, shards[1], 2, final=False)
    found = plan(shards, storage)
    assert [(t.shard.name, t.start_offset, t.next_segment) for t in found.tasks] == [
        (shards[1].name, 20, 1),
        (shards[2].name, 0, 0),
    ]
    tally = tally_of(found)
    assert (tally.num_shards, tally.done_shards) == (3, 1)
    assert tally.before["clips"] == 4
    size = source_of(shards[0], {}).size_bytes
    assert tally.to_cover == 2 * size - 20


def test_shards_that_this_run_does_not_name_are_left_alone(
    storage: Storage, shards: list[Shard]
) -> None:
    work(storage, shards[0], 2, final=False)
    found = plan(shards[1:], storage)
    assert [task.shard for task in found.tasks] == shards[1:]
    assert list(found.ledger.states) == [shards[0].name]
    assert tally_of(found).before["clips"] == 0


def test_a_missing_shard_is_reported_and_the_others_run(
    storage: Storage, shards: list[Shard]
) -> None:
    Path(shards[1].url).unlink()
    found = plan(shards, storage)
    assert list(found.missing) == [shards[1].name]
    assert [task.shard for task in found.tasks] == [shards[0], shards[2]]
    assert "is not there" in tally_of(found).failed[shards[1].name]


def test_no_shard_at_all_is_a_configuration_error(storage: Storage, shards: list[Shard]) -> None:
    for shard in shards:
        Path(shard.url).unlink()
    with pytest.raises(ConfigError, match=r"none of 3 shards is there: .*is not there"):
        plan(shards, storage)
    with pytest.raises(ConfigError, match="the data set is empty"):
        plan([], storage)


def test_a_changed_source_is_reported_and_left_alone(storage: Storage, shards: list[Shard]) -> None:
    work(storage, shards[0], 2, final=False)
    work(storage, shards[1], 2, final=True)
    change(shards[0])
    change(shards[1])
    found = plan(shards, storage)
    assert found.changed == [shards[0].name, shards[1].name]
    assert [task.shard for task in found.tasks] == [shards[2]]
    assert list(tally_of(found).failed) == [shards[0].name], "a finished one stays as it is"


def test_a_changed_source_is_done_anew_when_asked(storage: Storage, shards: list[Shard]) -> None:
    work(storage, shards[0], 2, final=True)
    work(storage, shards[1], 2, final=True)
    Ledger.open(storage).publish(storage)
    change(shards[0])
    found = plan(shards, storage, redo_changed=True)
    assert found.changed == []
    assert [(task.shard, task.start_offset) for task in found.tasks] == [
        (shards[0], 0),
        (shards[2], 0),
    ]
    assert set(Ledger.open(storage).states) == {shards[1].name}
    assert storage.entries("manifests") == {}


def quarantine(storage: Storage, shard: Shard, *reasons: str, final: bool) -> None:
    writer = segment_writer(
        storage, task=ShardTask(shard=shard, source=None), source=source_of(shard, {})
    )
    for number, reason in enumerate(reasons):
        writer.add(video(number, failure=reason))
    writer.add(video(len(reasons)))
    writer.finish(100, None) if final else writer.commit_due()


def test_quarantined_videos_are_tried_again_when_asked(
    storage: Storage, shards: list[Shard]
) -> None:
    quarantine(storage, shards[0], "memory", "duplicate_key", final=True)
    quarantine(storage, shards[1], "memory", "crash", final=False)
    quarantine(storage, shards[2], "duplicate_key", final=True)
    assert [task.shard for task in plan(shards, storage).tasks] == [shards[1]]
    found = plan(shards, storage, retry=Retry.quarantined)
    assert [(task.shard, task.amends, task.goes_on) for task in found.tasks] == [
        (shards[0], True, False),
        (shards[1], True, True),
    ]
    tally = tally_of(found)
    assert tally.done_shards == 1, "a shard that is tried again is not done yet"
    assert (tally.before["videos"], tally.before["quarantined"]) == (8 - 3, 5 - 3)


def test_videos_of_a_changed_source_are_not_tried_again(
    storage: Storage, shards: list[Shard]
) -> None:
    quarantine(storage, shards[0], "memory", final=True)
    change(shards[0])
    found = plan(shards[:1], storage, retry=Retry.quarantined)
    assert (found.tasks, found.changed) == ([], [shards[0].name])


def cut(storage: Storage, shard: Shard) -> None:
    writer = segment_writer(
        storage, task=ShardTask(shard=shard, source=None), source=source_of(shard, {})
    )
    writer.add(video(0))
    writer.finish(10, "byte 10: cut")


def test_a_cut_shard_goes_on_from_the_cut_when_asked(storage: Storage, shards: list[Shard]) -> None:
    cut(storage, shards[0])
    change(shards[0])
    assert plan(shards[:1], storage).changed == [shards[0].name]
    found = plan(shards[:1], storage, retry=Retry.incomplete)
    assert found.changed == []
    (task,) = found.tasks
    assert task.continues_cut
    assert (task.source, task.start_offset, task.next_segment, task.generation) == (None, 10, 1, 1)
    assert len(task.seen) == 8
    assert tally_of(found).done_shards == 0


def test_a_retry_of_cut_shards_that_was_killed_is_continued_without_asking(
    storage: Storage, shards: list[Shard]
) -> None:
    cut(storage, shards[0])
    change(shards[0])
    (task,) = plan(shards[:1], storage, retry=Retry.incomplete).tasks
    writer = segment_writer(storage, task=task, source=source_of(shards[0], {}))
    writer.add(video(1))
    writer.commit_due()
    (task,) = plan(shards[:1], storage).tasks
    assert (task.start_offset, task.next_segment, task.generation) == (20, 2, 1)
    assert task.source == source_of(shards[0], {})
    assert not task.continues_cut


def record(storage: Storage, material: dict[str, Any] = MATERIAL) -> None:
    write_run_record(
        storage, material=material, config={}, random_weights=False, batch_clips=4, device="cpu"
    )


def test_the_run_record_comes_back(storage: Storage) -> None:
    assert read_run_record(storage) is None
    assert check_fingerprint(storage, MATERIAL) is None
    record(storage)
    found = check_fingerprint(storage, MATERIAL)
    assert found is not None
    assert (found["batch_clips"], found["fingerprint_of"]) == (4, MATERIAL)
    assert {"torch", "av", "pyarrow"} <= found["versions"].keys()


def test_another_configuration_is_refused_and_its_differences_named(storage: Storage) -> None:
    record(storage)
    other = {**MATERIAL, "packing": "i32"}
    for attempt in (check_fingerprint, record):
        with pytest.raises(FingerprintMismatch) as caught:
            attempt(storage, other)
        assert caught.value.differences == {"packing": ("u16+u2", "i32")}
        assert "packing: 'u16+u2' there, 'i32' now" in str(caught.value)


def test_whoever_is_second_goes_on_with_the_batch_of_the_first(storage: Storage) -> None:
    batches = [
        write_run_record(
            storage,
            material=MATERIAL,
            config={},
            random_weights=False,
            batch_clips=measured,
            device="cuda",
        )["batch_clips"]
        for measured in (16, 24)
    ]
    assert batches == [16, 16]


def test_whoever_is_second_with_the_same_configuration_keeps_the_first_record(
    storage: Storage,
) -> None:
    record(storage)
    before = storage.read("run.json")
    record(storage)
    assert storage.read("run.json") == before


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"7", b'{"format_version": 9}', b"\xff", b"[" * 100_000]
)
def test_a_broken_run_record_is_an_error_in_one_line(storage: Storage, content: bytes) -> None:
    storage.put("run.json", content)
    with pytest.raises(RunError, match=r"run\.json cannot be trusted"):
        read_run_record(storage)


def test_a_changed_run_record_is_found(storage: Storage) -> None:
    record(storage)
    fields = json.loads(storage.read("run.json"))
    fields["fingerprint_of"]["packing"] = "i32"
    storage.put("run.json", json.dumps(fields).encode())
    with pytest.raises(RunError, match="its fingerprint does not match its content"):
        read_run_record(storage)
