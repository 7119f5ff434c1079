"""Names of the metrics that a run on Ray publishes for Prometheus, and what they mean. Pure.

Ray puts ``ray_`` before every name and ``_total`` behind that of a sum; labels say the node
(``NodeAddress``) and the process (``WorkerId``). Sums of workers go with their node: they are for
rates. How far the run is only its driver knows. ``python -m pipeline.metrics`` prints them all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.command_line import CommandLine, carry_out


class Metric(NamedTuple):
    """One of them."""

    name: str
    """As it is given to Ray."""
    source: str
    """The counter of `counters.Counters`, or the key of `Tally.record`, that it shows."""
    is_sum: bool
    """True: it only grows; False: it is as it is now."""
    meaning: str

    @property
    def exported(self) -> str:
        """As Prometheus sees it.

        >>> Metric("vidtok_clips", "clips", True, "").exported
        'ray_vidtok_clips_total'
        """
        return f"ray_{self.name}{'_total' * self.is_sum}"


WORKER_METRICS = (
    Metric("vidtok_videos", "videos", True, "Videos done with."),
    Metric("vidtok_clips", "clips", True, "Clips tokenised."),
    Metric("vidtok_quarantined_videos", "quarantined", True, "Videos that were quarantined."),
    Metric("vidtok_token_bytes", "token_bytes", True, "Bytes of committed parts."),
    Metric("vidtok_covered", "covered", True, "Bytes (members of buckets) that are done with."),
    Metric("vidtok_source_seconds", "source_seconds", True, "Seconds of source video decoded."),
    Metric("vidtok_encoded_clips", "encoded_clips", True, "Clips through the encoder."),
    Metric("vidtok_encode_seconds", "encode_seconds", True, "Time that the encoder encoded."),
    Metric("vidtok_starved_seconds", "starved_seconds", True, "Time it waited for clips."),
    Metric("vidtok_decode_cpu_seconds", "decode_cpu_seconds", True, "CPU time of decoders."),
    Metric("vidtok_decoder_seconds", "decoder_seconds", True, "Time of all decoders."),
    Metric("vidtok_decoder_busy_seconds", "decoder_busy_seconds", True, "Of it, with a video."),
    Metric("vidtok_decoder_full_seconds", "decoder_full_seconds", True, "Of it, with a full ring."),
    Metric("vidtok_decoder_restarts", "decoder_restarts", True, "Decoders that were replaced."),
    Metric("vidtok_decoders", "decoders", False, "Decoder processes now."),
    Metric("vidtok_ring_bytes", "ring_bytes", False, "Shared memory of decoders' rings now."),
    Metric("vidtok_peak_worker_bytes", "peak_worker_rss_bytes", False, "Most memory of a worker."),
)
"""Published by every worker."""

RUN_METRICS = (
    Metric("vidtok_run_shards", "num_shards", False, "Shards of the run."),
    Metric("vidtok_run_shards_done", "done_shards", False, "Of them, final."),
    Metric("vidtok_run_shards_failed", "failed_shards", False, "Of them, given up."),
    Metric("vidtok_run_shards_in_flight", "in_flight", False, "Attempts that run now."),
    Metric("vidtok_run_workers", "num_workers", False, "Workers that take shards now."),
    Metric("vidtok_run_retries", "retries", False, "Shards tried again after a failure."),
    Metric("vidtok_run_to_cover", "to_cover", False, "Bytes (members) left when the run began."),
    Metric("vidtok_run_covered", "covered", False, "Of them, done with, by all workers ever."),
    Metric("vidtok_run_quarantined", "quarantined", False, "Quarantined, by earlier runs too."),
    Metric("vidtok_run_decoder_restarts", "decoder_restarts", False, "Decoders replaced so far."),
    Metric("vidtok_run_elapsed_seconds", "elapsed_seconds", False, "Time since the run began."),
)
"""Published by the driver."""


@dataclass(slots=True)
class Growth:
    """By how much sums have grown since they were last looked at."""

    seen: dict[str, float]

    def of(self, metric: Metric, value: float) -> float:
        """Growth of one; a sum that begins anew has grown by what it is."""
        before = self.seen.get(metric.name, 0.0)
        self.seen[metric.name] = value
        return value - before if value >= before else value


def value_of(metric: Metric, record: Mapping[str, Any]) -> float:
    """The number, or how many entries there are, under the metric's key; 0 where there is none."""
    value = record.get(metric.source, 0)
    return float(len(value)) if isinstance(value, Mapping) else float(value)


def listing() -> str:
    """A line for each metric: its name in Prometheus, its kind, its meaning."""
    lines = []
    for title, metrics in (("of every worker", WORKER_METRICS), ("of the driver", RUN_METRICS)):
        lines.append(f"# {title}")
        for metric in metrics:
            kind = "counter" if metric.is_sum else "gauge"
            lines.append(f"{metric.exported:40} {kind:8} {metric.meaning}")
    return "\n".join(lines)


def main() -> None:
    """Print the list."""
    CommandLine(prog="python -m pipeline.metrics", description=__doc__).parse_args()
    sys.stdout.write(listing() + "\n")


if __name__ == "__main__":
    carry_out(main)
