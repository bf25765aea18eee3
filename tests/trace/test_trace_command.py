"""`mlotel trace`: what it lists, draws, writes and refuses."""

import errno
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlotel_cli.store.reading import read_run
from mlotel_cli.store.traces import load_spans
from mlotel_cli.trace.trace_command import main
from mlotel_cli.trace.trace_view import print_waterfall
from tests.support.cli import Ended, mlotel
from tests.support.traces import Trace, pipelined, row, write_run


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Batches 0 to 8 take 100 ms, batch 9 takes 140 and fails."""
    traces = [pipelined(n, 200.0 * n) for n in range(9)]
    failed = Trace(9, 1800, 1940, status="ERROR", status_message="no [plate]\nat all")
    failed.wait("detector", 1800, 1810)
    failed.add("detector", 1810, 1940, status="ERROR", status_message="no [plate]\nat all")
    rows = [row(trace, plates=3.0) for trace in traces]
    rows.append(row(failed, status="skipped", error="batch 9: stage detector raised ValueError: no [plate]"))
    return write_run(tmp_path / "the run", [*traces, failed], rows)


def shown(*words: str) -> list[str]:
    ended = mlotel("trace", *words)
    assert ended.code == 0, ended.err
    return [line.rstrip() for line in ended.out.splitlines()]


def refused(*words: str) -> str:
    ended = mlotel("trace", *words)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    return ended.err


def test_the_list_and_the_median(run: Path) -> None:
    lines = shown(str(run))
    assert lines[0] == "eval test: complete, 10 batches"
    table = [words for line in lines[2:8] if (words := line.split()) and words[0].isdigit()]
    assert [words[1:3] for words in table[:-1]] == [["100", "median"], *[["100", "worst"]] * (len(table) - 2)]
    assert table[-1][:6] == ["9", "140", "skipped", "batch", "9:", "stage"]
    assert f"Draw one: mlotel trace '{run}' --batch 9" in "".join(lines)  # the one that failed
    assert any(re.fullmatch(r"batch \d \(median\): 100 ms", line) for line in lines)


def test_one_batch(run: Path) -> None:
    lines = shown(str(run), "--batch", "4")
    assert lines[0] == "batch 4: 100 ms"
    drawn = {line.split()[0]: line for line in lines[1:7] if line.strip()}
    assert "░░░░░░░" in drawn["detector"]
    assert "████ 30.0 ms ████" in drawn["detector"]
    assert "waits 20.0 ms" not in drawn["detector"]
    listed = [line.split() for line in lines if "source" in line or line.strip().startswith(("detector", "resize"))]
    assert ["resize", "detector", "15.0", "10.0"] in listed
    assert ["queue", "detector", "source", "0.000", "10.0", "waiting"] in listed
    assert "scored  plates 3" in lines
    assert " ".join(lines[-2:]).startswith(
        "critical path, ms: queue detector 10.0 > detector 30.0 (resize 10.0) > queue reader 20.0 > reader 39.0"
    )
    assert lines[-1].endswith("30% of it waiting; 1% of it in no span")


def test_a_failed_batch_shows_its_error_on_one_line(run: Path) -> None:
    lines = shown(str(run), "--batch", "failed")
    assert lines[0] == "batch 9 (failed): 140 ms"
    assert any(line.startswith("detector") and line.endswith("X") for line in lines)
    assert any("ERROR no [plate] at all"[:12] in line for line in lines)
    assert "skipped: batch 9: stage detector raised ValueError: no [plate]" in " ".join(lines)


def test_attributes_events_and_device_time_are_shown(tmp_path: Path) -> None:
    trace = Trace(0, 0, 10)
    trace.add(
        "work", 0, 10, device_ns=7_500_000, attributes={"boxes": 3, "share": 0.123456, "path": "[a]"},
        events=((1_700_000_000_000_000_000, "retry", {}), (1_700_000_000_000_000_000, "exception", {})),
    )  # fmt: skip
    text = " ".join(mlotel("trace", str(write_run(tmp_path, [trace])), "-b", "0").out.split())
    assert "device 7.50 ms" in text
    assert "exception" not in text


@pytest.mark.parametrize("columns", ["60", "80", "100", "140"])
def test_it_fits(run: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for batch in ("3", "0-5"):
        lines = shown(str(run), "--batch", batch)
        assert max(len(line) for line in lines) in (int(columns) - 1, int(columns))


def test_a_picture_in_a_file_has_a_width_that_people_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, shown(str(run), "--batch", "2-3"))) in (119, 120)


@pytest.mark.parametrize("columns", [50, 60, 80])
def test_a_narrow_terminal_keeps_the_times(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    trace = Trace(0, 0, 140, status="ERROR", status_message="a long story " * 9)
    parent = trace.root
    for depth in range(12):
        parent = trace.add(f"level_{depth}", depth, 120, parent=parent, thread="a_thread_with_a_long_name")
    lines = shown(str(write_run(tmp_path, [trace])), "--batch", "0")
    (at,) = (number for number, line in enumerate(lines) if line.endswith("took, ms"))
    times = [re.search(r" (\d+\.?\d*) +(\d+\.?\d*)( |$)", line) for line in lines[at + 1 : at + 14]]
    assert [float(each[2]) for each in times if each] == [140, *(120 - depth for depth in range(12))]
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [40, 60])
def test_times_of_hours_are_whole(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    trace = Trace(0, 0, 98_765_432)
    trace.add("a_stage_with_a_name_that_is_too_long", 12_345_678, 98_765_432)
    lines = shown(str(write_run(tmp_path, [trace])), "--batch", "0")
    assert {"12,345,678", "86,419,754", "98,765,432"} <= set(" ".join(lines).split())


def test_nothing_is_cut_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    trace = Trace(0, 0, 100)
    trace.add("stage" * 30, 0, 100, thread="thread" * 30, attributes={"path": "folder/" * 30})
    text = mlotel("trace", str(write_run(tmp_path, [trace])), "--batch", "0").out
    assert {"stage" * 30, "thread" * 30, "path=" + "folder/" * 30} <= set(text.split())


def test_a_path_of_many_spans_is_one_entry_a_stage(tmp_path: Path) -> None:
    trace = Trace(0, 0, 100)
    work = trace.add("work", 0, 90)
    for n in range(40):
        trace.add(("call", "wait")[n % 2], 2 * n, 2 * n + 1.5, parent=work, thread="work")
    trace.add("rest", 90, 100)
    (said,) = (line for line in shown(str(write_run(tmp_path, [trace])), "-b", "0") if line.startswith("critical"))
    assert said == "critical path, ms: work 90.0 (call 30.0, wait 30.0) > rest 10.0"


def test_control_characters_of_the_users_own_text_do_not_reach_the_terminal(tmp_path: Path) -> None:
    bad = "\x1b]0;title\x07\x1b[31mred\nnext\r"
    trace = Trace(0, 0, 10, thread=bad, status="ERROR", status_message=bad)
    trace.add(bad, 0, 10, attributes={bad: bad}, events=((1_700_000_000_000_000_000, bad, {}),))
    write_run(tmp_path, [trace], [row(trace, status="failed", error=bad)])
    assert all(line.isprintable() for line in shown(str(tmp_path)))


def test_several_batches_are_drawn_together(run: Path) -> None:
    lines = shown(str(run), "--batch", "2-3")
    assert lines[0] == "batches 2 to 3: 300 ms"
    assert any("batch 2: 100 ms" in line and "batch 3: 100 ms" in line for line in lines)
    assert not any("critical path" in line for line in lines)


def test_a_terminal_without_blocks_gets_ascii(run: Path) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    spans = load_spans(run / "spans.parquet", 3, 3)
    print_waterfall(spans, read_run(run), title="t", is_single=True, console=Console(file=file, width=80))
    file.flush()
    assert b"#### 30.0 ms ####" in file.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("form", "shown_as"), [(None, b"??ber"), ("svg", b"&#27573;&#252;ber")])
def test_names_that_stdout_has_no_characters_for(
    tmp_path: Path, form: str | None, shown_as: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(0, 0, 10)
    trace.add("\u6bb5\u00fcber", 0, 10)
    run = write_run(tmp_path, [trace])
    file = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(file, encoding="ascii", write_through=True))
    assert main(run, batch="0", form=form) == 0
    assert shown_as in file.getvalue()


def test_colour_is_on_top_of_the_difference(run: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    spans = load_spans(run / "spans.parquet", 9, 9)
    print_waterfall(spans, read_run(run), title="t", is_single=True, console=console)
    styled = file.getvalue()
    assert "\x1b[33m░" in styled
    assert "\x1b[31m█" in styled  # failed


# -- files -------------------------------------------------------------------------------------------------------------


def test_perfetto(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    ended = mlotel("trace", str(run), "--batch", "2-4", "--format", "perfetto", "-o", str(path))
    assert (ended.code, ended.out, ended.err) == (0, "", f"{path}\n")
    slices = [event["name"] for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "batch"]
    assert slices == ["batch 2", "batch 3", "batch 4"]


def test_otlp_json_on_stdout(run: Path) -> None:
    ended = mlotel("trace", str(run), "--batch", "worst", "--format", "otlp-json")
    (resource,) = json.loads(ended.out)["resourceSpans"]
    assert {"key": "service.name", "value": {"stringValue": "s"}} in resource["resource"]["attributes"]
    assert len(resource["scopeSpans"][0]["spans"]) == 6
    assert ended.err == ""


@pytest.mark.parametrize("name", ["trace.svg", "TRACE.SVG"])
def test_svg_by_the_suffix(run: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert mlotel("trace", str(run), "-o", str(path)).code == 0
    assert ElementTree.fromstring(path.read_text()).attrib["aria-label"].startswith("eval test, batch ")


def test_a_run_that_goes_on_can_be_looked_at(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "status": "running", "summary": None}))
    assert shown(str(run), "--batch", "3")[0] == "batch 3: 100 ms"


def test_spans_without_any_row_yet(tmp_path: Path) -> None:
    run = write_run(tmp_path, [pipelined(4)], [])
    lines = shown(str(run))
    assert lines[0] == "eval test: complete, 0 batches"
    assert "batch 4: 100 ms" in lines


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_no_such_run(tmp_path: Path) -> None:
    assert f"{tmp_path / 'x'} is no run directory" in refused(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"mode": "profile"}, "a profile has ranges instead"),
        ({"status": "running"}, "telemetry.backend=otel"),  # without a recorder it does not run
        ({}, "telemetry.backend=otel"),
    ],
)
def test_no_spans(tmp_path: Path, info: dict[str, object], says: str) -> None:
    said = refused(str(write_run(tmp_path, [], [row(pipelined())], **info)))
    assert "has no spans of any batch" in said
    assert says in said


def test_a_running_run_without_spans_has_just_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlotel_cli.store.reading._is_alive", lambda pid, folder: True)
    assert "it has just begun" in refused(str(write_run(tmp_path, [], [], status="running")))


@pytest.mark.parametrize("batch", ["x", "-1", "3-", "5-3", "1.5", "", "3-x"])
def test_no_batch(run: Path, batch: str) -> None:
    said = refused(str(run), f"--batch={batch}")
    assert f"--batch {batch}: allowed: a number, a range such as 0-9, or one of median, p95, worst, failed" in said


def test_an_unknown_batch(run: Path) -> None:
    assert "has no spans of batch 10; batches with spans lie in 0 to 9" in refused(str(run), "--batch", "10")
    assert "no spans of batches 10 to 20; batches with spans lie in 0 to 9" in refused(str(run), "--batch", "10-20")


def test_a_batch_whose_trace_was_not_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, [pipelined(0), pipelined(2, 200)])
    assert "batches with spans lie in 0 to 2, but not every trace of them was kept" in refused(str(run), "--batch", "1")
    assert shown(str(run), "--batch", "0-2")[0] == "batches 0 to 2: 300 ms"


def test_a_role_without_a_batch(tmp_path: Path) -> None:
    run = write_run(tmp_path, [pipelined(n, 200.0 * n) for n in range(3)])
    said = refused(str(run), "--batch", "failed")
    assert "has no such batch; it has median, worst, and batches 0 to 2" in said


def test_too_many_batches_to_draw(tmp_path: Path) -> None:
    traces = [Trace(n, 10.0 * n, 10.0 * n + 5) for n in range(40)]
    run = write_run(tmp_path, traces)
    assert "40 batches are too many; at most 20" in refused(str(run), "--batch", "0-99")
    assert mlotel("trace", str(run), "--batch", "0-99", "--format", "perfetto").code == 0


def test_a_file_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.svg"
    assert f"-o {path}: cannot be written: No such file" in refused(str(run), "-o", str(path))


@pytest.mark.parametrize("form", [None, "svg"])
def test_stdout_on_a_full_disk(
    run: Path, form: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    assert main(run, batch="0", form=form) == 1
    assert capsys.readouterr().err == f"mlotel: {run}: [Errno {errno.ENOSPC}] No space left on device\n"


def test_a_suffix_that_says_nothing(run: Path) -> None:
    said = refused(str(run), "-o", "a.json")
    assert "-o a.json: the suffix names no format; add --format otlp-json, perfetto, svg" in said


def test_an_unknown_format_names_those_there_are(run: Path) -> None:
    ended: Ended = mlotel("trace", str(run), "--format", "pdf")
    assert ended.code == 2
    for name in ("perfetto", "otlp-json", "svg"):
        assert name in ended.err
