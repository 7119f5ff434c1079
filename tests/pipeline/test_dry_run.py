"""A dry run says what the run then does, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import FingerprintMismatch
from tests.pipeline import runs


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return runs.write_shards(tmp_path / "in", num_shards=3, num_videos=2)


def dry(shards: str, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Lines of the dry run behind the plan; OUT is as before."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert runs.run_inline(shards, out, "dry_run=true", *words) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("fingerprint "))
    return lines[start:]


def test_of_a_new_out_everything_would_begin(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint, begin, end = dry(shards, tmp_path / "out", capsys)
    assert fingerprint.endswith(" (OUT is new)")
    assert begin.startswith("would begin 3 shards: 00000-")
    assert begin.endswith(" MB)")
    assert end == "nothing was written"
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_is_the_one_that_the_run_records(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = dry(shards, out, capsys)[0].split()[1]
    assert runs.run_inline(shards, out) == 0
    assert f'"fingerprint": "{told}"' in (out / "run.json").read_text()
    lines = dry(shards, out, capsys)
    assert lines[0] == f"fingerprint {told} (that of OUT)"
    assert lines[1].startswith("would skip 3 shards: ")
    assert lines[1].endswith(" (final, 6 videos, 12 clips)")
    assert lines[2:] == ["nothing was written"]


def test_what_is_skipped_goes_on_and_begins_is_told_apart(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert runs.run_inline(shards, out, "commit.max_clips=1") == 0
    for name in (out / "receipts").glob("00001-*"):
        if not name.name.endswith(".00000.json"):
            name.unlink()
    for name in (out / "receipts").glob("00002-*"):
        name.unlink()
    for name in (out / "manifests").iterdir():
        name.unlink()
    _, skip, go_on, begin, _ = dry(shards, out, capsys, "commit.max_clips=1")
    assert skip.startswith("would skip 1 shard: 00000-")
    assert go_on.startswith("would go on with 1 shard: 00001-")
    assert go_on.endswith(" (segment 1)")
    assert begin.startswith("would begin 1 shard: 00002-")


def test_another_configuration_is_refused_dry_as_well(shards: str, tmp_path: Path) -> None:
    assert runs.run_inline(shards, tmp_path / "out") == 0
    with pytest.raises(FingerprintMismatch, match=r"sampling\.fps"):
        runs.run_inline(shards, tmp_path / "out", "dry_run=true", "sampling.fps=[4]")


def test_many_shards_are_counted_and_a_few_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = runs.write_shards(tmp_path / "in", num_shards=10, num_videos=1)
    begin = dry(shards, tmp_path / "out", capsys)[1]
    assert begin.startswith("would begin 10 shards: 00000-")
    assert " and 2 more (" in begin
