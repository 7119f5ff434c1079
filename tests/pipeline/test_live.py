"""The live table, and ``pipeline.status --watch``: what is seen while a run goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from pipeline import metrics
from pipeline.history import COLUMNS, MOST, History, lately, moments_of, steps
from pipeline.ledger import Ledger
from pipeline.live import pace, panel, stages, together
from pipeline.report import ReportOptions, compose_report
from pipeline.status import Looks, main, one_line, watched
from pipeline.storage import Storage
from pipeline.tally import LAST_QUARANTINED, Tally
from tests.pipeline import runs
from tests.pipeline.fakes import make_out
from tests.pipeline.receipts import receipt


def moment(at: float, **counters: float) -> list[float]:
    return [at, *(counters.get(name, 0.0) for name in COLUMNS)]


def beat(**changes: Any) -> dict[str, Any]:
    """A driver in the middle of its work, two minutes after its start."""
    before = moment(40.0, clips=100, covered=100)
    now = moment(
        100.0,
        clips=700,
        encoded_clips=600,
        covered=400,
        videos=120,
        encode_seconds=45,
        starved_seconds=15,
        source_seconds=600,
        decoder_seconds=120,
        decoder_busy_seconds=90,
        decoder_full_seconds=30,
        token_bytes=3_000_000,
    )
    record = Tally(num_shards=9, done_shards=3, to_cover=1000, in_flight=2, num_workers=2).record()
    record["history"] = {"columns": list(COLUMNS), "moments": [moment(0.0), before, now]}
    record["counters"] = {"covered": 400.0, "clips": 700.0, "decoders": 2}
    return record | changes


def text_of(record: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(panel(record))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rates_are_of_the_last_minute_and_the_eta_follows_from_what_is_covered() -> None:
    found = pace(beat())
    assert found is not None
    assert (found.step.at_seconds, found.step.seconds) == (40.0, 60.0)
    assert found.per_second("clips") == 10.0
    assert found.eta_seconds == pytest.approx((1000 - 400) / 5.0)
    assert (found.shares.starved, found.shares.full) == (0.25, 0.25)


def test_the_table_says_rate_and_busy_share_of_every_stage() -> None:
    lines = {name: (rate, busy) for name, rate, busy, _ in stages(beat())}
    assert lines == {
        "read": ("2.00 videos/s", None),
        "decode": ("10.0 s of video/s", 0.5),
        "encode": ("10.00 clips/s", 0.75),
        "write": ("0.050 MB/s", None),
    }
    text = text_of(beat(last_quarantined=["s::[bold]k: crash"]))
    for expected in ("3 of 9 shards", "ETA 2:00", "2 in hand, 4 waiting", "75% busy"):
        assert expected in text
    assert "s::[bold]k: crash" in text  # a key is no markup


def test_a_run_that_has_not_begun_has_a_table_without_rates() -> None:
    text = text_of(Tally(num_shards=2).record())
    assert "0 of 2 shards" in text
    assert "ETA -" in text


@pytest.mark.parametrize("history", [None, 3, {}, {"columns": ["x"], "moments": [[1, 2]]}])
def test_a_heartbeat_of_other_code_has_no_history(history: Any) -> None:
    assert moments_of({"history": history}) == []
    assert pace({"history": history}) is None


def test_a_history_stays_small_and_covers_the_whole_run() -> None:
    history = History()
    for second in range(100_000):
        history.add(float(second), {"clips": 2.0 * second})
    assert MOST / 2 - 1 <= len(history.moments) <= MOST
    assert history.moments[0][0] == 0.0
    found = steps(history.moments)
    assert sum(step.grown["clips"] for step in found) == pytest.approx(2e5, rel=0.01)
    last = lately(found, seconds=60.0)
    assert last is not None
    assert last.clips_per_second == pytest.approx(2.0)


def test_a_worker_that_dies_gives_no_negative_rate() -> None:
    found = steps([moment(0.0, clips=10), moment(5.0, clips=4), moment(10.0, clips=9)])
    assert [step.grown["clips"] for step in found] == [0.0, 5.0]


def test_the_newest_quarantined_videos_are_remembered() -> None:
    tally = Tally()
    bad = [{"key": f"k{n}", "reason": "crash", "message": ""} for n in range(9)]
    tally.take([receipt(quarantined=bad)])
    assert list(tally.last_quarantined) == [f"s::k{n}: crash" for n in range(5, 9)]
    assert len(tally.last_quarantined) == LAST_QUARANTINED


# ---- status --watch ----


def write_beat(storage: Storage, record: dict[str, Any]) -> None:
    storage.put("progress/d.json", json.dumps(record).encode())


def test_watch_goes_on_while_a_driver_works_and_ends_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = make_out(tmp_path / "out", shards=2, videos=2)
    write_beat(storage, beat(running=True))

    def end() -> None:
        write_beat(storage, beat(running=False, num_shards=2))

    timer = threading.Timer(0.8, end)
    timer.start()
    code = main([storage.root, "--watch", "0.2"])
    timer.join()
    lines = capsys.readouterr().out.splitlines()
    live = [line for line in lines if line.startswith("shards 2/9")]
    assert len(live) >= 2
    assert "encode 10.00 clips/s 75% busy" in live[0]
    assert "ETA 2:00" in live[0]
    assert code == 0
    assert lines[-1] == "nobody is working on it now"


def test_watch_on_a_terminal_shows_the_table(tmp_path: Path) -> None:
    storage = make_out(tmp_path / "out", shards=1, videos=1)
    write_beat(storage, beat(running=True))
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pipeline.status", storage.root, "--watch", "0.2"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        seen, until = b"", time.monotonic() + 60
        while b"75% busy" not in seen and time.monotonic() < until:
            seen += os.read(leader, 4096)
        process.terminate()
    os.close(leader)
    assert b"shards final" in seen
    assert b"75% busy" in seen


# ---- an array: several drivers, one run ----

RANKS = 33


def rank_beat(number: int) -> dict[str, Any]:
    """One of 33 ranks: 2 clips/s, half of its share done; all but the first gave a shard up."""
    now = moment(60.0, clips=120, encoded_clips=120, covered=60, encode_seconds=45)
    record = Tally(
        num_shards=99,
        done_shards=number % 3,
        to_cover=120,
        in_flight=1,
        num_workers=1,
        failed={f"lost{number}": f"rank {number} cannot read it"} if number else {},
        expelled={f"worker{number}": "wrong arithmetic"} if number in (4, 7) else {},
        before={"clips": 4.0},
    ).record()
    record["history"] = {"columns": list(COLUMNS), "moments": [moment(0.0), now]}
    record["counters"] = {"covered": 60.0, "clips": 120.0, "decoders": 2, "peak_x": number}
    return record | {"elapsed_seconds": 60.0 + number, "running": True}


@pytest.fixture
def array_out(tmp_path: Path) -> Storage:
    storage = make_out(tmp_path / "out", shards=2, videos=2)
    for number in range(RANKS):
        content = json.dumps(rank_beat(number)).encode()
        storage.put(f"progress/rank{number}.json", content)
    return storage


def test_the_ranks_of_an_array_are_one_run(array_out: Storage) -> None:
    facts, drivers = Looks(array_out).now()
    assert (facts["running_drivers"], facts["num_workers"]) == (RANKS, RANKS)
    assert set(facts["failed_shards"]) == {f"lost{number}" for number in range(1, RANKS)}
    assert set(facts["expelled_workers"]) == {"worker4", "worker7"}
    assert facts["elapsed_seconds"] == 60.0 + RANKS - 1
    assert (facts["counters"]["clips"], facts["counters"]["peak_x"]) == (120 * RANKS, RANKS - 1)
    line = one_line(facts, drivers)
    assert "encode 66.00 clips/s" in line
    assert line.endswith("ETA 1:00")  # 33 * 60 left, 33 a second


def test_an_array_has_one_table_and_what_is_done_comes_from_receipts(array_out: Storage) -> None:
    facts, drivers = Looks(array_out).now()
    console = Console(file=io.StringIO(), width=120)
    console.print(watched(array_out.root, facts, drivers))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("ETA") == text.count("encode ") == 1
    for expected in ("66.00 clips/s", "2 of 99 shards", "running 1:32", "workers: 33,"):
        assert expected in text
    assert f"33 in hand, {99 - 2 - 33 - 32} waiting, 32 failed" in text
    assert "4 videos, 4 clips, 0 filtered" in text


def test_what_one_rank_gave_up_and_another_finished_is_not_failed(array_out: Storage) -> None:
    first = next(iter(Ledger.open(array_out).states))
    said = rank_beat(1) | {"failed_shards": {first: "away", "lost1": "away"}}
    array_out.put("progress/rank1.json", json.dumps(said).encode())
    facts, _ = Looks(array_out).now()
    assert first not in facts["failed_shards"]
    assert "lost1" in facts["failed_shards"]


def test_ranks_that_ended_or_were_killed_are_not_at_work(array_out: Storage) -> None:
    for number in range(1, RANKS):
        content = json.dumps(rank_beat(number) | {"running": number > 16}).encode()
        array_out.put(f"progress/rank{number}.json", content)
    os.utime(array_out.path("progress/rank0.json"), (1, 1))
    facts, drivers = Looks(array_out).now()
    assert (facts["running_drivers"], facts["num_workers"]) == (16, 16)
    assert "encode 32.00 clips/s" in one_line(facts, drivers)


def test_the_report_names_what_every_rank_gave_up(array_out: Storage) -> None:
    text = compose_report(array_out, ReportOptions(num_reconstructed=0))
    assert "lost1</" in text
    assert "The first 20 of 32." in text
    assert "worker4" in text
    assert "worker7" in text


def test_rates_of_ranks_are_each_over_its_own_time() -> None:
    young, old = rank_beat(0), rank_beat(1)
    young["history"]["moments"][1] = moment(10.0, encoded_clips=50, covered=5)
    young |= {"to_cover": 30, "counters": {"covered": 90.0}}  # more than it was to
    found = pace(together([young, old, rank_beat(2) | {"history": {}}]))
    assert found is not None
    assert found.per_second("encoded_clips") == pytest.approx(50 / 10 + 120 / 60)
    # the old one's 60 and those of the one that has measured nothing yet
    assert found.eta_seconds == pytest.approx((60 + 60) / (5 / 10 + 60 / 60))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--watch", "0"), "--watch: must be above 0, got 0"),
        (("--watch",), "no run.json there"),
        (("--watch", "--picture", "/dev/null"), "--picture is of one moment: not with --watch"),
    ],
)
def test_a_wrong_watch_is_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.exit_status(main, str(tmp_path), *arguments) == 2
    assert said in capsys.readouterr().err


SHOW = """
import logging, sys, time
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
from pipeline.progress import ProgressLine
from pipeline.tally import Tally
with ProgressLine() as shown:
    shown.show(Tally(num_shards=3))
    time.sleep(0.6)
    logging.info("a line of the log")
    shown.show(Tally(num_shards=3))
