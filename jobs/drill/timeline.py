"""What a drill has seen: a line as it happens, and tables at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.benchmark.measure import table
from jobs.drill.schedule import Kind


@dataclass(slots=True)
class Injected:
    """A fault that was done."""

    kind: Kind
    at_seconds: float
    """Since the drill began."""
    what: str
    """To whom."""
    receipts: int
    """Segments committed by then."""
    recovered_seconds: float | None = None
    """Until the next segment was committed; None: not seen."""


class Timeline:
    """Prints and remembers."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.lines: list[str] = []
        self.injected: list[Injected] = []

    @property
    def now_seconds(self) -> float:
        """Since the drill began."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line with its time."""
        minutes, seconds = divmod(self.now_seconds, 60)
        self.lines.append(f"{minutes:02.0f}:{seconds:04.1f}  {text}")
        print(self.lines[-1], flush=True)

    def note(self, kind: Kind, what: str, receipts: int, at_seconds: float) -> None:
        """A fault was done."""
        self.injected.append(Injected(kind, at_seconds, what, receipts))
        self.say(f"fault {len(self.injected)}: {kind.value}: {what}")

    def committed(self, receipts: int) -> None:
        """So many segments are there now."""
        for fault in self.injected:
            if fault.recovered_seconds is None and receipts > fault.receipts:
                fault.recovered_seconds = self.now_seconds - fault.at_seconds

    def rows(self) -> list[list[str]]:
        """A row for each kind that was done: name, times, until the next commit."""
        rows = [["fault", "times", "next commit after, median", "longest"]]
        for kind in Kind:
            faults = [fault for fault in self.injected if fault.kind is kind]
            seconds = [f.recovered_seconds for f in faults if f.recovered_seconds is not None]
            if faults:
                median = f"{statistics.median(seconds):.1f} s" if seconds else "-"
                longest = f"{max(seconds):.1f} s" if seconds else "-"
                rows.append([kind.value, str(len(faults)), median, longest])
        return rows


def markdown(title: str, timeline: Timeline, conclusions: Sequence[str]) -> str:
    """The report as a page."""
    head, *body = timeline.rows()
    lines = [f"# {title}", "", *conclusions, "", f"| {' | '.join(head)} |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    lines += ["", "```", *timeline.lines, "```", ""]
    return "\n".join(lines)


def text(timeline: Timeline) -> str:
    """The table for a terminal."""
    return table(timeline.rows())
