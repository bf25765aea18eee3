"""Who a stage waits for: every verdict at its limit."""

import pytest

from mlotel_cli.analysis.verdicts import verdict, verdict_of_events


@pytest.mark.parametrize(
    ("host_ms", "device_ms", "busy_ms", "queue_ms", "expected"),
    [
        (10, None, None, None, "host-bound"),
        (10, None, None, 10, "host-bound"),
        (10, None, None, 10.1, "waiting"),
        (10, 20, 16, None, "device-bound"),  # busy for 0.8 of the longer of the two
        (10, 20, 15.9, None, "launch-bound"),
        (20, 10, 10, None, "launch-bound"),
        (20, 18, 16, None, "device-bound"),
        (1, 20, 20, 20, "device-bound"),
        (1, 20, 20, 20.1, "waiting"),
    ],
)
def test_who_a_stage_waits_for(host_ms: float, device_ms: float, busy_ms: float, queue_ms: float, expected: str):
    assert verdict(host_ms=host_ms, device_ms=device_ms, busy_ms=busy_ms, queue_ms=queue_ms) == expected


@pytest.mark.parametrize(
    ("sync_ms", "busy_ms", "expected"),
    [
        (0, 10, "launch-bound"),
        (10, 8, "device-bound"),  # of the 10 ms without waiting, the device is busy for 8
        (7, 10, "launch-bound"),  # of 13, for 10
        (18, 10, "device-bound"),  # 20 ms on the host, 18 of them waiting for what an earlier stage launched too
        (16, 0, "device-bound"),
        (15.9, 0, "launch-bound"),
    ],
)
def test_a_host_that_waits_for_the_device_launches_nothing(sync_ms: float, busy_ms: float, expected: str):
    assert verdict(host_ms=20, device_ms=10, busy_ms=busy_ms, queue_ms=None, sync_ms=sync_ms) == expected


OPEN = "launch-bound or synchronising"


@pytest.mark.parametrize(
    ("latency_ms", "device_ms", "lag_ms", "queue_ms", "expected"),
    [
        (20, 20, 19, None, "device-bound"),  # launched within a millisecond, and 19 to do after that
        (20, 20, 16, None, "device-bound"),  # it may have waited for the host in 4 of 20 ms, no more
        (20, 20, 15.9, None, OPEN),
        (20, 20, 0, None, OPEN),  # host and device end together: who waited for whom?
        (20, 3, 0, None, "device-bound"),  # at earlier work for 17 of 20 ms
        (20, 10, 0, None, OPEN),  # at earlier work for 10, and at this or idle for 10
        (20, 3, 19, None, "device-bound"),  # launched long before the device came to it
        (20, 20, 19, 20.1, "waiting"),
        (20, 20, 0, 20.1, "waiting"),
        (20, 20, 0, 20, OPEN),
    ],
)
def test_what_two_events_tell(
    latency_ms: float, device_ms: float, lag_ms: float, queue_ms: float | None, expected: str
):
    said = verdict_of_events(latency_ms=latency_ms, device_ms=device_ms, lag_ms=lag_ms, queue_ms=queue_ms)
    assert said == expected
