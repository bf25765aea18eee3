"""One request to a loopback server, and what each kind of answer means."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests

from mlotel_cli.config.otlp_settings import Target
from mlotel_cli.recorder.otlp import http_client as otlp_http
from mlotel_cli.recorder.otlp.encode import encode_resource, encode_spans
from mlotel_cli.recorder.otlp.http_client import Answer, Client
from mlotel_cli.records import SpanRecord
from tests.support.otlp_receiver import Reply, receiving, rejecting, rejecting_points

SPANS = [SpanRecord(1, 2, 0, 0, "s", "INTERNAL", "", "", 0, 1)]
PAYLOAD = encode_spans(SPANS, resource=encode_resource({}))


@contextmanager
def client(url: str, signal="traces", **changes) -> Iterator[Client]:
    posting = Client(Target(signal, f"{url}/v1/{signal}", **changes))
    yield posting
    posting.close()


def answer(reply: Reply, signal="traces", **changes) -> Answer:
    with receiving(lambda number, path: reply) as receiver, client(receiver.url, signal, **changes) as posting:
        return posting.post(PAYLOAD, timeout_s=5)


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_a_request_arrives(compression):
    headers = {"x-key": "secret"}
    with receiving() as receiver, client(receiver.url, compression=compression, headers=headers) as posting:
        assert [posting.post(PAYLOAD, timeout_s=5) for _ in range(2)] == [Answer("taken")] * 2
    assert [each.span.name for each in receiver.spans] == ["s", "s"]
    path, sent, _ = receiver.requests[0]
    assert (path, sent["x-key"], sent["content-type"]) == ("/v1/traces", "secret", "application/x-protobuf")
    assert sent.get("content-encoding", "none") == compression
    assert sent["user-agent"] == "mlotel"


def test_an_entry_in_netrc_replaces_no_header(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with receiving() as receiver, client(receiver.url, headers={"authorization": "Bearer mine"}) as posting:
        posting.post(PAYLOAD, timeout_s=5)
    assert receiver.requests[0][1]["authorization"] == "Bearer mine"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_statuses_that_ask_to_come_again(status):
    found = answer(Reply(status=status, headers={"Retry-After": "7"}))
    assert (found.verdict, found.retry_after_s) == ("later", 7.0)
    assert found.detail.startswith(f"HTTP {status} ")


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500, 501, 799])
def test_statuses_that_are_final(status):
    found = answer(Reply(status=status, headers={"Location": "http://127.0.0.1:1/"}))
    assert (found.verdict, found.retry_after_s) == ("refused", None)
    assert f"HTTP {status}" in found.detail


def test_the_server_s_words_are_kept_in_one_line():
    found = answer(Reply(status=400, headers={"Content-Type": "text/plain"}, body=b"no such thing\nat all"))
    assert found.detail == "HTTP 400 Bad Request: no such thing"
    found = answer(Reply(status=400, headers={"Content-Type": "text/html"}, body=b"<html>"))
    assert found.detail == "HTTP 400 Bad Request"


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("1.5", 1.5), ("-3", 0), ("soon", None), ("inf", None)])
def test_retry_after_in_seconds(text, seconds):
    assert answer(Reply(status=503, headers={"Retry-After": text})).retry_after_s == seconds


def test_retry_after_as_a_date():
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert answer(Reply(status=503, headers={"Retry-After": when})).retry_after_s == pytest.approx(60, abs=3)


def test_partial_success():
    assert answer(rejecting(3)) == Answer("taken", rejected=3, detail="too old")
    assert answer(rejecting_points(2), "metrics") == Answer("taken", rejected=2)


@pytest.mark.parametrize("count", ["2", 2])
def test_partial_success_as_json(count):
    text = f'{{"partialSuccess": {{"rejectedSpans": {count!r}, "errorMessage": "odd"}}}}'.replace("'", '"')
    reply = Reply(headers={"Content-Type": "application/json"}, body=text.encode())
    assert answer(reply) == Answer("taken", rejected=2, detail="odd")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-protobuf", b"\xff\xff"),
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("text/html", b"<p>hello"),
        ("application/x-protobuf", b""),
    ],
)
def test_an_answer_that_cannot_be_read_rejects_nothing(kind, body):
    assert answer(Reply(headers={"Content-Type": kind}, body=body)).verdict == "taken"


def test_no_server_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with client(f"http://127.0.0.1:{held.getsockname()[1]}") as posting:
            found = posting.post(PAYLOAD, timeout_s=5)
    assert (found.verdict, found.detail) == ("unreachable", "Connection refused")


def test_a_server_that_hangs_takes_as_long_as_it_may():
    with receiving(lambda number, path: Reply(hangs=True)) as receiver, client(receiver.url) as posting:
        start = time.monotonic()
        found = posting.post(PAYLOAD, timeout_s=0.1)
    assert (found.verdict, found.detail) == ("unreachable", "no answer within 0.1 s")
    assert time.monotonic() - start < 2


def test_a_server_that_says_nothing_and_closes():
    with receiving(lambda number, path: Reply(drops=True)) as receiver, client(receiver.url) as posting:
        assert posting.post(PAYLOAD, timeout_s=5).verdict == "unreachable"


def test_an_answer_without_end_is_not_read_to_its_end():
    found = answer(Reply(headers={"Content-Length": str(1 << 40)}, body=b"\0" * (1 << 17)))
    assert found.verdict == "taken"


def test_what_is_wrong_with_a_certificate_is_said_in_a_few_words():
    inner = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")
    inner.args = (1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1006)")
    error = requests.exceptions.SSLError(f"HTTPSConnectionPool(host='c', port=1): (Caused by SSLError({inner!r}))")
    assert otlp_http._why(error) == "certificate verify failed: self-signed"


def test_a_certificate_file_that_is_none_is_refused_by_name(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with client("https://127.0.0.1:1", certificate=str(file)) as posting:
        found = posting.post(PAYLOAD, timeout_s=1)
    assert found.verdict in ("refused", "unreachable")
    assert found.detail
