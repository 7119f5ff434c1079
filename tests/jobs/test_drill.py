from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.drill import processes, workload
from jobs.drill.__main__ import main
from jobs.drill.liar.sitecustomize import HONEST_BATCHES, corrupt
from jobs.drill.proof import Outcome, _broken_chains, differences
from jobs.drill.schedule import MIN_FAULTS, WEIGHTS, Kind, schedule
from jobs.drill.timeline import Timeline, markdown
from tests.pipeline import runs

# ---- what happens when ----


def test_five_minutes_have_thirty_faults_of_every_kind_and_one_lie() -> None:
    for seed in range(20):
        planned = schedule(minutes=5, seed=seed)
        kinds = Counter(one.kind for one in planned)
        assert len(planned) >= 30
        assert set(kinds) == set(Kind)
        assert kinds[Kind.worker_lies] == 1


def test_a_short_drill_has_different_faults_and_the_lie() -> None:
    for seed in range(20):
        kinds = [one.kind for one in schedule(minutes=0.5, seed=seed)]
        assert len(kinds) == len(set(kinds)) == MIN_FAULTS
        assert Kind.worker_lies in kinds


def test_the_schedule_follows_from_its_seed() -> None:
    assert schedule(minutes=5, seed=1) == schedule(minutes=5, seed=1)
    assert schedule(minutes=5, seed=1) != schedule(minutes=5, seed=2)


def test_faults_are_spread_over_the_minutes_in_order() -> None:
    planned = schedule(minutes=10, seed=3)
    assert planned == sorted(planned)
    assert planned[0].at_seconds < 20
    assert 580 < planned[-1].at_seconds <= 600


def test_every_kind_has_a_weight() -> None:
    assert set(WEIGHTS) == set(Kind)


# ---- what the run has to do ----


def test_a_shard_is_the_same_for_the_same_seed_and_holds_what_cannot_be_tokenised() -> None:
    shards = [workload.shard(number, 1) for number in range(6)]
    assert shards[0] == workload.shard(0, 1)
    assert len(set(shards)) == 6
    names: list[str] = []
    for shard in shards:
        with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
            names += tar.getnames()
    videos = [name for name in names if not name.endswith(".txt")]
    assert len(videos) == 6 * workload.VIDEOS_PER_SHARD
    bad = [name for name in videos if any(kind in name for kind in workload.HOSTILE)]
    assert 0 < len(bad) < len(videos) / 2


def test_each_hostile_kind_spoils_the_video() -> None:
    source = bytes(range(256)) * 10
    for kind in workload.HOSTILE:
        assert workload.hostile(kind, random.Random(1), source) != source
    with pytest.raises(ValueError, match="unknown kind 'mild'"):
        workload.hostile("mild", random.Random(1), source)


# ---- the lie ----


class _Encoder:
    def encode(self, frames: Any, num_clips: int) -> list[Any]:
        return [np.full((1, 2, 2), 6, np.int32)] * num_clips


def test_one_worker_takes_the_lie_and_keeps_to_it(tmp_path: Path) -> None:
    class Lying(_Encoder):
        pass

    file = tmp_path / "liar"
    corrupt(Lying, file)
    encoder = Lying()
    file.touch()
    for _ in range(HONEST_BATCHES):
        assert encoder.encode(None, 1)[0].max() == 6
    assert encoder.encode(None, 2)[1].tolist() == [[[7, 7], [7, 7]]]
    assert [path.name for path in tmp_path.iterdir()] == [f"liar.{os.getpid()}"]
    assert encoder.encode(None, 1)[0].max() == 7


def test_the_lie_reaches_an_encoder_by_the_path_alone(tmp_path: Path) -> None:
    folder = Path(sys.modules["jobs.drill.liar.sitecustomize"].__file__ or "").parent
    code = "import pipeline.encode as e; print(e.ClipEncoder.encode.__qualname__)"
    for env, expected in (({}, "ClipEncoder.encode"), ({"DRILL_LIAR_FILE": "x"}, "corrupt.<loc")):
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(folder)} | env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.startswith(expected)


# ---- the proof ----


def _receipt(segment: int, start: int, end: int, *, final: bool = False) -> dict[str, Any]:
    return {
        "shard": "a",
        "segment": segment,
        "start_offset": start,
        "end_offset": end,
        "final": final,
    }


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        ([_receipt(0, 0, 5), _receipt(1, 5, 9, final=True)], None),
        ([_receipt(0, 0, 5), _receipt(2, 5, 9, final=True)], "segments [0, 2]"),
        ([_receipt(0, 0, 5), _receipt(1, 4, 9, final=True)], "does not begin at byte 5"),
        ([_receipt(0, 0, 5), _receipt(1, 5, 9)], "last segment alone must be final"),
        ([_receipt(0, 0, 5, final=True), _receipt(0, 0, 5, final=True)], "segments [0, 0]"),
    ],
)
def test_a_chain_with_a_gap_an_overlap_or_no_end_is_named(
    chain: list[dict[str, Any]], complaint: str | None
) -> None:
    found = list(_broken_chains(chain))
    assert (complaint is None) == (found == [])
    assert complaint is None or any(complaint in text for text in found)


def test_every_way_to_differ_from_the_clean_run_is_told() -> None:
    row = {"clip_id": "x", "tokens": b"1", "caption": "c"}
    clean = Outcome({"x": row, "y": row}, {"a/k": "empty"}, [], 1, 0)
    assert differences(clean, clean) == []
    found = Outcome(
        {"x": row | {"tokens": b"2"}, "z": row}, {"a/k": "crash"}, ["x is committed twice"], 1, 0
    )
    assert differences(found, clean) == [
        "x is committed twice",
        "y is missing",
        "z should not be there",
        "x differs in tokens",
        "a/k is quarantined as crash, in the clean run as empty",
    ]


# ---- processes, report, command ----


def test_only_processes_of_the_sessions_named_are_found_and_killed(tmp_path: Path) -> None:
    ours, other = (
        processes.start([sys.executable, "-c", f"import time; time.sleep(60) # {name}"],
                        env={}, cwd=tmp_path, log=tmp_path / "log")
        for name in ("ours", "other")
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not processes.running([ours.pid], "# ours") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [found.pid for found in processes.running([ours.pid], "# ours")] == [ours.pid]
        assert processes.running([ours.pid], "# other") == []
        assert processes.kill([ours.pid]) == []
        assert ours.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_fault_is_over_with_the_next_commit() -> None:
    timeline = Timeline()
    timeline.note(Kind.worker_killed, "pid 1", receipts=3, at_seconds=timeline.now_seconds)
    timeline.committed(3)
    assert timeline.injected[0].recovered_seconds is None
    timeline.committed(4)
    assert timeline.injected[0].recovered_seconds is not None
    page = markdown("Drill", timeline, ["fine"])
    assert "| SIGKILL of a worker | 1 | 0.0 s | 0.0 s |" in page


@pytest.mark.parametrize(
    ("minutes", "why"),
    [("0", "must be above 0"), ("-1", "must be above 0"), ("1e9", "must be at most a day")],
)
def test_minutes_that_make_no_sense_are_refused(
    minutes: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--minutes", minutes])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--minutes" in said
    assert why in said


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_short_drill_proves_its_result(tmp_path: Path) -> None:
    ended = runs.run(
        *("--minutes", "1", "--seed", "3", "--report", "report.md"),
        cwd=tmp_path,
        module="jobs.drill",
        timeout_seconds=1400,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the result equals that of a run without faults" in (tmp_path / "report.md").read_text()
