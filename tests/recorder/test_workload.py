"""What the workload says once a second: read, bounded, and turned into metrics."""

from typing import Any

import pytest

from mlotel_cli.recorder.workload import Workload
from mlotel_cli.snapshot import Gaps, SourceReport
from mlotel_cli.wire import ProcessReport, Report

TOLD = Report(
    SourceReport("video", "connected", 90, {"full": 4, "corrupt": 1}, reconnects=2),
    {"source": (3, 8), "reader": (1, 2)},
    ProcessReport(rss_bytes=1000, cpu_s=1.5, pid=7),
    Gaps(recorder_restarts=1, batches_lost=12),
)


def source(**reported: Any) -> Workload:
    return Workload.of(Report(SourceReport(**reported)), now=0.0)


def series(told: Workload) -> dict[str, dict[str, float]]:
    return {
        family.name: {"".join(point.attributes.values()): point.value for point in family.points}
        for family in told.families({})
    }


def test_every_count_becomes_a_metric():
    told = Workload.of(TOLD, now=5.0)
    assert (told.heard_s, told.dropped, told.process.rss_bytes) == (5.0, 5, 1000)
    assert series(told) == {
        "mlotel.source.received": {"": 90},
        "mlotel.source.dropped": {"full": 4, "corrupt": 1},
        "mlotel.source.reconnects": {"": 2},
        "mlotel.source.connected": {"": 1.0},
        "mlotel.queue.depth": {"source": 3, "reader": 1},
        "mlotel.queue.capacity": {"source": 8, "reader": 2},
        "mlotel.recorder.restarts": {"": 1},
        "mlotel.recorder.batches_lost": {"": 12},
    }
    kinds = {family.name: family.kind for family in told.families({})}
    assert kinds["mlotel.source.dropped"] == "counter"
    assert kinds["mlotel.queue.depth"] == "gauge"


def test_the_service_is_on_every_series():
    told = Workload.of(TOLD, now=5.0)
    points = [point for family in told.families({"service.name": "lpr"}) for point in family.points]
    assert {point.attributes["service.name"] for point in points} == {"lpr"}


@pytest.mark.parametrize("state", ["connecting", "ended", ""])
def test_any_other_state_is_not_connected(state):
    told = source(state=state)
    assert series(told)["mlotel.source.connected"] == {"": 0.0}


def test_before_the_first_word_there_is_nothing():
    assert list(Workload().families({})) == []
    assert Workload().dropped == 0


def test_an_empty_word_is_a_word():
    assert series(Workload.of(Report(), now=0.0))["mlotel.source.received"] == {"": 0}


def test_expected_reasons_are_there_before_the_first_drop():
    told = source(dropped={"late": 2})
    assert series(told)["mlotel.source.dropped"] == {"full": 0, "corrupt": 0, "late": 2}


def test_what_warmed_up_or_was_stopped_is_no_loss_but_has_its_series():
    told = source(dropped={"warmup": 3, "stopped": 2, "full": 1})
    assert told.dropped == 1
    assert series(told)["mlotel.source.dropped"] == {"full": 1, "corrupt": 0, "warmup": 3, "stopped": 2}


def test_names_are_bounded_in_number_and_length():
    told = Report(queues={f"{number}{'x' * 1000}": (0, 1) for number in range(1000)})
    queues = Workload.of(told, now=0.0).queues
    assert (len(queues), max(map(len, queues))) == (200, 200)
