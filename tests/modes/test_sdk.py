"""A program with an OpenTelemetry SDK of its own gets its rows by adding one line."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import mlotel_cli
from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import git_state
from mlotel_cli.modes import sdk
from mlotel_cli.modes.opening import tracker_options
from mlotel_cli.modes.sdk import LoopRun, MlotelSpanProcessor, WandbSpanMetricsExporter
from mlotel_cli.wire import Message, SpanMessage
from tests.support.wandb_file import find_wandb_file, read_wandb_file
from tests.support.wire import received
from tests.telemetry.test_tracer import run_program


class Collected:
    """Takes the place of a LoopRun: keeps what is handed over."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.spans: list[SpanMessage] = []
        self.is_open = True
        self.pauses = 0

    def emit(self, span: SpanMessage) -> None:
        self.spans.append(span)

    def pause(self) -> None:
        self.pauses += 1

    def close(self) -> None:
        self.is_open = False

    def rows(self) -> list[tuple[str, int | None, int | None]]:
        """(name, batch, opened) in the order in which they were handed over."""
        stamps = [received(span) for span in self.spans]
        return [(stamp.span.name, stamp.span.batch, stamp.opened) for stamp in stamps]


@pytest.fixture(autouse=True)
def _collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "LoopRun", Collected)


class Program:
    """A foreign program with one processor."""

    def __init__(self, processor: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("program")
        self.run: Collected = getattr(processor, "_run", None) or processor.span_exporter._run

    def span(self, name: str, **options: Any) -> Any:
        return self.tracer.start_as_current_span(name, **options)

    def batch(self, index: int) -> Any:
        return self.span("batch", attributes={"batch.index": index})


@pytest.fixture
def program() -> Program:
    return Program(MlotelSpanProcessor())


# -- MlotelSpanProcessor ----------------------------------------------------------------------------------------------


def test_every_root_becomes_a_row_in_the_order_of_their_ends(program: Program) -> None:
    first = program.tracer.start_span("first")
    with program.span("second"), program.span("stage"):
        pass
    with program.span("late", context=trace.set_span_in_context(first)):
        pass
    first.end()
    assert program.run.rows() == [
        ("stage", 0, None),
        ("second", 0, 2),
        ("late", 1, None),
        ("first", 1, 2),
    ]
    assert program.run.pauses == 2


def test_spans_that_carry_an_index_are_batches_and_the_root_above_is_none(program: Program) -> None:
    with program.span("epoch"):
        with program.span("load"):
            pass
        for index in (5, 3):
            with program.batch(index), program.span("stage"), program.span("inner"):
                pass
    with program.span("another root"):
        pass
    assert program.run.rows() == [
        ("inner", 5, None),
        ("stage", 5, None),
        ("batch", 5, 3),
        ("inner", 3, None),
        ("stage", 3, None),
        ("batch", 3, 3),
        ("load", None, None),
        ("epoch", None, None),
        ("another root", None, None),
    ]


def test_rows_before_the_first_numbered_batch_are_not_overwritten(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("download", "warm up"):
        with program.span(name):
            pass
    for index in (1, 0):
        with program.batch(index):
            pass
    assert program.run.rows() == [("download", 0, 1), ("warm up", 1, 1), ("batch", 3, 1), ("batch", 2, 1)]
    assert capsys.readouterr().err == "mlotel: 2 root spans ended before the first batch: batch 1 is row 3\n"


def test_a_batch_inside_a_batch_is_its_own(program: Program) -> None:
    with program.batch(0), program.batch(1), program.span("stage"):
        pass
    assert program.run.rows() == [("stage", 1, None), ("batch", 1, 2), ("batch", 0, 1)]


def test_a_served_request_is_a_root(program: Program) -> None:
    remote = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(1))
    for _ in range(2):
        with program.span("serve", context=trace.set_span_in_context(NonRecordingSpan(remote))), program.span("stage"):
            pass
    assert program.run.rows() == [("stage", 0, None), ("serve", 0, 2), ("stage", 1, None), ("serve", 1, 2)]


def test_a_child_that_begins_after_its_parent_ended_belongs_to_the_same_row(program: Program) -> None:
    with program.span("root") as root:
        context = trace.set_span_in_context(root)
    with program.span("late", context=context), program.span("later"):
        pass
    assert program.run.rows() == [("root", 0, 1), ("later", 0, None), ("late", 0, None)]


def test_a_late_child_of_a_trace_with_several_batches_belongs_to_none(program: Program) -> None:
    with program.span("epoch") as epoch:
        for index in (0, 1):
            with program.batch(index):
                pass
    with program.span("late", context=trace.set_span_in_context(epoch)):
        pass
    assert program.run.rows()[-1] == ("late", None, None)


def test_a_late_child_of_a_trace_with_several_roots_here_belongs_to_none(program: Program) -> None:
    remote = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(1))
    for _ in range(2):
        with program.span("serve", context=trace.set_span_in_context(NonRecordingSpan(remote))) as serve:
            pass
    with program.span("late", context=trace.set_span_in_context(serve)):
        pass
    assert program.run.rows() == [("serve", 0, 1), ("serve", 1, 1), ("late", None, None)]


