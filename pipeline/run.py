"""``python -m pipeline.run +dataset=webvid +tokenizer=fsq_4x8x8``: videos in, tokens out.

Tells the story of a run; every step of it lives elsewhere. Nothing that crosses a process boundary
is defined here, where it would belong to ``__main__``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pipeline import compose, resolve
from pipeline.array import work_as_rank
from pipeline.attempts import Workers
from pipeline.batch_probe import ProbeResult, probe_batch
from pipeline.canary import make_reference, reference_tokens
from pipeline.card import write_card
from pipeline.chosen_tokenizer import tokenizer_of
from pipeline.config import ChangedInputs, ClusterKind, DatasetKind, RunConfig
from pipeline.dry_run import describe_dry_run
from pipeline.encode import EncoderSpec
from pipeline.errors import Interrupted, PipelineError
from pipeline.inputs import list_folder, list_tars
from pipeline.planning import Plan, make_plan, tally_of
from pipeline.progress import ProgressLine, summary
from pipeline.rank import Rank, find_rank
from pipeline.records import CanaryMode, Retry, Variant
from pipeline.resolve_sampling import describe_variant
from pipeline.resolve_spans import describe_spans, with_spans
from pipeline.run_record import check_fingerprint, write_run_record
from pipeline.schedule import Scheduler
from pipeline.shards import Shard
from pipeline.signals import command_started_at_seconds, stop_on_signals
from pipeline.storage import Storage
from pipeline.tally import Tally
from pipeline.worker_spec import WorkerSpec
from tokenizer import TokenizerError

if TYPE_CHECKING:
    from tokenizer import CheckpointInfo

logger = logging.getLogger(__name__)


def main() -> None:
    """Check the command line, then let Hydra run it, or each job of a ``--multirun``."""
    compose.register_schema()
    try:
        jobs = compose.jobs_of(compose.arguments(), "run", "output.root")
        for job in jobs:
            compose.check_command(job)
    except PipelineError as error:
        sys.exit(f"error: {error}")
    compose.run_each(jobs, run_composed)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="run")
def run_composed(config: DictConfig) -> None:
    """Run one composed configuration; the exit code says whether everything is final and whole."""
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # print_plan says it once, in a sentence of its own
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)
    try:
        code = execute(compose.to_run_config(config))
    except (Interrupted, KeyboardInterrupt):
        sys.exit("interrupted; the same command continues behind the last committed segments")
    except (PipelineError, TokenizerError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all steps of one run share."""

    run: RunConfig
    weights: CheckpointInfo
    storage: Storage
    recorded_batch: int | None
    rank: Rank | None
    """Of ``cluster=array``."""

    @property
    def is_new(self) -> bool:
        """Whether no run has written to OUT yet."""
        return self.recorded_batch is None


def execute(run: RunConfig) -> int:
    """Carry out a run.

    Returns:
        0 when every shard is final and complete, else 1.

    Raises:
        RunError: the run cannot begin or go on.
    """
    cluster = run.cluster
    rank = None
    if cluster.kind is ClusterKind.array:
        rank = find_rank(cluster.rank, cluster.ranks, os.environ)
    run, spans = with_spans(run)
    weights = read_weights(run)
    storage = Storage(run.output.root, run.output.storage_options)
    if not run.dry_run:
        storage.check_safe_commits()
    identity = resolve.identity(run, weights.digest)
    record = check_fingerprint(storage, identity.material)
    job = _Job(
        run=run,
        weights=weights,
        storage=storage,
        recorded_batch=record["batch_clips"] if record else None,
        rank=rank,
    )
    plan = make_plan(
        list_shards(run),
        storage,
        options=run.dataset.storage_options,
        redo_changed=run.changed_inputs is ChangedInputs.redo and not run.dry_run,
        retry=run.retry,
    )
    print_plan(job, plan)
    if spans is not None:
        print(describe_spans(spans), flush=True)
    tally = tally_of(plan)
    tally.began_at_seconds = command_started_at_seconds()
    if run.dry_run:
        print(describe_dry_run(plan, identity.fingerprint, is_new=job.is_new))
        return 0
    try:
        if plan.tasks:
            work(job, plan, tally)
    finally:
        plan.ledger.publish(storage)
        write_card(storage, plan.ledger, license_name=run.dataset.license)
    if run.output.report and (rank is None or rank.number == 0):
        report(storage, run.dataset.storage_options)
    return conclude(plan, tally, storage, has_images=bool(run.dataset.image_extensions))


