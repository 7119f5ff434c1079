"""``python -m pipeline.run +dataset=webvid +tokenizer=fsq_4x8x8``: videos in, tokens out.

Tells the story of a run; every step of it lives elsewhere. Nothing that crosses a process boundary
is defined here, where it would belong to ``__main__``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pipeline import compose, resolve
from pipeline.array import work_as_rank
from pipeline.attempts import Workers
from pipeline.canary import make_reference
from pipeline.card import write_card
from pipeline.command_line import carry_out
from pipeline.config import ClusterKind, DatasetKind, RunConfig
from pipeline.dry_run import describe_dry_run
from pipeline.errors import Interrupted, PipelineError
from pipeline.inputs import list_folder, list_tars, sources_of
from pipeline.outputs import runs_of
from pipeline.planning import Plan, books_of, joint_tally, tasks_of
from pipeline.progress import ProgressLine, summary
from pipeline.rank import Rank, find_rank
from pipeline.records import CanaryMode
from pipeline.resolve_spans import describe_spans, with_spans
from pipeline.run_output import RunOutput, describe_plan, open_outputs, plan_output, prepare
from pipeline.schedule import Scheduler
from pipeline.shards import Shard
from pipeline.signals import command_started_at_seconds, stop_on_signals
from pipeline.storage import Storage
from pipeline.tally import Tally
from tokenizer import TokenizerError

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


def main() -> None:
    """Check the command line, then let Hydra run it, or each job of a ``--multirun``."""
    compose.register_schema()
    try:
        jobs = compose.jobs_of(compose.arguments(), "run", "output.root")
        for job in jobs:
            compose.check_command(job, check=partial(runs_of, arguments=job))
    except PipelineError as error:
        sys.exit(f"error: {error}")
    compose.run_each(jobs, run_composed)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="run")
def run_composed(config: DictConfig) -> None:
    """Run one composed configuration; the exit code says whether everything is final and whole."""
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # describe_plan says it once, in a sentence of its own
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)
    try:
        code = execute(*runs_of(config, sys.argv[1:]))
    except (Interrupted, KeyboardInterrupt):
        sys.exit("interrupted; the same command continues behind the last committed segments")
    except (PipelineError, TokenizerError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


def execute(run: RunConfig, *beside: RunConfig) -> int:
    """Carry out a run.

    Args:
        run: its configuration; of its first output where there are several.
        beside: of the further outputs; they differ in what belongs to one output only.

    Returns:
        0 when every shard is final and complete in every output, else 1.

    Raises:
        RunError: the run cannot begin or go on.
    """
    rank = None
    if run.cluster.kind is ClusterKind.array:
        rank = find_rank(run.cluster.rank, run.cluster.ranks, os.environ)
    run, spans = with_spans(run)
    same = [replace(one, dataset=run.dataset) for one in beside]
    outputs = open_outputs([run, *same])
    shards = list_shards(run)
    found = sources_of(shards, run.dataset.storage_options)
    plans = [plan_output(output, shards, found) for output in outputs]
    for output, plan in zip(outputs, plans, strict=True):
        print("\n".join(describe_plan(output, plan)))
    if rank is not None:
        share = len(rank.share_of(tasks_of(plans)))
        print(f"{rank}: {share} of them are its share, then what others have left")
    if spans is not None:
        print(describe_spans(spans))
    sys.stdout.flush()
    tally = joint_tally(plans)
    tally.began_at_seconds = command_started_at_seconds()
    if run.dry_run:
        for output, plan in zip(outputs, plans, strict=True):
            print(describe_dry_run(plan, output.identity.fingerprint, is_new=output.is_new))
        return 0
    try:
        if any(plan.tasks for plan in plans):
            work(outputs, plans, tally, rank)
    finally:
        for plan in plans:
            plan.ledger.publish(plan.storage)
            write_card(plan.storage, plan.ledger, license_name=run.dataset.license)
    codes = []
    for number, (output, plan) in enumerate(zip(outputs, plans, strict=True)):
        if output.run.output.report and (rank is None or rank.number == 0):
            report(plan.storage, run.dataset.storage_options)
        own = tally.of_output(number, plan.final_shards())
        codes.append(conclude(plan, own, has_images=output.has_images))
    return max(codes)


def list_shards(run: RunConfig) -> list[Shard]:
    """The shards that the data set names."""
    dataset = run.dataset
    if dataset.kind is DatasetKind.folder:
        assert dataset.path is not None
        return list_folder(
            dataset.path,
            resolve.read_rules(run).media_extensions,
            num_buckets=dataset.num_buckets,
            options=dataset.storage_options,
        )
    patterns = resolve.shard_patterns(run)
    if dataset.kind is DatasetKind.demo:
        from pipeline.demo import SHARDS, demo_shards

        patterns = [str(path) for path in demo_shards(SHARDS)]
    return list_tars(patterns, dataset.storage_options)


def work(
    outputs: Sequence[RunOutput], plans: Sequence[Plan], tally: Tally, rank: Rank | None
) -> None:
    """Start the workers and carry out the tasks."""
    run, tasks = outputs[0].run, tasks_of(plans)
    books = books_of(plans, [output.identity.fingerprint for output in outputs])
    workers = start_workers(outputs, len(tasks))
    try:
        with ProgressLine() as line:
            scheduler = Scheduler(
                workers=workers,
                rules=resolve.retry_rules(run),
                tally=tally,
                show=shown_by(line.show, run.cluster.kind),
                is_shared=rank is not None,
            )
            with stop_on_signals(scheduler.stop, workers.stop_now, run.cluster.grace_seconds):
                if rank is None:
                    scheduler.run(tasks, books)
                else:
                    at_once = run.cluster.open_shards
                    work_as_rank(rank, scheduler, plans, books, tally, at_once=at_once)
    finally:
        workers.close()
    if tally.is_interrupted:
        raise Interrupted(f"{len(tasks)} shards were left to do")


def shown_by(show: Callable[[Tally], None], cluster: ClusterKind) -> Callable[[Tally], None]:
    """Who is told how the run stands: the terminal, and on Ray its metrics endpoint."""
    if cluster in (ClusterKind.inline, ClusterKind.array):
        return show
    from pipeline.actors import publish_runs

    publish = publish_runs()

    def both(tally: Tally) -> None:
        show(tally)
        publish(tally)

    return both


def start_workers(outputs: Sequence[RunOutput], num_tasks: int) -> Workers:
    """Workers in this process or on Ray, all with the same device and batch shape."""
    cluster = outputs[0].run.cluster
    if cluster.kind in (ClusterKind.inline, ClusterKind.array):
        import torch

        from pipeline.inline import InlineWorkers

        cores = len(os.sched_getaffinity(0))  # those that a cluster has given to this process
        spec = prepare(outputs, has_gpus=torch.cuda.is_available(), cores=cores)
        return InlineWorkers(spec, open_shards=cluster.open_shards)
    # Ray takes a second to import: only for those who use it
    from pipeline.cluster import WorkerSize
    from pipeline.driver import RayWorkers, probe_on_gpu, start_ray

    found = start_ray(cluster.address if cluster.kind is ClusterKind.ray else None)
    spec = prepare(
        outputs,
        has_gpus=found.num_gpus > 0,
        cores=found.cores_per_gpu(),
        probe=partial(probe_on_gpu, num_gpus=cluster.gpus_per_worker),
    )
    cpus = cluster.cpus_per_worker or found.cpus_per_worker(
        spec.encoder.threads + spec.decoders, cluster.gpus_per_worker
    )
    for output, one in zip(outputs, spec.each(), strict=True):
        if one.canary is not CanaryMode.off:
            # By a process that is no worker: a first worker that lies must not be its own judge.
            logging.getLogger("pipeline.encode").setLevel(logging.WARNING)  # workers say the same
            make_reference(output.storage, one.encoder)
    gpus = cluster.gpus_per_worker if spec.encoder.device == "cuda" else 0.0
    return RayWorkers(
        spec,
        size=WorkerSize(cpus=cpus, gpus=gpus),
        num_workers=cluster.num_workers,
        most_workers=num_tasks,
        open_shards=cluster.open_shards,
    )


def report(storage: Storage, source_options: Mapping[str, Any]) -> None:
    """Write the page about OUT; tokens are committed whether that succeeds or not."""
    from pipeline.report import ReportOptions, write_report  # it imports this module

    try:
        place = write_report(storage, ReportOptions(source_options=source_options))
    except PipelineError as error:
        logger.warning("no report: %s", error)
    else:
        print(f"report: {place}")


def conclude(plan: Plan, tally: Tally, *, has_images: bool = False) -> int:
    """Print how the run ended; 0 when every shard is final and complete."""
    counts = plan.ledger.counts(shard.name for shard in plan.shards)
    print(summary(tally, counts, root=str(plan.storage), has_images=has_images))
    return 0 if not counts.cut and tally.done_shards == tally.num_shards and not tally.failed else 1


if __name__ == "__main__":
    carry_out(main)
