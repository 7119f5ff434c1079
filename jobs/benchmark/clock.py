"""The clock that all contestants of a benchmark obey: wall time, and CPU time of a whole session.

On a busy machine wall time depends on how many processes a contestant has in the queue for a core;
CPU time does not. A contestant runs in a session of its own, and all that it starts stays in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


def session_cpu_seconds() -> float:
    """CPU seconds of this session's processes, and of their children that have ended."""
    session, ticks = os.getsid(0), 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Gives figures that hold ``seconds`` and ``cpu_seconds`` of the block when it has ended."""
    figures: dict[str, float] = {}
    cpu, began = session_cpu_seconds(), time.monotonic()
    yield figures
    figures["seconds"] = time.monotonic() - began
    figures["cpu_seconds"] = session_cpu_seconds() - cpu
