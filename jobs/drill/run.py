"""The command under test: started, started again whenever it ends too early, round after round."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from jobs.drill import processes
from jobs.drill.cluster import Cluster, Store
from jobs.drill.workload import command

FINISH_SECONDS = 1200.0
"""Longest time for the last round to end when nothing harms it any more."""
MAX_STARTS = 60


class Run:
    """One driver at a time. A round is a run over all shards into an OUT of its own."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        folder: Path,
        *,
        num_shards: int,
        say: Callable[[str], None],
    ) -> None:
        self._cluster, self._store, self._folder, self._say = cluster, store, folder, say
        self._num_shards = num_shards
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_by: signal.Signals | None = None
        self.outs: list[str] = []
        """Prefixes of the OUTs, in order; the last one may be unfinished."""
        self.is_done = False
        """The last round has ended with exit status 0."""
        self.num_starts = 0
        self.log = folder / "driver.log"
        self.sessions: list[int] = []
        """Of all drivers."""

    def begin_round(self) -> None:
        """Start the command with a new OUT."""
        self.outs.append(f"out-{len(self.outs)}")
        self.is_done = False
        self._start()

    def _start(self) -> None:
        if self.num_starts >= MAX_STARTS:
            raise RuntimeError(f"the command was started {self.num_starts} times; see {self.log}")
        self.num_starts += 1
        self._ended_by = None
        where = ("cluster=ray", f"cluster.address={self._cluster.address}")
        self._process = processes.start(
            command(self._num_shards, self.outs[-1], *where),
            env=self._cluster.env,
            cwd=self._folder,
            log=self.log,
        )
        self.sessions.append(self._process.pid)

    def signal(self, number: signal.Signals) -> int | None:
        """Send it to the driver; returns its pid, None when there is none that is not ending."""
        process = self._process
        if process is None or process.poll() is not None or self._ended_by is not None:
            return None
        self._ended_by = number
        process.send_signal(number)
        return process.pid

    def watch(self) -> None:
        """Notice the end of the command; start it again unless it is done."""
        process = self._process
        if process is None or process.poll() is None:
            return
        code, self._process = process.returncode, None
        if code == 0:
            self.is_done = True
            self._say(f"{self.outs[-1]} is finished, exit status 0")
            return
        why = f"after {self._ended_by.name}" if self._ended_by else "by itself"
        self._say(f"the driver has ended {why}, exit status {code}; the same command again")
        self._start()

    def num_receipts(self) -> int:
        """Committed segments of all rounds."""
        return sum(len(self._store.names(f"{out}/receipts/")) for out in self.outs)

    def num_receipts_now(self) -> int:
        """Committed segments of the present round."""
        return len(self._store.names(f"{self.outs[-1]}/receipts/"))

    def finish(self) -> None:
        """Wait for the last round.

        Raises:
            RuntimeError: it does not end.
        """
        deadline = time.monotonic() + FINISH_SECONDS
        while not self.is_done:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the run does not end; see {self.log}")
            time.sleep(0.2)
            self.watch()

    def said(self, text: str) -> str | None:
        """The first line of all drivers and workers that holds this text."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line for line in lines if text in line), None)

    def clean(self) -> None:
        """The same shards in one process, with a storage that never fails, into ``clean``.

        Raises:
            RuntimeError: it failed.
        """
        log = self._folder / "clean.log"
        process = processes.start(
            command(self._num_shards, "clean", "cluster=inline"),
            env=self._store.env(through_proxy=False),
            cwd=self._folder,
            log=log,
        )
        self.sessions.append(process.pid)
        if process.wait(timeout=FINISH_SECONDS):
            raise RuntimeError(f"the clean run failed: {log.read_text()[-2000:]}")

    def close(self) -> None:
        """Kill what is left."""
        processes.kill(self.sessions)
        if self._process is not None:
            self._process.wait()
