"""The recorder's HTTP server, which answers /metrics, /healthz, /readyz and the status page.

One thread accepts and each connection has its own. They read what the main loop published, and change none of its
data. A client may be slow, silent or hostile: the time, the size and the number of connections are limited. The server
reads only the method, the path and the host of a request.
"""

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, cast

from mlotel_cli.snapshot import SinkHealth

MAX_CONNECTIONS = 16
"""Connections served at the same time. One more ends the oldest, such as that of a client that sends no request."""
DEADLINE_S = 10.0
"""The longest that a connection may last."""
MAX_REQUEST_BYTES = 16_384
"""The limit of request line and headers together."""
_SILENCE_S = 5.0
_ALWAYS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(slots=True)
class Reply:
    """The answer of a path."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = "default-src 'none'; frame-ancestors 'none'"


Routes = Mapping[str, Callable[[], Reply]]
"""The function that answers each path. The threads of several connections may call it at the same time."""


class HttpServer:
    """Serves `routes` from a thread of its own until `close`.

    Attributes:
        url: the address it listens on; None when it does not listen.
        error: why it does not listen; empty when it does.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        host: str,
        port: int,
        fd: int | None = None,
        deadline_s: float = DEADLINE_S,
        poll_s: float = 0.2,
    ) -> None:
        """Listen on `host` and `port`. A failure raises nothing; `error` gives the reason.

        Args:
            routes: what answers, by path.
            host: an address or a host name.
            port: 0 takes a free one.
            fd: descriptor of a socket that listens there already, inherited from a process that holds the port for
                this recorder and for its successors.
            deadline_s: the longest that a connection may last.
            poll_s: how often deadlines are checked, and the longest that `close` takes.
        """
        self.url: str | None = None
        self.error = ""
        self._server: _Server | None = None
        try:
            self._server = _Server(host, port, routes, fd=fd, deadline_s=deadline_s)
        except (OSError, OverflowError, UnicodeError) as error:
            self.error = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
            return
        bound = self._server.socket.getsockname()
        self.url = f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": poll_s}, name="mlotel-http", daemon=True
        )
        self._thread.start()

    def health(self) -> SinkHealth:
        """Return the number of requests answered and of connections ended to make room, with the address."""
        server = self._server
        sent, lost = (0, 0) if server is None else (server.num_requests, server.num_refused)
        return SinkHealth(self.url is not None, sent, lost, detail=self.url or self.error)

    def close(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join(5)
            self._server.server_close()
            self._server.end_overdue(now=float("inf"))
            self.url = None


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, routes: Routes, *, fd: int | None, deadline_s: float) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self.routes = routes
        self.num_requests = self.num_refused = 0
        self._deadline_s = deadline_s
        self._open: dict[socket.socket, float] = {}  # connection -> its deadline
        super().__init__(cast("tuple[str, int]", address), _Handler, bind_and_activate=fd is None)
        if fd is not None:
            self.socket.close()
            self.socket = socket.socket(fileno=fd)
        self.is_local = ipaddress.ip_address(self.socket.getsockname()[0].partition("%")[0]).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a place and a thread; when all places are taken, end the oldest connection."""
        while len(self._open) >= MAX_CONNECTIONS:
            with contextlib.suppress(StopIteration, RuntimeError):  # the connection ended by itself meanwhile
                oldest = next(iter(self._open))
                self._open.pop(oldest, None)
                self.num_refused += 1
                _end(oldest)
        self._open[request] = time.monotonic() + self._deadline_s
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close the connection and free its place."""
        self._open.pop(request, None)
        super().close_request(request)

    def service_actions(self) -> None:
        """End overdue connections; the accepting thread calls this about five times a second."""
        self.end_overdue(now=time.monotonic())

    def end_overdue(self, *, now: float) -> None:
        """End connections whose deadline has passed, also while their threads wait."""
        for request, ends in list(self._open.items()):
            if now >= ends:
                _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the current error to recorder.log, unless a client closed its connection."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"answering {client_address}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log


def _end(connection: socket.socket) -> None:
    """Shut a connection down, so that its thread stops waiting for it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Limited:
    """The bytes of a request up to a limit, where the stream ends."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._left = MAX_REQUEST_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = cast("Any", self._stream).readline(min(limit, self._left) if limit >= 0 else self._left)
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()

    @property
    def is_spent(self) -> bool:
        return self._left <= 0


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = default_request_version = "HTTP/1.1"
    timeout = _SILENCE_S

    def setup(self) -> None:
        super().setup()
        self._limited = _Limited(self.rfile)
        self.rfile = cast("Any", self._limited)

    def parse_request(self) -> bool:
        """Parse the request; refuse one that is too large or of another method than GET and HEAD."""
        parsed = super().parse_request()
        if self._limited.is_spent:
            if parsed:  # else the library has answered
                self._answer(Reply(b"431 the request is too large\n", status=431))
            return False
        if parsed and self.command not in ("GET", "HEAD"):
            self._answer(Reply(b"405 only GET and HEAD are allowed\n", status=405))
            return False
        return parsed

    def do_GET(self) -> None:
        """Answer a request by the route of its path."""
        if not self._is_for_us():
            self._answer(Reply(b"421 this server answers this machine only; use 127.0.0.1 or localhost\n", status=421))
            return
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            self._answer(Reply(b"404 the paths are /, /metrics, /healthz and /readyz\n", status=404))
            return
        try:
            reply = route()
        except Exception as error:
            print(f"{self.path}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log
            reply = Reply(b"500 the error is in recorder.log\n", status=500)
        self._answer(reply)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _is_for_us(self) -> bool:
        """Return False when a local server is asked by a foreign host name, as in a DNS rebinding attack."""
        host = self.headers.get("Host", "").rpartition("@")[2]
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if not self.server.is_local or name.lower() in ("", "localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _answer(self, reply: Reply) -> None:
        """Send the reply and close the connection, which frees its place."""
        self.server.num_requests += 1
        self.send_response(reply.status)
        headers = {"Content-Type": reply.content_type, "Content-Length": str(len(reply.body)), "Connection": "close"}
        if reply.status == 405:
            headers["Allow"] = "GET, HEAD"
        for name, value in {**headers, **_ALWAYS, "Content-Security-Policy": reply.policy}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def version_string(self) -> str:
        """Return the Server header, without a version that would tell an attacker its weaknesses."""
        return "mlotel"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that the library refuses, with the headers of every other answer."""
        self._answer(Reply(f"{int(code)} the request is not valid HTTP\n".encode(), status=int(code)))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because a scraper sends a request every few seconds."""
