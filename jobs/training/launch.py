"""A training in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from jobs.training.plan import TrainingPlan
from jobs.training.progress import TrainingLine
from jobs.training.session import train
from jobs.training.workers import Worker
from pipeline.signals import SIGNALS, STOPPED_NOW


def train_inline(plan: TrainingPlan) -> bool:
    """Train in this process, without Ray; whether all steps are done."""
    stopping = threading.Event()
    device = torch.device(plan.device, 0) if plan.device == "cuda" else torch.device("cpu")
    with TrainingLine(plan.steps) as line, stopped_by_signals(stopping.set):
        return train(plan, Worker(device=device), is_stopping=stopping.is_set, show=line.show)


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first Ctrl-C or SIGTERM; at the second this process ends at once."""
    seen = 0

    def taken(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(STOPPED_NOW)
        sys.stderr.write(
            "stopping: a checkpoint is written after this step (once more: stop now)\n"
        )
        sys.stderr.flush()
        stop()

    before = {number: signal.signal(number, taken) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
