"""``pipeline.verify``: every kind of damage is named, and cleaning never takes what is needed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageRefused
from pipeline.ledger import Ledger
from pipeline.packing import pack_indices
from pipeline.receipts import Receipt
from pipeline.storage import Storage
from pipeline.verify import ORPHAN_HOURS, main
from pipeline.writer import write_part
from tests.pipeline.fakes import indices_of, make_out, place_of_tokens, row, token_format
from tests.pipeline.receipts import all_receipts


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return make_out(tmp_path / "out", shards=2, videos=4)


Printed = pytest.CaptureFixture[str]


def verify(storage: Storage, capsys: Printed, *options: str) -> tuple[int, str]:
    code = main([storage.root, *options])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def problems(storage: Storage, capsys: Printed) -> list[str]:
    code, out = verify(storage, capsys)
    found = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert code == (1 if found else 0)
    return found


def flip(storage: Storage, name: str, at: int) -> None:
    content = bytearray(storage.read(name))
    content[at] ^= 1
    storage.put(name, bytes(content))


def rewrite(storage: Storage, receipt: Receipt, **changes: Any) -> None:
    """Replace a receipt by one with a right digest."""
    storage.put(f"receipts/{receipt.name}", replace(receipt, **changes).to_bytes())


def replace_part(storage: Storage, receipt: Receipt, rows: list[Any], tmp_path: Path) -> None:
    """Replace a segment by one that is sound but for its rows."""
    digest = write_part(tmp_path / "part", rows, token_format(), row_group_rows=2)
    storage.publish(tmp_path / "part", f"parts/{receipt.part}")
    rewrite(
        storage,
        receipt,
        rows=digest.rows,
        **digest.receipt_fields(),
    )


def test_a_sound_out_is_said_to_be_sound(storage: Storage, capsys: Printed) -> None:
    code, out = verify(storage, capsys)
    assert code == 0
    assert "sound: 6 receipts, 4 parts, 8 clips" in out


def test_a_missing_part_is_named(storage: Storage, capsys: Printed) -> None:
    part = all_receipts(storage)[0].part
    storage.delete(f"parts/{part}")
    (problem,) = problems(storage, capsys)
    assert f"{part} is missing" in problem


def test_a_flipped_byte_in_a_page_is_found(storage: Storage, capsys: Printed) -> None:
    part = str(all_receipts(storage)[0].part)
    flip(storage, f"parts/{part}", place_of_tokens(storage, part))
    (problem,) = problems(storage, capsys)
    assert "shard0.00000.json" in problem
    assert "row group 0" in problem


def test_a_flipped_byte_in_a_footer_is_found(storage: Storage, capsys: Printed) -> None:
    name = f"parts/{all_receipts(storage)[0].part}"
    flip(storage, name, len(storage.read(name)) - 50)
    (problem,) = problems(storage, capsys)
    assert "its footer is not the one that was committed" in problem


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_flipped_byte_in_a_receipt_is_found(
    storage: Storage, capsys: Printed, with_manifest: bool
) -> None:
    if with_manifest:
        Ledger.open(storage).publish(storage)
    name = "receipts/shard0.00000.json"
    flip(storage, name, storage.read(name).index(b'"rows": 2') + 8)
    (problem,) = problems(storage, capsys)
    assert "shard0.00000.json cannot be trusted" in problem


def test_a_missing_receipt_breaks_the_chain(storage: Storage, capsys: Printed) -> None:
    storage.delete("receipts/shard0.00000.json")
    (problem,) = problems(storage, capsys)
    assert "receipts of shard0 do not form a chain" in problem


def test_a_wrong_number_of_rows_is_found(storage: Storage, capsys: Printed) -> None:
    first = all_receipts(storage)[0]
    (group,) = first.row_groups
    rewrite(storage, first, rows=3, row_groups=(group._replace(rows=3),), shapes={"1,2,3": 3})
    (problem,) = problems(storage, capsys)
    assert "its row groups have [2] rows, its receipt says [3]" in problem


def test_a_row_group_of_another_digest_is_found(storage: Storage, capsys: Printed) -> None:
    first = all_receipts(storage)[0]
    (group,) = first.row_groups
    rewrite(storage, first, row_groups=(group._replace(sha256="0" * 64),))
    (problem,) = problems(storage, capsys)
    assert "row group 0: its bytes are not those that were committed" in problem


def test_a_row_group_that_ends_elsewhere_is_found(storage: Storage, capsys: Printed) -> None:
    first = all_receipts(storage)[0]
    (group,) = first.row_groups
    rewrite(storage, first, row_groups=(group._replace(end_offset=group.end_offset - 1),))
    (problem,) = problems(storage, capsys)
    assert "its footer is not the one that was committed" in problem


def test_wrong_shapes_are_found(storage: Storage, capsys: Printed) -> None:
    rewrite(storage, all_receipts(storage)[0], shapes={"1,2,3": 1, "1,3,2": 1})
    (problem,) = problems(storage, capsys)
    assert "clips by shape {'1,2,3': 2}, its receipt says" in problem


def test_rows_without_a_part_are_found(storage: Storage, capsys: Printed) -> None:
    last = all_receipts(storage)[2]
    assert last.part is None
    rewrite(storage, last, rows=1)
    assert "row_groups hold 0 rows, the part 1" in problems(storage, capsys)[0]


def test_a_clip_that_is_there_twice_is_found(
    storage: Storage, capsys: Printed, tmp_path: Path
) -> None:
    twice = [row(0, shard="shard0"), row(0, shard="shard0")]
    replace_part(storage, all_receipts(storage)[0], twice, tmp_path)
    (problem,) = problems(storage, capsys)
    assert "clip shard0/video_0@8fps#0 is also in shard0.00000.json" in problem


def test_a_clip_in_two_segments_is_found(storage: Storage, capsys: Printed, tmp_path: Path) -> None:
    rows = [row(0, shard="shard0"), row(5, shard="shard0")]
    replace_part(storage, all_receipts(storage)[1], rows, tmp_path)
    (problem,) = problems(storage, capsys)
    assert "shard0.00001.json: clip shard0/video_0@8fps#0 is also in shard0.00000.json" in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": pack_indices(indices_of(1) * 0 + 4096, "u16+u2")}, "outside [0, 4096)"),
        ({"token_shape": [1, 2, 2]}, "bytes of tokens for shape"),
        ({"shard": "other"}, "of shard other, its receipt of shard0"),
    ],
    ids=["index", "shape", "shard"],
)
def test_a_row_that_cannot_be_right_is_found(
    storage: Storage,
    capsys: Printed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    words: str,
) -> None:
    record = token_format(codebook_size=4096)
    monkeypatch.setattr("tests.pipeline.test_verify.token_format", lambda: record)
    good = {"shard": "shard0", "tokens": pack_indices(indices_of(1) % 4096, "u16+u2")}
    rows = [row(0, **good), row(1, **good | changes)]
    replace_part(storage, all_receipts(storage)[0], rows, tmp_path)
    (problem,) = problems(storage, capsys)
    assert words in problem


def test_rows_of_a_quarantined_video_are_found(storage: Storage, capsys: Printed) -> None:
    bad = [{"key": "video_1", "reason": "crash", "message": ""}]
    rewrite(storage, all_receipts(storage)[0], quarantined=bad)
    assert "its video is quarantined" in problems(storage, capsys)[0]


def test_a_segment_of_another_configuration_is_found(storage: Storage, capsys: Printed) -> None:
    rewrite(storage, all_receipts(storage)[0], fingerprint="0" * 64)
    assert "fingerprint 000000000000, OUT's is" in problems(storage, capsys)[0]


def test_a_changed_run_record_is_found(storage: Storage, capsys: Printed) -> None:
    record = json.loads(storage.read("run.json"))
    record["fingerprint_of"]["packing"] = "i32"
    storage.put("run.json", json.dumps(record).encode())
    assert "run.json cannot be trusted" in problems(storage, capsys)[0]


def test_a_place_that_is_no_out_has_exit_code_two(tmp_path: Path, capsys: Printed) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run.json there" in capsys.readouterr().err


def leave_orphans(storage: Storage) -> dict[str, Path]:
    """Parts and scratch folders that no receipt names, young and old."""
    made = {}
    for name, hours in (("young", ORPHAN_HOURS - 1), ("old", ORPHAN_HOURS + 1)):
        part, folder = (Path(storage.path(f"parts/{p}{name}")) for p in ("", ".tmp-"))
        part.write_bytes(b"x")
        folder.mkdir()
        (folder / "unfinished").write_bytes(b"x")
        then = time.time() - hours * 3600
        for path in (part, folder):
            os.utime(path, (then, then))
        made |= {name: part, f"{name} folder": folder}
    committed = Path(storage.path(f"parts/{all_receipts(storage)[0].part}"))
    os.utime(committed, (0, 0))
    return made | {"committed": committed}


def left(made: dict[str, Path]) -> set[str]:
    return {name for name, path in made.items() if path.exists()}


def test_orphans_are_counted_and_not_touched(storage: Storage, capsys: Printed) -> None:
    made = leave_orphans(storage)
    code, out = verify(storage, capsys)
    assert code == 0, "an orphan is no problem"
    assert "2 parts, 0 quarantine tars and" in out
    assert left(made) == set(made)


def test_clean_removes_old_orphans_only(storage: Storage, capsys: Printed) -> None:
    made = leave_orphans(storage)
    code, out = verify(storage, capsys, "--clean")
    assert code == 0
    assert "removed 1 files and 1 unfinished ones older than 24 h" in out
    assert left(made) == {"young", "young folder", "committed"}
    assert problems(storage, capsys) == []


def test_an_out_that_may_not_be_written_is_a_problem_in_one_line(
    storage: Storage, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = leave_orphans(storage)

    def refuse(self: Storage, name: str, content: bytes) -> None:
        raise StorageRefused(f"{self}: access denied")

    monkeypatch.setattr(Storage, "put", refuse)
    code, out = verify(storage, capsys, "--clean")
    assert code == 1
    assert out.splitlines()[-1] == f"problem: {storage}: access denied"
    assert left(made) == set(made)


def beat(storage: Storage, *, running: bool, age_seconds: float) -> None:
    storage.put("progress/driver.json", json.dumps({"running": running}).encode())
    then = time.time() - age_seconds
    os.utime(storage.path("progress/driver.json"), (then, then))


def test_clean_removes_nothing_while_a_driver_runs(storage: Storage, capsys: Printed) -> None:
    made = leave_orphans(storage)
    beat(storage, running=True, age_seconds=10)
    _, out = verify(storage, capsys, "--clean")
    assert "a driver is running here: nothing removed" in out
    assert left(made) == set(made)


@pytest.mark.parametrize(("running", "age_seconds"), [(False, 10), (True, 3600)])
def test_clean_goes_on_when_the_driver_ended_or_was_killed(
    storage: Storage, capsys: Printed, running: bool, age_seconds: float
) -> None:
    made = leave_orphans(storage)
    beat(storage, running=running, age_seconds=age_seconds)
    verify(storage, capsys, "--clean")
    assert "old" not in left(made)
