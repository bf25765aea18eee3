"""The parent of a profile, with a fake profiler and a fake recorder: real processes, but none that imports torch."""

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
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from mlotel_cli.config.schema import ProfileConfig
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.modes.run import Closing
from mlotel_cli.profile.profile_command import Profile, Results
from mlotel_cli.profile.timeline import Activity, Call, Range, Timeline
from mlotel_cli.summary import Warmup
from mlotel_cli.wire import Attachment, Message, Settled, to_plain

STARTED = {"started": {"pid": 0, "time_ns": 5_000}}
MEASURED = Closing(
    accuracy={"score": 0.5},
    accuracy_ci95={"score": [0.4, 0.6]},
    wall_s=2.0,
    scoring_s=0.5,
    caller_s=0.6,
    cpu_s=3.5,
    cores=2,
    warmup=Warmup(3),
)
ENDED = {"closing": {**to_plain(MEASURED), "exit_code": 0}}


def settled(batch: int) -> dict[str, Any]:
    return {
        "settle": {
            "settled": {
                "batch": batch,
                "source_batch": batch,
                "repeat": 0,
                "size": 1,
                "status": "scored",
                "opened": 0,
                "start_ns": 1,
                "accuracy": {"score": 1.0},
                "samples": [{"id": f"{batch}.0", "scores": {"score": 1.0}}],
            },
            "recorded": [["boxes", 3.0 + batch, "{box}"]],
        }
    }


@dataclass
class FakeLink:
    """Notes what is sent."""

    sent: list[Any] = field(default_factory=list)

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def wait_for_room(self) -> None:
        pass


@dataclass
class FakeSession:
    """Notes what it is told."""

    link: FakeLink = field(default_factory=FakeLink)
    closing: Closing = field(default_factory=Closing)
    info: dict[str, Any] = field(default_factory=dict)
    attached: list[Attachment] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)

    def tell(self, info: Mapping[str, Any]) -> None:
        self.info.update(info)

    def attach(self, attachment: Attachment) -> None:
        self.attached.append(attachment)

    def settle(self, settled: Settled) -> None:
        self.settled.append(settled)

    def wait_for_room(self) -> None:
        pass


@dataclass
class FakeProfiler:
    """Runs a small Python program in the place of nsys; `recorded` is a timeline, or why there is none."""

    program: str
    recorded: Timeline | MlotelError
    backend: str = "nvtx"
    said: str = ""

    def command(self, spec: Path) -> list[str]:
        return [sys.executable, "-S", "-c", self.program, str(spec)]

    def read(self, said: str) -> Timeline:
        self.said = said
        if isinstance(self.recorded, MlotelError):
            raise self.recorded
        return self.recorded

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake", "version": "1"}

    def files(self) -> list[Path]:
        return [Path("report.nsys-rep")]


def program(*lines: Any, then: str = "") -> str:
    """A program that writes result lines, its own process id in the first, and then does something."""
    return f"""
import json, os, signal, sys, time
spec = json.load(open(sys.argv[1]))
with open(spec["results"], "a") as file:
    for line in {list(lines)!r}:
        if "started" in line:
            line["started"]["pid"] = os.getpid()
        file.write(json.dumps(line) + chr(10))
        file.flush()
    print("the program says", spec["batches"], flush=True)
    {then or "pass"}
"""


def two_batches() -> Timeline:
    ranges = []
    for batch in (0, 1):
        start = 1_000_000 * batch
        ranges.append(Range("batch", "batch", start, start + 900_000, 1, 7, batch))
        ranges.append(Range("queue reader", "queue", start + 10, start + 90, 1, 7))
        ranges.append(Range("reader", "internal", start + 100, start + 800_100, 1, 7))
        ranges.append(Range("GET", "client", start + 200, start + 300, 1, 7))
    return Timeline(ranges, epoch_offset_ns=7_000)


