"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

import pytest

from pipeline.live import duration
from pipeline.progress import ProgressLine, summary
from pipeline.tally import Tally
from tests.pipeline.receipts import ledger_of, receipt


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0:00"),
        (-5, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599.6, "1:00:00"),
        (3725.4, "1:02:05"),
        (360000, "100:00:00"),
    ],
)
def test_durations_are_hours_minutes_seconds(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def line(*history: tuple[float, float, float], tally: Tally) -> str:
    """The line when counters went through these (time, clips, covered)."""
    shown = ProgressLine()
    shown._history.extend(history)
    return shown.line(tally, history[-1][0])


def test_the_line_counts_earlier_runs_and_rates_this_one() -> None:
    tally = Tally(
        num_shards=9,
        done_shards=2,
        to_cover=1000,
        before={"videos": 100, "clips": 1000, "quarantined": 1},
        counters={"videos": 20, "clips": 200, "quarantined": 1, "covered": 400},
    )
    text = line((0.0, 100.0, 0.0), (50.0, 200.0, 400.0), tally=tally)
    assert text.split("  ") == [
        "shards 2/9",
        "videos 120",
        "clips 1,200",
        "2.00 clips/s",
        "ETA 1:15",
        "quarantined 2",
    ]


def test_the_line_has_no_eta_before_anything_is_done() -> None:
    assert "ETA -" in line((0.0, 0.0, 0.0), tally=Tally(num_shards=1, to_cover=10))


def test_the_line_shows_retries_and_failures_when_there_are_any() -> None:
    quiet = line((0.0, 0.0, 0.0), tally=Tally())
    loud = line((0.0, 0.0, 0.0), tally=Tally(retries=3, failed={"s": "x"}))
    assert "retries" not in quiet
    assert loud.endswith("retries 3  failed 1")


def test_without_a_terminal_a_line_is_written_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressLine() as shown:
        for _ in range(100):
            shown.show(Tally(num_shards=3))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("shards 0/3") == 1


def test_the_summary_counts_what_is_committed() -> None:
    bad = [{"key": str(n), "reason": r, "message": ""} for n, r in enumerate(["crash", "decode"])]
    ledger = ledger_of(
        receipt(rows=1200, videos=50, filtered={"too_short": 3}, quarantined=bad, final=True),
        receipt(shard="t", rows=1, final=True, complete=False, cut_reason="byte 9: cut"),
    )
    tally = Tally(num_shards=3, done_shards=2, failed={"u": "is not there"}, before={"clips": 1000})
    lines = summary(tally, ledger.counts(), root="s3://b/out").splitlines()
    assert lines[0] == "shards: 2 of 3 final, 1 of them cut, 1 failed"
    assert lines[1] == (
        "videos: 51, clips: 1,201, filtered: 3 (too_short 3), quarantined: 2 (crash 1, decode 1)"
    )
    assert lines[2].startswith("this run: 201 clips in ")
    assert lines[3].startswith("start-up: first clip encoded after")
    assert lines[4].startswith("memory: worker at most")
    assert lines[5:] == ["cut: t: byte 9: cut", "failed: u: is not there", "OUT: s3://b/out"]


def test_a_run_with_nothing_left_to_do_says_so_in_two_lines_and_the_place() -> None:
    tally = Tally(num_shards=1, done_shards=1, before={"clips": 5})
    lines = summary(
        tally, ledger_of(receipt(rows=5, final=True)).counts(), root="/out"
    ).splitlines()
    assert len(lines) == 3


def test_mixed_numeric_environments_are_said() -> None:
    ledger = ledger_of(*(receipt(shard=name, numerics={"device": name}) for name in "ab"))
    assert "2 numeric environments are mixed" in summary(Tally(), ledger.counts(), root="/out")


def test_an_expelled_worker_is_named() -> None:
    tally = Tally(expelled={"worker-3.0": "canary: the tokens differ"})
    lines = summary(tally, ledger_of(receipt(final=True)).counts(), root="/out").splitlines()
    assert "expelled: worker-3.0: canary: the tokens differ" in lines
