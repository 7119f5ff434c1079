"""One line about a training that goes on: renewed on a terminal, written now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipeline.live import duration

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal."""
RATE_SECONDS = 60.0
"""Window of the rate shown."""
SHOWN = {
    "loss": "loss",
    "rec_loss": "rec",
    "psnr": "PSNR",
    "codebook_used": "codes used",
    "perplexity": "perplexity",
}
"""Scalars that a line has room for, and what they are called there."""


class TrainingLine:
    """Steps, rate, time left, loss and use of the codebook, on standard error."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self._history: deque[tuple[float, int]] = deque()
        self._written = float("-inf")
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> TrainingLine:
        """Begin to show."""
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("first step", total=self._num_steps)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Bring the line up to date."""
        now = time.monotonic()
        self._history.append((now, step))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        if self._bar is not None:
            text = training_line(step, self._num_steps, self.steps_per_second, values)
            self._bar.update(self._task, completed=step, description=text)
        elif now - self._written >= PLAIN_SECONDS or step == self._num_steps:
            self._written = now
            self._console.print(training_line(step, self._num_steps, self.steps_per_second, values))

    @property
    def steps_per_second(self) -> float:
        """Rate of the last minute; 0 before the second step."""
        (began, first), (now, last) = self._history[0], self._history[-1]
        return (last - first) / (now - began) if now > began else 0.0


def training_line(
    step: int, num_steps: int, steps_per_second: float, values: Mapping[str, float]
) -> str:
    """The text of the line.

    >>> training_line(5, 45, 0.5, {"loss": 1234.56, "codebook_used": 0.25})
    'step 5/45  0.50 steps/s  ETA 1:20  loss 1,235  codes used 0.25'
    """
    left = (num_steps - step) / steps_per_second if steps_per_second else None
    parts = [
        f"step {step:,}/{num_steps:,}",
        f"{steps_per_second:.2f} steps/s",
        f"ETA {'-' if left is None else duration(left)}",
    ]
    parts += [f"{word} {_short(values[key])}" for key, word in SHOWN.items() if key in values]
    return "  ".join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
