"""``python -m pipeline.run +dataset=webvid +tokenizer=fsq_4x8x8``: videos in, tokens out.

Tells the story of a run; every step of it lives elsewhere. Nothing that crosses a process boundary
is defined here, where it would belong to ``__main__``.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from pipeline import compose, resolve
from pipeline.config import ChangedInputs, ClusterKind, DatasetKind, RunConfig
from pipeline.encode import EncoderSpec
from pipeline.errors import PipelineError
from pipeline.inputs import list_folder, list_tars
from pipeline.manifest import publish_manifest
from pipeline.planning import Plan, make_plan, tally_of
from pipeline.probe import probe_batch
from pipeline.progress import ProgressLine, summary
from pipeline.run_record import check_fingerprint, write_run_record
from pipeline.schedule import Scheduler, Tally, Workers
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.worker import WorkerSpec
from tokenizer import TokenizerError

if TYPE_CHECKING:
    from tokenizer import CheckpointInfo

logger = logging.getLogger(__name__)


def main() -> None:
    """Check the command line, then let Hydra run it."""
    compose.register_schema()
    try:
        compose.check_command(compose.arguments())
    except PipelineError as error:
        sys.exit(f"error: {error}")
    run_composed()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="run")
def run_composed(config: DictConfig) -> None:
    """Run one composed configuration; the exit code says whether everything is final and whole."""
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # print_plan says it once, in a sentence of its own
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)
    try:
        code = execute(compose.to_run_config(config))
    except (PipelineError, TokenizerError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues behind the last committed segments")
    if code:
        sys.exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all steps of one run share."""

    run: RunConfig
    weights: CheckpointInfo
    storage: Storage
    recorded_batch: int | None


def execute(run: RunConfig) -> int:
    """Carry out a run.

    Returns:
        0 when every shard is final and complete, else 1.

    Raises:
        RunError: the run cannot begin or go on.
    """
    weights = read_weights(run)
    storage = Storage(run.output.root, run.output.storage_options)
    if not run.dry_run:
        storage.check_safe_commits()
    record = check_fingerprint(storage, resolve.identity(run, weights.digest).material)
    job = _Job(
        run=run,
        weights=weights,
        storage=storage,
        recorded_batch=record["batch_clips"] if record else None,
    )
    plan = make_plan(
        list_shards(run),
        storage,
        options=run.dataset.storage_options,
        redo_changed=run.changed_inputs is ChangedInputs.redo and not run.dry_run,
    )
    print_plan(job, plan)
    tally = tally_of(plan)
    if run.dry_run:
        return 0
    try:
        if plan.tasks:
            work(job, plan, tally)
    finally:
        if plan.receipts:
            publish_manifest(storage, plan.receipts)
    return conclude(plan, tally, storage)


def read_weights(run: RunConfig) -> CheckpointInfo:
    """Digest of the weights; random ones are said to be random."""
    from tokenizer import checkpoint_digest  # torch with it

    section = run.tokenizer
    return checkpoint_digest(
        resolve.model_config(run), resolve.checkpoint_path(run), seed=section.seed
    )


def list_shards(run: RunConfig) -> list[Shard]:
    """The shards that the data set names."""
    dataset = run.dataset
    if dataset.kind is DatasetKind.folder:
        assert dataset.path is not None
        return list_folder(
            dataset.path,
            resolve.read_rules(run).video_extensions,
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
    final = sum(state.is_final for state in plan.states.values())
    size = sum(source.size_bytes for source in plan.sources.values())
    print(
        f"{run.dataset.name}: {len(plan.shards)} shards, {size / 1e6:,.1f} MB; {final} final, "
        f"{len(plan.tasks)} to do{' (dry run)' if run.dry_run else ''} -> {job.storage}"
    )
    if job.weights.is_random:
        print(f"tokenizer {run.tokenizer.name} has RANDOM weights: its tokens carry no meaning")
    for name, reason in plan.missing.items():
        print(f"not there: {name}: {reason}")
    for name in plan.changed:
        print(f"changed since it was tokenised: {name} (changed_inputs={run.changed_inputs.name})")
    sys.stdout.flush()


def work(job: _Job, plan: Plan, tally: Tally) -> None:
    """Start the workers and carry out the tasks."""
    workers = start_workers(job, len(plan.tasks))
    try:
        with ProgressLine() as line:
            Scheduler(
                storage=job.storage,
                workers=workers,
                rules=resolve.retry_rules(job.run),
                tally=tally,
                show=line.show,
            ).run(plan.tasks, plan.receipts)
    finally:
        workers.close()


def start_workers(job: _Job, num_tasks: int) -> Workers:
    """Workers in this process or on Ray, all with the same device and batch shape."""
    cluster = job.run.cluster
    if cluster.kind is ClusterKind.inline:
        import torch

        from pipeline.inline import InlineWorkers

        spec = prepare(job, has_gpus=torch.cuda.is_available(), cores=os.cpu_count() or 1)
        return InlineWorkers(spec, open_shards=cluster.open_shards)
    # Ray takes a second to import: only for those who use it
    from pipeline.driver import RayWorkers, start_ray

    found = start_ray(cluster.address if cluster.kind is ClusterKind.ray else None)
    spec = prepare(job, has_gpus=found.num_gpus > 0, cores=found.cores_per_gpu())
    cpus = cluster.cpus_per_worker or found.cpus_per_worker(
        spec.encoder.threads + spec.decoders, cluster.gpus_per_worker
    )
    wanted = cluster.num_workers or found.num_workers(cpus, cluster.gpus_per_worker)
    return RayWorkers(
        spec,
        num_workers=max(1, min(wanted, num_tasks)),
        cpus_per_worker=cpus,
        gpus_per_worker=cluster.gpus_per_worker,
        open_shards=cluster.open_shards,
    )


def prepare(job: _Job, *, has_gpus: bool, cores: float) -> WorkerSpec:
    """What workers are told; ``run.json`` is written before any of them starts."""
    spec = resolve.worker_spec(
        job.run,
        job.weights,
        has_gpus=has_gpus,
        cores=cores,
        recorded_batch=job.recorded_batch,
    )
    probe = None
    if may_probe(job, spec.encoder):
        probe = probe_batch(spec.encoder)
        print(f"batches of {probe.batch_clips} clips, measured on {probe.device}")
        encoder = replace(spec.encoder, batch_clips=probe.batch_clips)
        spec = replace(spec, encoder=encoder)
    write_run_record(
        job.storage,
        material=resolve.identity(job.run, job.weights.digest).material,
        config=resolve.redacted(job.run),
        random_weights=job.weights.is_random,
        batch_clips=spec.encoder.batch_clips,
        device=spec.encoder.device,
        probe=None if probe is None else probe.record(),
    )
    return spec


def may_probe(job: _Job, encoder: EncoderSpec) -> bool:
    """Whether the batch is to be measured: a new OUT, a GPU in this process, nothing chosen."""
    return (
        encoder.device == "cuda"
        and job.run.cluster.kind is ClusterKind.inline
        and job.run.encoder.batch_clips is None
        and job.recorded_batch is None
    )


def conclude(plan: Plan, tally: Tally, storage: Storage) -> int:
    """Print how the run ended; 0 when every shard is final and complete."""
    names = {shard.name for shard in plan.shards}
    receipts = [receipt for receipt in plan.receipts if receipt.shard in names]
    print(summary(tally, receipts, root=str(storage)))
    is_whole = all(receipt.complete for receipt in receipts)
    return 0 if is_whole and tally.done_shards == tally.num_shards and not tally.failed else 1


if __name__ == "__main__":
    main()
