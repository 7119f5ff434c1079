"""What a person sees while a run goes on, and the summary at its end."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live

from pipeline.balance import bottleneck
from pipeline.ledger import Counts
from pipeline.live import by_reason, duration, panel
from pipeline.tally import Tally

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal."""
RATE_SECONDS = 60.0
"""Window of the rate shown."""


class ProgressLine:
    """A table that is renewed on a terminal, or a line every few seconds elsewhere."""

    def __init__(self) -> None:
        """Write to standard error, so that results on standard output stay clean."""
        self._console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self._live: Live | None = None
        self._led: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._written = 0.0
        self._history: deque[tuple[float, float, float]] = deque()

    def __enter__(self) -> ProgressLine:
        """Begin to show."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
            self._lead_logging()
        return self

    def _lead_logging(self) -> None:
        """Log lines go above the table: rich moves what is written to the streams it has replaced.

        Handlers made before hold the terminal itself and would write into the table.
        """
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler and handler.stream.isatty():
                self._led.append((handler, handler.setStream(sys.stderr)))

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        for handler, stream in self._led:
            handler.setStream(stream)
        self._led = []
        if self._live is not None:
            self._live.stop()

    def show(self, tally: Tally) -> None:
        """Bring it up to date."""
        now = time.monotonic()
        clips, covered = tally.counters.get("clips", 0.0), tally.counters.get("covered", 0.0)
        self._history.append((now, clips, covered))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        if self._live is not None:
            self._live.update(panel(tally.record()))
        elif now - self._written >= PLAIN_SECONDS:
            self._written = now
            self._console.print(self.line(tally, now))

    def line(self, tally: Tally, now: float) -> str:
        """The text of the line."""
        before, now_done = tally.before, tally.counters

        def total(key: str) -> int:
            return int(before.get(key, 0) + now_done.get(key, 0))

        began, clips, covered = self._history[0]
        elapsed = max(1e-9, now - began)
        rate = (now_done.get("clips", 0.0) - clips) / elapsed
        covered_rate = (now_done.get("covered", 0.0) - covered) / elapsed
        left = tally.to_cover - now_done.get("covered", 0.0)
        eta = f"{duration(left / covered_rate)}" if covered_rate > 0 else "-"
        parts = [
            f"shards {tally.done_shards}/{tally.num_shards}",
            f"videos {total('videos'):,}",
            f"clips {total('clips'):,}",
            f"{rate:.2f} clips/s",
            f"ETA {eta}",
            f"quarantined {total('quarantined'):,}",
        ]
        if tally.retries:
            parts.append(f"retries {tally.retries}")
        if tally.failed:
            parts.append(f"failed {len(tally.failed)}")
        return "  ".join(parts)


def summary(tally: Tally, counts: Counts, *, root: str, has_images: bool = False) -> str:
    """The lines that a run ends with; ``counts``: of all that is committed."""
    images = f" ({counts.single_frames:,} images)" if has_images else ""
    elapsed = time.monotonic() - tally.began
    cut, filtered, reasons = counts.cut, counts.filtered, counts.quarantined
    lines = [
        f"shards: {tally.done_shards} of {tally.num_shards} final, {len(cut)} of them cut, "
        f"{len(tally.failed)} failed",
        f"videos: {counts.videos:,}, clips: {counts.clips:,}{images}, "
        f"filtered: {filtered.total():,}{by_reason(filtered)}, "
        f"quarantined: {reasons.total():,}{by_reason(reasons)}",
    ]
    new = counts.clips - tally.before.get("clips", 0)
    if new:
        seconds = tally.counters.get("source_seconds", 0.0)
        lines.append(
            f"this run: {new:,.0f} clips in {duration(elapsed)}, {new / elapsed:.2f} clips/s, "
            f"{seconds / elapsed:.1f} s of video per second; "
            f"{bottleneck(tally.counters)}"
        )
        lines += [start_up(tally), memory(tally.counters)]
    lines += [f"expelled: {owner}: {reason}" for owner, reason in sorted(tally.expelled.items())]
    if counts.numeric_environments > 1:
        lines.append(f"{counts.numeric_environments} numeric environments are mixed")
    lines += [f"cut: {shard}: {reason}" for shard, reason in sorted(cut.items())]
    lines += [f"failed: {shard}: {reason}" for shard, reason in sorted(tally.failed.items())]
    lines.append(f"OUT: {root}")
    return "\n".join(lines)


def start_up(tally: Tally) -> str:
    """How long it took from the command until clips were encoded, and how workers came and went.

    >>> counters = {"first_encoded_at_seconds": 112.5, "last_started_at_seconds": 114.0}
    >>> start_up(Tally(began_at_seconds=100.0, counters=counters, most_workers=3, copies=1))
    'start-up: first clip encoded after 12.5 s, 3 workers busy after 14.0 s; 1 copied'
    """
    first, last = (
        tally.counters.get(key, 0.0) - tally.began_at_seconds
        for key in ("first_encoded_at_seconds", "last_started_at_seconds")
    )
    workers = f"{tally.most_workers} worker{'s' * (tally.most_workers != 1)}"
    text = f"start-up: first clip encoded after {first:.1f} s, {workers} busy after {last:.1f} s"
    handed_on = [
        f"{number} {what}"
        for number, what in (
            (tally.retries, "retried"),
            (tally.handed_back, "handed back"),
            (tally.copies, "copied"),
        )
        if number
    ]
    return f"{text}; {', '.join(handed_on)}" if handed_on else text


def memory(counters: Mapping[str, float]) -> str:
    """The most memory of one process of each kind, and shared memory of all.

    >>> memory({"peak_worker_rss_bytes": 3 << 30, "decoders": 2, "ring_bytes": 64 << 20})
    'memory: worker at most 3,072 MiB, decoder at most 0 MiB (2 at the end), rings 64 MiB'
    """
    worker, decoder, rings = (
        counters.get(key, 0.0) / 2**20
        for key in ("peak_worker_rss_bytes", "peak_decoder_rss_bytes", "ring_bytes")
    )
    return (
        f"memory: worker at most {worker:,.0f} MiB, decoder at most {decoder:,.0f} MiB "
        f"({counters.get('decoders', 0):.0f} at the end), rings {rings:,.0f} MiB"
    )