logging.info("a line afterwards")
"""


def test_log_lines_stand_above_the_table_and_go_to_the_terminal_again_afterwards() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-c", SHOW]
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        seen = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while chunk := os.read(leader, 4096):
                seen += chunk
    os.close(leader)
    assert process.returncode == 0
    # rich takes the table away (cursor up, erase line) before it writes the line
    before_the_line = seen.partition(b"a line of the log")[0]
    assert b"0 of 3 shards" in before_the_line
    assert before_the_line.rstrip(b"\x1b[0m").endswith((b"\x1b[2K", b"\r"))
    assert seen.count(b"a line of the log") == 1
    assert b"a line afterwards" in seen


def test_the_command_lists_every_metric_with_its_kind_and_meaning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline.metrics"])
    metrics.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == len(metrics.WORKER_METRICS) + len(metrics.RUN_METRICS)
    for line in lines:
        name, kind, meaning = line.split(maxsplit=2)
        assert name.startswith("ray_vidtok_")
        assert kind in ("counter", "gauge")
        assert meaning


@pytest.mark.parametrize("running", [True, False])
def test_a_picture_shows_what_a_terminal_shows_and_loads_nothing(
    running: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = make_out(tmp_path / "out", shards=2, videos=2)
    write_beat(storage, beat(running=running, num_shards=9))
    file = tmp_path / "live.svg"
    assert main([storage.root, "--picture", str(file)]) == 1
    svg = ElementTree.parse(file).getroot()
    shown = " ".join("".join(svg.itertext()).replace("\xa0", " ").split())
    wanted = "75% busy" if running else "nobody is working on it now"
    assert wanted in shown
    assert f"python -m pipeline.status {storage.root}" in shown
    text = re.sub(r"<!--.*?-->", "", file.read_text(encoding="utf-8"))
    assert "@font-face" not in text
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert main([storage.root, "--picture", "/dev/full"]) == 2
    assert "error: --picture /dev/full: No space left on device" in capsys.readouterr().err
