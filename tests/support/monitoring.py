"""`mlotel monitor` as a real process: started, looked at from outside, and ended."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlotel_cli.store.reading import Run, read_run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 150


def wait_until(condition: Callable[[], Any], *, timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """What `condition` says as soon as it holds."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited too long for {what or condition}"
        time.sleep(0.01)
    return found


class Monitor:
    """One running `mlotel monitor`; leaves nothing behind when the `with` block ends."""

    def __init__(self, folder: Path, *overrides: str, environment: dict[str, str] | None = None) -> None:
        self.folder, self.run_dir, self.log = folder, folder / "run", folder / "log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "OTEL_"))}
        words = [f"run.dir={self.run_dir}", "tracker.mode=disabled", "monitor.http.port=0", *overrides]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlotel_cli", "monitor", *words],
                cwd=folder,
                env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_as_in_a_terminal,
            )

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self.process.pid, self.info.get("recorder_pid")):
            if pid and (self.process.poll() is None or pid != self.process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()

    @property
    def printed(self) -> str:
        """Everything it printed, as one line."""
        return " ".join(self.log.read_text().split())

    @property
    def info(self) -> dict[str, Any]:
        try:
            return json.loads((self.run_dir / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def recorder(self) -> int:
        return int(wait_until(lambda: self.info.get("recorder_pid"), what=f"the recorder: {self.printed}"))

    @property
    def result(self) -> Run:
        return read_run(self.run_dir)

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of a page; (0, "") without an answer."""
        url = self.info.get("http")
        if not url:
            return 0, ""
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Sum over the series of that name with these labels; 0 while there is none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(text in line for text in wanted))

    def wait_for_batches(self, count: int = 1) -> None:
        def enough() -> bool:
            assert self.process.poll() is None, self.printed
            return self.num_batches() >= count

        wait_until(enough, what=f"{count} batches: {self.printed}")

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.printed
            return self.get("/readyz")[0] == 200

        wait_until(is_ready, what=f"the monitor: {self.printed}")

    def num_batches(self) -> int:
        return self.result.batches.height if (self.run_dir / "batches.parquet").exists() else 0

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)


def _as_in_a_terminal() -> None:
    """Called in the child, because it inherits an ignored hang-up signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
