"""What a stage waits for: by what a profiler saw, or by two device events per span. Pure."""

from typing import Literal

BUSY = 0.8
"""From this share of a stage's time on, the device counts as what the stage waits for."""

Verdict = Literal["device-bound", "launch-bound", "host-bound", "waiting", "launch-bound or synchronising"]
UNDECIDED: Verdict = "launch-bound or synchronising"
"""What events alone tell of a stage that ends with its device; it may have no work for the device at all."""


def verdict(
    *,
    host_ms: float,
    device_ms: float | None,
    busy_ms: float | None,
    queue_ms: float | None,
    sync_ms: float = 0.0,
) -> Verdict:
    """What a stage waits for, by what a profiler saw.

    Args:
        host_ms: time on the host.
        device_ms: from the first activity of the device to the last; None without one.
        busy_ms: the part of it in which the device did something.
        queue_ms: time in the queue before the stage.
        sync_ms: the part of `host_ms` in which the host waited for the device, for earlier stages' work too.

    Returns:
        waiting: in the queue for longer than it works. device-bound: the host waits for the device, or the device is
        busy for most of the stage. launch-bound: the device waits for the host's launches. host-bound: no device takes
        part.
    """
    if queue_ms is not None and queue_ms > max(host_ms, device_ms or 0.0):
        return "waiting"
    if device_ms is None or busy_ms is None:
        return "host-bound"
    length_ms = max(host_ms - sync_ms, device_ms)
    return "device-bound" if busy_ms >= BUSY * length_ms or sync_ms >= BUSY * host_ms else "launch-bound"


def verdict_of_events(*, latency_ms: float, device_ms: float, lag_ms: float, queue_ms: float | None) -> Verdict:
    """What a stage waits for, by two events per span.

    Until the first event passes, the device is at earlier work; once the host is done, all its launches lie ready. In
    between it may have waited for the host, or not: a stage that waits for its own results looks like one whose device
    waits for launches, and like one that has no work for the device. Only a profile tells them apart.

    Args:
        latency_ms: from the start on the host until host and device are done.
        device_ms: between the events.
        lag_ms: how long the device went on after the host.
        queue_ms: time in the queue before the stage.
    """
    if queue_ms is not None and queue_ms > latency_ms:
        return "waiting"
    undecided_ms = max(0.0, device_ms - lag_ms)
    return "device-bound" if latency_ms - undecided_ms >= BUSY * latency_ms else UNDECIDED
