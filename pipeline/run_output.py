"""One output of a run, opened: its OUT, its weights, what is left to do, what its workers are told.

Most runs have one; ``outputs=[…]`` gives more, all made in one decoding pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pipeline import resolve
from pipeline.batch_probe import ProbeResult, probe_batch
from pipeline.canary import reference_tokens
from pipeline.chosen_tokenizer import model_config, tokenizer_of
from pipeline.config import ChangedInputs, RunConfig
from pipeline.encode import EncoderSpec
from pipeline.errors import ConfigError
from pipeline.planning import Plan, make_plan
from pipeline.plugin_code import plugin_code
from pipeline.reader import Source
from pipeline.records import CanaryMode, Retry, Variant
from pipeline.resolve_sampling import describe_variant
from pipeline.run_record import check_fingerprint, write_run_record
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.worker_spec import WorkerSpec

if TYPE_CHECKING:
    from tokenizer import CheckpointInfo

logger = logging.getLogger(__name__)


class Probe(Protocol):
    """Measures the best batch on a GPU."""

    def __call__(self, spec: EncoderSpec, *, share: float) -> ProbeResult:
        """Of this encoder, in a share of the GPU's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """What all steps of one run share of an output."""

    run: RunConfig
    weights: CheckpointInfo
    storage: Storage
    identity: resolve.Identity
    recorded_batch: int | None
    """B of the runs before."""

    @property
    def is_new(self) -> bool:
        """Whether no run has written to OUT yet."""
        return self.recorded_batch is None

    @property
    def has_images(self) -> bool:
        """Whether images are among what is tokenised."""
        return bool(self.run.dataset.image_extensions)


def read_weights(run: RunConfig) -> CheckpointInfo:
    """Digest of the weights; random ones are said to be random.

    Raises:
        ConfigError: a plugin that cannot say it.
        TokenizerError: they are not there or broken.
    """
    tokenizer = tokenizer_of(run)
    with plugin_code(model_config(run), "weights()"):
        return tokenizer.weights()


def open_outputs(runs: Sequence[RunConfig]) -> list[RunOutput]:
    """Look at every OUT, and at the weights that its tokens come from.

    Raises:
        ConfigError: two outputs would be the same.
        RunError: an OUT is of another configuration, or cannot be written to safely.
    """
    weights = [read_weights(run) for run in runs]
    identities = [resolve.identity(run, one.digest) for run, one in zip(runs, weights, strict=True)]
    _check_distinct(runs, identities)
    return [_opened(*parts) for parts in zip(runs, weights, identities, strict=True)]


def _check_distinct(runs: Sequence[RunConfig], identities: Sequence[resolve.Identity]) -> None:
    seen: dict[str, str] = {}
    for run, identity in zip(runs, identities, strict=True):
        other = seen.setdefault(identity.fingerprint, run.output.root)
        if other != run.output.root:
            raise ConfigError(f"outputs: {other} and {run.output.root} would hold the same tokens")


def _opened(run: RunConfig, weights: CheckpointInfo, identity: resolve.Identity) -> RunOutput:
    storage = Storage(run.output.root, run.output.storage_options)
    if not run.dry_run:
        storage.check_safe_commits()
    record = check_fingerprint(storage, identity.material)
    return RunOutput(
        run=run,
        weights=weights,
        storage=storage,
        identity=identity,
        recorded_batch=record["batch_clips"] if record else None,
    )


def plan_output(
    output: RunOutput, shards: list[Shard], found: tuple[dict[str, Source], dict[str, str]]
) -> Plan:
    """What is left to do in an OUT."""
    run = output.run
    return make_plan(
        shards,
        output.storage,
        options=run.dataset.storage_options,
        redo_changed=run.changed_inputs is ChangedInputs.redo and not run.dry_run,
        retry=run.retry,
        found=found,
    )


