"""``jobs.benchmark output_runs``: both ways make the same tokens; what is saved is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.benchmark import output_runs


@pytest.mark.slow
def test_one_pass_is_measured_against_a_run_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    assert output_runs.main(["--rounds", "1", "--clips", "8", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["decode_cpu_seconds_ratio"] < 0.9
    assert found["read_mb_ratio"] == pytest.approx(1 / len(output_runs.ENTRIES))
    assert "one pass takes, of what a run of each takes: " in capsys.readouterr().out


def test_ratios_are_those_of_medians() -> None:
    keys = ("seconds", "cpu_seconds", "decode_cpu_seconds", "read_mb")
    one = [dict.fromkeys(keys, value) for value in (1.0, 2.0, 9.0)]
    each = [dict.fromkeys(keys, value) for value in (4.0, 4.0, 5.0)]
    assert output_runs.savings({"one pass": one, "a run of each": each}) == {
        f"{key}_ratio": 0.5 for key in keys
    }
