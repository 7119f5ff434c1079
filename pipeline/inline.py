"""Runs attempts in this process, without Ray: the debugger, the oracle for the Ray run, a rank."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.attempts import Event, Finished, Joined, Wish, WorkerReport
from pipeline.errors import RunError
from pipeline.segments import ShardTask
from pipeline.worker import Worker
from pipeline.worker_spec import WorkerSpec

OWNER = "inline"


class InlineWorkers:
    """One worker, here."""

    def __init__(self, spec: WorkerSpec, *, open_shards: int) -> None:
        """Load the model and start the decoders.

        Args:
            spec: the worker's.
            open_shards: shards open at once.
        """
        self._worker = Worker(spec)
        self._threads = ThreadPoolExecutor(open_shards, thread_name_prefix="shard")
        self._events: queue.Queue[Event] = queue.Queue()
        self._events.put(Joined(owner=OWNER, slots=open_shards))

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happened since the last call."""
        try:
            found = [self._events.get(timeout=timeout_seconds)]
        except queue.Empty:
            return []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def submit(self, owner: str, task: ShardTask) -> None:
        """Begin an attempt in a thread."""
        self._threads.submit(self._run, task)

    def _run(self, task: ShardTask) -> None:
        try:
            self._events.put(Finished(task=task, receipts=self._worker.run_shard(task)))
        except BaseException as error:  # noqa: BLE001 (handed to the scheduler, which judges it)
            self._events.put(Finished(task=task, error=error))

    def ask(self, owner: str, attempt: str, wish: Wish) -> None:
        """Ask something of an attempt."""
        self._worker.ask(attempt, wish)

    def restart(self, owner: str) -> None:
        """It cannot be replaced: there is one process."""
        raise RunError("the worker stands still, and its process cannot replace it")

    def expel(self, owner: str) -> None:
        """It was the only one."""
        raise RunError("the only worker computes wrongly; see above")

    def reports(self, *, wait_seconds: float = 0.0) -> Mapping[str, WorkerReport]:
        """The worker's; always fresh."""
        return {OWNER: self._worker.report()}

    def stop_now(self) -> None:
        """Nothing to do: children die with this process."""

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
