"""``python -m pipeline.report OUT``: what a run made, as one page, ``OUT/report/index.html``.

Reads what is committed, through the pipeline's own readers, and of rows a bounded sample; works
for local folders and S3, while a run goes on or after. ``pipeline.run`` writes it at its end.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from pipeline.command_line import CommandLine, carry_out, json_object, positive, whole
from pipeline.errors import PipelineError, RunError
from pipeline.heartbeat import read_heartbeats
from pipeline.ledger import Ledger
from pipeline.manifest import Line
from pipeline.records import Variant
from pipeline.reporting import outcomes, sections
from pipeline.reporting.charts import short, size
from pipeline.reporting.costs import cost
from pipeline.reporting.failures import read_failures
from pipeline.reporting.ledger_facts import LedgerFacts, collect, throughput
from pipeline.reporting.page import alert, page, tiles
from pipeline.reporting.quarantine import gallery
from pipeline.reporting.row_sample import TokenClip, codebook_use, draw_rows
from pipeline.reporting.samples import read_samples
from pipeline.reporting.strips import Strip
from pipeline.resolve_sampling import describe_variant, recorded_variant
from pipeline.run_record import read_run_record
from pipeline.status import collect as collect_status
from pipeline.storage import Storage
from tokenizer import TokenizerError

logger = logging.getLogger(__name__)

PLACE = "report/index.html"
"""In OUT."""
NUM_PARTS = 48
"""Parts of which a row group is read."""
NUM_MAPS = 6
NUM_SAMPLES = 6
"""Of those in samples/, shown; PSNR is of all."""
NUM_BAD = 24
"""Quarantined videos shown."""
NUM_STEPS = 160
"""Of the chart over time."""
NUM_FAILURES = 10
GALLERY_SECONDS = 20.0
"""For decoding quarantined originals."""
RECONSTRUCTED = 4
"""Clips that are decoded again where nothing else is asked for."""
SMALL_CLIPS = 10_000
"""In an OUT of more clips none is, unless it is asked for: its model may be large."""
RECONSTRUCT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What of a report costs time."""

    num_reconstructed: int | None = None
    """Clips to decode again; None: a few in a small OUT, none in a large one."""
    reconstruct_seconds: float = RECONSTRUCT_SECONDS
    """For all of them; one that was begun is finished."""
    source_options: Mapping[str, Any] = field(default_factory=dict)
    """fsspec options for the source, over those in run.json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = CommandLine(
        prog="python -m pipeline.report",
        description=f"Write OUT/{PLACE}: one page about what a run made.",
        epilog="exit code: 0 written, 2 no such OUT, or it cannot be trusted",
    )
    parser.add_argument("out", metavar="OUT", help="output.root of a run: a local path or s3://...")
    parser.add_argument(
        "--reconstruct",
        type=whole,
        metavar="N",
        help=f"decode N clips from their tokens (default: {RECONSTRUCTED} where OUT has at most "
        f"{SMALL_CLIPS:,} clips)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=RECONSTRUCT_SECONDS,
        metavar="S",
        help="time for --reconstruct (default: %(default)s)",
    )
    for name, what in (("storage", "OUT"), ("source", "the source, over those in run.json")):
        parser.add_argument(
            f"--{name}-options",
            type=json_object,
            default={},
            metavar="JSON",
            help=f"fsspec options for {what}",
        )
    given = parser.parse_args(arguments)
    options = ReportOptions(
        num_reconstructed=given.reconstruct,
        reconstruct_seconds=given.seconds,
        source_options=given.source_options,
    )
    try:
        storage = Storage(given.out, given.storage_options)
        print(write_report(storage, options))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(storage: Storage, options: ReportOptions | None = None) -> str:
    """Write the page; returns its place.

    Raises:
        RunError: no OUT, or one that cannot be trusted.
        ShardError: storage is away.
    """
    page = compose_report(storage, options or ReportOptions())
    storage.put(PLACE, page.encode("utf-8", "backslashreplace"))  # paths may be no UTF-8
    return storage.path(PLACE)


def compose_report(storage: Storage, options: ReportOptions) -> str:
    """The page as text.

    Raises:
        RunError: no OUT, or one that cannot be trusted.
    """
    record = read_run_record(storage)
    if record is None:
        raise RunError(f"{storage}: no run.json there, so this is no OUT")
    ledger, beats = Ledger.open(storage), read_heartbeats(storage)
    counts, status = ledger.counts(), collect_status(record, ledger, beats)
    starts = sorted(float(b["began_at_seconds"]) for b in beats if "began_at_seconds" in b)
    facts = collect(
        ledger.lines(with_groups=False),
        run_starts=starts or [record["created_seconds"]],
        num_drawn=NUM_PARTS,
        num_bad=NUM_BAD,
    )
    sample = draw_rows(storage, _with_groups(ledger, facts.drawn), num_shown=NUM_MAPS)
    use = None if sample.codebook is None else codebook_use(sample.codebook)
    strips, measured, origin, missing = _strips(storage, record, facts, sample.shown, options)
    failures, num_failures = read_failures(storage, most=NUM_FAILURES)
    flow = throughput(facts.began, facts.ended, facts.rows, num_steps=NUM_STEPS)
    output = record["config"].get("output", {})
    parts = {
        "clips": (
            "Source and reconstruction",
            sections.strips_section(strips, measured, origin=origin, missing=missing),
        ),
        "tokens": (
            "Tokens",
            sections.tokens_section(
                sample,
                use,
                use_origin="counted in the sample",
                latents=facts.latents,
                num_groups=sample.groups,
            ),
        ),
        "data": ("Data", sections.data_section(sample, counts, num_groups=sample.groups)),
        "time": ("Throughput", sections.time_section(flow, beats)),
        "cost": ("Cost", sections.cost_section(cost(record, beats))),
        "quarantine": (
            "Quarantine",
            outcomes.quarantine_section(
                gallery(storage, facts.bad, most=NUM_BAD, seconds=GALLERY_SECONDS),
                counts,
                kept_originals=bool(output.get("keep_quarantined")),
            ),
        ),
        "failures": (
            "Failures and retries",
            outcomes.failures_section(
                failures,
                num_failures=num_failures,
                beats=beats,
                failed=status["failed_shards"],
                expelled=status["expelled_workers"],
                cut=counts.cut,
            ),
        ),
        "provenance": (
            "Provenance",
            outcomes.provenance_section(record, facts.environments),
        ),
    }
    return page(
        title=f"{_name(record)}: run report",
        head=_head(storage, record, status, facts, rate=_rate(flow.worked_seconds, facts.clips)),
        sections=parts,
        foot=f"Written {outcomes.moment(time.time())} from {storage}",
    )


def _with_groups(ledger: Ledger, drawn: Sequence[Line]) -> list[Line]:
    """The same lines, with the row groups that one pass over all of them leaves out."""
    shards = sorted({line.shard for line in drawn})
    found = {line.part: line for line in ledger.lines(shards=shards)} if shards else {}
    return [found[line.part] for line in drawn]


def _strips(
    storage: Storage,
    record: Mapping[str, Any],
    facts: LedgerFacts,
    clips: Sequence[TokenClip],
    options: ReportOptions,
) -> tuple[list[Strip], list[Strip], str, str | None]:
    """Clips to show, clips to measure by, where they come from, and why there are not more."""
    wanted = options.num_reconstructed
    if wanted is None:
        measured, shown = read_samples(storage, num_shown=NUM_SAMPLES)
        if measured:
            return shown, measured, "Decoded by the workers, drawn by hash.", None
        wanted = RECONSTRUCTED if facts.clips <= SMALL_CLIPS else 0
        if not wanted:
            return [], [], "", f"OUT has more than {SMALL_CLIPS:,} clips; --reconstruct N does it"
    if not wanted:
        return [], [], "", None
    # it restores a run's configuration, as verify does: a second that others do without
    from pipeline.reporting.reconstruction import reconstruct

    try:
        strips, missing = reconstruct(
            storage,
            record,
            clips[:wanted],
            source_options=options.source_options,
            seconds=options.reconstruct_seconds,
        )
    except (PipelineError, TokenizerError) as error:
        return [], [], "", str(error)
    return strips, strips, "Decoded for this report, in fp32.", missing


def _name(record: Mapping[str, Any]) -> str:
    """Of the data set."""
    return str(record["config"].get("dataset", {}).get("name", "data set"))


def _rate(seconds: float, clips: int) -> float:
    return clips / seconds if seconds > 0 else 0.0


def _head(
    storage: Storage,
    record: Mapping[str, Any],
    status: Mapping[str, Any],
    facts: LedgerFacts,
    *,
    rate: float,
) -> str:
    """Title, state, what must not be overlooked, and the numbers that matter."""
    if status["finished"]:
        badge = '<span class="badge good">finished</span>'
    elif status["running_drivers"]:
        badge = '<span class="badge warn">running</span>'
    else:
        badge = '<span class="badge bad">not finished</span>'
    name = escape(_name(record))
    sampling = record["fingerprint_of"].get("sampling", {})
    rates = ", ".join(f"{rate:g}" for rate in sampling.get("fps", ()))
    variant = recorded_variant(record["fingerprint_of"])
    changed = "" if variant is Variant.none else f" · variant {describe_variant(variant)}"
    alerts = []
    if record["random_weights"]:
        alerts.append("The tokenizer has random weights: its tokens carry no meaning.")
    if len(facts.environments) > 1:
        alerts.append(f"{len(facts.environments)} numeric environments are mixed.")
    numbers = [
        (short(status["videos"]), "videos"),
        (short(status["clips"]), "clips"),
        (short(facts.num_tokens), "tokens"),
        (size(status["token_bytes"]), "in parts"),
        (short(rate), "clips per second"),
        (short(sum(status["quarantined"].values())), "quarantined"),
        (f"{status['final_shards']:,} / {status['num_shards']:,}", "shards final"),
    ]
    return (
        f"<h1>{name}{badge}</h1>"
        f'<p class="soft">{escape(status["tokenizer"])} at {escape(rates)} fps{escape(changed)} · '
        f"<code>{escape(str(storage))}</code></p>"
        f"{''.join(map(alert, alerts))}{tiles(numbers)}"
    )


if __name__ == "__main__":
    carry_out(main)
