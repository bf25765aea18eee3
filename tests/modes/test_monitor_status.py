"""What a monitor tells its recorder and its operator."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mlotel_cli.hardware import rss_bytes
from mlotel_cli.modes.monitor_status import Board, Changes, Ticker, message
from mlotel_cli.sources import Health
from mlotel_cli.sources.intake import CONNECTED, CONNECTING, ENDED


def board(**values: Any) -> Board:
    return Board("test", **values)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def changes(said: list[str]) -> Changes:
    return Changes(said.append)


def test_the_message_is_what_the_recorder_reads() -> None:
    source = {"kind": "video", "state": "connected", "received": 3, "dropped": {"full": 1}, "reconnects": 2}
    told = json.loads(
        json.dumps(
            message(board(source=source, queues={"source": (1, 8)}, gaps={"recorder_restarts": 0, "batches_lost": 4}))
        )
    )
    assert told["source"] == source
    assert told["queues"] == {"source": [1, 8]}
    assert told["gaps"] == {"recorder_restarts": 0, "batches_lost": 4}
    assert set(told["workload"]) == {"rss_bytes", "cpu_s", "pid"}
    assert abs(told["workload"]["rss_bytes"] / (rss_bytes() or 0) - 1) < 0.1
    assert told["workload"]["cpu_s"] > 0


def test_the_recorder_understands_the_message() -> None:
    from mlotel_cli.recorder.workload import Workload

    source = {"kind": "video", "state": "connected", "received": 3, "dropped": {"full": 1}, "reconnects": 2}
    gaps = {"recorder_restarts": 1, "batches_lost": 4}
    text = json.dumps(message(board(source=source, queues={"source": (1, 8)}, gaps=gaps)))
    heard = Workload.from_json(text, now=1.0)
    assert (heard.source, heard.queues, heard.gaps) == (source, {"source": (1, 8)}, gaps)


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
        look(changes, Health(CONNECTED), at_s=at_s, source={"dropped": dropped})
    assert said == ["source: dropped 2 full; 2 in all", "source: dropped 7 full, 1 corrupt; 10 in all"]


def test_what_the_warm_up_and_the_end_drop_is_no_news(changes: Changes, said: list[str]) -> None:
    look(changes, Health(CONNECTED), source={"dropped": {"warmup": 3, "stopped": 2}})
    assert said == []


def test_a_failure_is_said_once(changes: Changes, said: list[str]) -> None:
    for number in (1, 2):
        look(changes, Health(CONNECTED), num_failed=number, last_failure=f"batch {number}: stage x raised")
    assert said == ["batch 1: stage x raised (said once; further batches that fail are counted, the run goes on)"]


def test_the_ticker_tells_and_tells_a_last_time() -> None:
    sent: list[tuple[str, str]] = []
    twice = threading.Event()

    def send(kind: str, text: str) -> None:
        sent.append((kind, text))
        if len(sent) == 2:
            twice.set()

    intake = SimpleNamespace(report=lambda: {"state": "connected", "received": 5}, health=Health(CONNECTED))
    loop: Any = SimpleNamespace(
        feed=SimpleNamespace(intake=intake), depths=lambda: {"source": (2, 8)}, phase="running", num_failed=0,
        last_failure="",
    )  # fmt: skip
    link: Any = SimpleNamespace(send=send, gaps={"recorder_restarts": 0, "batches_lost": 0})
    shown = board()
    ticker = Ticker(loop, link, shown, say=lambda _: None, every_s=0.001)
    ticker.start()
    assert twice.wait(5)
    intake.report = lambda: {"state": "ended", "received": 7}
    ticker.stop()
    assert not ticker.is_alive()
    assert {kind for kind, _ in sent} == {"live"}
    assert json.loads(sent[-1][1])["source"]["received"] == 7
    assert (shown.phase, shown.queues, shown.source["received"]) == ("running", {"source": (2, 8)}, 7)
