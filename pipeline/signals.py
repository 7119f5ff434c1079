"""Ctrl-C and SIGTERM: once to stop in order, twice to stop now; when this command was started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOW_SECONDS = 5.0
"""Longest time that a second signal takes."""
STOPPED_NOW = 130
"""Exit code when everything is dropped at once, as of a shell whose command got SIGINT."""


@contextlib.contextmanager
def stop_on_signals(
    stop: Callable[[], None], stop_now: Callable[[], None], grace_seconds: float
) -> Iterator[None]:
    """Call ``stop`` at the first signal; at the second, ``stop_now``, and end this process.

    What is committed stays; children and a local Ray notice that this process is gone.
    Outside of the main thread signals cannot be taken, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0

    def taken(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            sys.stderr.write(
                "stopped; the same command continues behind the last committed segments\n"
            )
            sys.stderr.flush()
            # whatever state it is in: what is to be ended gets a moment, then this process is gone
            threading.Timer(NOW_SECONDS, os._exit, [STOPPED_NOW]).start()
            stop_now()
            os._exit(STOPPED_NOW)
        sys.stderr.write(
            f"stopping: open segments are committed, for at most {grace_seconds:g} s "
            "(once more: stop now)\n"
        )
        stop()

    before = {number: signal.signal(number, taken) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command_started_at_seconds() -> float:
    """When this process was started, as seconds since 1970."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + int(fields[19]) / ticks_per_second
