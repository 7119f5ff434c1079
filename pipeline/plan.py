"""``python -m pipeline.plan +dataset=… +tokenizer=…``: what a run would give, take and cost.

Tokenises some videos of the data set for at most about two minutes into a temporary place, and
predicts the whole from them. Nothing is written to output.root.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import (
    CommandLine,
    carry_out,
    count,
    new_file,
    not_negative,
    positive,
)
from pipeline.errors import ConfigError, PipelineError
from pipeline.prediction import DataSet, Estimate, Machine, Prediction, Rules, predict

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.planning import Plan
    from pipeline.probe import Probe
    from pipeline.worker_spec import WorkerSpec

GPU_CORES = 1.0
"""Cores that are busy with feeding one GPU."""


def parser() -> argparse.ArgumentParser:
    """The command line; what is no option of ours is a Hydra override."""
    made = CommandLine(
        prog="python -m pipeline.plan",
        description="Predict what tokenising a data set gives, takes and costs, from a short probe "
        "on this machine. Writes nothing to output.root.",
        usage="%(prog)s +dataset=NAME +tokenizer=NAME [key=value ...] [options]",
        epilog="Run it on a machine like those that will do the work. Groups and keys: "
        "python -m pipeline.run --help",
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as for pipeline.run")
    for name, what in (("--gpu-price", "one GPU"), ("--core-price", "one core")):
        made.add_argument(name, type=not_negative, metavar="USD_PER_HOUR", help=f"of {what}")
    made.add_argument(
        "--probe-seconds", type=positive, default=120.0, metavar="S", help="default: 120"
    )
    made.add_argument(
        "--workers", type=count, metavar="N", help="GPUs, or workers on CPUs; default: 1"
    )
    made.add_argument(
        "--json", type=new_file, metavar="FILE", help="write the prediction there, too"
    )
    made.add_argument("--config-dir", metavar="DIR", help="a further folder of options")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_intermixed_args(arguments)
    # torch and Hydra take seconds to import: not for --help
    from tokenizer import TokenizerError

    try:
        facts = predict_run(options)
    except (PipelineError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        try:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
        except OSError as error:
            print(f"error: --json {options.json}: {error.strerror}", file=sys.stderr)
            return 1
    return 0


def predict_run(options: argparse.Namespace) -> dict[str, Any]:
    """Probe, predict and print; gives the prediction as JSON.

    Raises:
        PipelineError: nothing can be said, and why.
    """
    from pipeline import compose, resolve
    from pipeline.planning import make_plan
    from pipeline.resolve_spans import describe_spans, with_spans
    from pipeline.run import list_shards
    from pipeline.run_output import read_weights
    from pipeline.storage import Storage

    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)  # said by print_data
    compose.register_schema()
    composed = compose.compose_overrides(compose.quote_paths(options.overrides), options.config_dir)
    run, spans = with_spans(compose.to_run_config(composed))
    weights = read_weights(run)
    plan = make_plan(
        list_shards(run),
        Storage(run.output.root, run.output.storage_options),
        options=run.dataset.storage_options,
        redo_changed=False,
    )
    has_gpus, cores = this_machine()
    spec = resolve.worker_spec(
        run, weights, has_gpus=has_gpus, cores=cores, recorded_batch=recorded_batch(run)
    )
    print_data(run, plan, is_random=weights.is_random)
    if spans is not None:
        print(describe_spans(spans), flush=True)
    measured = probe_here(plan, spec, run, seconds=options.probe_seconds)
    machine = Machine(
        num_workers=options.workers or run.cluster.num_workers or 1,
        cores=cores,
        encoder_cores=GPU_CORES if spec.encoder.device == "cuda" else spec.encoder.threads,
        clips_per_second=measured.clips_per_second,
        encode_seconds_per_clip=measured.encode_seconds_per_clip,
        gpu_usd_per_hour=options.gpu_price if spec.encoder.device == "cuda" else 0.0,
        core_usd_per_hour=options.core_price,
    )
    rules = rules_of(run)
    try:
        prediction = predict(measured.units, data_of(plan), machine, rules)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(describe(prediction, measured, machine, device=spec.encoder.device))
    return {
        "prediction": asdict(prediction),
        "machine": asdict(machine),
        "rules": asdict(rules),
        "probe": asdict(measured),
    }


def this_machine() -> tuple[bool, float]:
    """Whether there is a GPU, and the cores that one worker can count on."""
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return num_gpus > 0, (os.cpu_count() or 1) / max(1, num_gpus)


def recorded_batch(run: RunConfig) -> int | None:
    """B of the runs before, where output.root holds any."""
    from pipeline.run_record import read_run_record
    from pipeline.storage import Storage

    record = read_run_record(Storage(run.output.root, run.output.storage_options))
    return record["batch_clips"] if record else None


def probe_here(plan: Plan, spec: WorkerSpec, run: RunConfig, *, seconds: float) -> Probe:
    """Tokenise into a temporary OUT, which is gone afterwards."""
    from pipeline.probe import probe

    def show(line: str) -> None:
        print(f"probe: {line}", file=sys.stderr, flush=True)

    shards = {
        shard: plan.sources[shard.name].size_bytes
        for shard in plan.shards
        if shard.name in plan.sources
    }
    with tempfile.TemporaryDirectory(prefix="vidtok-plan-") as folder:
        out, pieces = Path(folder) / "out", Path(folder) / "pieces"
        pieces.mkdir()
        return probe(
            shards,
            replace(spec, output_root=str(out), output_options={}),
            folder=pieces,
            open_shards=run.cluster.open_shards,
            seconds=seconds,
            show=show,
        )


def data_of(plan: Plan) -> DataSet:
    """What is to be done, as listed: files of folders, bytes of tars."""
    read_bytes = sum(source.size_bytes for source in plan.sources.values())
    shards = [shard for shard in plan.shards if shard.name in plan.sources]
    num_files = sum(len(shard.members) for shard in shards)
    return DataSet(
        num_shards=len(shards),
        num_objects=num_files or len(shards),
        to_cover=num_files or read_bytes,
        read_bytes=read_bytes,
    )


def rules_of(run: RunConfig) -> Rules:
    """What decides how often storage is asked."""
    return Rules(
        max_clips=run.commit.max_clips,
        max_seconds=run.commit.max_seconds,
        open_shards=run.cluster.open_shards,
        range_bytes=run.limits.range_bytes,
    )


def print_data(run: RunConfig, plan: Plan, *, is_random: bool) -> None:
    """The dry run: what is there."""
    from pipeline.records import Variant
    from pipeline.resolve_sampling import describe_variant

    final = plan.ledger.counts(shard.name for shard in plan.shards).final_shards
    size = sum(source.size_bytes for source in plan.sources.values())
    print(
        f"{run.dataset.name}: {len(plan.shards):,} shards, {size / 1e6:,.1f} MB"
        + (f"; {final:,} of them are final in {run.output.root}" if final else "")
    )
    for name, reason in plan.missing.items():
        print(f"not there: {name}: {reason}")
    if (variant := run.sampling.variant) is not Variant.none:
        print(f"variant {describe_variant(variant)}")
    if is_random:
        print(f"tokenizer {run.tokenizer.name} has RANDOM weights: fine for this")
    sys.stdout.flush()


def describe(prediction: Prediction, probe: Probe, machine: Machine, *, device: str) -> str:
    """The prediction in lines."""
    from pipeline.balance import bottleneck
    from pipeline.live import duration

    now = prediction
    worker = "GPU" if device == "cuda" else "worker (CPU)"
    videos = sum(unit.videos for unit in probe.units)
    gain = now.with_another_core - 1
    lines = [
        f"probe: {videos:,.0f} videos of {len({unit.group for unit in probe.units})} shards, "
        f"{now.sampled_share:.1%} of the data set, in {duration(probe.elapsed_seconds)}; "
        f"{bottleneck(probe.counters)}",
        f"videos: {_range(now.videos)}, of them quarantined {_range(now.quarantined)}",
        f"clips: {_range(now.clips)}",
        f"bytes out: {_bytes(now.token_bytes)}",
        f"hours with {now.num_workers} x {worker}: {_range(now.hours)} at "
        f"{now.clips_per_second:.2f} clips/s",
        f"money: {_range(now.usd, ' USD')}"
        if now.usd
        else "money: give --gpu-price and --core-price",
        f"cores per {worker}: {now.cores_wanted:.1f} feed it; there are {machine.cores:g}",
        f"one more core per {worker}: {gain:+.0%} clips/s"
        + (f", {now.usd_with_another_core:,.2f} USD" if now.usd_with_another_core else ""),
        f"network: {now.read_bytes_per_second / 1e6:,.2f} MB/s in, "
        f"{now.written_bytes_per_second / 1e6:,.3f} MB/s out (one reader got "
        f"{probe.read_bytes_per_second / 1e6:,.0f} MB/s here)",
        f"storage: {now.gets_per_second:,.3f} GETs/s, {now.puts_per_second:,.3f} PUTs/s",
    ]
    return "\n".join([*lines, *assumptions(now, machine, device)])


def assumptions(prediction: Prediction, machine: Machine, device: str) -> list[str]:
    """What the prediction rests on."""
    lines = [
        "assumed:",
        "  all machines are like this one, and were as busy as it is now",
        "  the videos at the front of the chosen shards are like all others",
        f"  a worker encodes a clip in {machine.encode_seconds_per_clip:.4f} s and keeps "
        f"{machine.encoder_cores:g} cores busy with that; all other cores decode",
        "  storage keeps up, no machine is lost, every shard is one worker's from start to end",
        "  between: in nine of ten cases, by how the sampled shards differ (and 10% for the rate)",
    ]
    if device != "cuda":
        lines.append("  no GPU was there: --gpu-price counts for nothing, cores alone are paid")
    if prediction.num_workers < machine.num_workers:
        lines.append(
            f"  {machine.num_workers} workers were asked for, but only {prediction.num_workers} "
            "shards are there to share"
        )
    return lines


def _bytes(estimate: Estimate) -> str:
    """In a unit that suits the value.

    >>> _bytes(Estimate(value=2.5e6, low=2e6, high=3e6))
    '2.50 MB (2.00 to 3.00)'
    """
    names = ("kB", "MB", "GB", "TB", "PB")
    power = min(len(names), max(1, int(math.log10(max(1.0, estimate.value)) // 3)))
    return _range(estimate.scaled(1000.0**-power), f" {names[power - 1]}")


def _range(estimate: Estimate, unit: str = "") -> str:
    """The value and its bounds, with digits enough for small numbers.

    >>> _range(Estimate(value=1234.5, low=1000.0, high=1500.0), " USD")
    '1,234 USD (1,000 to 1,500)'
    >>> _range(Estimate(value=0.0123, low=0.01, high=0.02))
    '0.0123 (0.0100 to 0.0200)'
    """
    digits = max(0, 2 - math.floor(math.log10(estimate.value))) if estimate.value > 0 else 0

    def shown(value: float) -> str:
        return f"{value:,.{min(8, digits)}f}"

    return f"{shown(estimate.value)}{unit} ({shown(estimate.low)} to {shown(estimate.high)})"


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted; nothing was written")
