"""How a run stands: what the progress line, the heartbeat and the summary show."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.attempts import WorkerReport, combined
from pipeline.history import History
from pipeline.reader import shown
from pipeline.receipts import Receipt

LAST_QUARANTINED = 4
"""Of these the newest are shown while a run goes on."""


DECODING = (
    "decoders",
    "decoder_restarts",
    "decoder_seconds",
    "decoder_busy_seconds",
    "decoder_full_seconds",
    "ring_bytes",
    "peak_worker_rss_bytes",
    "peak_decoder_rss_bytes",
    "events",
)
"""Counters of what all outputs of a run share."""


@dataclass(slots=True)
class OutputTally:
    """What of a run's numbers is one output's own, where there are several."""

    before: Mapping[str, float]
    """As in `Tally`, of this output."""
    to_cover: int
    """As in `Tally`, of this output."""
    counters: dict[str, float] = field(default_factory=dict)
    """What the workers have done for it."""

    def record(self) -> dict[str, Any]:
        """What its heartbeat says instead of the run's."""
        return {
            "before": self.before,
            "to_cover": self.to_cover,
            "counters": self.counters,
            **_reached(self.before, self.counters),
        }


def _reached(before: Mapping[str, float], counters: Mapping[str, float]) -> dict[str, float]:
    """What a graph needs of the counters, which are also of workers that are gone.

    Like ``to_cover`` what is covered is of this run; quarantined are all videos that are, those of
    earlier runs too.
    """
    return {
        "covered": counters.get("covered", 0),
        "quarantined": before.get("quarantined", 0) + counters.get("quarantined", 0),
        "decoder_restarts": counters.get("decoder_restarts", 0),
    }


@dataclass(slots=True)
class Tally:
    """Numbers of one run, kept up to date by the scheduler.

    With several outputs clips and bytes are those of all; of videos, which are the same in each,
    those of the output that has most.
    """

    num_shards: int = 0
    done_shards: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Shards given up in this run, and why."""
    retries: int = 0
    handed_back: int = 0
    """Attempts that ended early on request: a node was drained, or an idle worker took over."""
    copies: int = 0
    """Shards that were given to a second worker because the first one took long."""
    expelled: dict[str, str] = field(default_factory=dict)
    """Workers that may not go on, and why."""
    in_flight: int = 0
    num_workers: int = 0
    """Workers that take attempts now."""
    most_workers: int = 0
    """The largest number of them so far."""
    to_cover: int = 0
    """Bytes of tars, or members of buckets, that were left when the run began."""
    before: dict[str, float] = field(default_factory=dict)
    """Videos, clips and so on that were committed when the run began."""
    counters: dict[str, float] = field(default_factory=dict)
    """What the workers have done since."""
    began: float = field(default_factory=time.monotonic)
    """When, by this process's monotonic clock."""
    began_at_seconds: float = field(default_factory=time.time)
    """The same as seconds since 1970; the command's own start where it is known."""
    history: History = field(default_factory=History)
    """How the counters grew."""
    last_quarantined: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_QUARANTINED))
    """``shard::key: reason`` of the newest ones in shards that have ended."""
    is_interrupted: bool = False
    """It was asked to stop before everything was done."""
    outputs: list[OutputTally] = field(default_factory=list)
    """By output, where there are several."""

    def take_reports(self, reports: Iterable[WorkerReport]) -> None:
        """What the workers last said of themselves, those that are gone included."""
        reports = list(reports)
        self.counters = combined(report.counters for report in reports)
        shared = {name: self.counters[name] for name in DECODING if name in self.counters}
        for number, output in enumerate(self.outputs):
            own = combined(one.outputs[number] for one in reports if one.outputs)
            output.counters = own | shared

    def of_output(self, number: int, final: Collection[str]) -> Tally:
        """The numbers of one output, for its summary.

        Args:
            number: of the output.
            final: names of its shards that are.
        """
        if not self.outputs:
            return self
        own = self.outputs[number]
        return replace(
            self,
            before=dict(own.before),
            to_cover=own.to_cover,
            counters=own.counters,
            done_shards=len(final),
            failed={name: why for name, why in self.failed.items() if name not in final},
            outputs=[],
        )

    def take(self, receipts: Iterable[Receipt]) -> None:
        """Remember what was quarantined lately."""
        for receipt in receipts:
            for video in receipt.quarantined[-LAST_QUARANTINED:]:
                text = f"{receipt.shard}::{shown(video['key'])}: {video['reason']}"
                self.last_quarantined.append(text)

    def remember(self) -> None:
        """Keep this moment."""
        self.history.add(time.monotonic() - self.began, self.counters)

    def record(self) -> dict[str, Any]:
        """For the heartbeat: plain values."""
        return {
            "num_shards": self.num_shards,
            "done_shards": self.done_shards,
            "failed_shards": self.failed,
            "in_flight": self.in_flight,
            "retries": self.retries,
            "handed_back": self.handed_back,
            "copies": self.copies,
            "expelled": self.expelled,
            "num_workers": self.num_workers,
            "before": self.before,
            "to_cover": self.to_cover,
            "counters": self.counters,
            **_reached(self.before, self.counters),
            "began_at_seconds": self.began_at_seconds,
            "last_quarantined": list(self.last_quarantined),
            "history": self.history.record(),
            "elapsed_seconds": time.monotonic() - self.began,
        }
