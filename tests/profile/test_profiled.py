"""The profiled process, run here: what it writes for the process that waits for it, however it ends."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mlotel_cli.errors import UsageError
from mlotel_cli.profile import profiled
from mlotel_cli.profile.profile_command import Results
from mlotel_cli.profile.profiled import Spec
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.backends.torch_ranges import TorchRanges
from tests.modes.test_build import config
from tests.support.parts import HERE as PARTS


class Process:
    """Runs `main` on a spec and reads what it wrote, as the waiting process does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results = Results(folder / "results")
        self.captures: list[tuple[str, int, bool]] = []
        self._spec = folder / "spec"
        monkeypatch.setattr(sys, "argv", ["profiled", str(self._spec)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(profiled, "_end_with", lambda parent: None)
        monkeypatch.setattr(profiled, "_backend", lambda spec, faults: (TorchRanges(faults=faults), self._capture()))

    @contextmanager
    def _capture(self) -> Iterator[None]:
        self._note("begin")
        yield
        self._note("end")

    def _note(self, event: str) -> None:
        self.results.read()
        self.captures.append((event, len(self.results.rows), api.PROVIDER.backend is OFF))

    def run(self, *, batches: int = 2, **changed: Any) -> int:
        given = OmegaConf.to_container(config(**changed), enum_to_str=True)
        spec = Spec(given, "torch", str(self.results.path), "", batches, os.getpid(), list(sys.path))  # type: ignore[arg-type]
        self._spec.write_text(json.dumps(asdict(spec)))
        with pytest.raises(SystemExit) as left:
            profiled.main()
        self.results.read()
        return int(left.value.code or 0)

    @property
    def closing(self) -> dict[str, Any]:
        assert self.results.closing is not None
        return self.results.closing


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    before = api.PROVIDER.backend
    yield Process(tmp_path, monkeypatch)
    api.use(before)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def test_every_batch_is_a_row_and_the_last_line_says_how_it_ended(process: Process) -> None:
    assert process.run(eval={"warmup_batches": 1, "repeats": 3, "max_batches": 1}) == 0
    rows = process.results.rows
    assert [(row.settled.batch, row.settled.status, row.settled.accuracy) for row in rows] == [
        (0, "scored", {"right": 1.0}),
        (1, "scored", {"right": 1.0}),
    ]
    assert [sample.id for sample in rows[0].settled.samples] == ["0/0", "0/1"]
    assert process.results.pid == os.getpid()
    assert process.results.infos == [{"optimize": []}]
    assert (process.closing["status"], process.closing["error"], process.closing["exit_code"]) == ("complete", "", 0)
    assert process.closing["accuracy"] == {"right": 1.0}
    assert process.closing["warmup"]["batches"] == 1
    assert process.closing["telemetry"]["faults"] == {}


def test_the_capture_holds_the_batches_and_not_the_warm_up(process: Process) -> None:
    process.run(eval={"warmup_batches": 1})
    assert process.captures == [("begin", 0, True), ("end", 2, True)]


class Records:
    """A pipeline that records a value, fails on batch `fails_at` and is interrupted on batch `ends_at`."""

    def __init__(self, fails_at: int | None = None, ends_at: int | None = None) -> None:
        self.stages = {"count": self._count}
        self._fails_at, self._ends_at = fails_at, ends_at

    def _count(self, x: Any) -> Any:
        if int(x[0]) == self._fails_at:
            raise RuntimeError("out of plates")
        if int(x[0]) == self._ends_at:
            os.kill(os.getpid(), signal.SIGTERM)
        api.record("boxes", float(x[0]), unit="{box}")
        return 2 * (x + 1)


def pipeline(**arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Records", **arguments}


def test_recorded_values_are_in_the_rows(process: Process) -> None:
    process.run(pipeline=pipeline())
    assert [row.recorded for row in process.results.rows] == [[("boxes", 0.0, "{box}")], [("boxes", 1.0, "{box}")]]


def test_a_stage_that_fails_is_the_error(process: Process) -> None:
    assert process.run(batches=3, eval={"warmup_batches": 0}, pipeline=pipeline(fails_at=1)) == 1
    message = "batch 1: stage count raised RuntimeError: out of plates"
    ends = [(row.settled.status, row.settled.error) for row in process.results.rows]
    assert ends == [("scored", ""), ("failed", message)]
    assert (process.closing["status"], process.closing["error"], process.closing["exit_code"]) == ("failed", message, 1)
    assert [event for event, *_ in process.captures] == ["begin", "end"]


def test_a_signal_ends_it_with_what_was_measured(process: Process) -> None:
    assert process.run(eval={"warmup_batches": 0}, pipeline=pipeline(ends_at=1)) == 143
    assert [row.settled.status for row in process.results.rows] == ["scored"]
    assert (process.closing["status"], process.closing["error"]) == ("interrupted", "")
    assert process.closing["accuracy"] == {"right": 1.0}


def test_a_configuration_that_cannot_be_built_has_its_own_exit_code(process: Process) -> None:
    assert process.run(metrics={"m": {"_target_": f"{PARTS}.Stages"}}) == 2
    assert process.results.rows == process.captures == []
    assert process.closing["error"] == "metrics.m: Stages needs update(output, targets) and compute()"
    assert process.closing["exit_code"] == 2


def test_a_profiler_that_is_not_installed_is_said_too(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise UsageError("nvtx is not installed")

    monkeypatch.setattr(profiled, "_backend", missing)
    assert process.run() == 2
    assert (process.closing["status"], process.closing["error"]) == ("failed", "nvtx is not installed")


def test_an_error_of_another_kind_is_printed_with_its_traceback(
    process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(profiled, "_evaluate", breaks)
    assert process.run() == 1
    assert process.closing["error"] == "ZeroDivisionError: by nothing"
    assert "Traceback" in capsys.readouterr().err


def test_it_ends_when_the_process_that_waits_for_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, sent = threading.Event(), []

    def kill(pid: int, signum: int) -> None:
        if not signum and len(sent) >= 2:
            sent.append((pid, signum))
            raise ProcessLookupError
        sent.append((pid, signum))
        if signum:
            ended.set()

    monkeypatch.setattr(profiled, "_PARENT_EVERY_S", 0.0)
    monkeypatch.setattr(profiled.os, "kill", kill)
    profiled._end_with(4711)
    assert ended.wait(30)
    assert sent == [(4711, 0), (4711, 0), (4711, 0), (os.getpid(), signal.SIGINT)]
