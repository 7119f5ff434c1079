"""Runs attempts in this process, without Ray: the debugger, and the oracle for the Ray run."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor

from pipeline.schedule import Finished
from pipeline.segments import ShardTask
from pipeline.worker import Worker, WorkerSpec


class InlineWorkers:
    """One worker, here."""

    def __init__(self, spec: WorkerSpec, *, open_shards: int) -> None:
        """Load the model and start the decoders.

        Args:
            spec: the worker's.
            open_shards: shards open at once.
        """
        self._worker = Worker(spec)
        self._open_shards = open_shards
        self._threads = ThreadPoolExecutor(open_shards, thread_name_prefix="shard")
        self._finished: queue.Queue[Finished] = queue.Queue()

    def capacity(self) -> int:
        """Shards open at once."""
        return self._open_shards

    def submit(self, task: ShardTask) -> None:
        """Begin an attempt in a thread."""
        self._threads.submit(self._run, task)

    def _run(self, task: ShardTask) -> None:
        try:
            self._finished.put(Finished(task=task, receipts=self._worker.run_shard(task)))
        except BaseException as error:  # noqa: BLE001 (handed to the scheduler, which judges it)
            self._finished.put(Finished(task=task, error=error))

    def wait(self, timeout_seconds: float) -> list[Finished]:
        """Attempts that ended."""
        try:
            ended = [self._finished.get(timeout=timeout_seconds)]
        except queue.Empty:
            return []
        while not self._finished.empty():
            ended.append(self._finished.get())
        return ended

    def counters(self, *, wait_seconds: float = 0.0) -> dict[str, float]:
        """The worker's; always fresh."""
        return self._worker.snapshot()

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
