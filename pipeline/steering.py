"""Measures a worker as it goes, and gives it as many decoder children as `balance` wants."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.attempts import joint
from pipeline.balance import Balance, shares, waiting
from pipeline.counters import Counters
from pipeline.decode_pool import DecodePool

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0
"""Between two looks: long enough for new children to start and to show what they bring."""


class Steering:
    """To be asked often by the thread that takes clips from the pool.

    Args:
        pool: the children.
        counters: of the worker's outputs, the first of which keep what is measured of the pool;
            their thread-safety is the worker's business.
        most: children at most; None: their number is fixed.
    """

    def __init__(self, pool: DecodePool, counters: Sequence[Counters], *, most: int | None) -> None:
        self._pool, self._counters = pool, counters
        now = pool.num_children
        self._balance = Balance(now, least=now if most is None else 1, most=most or now)
        self._before = waiting({})
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Once a period, change the number of children if that is called for."""
        now = time.monotonic()
        if now - self._looked_at < PERIOD_SECONDS:
            return
        self._looked_at = now
        self.measure()
        measured = waiting(joint([asdict(one) for one in self._counters]))
        period, self._before = shares(self._before, measured), measured
        wanted, had = self._balance.next(period), self._pool.num_children
        if wanted != had:
            logger.info(
                "decoders %d -> %d: the encoder starved %.0f%%, the decoders' rings were full "
                "%.0f%% of the time, %.2f clips/s",
                *(had, wanted, 100 * period.starved, 100 * period.full, period.clips_per_second),
            )
            self._pool.resize(wanted)

    def measure(self) -> None:
        """Bring the counters of the pool and of memory up to date."""
        use, counters = self._pool.use(), self._counters[0]
        counters.decoders = self._pool.num_children
        counters.decoder_restarts = self._pool.num_restarts
        counters.decoder_seconds = use.child_seconds
        counters.decoder_busy_seconds = use.busy_seconds
        counters.decoder_full_seconds = use.full_seconds
        counters.ring_bytes = use.ring_bytes
        counters.peak_decoder_rss_bytes = use.peak_rss_bytes
        counters.peak_worker_rss_bytes = peak_rss_bytes()


def peak_rss_bytes() -> int:
    """The most memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
