"""More runs into one OUT: what is added, what is refused, what is only warned about."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pipeline.dataset import TokenDataset
from pipeline.errors import FingerprintMismatch, RunError
from pipeline.status import main as status
from pipeline.verify import main as verify
from tests.pipeline import runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars of one video each."""
    runs.write_shards(tmp_path / "shards", num_videos=1)
    return tmp_path / "shards"


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    """The first of them, done."""
    assert runs.run_inline(folder / "00000.tar", tmp_path / "out") == 0
    return tmp_path / "out"


def test_another_list_of_shards_adds_to_what_is_there(folder: Path, out: Path) -> None:
    first = runs.rows(out)
    assert runs.run_inline(folder / "0000{1..2}.tar", out) == 0
    both = runs.rows(out)
    assert first.items() < both.items()
    assert {row["key"] for row in both.values()} == {"v000", "v001", "v002"}
    assert TokenDataset(str(out), batch_size=1).num_clips == len(both)


def test_a_longer_list_does_only_what_is_new(
    folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert runs.run_inline(folder / "*.tar", out) == 0
    assert "3 shards, 0.1 MB; 1 final, 2 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampling.fps=[4]", "sampling.fps: [8.0] there, [4.0] now"),
        ("tokenizer.ch=16", "tokenizer.ch: 8 there, 16 now"),
        ("tokenizer.seed=1", "checkpoint_digest: "),
        ("output.packing=plain", "packing: 'u16+u2' there, 'i32' now"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(
    override: str, line: str, folder: Path, out: Path
) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(FingerprintMismatch, match="output of another configuration") as refusal:
        runs.run_inline(folder / "*.tar", out, override)
    assert f"  {line}" in str(refusal.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_batch_of_the_first_run_is_kept_by_later_ones(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert runs.run_inline(folder / "00000.tar", out, "encoder.batch_clips=3") == 0
    assert runs.run_inline(folder / "*.tar", out) == 0
    assert {receipt["numerics"]["batch"][0] for receipt in runs.receipts(out)} == {3}


def test_another_numeric_environment_is_refused_when_strict(folder: Path, out: Path) -> None:
    before = runs.receipts(out)
    with pytest.raises(RunError, match=r"threads 1 -> 2; refused by numerics=strict"):
        runs.run_inline(folder / "*.tar", out, "encoder.threads=2", "numerics=strict")
    assert runs.receipts(out) == before


def test_the_same_numeric_environment_passes_when_strict(folder: Path, out: Path) -> None:
    assert runs.run_inline(folder / "*.tar", out, "numerics=strict") == 0


def test_another_numeric_environment_is_warned_about_and_counted(
    folder: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert runs.run_inline(folder / "*.tar", out, "encoder.threads=2") == 0
    assert "holds tokens of another numeric environment: threads 1 -> 2" in caplog.text
    assert "2 numeric environments are mixed" in capsys.readouterr().out
    status([str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["numeric_environments"] == 2
    assert verify([str(out)]) == 0


def test_what_a_killed_attempt_left_is_ignored(folder: Path, out: Path) -> None:
    (out / "parts/00001-abcdef-00000-feed.parquet").write_bytes(b"PAR1 half a part")
    (out / "parts/.tmp-feed").mkdir()
    (out / "parts/.tmp-feed/00001.parquet").write_bytes(b"unfinished")
    (out / "receipts/.tmp-feed").write_bytes(b'{"half": ')
    assert runs.run_inline(folder / "*.tar", out) == 0
    assert len(runs.rows(out)) == 6
    assert verify([str(out)]) == 0


def test_a_receipt_that_was_tampered_with_stops_the_run(folder: Path, out: Path) -> None:
    [path] = (out / "receipts").iterdir()
    path.write_text(path.read_text().replace('"rows": 2', '"rows": 3'))
    for manifest in (out / "manifests").iterdir():
        manifest.unlink()
    with pytest.raises(RunError, match="cannot be trusted: its digest does not match"):
        runs.run_inline(folder / "*.tar", out)
