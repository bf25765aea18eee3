"""A real Prometheus on a free port of 127.0.0.1."""

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.monitoring import wait_until

_ATTEMPTS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Prometheus:
    """A Prometheus that runs."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its HTTP API.

        Raises:
            AssertionError: when it refuses.
        """
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def query(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self.ask("query", query=expression, **parameters)["result"]

    def value(self, expression: str, **parameters: str) -> float | None:
        """The one value of an instant query; None while there is none."""
        found = self.query(expression, **parameters)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@contextlib.contextmanager
def scraping(program: Path, folder: Path, target: str, *, rules: str = "") -> Generator[Prometheus]:
    """Prometheus that scrapes `target` twice a second, with `rules` evaluated as often."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(rules or "groups: []\n")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
        "rule_files: [rules.yml]\n"
        f"scrape_configs: [{{job_name: mlotel, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with _started(program, folder) as port:
        yield Prometheus(port)


@contextlib.contextmanager
def _started(program: Path, folder: Path) -> Generator[int]:
    """The port of a Prometheus that runs; another one when the first was taken meanwhile."""
    keys = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    for _ in range(_ATTEMPTS):
        port = free_port()
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(
                [program, *keys, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log
            )
        try:
            wait_until(lambda: process.poll() is not None or _is_ready(port), what="Prometheus")  # noqa: B023 - at once
            if process.poll() is None:
                yield port
                return
        finally:
            process.terminate()
            process.wait(30)
    raise AssertionError((folder / "prometheus.log").read_text())


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
        return answer.status == 200
    return False
