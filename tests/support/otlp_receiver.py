"""A loopback OTLP receiver that keeps what it accepts, and can be told to misbehave."""

import contextlib
import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass
class Reply:
    """What to answer. `hangs` waits for the receiver's end instead; `drops` closes the connection without a word."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hangs: bool = False
    drops: bool = False


@dataclass
class Received:
    """One accepted span: attributes of its resource, name of its scope, and itself."""

    resource: dict[str, Any]
    scope: str
    span: Any


@dataclass
class Receiver:
    """What came in. `behave(n, path)` says what to answer to request number n, from 0; None accepts."""

    behave: Callable[[int, str], Reply | None] = lambda number, path: None
    url: str = ""
    spans: list[Received] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    connections: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        with self.lock:
            number = len(self.requests)
            self.requests.append((path, {name.lower(): value for name, value in headers.items()}, len(body)))
        reply = self.behave(number, path)
        if reply is None:
            reply = Reply()
            self._keep(path, headers, body)
        return reply

    def _keep(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(headers.get("Content-Encoding", ""), bytes)
        if path.endswith("/v1/metrics"):
            self.metrics.append(ExportMetricsServiceRequest.FromString(unpack(body)))
            return
        request = ExportTraceServiceRequest.FromString(unpack(body))
        with self.lock:
            self.spans += [
                Received(attributes(group.resource.attributes), scope.scope.name, span)
                for group in request.resource_spans
                for scope in group.scope_spans
                for span in scope.spans
            ]
        self.arrived.set()


@contextmanager
def receiving(behave: Callable[[int, str], Reply | None] | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """Run a receiver on 127.0.0.1."""
    receiver = Receiver() if behave is None else Receiver(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            receiver.connections.append(self.connection)

        def do_POST(self) -> None:
            reply = receiver.take(self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"])))
            if reply.hangs:
                receiver.ended.wait(60)
            if reply.hangs or reply.drops:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has read enough
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.ended.set()
            server.shutdown()
            thread.join()
            for connection in receiver.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def rejecting(count: int, message: str = "too old") -> Reply:
    """A partial success of a trace request."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = count
    response.partial_success.error_message = message
    return Reply(headers={"Content-Type": "application/x-protobuf"}, body=response.SerializeToString())


def rejecting_points(count: int) -> Reply:
    """A partial success of a metric request."""
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = count
    return Reply(headers={"Content-Type": "application/x-protobuf"}, body=response.SerializeToString())


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {pair.key: plain(pair.value) for pair in pairs}


def plain(value: AnyValue) -> Any:
    """An OTLP value as Python's."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return getattr(value, kind)
