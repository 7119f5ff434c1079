"""An S3 of this machine for measurements: moto behind a counting proxy, in a process of its own.

So its work is not counted among the CPU seconds of what is measured. Needs the dev extra (moto).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import TracebackType
from typing import Any

from jobs.drill.proxy import FaultProxy

CREDENTIALS = {"key": "benchmark", "secret": "benchmark"}


class S3Server:
    """Runs until it is closed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs.benchmark.s3_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = str(self._ask()["url"])

    @property
    def options(self) -> dict[str, Any]:
        """Fsspec options of its clients."""
        return {
            **CREDENTIALS,
            "client_kwargs": {"endpoint_url": self.url, "region_name": "us-east-1"},
        }

    def requests(self) -> int:
        """Requests that it was asked so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return sum(self._ask()["requests"].values())

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the S3 server did not start; it needs moto (the dev extra)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> S3Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()  # the end of its input ends it


def serve() -> None:
    """Say where it listens, then how much was asked for, once for each line of the input."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with FaultProxy(f"http://{host}:{port}") as proxy:
        print(json.dumps({"url": proxy.url}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"requests": proxy.requests}), flush=True)
    moto.stop()


if __name__ == "__main__":
    serve()
