"""An HTTP proxy before an S3 server that misbehaves as real storage does, by a seeded schedule.

Request number n of a proxy meets the same fault whenever seed and rates are the same. Every fault
that was given is counted by its kind, every request by what it asked for. The proxy holds one
request body and one block of an answer per connection. Signatures are handed on as they come, so
the server behind must not check them (moto does not): the ``Host`` they were made for is another.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

BLOCK_BYTES = 1 << 20
UPSTREAM_TIMEOUT_SECONDS = 300.0
_HOP_BY_HOP = {"connection", "keep-alive", "host", "expect", "content-length"}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(enum.Enum):
    """What can happen to a request."""

    slow_down = "slow_down"
    """503 SlowDown; not carried out."""
    internal_error = "internal_error"
    """500 InternalError; not carried out."""
    drop = "drop"
    """The connection is reset; not carried out."""
    delay = "delay"
    """Carried out, answered ``delay_seconds`` late."""
    cut = "cut"
    """The head of the answer tells its length, fewer bytes follow, then the end."""
    stall = "stall"
    """Half of an answer (of one without a body: nothing), ``stall_seconds`` of silence, the end."""
    lost_answer = "lost_answer"
    """A write that was carried out and whose connection is reset instead of answered."""


class FaultProxy:
    """Listens from its creation on, until ``close``; all methods may be called at any time."""

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        delay_seconds: float = 1.0,
        stall_seconds: float = 90.0,
        ignores_conditions: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Start to listen.

        Args:
            upstream: ``http://HOST:PORT`` of the server behind.
            seed: of the schedule.
            rates: kind -> share of requests that meet it, where it can happen at all.
            delay_seconds: of ``Fault.delay``.
            stall_seconds: of ``Fault.stall``; longer than the client's read timeout.
            ignores_conditions: take ``If-Match`` and ``If-None-Match`` off, as a storage does that
                has no conditional writes.
            host: where to listen.
            port: 0: any free one.
        """
        self._upstream, self._seed = urlsplit(upstream).netloc, seed
        self.delay_seconds, self.stall_seconds = delay_seconds, stall_seconds
        self.ignores_conditions = ignores_conditions
        self._rates: dict[Fault, float] = {}
        self.set_rates(rates or {})
        self._lock = threading.Lock()
        self._number = 0
        self._requests: Counter[str] = Counter()
        self._faults: Counter[Fault] = Counter()
        self._forced: list[Fault] = []
        self.closing = threading.Event()
        self._server = _Server((host, port), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="fault proxy", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """What clients take for the server."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def requests(self) -> dict[str, int]:
        """Requests so far: GET, PUT, POST, HEAD, DELETE, and LIST for a GET that lists a bucket."""
        with self._lock:
            return dict(self._requests)

    @property
    def faults(self) -> dict[Fault, int]:
        """Faults given so far."""
        with self._lock:
            return dict(self._faults)

    def set_rates(self, rates: Mapping[Fault, float]) -> None:
        """Replace all rates; a kind that is not named does not happen any more.

        Raises:
            ValueError: a rate below 0, or all together above 1.
        """
        if any(rate < 0 for rate in rates.values()) or sum(rates.values()) > 1:
            raise ValueError(f"rates must be at least 0 and together at most 1, got {dict(rates)}")
        self._rates = dict(rates)

    def force(self, *faults: Fault) -> None:
        """The next requests to which they can happen meet these, in this order, whatever the rates.

        They do not count as requests of the schedule.
        """
        with self._lock:
            self._forced.extend(faults)

    def reset(self) -> None:
        """No faults, nothing forced, all counters at zero, the schedule at its beginning."""
        with self._lock:
            self._rates, self._number = {}, 0
            self._forced.clear()
            self._requests.clear()
            self._faults.clear()

    def draw(self, verb: str) -> tuple[Fault | None, random.Random]:
        """What happens to the next request, and dice for how exactly."""
        with self._lock:
            self._requests[verb] += 1
            if self._forced and _can_happen(self._forced[0], verb):
                return self._forced.pop(0), random.Random(self._seed)
            self._number += 1
            dice = random.Random(f"{self._seed}:{self._number}")
            place = dice.random()
            for fault, rate in self._rates.items():
                place -= rate
                if place < 0:
                    return (fault if _can_happen(fault, verb) else None), dice
            return None, dice

    def count(self, fault: Fault) -> None:
        """It has been given."""
        with self._lock:
            self._faults[fault] += 1

    @property
    def upstream(self) -> str:
        """HOST:PORT of the server behind."""
        return self._upstream

    def close(self) -> None:
        """Stop listening and cut what is still open."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _can_happen(fault: Fault, verb: str) -> bool:
    if fault is Fault.lost_answer:
        return verb in ("PUT", "POST", "DELETE")
    return fault is not Fault.cut or verb in ("GET", "LIST")


class _Server(http.server.ThreadingHTTPServer):
    """Knows its open connections, so that closing it ends them."""

    daemon_threads = True
    block_on_close = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(address, _Connection)

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: object) -> None:
        # without the usual shutdown(), which would say goodbye before a reset
        assert isinstance(request, socket.socket)
        self._open.discard(request)
        request.close()

    def server_close(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Connection(http.server.BaseHTTPRequestHandler):
    """One client connection, with one to the server behind."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._proxy = self.server.proxy
        self._behind = http.client.HTTPConnection(
            self._proxy.upstream, timeout=UPSTREAM_TIMEOUT_SECONDS
        )

    def finish(self) -> None:
        self._behind.close()
        with contextlib.suppress(OSError):  # what is not sent yet goes nowhere
            super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client hung up
            self.close_connection = True

    def _serve(self) -> None:
        body = self._read_body()
        if body is None:
            return
        fault, dice = self._proxy.draw(self._verb())
        if fault is Fault.slow_down:
            self._refuse(fault, 503, "SlowDown", "Please reduce your request rate.")
        elif fault is Fault.internal_error:
            self._refuse(fault, 500, "InternalError", "We encountered an internal error.")
        elif fault is Fault.drop:
            self._reset(fault)
        else:
            self._forward(body, fault, dice)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _verb(self) -> str:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        is_list = self.command == "GET" and ("list-type" in query or "prefix" in query)
        return "LIST" if is_list else self.command

    def _read_body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding"):
            self._answer(501, "NotImplemented", "this proxy needs a Content-Length")
            self.close_connection = True
            return None
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:  # the client hung up
            self.close_connection = True
            return None
        return body

    def _forward(self, body: bytes, fault: Fault | None, dice: random.Random) -> None:
        try:
            answer = self._ask(body)
        except (OSError, http.client.HTTPException) as error:
            self._behind.close()
            self._answer(502, "BadGateway", f"the server behind: {type(error).__name__}")
            return
        if fault is Fault.lost_answer and answer.status < 300:
            answer.read()
            self._reset(fault)
            return
        if fault is Fault.delay:
            self._proxy.count(fault)
            self._proxy.closing.wait(self._proxy.delay_seconds)
        size = int(answer.headers.get("Content-Length") or 0) if self.command != "HEAD" else 0
        if fault is Fault.stall and not size:
            self._proxy.count(fault)
            self._proxy.closing.wait(self._proxy.stall_seconds)
            self.close_connection = True
            return
        sent = size
        if fault in (Fault.cut, Fault.stall) and size:
            sent = size // 2 if fault is Fault.stall else dice.randrange(size)
        self._send(answer, sent)
        if sent == size:
            answer.read()  # an empty one has to be read as well before the connection is used again
            return
        assert fault is not None
        self._proxy.count(fault)
        if fault is Fault.stall:
            self._proxy.closing.wait(self._proxy.stall_seconds)
        self._behind.close()
        self.close_connection = True

    def _ask(self, body: bytes) -> http.client.HTTPResponse:
        """The server's answer; asked once more where its idle connection had been closed."""
        dropped = _HOP_BY_HOP | (
            {"if-match", "if-none-match"} if self._proxy.ignores_conditions else set()
        )
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        headers["Content-Length"] = str(len(body))
        was_open = self._behind.sock is not None
        try:
            self._behind.request(self.command, self.path, body, headers)
            return self._behind.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError):
            self._behind.close()
            if not was_open:
                raise
        self._behind.request(self.command, self.path, body, headers)
        return self._behind.getresponse()

    def _send(self, answer: http.client.HTTPResponse, num_bytes: int) -> None:
        """Head of the answer, and so many bytes of its body."""
        self.send_response_only(answer.status, answer.reason)
        is_sized = "Content-Length" in answer.headers
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if is_sized or self.command == "HEAD" or answer.status in (204, 304):
            self.end_headers()
            while num_bytes and (block := answer.read(min(BLOCK_BYTES, num_bytes))):
                self.wfile.write(block)
                num_bytes -= len(block)
            return
        content = answer.read()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, fault: Fault, status: int, code: str, message: str) -> None:
        self._proxy.count(fault)
        self._answer(status, code, message)

    def _answer(self, status: int, code: str, message: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self, fault: Fault) -> None:
        self._proxy.count(fault)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Counted instead."""
