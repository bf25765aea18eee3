"""A monitor's board as text."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from mlotel_cli.modes.monitor_picture import line, picture
from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.snapshot import Gaps, LatencyFigures, SinkHealth, Snapshot, SourceReport, StageNow, ValueNow

STAGE = StageNow(count=80, p50_ms=12.345, p95_ms=150.6, queue_count=80, queue_p95_ms=0.25, busy=0.97)
SNAPSHOT = Snapshot(
    uptime_s=93_784.0,
    batches=12_345,
    items=24_690,
    items_per_s=9.75,
    latency_ms=LatencyFigures(count=80, p50=134.2, p95=148.0, p99=None, max=1502.0),
    stages={"reader": STAGE, "source": StageNow(queue_p95_ms=104.0)},
    data={"num_plates": ValueNow(mean=4.38, p50=4.0, unit="{plate}")},
    sinks={
        "parquet": SinkHealth(sent=5),
        "otlp": SinkHealth(ok=False, lost=7, detail="Connection refused"),
    },
    http="http://127.0.0.1:9464",
)
SOURCE = SourceReport("video", "connecting", 191, {"full": 1200}, reconnects=2)


def board(**changed: Any) -> Board:
    values: dict[str, Any] = {
        "snapshot": SNAPSHOT,
        "heard_s": 100.0,
        "source": SOURCE,
        "source_detail": "nothing came for 5 s",
        "queues": {"source": (3, 8), "reader": (2, 2)},
        "gaps": Gaps(recorder_restarts=1, batches_lost=40),
        "phase": "running",
    }
    return Board("[lpr]", **(values | changed))


def drawn(shown: Board, *, now: float = 100.5, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(picture(shown, now=now, width=width, height=height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_picture() -> None:
    assert [text.rstrip() for text in drawn(board())] == [
        "mlotel monitor [lpr]  running  1d 02:03:04  http://127.0.0.1:9464",
        "rate     9.8 items/s   12,345 batches",
        "latency  p50 134   p95 148   p99 n<368   max 1,502 ms   last 60 s",
        "source   video connecting   191 received   3/8 waiting   2 reconnects",
        "         nothing came for 5 s",
        "dropped  1,200 full",
        "record   1 restarts of the recorder, 40 batches lost",
        "",
        "stage   p50 ms  p95 ms  queue p95  waiting  busy",
        "source       -       -        104      3/8",
        "reader   12.35     151      0.250      2/2  ##########  97%",
        "value    num_plates  mean 4.38  p50 4.00 plate",
        "",
        "sinks    parquet",
        "         otlp: 7 lost; Connection refused",
        "Ctrl-C ends the run in order; a second Ctrl-C ends it at once",
    ]


def test_percentiles_of_few_batches_are_not_shown() -> None:
    few = replace(STAGE, count=3, p95_ms=None, queue_count=3, queue_p95_ms=None)
    latency = LatencyFigures(count=3, p50=134.2, max=150.0)
    lines = drawn(board(snapshot=replace(SNAPSHOT, latency_ms=latency, stages={"reader": few})))
    assert lines[2].startswith("latency  p50 134   p95 n<72   p99 n<368   max 150 ms")
    assert lines[9].split()[:4] == ["reader", "12.35", "n<72", "n<72"]


def test_before_the_first_figures() -> None:
    text = "\n".join(drawn(Board("x")))
    assert "starting" in text
    assert "0 batches" in text


def test_an_ending_run_says_why() -> None:
    assert "ending: SIGTERM" in drawn(board(ending="SIGTERM"))[0]


def test_a_narrow_terminal_shows_every_figure_and_the_address() -> None:
    lines = [text.rstrip() for text in drawn(board(), width=60)]
    assert lines[0] == "[lpr]  running  1d 02:03:04  http://127.0.0.1:9464"
    assert lines[8:11] == [
        "stage   p50 ms  p95 ms  queue p95  waiting  busy",
        "source       -       -        104      3/8",
        "reader   12.35     151      0.250      2/2  97%",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    words = {word for text in drawn(board(), width=200) for word in text.split()}
    lines = drawn(board(), width=width)
    assert max(map(len, lines)) <= width
    assert {word for text in lines for word in text.split()} - words <= {"\u2026", "97%"}
    assert "12.35" in " ".join(lines).split()


def test_a_long_name_leaves_room_for_the_address() -> None:
    long = Board("gate" * 20, snapshot=SNAPSHOT)
    assert drawn(long)[0].endswith("gategategateg...  starting  1d 02:03:04  http://127.0.0.1:9464")


def test_old_figures_are_called_old() -> None:
    assert "figures are 9 s old: the recorder does not answer" in drawn(board(), now=109.0)
    assert not any("old" in text for text in drawn(board(), now=104.0))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (120, 40)])
def test_it_fits_the_terminal_however_much_there_is(width: int, height: int) -> None:
    many = replace(
        SNAPSHOT,
        stages={f"stage_number_{n}_with_a_very_long_name": STAGE for n in range(50)},
        data={f"value_{n}": ValueNow(mean=1e9 / 3, p50=-0.001, unit="furlong") for n in range(50)},
    )
    failure = "batch 1: stage reader raised RuntimeError: " + 300 * "x"
    lines = drawn(board(snapshot=many, num_failed=3, last_failure=failure), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("Ctrl-C")
    assert any(text.startswith("and ") and "more" in text for text in lines)


def test_a_line() -> None:
    assert line(board(num_failed=2)) == (
        "running; 12345 batches; 9.8 items/s; p50 134 p95 148 p99 n<368 ms; source connecting (nothing came for 5 s); "
        "dropped 1200 full; 2 failed; otlp: Connection refused"
    )