def test_a_child_that_ends_after_its_root(program: Program) -> None:
    with program.span("root"):
        child = program.tracer.start_span("child")
    child.end()
    assert program.run.rows() == [("root", 0, 2), ("child", 0, None)]


def test_a_span_from_before_the_processor_is_ignored(program: Program) -> None:
    early = TracerProvider(shutdown_on_exit=False)
    with early.get_tracer("x").start_as_current_span("root") as root:
        early.add_span_processor(MlotelSpanProcessor())
        with early.get_tracer("x").start_as_current_span("child"):
            pass
    assert not root.is_recording()
    run: Any = early._active_span_processor._span_processors[0]._run  # type: ignore[attr-defined]
    assert run.rows() == [("child", 0, 1)]


def test_a_root_that_never_ends_does_not_hold_everything_back(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "_HELD_SPANS", 3)
    with program.span("main"):
        for _ in range(2):
            program.tracer.start_span("stage").end()
        assert program.run.rows() == []
        program.tracer.start_span("stage").end()
        program.tracer.start_span("stage").end()
        assert program.run.rows() == [("stage", 0, None)] * 4
    assert program.run.rows()[-1] == ("main", 0, 5)


def test_shutdown_hands_over_what_waits_for_its_root(program: Program) -> None:
    with program.span("main"):
        program.tracer.start_span("stage").end()
        program.provider.shutdown()
        assert program.run.rows() == [("stage", 0, None)]
        assert not program.run.is_open


def test_many_threads_are_counted_exactly(program: Program) -> None:
    with program.span("root") as root:
        context = trace.set_span_in_context(root)

        def work() -> None:
            for _ in range(50):
                program.tracer.start_span("child", context=context).end()

        threads = [threading.Thread(target=work, name="stage thread") for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert program.run.rows().count(("child", 0, None)) == 400
    assert program.run.rows()[-1] == ("root", 0, 401)
    assert {span.thread for span in program.run.spans} == {"stage thread", "MainThread"}
    processor: Any = program.provider._active_span_processor._span_processors[0]  # type: ignore[attr-defined]
    assert processor._of_span == {}


def test_an_index_that_is_no_whole_number_is_no_batch(program: Program) -> None:
    with program.span("root", attributes={"batch.index": "3"}):
        pass
    assert program.run.rows() == [("root", 0, 1)]


# -- WandbSpanMetricsExporter -----------------------------------------------------------------------------------------


def test_every_trace_becomes_a_row_of_the_exporter() -> None:
    program = Program(SimpleSpanProcessor(WandbSpanMetricsExporter()))
    first = program.tracer.start_span("first")
    with program.span("second"), program.span("stage"):
        pass
    first.end()
    assert program.run.rows() == [("stage", 0, None), ("second", 0, -1), ("first", 1, -1)]
    assert {span.thread for span in program.run.spans} == {""}


def test_an_exporter_of_a_run_that_is_over_says_so() -> None:
    exporter = WandbSpanMetricsExporter()
    span = ReadableSpan("stage", context=SpanContext(1, 2, False))
    assert exporter.export([span, ReadableSpan("without identity")]) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()
    assert exporter.export([span]) is SpanExportResult.FAILURE
    assert exporter._run.rows() == [("stage", 0, -1)]  # type: ignore[attr-defined]


def test_an_exporter_remembers_a_bounded_number_of_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "_TRACES_REMEMBERED", 2)
    exporter = WandbSpanMetricsExporter()
    for trace_id in (1, 2, 3, 1):
        exporter.export([ReadableSpan("stage", context=SpanContext(trace_id, 2, False))])
    assert [row[1] for row in exporter._run.rows()] == [0, 1, 2, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [MlotelSpanProcessor, WandbSpanMetricsExporter])
def test_options_reach_the_run(kind: Any) -> None:
    run = kind(name="n", directory="d", project="p", entity="e", group="g", mode="offline")._run
    assert (run.options["name"], run.options["directory"]) == ("n", "d")
    assert run.options["tracker"] == TrackerOptions(mode="offline", project="p", entity="e", group="g")


