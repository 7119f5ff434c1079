"""The loader benchmark, on a few clips and parts; peers that are not installed are left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.benchmark import loader
from jobs.benchmark.token_pass import Job, work

KEYS = {
    "bytes_per_token",
    "tokens_per_cpu_second",
    "vs_mds",
    "vs_webdataset",
    "vs_hf",
    "vs_litdata",
    "peak_rss_bytes",
    "first_batch_seconds",
}


def figures_of_run(**changes: float) -> dict[str, float]:
    return {"tokens_per_cpu_second": 8.0, "peak_rss_bytes": 1, "first_batch_seconds": 0.1} | changes


def test_token_parts_are_written_and_read_back_whole(tmp_path: Path) -> None:
    job = Job(what="write", format="ours", place=str(tmp_path / "out"), num_clips=300)
    per_token = work(job)["bytes"] / (300 * 5120)
    assert 18 / 8 < per_token < 18 / 8 * 1.03
    figures = work(Job(what="read", format="ours", place=job.place, num_clips=300, is_cold=True))
    assert figures["tokens_per_cpu_second"] == pytest.approx(
        5120 * figures["samples_per_cpu_second"]
    )
    with pytest.raises(RuntimeError, match="add up"):
        work(Job(what="read", format="ours", place=job.place, num_clips=299))


def test_ratios_are_medians_of_rounds_and_none_without_the_peer() -> None:
    ours = [figures_of_run(tokens_per_cpu_second=rate) for rate in (8.0, 2.0, 8.0)]
    mds = [figures_of_run(tokens_per_cpu_second=rate) for rate in (2.0, 1.0, 1.0)]
    figures = loader.figures_of({"ours": ours, "mds": mds}, {"ours": 5120 * 9}, 4)
    assert figures.keys() >= KEYS
    assert figures["vs_mds"] == 4.0
    assert figures["vs_litdata"] is None
    assert figures["bytes_per_token"] == 2.25


def test_a_peer_that_cannot_be_imported_is_skipped_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("streaming", "webdataset", "datasets", "litdata"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(loader, "in_a_process", lambda job, paths: work(job))
    jobs, sizes = loader.write_all(tmp_path, 3, 1, {})
    assert jobs.keys() == sizes.keys() == {"ours"}
    assert "skipped litdata: litdata is not installed" in capsys.readouterr().err


def test_the_first_batch_of_many_parts_is_timed(tmp_path: Path) -> None:
    assert 0 < loader.first_of_many(tmp_path / "many", 10, 1) < 60
    assert len(list((tmp_path / "many/parts").glob("*.parquet"))) == 10
