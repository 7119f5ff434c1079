"""Workers on a Ray cluster: starts or joins it, places one actor per GPU, and waits for shards.

Ray does what it is best at: placing workers and noticing their death. Retries are decided by
``schedule``; no pixel, token or clip ever passes through Ray.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from pipeline.actors import EncoderActor
from pipeline.errors import PipelineError, RunError, WorkerLost
from pipeline.schedule import Finished
from pipeline.segments import ShardTask
from pipeline.worker import WorkerSpec

logger = logging.getLogger(__name__)

# Ray's decorator and its state calls carry no types
_ray: Any = ray
_actor_class: Any = EncoderActor

START_SECONDS = 600.0
"""Longest wait for the first actor to load its model."""
CONNECT_SECONDS = 10.0
"""Longest wait for the head of a cluster to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What Ray has to offer."""

    num_gpus: float
    """GPUs of the whole cluster."""
    node_cpus: tuple[float, ...]
    """Cores of each node that is alive."""

    def num_workers(self, cpus_per_worker: float, gpus_per_worker: float) -> int:
        """One worker per GPU (or fraction); without GPUs as many as the cores carry."""
        if self.num_gpus:
            return max(1, int(self.num_gpus / gpus_per_worker))
        return max(1, sum(int(cpus / cpus_per_worker) for cpus in self.node_cpus))

    def cores_per_gpu(self) -> float:
        """Cores of a node that a GPU of it can count on; without GPUs all of the smallest node."""
        per_node = max(1.0, self.num_gpus / len(self.node_cpus))
        return min(self.node_cpus) / per_node

    def cpus_per_worker(self, wanted: int, gpus_per_worker: float) -> float:
        """Cores to reserve for a worker: those that it wants, at most its share of a node."""
        smallest = min(self.node_cpus)
        if self.num_gpus:
            share = self.num_gpus / gpus_per_worker / len(self.node_cpus)
            return max(1.0, min(wanted, math.floor(smallest / max(1.0, share))))
        return max(1.0, min(wanted, smallest))


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


def start_ray(address: str | None) -> Cluster:
    """Start Ray here (``address`` None) or join a running cluster.

    Raises:
        RunError: no cluster at the address, or it does not let us in.
    """
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if address is None:
        options |= {"include_dashboard": False, "address": "local"}
    else:
        check_reachable(address)
        options |= {"address": address}
    # every local Ray prints four lines about its token; pipeline/README.md tells about it
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        ray.init(**options)
    except (RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"cluster.address={address}: cannot join Ray: {line} (a cluster with token "
            "authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in this process too)"
        ) from error
    nodes = [node for node in _ray.nodes() if node["Alive"]]
    return Cluster(
        num_gpus=float(_ray.cluster_resources().get("GPU", 0.0)),
        node_cpus=tuple(
            float(node["Resources"].get("CPU", 0.0))
            for node in nodes
            if node["Resources"].get("CPU", 0.0) >= 1
        )
        or (1.0,),
    )


@dataclass(slots=True)
class _Actor:
    handle: Any
    busy: int = 0
    counters: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    """Counters of its incarnations that died."""
    asked: Any = None
    is_ready: bool = False


class RayWorkers:
    """A pool of encoder actors, started all at once."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        num_workers: int,
        cpus_per_worker: float,
        gpus_per_worker: float,
        open_shards: int,
    ) -> None:
        """Start the actors; returns when the first one has loaded its model.

        Raises:
            RunError: none could start.
        """
        self._open_shards = open_shards
        options = {
            "num_cpus": cpus_per_worker,
            "num_gpus": gpus_per_worker if spec.encoder.device == "cuda" else 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            # shards, and one call each for counters and closing
            "max_concurrency": open_shards + 2,
        }
        self._actors = [
            _Actor(_actor_class.options(**options).remote(spec)) for _ in range(num_workers)
        ]
        self._running: dict[Any, tuple[_Actor, ShardTask]] = {}
        self._starting = {actor.handle.ready.remote(): actor for actor in self._actors}
        self._await_start(START_SECONDS, options)

    def _await_start(self, timeout_seconds: float, options: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not any(actor.is_ready for actor in self._actors):
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(self._starting), num_returns=1, timeout=left)
            self._note_started(ready)
            if ready:
                continue
            raise RunError(
                f"no worker started within {timeout_seconds:.0f} s; each asks for "
                f"num_cpus={options['num_cpus']} num_gpus={options['num_gpus']}; the cluster has "
                f"{_ray.available_resources()}"
            )

    def _note_started(self, references: list[Any]) -> None:
        for reference in references:
            actor = self._starting.pop(reference)
            try:
                ray.get(reference)
            except (RayError, PipelineError) as error:
                self._actors.remove(actor)
                if not self._actors:
                    raise RunError(f"no worker can start: {_last_line(error)}") from error
                logger.error("a worker cannot start, going on without it: %s", _last_line(error))
            else:
                actor.is_ready = True

    def capacity(self) -> int:
        """Shards that the actors that have started may have open."""
        if self._starting:
            ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            self._note_started(ready)
        return sum(actor.is_ready for actor in self._actors) * self._open_shards

    def submit(self, task: ShardTask) -> None:
        """Give a shard to the least busy actor."""
        actor = min((a for a in self._actors if a.is_ready), key=lambda a: a.busy)
        actor.busy += 1
        self._running[actor.handle.run_shard.remote(task)] = (actor, task)

    def wait(self, timeout_seconds: float) -> list[Finished]:
        """Attempts that ended."""
        if not self._running:
            time.sleep(timeout_seconds)
            return []
        references = list(self._running)
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [self._collect(reference) for reference in ready]

    def _collect(self, reference: Any) -> Finished:
        actor, task = self._running.pop(reference)
        actor.busy -= 1
        try:
            return Finished(task=task, receipts=ray.get(reference))
        except RayActorError as error:
            actor.lost = _sum([actor.lost, actor.counters])
            actor.counters = {}
            lost = WorkerLost(task.shard.name, f"its worker died: {_last_line(error)}")
            preempted = bool(getattr(error, "preempted", False))
            return Finished(task=task, error=lost, counts_as_attempt=not preempted)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            return Finished(task=task, error=cause)

    def counters(self, *, wait_seconds: float = 0.0) -> dict[str, float]:
        """Sums over all actors, as of their last answers, or of answers waited for."""
        if wait_seconds:
            fresh = [actor.handle.counters.remote() for actor in self._actors if actor.is_ready]
            ready, _ = ray.wait(fresh, num_returns=len(fresh), timeout=wait_seconds)
            for actor, reference in zip(
                (a for a in self._actors if a.is_ready), fresh, strict=True
            ):
                if reference in ready:
                    actor.asked = reference
        for actor in self._actors:
            if not actor.is_ready:
                continue
            if actor.asked is not None:
                try:
                    actor.counters = ray.get(actor.asked, timeout=0)
                except GetTimeoutError:
                    continue
                except (RayActorError, RayTaskError) as error:
                    # the attempt that ran there reports the death; here only numbers are missing
                    logger.debug("no counters: %s", error)
            actor.asked = actor.handle.counters.remote()
        return _sum([part for actor in self._actors for part in (actor.counters, actor.lost)])

    def close(self) -> None:
        """Close the workers, and Ray."""
        closing = [actor.handle.close.remote() for actor in self._actors if actor.is_ready]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=30)
        for actor in self._actors:
            ray.kill(actor.handle)
        ray.shutdown()


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _last_line(error: BaseException) -> str:
    if isinstance(error, ActorDiedError) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
