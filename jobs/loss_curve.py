"""The losses of a training run in a file that survives whatever kills the run."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import RunError


class Curve:
    """The losses of RUN so far, a JSON line a step; written by rank 0."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the first ``step`` lines: what is behind them, torn or not, is computed again."""
        path.touch()
        lines = path.read_bytes().splitlines(keepends=True)[:step]
        if len(lines) < step or any(not line.endswith(b"\n") for line in lines):
            raise RunError(f"{path} has fewer lines than the checkpoint beside it has steps")
        self.losses = [float(json.loads(line)["loss"]) for line in lines]
        os.truncate(path, sum(map(len, lines)))
        self._path = path

    def add(self, **values: Any) -> None:
        """One step."""
        self.losses.append(values["loss"])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def sync(self) -> None:
        """It is on the disk, so a checkpoint may follow."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())

    def picture(self, width: int = 64, height: int = 10) -> str:
        """The losses as text; a column is the mean of its steps."""
        width = min(width, len(self.losses))
        cuts = [len(self.losses) * column // width for column in range(width + 1)]
        parts = [self.losses[a:b] for a, b in itertools.pairwise(cuts)]
        means = [sum(part) / len(part) for part in parts]
        low, high = min(means), max(means)
        rows = [round((high - mean) / ((high - low) or 1) * (height - 1)) for mean in means]
        names = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
        lines = [
            f"{names.get(row, ''):>8} |" + "".join("*" if at == row else " " for at in rows)
            for row in range(height)
        ]
        return "\n".join([*lines, f"{'':8} +{'-' * width} {len(self.losses)} steps"])
