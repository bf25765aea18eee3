"""What the workload says of itself once a second: source, queues, process, gaps. Counts are since the start."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlotel_cli.recorder.measurements import Family, Kind, Point
from mlotel_cli.recorder.spanmetrics import clean

_NAME_LIMIT = 200
INTENDED = ("warmup", "stopped")
"""Reasons for which an item does not run that are no loss."""
_EXPECTED_DROPS = {"full": 0, "corrupt": 0}
"""Series that are there from the start: Prometheus cannot tell a first drop from a series that is new."""


@dataclass(slots=True, frozen=True)
class Workload:
    """One `live` message; replaced as a whole, so that any thread may read it.

    Attributes:
        heard_s: when it came, on the recorder's clock; None before the first.
        source: kind, state, received, dropped by reason, reconnects.
        queues: depth and capacity by name.
        process: rss_bytes, cpu_s, pid.
        gaps: recorder_restarts, batches_lost.
    """

    heard_s: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    queues: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    process: Mapping[str, float] = field(default_factory=dict[str, float])
    gaps: Mapping[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def from_json(cls, text: str, *, now: float) -> "Workload":
        """Read a message.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: when it is not what was agreed.
        """
        told: dict[str, Any] = json.loads(text)
        source: dict[str, Any] = told.get("source") or {}
        process: dict[str, Any] = told.get("workload") or {}
        gaps: dict[str, Any] = told.get("gaps") or {}
        return cls(
            now,
            {
                "kind": clean(str(source.get("kind", ""))),
                "state": clean(str(source.get("state", ""))),
                "received": int(source.get("received", 0)),
                "reconnects": int(source.get("reconnects", 0)),
                "dropped": {clean(name): int(count) for name, count in _bounded(source.get("dropped")).items()},
            },
            {clean(name): (int(depth), int(room)) for name, (depth, room) in _bounded(told.get("queues")).items()},
            {name: value for name, value in process.items() if _is_number(value)},
            {str(name): int(count) for name, count in gaps.items()},
        )

    @property
    def dropped(self) -> int:
        """Items that were lost: not those that warmed up, or waited when the run was stopped."""
        dropped: Mapping[str, int] = self.source.get("dropped", {})
        return sum(count for reason, count in dropped.items() if reason not in INTENDED)

    def families(self, service: Mapping[str, str]) -> Sequence[Family]:
        """The same as metrics; nothing before the first message."""
        if self.heard_s is None:
            return []

        def family(name: str, kind: Kind, unit: str, description: str, values: Mapping[str, float], key: str) -> Family:
            points = [Point(value, {**service, key: label} if key else service) for label, value in values.items()]
            return Family(name, kind, unit, description, points)

        source, gaps = self.source, self.gaps
        depths = {name: depth for name, (depth, _) in self.queues.items()}
        rooms = {name: room for name, (_, room) in self.queues.items()}
        connected = {"": float(source["state"] == "connected")}
        restarts, lost = {"": gaps.get("recorder_restarts", 0)}, {"": gaps.get("batches_lost", 0)}
        received, again = {"": source["received"]}, {"": source["reconnects"]}
        dropped = _EXPECTED_DROPS | source["dropped"]
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


def _bounded(values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Names become series: a source that makes them up must not make a million."""
    return dict(list((values or {}).items())[:_NAME_LIMIT])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
