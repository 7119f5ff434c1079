"""A command that goes through every step of the commit protocol, without model or decoders.

Shard a is committed alone; in shard b a faster attempt takes the first segment, cut elsewhere.
Then the quarantined videos are tried again: one retry of two at once saves each.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging

import fsspec

from pipeline import verify
from pipeline.amendments import AmendmentWriter
from pipeline.heartbeat import write_heartbeat
from pipeline.ledger import Ledger, task_of
from pipeline.records import Retry
from pipeline.run_record import check_fingerprint, write_run_record
from pipeline.segments import OpenVideo, ShardTask
from pipeline.status import main as status
from pipeline.storage import Storage
from pipeline.worker import check_numerics
from tests.pipeline import runs
from tests.pipeline.fakes import MATERIAL, RULES, committer, segment_writer, shard, video

SHARDS = "ab"
VIDEOS = 5


def expected() -> set[str]:
    """All clips."""
    return {
        f"{name}/video_{number}@8fps#{index}"
        for name in SHARDS
        for number, clips in ((0, 1), (1, 1), (2, 2), (3, 1), (4, 1))
        for index in range(clips)
    }


logging.getLogger("pipeline.committer").setLevel(logging.ERROR)


def videos(begin: int) -> list[OpenVideo]:
    """What is left of a shard; its second video is quarantined, its third has two clips."""
    made = [
        video(0),
        video(1, failure="crash", original=b"original"),
        video(2, clips=2),
        video(3),
        video(4),
    ]
    return made[begin:]


def command(out: str) -> None:
    """What a run does to storage."""
    storage = Storage(out)
    storage.check_safe_commits()
    check_fingerprint(storage, MATERIAL)
    ledger = Ledger.open(storage)
    write_run_record(
        storage, material=MATERIAL, config={}, random_weights=False, batch_clips=1, device="cpu"
    )
    check_numerics(storage, {"device": "fake"}, strict=True)
    write_heartbeat(storage, "driver", {"running": True, "num_shards": len(SHARDS)})
    for name in SHARDS:
        if not ledger.state(name).is_final:
            tokenise(storage, ledger, name)
        ledger.publish(storage)
    for name in SHARDS:
        if (task := task_of(shard(name), ledger.state(name), Retry.quarantined)) is not None:
            amend(storage, ledger, task)
    ledger.publish(storage)
    storage.put("failures/b-attempt.json", json.dumps({"class": "WorkerLost"}).encode())
    write_heartbeat(storage, "driver", {"running": False, "num_shards": len(SHARDS)})
    clean(out)


def tokenise(storage: Storage, ledger: Ledger, name: str) -> None:
    """One attempt at what is left of a shard."""
    task = task_of(shard(name), ledger.state(name))
    writer = segment_writer(storage, task=task, max_clips=3)
    rival = segment_writer(storage, task=task, max_clips=2)
    left = videos(task.start_offset // 10)
    for one in left[:2]:
        writer.add(one)
    if name == "b":
        for one in videos(task.start_offset // 10)[:3]:
            rival.add(one)
    for one in left[2:]:
        writer.add(one)
    writer.finish(VIDEOS * 10, None)
    ledger.add(writer.receipts)


def amend(storage: Storage, ledger: Ledger, task: ShardTask) -> None:
    """Two retries of a shard at once; in shard b the second to begin is the first to commit."""
    first, second = (
        AmendmentWriter(task, committer(storage, task), storage, RULES) for _ in range(2)
    )
    writers = (first, second) if task.shard.name == "a" else (second, first)
    for writer in writers:
        if writer.wants(video(1).sample):
            writer.add(video(1))
    for writer in writers:
        writer.finish(VIDEOS * 10, None)
        ledger.add(writer.receipts)


def clean(out: str) -> str:
    """What ``verify --clean`` says when everything is old enough."""
    hours, verify.ORPHAN_HOURS = verify.ORPHAN_HOURS, -1.0
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            code = verify.main([out, "--clean"])
    finally:
        verify.ORPHAN_HOURS = hours
    return "" if code == 0 else said.getvalue()


def receipts(out: str) -> dict[str, bytes]:
    """What is committed."""
    files, root = fsspec.core.url_to_fs(out, **runs._uncached(out))
    return {
        path.rsplit("/", 1)[1]: files.cat_file(path)
        for path in files.glob(f"{root}/receipts/*.json")
    }


def problem(out: str, kept: dict[str, bytes]) -> str:
    """What is wrong with an OUT that should be finished; empty when nothing is."""
    found = set(runs.rows(out))
    if found != expected():
        return f"lost {sorted(expected() - found)}, made up {sorted(found - expected())}"
    if said := clean(out):
        return said
    now = receipts(out)
    if {name: now.get(name) for name in kept} != kept:
        return "a receipt was changed"
    if status([out]) != 0:
        return "status: not finished"
    storage = Storage(out)
    ledger = Ledger.open(storage)
    if ledger.counts().clips != len(expected()):
        return f"an orphan is counted: {ledger.counts().clips} clips"
    if ledger.num_unpublished:
        return "the manifest is not that of all receipts"
    parts = {line.part for line in ledger.lines() if line.part}
    if set(storage.entries("parts")) != parts:
        return "orphans are left after cleaning"
    if len(storage.entries("quarantine")) != len(SHARDS):
        return "a quarantined original is lost"
    return ""


def remove(out: str) -> None:
    """An OUT that nobody needs any more."""
    files, root = fsspec.core.url_to_fs(out)
    files.rm(root, recursive=True)
