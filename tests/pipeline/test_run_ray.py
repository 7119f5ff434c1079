"""Runs on Ray give the tokens of a run without it, whatever happens to nodes and workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import main as verify
from tests.pipeline import runs
from tests.pipeline.nodes import Nodes, cluster, until


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six tars of four videos."""
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=6, num_videos=4)


@pytest.fixture(scope="module")
def oracle(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, in one process."""
    out = tmp_path_factory.mktemp("oracle")
    assert runs.run_inline(shards, out, "encoder.batch_clips=4") == 0
    return out


def arguments(shards: str, out: Path, *more: str) -> tuple[str, ...]:
    return (
        *("+dataset=tars", f"dataset.shards={shards}", *runs.TINY),
        *("encoder.batch_clips=4", f"output.root={out}", *more),
    )


LARGER = (
    "sampling.resolution=96",
    "tokenizer.ch=16",
    "commit.max_clips=1",
    "cluster.open_shards=1",
)
"""On top of the tiny ones: enough work for a second worker, and for a death in the middle."""


@pytest.fixture(scope="module")
def larger_oracle(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with ``LARGER`` must give."""
    out = tmp_path_factory.mktemp("larger")
    assert runs.run_inline(shards, out, "encoder.batch_clips=4", *LARGER) == 0
    return out


def assert_like(out: Path, oracle: Path) -> None:
    assert verify([str(out)]) == 0
    assert runs.rows(out) == runs.rows(oracle)


def test_ray_on_this_machine_gives_the_tokens_of_the_inline_run(
    shards: str, oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.start(*arguments(shards, out), cwd=tmp_path)
    _, err = command.process.communicate(timeout=110)
    assert command.process.returncode == 0, err
    assert "Traceback" not in err
    assert command.leftovers() == []
    assert_like(out, oracle)


def test_no_cluster_at_the_address_is_one_line(shards: str, tmp_path: Path) -> None:
    ended = runs.run(
        *arguments(shards, tmp_path / "out", "cluster=ray", "cluster.address=127.0.0.1:1"),
        cwd=tmp_path,
    )
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "cluster.address=127.0.0.1:1: cannot join Ray" in line
    assert "Traceback" not in ended.stderr


# ---- a cluster of two nodes on this machine ----


@pytest.fixture
def two_nodes() -> Iterator[Nodes]:
    with cluster(2) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_share_the_work_and_give_the_same_tokens(
    two_nodes: Nodes, shards: str, larger_oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.start(
        *arguments(shards, out, *LARGER, *two_nodes.where), cwd=tmp_path, **two_nodes.env
    )
    workers: set[int] = set()
    nodes: set[int] = set()

    def both_at_work() -> bool:
        for worker in two_nodes.processes("^ray::EncoderActor"):
            with contextlib.suppress(StopIteration):  # gone meanwhile
                nodes.add(two_nodes.node_of(worker))
                workers.add(worker)
        return len(nodes) == 2

    until(both_at_work, command, 90)
    _, err = command.process.communicate(timeout=120)
    assert command.process.returncode == 0, err
    names = set(re.findall(r"EncoderActor pid=(\d+)", err))
    assert names == {str(worker) for worker in workers}  # each of them committed something
    assert_like(out, larger_oracle)
    assert two_nodes.processes("pipeline.decode_child") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_actor_costs_time_and_no_tokens(
    two_nodes: Nodes, shards: str, larger_oracle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.start(
        *arguments(shards, out, *LARGER, *two_nodes.where), cwd=tmp_path, **two_nodes.env
    )
    runs.wait_for_receipts(command, out)
    victim, *_ = two_nodes.processes("^ray::EncoderActor")
    os.kill(victim, signal.SIGKILL)
    printed, err = command.process.communicate(timeout=150)
    assert command.process.returncode == 0, err
    assert "6 of 6 final, 0 of them cut, 0 failed" in printed
    assert "its worker died" in printed
    assert_like(out, larger_oracle)
    failures = [json.loads(path.read_text()) for path in (out / "failures").iterdir()]
    assert {failure["class"] for failure in failures} == {"WorkerLost"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_with_a_token_is_closed_to_who_does_not_have_it(
    two_nodes: Nodes, shards: str, tmp_path: Path
) -> None:
    ended = runs.run(*arguments(shards, tmp_path / "out", *LARGER, *two_nodes.where), cwd=tmp_path)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
