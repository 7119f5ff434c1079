"""The Ray actor around a worker: an address, and nothing else."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

import ray

from pipeline.attempts import Wish, WorkerReport
from pipeline.errors import WorkerLost
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.worker import Worker
from pipeline.worker_spec import WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How the start of a worker went."""

    node_id: str
    """Ray's name of its machine."""
    error: Exception | None = None
    """Why it cannot work."""


@ray.remote
class EncoderActor:
    """One worker on one GPU, or on some cores. One call per shard, none per clip or batch."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Nothing is loaded yet: what goes wrong with that is told by ``start``, as it is."""
        self._spec = spec
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
        except Exception as error:  # noqa: BLE001 (the driver judges it)
            return Started(node_id=node, error=error)
        return Started(node_id=node)

    def run_shard(self, task: ShardTask) -> list[Receipt]:
        """``Worker.run_shard``."""
        try:
            return self._worker.run_shard(task)
        except WorkerLost:
            if self._worker.is_broken:
                # The thread's error is in the log. Only a new process is sure to be whole again
                # (a GPU context may not be), and Ray starts one.
                os._exit(1)
            raise

    def ask(self, attempt: str, wish: Wish) -> None:
        """``Worker.ask``."""
        self._worker.ask(attempt, wish)

    def report(self) -> WorkerReport:
        """``Worker.report``."""
        return self._worker.report()

    def close(self) -> None:
        """``Worker.close``."""
        self._worker.close()
