"""What a monitor tells its recorder and its operator."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mlotel_cli.hardware import rss_bytes
from mlotel_cli.modes.monitor_status import Board, Changes, Ticker, report_of
from mlotel_cli.snapshot import Gaps, SourceReport
from mlotel_cli.sources import Health
from mlotel_cli.sources.intake import CONNECTED, CONNECTING, ENDED
from mlotel_cli.wire import Message, Report
from tests.support.wire import received


def board(**values: Any) -> Board:
    return Board("test", **values)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def changes(said: list[str]) -> Changes:
    return Changes(said.append)


def test_the_report_is_what_the_recorder_reads() -> None:
    source = SourceReport("video", "connected", 3, {"full": 1}, reconnects=2)
    gaps = Gaps(recorder_restarts=1, batches_lost=4)
    told = received(report_of(board(source=source, queues={"source": (1, 8)}, gaps=gaps)))
    assert (told.source, told.queues, told.gaps) == (source, {"source": (1, 8)}, gaps)
    assert told.process.pid == os.getpid()
    assert abs(told.process.rss_bytes / (rss_bytes() or 0) - 1) < 0.1
    assert told.process.cpu_s > 0


def look(changes: Changes, health: Health, *, at_s: float = 0.0, **values: Any) -> None:
    changes.tell(board(**values), health, now_s=at_s)


def test_a_source_that_is_lost_and_comes_back(changes: Changes, said: list[str]) -> None:
    health = Health(CONNECTED)
    look(changes, health)
    health.state, health.detail = CONNECTING, "nothing came for 5 s"
    look(changes, health, at_s=10)
    health.detail = "Connection refused; tried 2 times"
    look(changes, health, at_s=11)
    health.state, health.detail = CONNECTED, ""
    look(changes, health, at_s=17)
    look(changes, health, at_s=18)
    assert said == [
        "source: lost: nothing came for 5 s; it is tried again and again",
        "source: connected again after 7 s",
    ]


def test_a_source_that_cannot_be_reached_is_said_once(changes: Changes, said: list[str]) -> None:
    health = Health(CONNECTING)
    look(changes, health)
    for tries in range(1, 4):
        health.detail = f"Connection refused; tried {tries} times"
        look(changes, health, at_s=tries)
    health.state, health.detail = CONNECTED, ""
    look(changes, health, at_s=9)
    assert said == [
        "source: cannot be reached yet: Connection refused; tried 1 times; it is tried again and again",
        "source: connected",
    ]


def test_the_end_of_a_source_is_no_loss(changes: Changes, said: list[str]) -> None:
    look(changes, Health(CONNECTED))
    look(changes, Health(ENDED))
    assert said == []


def test_drops_are_said_once_a_minute(changes: Changes, said: list[str]) -> None:
    for at_s, dropped in ((0, {}), (1, {"full": 2}), (30, {"full": 9}), (61, {"full": 9, "corrupt": 1}), (62, {})):
        look(changes, Health(CONNECTED), at_s=at_s, source=SourceReport(dropped=dropped))
    assert said == ["source: dropped 2 full; 2 in all", "source: dropped 7 full, 1 corrupt; 10 in all"]


def test_what_the_warm_up_and_the_end_drop_is_no_news(changes: Changes, said: list[str]) -> None:
    look(changes, Health(CONNECTED), source=SourceReport(dropped={"warmup": 3, "stopped": 2}))
    assert said == []


def test_a_failure_is_said_once(changes: Changes, said: list[str]) -> None:
    for number in (1, 2):
        look(changes, Health(CONNECTED), num_failed=number, last_failure=f"batch {number}: stage x raised")
    assert said == ["batch 1: stage x raised (said once; further batches that fail are counted, the run goes on)"]


def test_the_ticker_tells_and_tells_a_last_time() -> None:
    sent: list[Message] = []
    twice = threading.Event()

    def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 2:
            twice.set()

    intake = SimpleNamespace(report=lambda: SourceReport(state="connected", received=5), health=Health(CONNECTED))
    loop: Any = SimpleNamespace(
        feed=SimpleNamespace(intake=intake), depths=lambda: {"source": (2, 8)}, phase="running", num_failed=0,
        last_failure="",
    )  # fmt: skip
    link: Any = SimpleNamespace(send=send, gaps=Gaps())
    shown = board()
    ticker = Ticker(loop, link, shown, say=lambda _: None, every_s=0.001)
    ticker.start()
    assert twice.wait(5)
    intake.report = lambda: SourceReport(state="ended", received=7)
    ticker.stop()
    assert not ticker.is_alive()
    last = sent[-1]
    assert isinstance(last, Report)
    assert last.source.received == 7
    assert (shown.phase, shown.queues, shown.source.received) == ("running", {"source": (2, 8)}, 7)
