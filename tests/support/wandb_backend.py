"""A loopback stand-in of the W&B backend: what wandb-core needs to run online, and nothing of what a person sees.

It answers the GraphQL operations of a run, a table artifact and its files, and keeps what the file stream carries.
Like the real service it stores a streamed line at its offset, so a request that is sent again after a fault changes
nothing; what the client got wrong (a gap, another line at a filled offset, an unknown operation) is in `complaints`.
Faults are ordered by the test: answer 500, cut the connection, refuse the key, never answer.
"""

import contextlib
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

HISTORY = "wandb-history.jsonl"
ENTITY = "loopback"

StreamFault = Literal["500", "cut_before", "cut_after"]
"""What happens to one file stream request: refused, cut before it was read into the run, or cut after."""
Behaviour = Literal["serve", "reject_key", "hang"]


@dataclass
class Run:
    """What the backend knows of one run."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    artifacts: list[str] = field(default_factory=list[str])
    stream_requests: int = 0
    complete: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the run, in order of their offset."""
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary that was streamed."""
        lines = self.lines.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}


class WandbBackend:
    """Serves on a free port of 127.0.0.1 while its context is open.

    Args:
        behaviour: `serve`; `reject_key` answers every request 401; `hang` accepts requests and never answers.
    """

    def __init__(self, behaviour: Behaviour = "serve") -> None:
        self.behaviour: Behaviour = behaviour
        self.runs: dict[str, Run] = {}
        self.complaints: list[str] = []
        self.operations: list[str] = []
        self.faults: deque[StreamFault] = deque()
        self.faults_done: list[StreamFault] = []
        self.changed = threading.Condition()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"backend": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        """The value of WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def run(self) -> Run:
        """The only run there is."""
        (run,) = self.runs.values()
        return run

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        """Block until `condition` holds; it is looked at after each request. Raises TimeoutError."""
        with self.changed:
            if not self.changed.wait_for(condition, timeout=timeout_s):
                raise TimeoutError("the backend never saw what the test waits for")

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of one GraphQL operation."""
        self.operations.append(operation)
        match operation:
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": self._upload_url(name, variables)} for name in variables["files"]]
                return {"createRunFiles": {"runID": "run-id", "uploadHeaders": [], "files": files}}
            case "RunResumeStatus":
                return {"model": self._resume_status(variables["name"])}
            case "Viewer":
                viewer = {"id": "1", "entity": ENTITY, "username": "u", "email": "", "flags": "{}"}
                return {"viewer": viewer | {"teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "CreateArtifact":
                given = variables["input"]
                self.runs[given["runName"]].artifacts.append(given["artifactCollectionName"])
                # "Committed": the service has these bytes already, so that the client uploads no manifest.
                artifact = {"id": "artifact-id", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"artifact": artifact}}
            case "ArtifactType":
                return {"project": None}
            case _:
                self.complaints.append(f"unknown operation {operation} {json.dumps(variables)[:300]}")
                return {}

    def stream(self, run: Run, request: dict[str, Any]) -> None:
        """Take one file stream request into the run."""
        run.stream_requests += 1
        for name, part in request.get("files", {}).items():
            lines = run.lines.setdefault(name, {})
            for offset, line in enumerate(part["content"], start=part["offset"]):
                if name == HISTORY and lines.get(offset, line) != line:
                    self.complaints.append(f"another line at offset {offset} of {name}")
                if name == HISTORY and offset > len(lines):
                    self.complaints.append(f"a gap before offset {offset} of {name}")
                lines[offset] = line
        if request.get("complete"):
            run.complete = True
            run.exit_code = request.get("exitcode")

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, Run(name))
        run.settings.update({key: value for key, value in variables.items() if value is not None})
        if variables.get("config"):
            run.config = {key: entry["value"] for key, entry in json.loads(variables["config"]).items()}
        project = {"id": "project-id", "name": variables["project"], "entity": {"id": "entity-id", "name": ENTITY}}
        shown = run.settings.get("displayName") or name
        bucket = {"id": "run-id", "name": name, "displayName": shown, "description": None, "config": None}
        bucket |= {"sweepName": None, "project": project, "historyLineCount": 0}
        return {"bucket": bucket, "inserted": True}

    def _resume_status(self, name: str) -> dict[str, Any]:
        """The project, and the run in it as it is; None for a run that there is not yet."""
        run = self.runs.get(name)
        bucket: dict[str, Any] | None = None
        if run is not None:
            lines = [line for _, line in sorted(run.lines.get(HISTORY, {}).items())]
            config = {key: {"value": value} for key, value in run.config.items()}
            bucket = {"id": "run-id", "name": name, "displayName": name, "summaryMetrics": json.dumps(run.summary)}
            bucket |= {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0, "eventsTail": "[]"}
            bucket |= {"historyTail": json.dumps(lines[-1:]), "config": json.dumps(config), "tags": []}
            bucket |= {"notes": None, "wandbConfig": '{"t": 1}'}
        return {"id": "project-id", "name": "p", "entity": {"id": "entity-id", "name": ENTITY}, "bucket": bucket}

    def _upload_url(self, name: str, variables: dict[str, Any]) -> str:
        return f"{self.url}/upload/{variables['run']}/{name}"


class _Handler(BaseHTTPRequestHandler):
    """One connection of wandb-core."""

    backend: WandbBackend
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve until the peer is gone; that it may go at any time is its right."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        backend = self.backend
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if backend.behaviour == "hang":
            backend.closing.wait()
            self.close_connection = True
        elif backend.behaviour == "reject_key":
            self._reply(401, {"errors": [{"message": "user is not logged in"}]})
        elif self.path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            data = backend.answer(operation.group(1) if operation else "anonymous", request.get("variables") or {})
            self._reply(200, {"data": data})
        elif self.path.endswith("/file_stream"):
            self._stream(json.loads(body))
        else:
            backend.complaints.append(f"unknown path {self.path}")
            self._reply(404, {})
        with backend.changed:
            backend.changed.notify_all()

    def do_PUT(self) -> None:
        _, run, name = self.path.removeprefix("/").split("/", 2)
        self.backend.runs[run].files[name] = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply(200, {})

    def _stream(self, request: dict[str, Any]) -> None:
        backend = self.backend
        run = backend.runs[self.path.split("/")[4]]
        fault = backend.faults.popleft() if backend.faults and HISTORY in request.get("files", {}) else None
        if fault in (None, "cut_after"):
            with backend.changed:
                backend.stream(run, request)
        if fault is not None:
            backend.faults_done.append(fault)
        if fault == "500":
            self._reply(500, {"error": "ordered by the test"})
        elif fault is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._reply(200, {"exitcode": None, "limits": {}})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