@pytest.mark.parametrize("kind", [MlotelSpanProcessor, WandbSpanMetricsExporter])
def test_a_mode_that_wandb_does_not_have_is_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="mode='on': allowed are auto, online, offline, disabled"):
        kind(mode="on")


# -- LoopRun ----------------------------------------------------------------------------------------------------------


class FakeLink:
    """Takes the place of a RecorderLink."""

    def __init__(self, run_dir: Path, **options: Any) -> None:
        self.run_dir, self.options = run_dir, options
        self.is_open = True
        self.sent: list[Any] = []
        self.emitted: list[Any] = []
        self.emit = self.emitted.append
        self.closed = 0

    def open(self, opening: Any) -> None:
        self.opening = opening

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def close(self, closing: Any, *, timeout_s: float) -> None:
        self.closed += 1


@pytest.fixture
def fake_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sdk, "RecorderLink", FakeLink)
    monkeypatch.chdir(tmp_path)
    return


def loop_run(directory: Path | None = None) -> Any:
    tracker = tracker_options(project="p", entity=None, group=None, mode="disabled")
    return LoopRun(name="n", directory=directory, tracker=tracker, settle_s=1.0)


@pytest.mark.usefixtures("fake_link")
def test_a_run_without_wandb_does_not_import_it() -> None:
    assert loop_run()._link.options["imports"] == ("polars",)
    online = LoopRun(name="n", directory=None, tracker=TrackerOptions(mode="online"), settle_s=1.0)
    assert online._link.options["imports"] == ("polars", "wandb")  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fake_link")
def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=f"directory={tmp_path}: it holds a run already"):
        loop_run(tmp_path)


@pytest.mark.usefixtures("fake_link")
def test_nothing_is_kept_for_a_recorder_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    run = loop_run()
    run.emit(("span", 1))
    run._link.is_open = False
    run.emit(("span", 2))
    run._link.options["on_death"](sdk.MlotelError("The recorder process ended"))
    assert (run._link.emitted, run.is_open) == ([("span", 1)], False)
    assert capsys.readouterr().err == "mlotel: The recorder process ended\n"


@pytest.mark.usefixtures("fake_link")
def test_a_run_is_closed_once_and_only_by_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run = loop_run()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        run.close()
    assert run._link.closed == 0
    run.close()
    run.close()
    assert run._link.closed == 1


@pytest.mark.usefixtures("fake_link")
def test_a_run_opens_with_what_every_run_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlotel_cli.hardware.git_state", lambda _: {"commit": "abc", "dirty": True})
    link = loop_run()._link
    assert link.opening.identity["mlotel.run.id"] == link.opening.run_id
    assert link.opening.identity["git.commit"] == "abc"
    assert len(link.opening.identity["config.hash"]) == 16
    (info,) = link.sent
    environment = info.content["environment"]
    assert environment["git"]["commit"] == "abc"
    assert environment["packages"]["opentelemetry-sdk"]


@pytest.mark.usefixtures("fake_link")
def test_a_gpu_that_the_program_took_later_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    run = loop_run()
    assert run._link.sent[0].content["environment"]["gpu"] is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    run.close()
    first, last = (info.content["environment"] for info in run._link.sent)
    assert last == {**first, "gpu": ["H100"]}


# -- whole programs ---------------------------------------------------------------------------------------------------

