"""What TensorBoard shows of a training; the curve of RUN has the same numbers without it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 30


class Scalars:
    """Writes scalars to RUN/tensorboard, or, where TensorBoard is not installed, says so once."""

    def __init__(self, folder: Path, step: int, *, wanted: bool = True) -> None:
        """Args: step, behind which events of a killed run are not shown any more."""
        self._writer = _writer(folder, step) if wanted else None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything is on the disk."""
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "no TensorBoard here, so only curve.jsonl is written: pip install "
            "'vidtok-pipeline[train]', or show.tensorboard=false",
            file=sys.stderr,
        )
        return None
    writer: SummaryWriter = SummaryWriter(
        str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS
    )
    return writer
