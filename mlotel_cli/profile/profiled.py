"""The program that a profiler runs: an evaluation that writes its rows to a file, not to a recorder.

profile_command.py starts it as `python -m mlotel_cli.profile.profiled SPEC`. The capture begins after the warm-up.
Results are one JSON object a line; the last line says how it ended, and is missing when the process died.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlotel_cli.errors import Interrupted, MlotelError
from mlotel_cli.modes.run import Closing
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.wire import Settled, to_plain

if TYPE_CHECKING:
    from mlotel_cli.telemetry.backends.nvtx import Nvtx
    from mlotel_cli.telemetry.backends.torch_ranges import TorchRanges

_PARENT_EVERY_S = 0.5


@dataclass(slots=True)
class Spec:
    """What the process must know; the content of the SPEC file.

    Attributes:
        backend: nvtx | torch.
        trace: where to write the Chrome trace; torch only.
        batches: how many to record.
        parent: id of the process that waits for this one; this one ends when that has ended.
        path: its sys.path.
        max_names: distinct span names kept apart.
    """

    config: dict[str, Any]
    backend: str
    results: str
    trace: str
    batches: int
    parent: int
    path: list[str] = field(default_factory=list[str])
    max_names: int = 200


class ResultFile:
    """Takes what a loop tells its run, and writes it as lines of a file. See `modes.run.Settling`."""

    def __init__(self, path: Path) -> None:
        """Write the first line to `path`."""
        self.closing = Closing()
        self._path = path
        self._backend: Nvtx | TorchRanges | None = None
        self._capture: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._is_capturing = False
        self.write("started", {"pid": os.getpid(), "time_ns": time.time_ns()})

    def use(self, backend: "Nvtx | TorchRanges", capture: contextlib.AbstractContextManager[Any]) -> None:
        """Take the backend of spans, and what is entered when the warm-up is over."""
        self._backend, self._capture = backend, capture

    def wait_for_room(self) -> None:
        """Return at once: a file always has room."""

    def record(self) -> None:
        """Begin the capture."""
        self._capture.__enter__()
        self._is_capturing = True
        api.use(self._backend or OFF)

    def stop(self) -> None:
        """End the capture, if it has begun."""
        api.use(OFF)
        if self._is_capturing:
            self._is_capturing = False
            self._capture.__exit__(None, None, None)

    def tell(self, info: Mapping[str, Any]) -> None:
        """Add to run.json."""
        self.write("info", info)

    def settle(self, settled: Settled) -> None:
        """Write how a batch ended."""
        recorded = self._backend.values.take(settled.batch) if self._backend else []
        self.write("settle", {"settled": to_plain(settled), "recorded": recorded})

    def write(self, kind: str, value: Any) -> None:
        """Write one line; the file is complete after each."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({kind: value}, default=str) + "\n")


def main() -> None:
    """Run what the SPEC file says; exit with the code of the error, if there was one."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.path[:] = spec.path
    faults, results = Faults(), ResultFile(Path(spec.results))
    _end_with(spec.parent)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    error, code = _run(spec, results, faults)
    results.closing.telemetry.faults = faults.counts()
    results.write("closing", {**to_plain(results.closing), "error": error, "exit_code": code})
    sys.exit(code)


def _run(spec: Spec, results: ResultFile, faults: Faults) -> tuple[str, int]:
    """Evaluate; return the error's message, empty after a good or an interrupted run, and the exit code."""
    try:
        results.use(*_backend(spec, faults))
        try:
            _evaluate(spec, results)
        finally:
            results.stop()
    except KeyboardInterrupt as stop:
        results.closing.status = "interrupted"
        return "", getattr(stop, "exit_code", 130)
    except MlotelError as error:
        results.closing.status = "failed"
        return str(error), error.exit_code
    except Exception as error:
        results.closing.status = "failed"
        sys.excepthook(type(error), error, error.__traceback__)
        return f"{type(error).__name__}: {error}", 1
    return "", 0


def _evaluate(spec: Spec, results: ResultFile) -> None:
    from omegaconf import OmegaConf

    from mlotel_cli.modes.batch_steps import seed_everything
    from mlotel_cli.modes.build import apply_option, build
    from mlotel_cli.modes.evaluate import Evaluation
    from mlotel_cli.screen import silent

    cfg = OmegaConf.create(spec.config)
    cfg.eval.max_batches, cfg.eval.repeats, cfg.eval.control = spec.batches, 1, False
    api.install()
    seed_everything(cfg.seed)
    parts = build(cfg)
    try:
        with parts.built.inference():
            results.tell({"optimize": apply_option(cfg, parts.built, parts.data)})
            Evaluation(cfg, results, parts, silent()).run()
    finally:
        parts.data.close()


def _backend(spec: Spec, faults: Faults) -> tuple["Nvtx | TorchRanges", contextlib.AbstractContextManager[Any]]:
    if spec.backend == "torch":
        from mlotel_cli.telemetry.backends.torch_ranges import TorchRanges, TraceFile

        return TorchRanges(faults=faults), TraceFile(Path(spec.trace))
    from mlotel_cli.telemetry.backends.nvtx import Nvtx, capture

    return Nvtx(faults=faults, max_names=spec.max_names), capture()


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted(signum)


def _end_with(parent: int) -> None:
    """End this process when `parent`, which reads its results, has ended: a profiler between them may live on."""

    def watch() -> None:
        while True:
            time.sleep(_PARENT_EVERY_S)
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGINT)
                return

    threading.Thread(target=watch, name="mlotel-parent", daemon=True).start()


if __name__ == "__main__":
    main()
