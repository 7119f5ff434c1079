"""The Ray actor around a worker: an address, and nothing else."""

from __future__ import annotations

import logging
import os
import sys

import ray

from pipeline.errors import WorkerLost
from pipeline.receipts import Receipt
from pipeline.segments import ShardTask
from pipeline.worker import Worker, WorkerSpec


@ray.remote
class EncoderActor:
    """One worker on one GPU, or on some cores. One call per shard, none per clip or batch."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the model and start the decoders; Ray repeats this when the actor is restarted."""
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
        )
        logging.getLogger("botocore").setLevel(logging.WARNING)
        logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)
        self._worker = Worker(spec)

    def ready(self) -> bool:
        """True, once the model is loaded."""
        return True

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

    def counters(self) -> dict[str, float]:
        """``Worker.snapshot``."""
        return self._worker.snapshot()

    def close(self) -> None:
        """``Worker.close``."""
        self._worker.close()
