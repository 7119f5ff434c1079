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
from typing import Any

from jobs.benchmark import pieces
from jobs.benchmark.clock import clocked
from jobs.benchmark.workload import Figures, Job, run_config, worker_spec


def _pipeline(job: Job, *, on_ray: bool) -> Figures:
    """The real planning, scheduler, workers and commits, on workers that have done a shard."""
    from pipeline.planning import make_plan, tally_of
    from pipeline.schedule import RetryRules, Scheduler
    from pipeline.shards import tar_shards
    from pipeline.storage import Storage

    out = Path(job.folder, "out")
    shutil.rmtree(out, ignore_errors=True)
    run = run_config(job.shards, out, job.setting)
    storage = Storage(str(out), {})
    workers = _workers(worker_spec(run), on_ray=on_ray)

    def carry_out(tars: list[str]) -> None:
        plan = make_plan(tar_shards(tars), storage, options={}, redo_changed=False)
        Scheduler(
            storage=storage,
            workers=workers,
            rules=RetryRules(max_attempts=1, retry_seconds=1, max_bad_fraction=1, min_videos=1),
            tally=tally_of(plan),
            show=lambda tally: None,
        ).run(plan.tasks, plan.receipts)

    try:
        carry_out([job.warm_up])
        before = workers.counters(wait_seconds=5)
        with clocked() as figures:
            carry_out(job.shards)
        after = workers.counters(wait_seconds=5)
    finally:
        workers.close()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    if spent["clips"] != job.num_clips:
        raise RuntimeError(f"the pipeline made {spent['clips']} clips of {job.num_clips}")
    names = ("decode_cpu_seconds", "encode_seconds", "starved_seconds")
    return figures | {name: spent[name] for name in names}


def _workers(spec: Any, *, on_ray: bool) -> Any:
    """One worker, here or on a Ray of its own."""
    if not on_ray:
        from pipeline.inline import InlineWorkers

        return InlineWorkers(spec, open_shards=2)
    from pipeline.driver import RayWorkers, start_ray

    start_ray(None)
    return RayWorkers(spec, num_workers=1, cpus_per_worker=1, gpus_per_worker=1.0, open_shards=2)


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
