"""Ray clusters of several nodes on this machine, with token authentication."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.pipeline import runs


class Nodes:
    """Raylets on the loopback with a token that all of them know."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DEDUP_LOGS": "0",
        }
        self._sessions: list[int] = []
        self._blocking: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    def head(self) -> int:
        """Start the first node; its number names its processes."""
        port = self.address.split(":")[1]
        return self._start("--head", f"--port={port}", f"--temp-dir={self._folder}")

    def add(self, *, block: bool = False) -> int:
        """Start another node; ``block``: its process stays, as a service manager runs it."""
        return self._start(f"--address={self.address}", *["--block"] * block)

    def _start(self, *options: str) -> int:
        with (self._folder / "start.log").open("a+") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
                    *("--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats"),
                    "--object-store-memory=100000000",
                ],
                env=os.environ | self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._sessions.append(process.pid)
            if "--block" in options:
                self._blocking.append(process)
            else:
                assert process.wait(timeout=90) == 0, (log.seek(0), log.read())
        return process.pid

    @property
    def where(self) -> tuple[str, ...]:
        """Arguments of a run on this cluster."""
        return "cluster=ray", f"cluster.address={self.address}"

    def processes(self, pattern: str = "") -> list[int]:
        """Ids of this cluster's processes whose command line matches."""
        return [
            number
            for leader in self._sessions
            for number, words in runs.session(leader).items()
            if re.search(pattern, words)
        ]

    def node_of(self, worker: int) -> int:
        """Which ``ray start`` a worker belongs to."""
        return next(leader for leader in self._sessions if worker in runs.session(leader))

    def workers_of(self, node: int) -> list[int]:
        """Encoder actors on a node."""
        return [
            n for n, words in runs.session(node).items() if words.startswith("ray::EncoderActor")
        ]

    def kill(self, node: int) -> None:
        """The machine is gone."""
        for number in runs.session(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def stop(self) -> None:
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.2)
        for process in self._blocking:
            process.wait(timeout=10)
        assert left == []


@contextlib.contextmanager
def cluster(num_nodes: int) -> Iterator[Nodes]:
    """A head and more nodes, all gone at the end."""
    # paths of sockets are at most 107 bytes long
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    nodes = Nodes(folder)
    try:
        nodes.head()
        for _ in range(num_nodes - 1):
            nodes.add()
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], bool], command: runs.Command, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert command.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
