"""Machines come, are drained, and die while a run goes on; nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import main as verify
from tests.pipeline import runs
from tests.pipeline.nodes import Nodes, cluster, until
from tests.pipeline.test_run_ray import LARGER, arguments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL_SEGMENTS = (*LARGER, "encoder.decoders=1", "cluster.cpus_per_worker=2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tars of a minute of work or two."""
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=6, num_videos=10)


@pytest.fixture(scope="module")
def oracle(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every run must give."""
    out = tmp_path_factory.mktemp("oracle")
    assert runs.run_inline(shards, out, "encoder.batch_clips=4", *LARGER) == 0
    return out


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with cluster(1) as one:
        yield one


def assert_like(out: Path, oracle: Path) -> None:
    assert verify([str(out)]) == 0
    assert runs.rows(out) == runs.rows(oracle)


def start(shards: str, out: Path, nodes: Nodes) -> runs.Command:
    command = runs.start(
        *arguments(shards, out, *SMALL_SEGMENTS, *nodes.where), cwd=out.parent, **nodes.env
    )
    runs.wait_for_receipts(command, out)
    return command


def finish(command: runs.Command) -> str:
    printed, err = command.process.communicate(timeout=300)
    assert command.process.returncode == 0, err
    assert "Traceback" not in err
    return printed


def test_a_node_that_joins_is_used_and_one_that_is_terminated_hands_back(
    nodes: Nodes, shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = start(shards, out, nodes)
    began = time.monotonic()
    node = nodes.add(block=True)
    until(lambda: len(nodes.workers_of(node)) == 1, command, 60)
    joined_seconds = time.monotonic() - began
    print(f"node added -> its worker is there: {joined_seconds:.1f} s")
    time.sleep(6)  # it loads its model and takes shards
    os.kill(node, signal.SIGTERM)
    until(lambda: nodes.workers_of(node) == [], command, 60)
    printed = finish(command)
    assert "0 failed" in printed
    assert not list((out / "failures").glob("*")) if (out / "failures").exists() else True
    assert_like(out, oracle)


def test_a_node_that_dies_costs_a_retry_and_a_new_one_takes_its_place(
    nodes: Nodes, shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    node = nodes.add()
    command = start(shards, out, nodes)
    until(lambda: len(nodes.workers_of(node)) == 1, command, 60)
    time.sleep(5)
    nodes.kill(node)
    another = nodes.add()
    until(lambda: len(nodes.workers_of(another)) == 1, command, 90)
    finish(command)
    assert_like(out, oracle)


def test_control_c_commits_what_is_open_on_ray_and_the_run_can_go_on(
    shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.start(*arguments(shards, out, *LARGER), cwd=tmp_path)
    runs.wait_for_receipts(command, out)
    os.killpg(command.process.pid, signal.SIGINT)  # what a terminal does
    _, err = command.process.communicate(timeout=90)
    assert command.process.returncode == 1
    assert "stopping: open segments are committed" in err
    assert err.splitlines()[-1].startswith("interrupted; the same command continues")
    assert "Traceback" not in err
    assert command.leftovers() == []
    assert (
        runs.run(*arguments(shards, out, *LARGER), cwd=tmp_path, timeout_seconds=300).returncode
        == 0
    )
    assert_like(out, oracle)


def test_control_c_twice_stops_now(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = runs.start(*arguments(shards, out, *LARGER), cwd=tmp_path)
    runs.wait_for_receipts(command, out)
    os.kill(command.process.pid, signal.SIGINT)
    os.kill(command.process.pid, signal.SIGTERM)
    command.process.communicate(timeout=20)
    assert command.process.returncode in (1, 130)  # 1: the first one was already done with
    assert command.leftovers() == []
