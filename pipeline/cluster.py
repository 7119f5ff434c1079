"""What a Ray cluster has to offer, and how many workers it carries; others ask Ray itself."""

from __future__ import annotations

import math
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.errors import RunError

CONNECT_SECONDS = 10.0
"""Longest wait for the head of a cluster to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine that is alive."""

    node_id: str
    """Ray's name of it."""
    cpus: float
    """Cores that Ray may give out."""
    gpus: float
    """GPUs that Ray may give out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSize:
    """What Ray reserves for one worker."""

    cpus: float
    """Cores."""
    gpus: float
    """GPUs or a fraction of one; 0 on a CPU."""

    def fit(self, node: Node) -> int:
        """Workers that a node carries."""
        by_cpus = int((node.cpus + 1e-6) / self.cpus)
        return min(by_cpus, int((node.gpus + 1e-6) / self.gpus)) if self.gpus else by_cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All machines that are alive."""

    nodes: tuple[Node, ...]

    @property
    def num_gpus(self) -> float:
        """GPUs of the whole cluster."""
        return sum(node.gpus for node in self.nodes)

    def cores_per_gpu(self) -> float:
        """Cores of a node that a GPU of it can count on; without GPUs all of the smallest node."""
        if not self.num_gpus:
            return min((node.cpus for node in self.nodes if node.cpus >= 1), default=1.0)
        return min(node.cpus / max(1.0, node.gpus) for node in self.nodes if node.gpus)

    def cpus_per_worker(self, wanted: int, gpus_per_worker: float) -> float:
        """Cores to reserve for a worker: those that it wants, at most its share of a node."""
        if not self.num_gpus:
            return max(1.0, min(wanted, self.cores_per_gpu()))
        share = min(
            node.cpus / max(1.0, node.gpus / gpus_per_worker) for node in self.nodes if node.gpus
        )
        return max(1.0, min(wanted, math.floor(share)))


def num_places(
    nodes: Collection[Node], size: WorkerSize, *, lost: Mapping[str, int], leaving: Collection[str]
) -> int:
    """Workers that a cluster carries, at least 1 (which then waits for a machine).

    Args:
        nodes: alive.
        size: of a worker.
        lost: node -> places on it that are not to be used any more.
        leaving: nodes that are being drained.

    >>> node = Node(node_id="a", cpus=8, gpus=0)
    >>> num_places([node], WorkerSize(cpus=3, gpus=0), lost={"a": 1}, leaving=())
    1
    """
    places = sum(
        max(0, size.fit(node) - lost.get(node.node_id, 0))
        for node in nodes
        if node.node_id not in leaving
    )
    return max(1, places)


def check_reachable(address: str) -> None:
    """Ray itself would try for many minutes, and say little.

    Raises:
        RunError: nothing listens at HOST:PORT (``auto`` and ``ray://`` are left to Ray).
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"cluster.address={address}: cannot join Ray: {error}") from error
