"""Who gets which shard, and what is done about those that take long: pure bookkeeping."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.attempts import WorkerReport
from pipeline.leases import Lease, Leases
from pipeline.segments import ShardTask
from tests.pipeline.fakes import shard

MB = 1_000_000


def task(name: str, size: int = MB) -> ShardTask:
    return ShardTask(shard=shard(name), source=None, remaining=size)


def leases(*sizes: int, owners: dict[str, int], now: float = 0.0) -> Leases:
    """Shards named s0, s1… of these sizes, and owners with so many slots."""
    made = Leases()
    for number, size in enumerate(sizes):
        made.add(task(f"s{number}", size))
    for owner, slots in owners.items():
        made.join(owner, slots, now)
    return made


def hand_out(made: Leases, now: float = 0.0) -> list[Lease]:
    found = []
    while (lease := made.next(now)) is not None:
        found.append(lease)
    return found


def report(*mine: Lease, covered: int = 0, total: int | None = None) -> WorkerReport:
    """What an owner says that has covered so much of each of its attempts."""
    counters = {"covered": covered * len(mine) if total is None else total}
    return WorkerReport(
        counters=counters, covered=dict.fromkeys((m.attempt for m in mine), covered)
    )


def test_the_largest_shard_begins_first_and_owners_fill_evenly() -> None:
    made = leases(1, 5, 3, 4, owners={"a": 2, "b": 2})
    found = hand_out(made)
    assert [(one.task.shard.name, one.owner) for one in found] == [
        ("s1", "a"),
        ("s3", "b"),
        ("s2", "a"),
        ("s0", "b"),
    ]
    assert made.next(0.0) is None


def test_every_lease_is_an_attempt_of_its_own() -> None:
    made = leases(1, owners={"a": 1})
    (first,) = hand_out(made)
    made.end(first.attempt, 1.0, finished=False)
    made.add(first.task)
    (second,) = hand_out(made)
    assert second.attempt != first.attempt
    assert made.end(first.attempt, 2.0, finished=True) is None, "a zombie is none of ours"


def test_a_shard_that_waits_is_not_given_out_before_its_time() -> None:
    made = leases(owners={"a": 1})
    made.add(task("s"), at=10.0)
    assert made.next(9.9) is None
    assert made.num_waiting == 1
    assert made.next(10.0) is not None
    assert not made.is_empty


def test_an_owner_that_leaves_gets_nothing_more_and_names_what_it_has() -> None:
    made = leases(1, 1, 1, owners={"a": 2})
    mine = hand_out(made)
    assert {one.attempt for one in made.leave("a")} == {one.attempt for one in mine}
    assert made.next(0.0) is None
    assert made.end(mine[0].attempt, 1.0, finished=False) is mine[0]
    assert made.leave("a") == []


@pytest.mark.parametrize(("moves", "silent"), [(True, []), (False, ["a"])])
def test_an_owner_without_progress_is_silent_only_while_it_has_shards(
    moves: bool, silent: list[str]
) -> None:
    made = leases(1, owners={"a": 1, "idle": 1})
    hand_out(made)
    for now in (0.0, 50.0, 101.0, 160.0):
        counters = {"clips": now if moves else 1.0, "starved_seconds": now}
        said = {name: WorkerReport(counters=counters) for name in ("a", "idle")}
        found = made.silent(said, now, 100.0)
    assert found == silent


def test_idle_workers_take_over_from_those_that_have_several() -> None:
    made = leases(4 * MB, 2 * MB, owners={"a": 2})
    first, second = hand_out(made)
    made.join("b", 2, 10.0)
    covered = {first.attempt: 2 * MB, second.attempt: 1000}
    said = {"a": WorkerReport(counters={"covered": 2 * MB}, covered=covered)}
    assert made.to_move(said, 20.0) == [second], "it has least to lose"
    second.is_asked = True
    assert made.to_move(said, 21.0) == [], "one for each idle worker"


def test_nothing_is_moved_that_is_done_in_a_moment_or_while_shards_wait() -> None:
    made = leases(4 * MB, 4 * MB, owners={"a": 2})
    first, second = hand_out(made)
    made.join("b", 2, 10.0)
    almost = {"a": report(first, second, covered=4 * MB - 1000)}
    assert made.to_move(almost, 20.0) == []
    made.add(task("waits"))
    assert made.to_move({"a": report(first, second, covered=MB)}, 20.0) == []


def finished(made: Leases, *, seconds: float, count: int = 3) -> None:
    """Let some shards of 1 MB be done at this speed, by an owner that leaves again."""
    made.join("earlier", count, 0.0)
    for number in range(count):
        made.add(task(f"done{number}"))
    for lease in hand_out(made):
        made.end(lease.attempt, seconds, finished=True)
    made.leave("earlier")


def test_a_straggler_is_copied_by_an_idle_worker_once() -> None:
    made = Leases()
    finished(made, seconds=60.0)
    made.join("slow", 1, 60.0)
    made.add(task("s"))
    (straggler,) = hand_out(made, 60.0)
    made.join("idle", 1, 60.0)
    said = {"slow": report(straggler, covered=MB // 10)}  # a tenth in a minute: nine to go
    assert made.to_copy(said, 120.0) == [straggler]
    copy = made.copy(replace(straggler.task, start_offset=7), 120.0)
    assert (copy.owner, copy.task.start_offset) == ("idle", 7)
    assert made.of_shard("s") == [straggler, copy]
    assert made.to_copy(said, 200.0) == []


def test_a_shard_that_goes_at_the_usual_speed_is_not_copied() -> None:
    made = Leases()
    finished(made, seconds=60.0)
    made.join("good", 1, 60.0)
    made.add(task("s"))
    (lease,) = hand_out(made, 60.0)
    made.join("idle", 1, 60.0)
    assert made.to_copy({"good": report(lease, covered=MB // 3)}, 80.0) == []


def test_a_late_shard_gets_its_worker_to_itself() -> None:
    made = leases(100 * MB, 10 * MB, 1, 1, owners={"a": 2, "b": 3})
    large, other, *_ = found = hand_out(made)
    assert (large.owner, other.owner) == ("a", "b")
    beside = next(one for one in found if one.owner == "a" and one is not large)
    said = {"a": report(large, beside, covered=10 * MB), "b": report(other, covered=9 * MB)}
    made.measure(said, 200.0)
    assert made.to_relieve(said, 200.0) == [beside]
    made.end(beside.attempt, 201.0, finished=False)
    made.add(beside.task)
    assert hand_out(made, 201.0)[0].owner == "b", "a has room, and is left alone"
    made.end(large.attempt, 300.0, finished=True)
    made.add(task("next"))
    assert hand_out(made, 300.0)[0].owner == "a"


def test_a_late_shard_on_a_slow_worker_goes_to_a_faster_one() -> None:
    made = leases(100 * MB, 90 * MB, 80 * MB, owners={"slow": 1, "b": 1, "c": 1})
    found = {one.owner: one for one in hand_out(made)}
    said = {
        owner: report(lease, covered=2 * MB if owner == "slow" else 40 * MB)
        for owner, lease in found.items()
    }
    made.measure(said, 200.0)
    assert made.to_relieve(said, 200.0) == [found["slow"]]


def test_a_slow_worker_gets_what_it_can_finish_in_time() -> None:
    made = leases(100 * MB, 100 * MB, 100 * MB, owners={"slow": 1, "b": 1, "c": 1})
    found = {one.owner: one for one in hand_out(made)}
    for size in (500 * MB, 20 * MB, MB):
        made.add(task(f"of {size}", size))
    said = {
        owner: report(lease, covered=10 * MB if owner == "slow" else 90 * MB)
        for owner, lease in found.items()
    }
    made.measure(said, 200.0)
    made.end(found["slow"].attempt, 200.0, finished=False)
    assert hand_out(made, 200.0)[0].task.remaining < 500 * MB
    made.end(found["b"].attempt, 200.0, finished=True)
    assert hand_out(made, 200.0)[0].task.remaining == 500 * MB
