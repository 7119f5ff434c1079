"""Killed at any moment, the same command finishes: nothing twice, nothing lost, nobody left."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipeline.demo import demo_shards
from pipeline.verify import main as verify
from tests.pipeline import runs

SMALL = (
    *runs.TINY,
    *("tokenizer.num_res_blocks=2", "sampling.resolution=48"),
    *("encoder.batch_clips=2", "commit.max_clips=2"),
)
"""Slow enough to be killed in the middle."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's clips."""
    folder = tmp_path_factory.mktemp("shards")
    return f"{folder}/demo-{{00000..{len(demo_shards(folder)) - 1:05d}}}.tar"


@pytest.fixture(scope="module")
def oracle(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("oracle")
    assert runs.execute_here(*arguments(shards, out, "inline")) == 0
    return out


def arguments(shards: str, out: Path, cluster: str) -> tuple[str, ...]:
    return (
        *("+dataset=tars", f"dataset.shards={shards}", *SMALL),
        *(f"cluster={cluster}", f"output.root={out}"),
    )


def assert_like(out: Path, oracle: Path) -> None:
    assert verify([str(out)]) == 0
    assert runs.rows(out) == runs.rows(oracle)


def killed(shards: str, out: Path, cwd: Path, *, num_receipts: int, alone: bool) -> int:
    """Kill a run after so many receipts, or its first process alone; returns their number then."""
    command = runs.start(*arguments(shards, out, "inline"), cwd=cwd)
    runs.wait_for_receipts(command, out, num_receipts)
    assert len(command.processes()) == 2  # and its decoder child
    if alone:
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.communicate()
    else:
        command.kill()
    assert command.leftovers() == []
    return len(runs.receipts(out))


def test_a_run_killed_twice_is_finished_by_the_third(
    shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = killed(shards, out, tmp_path, num_receipts=1, alone=False)
    second = killed(shards, out, tmp_path, num_receipts=first + 2, alone=True)
    kept = {path.name: path.read_bytes() for path in (out / "receipts").glob("*.json")}
    assert 1 <= first < second == len(kept)
    assert runs.execute_here(*arguments(shards, out, "inline")) == 0
    assert_like(out, oracle)
    for name, content in kept.items():
        assert (out / "receipts" / name).read_bytes() == content


def test_control_c_ends_a_run_in_order_and_it_can_go_on(
    shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.start(*arguments(shards, out, "inline"), cwd=tmp_path)
    runs.wait_for_receipts(command, out)
    os.killpg(command.process.pid, signal.SIGINT)  # what a terminal does
    _, err = command.process.communicate(timeout=60)
    assert command.process.returncode == 1
    assert err.splitlines()[-1] == (
        "interrupted; the same command continues behind the last committed segments"
    )
    assert "Traceback" not in err
    assert command.leftovers() == []
    assert not list((out / "parts").glob(".tmp-*"))
    assert 1 <= len(runs.receipts(out)) < len(runs.receipts(oracle))
    assert runs.execute_here(*arguments(shards, out, "inline")) == 0
    assert_like(out, oracle)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_local_ray_run_killed_five_times_at_random_is_finished(
    shards: str, oracle: Path, tmp_path: Path
) -> None:
    out, dice = tmp_path / "out", random.Random(5)
    found = 0
    for _ in range(5):
        command = runs.start(*arguments(shards, out, "local"), cwd=tmp_path)
        time.sleep(dice.uniform(2, 25))
        command.kill()
        assert command.leftovers() == []
        assert len(runs.receipts(out)) >= found
        found = len(runs.receipts(out))
    ended = runs.run(*arguments(shards, out, "local"), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert_like(out, oracle)
