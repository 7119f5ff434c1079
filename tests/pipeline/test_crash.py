"""The commit protocol, proven: killed at any step, the same command loses and doubles nothing.

The tables of all steps: ``pytest -m slow -s tests/pipeline/test_crash.py``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline import crash_run
from tests.pipeline.crashing import Outcome

RANDOM_ID = re.compile(r"[0-9a-f]{32,}")


def crash(out: str, scenario: str, every: int) -> list[Outcome]:
    """Outcomes of killing a scenario at every N-th step."""
    command = [sys.executable, "-W", "error", "-m", "tests.pipeline.crashing", out, scenario]
    done = subprocess.run(
        [*command, "--every", str(every)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]


def table(outcomes: list[Outcome]) -> str:
    """Steps of one kind in a line: how many, and what became of them."""
    kinds: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        step = re.sub(r"(\S*/)?\d{4}/", "", RANDOM_ID.sub("*", outcome.step))
        kinds.setdefault(step, Counter())[outcome.result] += 1
    return "\n".join(
        f"{step:60} {', '.join(f'{result} {count}' for result, count in results.items())}"
        for step, results in kinds.items()
    )


def assert_nothing_is_lost(outcomes: list[Outcome], at_least: int) -> None:
    print(f"\n{len(outcomes)} steps\n{table(outcomes)}")
    assert len(outcomes) >= at_least
    assert [outcome for outcome in outcomes if outcome.result != "ok"] == []


@pytest.fixture
def folder() -> Iterator[str]:
    """In memory where there is room: a kill of a process does not depend on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield path


@pytest.mark.timeout(600)
def test_a_process_killed_at_steps_of_the_protocol_loses_nothing(folder: str) -> None:
    assert_nothing_is_lost(crash(folder, "crash_segments", every=61), at_least=5)


@pytest.mark.timeout(600)
def test_a_process_killed_at_steps_of_the_protocol_on_s3_loses_nothing(bucket: str) -> None:
    assert_nothing_is_lost(crash(f"s3://{bucket}", "crash_one_shard", every=45), at_least=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_whole_run_killed_at_steps_of_its_own_loses_nothing(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_run.write_input(tmp_path / "in.tar")
    monkeypatch.setenv("CRASH_INPUT", str(tmp_path / "in.tar"))
    out = str(tmp_path / "out")
    if place == "s3":
        out = f"s3://{request.getfixturevalue('bucket')}"
    every = 11 if place == "s3" else 23  # fewer steps lead there
    assert_nothing_is_lost(crash(out, "crash_run", every=every), at_least=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_process_killed_while_pieces_of_objects_go_to_s3_loses_nothing(bucket: str) -> None:
    outcomes = crash(f"s3://{bucket}", "crash_multipart", every=3)
    steps = {outcome.step.split(" ")[1] for outcome in outcomes if "?uploads" in outcome.step}
    assert steps == {"POST", "PUT"}, "begun, sent in pieces, and completed"
    assert_nothing_is_lost(outcomes, at_least=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_process_killed_at_any_step_of_the_protocol_loses_nothing(folder: str) -> None:
    assert_nothing_is_lost(crash(folder, "crash_segments", every=1), at_least=200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_process_killed_at_any_step_of_the_protocol_on_s3_loses_nothing(bucket: str) -> None:
    assert_nothing_is_lost(crash(f"s3://{bucket}", "crash_segments", every=1), at_least=50)
