"""Attempts that meet: several processes at once, one that was suspended, answers that were lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import StorageError
from pipeline.ledger import Ledger, read_chain, task_of
from pipeline.receipts import parse_name
from pipeline.storage import Storage
from pipeline.verify import main as verify
from tests.pipeline import racing, runs
from tests.pipeline.fakes import make_out, segment_writer, shard, video
from tests.pipeline.receipts import all_receipts

Process = subprocess.Popen[str]


@contextlib.contextmanager
def processes(out: str, *arguments: tuple[str, ...]) -> Iterator[list[Process]]:
    """Attempts in processes of their own, ready to begin."""
    command = [sys.executable, "-W", "error", "-m", "tests.pipeline.racing", out]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [subprocess.Popen([*command, *more], text=True, **pipes) for more in arguments]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def begin(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: Process) -> None:
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err


def state_of(process: Process) -> str:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0]


def assert_right(storage: Storage) -> None:
    """Every clip once, a receipt a segment, and no part that nobody names."""
    assert set(runs.rows(storage.root)) == racing.EXPECTED
    receipts = all_receipts(storage)
    assert len({(one.shard, one.segment) for one in receipts}) == len(receipts)
    assert set(storage.entries("parts")) == {one.part for one in receipts if one.part}
    assert {name for name in storage.entries("receipts") if parse_name(name) is None} == set()
    assert verify([storage.root]) == 0


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An OUT on either storage."""
    root = str(tmp_path / "out")
    if request.param == "s3":
        root = f"s3://{request.getfixturevalue('bucket')}/out"
    return make_out(root, shards=0).root


def test_processes_that_cut_elsewhere_commit_every_clip_once(out: str) -> None:
    with processes(out, ("2",), ("5",)) as racers:
        for racer in racers:
            begin(racer)
        for racer in racers:
            end(racer)
    assert_right(Storage(out))


def test_an_attempt_that_was_suspended_finds_its_shards_done(tmp_path: Path) -> None:
    out = make_out(tmp_path / "out", shards=0).root
    with processes(out, ("5", "--stop-before", "2")) as (zombie,):
        begin(zombie)
        deadline = time.monotonic() + 60
        while state_of(zombie) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(Storage(out).entries("parts")) == 2, "its part is there, not its receipt"
        racing.tokenise_all(out, 2)
        before = {one.name: one for one in all_receipts(Storage(out))}
        os.kill(zombie.pid, signal.SIGCONT)
        end(zombie)
    assert {one.name: one for one in all_receipts(Storage(out))} == before
    assert_right(Storage(out))


def test_an_attempt_whose_commit_was_carried_out_and_not_answered_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make_out(tmp_path / "out", shards=0)
    put_if_absent = storage.put_if_absent

    def lose_answer(name: str, content: bytes) -> bool:
        put_if_absent(name, content)
        raise StorageError(name, "the line went dead")

    monkeypatch.setattr(storage, "put_if_absent", lose_answer)
    writer = segment_writer(storage, max_clips=2)
    writer.add(video(0))
    with pytest.raises(StorageError, match="the line went dead"):
        writer.add(video(1))
    monkeypatch.undo()
    ledger = Ledger.open(storage)
    task = task_of(shard(), ledger.state("s"))
    assert task is not None
    assert (task.start_offset, task.next_segment) == (20, 1)
    second = segment_writer(storage, task=task)
    second.add(video(2))
    second.finish(30, None)
    assert {row["key"] for row in runs.rows(storage.root).values()} == {
        "video_0", "video_1", "video_2",
    }  # fmt: skip
    assert [one.rows for one in read_chain(storage, "s")] == [2, 1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_two_drivers_at_once_give_what_one_gives(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pattern = runs.write_shards(tmp_path / "shards", num_shards=4, num_videos=5)
    assert runs.run_inline(pattern, tmp_path / "oracle") == 0
    out = str(tmp_path / "out")
    if place == "s3":
        out = f"s3://{request.getfixturevalue('bucket')}/out"
    arguments = ("+dataset=tars", f"dataset.shards={pattern}", *runs.TINY, "cluster=inline")
    commands = [
        runs.start(*arguments, f"output.root={out}", f"commit.max_clips={clips}", cwd=tmp_path)
        for clips in (2, 3)
    ]
    for command in commands:
        _, err = command.process.communicate(timeout=300)
        assert command.process.returncode == 0, err
        assert command.leftovers() == []
    assert runs.tokens(out) == runs.tokens(tmp_path / "oracle")
    assert verify([out]) == 0
    files, root = (
        fsspec.core.url_to_fs(out, use_listings_cache=False)
        if "://" in out
        else (fsspec.core.url_to_fs(out))
    )
    parts = {path.rsplit("/", 1)[1] for path in files.glob(f"{root}/parts/*.parquet")}
    assert parts == {receipt["part"] for receipt in runs.receipts(out) if receipt["part"]}
