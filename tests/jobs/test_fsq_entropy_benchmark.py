"""The benchmark of FSQ's entropy: both ways compute the same, one of them in little memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.benchmark import fsq_entropy


@pytest.mark.slow
def test_both_ways_agree_and_the_table_is_the_larger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--tokens", "2048", "--codes", "4096", "--rounds", "1", "--json", str(path)]
    assert fsq_entropy.main(arguments) == 0
    factorised, table = json.loads(path.read_text())["figures"]
    assert factorised["loss"] == pytest.approx(table["loss"], abs=1e-3)
    assert factorised["peak_bytes"] < table["peak_bytes"] / 3
    assert "4,096 factorised" in capsys.readouterr().out


def test_a_table_that_does_not_fit_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokens", "64", "--codes", "4096", "--rounds", "1", "--table-gigabytes", "0"]
    assert fsq_entropy.main(arguments) == 0
    assert "4,096 table" in capsys.readouterr().out
