"""The Ray actor around a worker: an address, and what Ray's metrics endpoint tells of it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from pipeline.attempts import Wish, WorkerReport
from pipeline.errors import WorkerLost
from pipeline.metrics import RUN_METRICS, WORKER_METRICS, Growth, Metric, value_of
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.tally import Tally
from pipeline.worker import Worker
from pipeline.worker_spec import WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How the start of a worker went."""

    node_id: str
    """Ray's name of its machine."""
    error: Exception | None = None
    """Why it cannot work."""


class Published:
    """Numbers on Ray's metrics endpoint, as Prometheus reads them; see `pipeline.metrics`."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        """Make them known to Ray, which must be running."""
        self._metrics = [
            (metric, (Counter if metric.is_sum else Gauge)(metric.name, metric.meaning))
            for metric in metrics
        ]
        self._growth = Growth({})

    def show(self, record: Mapping[str, Any]) -> None:
        """Bring all up to date."""
        for metric, published in self._metrics:
            value = value_of(metric, record)
            if isinstance(published, Gauge):
                published.set(value)
            elif (grown := self._growth.of(metric, value)) > 0:
                published.inc(grown)


def publish_runs() -> Callable[[Tally], None]:
    """What the driver calls whenever something has changed; Ray must be running."""
    published = Published(RUN_METRICS)
    return lambda tally: published.show(tally.record())


@ray.remote
class EncoderActor:
    """One worker on one GPU, or on some cores. One call per shard, none per clip or batch."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Nothing is loaded yet: what goes wrong with that is told by ``start``, as it is."""
        self._spec = spec
        self._worker: Worker | None = None
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
        )
        logging.getLogger("botocore").setLevel(logging.WARNING)
        logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)

    def start(self) -> Started:
        """Load the model and start the decoders; called once in every process."""
        node: str = ray.get_runtime_context().get_node_id()
        try:
            self._worker = Worker(self._spec)
            self._published = Published(WORKER_METRICS)
        except Exception as error:  # noqa: BLE001 (the driver judges it)
            return Started(node_id=node, error=error)
        return Started(node_id=node)

    def run_shard(self, task: ShardTask) -> list[Receipt]:
        """``Worker.run_shard``."""
        worker = self._started()
        try:
            return worker.run_shard(task)
        except WorkerLost:
            if worker.is_broken:
                # The thread's error is in the log. Only a new process is sure to be whole again
                # (a GPU context may not be), and Ray starts one.
                os._exit(1)
            raise

    def ask(self, attempt: str, wish: Wish) -> None:
        """``Worker.ask``."""
        self._started().ask(attempt, wish)

    def report(self) -> WorkerReport:
        """``Worker.report``; Prometheus is told the same."""
        report = self._started().report()
        self._published.show(report.counters)
        return report

    def close(self) -> None:
        """``Worker.close``."""
        if self._worker is not None:
            self._worker.close()

    def _started(self) -> Worker:
        """The worker. A process that Ray has started in place of a dead one has none yet.

        Its driver asks the one that died, as it has not heard of the death: dying is what tells it.
        """
        if self._worker is None:
            os._exit(1)
        return self._worker