def make(tmp_path: Path, profiler: FakeProfiler, **settings: Any) -> tuple[Profile, FakeSession]:
    cfg = OmegaConf.structured(ProfileConfig)
    cfg.run.name, cfg.run.dir, cfg.device = "test", str(tmp_path), "cpu"
    for key, value in settings.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    session = FakeSession()
    return Profile(cfg, tmp_path, session, profiler, Console(quiet=True)), session  # type: ignore[arg-type]


def test_ranges_and_results_become_spans_and_settlements(tmp_path: Path):
    profiler = FakeProfiler(program(STARTED, settled(0), settled(1), ENDED), two_batches())
    profile, session = make(tmp_path, profiler, profile__batches=2)

    profile.run()

    spans = {(span.batch, span.name): span for span in session.link.sent}
    assert len(spans) == len(session.link.sent) == 8
    root, reader, queue, client = (spans[1, name] for name in ("batch", "reader", "queue reader", "GET"))
    assert (root.start_ns, root.end_ns) == (1_007_000, 1_907_000)
    assert (root.opened, reader.opened) == (4, None)  # four spans were opened in the batch, and only its root says so
    assert client.parent_id == reader.span_id
    assert reader.parent_id == queue.parent_id == root.span_id
    assert root.parent_id == 0
    assert len({span.trace_id for span in (root, reader, queue, client)}) == 1
    assert spans[0, "batch"].trace_id != root.trace_id
    assert [span.kind for span in (root, reader, queue, client)] == ["INTERNAL", "INTERNAL", "INTERNAL", "CLIENT"]
    assert queue.attributes == {"mlotel.kind": "queue"}
    values = [[("boxes", 3.0, "{box}")], [("boxes", 4.0, "{box}")]]
    assert [spans[batch, "batch"].recorded for batch in (0, 1)] == values
    assert [(row.batch, row.opened, row.accuracy) for row in session.settled] == [
        (0, 4, {"score": 1.0}),
        (1, 4, {"score": 1.0}),
    ]
    assert session.settled[0].samples[0].id == "0.0"


def test_a_profiler_that_lost_its_start_is_started_once_more(tmp_path: Path):
    """Another nsys that started meanwhile made it end with this error."""
    tried = tmp_path / "tried"
    lose = f"""
import pathlib, sys
tried = pathlib.Path({str(tried)!r})
tried.write_text((tried.read_text() if tried.exists() else "") + "x")
if tried.read_text() == "x":
    sys.exit("[boost::errinfo_api_function_*] = sem_open")
"""
    profiler = FakeProfiler(lose + program(STARTED, settled(0), ENDED), two_batches())
    profile, session = make(tmp_path, profiler)

    profile.run()

    assert (tried.read_text(), [row.batch for row in session.settled]) == ("xx", [0])


def test_a_profiler_that_loses_its_start_twice_is_an_error(tmp_path: Path):
    profile, _ = make(tmp_path, FakeProfiler("import sys; sys.exit('sem_open')", MlotelError("no report")))

    with pytest.raises(MlotelError, match="the profiler ended before the run began"):
        profile.run()


def test_as_in_an_evaluation_a_range_ends_when_the_device_is_done(tmp_path: Path):
    """Batch 0's reader launches on the host until 800,100 and its kernel ends at 950,000, after the batch's range."""
    timeline = two_batches()
    timeline.calls.append(Call("launch", 500, 600, 1, 7, 1))
    timeline.activities.append(Activity("kernel", "gemm", 700, 950_000, 0, 7, 1))
    profile, session = make(tmp_path, FakeProfiler(program(STARTED, settled(0), settled(1), ENDED), timeline))

    profile.run()

    spans = {(span.batch, span.name): span for span in session.link.sent}
    ends = {key: (span.end_ns, span.device_ns, span.lag_ns) for key, span in spans.items()}
    assert ends[0, "reader"] == (957_000, 949_300, 149_900)
    assert ends[0, "batch"] == (957_000, 949_300, 50_000)
    assert ends[0, "GET"] == (7_300, None, None)  # it launched nothing
    assert spans[1, "reader"].device_ns is None
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert stages["reader"]["host_ms"]["p50"] == pytest.approx(0.8)  # there the host's time is the host's


