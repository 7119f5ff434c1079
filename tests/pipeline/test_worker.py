"""A whole worker with real decoder children; only the model is replaced by a quick stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.encode import EncoderSpec
from pipeline.errors import RunError, ShardError, WorkerLost
from pipeline.numerics import check_numerics
from pipeline.reader import Source
from pipeline.receipts import Receipt
from pipeline.records import CanaryMode, VideoLimits
from pipeline.segments import CommitRules, ShardTask
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.worker import Worker
from pipeline.worker_spec import WorkerSpec
from tests.pipeline.fakes import FakeEncoder, token_format
from tests.pipeline.media import SIZE, encode, plan_of
from tests.pipeline.tars import RULES, Member, tar_bytes, tar_shard

VIDEO = encode(range(31))  # a second and a frame: 2 clips of 4 frames at 8 fps
SHORT = encode(range(3))
LONG = encode(range(180))


def spec(out: Path, **changes: Any) -> WorkerSpec:
    commit = {"max_clips": 1000, "max_seconds": 1e6, "row_group_rows": 4}
    fields: dict[str, Any] = {
        "encoder": EncoderSpec(
            tokenizer=None,  # type: ignore[arg-type] # the stand-in needs none
            checkpoint=None,
            seed=0,
            precision="fp32",
            device="cpu",
            threads=1,
            batch_clips=2,
            clip_frames=4,
            buckets=((SIZE, SIZE),),
            token_format=token_format(),
        ),
        "plan": plan_of(8.0),
        "limits": VideoLimits(),
        "read_rules": RULES,
        "read_ahead_bytes": 1 << 20,
        "range_bytes": 1 << 16,
        "decoders": 2,
        "commit_rules": CommitRules(
            **commit | {"max_quarantine_bytes": 0} | changes.pop("commit", {})
        ),
        "output_root": str(out),
        "output_options": {},
        "input_options": {},
        "strict_numerics": False,
        "canary": CanaryMode.off,
    }
    return WorkerSpec(**fields | changes)


Run = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Run]:
    """Start workers on one OUT; they are closed at the end."""
    workers: list[Worker] = []

    def start(encoder: FakeEncoder | None = None, **changes: Any) -> Worker:
        workers.append(Worker(spec(tmp_path / "out", **changes), encoder or FakeEncoder()))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def shard_of(tmp_path: Path, *videos: bytes, name: str = "a") -> Shard:
    members: list[Member] = [(f"v{n}.mp4", content) for n, content in enumerate(videos)]
    return tar_shard(tmp_path / f"{name}.tar", tar_bytes(members))


def task(shard: Shard, source: Source | None = None) -> ShardTask:
    return ShardTask(shard=shard, source=source)


def rows(worker: Worker, receipts: list[Receipt]) -> list[dict[str, Any]]:
    parts = [worker.storage.path(f"parts/{one.part}") for one in receipts if one.part]
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_rows_keep_the_order_of_the_shard_whatever_order_videos_finish_in(
    tmp_path: Path, start: Run
) -> None:
    worker = start()
    shard = shard_of(tmp_path, LONG, VIDEO, SHORT, VIDEO, b"no video", VIDEO)
    receipts = worker.run_shard(task(shard))
    found = rows(worker, receipts)
    assert [(row["key"], row["clip_index"]) for row in found] == [
        *(("v0", index) for index in range(12)),
        *((key, index) for key in ("v1", "v3", "v5") for index in range(2)),
    ]
    (receipt,) = receipts
    assert receipt.final
    assert [one["key"] for one in receipt.quarantined] == ["v4"]
    assert sum(receipt.filtered.values()) == 1


def test_tokens_do_not_depend_on_what_else_is_in_the_batch(tmp_path: Path, start: Run) -> None:
    worker = start()
    alone = rows(worker, worker.run_shard(task(shard_of(tmp_path, LONG, name="alone"))))
    mixed = shard_of(tmp_path, VIDEO, LONG, VIDEO, name="mixed")
    among = [row for row in rows(worker, worker.run_shard(task(mixed))) if row["key"] == "v1"]
    assert [row["tokens"] for row in among] == [row["tokens"] for row in alone]
    assert len({row["tokens"] for row in alone}) == len(alone), "clips differ"


def test_several_shards_are_open_at_once(tmp_path: Path, start: Run) -> None:
    worker = start()
    shards = [shard_of(tmp_path, *[VIDEO] * 3, name=f"s{n}") for n in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for receipts in threads.map(lambda one: worker.run_shard(task(one)), shards):
            assert [one.rows for one in receipts] == [6]


def test_a_slow_shard_commits_when_its_time_is_up(tmp_path: Path, start: Run) -> None:
    worker = start(FakeEncoder(seconds=0.02), commit={"max_seconds": 0.3})
    receipts = worker.run_shard(task(shard_of(tmp_path, *[LONG] * 8)))
    assert len(receipts) >= 2
    assert sum(one.rows for one in receipts) == 8 * 12


def test_a_busy_neighbour_does_not_keep_a_shard_from_committing(tmp_path: Path, start: Run) -> None:
    worker = start(commit={"max_seconds": 0.2}, decoders=1)
    stop = threading.Event()

    def busy() -> None:  # notifies as an encoder with many small batches would
        while not stop.wait(0.001):
            with worker._flow.changed:
                worker._flow.changed.notify_all()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        receipts = worker.run_shard(task(shard_of(tmp_path, VIDEO, *[LONG] * 12)))
    finally:
        stop.set()
        thread.join()
    assert len(receipts) >= 2


def test_a_changed_source_is_refused(tmp_path: Path, start: Run) -> None:
    worker = start()
    shard = shard_of(tmp_path, VIDEO)
    with pytest.raises(ShardError, match="has changed since its first segments were made"):
        worker.run_shard(task(shard, Source(size_bytes=1, version="old")))


def test_a_shard_that_is_not_there_fails_alone(tmp_path: Path, start: Run) -> None:
    worker = start()
    gone = shard_of(tmp_path, VIDEO, name="gone")
    Path(gone.url).unlink()
    with pytest.raises(ShardError, match="is not there"):
        worker.run_shard(task(gone))
    assert worker.run_shard(task(shard_of(tmp_path, VIDEO)))[-1].final


def test_an_encoder_that_fails_ends_the_attempt_not_the_videos(tmp_path: Path, start: Run) -> None:
    worker = start(FakeEncoder(error=RuntimeError("out of memory")))
    with pytest.raises(WorkerLost, match="out of memory"):
        worker.run_shard(task(shard_of(tmp_path, VIDEO)))
    assert worker.storage.entries("receipts") == {}


def test_an_encoder_that_can_never_work_stops_the_run(tmp_path: Path, start: Run) -> None:
    worker = start(FakeEncoder(error=RunError("NaN")))
    with pytest.raises(RunError, match="NaN"):
        worker.run_shard(task(shard_of(tmp_path, VIDEO)))


def test_closing_a_worker_ends_its_open_shards(tmp_path: Path, start: Run) -> None:
    worker = start(FakeEncoder(seconds=0.2))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(worker.run_shard, task(shard_of(tmp_path, *[LONG] * 5)))
        time.sleep(0.5)
        closer = threading.Thread(target=worker.close)
        closer.start()
        with pytest.raises(WorkerLost):
            running.result(timeout=20)
        closer.join(20)
    assert not closer.is_alive()


def test_counters_say_what_was_done(tmp_path: Path, start: Run) -> None:
    worker = start()
    shard = shard_of(tmp_path, VIDEO, SHORT, b"no video")
    worker.run_shard(task(shard))
    counted = worker.report().counters
    assert (counted["videos"], counted["clips"], counted["quarantined"]) == (3, 2, 1)
    assert (counted["filtered"], counted["segments"]) == (1, 1)
    assert counted["decode_cpu_seconds"] > 0


def test_another_numeric_environment_is_refused_when_strict(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    check_numerics(storage, {"device": "A", "torch": "2"}, strict=True)
    check_numerics(storage, {"device": "A", "torch": "2"}, strict=True)
    with pytest.raises(RunError, match="device 'A' -> 'B'; refused by numerics=strict"):
        check_numerics(storage, {"device": "B", "torch": "2"}, strict=True)


@pytest.mark.parametrize("content", [b'{"device": "A", "tor', b"[]", b"[" * 100_000, b"\xff"])
def test_a_numeric_environment_that_is_none_is_said(content: bytes, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("numerics.json", content)
    with pytest.raises(RunError, match=r"/numerics\.json cannot be trusted: "):
        check_numerics(storage, {"device": "A"}, strict=False)


def test_another_numeric_environment_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path / "out"))
    check_numerics(storage, {"device": "A"}, strict=False)
    check_numerics(storage, {"device": "B"}, strict=False)
    assert "another numeric environment: device 'A' -> 'B'" in caplog.text