def read_weights(run: RunConfig) -> CheckpointInfo:
    """Digest of the weights; random ones are said to be random."""
    return tokenizer_of(run).weights()


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


def print_plan(job: _Job, plan: Plan) -> None:
    """Say what is there and what will be done."""
    run = job.run
    counts = plan.ledger.counts(shard.name for shard in plan.shards)
    final = counts.final_shards
    size = sum(source.size_bytes for source in plan.sources.values())
    print(
        f"{run.dataset.name}: {len(plan.shards)} shards, {size / 1e6:,.1f} MB; {final} final, "
        f"{len(plan.tasks)} to do{' (dry run)' if run.dry_run else ''} -> {job.storage}"
    )
    if job.rank is not None:
        share = len(job.rank.share_of(plan.tasks))
        print(f"{job.rank}: {share} of them are its share, then what others have left")
    if run.dataset.image_extensions:
        endings = ", ".join(sorted(resolve.read_rules(run).image_extensions))
        print(f"images ({endings}) are clips of one frame; {counts.single_frames:,} are committed")
    if (variant := run.sampling.variant) is not Variant.none:
        print(f"variant {describe_variant(variant)}")
    if job.weights.is_random:
        print(f"tokenizer {run.tokenizer.name} has RANDOM weights: its tokens carry no meaning")
    if run.retry is not None:
        print(describe_retry(run.retry, plan))
    for name, reason in plan.missing.items():
        print(f"not there: {name}: {reason}")
    for name in plan.changed:
        print(f"changed since it was tokenised: {name} (changed_inputs={run.changed_inputs.name})")
    sys.stdout.flush()


def describe_retry(retry: Retry, plan: Plan) -> str:
    """What of the committed part will be tried again."""
    if retry is Retry.incomplete:
        return f"retry=incomplete: {len(plan.continuing)} cut shards, from where they were cut"
    videos = sum(plan.ledger.state(task.shard.name).num_retriable for task in plan.amending)
    return f"retry=quarantined: {videos:,} videos of {len(plan.amending):,} shards"


def work(job: _Job, plan: Plan, tally: Tally) -> None:
    """Start the workers and carry out the tasks."""
    workers = start_workers(job, len(plan.tasks))
    try:
        with ProgressLine() as line:
            show = shown_by(line.show, job.run.cluster.kind)
            scheduler = Scheduler(
                storage=job.storage,
                workers=workers,
                rules=resolve.retry_rules(job.run),
                tally=tally,
                show=show,
                is_shared=job.rank is not None,
            )
            with stop_on_signals(scheduler.stop, workers.stop_now, job.run.cluster.grace_seconds):
                if job.rank is None:
                    scheduler.run(plan.tasks, plan.ledger)
                else:
                    at_once = job.run.cluster.open_shards
                    work_as_rank(job.rank, scheduler, plan, tally, job.storage, at_once=at_once)
    finally:
        workers.close()
    if tally.is_interrupted:
        raise Interrupted(f"{len(plan.tasks)} shards were left to do")


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