@pytest.mark.parametrize("ended", [[ENDED], []])
def test_what_the_process_reads_is_its_owners_has_no_headers_and_does_not_stay(tmp_path: Path, ended: list[Any]):
    look = "print(oct(os.stat(sys.argv[1]).st_mode & 0o777), spec['config']['telemetry']['otlp']['headers'])"
    profiler = FakeProfiler(program(STARTED, settled(0), *ended, then=look), two_batches())
    profile, _ = make(tmp_path, profiler, telemetry__otlp__headers={"authorization": "Bearer abc"})

    with contextlib.nullcontext() if ended else pytest.raises(MlotelError):
        profile.run()

    assert "0o600 {}" in (tmp_path / "profile.log").read_text()
    assert not list(tmp_path.glob(".*spec*"))


def test_what_the_run_says_of_itself(tmp_path: Path):
    profiler = FakeProfiler(program(STARTED, settled(0), {"info": {"notes": ["a note"]}}, ENDED), two_batches())
    profile, session = make(tmp_path, profiler, profile__batches=17)

    profile.run()

    stages = json.loads((tmp_path / "stages.json").read_text())
    assert stages["stages"]["reader"]["host_ms"]["p50"] == pytest.approx(0.8)
    assert stages["stages"]["reader"]["queue_ms"]["p50"] == pytest.approx(80e-6)
    assert stages == profile.stages.to_json()
    assert session.info["profiler"]["command"] == profiler.command(tmp_path / ".profile.spec.json")
    assert session.info["notes"] == ["a note"]
    assert session.closing == MEASURED
    (attached,) = session.attached
    assert attached.files == [str(Path("report.nsys-rep").absolute()), str((tmp_path / "stages.json").absolute())]
    assert "the program says 17" in profiler.said
    assert (tmp_path / "profile.log").read_text() == profiler.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.log", "stages.json"]


@pytest.mark.parametrize(("exit_code", "kind"), [(1, MlotelError), (2, UsageError)])
def test_the_workloads_own_error_is_the_commands(tmp_path: Path, exit_code: int, kind: type[MlotelError]):
    failed = {"closing": {**ENDED["closing"], "error": "batch 1: stage reader: boom", "exit_code": exit_code}}
    profile, session = make(
        tmp_path, FakeProfiler(program(STARTED, settled(0), failed, then=f"sys.exit({exit_code})"), two_batches())
    )

    with pytest.raises(kind, match=r"^batch 1: stage reader: boom$") as raised:
        profile.run()

    assert raised.value.exit_code == exit_code
    assert [row.batch for row in session.settled] == [0]  # everything measured so far
    assert (tmp_path / "stages.json").exists()


def test_a_workload_that_is_killed(tmp_path: Path):
    profile, session = make(
        tmp_path,
        FakeProfiler(
            program(STARTED, settled(0), then="os.kill(os.getpid(), signal.SIGKILL)"), MlotelError("no report")
        ),
    )

    with pytest.raises(MlotelError, match=r"ended without saying why \(ended by SIGKILL\): the program says 100"):
        profile.run()

    assert [(row.batch, row.opened) for row in session.settled] == [(0, 0)]


def test_a_workload_that_dies_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096}))
    killed = program(STARTED, settled(0), then="os.kill(os.getpid(), signal.SIGSEGV)")
    profile, session = make(tmp_path, FakeProfiler(killed, MlotelError("no report")))

    with pytest.raises(
        MlotelError, match=r"broke off \(ended by SIGSEGV\), the disk is full: .* no 16 MB left.*TMPDIR"
    ):
        profile.run()

    assert len(session.settled) == 1


