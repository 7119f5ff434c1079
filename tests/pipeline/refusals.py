"""S3 servers that say no to everything, and clients that give up soon."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request alike."""

    protocol_version = "HTTP/1.1"
    status, code = 403, "InvalidAccessKeyId"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """Its URL."""
    handler = type("Handler", (_Answers,), {"status": status, "code": code})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def impatient(endpoint: str, *, read_timeout: float = 2, **more: Any) -> dict[str, Any]:
    """Options of a client that gives up soon."""
    retries = {"total_max_attempts": 1, "mode": "standard"}
    config = {"connect_timeout": 1, "read_timeout": read_timeout, "retries": retries}
    return {"client_kwargs": {"endpoint_url": endpoint}, "config_kwargs": config, **more}
