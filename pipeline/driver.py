"""Workers on a Ray cluster: starts or joins it, places one actor per GPU, and passes on events.

Ray does what it is best at: placing workers and noticing their death. Who gets which shard and what
is tried again is decided by ``schedule``; no pixel, token or clip ever passes through Ray. The pool
is started all at once; machines that join get workers, those that are drained or die lose theirs.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.actors import EncoderActor, Started
from pipeline.attempts import Event, Finished, Joined, Left, Wish, WorkerReport
from pipeline.batch_probe import ProbeResult, probe_batch
from pipeline.cluster import Cluster, Node, WorkerSize, check_reachable, num_places
from pipeline.encode import EncoderSpec
from pipeline.errors import RunError, WorkerLost
from pipeline.segments import ShardTask
from pipeline.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

# Ray's decorator and its state calls carry no types
_ray: Any = ray
_actor_class: Any = EncoderActor

START_SECONDS = 600.0
"""Longest time without any worker before the run gives up."""
LOOK_SECONDS = 2.0
"""Between two looks at the machines of the cluster, and two tries of an actor that restarts."""
REPORTS_PER_SECOND = 100.0
"""Asked of all workers together: a thousand of them must not keep the driver busy."""


def start_ray(address: str | None, *, dashboard: bool = False) -> Cluster:
    """Start Ray here (``address`` None), with a dashboard or not, or join a running cluster.

    Raises:
        RunError: no cluster at the address, or it does not let us in.
    """
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if address is None:
        options |= {"include_dashboard": dashboard, "address": "local"}
    else:
        check_reachable(address)
        options |= {"address": address}
    # every local Ray prints four lines about its token; pipeline/README.md tells about it
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        ray.init(**options)
    except (RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"cluster.address={address}: cannot join Ray: {line} (a cluster with token "
            "authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in this process too)"
        ) from error
    return Cluster(nodes=tuple(_nodes()))


def probe_on_gpu(spec: EncoderSpec, *, share: float, num_gpus: float) -> ProbeResult:
    """``batch_probe.probe_batch`` on one of the cluster's GPUs, before any worker has it.

    Raises:
        RunError: not even one clip fits.
    """
    task = _ray.remote(num_gpus=num_gpus, max_retries=0)(probe_batch)
    try:
        found: ProbeResult = ray.get(task.remote(spec, share=share))
    except RayTaskError as error:
        raise _cause(error) or error from error
    return found


def _nodes() -> list[Node]:
    return [
        Node(
            node_id=str(node["NodeID"]),
            cpus=float(node["Resources"].get("CPU", 0.0)),
            gpus=float(node["Resources"].get("GPU", 0.0)),
        )
        for node in _ray.nodes()
        if node["Alive"]
    ]


def _draining() -> set[str]:
    """Machines that were told to go: ``ray drain-node``, a spot notice.

    The call is private to Ray; its own libraries rely on it too.
    """
    return set(_ray._private.state.state.get_draining_nodes())


@dataclass(slots=True, eq=False)
class _Actor:
    number: int
    handle: Any
    incarnation: int = 0
    """Counts its processes: Ray restarts one that died."""
    node_id: str = ""
    is_ready: bool = False
    is_leaving: bool = False
    """No attempts any more; killed when those that it has are done."""
    attempts: set[str] = field(default_factory=set)
    asked_report: float = 0.0
    try_again: float = 0.0
    """When a restarted process is asked again whether it is there."""
    last_error: str = ""

    @property
    def owner(self) -> str:
        """Name of its present process."""
        return f"worker-{self.number}.{self.incarnation}"


class RayWorkers:
    """A pool of encoder actors that follows the cluster."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        size: WorkerSize,
        num_workers: int | None,
        most_workers: int,
        open_shards: int,
    ) -> None:
        """Start the actors, all at once; they join when they have loaded their models.

        Args:
            spec: the workers'.
            size: what each reserves.
            num_workers: a fixed number, asked of the cluster even where it has no room yet (an
                autoscaler makes some); None: as many as the machines carry at any time.
            most_workers: more would have nothing to do.
            open_shards: shards of one worker.
        """
        self._spec, self._size, self._slots = spec, size, open_shards
        self._num_workers, self._most_workers = num_workers, most_workers
        self._happened: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._actors: list[_Actor] = []
        self._owners: dict[str, _Actor] = {}
        self._reports: dict[str, WorkerReport] = {}
        self._lost_places: Counter[str] = Counter()
        self._started = 0
        self._events: list[Event] = []
        self._looked, self._alone_since = float("-inf"), time.monotonic()
        self._look()

    # ---- what the scheduler calls ----

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happened since the last call."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        self._listen(0.0 if self._events else timeout_seconds)
        if self._owners:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > START_SECONDS:
            raise RunError(self._nobody())
        found, self._events = self._events, []
        return found

    def submit(self, owner: str, task: ShardTask) -> None:
        """Begin an attempt; one whose owner has died meanwhile ends as lost."""
        actor = self._owners.get(owner)
        if actor is None:
            self._events.append(_lost(task, "its worker is gone"))
            return
        actor.attempts.add(task.attempt)

        def ended(future: Future[Any]) -> Callable[[], Event | None]:
            return lambda: self._collect(actor, owner, task, future)

        self._when_done(actor.handle.run_shard.remote(task), ended)

    def ask(self, owner: str, attempt: str, wish: Wish) -> None:
        """Ask something of an attempt."""
        actor = self._owners.get(owner)
        if actor is not None:
            actor.handle.ask.remote(attempt, wish)

    def restart(self, owner: str) -> None:
        """Kill the process; Ray starts another."""
        actor = self._owners.get(owner)
        if actor is not None:
            ray.kill(actor.handle, no_restart=False)

    def expel(self, owner: str) -> None:
        """Kill the actor for good, and use its place no more."""
        actor = self._owners.get(owner)
        if actor is None:
            return
        self._lost_places[actor.node_id] += 1
        self._drop(actor)
        if not self._actors:
            raise RunError("every worker computes wrongly; see above")

    def reports(self, *, wait_seconds: float = 0.0) -> Mapping[str, WorkerReport]:
        """What each owner last said; asks again those whose turn it is."""
        now = time.monotonic()
        period = 0.0 if wait_seconds else max(1.0, len(self._actors) / REPORTS_PER_SECOND)
        asked = []
        for actor in self._actors:
            if actor.is_ready and now - actor.asked_report >= period:
                actor.asked_report = now
                asked.append(self._ask_report(actor))
        if wait_seconds:
            wait(asked, wait_seconds)
            self._listen(0.0)
        return self._reports

    def close(self) -> None:
        """Close the workers, and Ray."""
        closing = [actor.handle.close.remote() for actor in self._actors if actor.is_ready]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=30)
        for actor in self._actors:
            ray.kill(actor.handle)
        ray.shutdown()

    def stop_now(self) -> None:
        """Leave the cluster, or end the one that was started here: its agents would stay behind."""
        ray.shutdown()

    # ---- the pool follows the cluster ----

    def _look(self) -> None:
        """Start actors where there is room, take leave of machines that are drained."""
        now = self._looked = time.monotonic()
        leaving = _draining()
        for actor in tuple(self._actors):
            if actor.is_ready and actor.node_id in leaving and not actor.is_leaving:
                actor.is_leaving = True
                self._note(Left(owner=actor.owner, reason="its machine is being drained"))
            if actor.is_leaving and not actor.attempts:
                self._drop(actor)
            elif not actor.is_ready and actor.try_again and now >= actor.try_again:
                actor.try_again = 0.0
                self._ask_start(actor)
        if self._num_workers is None:
            wanted = num_places(_nodes(), self._size, lost=self._lost_places, leaving=leaving)
        else:
            wanted = self._num_workers - self._lost_places.total()
        staying = sum(not actor.is_leaving for actor in self._actors)
        for _ in range(min(wanted, self._most_workers) - staying):
            self._start()

    def _start(self) -> None:
        options = {
            "num_cpus": self._size.cpus,
            "num_gpus": self._size.gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            # shards, and some calls for reports, wishes and closing
            "max_concurrency": self._slots + 4,
        }
        self._started += 1
        actor = _Actor(self._started, _actor_class.options(**options).remote(self._spec))
        self._actors.append(actor)
        self._ask_start(actor)

    def _ask_start(self, actor: _Actor) -> None:
        self._when_done(
            actor.handle.start.remote(), lambda future: lambda: self._note_start(actor, future)
        )

    def _note_start(self, actor: _Actor, future: Future[Started]) -> Event | None:
        if actor not in self._actors:
            return None
        if future.exception() is not None:  # Ray is still starting the process, or again
            actor.last_error = _last_line(future.exception())
            actor.try_again = time.monotonic() + LOOK_SECONDS / 2
            return None
        started = future.result()
        actor.node_id = started.node_id
        if started.error is None:
            actor.is_ready = True
            self._owners[actor.owner] = actor
            return Joined(owner=actor.owner, slots=self._slots)
        if isinstance(started.error, RunError):
            raise started.error
        logger.error("a worker cannot start, going on without it: %s", started.error)
        self._lost_places[actor.node_id] += 1
        self._drop(actor)
        if not self._actors:
            raise RunError(f"no worker can start: {started.error}") from started.error
        return None

    def _note_death(self, actor: _Actor, owner: str, reason: str) -> None:
        """A process has died: it is not asked any more; Ray may be starting another."""
        if self._owners.pop(owner, None) is None:
            return
        actor.incarnation += 1
        actor.is_ready, actor.attempts = False, set()
        self._note(Left(owner=owner, reason=reason))
        if actor.is_leaving:
            self._drop(actor)
        else:
            actor.try_again = time.monotonic() + LOOK_SECONDS / 2

    def _drop(self, actor: _Actor) -> None:
        if actor in self._actors:
            self._actors.remove(actor)
            self._owners.pop(actor.owner, None)
            ray.kill(actor.handle)

    # ---- answers ----

    def _collect(self, actor: _Actor, owner: str, task: ShardTask, future: Future[Any]) -> Finished:
        actor.attempts.discard(task.attempt)
        error = _cause(future.exception())
        if error is None:
            return Finished(task=task, receipts=future.result())
        if isinstance(error, RayActorError):
            self._note_death(actor, owner, _last_line(error))
            is_gone = actor.is_leaving or actor not in self._actors  # drained, or expelled
            preempted = is_gone or bool(getattr(error, "preempted", False))
            return _lost(task, f"its worker died: {_last_line(error)}", counts=not preempted)
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            # What it answered lay on a node that has gone (ObjectLostError and the like).
            return _lost(task, f"its answer is lost: {_last_line(error)}")
        return Finished(task=task, error=error)

    def _listen(self, timeout_seconds: float) -> None:
        """Look at all answers that are there; wait so long for one that is an event."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = 0.0 if self._events else max(0.0, deadline - time.monotonic())
            try:
                self._note(self._happened.get(timeout=left)())
            except queue.Empty:
                return

    def _ask_report(self, actor: _Actor) -> Future[Any]:
        owner = actor.owner

        def answered(future: Future[Any]) -> Callable[[], Event | None]:
            return lambda: self._note_report(actor, owner, future)

        return self._when_done(actor.handle.report.remote(), answered)

    def _note_report(self, actor: _Actor, owner: str, future: Future[WorkerReport]) -> None:
        error = _cause(future.exception())
        if error is None:
            self._reports[owner] = future.result()
        elif isinstance(error, RayActorError):
            self._note_death(actor, owner, _last_line(error))
        else:
            logger.warning("%s gives no report: %s", owner, error)

    def _when_done(
        self, reference: Any, then: Callable[[Future[Any]], Callable[[], Event | None]]
    ) -> Future[Any]:
        """Have an answer looked at by the driver's own thread; Ray calls back from another."""
        future: Future[Any] = reference.future()
        future.add_done_callback(lambda done: self._happened.put(then(done)))
        return future

    def _note(self, event: Event | None) -> None:
        if event is not None:
            self._events.append(event)

    def _nobody(self) -> str:
        reasons = {actor.last_error for actor in self._actors if actor.last_error}
        return (
            f"no worker for {START_SECONDS:.0f} s; each asks for num_cpus={self._size.cpus} "
            f"num_gpus={self._size.gpus}; the cluster has {_ray.available_resources()}"
            + "".join(f"; {reason}" for reason in sorted(reasons))
        )


def _lost(task: ShardTask, reason: str, *, counts: bool = True) -> Finished:
    return Finished(task=task, error=WorkerLost(task.shard.name, reason), counts_as_attempt=counts)


def _cause(error: BaseException | None) -> BaseException | None:
    """What a task raised, without Ray's wrapping."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def _last_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
