"""A Ray cluster of real nodes on the loopback, and an S3 behind a proxy that misbehaves.

Each node is a ``ray start`` in a session of its own, all with one authentication token.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3

from jobs.drill import processes
from jobs.drill.proxy import FaultProxy

BUCKET = "drill"
START_SECONDS = 180.0
NUM_NODES = 3
LIAR = Path(__file__).parent / "liar"
"""On the path of every node: makes one worker compute wrongly when it is told to."""


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Store:
    """An S3 server in a process of its own, and the proxy that the run takes for it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        """The server itself: never fails."""
        self._server = processes.start(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={},
            cwd=folder,
            log=folder / "s3.log",
        )
        self._await()
        self.proxy = FaultProxy(self.url, seed=seed, delay_seconds=2.0, stall_seconds=5.0)
        self.client = boto3.client("s3", **self._options())
        self.client.create_bucket(Bucket=BUCKET)

    def _options(self) -> dict[str, str]:
        return {
            "endpoint_url": self.url,
            "region_name": "us-east-1",
            "aws_access_key_id": "drill",
            "aws_secret_access_key": "drill",
        }

    def _await(self) -> None:
        host, _, port = self.url.removeprefix("http://").partition(":")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
            except OSError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the S3 server does not start") from None
                time.sleep(0.1)
            else:
                return

    def env(self, *, through_proxy: bool) -> dict[str, str]:
        """Where a process finds its S3."""
        return {
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": "drill",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.proxy.url if through_proxy else self.url,
        }

    def names(self, prefix: str) -> list[str]:
        """Keys below a prefix, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [
            entry["Key"].removeprefix(prefix)
            for page in pages
            for entry in page.get("Contents", [])
        ]

    def read(self, key: str) -> bytes:
        """An object."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    @property
    def session(self) -> int:
        """Of the server."""
        return self._server.pid

    def close(self) -> None:
        """Stop both."""
        self.proxy.close()
        processes.kill([self.session])
        self._server.wait()


class Cluster:
    """Nodes of one core each; the first one is the head and stays."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.liar_file = folder / "liar"
        """Made: the next worker that encodes takes it and computes wrongly from then on."""
        self.env = env | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DEDUP_LOGS": "0",
        }
        self._node_env = self.env | {
            "PYTHONPATH": os.pathsep.join(
                [str(LIAR), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "DRILL_LIAR_FILE": str(self.liar_file),
        }
        self._folder = folder
        self._head: int | None = None
        self.nodes: list[int] = []
        """Sessions of the nodes that are up, without the head."""
        self.sessions: list[int] = []
        """Sessions of all nodes that ever were."""

    @property
    def liar(self) -> int | None:
        """Process that has begun to compute wrongly."""
        taken = self.liar_file.parent.glob(f"{self.liar_file.name}.*")
        return next((int(path.suffix[1:]) for path in taken), None)

    def start(self) -> None:
        """The head, then the others."""
        port = self.address.rpartition(":")[2]
        self._head = self._start(
            "--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false"
        )
        while len(self.nodes) < NUM_NODES - 1:
            self.add_node()

    def add_node(self) -> int:
        """One more node of one core; returns its session."""
        node = self._start(f"--address={self.address}")
        self.nodes.append(node)
        return node

    def _start(self, *options: str) -> int:
        log = self._folder / "nodes.log"
        process = processes.start(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
                *("--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats"),
                "--object-store-memory=100000000",
            ],
            env=self._node_env,
            cwd=self._folder,
            log=log,
        )
        self.sessions.append(process.pid)
        try:
            code = process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            raise RuntimeError(f"ray start failed ({code}): {log.read_text()[-1000:]}")
        return process.pid

    def close(self) -> list[processes.Process]:
        """Kill all nodes; returns processes that could not be killed."""
        return processes.kill(self.sessions)
