"""What a run says: progress on a terminal and in a pipe, and the figures of the closing table."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlotel_cli.modes.results import Progress, print_results
from mlotel_cli.stats.describe import describe
from mlotel_cli.typed_json import to_json


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


# -- progress --------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_a_line_every_ten_seconds() -> None:
    console, clock = pipe(), Clock()
    with Progress(console, 40, now=clock) as progress:
        clock.now_s += 60  # a long warm-up is not the run's
        progress.start()
        for score in (1.0, 0.0, 0.5, 0.5, 1.0):
            clock.now_s += 4
            progress.advance(2, {"score": score})
    assert text_of(console) == "batch 3/40  0.5 items/s  score ~0.500\n"


def test_a_source_of_unknown_length_has_no_total() -> None:
    console, clock = pipe(), Clock()
    with Progress(console, None, now=clock) as progress:
        progress.start()
        clock.now_s += 10
        progress.advance(5, {})
    assert text_of(console) == "batch 1  0.5 items/s\n"


def test_the_running_accuracy_is_the_mean_of_the_batches_that_have_one() -> None:
    console, clock = pipe(), Clock()
    with Progress(console, 3, now=clock) as progress:
        progress.start()
        progress.advance(1, {"a": 1.0})
        progress.advance(1, {"a": 0.0, "b": 0.25})
        clock.now_s += 10
        progress.advance(1, {})
    assert text_of(console) == "batch 3/3  0.3 items/s  a ~0.500  b ~0.250\n"


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    console, clock = terminal(), Clock()
    with Progress(console, 4, now=clock) as progress:
        assert progress._bar is not None
        progress._bar.refresh()
        assert "warming up" in text_of(console)
        progress.start()
        for _ in range(2):
            clock.now_s += 1
            progress.advance(3, {"score": 0.5})
        progress._bar.refresh()
    shown = text_of(console)
    assert re.search(r"eval .*2/4 .*3\.0 items/s  score ~0\.500", shown)
    assert console.file.getvalue().endswith("\x1b[2K")  # type: ignore[attr-defined]  # the line was erased


def test_a_terminal_is_not_written_to_for_every_batch() -> None:
    console, clock = terminal(), Clock()
    with Progress(console, 1000, now=clock) as progress:
        progress.start()
        progress.advance(1, {})
        assert progress._bar is not None
        assert progress._bar.tasks[0].completed == 0
        clock.now_s += 0.3
        progress.advance(1, {})
        assert progress._bar.tasks[0].completed == 2


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_stays_on_one_line_whatever_the_metrics(width: int) -> None:
    console, clock = terminal(width), Clock()
    scores = {f"a_metric_with_a_long_name_{n}": 0.5 for n in range(5)}
    with Progress(console, 100_000, now=clock) as progress:
        progress.start()
        clock.now_s += 1
        progress.advance(1, scores)
        assert progress._bar is not None
        lines = console.render_lines(progress._bar.get_renderable())
    assert len(lines) == 1
    assert "items/s" in "".join(segment.text for segment in lines[0])


def test_metric_names_are_no_markup() -> None:
    console, clock = terminal(), Clock()
    with Progress(console, 1, now=clock) as progress:
        progress.start()
        clock.now_s += 1
        progress.advance(1, {"ap[50]": 0.5, "[/red]": 0.5})
        progress._bar.refresh()  # type: ignore[union-attr]
    assert "ap[50] ~0.500" in text_of(console)


# -- the closing table -----------------------------------------------------------------------------------------------


def info(**changed: Any) -> dict[str, Any]:
    latencies = [float(n) for n in range(1, 101)]
    figures = dict(zip(("mean", "p50", "p95", "p99", "max"), (50.5, 50.5, 95.05, 99.01, 100.0), strict=True))
    described = {"count": 100, **figures}
    short = {**described, "count": 40, "p95": None, "p99": None}
    small = {name: value / 1000 if name != "count" else value for name, value in described.items()}
    real = describe(latencies, intervals=False)
    assert (real.mean, real.p50, real.max) == (figures["mean"], figures["p50"], figures["max"])
    summary = {
        "accuracy": {"score": {"value": 0.87654, "ci95": None}},
        "latency_ms": {
            "batch": {**described, "mean": 101.0},
            "stages": {
                "detector": {"host": described, "device": None, "queue": small},
                "reader": {"host": short, "device": None, "queue": None},
            },
            "source_wait": small,
        },
        "throughput": {"items_per_s": 12.345, "wall_items_per_s": 10.0},
        "batches": {"scored": 99, "skipped": 1},
        "warmup": {"batches": 3, "first_batch_ms": 1234.4, "total_s": 2.0},
        "telemetry": {"spans_lost": 0, "source_paused_s": 0.0, "faults": {}},
        **changed.pop("summary", {}),
    }
    return {"status": "complete", "notes": [], "wandb": None, "summary": summary, **changed}


def printed(content: dict[str, Any], *, width: int = 80, run_dir: Path = Path("/runs/one")) -> list[str]:
    console = pipe(width)
    print_results(content, run_dir, console=console)
    return [line.rstrip() for line in text_of(console).splitlines() if line.strip()]


def cells(lines: list[str], first: str) -> list[str]:
    (row,) = (line.split() for line in lines if line.strip().startswith(first))
    return row[len(first.split()) :]


def test_the_tables_figures() -> None:
    lines = printed(info())
    assert cells(lines, "score") == ["0.8765"]
    assert cells(lines, "stage") == ["count", "mean", "p50", "p95", "p99", "max", "share"]
    rows = {" ".join(line.split()[:-7]): line.split()[-7:] for line in lines if line.strip().endswith("%")}
    assert rows == {
        "detector": ["100", "50.50", "50.50", "95.05", "99.01", "100", "50.0%"],
        "detector queue": ["100", "0.051", "0.051", "0.095", "0.099", "0.100", "0.1%"],
        "reader": ["40", "50.50", "50.50", "n<72", "n<368", "100", "20.0%"],
        "batch": ["100", "101", "50.50", "95.05", "99.01", "100", "100%"],
    }
    assert cells(lines, "source wait") == ["100", "0.051", "0.051", "0.095", "0.099", "0.100"]
    assert "n<: too few independent batches for that percentile (p95 takes 72, p99 takes 368)" in lines


def test_the_closing_lines() -> None:
    lines = printed(info())
    assert lines[-3:] == [
        "complete: 99 scored, 1 skipped; 12.3 items/s without scoring",
        "warm-up: 3 batches, the first took 1234 ms",
        "run: /runs/one",
    ]


def test_verdicts_stand_below_the_table_where_there_are_any() -> None:
    content = info()
    stages = content["summary"]["latency_ms"]["stages"]
    assert not any("-bound" in line for line in printed(content))
    stages["detector"]["verdict"], stages["reader"]["verdict"] = "device-bound", "launch-bound or synchronising"
    stages["[other]"] = {**stages["detector"]}
    lines = printed(content, width=100)
    assert "device-bound: detector, [other]" in lines
    said = "launch-bound or synchronising (or without work for the device: mlotel profile tells): reader"
    assert said in lines
    assert not any("device-bound" in line for line in printed({**content, "mode": "profile"}))


def test_spans_without_a_device_time_are_said_to_be() -> None:
    telemetry = {"device_abandoned": 3, "device_captured": 0, "device_elsewhere": 2}
    lines = printed(info(summary={"telemetry": telemetry}))
    assert [line for line in lines if "device" in line] == [
        "telemetry: 3 spans have no device time: the device did not come to their end in time",
        "telemetry: 2 spans have no device time: another device was the current one",
    ]


def test_where_scoring_took_no_time_of_its_own_the_rate_is_just_that() -> None:
    content = info()
    content["summary"]["throughput"] = {"items_per_s": 12.345, "wall_items_per_s": 12.345}
    assert "complete: 99 scored, 1 skipped; 12.3 items/s" in printed(content)


def test_the_windows_of_a_monitor_are_nothing_to_speak_of() -> None:
    shown = printed({**info(), "wandb": {"dir": None, "url": "u", "windows": 4}})
    assert [line for line in shown if line.startswith("W&B")] == ["W&B: u"]


def test_nothing_is_said_of_percentiles_that_are_there() -> None:
    content = info()
    del content["summary"]["latency_ms"]["stages"]["reader"]
    assert not any(line.startswith("n<") for line in printed(content))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"notes": ["metric m [x] could not be computed"]}, "metric m [x] could not be computed"),
        ({"summary": {"telemetry": {"spans_lost": 7}}}, "telemetry: 7 spans were lost"),
        (
            {"summary": {"telemetry": {"batches_lost": 7, "recorder_restarts": 0}}},
            "telemetry: 7 batches ran and are in no file: the recorder was too far behind",
        ),
        (
            {"summary": {"telemetry": {"batches_lost": 7, "recorder_restarts": 2}}},
            "telemetry: 7 batches ran and are in no file: the recorder was too far behind, or gone (2 restarts)",
        ),
        ({"summary": {"bottleneck": {"sentences": ["reader [x] bounds it"]}}}, "reader [x] bounds it"),
        (
            {"summary": {"telemetry": {"source_paused_s": 1.256}}},
            "telemetry: the source was paused for 1.26 s because the recorder was behind",
        ),
        ({"summary": {"telemetry": {"faults": {"record": 3}}}}, "telemetry: 3 faults of kind record, see the log"),
        (
            {"wandb": {"url": "https://wandb.test/a/b/runs/c", "dir": "wandb/run-1"}},
            "W&B: https://wandb.test/a/b/runs/c",
        ),
        ({"wandb": {"url": None, "dir": "wandb/offline-run-1"}}, "  upload: wandb sync /runs/one/wandb/offline-run-*"),
        ({"wandb": {"url": None, "dir": "wandb/offline-run-1"}}, "  look:   wandb leet /runs/one/wandb"),
        (
            {"wandb": {"dir": "wandb/run-1", "url": "u", "windows": 4, "rows_merged": 90}},
            "W&B: batches came too fast for it: 90 of them became 4 mean rows",
        ),
        (
            {"wandb": {"dir": "wandb/run-1", "url": "u", "rows_lost": 5}},
            "W&B: 5 rows are missing there; every batch is in batches.parquet",
        ),
    ],
)
def test_what_is_worth_a_line_gets_one_and_only_then(changed: dict[str, Any], line: str) -> None:
    assert printed(info(**changed)).count(line) == 1
    assert line not in printed(info())


def test_a_metric_that_could_not_be_computed_is_listed() -> None:
    accuracy = {"map": {"value": None, "ci95": None}, "ap[small]": {"value": 1.0, "ci95": [0.9, 1.0]}}
    lines = printed(info(summary={"accuracy": accuracy}))
    assert cells(lines, "map") == ["not", "computed"]
    assert cells(lines, "ap[small]") == ["1.0000", "0.9000", "to", "1.0000"]


def test_a_run_without_rows_or_metrics_prints_no_empty_table() -> None:
    nothing = {
        "accuracy": {},
        "latency_ms": {"batch": to_json(describe([])), "stages": {}},
        "throughput": {"items_per_s": None},
        "batches": {},
        "warmup": None,
    }
    assert printed(info(status="failed", summary=nothing)) == ["failed: no batches", "run: /runs/one"]


@pytest.mark.parametrize("width", [70, 80, 120])
def test_long_names_fold_and_figures_stay_whole(width: int) -> None:
    content = info()
    name = "model.backbone.stages[three].blocks.attention.projection_of_the_value"
    content["summary"]["latency_ms"]["stages"] = {name: content["summary"]["latency_ms"]["stages"]["detector"]}
    lines = printed(content, width=width)
    table = lines[lines.index("latency, ms a batch") : -3]
    assert max(map(len, table)) <= width
    first = next(line for line in table if line.strip().startswith("model."))
    assert first.split()[1:] == ["100", "50.50", "50.50", "95.05", "99.01", "100", "50.0%"]
    folded = "".join(line.split()[0] for line in table[3:])
    assert folded.startswith(name)


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, "stage count mean p50 p95 p99 max share"),
        (60, "stage count mean p50 p95 p99 max share"),
        (50, "stage count p50 p95 p99 share"),
        (40, "stage p50 p95 p99"),
        (25, "stage p50 p95"),
    ],
)
def test_a_narrow_terminal_keeps_names_and_whole_figures(width: int, columns: str) -> None:
    lines = printed(info(), width=width)
    heading = next(line for line in lines if line.split()[:1] == ["stage"])
    assert heading.split() == columns.split()
    assert max(len(line) for line in lines[lines.index(heading) :][:6]) <= width
    assert "50.50" in cells(lines, "batch")
    assert "…" not in " ".join(lines)


def test_paths_below_the_current_folder_are_shown_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = info(wandb={"url": None, "dir": "wandb/offline-run-1"})
    lines = printed(content, run_dir=tmp_path / "out puts" / "one")
    assert lines[-1] == "run: out puts/one"
    assert "  upload: wandb sync 'out puts/one/wandb'/offline-run-*" in lines
