from __future__ import annotations

import pytest

from pipeline.cluster import Cluster, Node, WorkerSize, num_places


def node(name: str, cpus: float, gpus: float = 0) -> Node:
    return Node(node_id=name, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("machine", "cpus", "gpus", "expected"),
    [
        (node("n", 8), 3, 0, 2),
        (node("n", 2), 3, 0, 0),
        (node("n", 96, 8), 8, 1, 8),
        (node("n", 96, 8), 8, 0.5, 12),
        (node("n", 16, 8), 8, 1, 2),
        (node("n", 64), 8, 1, 0),
    ],
)
def test_a_node_carries_what_its_cores_and_gpus_allow(
    machine: Node, cpus: float, gpus: float, expected: int
) -> None:
    assert WorkerSize(cpus=cpus, gpus=gpus).fit(machine) == expected


def test_places_follow_nodes_that_join_leave_or_cannot_be_trusted() -> None:
    size = WorkerSize(cpus=1, gpus=0)
    nodes = [node("a", 2), node("b", 2)]
    assert num_places(nodes, size, lost={}, leaving=()) == 4
    assert num_places([*nodes, node("c", 1)], size, lost={}, leaving=()) == 5
    assert num_places(nodes, size, lost={"a": 1}, leaving=()) == 3
    assert num_places(nodes, size, lost={}, leaving=("b",)) == 2
    assert num_places([], size, lost={}, leaving=()) == 1, "one waits for a machine"


def test_cores_of_a_worker_are_its_share_of_the_smallest_node() -> None:
    gpus = Cluster(nodes=(node("a", 16, 4), node("b", 64, 4), node("head", 2)))
    assert gpus.num_gpus == 8
    assert gpus.cores_per_gpu() == 4
    assert gpus.cpus_per_worker(10, 1.0) == 4
    assert gpus.cpus_per_worker(10, 0.5) == 2
    assert gpus.cpus_per_worker(3, 1.0) == 3
    cores = Cluster(nodes=(node("a", 16), node("b", 4)))
    assert cores.cores_per_gpu() == 4
    assert cores.cpus_per_worker(10, 1.0) == 4
