"""The server, by raw sockets on loopback: what it answers, what it refuses, and who cannot hold it up."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from mlotel_cli.recorder.live import http_server as module
from mlotel_cli.recorder.live.http_server import HttpServer, Reply


@contextlib.contextmanager
def serving(routes=None, *, host="127.0.0.1", deadline_s=10.0) -> Iterator[HttpServer]:
    server = HttpServer(
        routes or {"/": lambda: Reply(b"hello\n")}, host=host, port=0, deadline_s=deadline_s, poll_s=0.01
    )
    assert server.error == ""
    try:
        yield server
    finally:
        server.close()


def ask(server: HttpServer, path="/", *, method="GET", headers=None) -> tuple[http.client.HTTPResponse, bytes]:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.request(method, path, headers=headers or {})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def connect(server: HttpServer) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=5)


def say(server: HttpServer, text: bytes) -> bytes:
    """Send these bytes; everything that comes back."""
    with connect(server) as client:
        client.sendall(text)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            got += chunk
    return got


def test_a_path_answers_with_headers_that_let_nothing_in():
    policy = "default-src 'self'"
    with serving({"/x": lambda: Reply(b"<p>", "text/html", policy=policy)}) as server:
        reply, body = ask(server, "/x?since=3")
    assert (reply.status, body) == (200, b"<p>")
    assert {name: reply.getheader(name) for name in ("Content-Type", "Content-Length", "Connection", "Server")} == {
        "Content-Type": "text/html",
        "Content-Length": "3",
        "Connection": "close",
        "Server": "mlotel",
    }
    assert reply.getheader("Content-Security-Policy") == policy
    assert reply.getheader("X-Content-Type-Options") == "nosniff"
    assert reply.getheader("Cache-Control") == "no-store"
    assert reply.getheader("X-Frame-Options") == "DENY"


def test_head_is_a_get_without_the_body():
    with serving() as server:
        said = say(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 6\r\n" in said
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/x", "//"])
def test_no_other_path(path):
    with serving({"/metrics": lambda: Reply(b"m")}) as server:
        reply, body = ask(server, path)
    assert (reply.status, body[:3]) == (404, b"404")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO"])
def test_no_other_method(method):
    with serving() as server:
        reply, _ = ask(server, method=method)
    assert (reply.status, reply.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"\r\n", b"HTTP/1.1 431"),
        (b"GET / HTTP/9.9\r\n\r\n", b"HTTP/1.1 505"),
        (b"GET / HTTP/x\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET\r\n\r\n", b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"HTTP/1.1 400"),
        (b"\r\n\r\n", b""),
    ],
)
def test_what_is_no_reasonable_request_is_refused_and_the_next_one_answered(text, start):
    with serving() as server:
        said = say(server, text)
        assert said.startswith(start)
        assert not said or b"\r\nX-Content-Type-Options: nosniff\r\n" in said
        assert b"hello" not in said
        assert ask(server)[1] == b"hello\n"


def test_a_request_line_without_end_is_cut_off():
    with serving() as server:
        assert b"hello" not in say(server, b"GET /" + b"a" * 100_000)
        assert ask(server)[1] == b"hello\n"


def test_a_connection_is_for_one_request():
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n" * 2
    with serving() as server:
        assert say(server, twice).count(b"hello") == 1


def test_a_body_is_not_read():
    with serving() as server:
        said = say(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
    assert said.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9464", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:80", 200),
        ("127.9.9.9", 200),
        ("[::1]:9464", 200),
        ("", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:9464", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.1", 421),
        ("localhost@evil.example", 421),
    ],
)
def test_a_name_of_elsewhere_that_resolves_to_this_machine_gets_nothing(host, status):
    with serving() as server:
        assert ask(server, headers={"Host": host})[0].status == status


def test_on_an_open_address_any_name_is_fine():
    with serving(host="0.0.0.0") as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert ask(server, headers={"Host": "gpu-box:9464"})[0].status == 200


def test_a_path_that_breaks_says_so_without_saying_why(capsys):
    def broken() -> Reply:
        raise ValueError("secret")

    with serving({"/": broken}) as server:
        reply, body = ask(server)
    assert (reply.status, b"secret" in body) == (500, False)
    assert "ValueError('secret')" in capsys.readouterr().err


def test_slow_and_silent_clients_delay_no_other():
    with serving() as server:
        held = [connect(server) for _ in range(module.MAX_CONNECTIONS - 1)]
        for client in held[::2]:
            client.sendall(b"GET / HTT")
        began = time.perf_counter()
        assert ask(server)[1] == b"hello\n"
        assert time.perf_counter() - began < 1
        for client in held:
            client.close()


def test_clients_that_never_ask_make_room_for_one_that_does():
    with serving() as server:
        held = [connect(server) for _ in range(3 * module.MAX_CONNECTIONS)]
        for _ in range(5):
            assert ask(server)[1] == b"hello\n"
        assert server.health().lost >= 2 * module.MAX_CONNECTIONS
        for client in held[: module.MAX_CONNECTIONS]:
            assert read_all(client) == b""
        for client in held:
            client.close()


def test_one_connection_too_many_ends_the_oldest_and_no_other():
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait() -> Reply:
        entered.release()
        leave.wait(5)
        return Reply(b"waited")

    with serving({"/": wait, "/x": lambda: Reply(b"x")}) as server:
        held = []
        for _ in range(module.MAX_CONNECTIONS):
            held.append(connect(server))
            held[-1].sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert entered.acquire(timeout=5)
        assert ask(server, "/x")[1] == b"x"
        assert server.health().lost == 1
        leave.set()
        assert [read_all(client).endswith(b"waited") for client in held] == [False, *[True] * (len(held) - 1)]
        for client in held:
            client.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_a_connection_that_never_gets_to_the_point_is_ended_by_its_deadline(sent):
    with serving(deadline_s=0.05) as server, connect(server) as client:
        client.sendall(sent)
        began = time.perf_counter()
        assert read_all(client) == b""
        assert time.perf_counter() - began < 2


def test_a_client_that_does_not_read_is_ended_by_its_deadline():
    routes = {"/": lambda: Reply(b"x" * 50_000_000), "/x": lambda: Reply(b"x")}
    with serving(routes, deadline_s=0.05) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        deadline = time.monotonic() + 5
        while server._server._open or not server.health().sent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ask(server, "/x")[1] == b"x"


def test_a_port_that_is_taken_is_said_and_no_exception():
    with serving() as first:
        port = urlsplit(first.url).port
        second = HttpServer({}, host="127.0.0.1", port=port)
        assert second.url is None
        assert second.error == f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert (second.health().sent, second.health().lost) == (0, 0)
        second.close()


def test_a_socket_that_listens_already():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inherited = os.dup(listener.fileno())
        server = HttpServer({"/": lambda: Reply(b"hello\n")}, host="127.0.0.1", port=0, fd=inherited, poll_s=0.01)
        assert server.url == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert ask(server)[1] == b"hello\n"
        server.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(inherited)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70, ""])
def test_an_address_that_is_none(host):
    server = HttpServer({}, host=host, port=0)
    if host:
        assert server.error.startswith(f"cannot listen on {host}:0: ")
    server.close()


def test_after_closing_no_server_listens():
    with serving() as server:
        parts = urlsplit(server.url)
        held = connect(server)
    began = time.perf_counter()
    assert read_all(held) == b""
    assert time.perf_counter() - began < 1
    held.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port), timeout=1)
    assert server.url is None


def test_ipv6_where_there_is_one():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert ask(server)[1] == b"hello\n"
