"""A real `mlotel monitor` and a real Prometheus beside it, on free ports of 127.0.0.1."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
Found = TypeVar("Found")


def wait_for(look: Callable[[], Found | None], what: str, *, timeout_s: float = 60) -> Found:
    """What `look` finds as soon as it finds something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> str:
    """The text behind a loopback address; empty where nothing answers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()
    return ""


@dataclass
class Monitor:
    """A monitor that runs."""

    process: "subprocess.Popen[bytes]"
    port: int
    run_dir: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return get(f"http://{self.address}/readyz").strip() == "ok"

    def stop(self) -> dict[str, Any]:
        """End it as an operator would; run.json's content."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()
        return json.loads((self.run_dir / "run.json").read_text())


@contextlib.contextmanager
def monitoring(folder: Path, *words: str) -> Generator[Monitor]:
    """`mlotel monitor ...`, ready; killed in the end if it was not stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    log, port = folder / "monitor.log", free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "OTEL_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    mlotel = [sys.executable, "-m", "mlotel_cli", "monitor"]
    keys = [f"run.dir={folder / 'run'}", f"monitor.http.port={port}", "tracker.mode=disabled"]
    with log.open("wb") as file:
        process = subprocess.Popen([*mlotel, *words, *keys], cwd=folder, env=environment, stdout=file, stderr=file)
    monitor = Monitor(process, port, folder / "run", log)
    try:
        wait_for(monitor.is_ready, "the monitor is ready")
        yield monitor
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


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
    port = free_port()
    keys = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *keys, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: "Ready" in get(f"http://127.0.0.1:{port}/-/ready"), "Prometheus is ready")
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(30)