def describe_plan(output: RunOutput, plan: Plan) -> list[str]:
    """Lines: what is there and what will be done."""
    run = output.run
    counts = plan.ledger.counts(shard.name for shard in plan.shards)
    final = counts.final_shards
    size = sum(source.size_bytes for source in plan.sources.values())
    lines = [
        f"{run.dataset.name}: {len(plan.shards)} shards, {size / 1e6:,.1f} MB; {final} final, "
        f"{len(plan.tasks)} to do{' (dry run)' if run.dry_run else ''} -> {output.storage}"
    ]
    if output.has_images:
        endings = ", ".join(sorted(resolve.read_rules(run).image_extensions))
        committed = f"{counts.single_frames:,} are committed"
        lines.append(f"images ({endings}) are clips of one frame; {committed}")
    if (variant := run.sampling.variant) is not Variant.none:
        lines.append(f"variant {describe_variant(variant)}")
    if output.weights.is_random:
        name = run.tokenizer.name
        lines.append(f"tokenizer {name} has RANDOM weights: its tokens carry no meaning")
    if run.retry is not None:
        lines.append(describe_retry(run.retry, plan))
    lines += [f"not there: {name}: {reason}" for name, reason in plan.missing.items()]
    policy = run.changed_inputs.name
    lines += [
        f"changed since it was tokenised: {name} (changed_inputs={policy})" for name in plan.changed
    ]
    return lines


def describe_retry(retry: Retry, plan: Plan) -> str:
    """What of the committed part will be tried again."""
    if retry is Retry.incomplete:
        return f"retry=incomplete: {len(plan.continuing)} cut shards, from where they were cut"
    videos = sum(plan.ledger.state(task.shard.name).num_retriable for task in plan.amending)
    return f"retry=quarantined: {videos:,} videos of {len(plan.amending):,} shards"


def prepare(
    outputs: Sequence[RunOutput],
    *,
    has_gpus: bool,
    cores: float,
    probe: Probe = probe_batch,
) -> WorkerSpec:
    """What workers are told; every ``run.json`` is written before any of them starts.

    Args:
        outputs: of the run.
        has_gpus: whether workers have a GPU.
        cores: of a node, shared by its workers.
        probe: measures the best batch where a GPU is, given the share of its memory that the
            output may take; asked at the start of a new OUT only.
    """
    share = 1 / len(outputs)
    first, *others = [
        prepare_output(output, has_gpus=has_gpus, cores=cores, probe=partial(probe, share=share))
        for output in outputs
    ]
    return replace(first, beside=tuple(others))


def prepare_output(
    output: RunOutput, *, has_gpus: bool, cores: float, probe: Callable[[EncoderSpec], ProbeResult]
) -> WorkerSpec:
    """What workers are told of one output, after its ``run.json`` is there."""
    run = output.run
    spec = resolve.worker_spec(
        run,
        output.weights,
        has_gpus=has_gpus,
        cores=cores,
        recorded_batch=output.recorded_batch,
    )
    if run.tokenizer.plugin is not None and output.is_new and spec.canary is not CanaryMode.off:
        reference_tokens(spec.encoder)  # a bad one is told before OUT is bound to it
    found: ProbeResult | None = None
    is_chosen = run.encoder.batch_clips is not None or output.recorded_batch is not None
    if spec.encoder.device == "cuda" and not is_chosen:
        found = probe(spec.encoder)
        logger.info("batches of %d clips, measured on %s", found.batch_clips, found.device)
        spec = replace(spec, encoder=replace(spec.encoder, batch_clips=found.batch_clips))
    record = write_run_record(
        output.storage,
        material=output.identity.material,
        config=resolve.redacted(run),
        random_weights=output.weights.is_random,
        batch_clips=spec.encoder.batch_clips,
        device=spec.encoder.device,
        probe=None if found is None else found.record(),
    )
    if run.encoder.batch_clips is not None:
        return spec
    # another rank's, or driver's, where that one was faster
    return replace(spec, encoder=replace(spec.encoder, batch_clips=record["batch_clips"]))
