"""Shards to those who judge them: in this process, or actors of a Ray cluster."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jobs.evaluation.records import JudgeSpec, ShardJudged, VideoJudged
from jobs.evaluation.shard import ShardJudge
from pipeline.cluster import WorkerSize, num_places
from pipeline.config import ClusterConfig, ClusterKind, Device
from pipeline.errors import ConfigError, RunError
from pipeline.shards import Shard

MAX_RESTARTS = 3
"""Of one worker: its machine may be taken away, a video may break its process."""


def judged_shards(
    spec: JudgeSpec,
    shards: Sequence[Shard],
    cluster: ClusterConfig,
    device: Device,
    on_video: Callable[[VideoJudged], None],
) -> Iterator[ShardJudged]:
    """Each shard's result as it is ready.

    Args:
        spec: of every worker; its device is chosen here.
        shards: to be judged.
        cluster: where.
        device: what was asked for.
        on_video: told of every video, inline only.

    Raises:
        ConfigError: a GPU was asked for and there is none, or a cluster that it cannot use.
        RunError: a worker died again and again.
    """
    if cluster.kind is ClusterKind.array:
        raise ConfigError("cluster=array is for tokenising: use cluster=inline, local or ray")
    if cluster.kind is ClusterKind.inline:
        import torch

        judge = ShardJudge(replace(spec, device=_device(device, torch.cuda.is_available())))
        for shard in shards:
            yield judge.judge(shard, on_video)
        return
    yield from _on_ray(spec, shards, cluster, device)


def _device(asked: Device, has_gpus: bool) -> str:
    if asked is Device.cuda and not has_gpus:
        raise ConfigError("evaluate.device=cuda, but there is no GPU here; use auto or cpu")
    return "cuda" if has_gpus and asked is not Device.cpu else "cpu"


class JudgeActor:
    """A ``ShardJudge`` in a process of its own."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Nothing is loaded yet."""
        # What goes wrong here would be lost: a failed start is told by the first call.
        self._spec = spec
        self._judge: ShardJudge | None = None
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

    def begun(self) -> None:
        """Answers as soon as there is a place for this process."""

    def judge(self, shard: Shard) -> ShardJudged:
        """``ShardJudge.judge``."""
        self._judge = self._judge or ShardJudge(self._spec)
        return self._judge.judge(shard)


def _on_ray(
    spec: JudgeSpec, shards: Sequence[Shard], cluster: ClusterConfig, device: Device
) -> Iterator[ShardJudged]:
    # Ray takes a second to import: only for those who use it
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    from pipeline.driver import start_ray

    _ray: Any = ray  # its decorator carries no types
    found = start_ray(cluster.address if cluster.kind is ClusterKind.ray else None)
    try:
        spec = replace(spec, device=_device(device, found.num_gpus > 0))
        gpus = cluster.gpus_per_worker if spec.device == "cuda" else 0.0
        cpus = cluster.cpus_per_worker or found.cpus_per_worker(spec.threads, gpus or 1.0)
        places = num_places(found.nodes, WorkerSize(cpus=cpus, gpus=gpus), lost={}, leaving=())
        actor_class = _ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
        )(JudgeActor)
        number = min(len(shards), cluster.num_workers or places)
        actors = [actor_class.remote(spec) for _ in range(number)]
        waiting = list(reversed(shards))
        # A worker without a place has no shard that it would keep from the others.
        running: dict[Any, tuple[Any, Shard | None]] = {
            actor.begun.remote(): (actor, None) for actor in actors
        }
        num_left = len(shards)
        while num_left:
            (ready,), _ = _ray.wait(list(running), num_returns=1)
            actor, shard = running.pop(ready)
            try:
                result: ShardJudged | None = _ray.get(ready)
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError as error:
                raise RunError(_death(shard)) from error
            if waiting:
                shard = waiting.pop()
                running[actor.judge.remote(shard)] = (actor, shard)
            else:
                # Idle, it would keep its place from one that starts again with its shard.
                _ray.kill(actor)
            if result is not None:
                num_left -= 1
                yield result
    finally:
        _ray.shutdown()


def _death(shard: Shard | None) -> str:
    died = f"the worker's process died {MAX_RESTARTS + 1} times"
    if shard is None:
        return f"{died} before its first shard; the same command continues"
    return (
        f"{shard.name}: {died}; the same command continues; a video of this shard may be the reason"
    )
