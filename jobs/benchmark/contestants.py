"""The contestants of the pipeline benchmark, each in a process of its own.

``python -m jobs.benchmark.contestants JOB`` runs one once and prints its figures as a line of JSON.
All obey one clock: it starts when the model is loaded, has run once, and nothing that counts has
been decoded; it stops when the last row is safely on disk (the pieces: when the last clip is done).
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.benchmark import pieces
from jobs.benchmark.clock import clocked
from jobs.benchmark.workload import Figures, Job, run_config, worker_spec

if TYPE_CHECKING:
    from pipeline.attempts import Event, Workers
    from pipeline.planning import Plan
    from pipeline.worker_spec import WorkerSpec


def _pipeline(job: Job, *, on_ray: bool) -> Figures:
    """The real planning, scheduler, workers and commits, on a worker that has done a shard."""
    from pipeline.planning import make_plan
    from pipeline.shards import tar_shards
    from pipeline.storage import Storage

    out = Path(job.folder, "out")
    shutil.rmtree(out, ignore_errors=True)
    storage = Storage(str(out), {})
    spec = worker_spec(run_config(job.shards, out, job.setting))
    workers: Any = _Rejoining(_workers(spec, on_ray=on_ray))

    def carry_out(tars: list[str]) -> None:
        plan = make_plan(tar_shards(tars), storage, options={}, redo_changed=False)
        _schedule(plan, workers)

    try:
        carry_out([job.warm_up])
        before = _counters(workers)
        workers.rejoin()
        with clocked() as figures:
            carry_out(job.shards)
        after = _counters(workers)
    finally:
        workers.close()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    if spent["clips"] != job.num_clips:
        raise RuntimeError(f"the pipeline made {spent['clips']} clips of {job.num_clips}")
    names = ("decode_cpu_seconds", "encode_seconds", "starved_seconds")
    return figures | {name: spent[name] for name in names}


def _schedule(plan: Plan, workers: Any) -> None:
    from pipeline.planning import books_of, tally_of
    from pipeline.schedule import RetryRules, Scheduler

    tally = tally_of(plan)
    rules = RetryRules(max_attempts=1, retry_seconds=1, max_bad_fraction=1, min_videos=1)
    Scheduler(workers=workers, rules=rules, tally=tally, show=lambda tally: None).run(
        plan.tasks, books_of([plan], [""])
    )
    if tally.failed or tally.done_shards != tally.num_shards:
        raise RuntimeError(f"shards failed: {tally.failed}")


class _Rejoining:
    """Workers that outlive a scheduler, and join the next one."""

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        self._joined: list[Event] = []
        self._again: list[Event] = []

    def rejoin(self) -> None:
        """Tell the next scheduler who is there."""
        self._again = list(self._joined)

    def events(self, timeout_seconds: float) -> list[Event]:
        from pipeline.attempts import Joined

        again, self._again = self._again, []
        found: list[Event] = self._workers.events(0.0 if again else timeout_seconds)
        self._joined += [event for event in found if isinstance(event, Joined)]
        return again + found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)


def _workers(spec: WorkerSpec, *, on_ray: bool) -> Workers:
    """One worker, here or on a Ray of its own."""
    if not on_ray:
        from pipeline.inline import InlineWorkers

        return InlineWorkers(spec, open_shards=2)
    from pipeline.cluster import WorkerSize
    from pipeline.driver import RayWorkers, start_ray

    gpus = float(spec.encoder.device == "cuda")
    start_ray(None)
    return RayWorkers(
        spec, size=WorkerSize(cpus=1, gpus=gpus), num_workers=1, most_workers=1, open_shards=2
    )


def _counters(workers: Workers) -> dict[str, float]:
    from pipeline.attempts import combined

    reports = workers.reports(wait_seconds=5)
    return combined(report.counters for report in reports.values())


def _ray_data(job: Job, *, as_documented: bool) -> Figures:
    from jobs.benchmark import ray_data

    return ray_data.documented(job) if as_documented else ray_data.same_functions(job)


CONTESTANTS: Mapping[str, Callable[[Job], Figures]] = {
    "decode alone": lambda job: pieces.run(job, decodes=True, encodes=False),
    "encode alone": lambda job: pieces.run(job, decodes=False, encodes=True),
    "both, uncoupled": lambda job: pieces.run(job, decodes=True, encodes=True),
    "pipeline inline": lambda job: _pipeline(job, on_ray=False),
    "pipeline on Ray": lambda job: _pipeline(job, on_ray=True),
    "same on Ray Data": lambda job: _ray_data(job, as_documented=False),
    "documented Ray Data": lambda job: _ray_data(job, as_documented=True),
}
"""Name -> what runs a job once."""


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    job = Job.from_json(sys.argv[1])
    print(json.dumps(CONTESTANTS[job.contestant](job)), flush=True)
