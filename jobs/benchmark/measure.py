"""What all benchmarks share: repeated and interleaved timing, medians, the machine, the JSON file.

Machines are shared and noisy: contestants take turns, and medians and ratios of one run are quoted,
never a single time. Standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def interleave(
    contestants: Mapping[str, Callable[[], float]], *, rounds: int
) -> dict[str, list[float]]:
    """Let every contestant run once a round, the order turned by one each round.

    Args:
        contestants: name -> what runs it once and returns its figure (seconds, clips/s...).
        rounds: times that each runs.
    """
    names = list(contestants)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figures[name].append(contestants[name]())
    return figures


def median(figures: Sequence[float]) -> float:
    """The middle one: an outlier of a busy machine does not move it."""
    return statistics.median(figures)


def machine() -> str:
    """One line: processor, cores that this process may use, Python, date."""
    from pipeline.fingerprint import cpu_model

    model, widest = cpu_model()
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model} ({widest}), {cores} cores, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


def write_json(path: str | None, figures: Mapping[str, Any]) -> None:
    """Write the figures for a program to read; nothing without a path (``--json FILE``)."""
    if path is not None:
        Path(path).write_text(json.dumps(dict(figures), indent=1) + "\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts as aligned columns; the first row is the head, the first column is a name."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
