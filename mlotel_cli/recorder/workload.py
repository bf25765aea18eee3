"""What the workload reports once a second, as the recorder keeps it: source, queues, process, gaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from mlotel_cli.recorder.measurements import Family, Kind, Point
from mlotel_cli.recorder.spanmetrics import clean
from mlotel_cli.wire import Report

Value = TypeVar("Value")

_NAME_LIMIT = 200
INTENDED = ("warmup", "stopped")
"""Reasons for which an item does not run, and which are no loss."""
_EXPECTED_DROPS = {"full": 0, "corrupt": 0}
"""Series that are there from the start: Prometheus cannot tell a first drop from a series that is new."""


@dataclass(slots=True)
class Workload(Report):
    """The latest report, bounded and clean; replaced as a whole, so that any thread may read it.

    `heard_s` is when it came, on the recorder's clock; None before the first.
    """

    heard_s: float | None = None

    @classmethod
    def of(cls, report: Report, *, now: float) -> "Workload":
        """Return what `report` says; names become series, so they are bounded in number and length."""
        source = replace(
            report.source,
            kind=clean(report.source.kind),
            state=clean(report.source.state),
            dropped=_bounded(report.source.dropped),
        )
        return cls(source, _bounded(report.queues), report.process, report.gaps, now)

    @property
    def dropped(self) -> int:
        """The number of lost items, without those that warmed up, or waited when the run was stopped."""
        return sum(count for reason, count in self.source.dropped.items() if reason not in INTENDED)

    def families(self, service: Mapping[str, str]) -> Sequence[Family]:
        """Return the report as metrics; nothing before the first one."""
        if self.heard_s is None:
            return []

        def family(name: str, kind: Kind, unit: str, description: str, values: Mapping[str, float], key: str) -> Family:
            points = [Point(value, {**service, key: label} if key else service) for label, value in values.items()]
            return Family(name, kind, unit, description, points)

        source, gaps = self.source, self.gaps
        depths = {name: depth for name, (depth, _) in self.queues.items()}
        rooms = {name: room for name, (_, room) in self.queues.items()}
        connected = {"": float(source.state == "connected")}
        restarts, lost = {"": gaps.recorder_restarts}, {"": gaps.batches_lost}
        received, again = {"": source.received}, {"": source.reconnects}
        dropped = _EXPECTED_DROPS | source.dropped
        items, batches = "{item}", "{batch}"
        return [
            family("mlotel.source.received", "counter", items, "Items that arrived at the source.", received, ""),
            family("mlotel.source.dropped", "counter", items, "Items that never ran, by reason.", dropped, "reason"),
            family("mlotel.source.reconnects", "counter", "{reconnect}", "Times the source was lost.", again, ""),
            family("mlotel.source.connected", "gauge", "", "1 while the source delivers, else 0.", connected, ""),
            family("mlotel.queue.depth", "gauge", items, "Waiting before a stage now.", depths, "queue"),
            family("mlotel.queue.capacity", "gauge", items, "Room before a stage.", rooms, "queue"),
            family(
                "mlotel.recorder.restarts", "counter", "{restart}", "Recorders that had to be replaced.", restarts, ""
            ),
            family("mlotel.recorder.batches_lost", "counter", batches, "Batches lost with a recorder.", lost, ""),
        ]


def _bounded(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the first names only, so that a source that invents names does not make a million series."""
    return {clean(name): value for name, value in islice(values.items(), _NAME_LIMIT)}
