"""Doing a fault to the run that is under way."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Mapping

from jobs.drill import processes
from jobs.drill.cluster import Cluster, Store
from jobs.drill.proxy import Fault
from jobs.drill.run import Run
from jobs.drill.schedule import Kind

BURST_SECONDS = 5.0
"""How long a storage misbehaves."""
STOPPED_SECONDS = 8.0
SETTLED_SECONDS = 5.0
"""Age of a decoder that may be killed: a younger one may hold a video's second and last try."""

_STORAGE: Mapping[Kind, Mapping[Fault, float]] = {
    Kind.storage_refuses: {Fault.slow_down: 0.3, Fault.internal_error: 0.1},
    Kind.storage_drops: {Fault.drop: 0.3},
    Kind.storage_cuts: {Fault.cut: 0.4},
    Kind.storage_delays: {Fault.delay: 0.5},
    Kind.storage_stalls: {Fault.stall: 0.2},
    Kind.storage_loses_answers: {Fault.lost_answer: 0.4},
}
"""Share of the requests of a burst that meet a fault."""


class Injector:
    """Knows how to do each kind; nothing but the drill's own processes is touched."""

    def __init__(
        self, cluster: Cluster, store: Store, run: Run, *, seed: int, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._store, self._run, self._say = cluster, store, run, say
        self._dice = random.Random(f"faults {seed}")
        self._background: list[threading.Thread] = []
        self._finishing = threading.Event()
        self._errors: list[BaseException] = []

    def inject(self, kind: Kind) -> str | None:
        """Do it; returns what exactly was done, or None when there is no victim at present."""
        self._raise_errors()
        if kind in _STORAGE:
            return self._misbehave(_STORAGE[kind])
        doers: Mapping[Kind, Callable[[], str | None]] = {
            Kind.decoder_killed: self._kill_decoder,
            Kind.worker_killed: self._kill_worker,
            Kind.worker_stopped: self._stop_worker,
            Kind.worker_lies: self._lie,
            Kind.driver_killed: lambda: self._end_driver(signal.SIGKILL),
            Kind.driver_interrupted: lambda: self._end_driver(signal.SIGINT),
            Kind.raylet_killed: lambda: self._end_raylet(signal.SIGKILL),
            Kind.node_drained: lambda: self._end_raylet(signal.SIGTERM),
            Kind.node_killed: self._kill_node,
        }
        return doers[kind]()

    def finish(self) -> None:
        """Wait for what is still under way: nodes that are added, processes that go on."""
        self._finishing.set()
        for thread in self._background:
            thread.join()
        self._raise_errors()
        self._store.proxy.set_rates({})

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _later(self, action: Callable[[], None]) -> None:
        def act() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 (raised in the drill's own thread)
                self._errors.append(error)

        thread = threading.Thread(target=act, daemon=True)
        self._background.append(thread)
        thread.start()

    def _victim(self, pattern: str, min_age_seconds: float = 0.0) -> processes.Process | None:
        found = [
            process
            for process in processes.running(self._cluster.sessions, pattern)
            if process.age_seconds >= min_age_seconds
        ]
        return self._dice.choice(found) if found else None

    def _kill_decoder(self) -> str | None:
        victim = self._victim(processes.DECODER, SETTLED_SECONDS)
        if victim is None:
            return None
        victim.send(signal.SIGKILL)
        return f"pid {victim.pid}"

    def _kill_worker(self) -> str | None:
        victim = self._victim(processes.WORKER)
        if victim is None:
            return None
        victim.send(signal.SIGKILL)
        return f"pid {victim.pid}"

    def _stop_worker(self) -> str | None:
        victim = self._victim(processes.WORKER)
        if victim is None:
            return None
        victim.send(signal.SIGSTOP)

        def go_on() -> None:
            time.sleep(STOPPED_SECONDS)
            victim.send(signal.SIGCONT)

        self._later(go_on)
        return f"pid {victim.pid}, {STOPPED_SECONDS:g} s"

    def _lie(self) -> str | None:
        # on CPUs the first worker of an OUT gives the reference that lies are measured by
        if not self._run.num_receipts_now() or self._victim(processes.WORKER) is None:
            return None
        self._cluster.liar_file.touch()
        return "the next worker that encodes"

    def _end_driver(self, number: signal.Signals) -> str | None:
        if self._victim(processes.WORKER) is None:  # it is still starting, there is nothing to lose
            return None
        pid = self._run.signal(number)
        return None if pid is None else f"pid {pid}"

    def _end_raylet(self, number: signal.Signals) -> str | None:
        if not self._cluster.nodes:
            return None
        node = self._cluster.nodes.pop(self._dice.randrange(len(self._cluster.nodes)))
        raylets = processes.running([node], processes.RAYLET)
        for raylet in raylets:
            raylet.send(number)
        self._later(self._add_node)
        return f"pid {raylets[0].pid}" if raylets else f"node {node}, which had ended by itself"

    def _kill_node(self) -> str | None:
        if not self._cluster.nodes:
            return None
        node = self._cluster.nodes.pop(self._dice.randrange(len(self._cluster.nodes)))
        killed = processes.running([node])
        for process in killed:
            process.send(signal.SIGKILL)
        self._later(self._add_node)
        return f"{len(killed)} processes of session {node}"

    def _add_node(self) -> None:
        """A node in place of the one that is gone; tells how soon the run uses it."""
        began = time.monotonic()
        node = self._cluster.add_node()
        there = time.monotonic()
        while not processes.running([node], processes.WORKER):
            if self._finishing.wait(0.5):
                return
        self._say(
            f"a new node was there after {there - began:.1f} s, "
            f"a worker on it {time.monotonic() - there:.1f} s later"
        )

    def _misbehave(self, rates: Mapping[Fault, float]) -> str | None:
        before = sum(self._store.proxy.faults.values())
        self._store.proxy.set_rates(rates)
        deadline = time.monotonic() + 4 * BURST_SECONDS
        time.sleep(BURST_SECONDS)
        # a burst in which nothing was asked has harmed nobody
        while sum(self._store.proxy.faults.values()) == before and time.monotonic() < deadline:
            time.sleep(0.5)
        self._store.proxy.set_rates({})
        harmed = sum(self._store.proxy.faults.values()) - before
        return f"{harmed} requests" if harmed else None