def start_workers(job: _Job, num_tasks: int) -> Workers:
    """Workers in this process or on Ray, all with the same device and batch shape."""
    cluster = job.run.cluster
    if cluster.kind in (ClusterKind.inline, ClusterKind.array):
        import torch

        from pipeline.inline import InlineWorkers

        cores = len(os.sched_getaffinity(0))  # those that a cluster has given to this process
        spec = prepare(job, has_gpus=torch.cuda.is_available(), cores=cores)
        return InlineWorkers(spec, open_shards=cluster.open_shards)
    # Ray takes a second to import: only for those who use it
    from pipeline.cluster import WorkerSize
    from pipeline.driver import RayWorkers, probe_on_gpu, start_ray

    found = start_ray(cluster.address if cluster.kind is ClusterKind.ray else None)
    spec = prepare(
        job,
        has_gpus=found.num_gpus > 0,
        cores=found.cores_per_gpu(),
        probe=lambda encoder: probe_on_gpu(encoder, cluster.gpus_per_worker),
    )
    cpus = cluster.cpus_per_worker or found.cpus_per_worker(
        spec.encoder.threads + spec.decoders, cluster.gpus_per_worker
    )
    if spec.canary is not CanaryMode.off:
        # By a process that is no worker: a first worker that lies must not be its own judge.
        logging.getLogger("pipeline.encode").setLevel(logging.WARNING)  # workers say the same
        make_reference(job.storage, spec.encoder)
    gpus = cluster.gpus_per_worker if spec.encoder.device == "cuda" else 0.0
    return RayWorkers(
        spec,
        size=WorkerSize(cpus=cpus, gpus=gpus),
        num_workers=cluster.num_workers,
        most_workers=num_tasks,
        open_shards=cluster.open_shards,
    )


def prepare(
    job: _Job,
    *,
    has_gpus: bool,
    cores: float,
    probe: Callable[[EncoderSpec], ProbeResult] = probe_batch,
) -> WorkerSpec:
    """What workers are told; ``run.json`` is written before any of them starts.

    Args:
        job: what all steps share.
        has_gpus: whether workers have a GPU.
        cores: of a node, shared by its workers.
        probe: measures the best batch where a GPU is; asked at the start of a new OUT only.
    """
    spec = resolve.worker_spec(
        job.run,
        job.weights,
        has_gpus=has_gpus,
        cores=cores,
        recorded_batch=job.recorded_batch,
    )
    if job.run.tokenizer.plugin is not None and job.is_new and spec.canary is not CanaryMode.off:
        reference_tokens(spec.encoder)  # a bad one is told before OUT is bound to it
    found: ProbeResult | None = None
    is_chosen = job.run.encoder.batch_clips is not None or job.recorded_batch is not None
    if spec.encoder.device == "cuda" and not is_chosen:
        found = probe(spec.encoder)
        print(f"batches of {found.batch_clips} clips, measured on {found.device}")
        spec = replace(spec, encoder=replace(spec.encoder, batch_clips=found.batch_clips))
    record = write_run_record(
        job.storage,
        material=resolve.identity(job.run, job.weights.digest).material,
        config=resolve.redacted(job.run),
        random_weights=job.weights.is_random,
        batch_clips=spec.encoder.batch_clips,
        device=spec.encoder.device,
        probe=None if found is None else found.record(),
    )
    if job.run.encoder.batch_clips is not None:
        return spec
    # another rank's, or driver's, where that one was faster
    return replace(spec, encoder=replace(spec.encoder, batch_clips=record["batch_clips"]))


def report(storage: Storage, source_options: Mapping[str, Any]) -> None:
    """Write the page about OUT; tokens are committed whether that succeeds or not."""
    from pipeline.report import ReportOptions, write_report  # it imports this module

    try:
        place = write_report(storage, ReportOptions(source_options=source_options))
    except PipelineError as error:
        logger.warning("no report: %s", error)
    else:
        print(f"report: {place}")


def conclude(plan: Plan, tally: Tally, storage: Storage, *, has_images: bool = False) -> int:
    """Print how the run ended; 0 when every shard is final and complete."""
    counts = plan.ledger.counts(shard.name for shard in plan.shards)
    print(summary(tally, counts, root=str(storage), has_images=has_images))
    return 0 if not counts.cut and tally.done_shards == tally.num_shards and not tally.failed else 1


if __name__ == "__main__":
    main()