UNMODIFIED = """
    import sys
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    {line}
    tracer = trace.get_tracer("program")
    for frame in range(5):
        with tracer.start_as_current_span("frame"):
            with tracer.start_as_current_span("detector"):
                pass
            with tracer.start_as_current_span("reader") as reader:
                reader.set_attribute("plates", frame)
"""
PROCESSOR = "provider.add_span_processor(__import__('mlotel_cli').MlotelSpanProcessor({arguments}))"
EXPORTER = (
    "provider.add_span_processor(BatchSpanProcessor(__import__('mlotel_cli').WandbSpanMetricsExporter({arguments})))"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "mode"), [(PROCESSOR, "offline"), (EXPORTER, "disabled")], ids=["processor", "exporter"]
)
def test_an_unmodified_program_gets_its_rows_by_one_line(line: str, mode: str, tmp_path: Path) -> None:
    arguments = f"directory={str(tmp_path)!r}, mode={mode!r}"
    run_program(textwrap.dedent(UNMODIFIED).format(line=line.format(arguments=arguments)))
    run = mlotel_cli.read_run(tmp_path)
    assert (run.status, run.info["mode"], run.info["summary"]["telemetry"]["spans_lost"]) == ("complete", "loop", 0)
    assert run.batches["batch"].to_list() == [0, 1, 2, 3, 4]
    assert run.batches["status"].to_list() == ["done"] * 5
    assert set(run.batches["detector.calls"]) == set(run.batches["reader.calls"]) == {1}
    assert all(
        0 < row["detector.host_ms"] + row["reader.host_ms"] < row["latency_ms"]
        for row in run.batches.iter_rows(named=True)
    )
    assert run.info["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run.info["environment"]["git"] == git_state(Path.cwd())
    assert run.info["identity"]["git.commit"] == (git_state(Path.cwd()) or {}).get("commit")
    assert len(run.info["identity"]["config.hash"]) == 16
    spans = run.spans.filter(run.spans["name"] == "reader")
    assert [json.loads(given)["plates"] for given in spans["attributes"]] == [0, 1, 2, 3, 4]
    assert set(run.spans["scope"]) == {"program"}
    if mode == "disabled":
        assert not list(tmp_path.rglob("*.wandb"))
        return
    file = read_wandb_file(find_wandb_file(tmp_path))
    assert (file.exit_code, file.torn, file.run.job_type) == (0, False, "loop")
    rows = [row for row in file.history if "batch" in row]
    assert [row["batch"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["latency/batch_ms"] for row in rows] == run.batches["latency_ms"].to_list()
    assert [row["latency/detector_ms"] for row in rows] == run.batches["detector.host_ms"].to_list()


def test_batch_record_and_score_in_a_program_with_its_own_sdk(tmp_path: Path) -> None:
    program = f"""
        import mlotel_cli
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider()
        trace.set_tracer_provider(provider)
        provider.add_span_processor(mlotel_cli.MlotelSpanProcessor(directory={str(tmp_path)!r}, mode="disabled"))
        with trace.get_tracer("program").start_as_current_span("epoch"):
            for index in range(3):
                with mlotel_cli.batch(index, size=2):
                    with mlotel_cli.span("detector"):
                        mlotel_cli.record("boxes", index, unit="{{box}}")
                        mlotel_cli.record("boxes", index + 1)
                    mlotel_cli.score("recall", index / 4)
    """
    run_program(program)
    run = mlotel_cli.read_run(tmp_path)
    columns = ("batch", "size", "status", "accuracy.recall", "data.boxes", "detector.calls")
    assert [tuple(row[column] for column in columns) for row in run.batches.iter_rows(named=True)] == [
        (0, 2, "scored", 0.0, 0.5, 1),
        (1, 2, "scored", 0.25, 1.5, 1),
        (2, 2, "scored", 0.5, 2.5, 1),
    ]
    assert run.spans.filter(run.spans["name"] == "epoch")["batch"].to_list() == [None]


@pytest.mark.slow
def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path: Path) -> None:
    program = f"""
        import os
        import mlotel_cli
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(mlotel_cli.MlotelSpanProcessor(directory={str(tmp_path)!r}, mode="disabled"))
        tracer = provider.get_tracer("program")
        with tracer.start_as_current_span("frame"):
            pass
        child = os.fork()
        with tracer.start_as_current_span("frame"):
            pass
        if not child:
            provider.shutdown()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with tracer.start_as_current_span("frame"):
            pass
        provider.shutdown()
    """
    run_program(program)
    run = mlotel_cli.read_run(tmp_path)
    assert (run.status, run.batches["batch"].to_list()) == ("complete", [0, 1, 2])
    assert run.info["environment"]["packages"]["mlotel"]


def test_a_program_goes_on_when_its_recorder_is_killed(tmp_path: Path) -> None:
    program = f"""
        import os, time, json
        from pathlib import Path
        import mlotel_cli
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider()
        processor = mlotel_cli.MlotelSpanProcessor(directory={str(tmp_path)!r}, mode="disabled")
        provider.add_span_processor(processor)
        info = Path({str(tmp_path)!r}, "run.json")
        while not info.exists():
            time.sleep(0.01)
        os.kill(json.loads(info.read_text())["recorder_pid"], 9)
        while processor._run.is_open:
            time.sleep(0.01)
        for _ in range(100):
            with provider.get_tracer("program").start_as_current_span("frame"):
                pass
        print("went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "went on\n"
    lines = done.stderr.splitlines()
    assert all(line.startswith("mlotel: The recorder process ended (exit code -9: SIGKILL") for line in lines)
    assert 1 <= len(lines) <= 2  # when it died, and at the end