def test_a_profiler_that_does_not_begin(tmp_path: Path):
    said = "print('unrecognised option --x\\n\\nusage: nsys profile\\nTry --help.'); raise SystemExit(3)"
    profile, _ = make(tmp_path, FakeProfiler(said, MlotelError("no report")))

    with pytest.raises(
        MlotelError, match=r"before the run began \(exit code 3\): unrecognised option --x\. Its output"
    ):
        profile.run()


def test_a_missing_report_is_the_error_and_the_rows_are_kept(tmp_path: Path):
    profile, session = make(
        tmp_path, FakeProfiler(program(STARTED, settled(0), ENDED), MlotelError("the disk is full"))
    )

    with pytest.raises(MlotelError, match="the disk is full"):
        profile.run()

    assert [(row.batch, row.opened) for row in session.settled] == [(0, 0)]
    assert session.info["notes"] == ["the disk is full"]
    assert session.closing.accuracy == {"score": 0.5}
    assert not (tmp_path / "stages.json").exists()


@pytest.mark.slow
def test_a_profiler_that_never_finishes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlotel_cli.profile.profile_command._END_S", 0.2)
    endless = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    )
    profile, _ = make(
        tmp_path, FakeProfiler(program(STARTED, settled(0), ENDED, then=endless), two_batches()), profiler__timeout_s=1
    )

    with pytest.raises(MlotelError, match=r"did not finish its report within profiler\.timeout_s=1 s"):
        profile.run()

    assert not is_running(profile._results.pid)


def test_an_interrupt_ends_the_workload_and_keeps_what_was_recorded(tmp_path: Path):
    """The workload answers SIGINT by saying how far it came, as the real one does."""
    interrupted = {"closing": {**ENDED["closing"], "status": "interrupted"}}
    answer = f"""
    def stop(*_):
        with open(spec["results"], "a") as more:
            more.write(json.dumps({interrupted!r}) + chr(10))
        os._exit(130)
    signal.signal(signal.SIGINT, stop)
    open(sys.argv[1] + ".ready", "w").close()
    time.sleep(600)"""
    profile, session = make(tmp_path, FakeProfiler(program(STARTED, settled(0), then=answer.strip()), two_batches()))
    ready = tmp_path / ".profile.spec.json.ready"

    def interrupt() -> None:
        while not (ready.exists() and profile._results.rows):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        profile.run()

    assert not is_running(profile._results.pid)
    assert [(row.batch, row.opened) for row in session.settled] == [(0, 4)]
    assert (tmp_path / "stages.json").exists()


def test_a_program_that_may_not_be_executed(tmp_path: Path):
    class Forbidden(FakeProfiler):
        def command(self, spec: Path) -> list[str]:
            (tmp_path / "nsys").write_text("#!/bin/sh")
            return [str(tmp_path / "nsys")]

    profile, _ = make(tmp_path, Forbidden("", MlotelError("")))

    with pytest.raises(UsageError, match=r"nsys may not be executed \(no permission\)"):
        profile.run()


def test_results_are_read_in_whole_lines(tmp_path: Path):
    path = tmp_path / "results"
    results = Results(path)
    assert results.read() == []
    first, second = (json.dumps(settled(batch)) + "\n" for batch in (0, 1))
    path.write_text(first + second[:20])
    assert [row.settled.batch for row in results.read()] == [0]
    path.write_text(first + second)
    assert [row.settled.batch for row in results.read()] == [1]
    assert [row.settled.batch for row in results.rows] == [0, 1]


def test_results_of_a_reading_that_was_broken_off_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "results"
    path.write_text("".join(json.dumps(settled(batch)) + "\n" for batch in (0, 1)))
    results, loads, lines = Results(path), json.loads, iter([None])

    def break_off(line: bytes) -> Any:
        if next(lines, "second") == "second":
            raise KeyboardInterrupt
        return loads(line)

    monkeypatch.setattr("json.loads", break_off)
    with pytest.raises(KeyboardInterrupt):
        results.read()
    monkeypatch.setattr("json.loads", loads)
    results.read()
    assert [row.settled.batch for row in results.rows] == [0, 1]
    assert results.read() == []


def is_running(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True
