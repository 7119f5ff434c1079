"""Objects are read in large ranges: how many requests, how much memory, and what if they fail."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import Any

import boto3
import pytest

from jobs.drill.proxy import Fault, FaultProxy
from pipeline import backends
from pipeline.backends import open_filesystem
from pipeline.errors import StorageError
from pipeline.ranges import RangeBuffers, ReadsPlaces, open_places
from pipeline.reader import Sample, read_shard, source_of
from pipeline.shards import Shard, ShardKind
from tests.pipeline.tars import RULES, read, tar_bytes, tar_shard, three_samples

pytestmark = pytest.mark.usefixtures("hurried")

RANGE = 4096
CONTENT = random.Random(0).randbytes(10 * RANGE + 100)


@pytest.fixture(scope="module")
def running(s3_server: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server, delay_seconds=0.2, stall_seconds=30) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultProxy, bucket: str) -> FaultProxy:
    """What the reader takes for S3; objects are put there behind its back."""
    put(bucket, CONTENT)
    running.reset()
    return running


def put(bucket: str, content: bytes) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a.tar", Body=content)


def through(proxy: FaultProxy, *, is_patient: bool = True) -> dict[str, Any]:
    """Options of a client of the proxy; an impatient one asks once, and not for long."""
    options: dict[str, Any] = {"client_kwargs": {"endpoint_url": proxy.url}}
    if not is_patient:
        retries = {"total_max_attempts": 1}
        options["config_kwargs"] = {"connect_timeout": 2, "read_timeout": 0.5, "retries": retries}
    return options


def shard(bucket: str) -> Shard:
    return Shard(name="a", url=f"s3://{bucket}/a.tar", kind=ShardKind.tar)


def opened(
    proxy: FaultProxy, bucket: str, buffers: RangeBuffers, *, is_patient: bool = True
) -> ReadsPlaces:
    one, options = shard(bucket), through(proxy, is_patient=is_patient)
    source = source_of(one, options)
    filesystem, path = open_filesystem(one.url, options)
    return open_places("a", filesystem, path, source.size_bytes, source.version, buffers)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_any_walk_through_an_object_gives_its_bytes(proxy: FaultProxy, bucket: str) -> None:
    dice = random.Random(1)
    for _ in range(8):
        with closing(opened(proxy, bucket, RangeBuffers(3 * RANGE, RANGE))) as file:
            at = 0
            while at <= len(CONTENT):
                size = dice.choice([0, 1, 512, RANGE, 3 * RANGE])
                assert file.read(at, size) == CONTENT[at : at + size]
                at += dice.choice([0, size, size + 1, 5 * RANGE])


def test_an_object_costs_one_request_per_range(proxy: FaultProxy, bucket: str) -> None:
    with closing(opened(proxy, bucket, RangeBuffers(4 * RANGE, RANGE))) as file:
        found = b"".join(file.read(at, 512) for at in range(0, len(CONTENT), 512))
    assert found == CONTENT
    assert proxy.requests == {"HEAD": 1, "GET": ceil(len(CONTENT) / RANGE)}


def test_a_member_that_is_passed_over_is_not_fetched(proxy: FaultProxy, bucket: str) -> None:
    members = [("a.mp4", b"1"), ("a.npy", bytes(50 * RANGE)), ("b.mp4", b"2")]
    members += [("c.mp4", bytes(RULES.video_bytes + 1)), ("d.mp4", b"4")]
    put(bucket, tar_bytes(members))
    samples, end = read(
        shard(bucket), options=through(proxy), buffers=RangeBuffers(4 * RANGE, RANGE)
    )
    assert [s.video for s in samples] == [b"1", b"2", b"", b"4"]
    assert end.cut is None
    assert proxy.requests["GET"] <= 3 * 5, "what was on its way already, three times"


def test_a_resume_starts_where_it_must(proxy: FaultProxy, bucket: str) -> None:
    content = tar_bytes([*three_samples(), ("z.mp4", bytes(40_000))])
    put(bucket, content)
    buffers = RangeBuffers(4 * RANGE, RANGE)
    options = through(proxy)
    whole, _ = read(shard(bucket), options=options, buffers=buffers)
    before, start = proxy.requests["GET"], whole[3].start_offset
    rest, _ = read(shard(bucket), options=options, start_offset=start, buffers=buffers)
    assert rest == whole[3:]
    assert proxy.requests["GET"] - before == ceil((len(content) - start) / RANGE)


def test_memory_is_shared_evenly_and_never_refused_to_who_has_none() -> None:
    buffers = RangeBuffers(4 * RANGE, RANGE)
    for _ in range(2):
        buffers.join()
    mine = [buffers.take(held) for held in range(4)]
    assert [one is not None for one in mine] == [True, True, False, False]
    others = [buffers.take(held) for held in range(2)]
    assert None not in others
    assert buffers.take(1) is None, "all of the limit is taken"
    assert buffers.take(0) is not None, "the range that a reader waits for"
    buffers.leave()
    assert mine[0] is not None
    buffers.give_back(mine[0])
    assert buffers.take(1) is None, "still over the limit"
    buffers.give_back(mine[1])  # type: ignore[arg-type]
    assert buffers.take(1) is mine[1], "memory is used again"


def test_shards_that_are_open_at_once_stay_within_the_bound(proxy: FaultProxy, bucket: str) -> None:
    buffers, most = RangeBuffers(4 * RANGE, RANGE), 0
    files = [opened(proxy, bucket, buffers) for _ in range(3)]
    for at in range(0, len(CONTENT), 1024):
        for file in files:
            assert file.read(at, 1024) == CONTENT[at : at + 1024]
            most = max(most, buffers.num_taken)
    for file in files:
        file.close()
    assert most <= 4 + 3
    assert eventually(lambda: buffers.num_taken == 0)


def test_a_shard_that_is_left_early_gives_its_memory_back(proxy: FaultProxy, bucket: str) -> None:
    put(bucket, tar_bytes([("a.mp4", b"1"), ("b.mp4", bytes(90_000))]))
    buffers = RangeBuffers(8 * RANGE, RANGE)
    proxy.set_rates({Fault.delay: 1.0})
    samples = read_shard(shard(bucket), rules=RULES, options=through(proxy), buffers=buffers)
    began = time.monotonic()
    first = next(samples)
    samples.close()
    assert isinstance(first, Sample)
    assert buffers.num_taken <= 8
    assert eventually(lambda: buffers.num_taken == 0)
    assert time.monotonic() - began < 5
    with closing(opened(proxy, bucket, buffers)) as file:
        assert len(file.read(0, 8 * RANGE)) == 8 * RANGE, "nobody writes to memory given back"


@pytest.mark.parametrize(
    "fault", [Fault.cut, Fault.stall, Fault.slow_down, Fault.internal_error, Fault.drop]
)
def test_a_range_that_fails_is_asked_for_again(
    proxy: FaultProxy, bucket: str, fault: Fault
) -> None:
    with closing(opened(proxy, bucket, RangeBuffers(4 * RANGE, RANGE), is_patient=False)) as file:
        proxy.force(fault, fault)
        assert file.read(0, len(CONTENT)) == CONTENT
    assert proxy.faults == {fault: 2}


def test_ranges_that_always_fail_are_a_storage_error_at_their_place(
    proxy: FaultProxy, bucket: str
) -> None:
    with closing(opened(proxy, bucket, RangeBuffers(RANGE, RANGE), is_patient=False)) as file:
        assert file.read(0, RANGE) == CONTENT[:RANGE]
        proxy.set_rates({Fault.cut: 1.0})
        with pytest.raises(StorageError, match="a: "):
            file.read(RANGE, 100)
    assert proxy.faults[Fault.cut] == 4


def test_many_faults_at_once_do_not_mix_up_bytes(
    proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "RETRY_SECONDS", (0.01,) * 12)
    rates = {Fault.cut: 0.1, Fault.slow_down: 0.1, Fault.drop: 0.1, Fault.delay: 0.1}
    proxy.set_rates(rates)
    buffers, results = RangeBuffers(4 * RANGE, RANGE), []

    def read_all() -> None:
        with closing(opened(proxy, bucket, buffers, is_patient=False)) as file:
            results.append(b"".join(file.read(at, 777) for at in range(0, len(CONTENT), 777)))

    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [CONTENT] * 3
    assert sum(proxy.faults.values()) > 3


@pytest.mark.parametrize("new", [b"x" * len(CONTENT), CONTENT[:5000]], ids=["other", "shorter"])
def test_an_object_that_changes_between_ranges_is_a_storage_error(
    proxy: FaultProxy, bucket: str, new: bytes
) -> None:
    with closing(opened(proxy, bucket, RangeBuffers(RANGE, RANGE))) as file:
        assert file.read(0, 100) == CONTENT[:100]
        put(bucket, new)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read(2 * RANGE, 100)


def test_an_object_that_goes_away_is_a_storage_error(proxy: FaultProxy, bucket: str) -> None:
    with closing(opened(proxy, bucket, RangeBuffers(RANGE, RANGE))) as file:
        boto3.client("s3").delete_object(Bucket=bucket, Key="a.tar")
        with pytest.raises(StorageError, match="not there any more"):
            file.read(0, 100)


def test_a_local_file_that_changes_while_it_is_read_is_a_storage_error(tmp_path: Path) -> None:
    one = tar_shard(tmp_path / "a.tar", tar_bytes(three_samples()))
    samples = read_shard(one, rules=RULES, options={})
    next(samples)
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(StorageError, match="changed while it was read"):
        list(samples)
