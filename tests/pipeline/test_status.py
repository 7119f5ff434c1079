"""``pipeline.status``: how far an OUT is, in exit codes and words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger import Ledger
from pipeline.receipts import commit, list_receipts
from pipeline.status import Looks, main
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out, segment_writer, video, write_shard
from tests.pipeline.receipts import receipt

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return make_out(tmp_path / "out", shards=2, videos=3)


def beat(storage: Storage, *, age_seconds: float = 0.0, **changes: Any) -> None:
    record = {"running": True, "num_shards": 2, "failed_shards": {}, "elapsed_seconds": 75.0}
    storage.put("progress/d.json", json.dumps(record | changes).encode())
    then = time.time() - age_seconds
    os.utime(storage.path("progress/d.json"), (then, then))


def status(storage: Storage, capsys: Printed) -> tuple[int, str]:
    code = main([storage.root])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def test_a_finished_out_is_said_to_be_finished(storage: Storage, capsys: Printed) -> None:
    beat(storage, running=False)
    code, out = status(storage, capsys)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{storage.root}: finished"
    assert "shards 2 of 2 final, 0 begun" in lines
    assert lines[3].startswith("6 videos gave 6 clips in 4 segments, ")
    assert lines[-1] == "nobody is working on it now"


def test_shards_that_nobody_has_begun_count(storage: Storage, capsys: Printed) -> None:
    beat(storage, num_shards=5)
    code, out = status(storage, capsys)
    assert code == 1
    assert f"{storage.root}: not finished" in out
    assert "shards 2 of 5 final, 0 begun" in out


def test_a_begun_shard_is_not_finished(storage: Storage, capsys: Printed) -> None:
    writer = segment_writer(storage, max_clips=1)
    writer.add(video(0))
    code, out = status(storage, capsys)
    assert code == 1
    assert "shards 2 of 3 final, 1 begun" in out


def test_a_new_out_is_not_finished(tmp_path: Path, capsys: Printed) -> None:
    code, out = status(make_out(tmp_path / "new", shards=0), capsys)
    assert code == 1
    assert "shards 0 of 0 final" in out


def test_a_cut_shard_is_named_and_not_finished(storage: Storage, capsys: Printed) -> None:
    commit(storage, receipt(final=True, complete=False, cut_reason="byte 7: cut", end=7))
    code, out = status(storage, capsys)
    assert code == 1
    assert "cut: s: byte 7: cut" in out


def test_a_failed_shard_is_named_and_not_finished(storage: Storage, capsys: Printed) -> None:
    beat(storage, running=False, failed_shards={"shard7": "storage is away"})
    code, out = status(storage, capsys)
    assert code == 1
    assert "failed: shard7: storage is away" in out


def test_reasons_are_counted(storage: Storage, capsys: Printed) -> None:
    bad = [video(number, failure="crash") for number in range(2)]
    write_shard(storage, "bad", [*bad, video(2, failure="decode"), video(3, clips=0)])
    _, out = status(storage, capsys)
    assert "filtered 1 (too_short 1), quarantined 3 (crash 2, decode 1)" in out


def test_a_running_driver_is_told_from_a_killed_one(storage: Storage, capsys: Printed) -> None:
    beat(storage)
    assert "1 running now, for 1:15" in status(storage, capsys)[1]
    beat(storage, age_seconds=600)
    assert "nobody is working on it now" in status(storage, capsys)[1]


def test_mixed_numeric_environments_are_said(storage: Storage, capsys: Printed) -> None:
    commit(storage, receipt(final=True, numerics={"device": "other"}))
    assert "2 numeric environments are mixed" in status(storage, capsys)[1]


def test_random_weights_are_said(storage: Storage, capsys: Printed) -> None:
    record = json.loads(storage.read("run.json"))
    storage.put("run.json", json.dumps(record | {"random_weights": True}).encode())
    assert "RANDOM weights" in status(storage, capsys)[1]


def test_json_holds_the_same_facts(storage: Storage, capsys: Printed) -> None:
    assert main([storage.root, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["finished"] is True
    assert (facts["clips"], facts["videos"], facts["final_shards"]) == (6, 6, 2)


def test_a_place_that_is_no_out_has_exit_code_two(tmp_path: Path, capsys: Printed) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run.json there" in capsys.readouterr().err


def test_receipts_that_cannot_be_trusted_have_exit_code_two(
    storage: Storage, capsys: Printed
) -> None:
    storage.put("receipts/shard0.00000.json", b"{}")
    assert main([storage.root]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: receipt shard0.00000.json cannot be trusted")
    assert captured.out == ""


def test_a_heartbeat_that_no_driver_wrote_is_one_line(storage: Storage, capsys: Printed) -> None:
    storage.put("progress/other.json", b"[1")
    assert main([storage.root]) == 2
    captured = capsys.readouterr()
    assert "progress/other.json is no heartbeat" in captured.err
    assert captured.out == ""


def test_it_reads_the_manifest_and_what_came_after(storage: Storage, capsys: Printed) -> None:
    Ledger.open(storage).publish(storage)
    write_shard(storage, "later", [video(0)])
    assert "shards 3 of 3 final" in status(storage, capsys)[1]


def test_it_works_on_s3(bucket: str, capsys: Printed) -> None:
    storage = make_out_on(f"s3://{bucket}/out")
    assert "not finished" in status(storage, capsys)[1]
    commit(storage, receipt(final=True))
    assert status(storage, capsys)[0] == 0


def make_out_on(root: str) -> Storage:
    return make_out(root, shards=0)


def test_a_second_look_reads_only_what_is_new(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(storage)
    looks = Looks(storage)
    assert looks.now()[0]["clips"] == 6
    write_shard(storage, "third", [video(7), video(8)])
    read: list[str] = []
    read_many = storage.read_many

    def recorded(names: Sequence[str], **options: Any) -> dict[str, bytes]:
        read.extend(name for name in names if name.startswith("receipts/"))
        return read_many(names, **options)

    monkeypatch.setattr(storage, "read_many", recorded)
    facts, _ = looks.now()
    assert (facts["clips"], facts["final_shards"]) == (8, 3)
    assert all("third" in name for name in read)
    assert read


def test_receipts_that_were_taken_away_are_no_longer_counted(storage: Storage) -> None:
    beat(storage)
    looks = Looks(storage)
    assert looks.now()[0]["final_shards"] == 2
    first = list_receipts(storage)[0].shard
    for name in [name for name in list_receipts(storage) if name.shard == first]:
        Path(storage.path(f"receipts/{name}")).unlink()
    assert looks.now()[0]["final_shards"] == 1


def test_a_driver_that_began_since_may_have_made_receipts_anew(storage: Storage) -> None:
    beat(storage)
    looks = Looks(storage)
    before = looks.now()[0]
    shard = list_receipts(storage)[0].shard
    for name in [name for name in list_receipts(storage) if name.shard == shard]:
        Path(storage.path(f"receipts/{name}")).unlink()
    write_shard(storage, shard, [video(number) for number in range(5)])
    storage.put("progress/e.json", storage.read("progress/d.json"))
    assert looks.now()[0]["clips"] == before["clips"] + 2
