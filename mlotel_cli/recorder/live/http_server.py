"""The recorder's HTTP server: /metrics, /healthz, /readyz and the status page, and nothing else.

A thread accepts, another one serves each connection, and none of them touches what the main loop holds: they read what
it published. A client may be slow, silent or hostile: every connection has a deadline, a size and one of few places.
It reads nothing from a request but method, path and host.
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

MAX_CONNECTIONS = 16
"""Served at once; one more ends the oldest, which is a client that never asks, if there is one."""
DEADLINE_S = 10.0
"""How long a connection may take in all."""
MAX_REQUEST_BYTES = 16_384
"""Request line and headers together."""
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
    """What a path answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = "default-src 'none'; frame-ancestors 'none'"


Routes = Mapping[str, Callable[[], Reply]]
"""What answers each path; called on a thread of the connection's own, several at once."""


class HttpServer:
    """Serves `routes` from a thread of its own until `close`.

    Attributes:
        url: where it listens; None when it does not.
        error: why it does not; empty otherwise.
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
        """Listen on `host` and `port`, 0 for a free one. That it cannot is no exception: `error` says why.

        Args:
            routes: what answers.
            host: an address or a name of one.
            port: 0 takes a free one.
            fd: of a socket that listens there already, inherited from a process that holds the port for this one and
                for those that may replace it.
            deadline_s: how long a connection may take in all.
            poll_s: how often deadlines are looked at, and how long `close` may take.
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

    @property
    def num_requests(self) -> int:
        """Requests answered so far."""
        return 0 if self._server is None else self._server.num_requests

    @property
    def num_refused(self) -> int:
        """Connections that were ended to make room."""
        return 0 if self._server is None else self._server.num_refused

    def close(self) -> None:
        """Stop listening, and close what is open."""
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
        self._open: dict[socket.socket, float] = {}  # and the end of its time
        super().__init__(cast("tuple[str, int]", address), _Handler, bind_and_activate=fd is None)
        if fd is not None:
            self.socket.close()
            self.socket = socket.socket(fileno=fd)
        self.is_local = ipaddress.ip_address(self.socket.getsockname()[0].partition("%")[0]).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a place and a thread."""
        while len(self._open) >= MAX_CONNECTIONS:
            with contextlib.suppress(StopIteration, RuntimeError):  # it ended by itself meanwhile
                oldest = next(iter(self._open))
                self._open.pop(oldest, None)
                self.num_refused += 1
                _end(oldest)
        self._open[request] = time.monotonic() + self._deadline_s
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close it, and free its place."""
        self._open.pop(request, None)
        super().close_request(request)

    def service_actions(self) -> None:
        """Called about five times a second by the accepting thread."""
        self.end_overdue(now=time.monotonic())

    def end_overdue(self, *, now: float) -> None:
        """End connections whose time is over, whatever their threads wait for."""
        for request, ends in list(self._open.items()):
            if now >= ends:
                _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else goes to recorder.log."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"answering {client_address}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log


def _end(connection: socket.socket) -> None:
    """Whatever its thread waits for, it waits no longer."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Limited:
    """A request's bytes, up to a limit; beyond it the stream ends."""

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
        """Refuse what is too large, and every method but two."""
        parsed = super().parse_request()
        if self._limited.is_spent:
            if parsed:  # otherwise it has been answered
                self._answer(Reply(b"431 the request is too large\n", status=431))
            return False
        if parsed and self.command not in ("GET", "HEAD"):
            self._answer(Reply(b"405 only GET and HEAD\n", status=405))
            return False
        return parsed

    def do_GET(self) -> None:
        """Answer one of the paths."""
        if not self._is_for_us():
            self._answer(Reply(b"421 this server is for this machine; ask it by 127.0.0.1 or localhost\n", status=421))
            return
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            self._answer(Reply(b"404 there is /, /metrics, /healthz and /readyz\n", status=404))
            return
        try:
            reply = route()
        except Exception as error:
            print(f"{self.path}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log
            reply = Reply(b"500 it is in recorder.log\n", status=500)
        self._answer(reply)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _is_for_us(self) -> bool:
        """False when a page elsewhere has its own name resolve to this machine, to read what is only for local eyes."""
        host = self.headers.get("Host", "").rpartition("@")[2]
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if not self.server.is_local or name.lower() in ("", "localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _answer(self, reply: Reply) -> None:
        """Send it, and close: a place is never held for a next request."""
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
        """What the Server header says: no version to look up weaknesses by."""
        return "mlotel"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library finds wrong with a request, as everything else is answered."""
        self._answer(Reply(f"{int(code)} the request is not understood\n".encode(), status=int(code)))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""
