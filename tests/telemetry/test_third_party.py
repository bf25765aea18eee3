"""Spans of third-party instrumentation belong to the batch's trace."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import mlotel_cli
from tests.telemetry.test_tracer import run_program


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a loopback server and the traceparent headers of its requests."""
    parents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parents.append(self.headers.get("traceparent", ""))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"plate")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/plates", parents
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_an_instrumented_http_client_inside_a_stage(server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, parents = server
    program = f"""
        import urllib.request
        import mlotel_cli
        from opentelemetry.instrumentation.urllib import URLLibInstrumentor

        URLLibInstrumentor().instrument()
        with mlotel_cli.start_run(directory={str(tmp_path)!r}, mode="disabled"):
            for index in range(2):
                with mlotel_cli.batch(index):
                    with mlotel_cli.span("reader"), urllib.request.urlopen({address!r}) as answer:
                        assert answer.read() == b"plate"
    """
    run_program(program)
    run = mlotel_cli.read_run(tmp_path)
    spans = list(run.spans.iter_rows(named=True))
    assert [span["kind"] for span in spans] == ["CLIENT", "INTERNAL", "INTERNAL"] * 2
    for index, (client, reader, batch) in enumerate([spans[:3], spans[3:]]):
        assert (reader["name"], batch["name"]) == ("reader", "batch")
        assert {span["batch"] for span in (client, reader, batch)} == {index}
        assert {span["trace_id"] for span in (client, reader, batch)} == {batch["trace_id"]}
        assert (client["parent_id"], reader["parent_id"]) == (reader["span_id"], batch["span_id"])
        assert client["scope"] == "opentelemetry.instrumentation.urllib"
        assert address in json.loads(client["attributes"]).values()
        assert parents[index] == f"00-{client['trace_id']}-{client['span_id']}-01"
    assert run.batches["status"].to_list() == ["done"] * 2
    assert set(run.batches["reader.calls"]) == {1}
    assert not [column for column in run.batches.columns if column.startswith("GET")]
